"""Coefficients that other programs measured or made, as motions: ``.mat``, ``.npz`` or ``.npy``.

Known are one array ``coeff`` (or ``coeff_3dmm``, ``coefficients``) with one row per frame, and the parts under their
names (``exp`` [N, 64], ``angle`` [N, 3], ``trans`` [N, 3], ...), as Deep3DFaceRecon's regressor writes them for each
picture. The array is [N, 257 or 260] as that regressor measures it, or [N, 70 or 73] as SadTalker and DreamTalk make
it: expression 64, angle 3, translation 3, and in 73 the crop, which is left out. Numbers belong to the basis
``bfm2009-deep3d`` unless the file has an entry ``basis``. Files are read without running anything in them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.driving.bases import BFM
from avatar_jax.errors import UserError
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.motion import WIDTHS, check_motion, load_motion, split
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.types import Motion

ENDINGS = ('.mat', '.npz', '.npy')
_WHOLE = ('coeff', 'coeff_3dmm', 'coefficients', 'coeffs')
_PARTS = ('exp', 'angle', 'trans')
DEFAULT_FPS = 25.0


def load_coefficients(path: str | os.PathLike, fps: float | None = None) -> Motion:
    """Reads a motion file of this project or another program's coefficients.

    Args:
        fps: frame rate, for files that do not say it (25 if None).

    Raises:
        UserError: unreadable file, none of the known layouts, wrong shapes, NaN, other units.
    """
    path = Path(path)
    if path.suffix.lower() == '.npz' and _is_motion(path):
        motion = load_motion(path)
        return motion if fps is None else motion.replace(fps=float(fps))
    entries = _entries(path)
    expression, angle, translation = _three(path, entries)
    check_motion(path, expression, angle, translation)
    rate = fps if fps is not None else _number(entries.get('fps'), DEFAULT_FPS)
    basis = entries.get('basis', BFM)
    basis = str(np.asarray(basis).reshape(-1)[0]) if np.size(basis) == 1 else BFM
    return Motion(expression, angle, translation, float(rate), basis, file_sha256(path))


def _is_motion(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as file:
            names = set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return True  # load_motion says what is wrong
    return {'coefficients.npy', 'basis.npy'} <= names


def _entries(path: Path) -> dict[str, Any]:
    from avatar_jax.io.foreign import read

    raw = read(path)
    if raw.kind not in ('mat', 'npz', 'npy'):
        raise UserError(f'{path}: is a file of the kind {raw.kind}; coefficients come as .mat, .npz or .npy')
    if raw.kind == 'npy':
        return {'coeff': np.asarray(raw.tree)}
    if not isinstance(raw.tree, Mapping):
        raise UserError(f'{path}: holds no named arrays; expected coeff [N,257] or [N,70], or exp, angle and trans')
    return dict(raw.tree)


def _three(path: Path, entries: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    name = next((n for n in _WHOLE if n in entries), None)
    if name is not None:
        rows = _array(path, name, entries[name])
        if rows.shape[1] not in WIDTHS:
            known = ', '.join(f'[N, {width}]' for width in WIDTHS)
            raise UserError(f'{path}: {name} has shape {rows.shape}, expected one of {known}')
        return tuple(np.ascontiguousarray(part) for part in split(rows))
    missing = [k for k in _PARTS if k not in entries]
    if missing:
        found = ', '.join(sorted(map(str, entries))[:8]) or 'nothing'
        raise UserError(
            f'{path}: has neither coeff [N,{"|".join(map(str, WIDTHS))}] nor {", ".join(missing)} (found: {found}); '
            'see docs/motion_file.md'
        )
    parts = [_array(path, k, entries[k]) for k in _PARTS]
    length = max(len(p) for p in parts)
    for key, part in zip(_PARTS, parts, strict=True):
        size = SLICES[key].stop - SLICES[key].start
        if part.shape[1] != size or len(part) not in (1, length):
            raise UserError(f'{path}: {key} has shape {part.shape}, expected [{length}, {size}]')
    return tuple(np.repeat(p, length, 0) if len(p) == 1 and length > 1 else p for p in parts)


def _array(path: Path, name: str, value: Any) -> np.ndarray:
    """[N, K] float32 of numbers with leading axes of one picture each."""
    array = np.asarray(value)
    if array.dtype.kind not in 'fiu' or array.ndim < 1 or array.size == 0:
        raise UserError(f'{path}: {name} is not an array of numbers')
    return array.reshape(-1, array.shape[-1]).astype(np.float32)


def _number(value: Any, otherwise: float) -> float:
    array = np.asarray(value if value is not None else otherwise)
    if array.dtype.kind in 'fiu' and array.size == 1 and np.isfinite(array).all() and array.reshape(-1)[0] > 0:
        return float(array.reshape(-1)[0])
    return otherwise
