"""The other way: weight files of this project -> safetensors with the original key names and layouts.

The metadata of the file say what it holds and with which configuration, so importing it again gives the same weight
file. Copies and constant buffers that the original programs expect are written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.convert.base import ForeignFile
from avatar_jax.convert.recognise import EXPORT_KEY
from avatar_jax.errors import UserError
from avatar_jax.io import atomic
from avatar_jax.io.weights import Weights, load_weights

_CODES = {
    np.dtype(np.float32): 'F32',
    np.dtype(np.int64): 'I64',
    np.dtype(np.int32): 'I32',
    np.dtype(np.uint8): 'U8',
    np.dtype(np.bool_): 'BOOL',
}


def export(path: str | os.PathLike, to: str | os.PathLike, kinds: Sequence[ForeignFile]) -> Path:
    """Writes ``<name>.original.safetensors`` into the folder ``to``; returns its path.

    Raises:
        UserError: not a weight file of something that has an original form, or the place cannot be written to.
    """
    weights = load_weights(path)
    kind = kind_of(weights, kinds)
    target = Path(to) / f'{Path(path).stem}.original.safetensors'
    hint = {'kind': kind.name, 'config': weights.config}
    write_safetensors(target, kind.export(weights), {'format': 'pt', EXPORT_KEY: json.dumps(hint)})
    return target


def kind_of(weights: Weights, kinds: Sequence[ForeignFile]) -> ForeignFile:
    """The kind of file that a weight file was. Raises ``UserError`` if it has no original form."""
    for kind in kinds:
        if kind.method == weights.method and kind.export is not None:
            return kind
    raise UserError(f"{weights.path}: '{weights.method}' is this project's own; it has no original form to export to")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a ``.safetensors`` file, completely or not at all."""
    table: dict[str, Any] = {'__metadata__': dict(metadata)}
    position = 0
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # keeps every tensor aligned
    for name in order:
        value = tensors[name]
        table[name] = {
            'dtype': _CODES[value.dtype],
            'shape': list(value.shape),
            'data_offsets': [position, position + value.nbytes],
        }
        position += value.nbytes
    header = json.dumps(table).encode()
    header += b' ' * (-len(header) % 8)
    with atomic.atomic_path(path) as temporary, open(temporary, 'wb') as file:
        file.write(len(header).to_bytes(8, 'little') + header)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8))
