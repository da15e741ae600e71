"""Windows of speech features, one per video frame: 16 rows of 50 a second, with the frame's moment at row 8.

Rows beyond the ends of the sound are zeros. At 25 frames per second these are exactly the windows of AD-NeRF (8 zero
rows on both sides, windows of 16 rows, two rows apart); at other rates, and for frames with any time stamps, rows
between two others are interpolated, so that a window stays centred on its frame.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.inputs import input_file
from avatar_jax.sound.features import ROW_RATE

WINDOW, HALF = 16, 8
WINDOW_RATE = 25  # windows per second of aud.npy
LOGITS = 29  # 28 characters and the blank


def interpolate_rows(rows: np.ndarray, count: int, rate: float = ROW_RATE, new_rate: float = ROW_RATE) -> np.ndarray:
    """``count`` rows at ``new_rate`` per second from rows [T, C] at ``rate``: linear, values past the end are held."""
    rows = np.asarray(rows)
    at, known = np.arange(count) / new_rate, np.arange(len(rows)) / rate
    columns = [np.interp(at, known, column) for column in rows.T.astype(np.float64)]
    return np.stack(columns, -1).astype(rows.dtype)


def windows_at(rows: np.ndarray, times: np.ndarray, rate: float = ROW_RATE) -> np.ndarray:
    """Windows [N, 16, C] around the moments ``times`` [N] (seconds) of rows [T, C].

    Row j of a window is what ``rows`` have at ``time + (j - 8) / rate``, linear between two rows, zero outside.
    """
    rows = np.asarray(rows, np.float32)
    place = np.asarray(times, np.float64)[:, None] * rate + np.arange(WINDOW) - HALF
    place = np.where(np.abs(place - np.round(place)) < 1e-6, np.round(place), place)
    low = np.floor(place).astype(np.int64)
    share = (place - low).astype(np.float32)[..., None]
    padded = np.pad(rows, ((1, 1), (0, 0)))

    def at(index):
        return padded[np.clip(index + 1, 0, len(padded) - 1)]

    return at(low) * (1 - share) + at(low + 1) * share


def windows_of_rows(rows: np.ndarray, drop_last: bool = False) -> np.ndarray:
    """AD-NeRF's windows at 25 frames per second: [ceil(T / 2), 16, C] of rows [T, C] at 50 a second.

    ``drop_last``: leave the last row out, as the released extraction script does.
    """
    count = len(rows) - bool(drop_last)
    return windows_at(rows[:count], np.arange(-(-count // 2)) / WINDOW_RATE)


def rows_for(seconds: float) -> int:
    """How many rows at 50 a second a sound of this length has in AD-NeRF's data."""
    return round(ROW_RATE * seconds)


def load_sound_features(path: str | os.PathLike, times: np.ndarray, seconds: float | None = None) -> np.ndarray:
    """Windows [N, 16, 29] of the frames at ``times`` [N] from a file of DeepSpeech features.

    Args:
        path: ``.npy`` (or ``.npz`` with one array): windows [M, 16, 29] at 25 a second (AD-NeRF's ``aud.npy``), or
            logits [T, 29] of any number of rows.
        times: moments of the frames, seconds from the start of the sound. Of windows the nearest is taken.
        seconds: length of the sound that the logits belong to: they are interpolated to 50 rows a second over it. None
            takes them as 50 a second.

    Raises:
        UserError: another shape, NaN or infinite numbers, or features that end more than a second before the frames.
    """
    values = _load(path)
    times = np.asarray(times, np.float64)
    if values.ndim == 3 and values.shape[1:] == (WINDOW, LOGITS):
        number = np.round(times * WINDOW_RATE).astype(np.int64)
        _check_reach(path, len(values) / WINDOW_RATE, times)
        return values[np.clip(number, 0, len(values) - 1)]
    if values.ndim == 2 and values.shape[1] == LOGITS:
        if seconds is not None:
            values = interpolate_rows(values, rows_for(seconds), len(values) / seconds)
        _check_reach(path, len(values) / ROW_RATE, times)
        return windows_at(values, times)
    raise _no_features(path, values)


def features_seconds(path: str | os.PathLike) -> float:
    """How long the sound is that a file of features belongs to, as ``load_sound_features`` reads it."""
    values = _load(path)
    if values.ndim not in (2, 3):
        raise _no_features(path, values)
    return len(values) / (WINDOW_RATE if values.ndim == 3 else ROW_RATE)


def _no_features(path: Any, values: np.ndarray) -> UserError:
    return UserError(
        f'{path}: has shape {list(values.shape)}; sound features are windows [N, {WINDOW}, {LOGITS}] or logits '
        f'[T, {LOGITS}] of DeepSpeech 0.1.0'
    )


def _check_reach(path: Any, seconds: float, times: np.ndarray) -> None:
    if len(times) and times.max() > seconds + 1:
        raise UserError(
            f'{path}: ends after {seconds:.1f} s, the frames after {times.max():.1f} s; give the features of the whole '
            'clip, or fewer frames'
        )


def _load(path: str | os.PathLike) -> np.ndarray:
    path = input_file(path)
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                if len(found.files) != 1:
                    raise UserError(f'{path}: holds {len(found.files)} arrays; give a file with one')
                found = found[found.files[0]]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: cannot be read as .npy or .npz; make it again') from error
    if found.dtype.kind not in 'fiu' or not found.size:
        raise UserError(f'{path}: holds no numbers (or not numbers); give the array of sound features')
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError(f'{path}: has NaN or infinite numbers; make the features again')
    return found
