"""Motion files: a driving sequence as a small ``.npz`` (format: docs/motion_file.md)."""

from __future__ import annotations

import io
import os
import zipfile
import zlib

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io import atomic
from avatar_jax.io.inputs import input_file
from avatar_jax.io.provenance import Provenance
from avatar_jax.io.video import frame_rate
from avatar_jax.ops.coefficients import NUM_COEFFICIENTS, NUM_RECORD, SLICES
from avatar_jax.types import Motion

FORMAT = 'avatar_jax motion 1'
NUM_EXPRESSION = 64
_DRIVING = NUM_EXPRESSION + 3 + 3  # expression, angle, translation
WIDTHS = (_DRIVING, _DRIVING + 3, NUM_COEFFICIENTS, NUM_RECORD)
# Far outside anything a tracker gives: such files have other units (degrees, millimetres) or are damaged.
_LIMITS = {'expression': 100.0, 'angle': 2 * np.pi, 'translation': 100.0}


def save_motion(path: str | os.PathLike, motion: Motion, provenance: Provenance | None = None) -> None:
    """Writes a motion file, completely or not at all.

    Raises:
        UserError: the place cannot be written to, or the motion is not one that ``load_motion`` would accept.
    """
    path = os.fspath(path)
    arrays = [np.asarray(a, np.float32) for a in (motion.expression, motion.angle, motion.translation)]
    check_motion(path, *arrays)
    if not motion.basis:
        raise UserError(f'{path}: the motion names no coefficient basis; set Motion.basis before saving')
    buffer = io.BytesIO()
    entries = {
        'format': np.array(FORMAT),
        'coefficients': np.concatenate(arrays, axis=-1),
        'basis': np.array(motion.basis),
        'fps': np.array(float(frame_rate(motion.fps)), np.float64),
        'source': np.array(motion.source),
    }
    if provenance:
        entries['provenance'] = np.array(provenance.json())
    np.savez(buffer, **entries)
    atomic.write_bytes(path, buffer.getvalue())


def load_motion(path: str | os.PathLike, *, basis: str | None = None) -> Motion:
    """Reads a motion file.

    Args:
        path: the ``.npz`` file, or a folder of ``avatar-jax track``.
        basis: the basis that the coefficients must belong to; None accepts any.

    Returns:
        The motion, float32 numpy arrays.

    Raises:
        UserError: missing, damaged or incomplete file; wrong shape or basis; NaN; values in other units.
    """
    if os.path.isdir(path) and os.path.isfile(os.path.join(path, 'motion.npz')):
        path = os.path.join(path, 'motion.npz')  # a folder that the tracker wrote
    path = input_file(path)
    entries = _entries(path)
    for key in ('coefficients', 'basis', 'fps'):
        if key not in entries:
            raise UserError(
                f"{path}: has no entry '{key}' (found: {', '.join(sorted(entries)) or 'nothing'}); "
                'see docs/motion_file.md'
            )
    coefficients, found = entries['coefficients'], _text(path, entries, 'basis')
    if basis is not None and found != basis:
        raise UserError(
            f"{path}: coefficients belong to the basis '{found}', but '{basis}' is needed; "
            f"give a motion tracked with '{basis}'"
        )
    if not np.issubdtype(coefficients.dtype, np.floating) and not np.issubdtype(coefficients.dtype, np.integer):
        raise UserError(f'{path}: coefficients are {coefficients.dtype}, not numbers; save them as float32')
    if coefficients.ndim != 2 or coefficients.shape[1] not in WIDTHS:
        raise UserError(
            f'{path}: coefficients have shape {coefficients.shape}; '
            f'expected [frames, {" or ".join(map(str, WIDTHS))}] (see docs/motion_file.md)'
        )
    parts = split(coefficients.astype(np.float32))
    check_motion(path, *parts)
    fps = np.asarray(entries['fps']).reshape(-1)
    if fps.size not in (1, 2) or not np.issubdtype(fps.dtype, np.number) or not np.isfinite(fps).all() or fps[-1] == 0:
        raise UserError(f'{path}: fps is {entries["fps"]}; expected one number, or numerator and denominator')
    try:
        rate = frame_rate(float(fps[0]) / float(fps[1]) if fps.size == 2 else float(fps[0]))
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    source = _text(path, entries, 'source') if 'source' in entries else ''
    return Motion(*parts, fps=float(rate), basis=found, source=source)


def split(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expression [T, 64], angle [T, 3], translation [T, 3]) of [T, 70, 73, 257 or 260] coefficients."""
    if coefficients.shape[-1] in (NUM_COEFFICIENTS, NUM_RECORD):
        return tuple(coefficients[:, SLICES[part]] for part in ('exp', 'angle', 'trans'))
    return tuple(np.split(coefficients[:, :_DRIVING], [NUM_EXPRESSION, NUM_EXPRESSION + 3], axis=1))


def _entries(path: os.PathLike) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise UserError(f'{path}: is a bare array; a motion file is an .npz (see docs/motion_file.md)')
        with file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise UserError(
            f'{path}: is not a motion file, or is damaged; expected an .npz (docs/motion_file.md)'
        ) from error


def _text(path: os.PathLike, entries: dict[str, np.ndarray], key: str) -> str:
    value = entries[key]
    if value.dtype.kind not in 'US' or value.size != 1:
        raise UserError(f'{path}: {key} is {value.dtype}, not a text; save it as a string')
    value = value.reshape(-1)[0]
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)


def check_motion(path: os.PathLike | str, expression: np.ndarray, angle: np.ndarray, translation: np.ndarray) -> None:
    """Shapes, finite values, plausible units."""
    parts = {'expression': expression, 'angle': angle, 'translation': translation}
    widths = {'expression': NUM_EXPRESSION, 'angle': 3, 'translation': 3}
    frames = expression.shape[0] if expression.ndim else 0
    if frames < 1:
        raise UserError(f'{path}: the motion has no frames; give at least one')
    for name, values in parts.items():
        if values.shape != (frames, widths[name]):
            raise UserError(f'{path}: {name} has shape {values.shape}, expected {(frames, widths[name])}')
        bad = ~np.isfinite(values)
        if bad.any():
            frame, column = np.argwhere(bad)[0]
            raise UserError(
                f'{path}: {name} is {values[frame, column]} in frame {frame}, column {column} '
                f'({bad.any(axis=1).sum()} of {frames} frames are affected); repair or leave out these frames'
            )
        largest = float(np.abs(values).max())
        if largest > _LIMITS[name]:
            raise UserError(
                f'{path}: {name} reaches {largest:.3g}, beyond {_LIMITS[name]:.3g}; '
                'angles are radians, translations decimetres (docs/motion_file.md)'
            )
