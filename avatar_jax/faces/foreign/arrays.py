"""What the files of face models share: named arrays, kept under their original names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.io.foreign import RawFile, read
from avatar_jax.io.weights import Weights

Arrays = dict[str, np.ndarray]


def arrays_tree(flat: Arrays) -> dict[str, Any]:
    """Variables of a face model: the arrays under their original names."""
    return {'arrays': {k: np.ascontiguousarray(v) for k, v in flat.items()}}


def original_arrays(weights: Weights) -> Arrays:
    """The arrays of a weight file, which have kept their names and layouts."""
    return dict(weights.variables['arrays'])


def stored(value: np.ndarray) -> np.ndarray:
    """Numbers as float32, indices as integers."""
    if value.dtype.kind == 'f':
        return value.astype(np.float32)
    return value.astype(np.int64) if value.dtype.kind in 'iu' else value


def record(
    report: Report,
    place: str,
    arrays: Mapping[str, np.ndarray],
    keys: tuple[str, ...],
    file: str,
    unused: Mapping[str, str],
) -> None:
    """Says in the report what becomes of the arrays of a model, which needs those of the names ``keys``."""
    for key in arrays:
        if key in keys:
            report.mapped[place + key] = f'{file}: arrays.{key}'
        elif key in unused:
            report.unused[place + key] = unused[key]
        else:
            report.unexpected[place + key] = ''
    report.missing += [place + key for key in keys if key not in arrays]


def containing(*keys: str):
    """A function that finds where arrays of these names lie beside each other."""

    def find(tensors: Mapping[str, np.ndarray]) -> list[str]:
        found = []
        for name in tensors:
            prefix = name.removesuffix(keys[0])
            if name.endswith(keys[0]) and (not prefix or prefix[-1] in './'):
                found += [prefix] if all(prefix + k in tensors for k in keys) else []
        return found

    return find


def beside(path: Path, report: Report) -> RawFile:
    """Reads a file that a model needs too, and notes its SHA-256."""
    raw = read(path)
    report.notes.append(f'{path.name}, sha256 {raw.sha256}')
    return raw


def entry(raw: RawFile, key: str) -> np.ndarray:
    """An array of a file. Raises ``UserError`` if it is missing."""
    if key not in raw.tensors:
        raise UserError(f'{raw.path}: missing {key}; the file is damaged or another one')
    return raw.tensors[key]
