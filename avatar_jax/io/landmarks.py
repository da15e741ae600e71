"""Landmark files beside a picture: 5 or 68 points, text or ``.npy``.

``portrait.jpg`` is looked up as ``portrait.landmarks5.txt``, ``portrait.landmarks68.txt``, ``portrait.landmarks.txt``,
``portrait.txt``, and the same with ``.npy``. Points are (x, y) pixels of the upright picture, y downwards, one per row;
5 points are image-left eye, image-right eye, nose tip, image-left and image-right mouth corner; 68 are in iBUG order.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.inputs import input_file

NUM_POINTS = (5, 68)
_ENDINGS = ('.landmarks5', '.landmarks68', '.landmarks', '')


def find_landmarks(picture: str | os.PathLike) -> Path | None:
    """The landmark file that belongs to ``picture``, or None."""
    picture = Path(picture)
    for stem in (picture.with_suffix(''), picture):  # portrait.landmarks5.txt, then portrait.jpg.landmarks5.txt
        for ending in _ENDINGS:
            for suffix in ('.txt', '.npy'):
                path = stem.with_name(stem.name + ending + suffix)
                if path != picture and path.is_file():
                    return path
    return None


def read_landmarks(path: str | os.PathLike) -> np.ndarray:
    """Reads 5 or 68 landmarks: float32 [5 or 68, 2].

    Raises:
        UserError: missing or damaged file, another number of points, NaN.
    """
    path = input_file(path)
    try:
        if path.suffix.lower() == '.npy':
            points = np.load(path, allow_pickle=False)
        else:
            points = np.array(path.read_text(encoding='utf-8').replace(',', ' ').split(), dtype=np.float64)
        points = np.asarray(points, np.float64)
    except (ValueError, OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: is not a landmark file; expected one "x y" pair of numbers per row') from error
    if points.size not in [2 * n for n in NUM_POINTS] or (points.ndim > 1 and points.shape[-1] != 2):
        raise UserError(f'{path}: holds {points.shape} numbers; expected 5 or 68 points (x, y)')
    points = points.reshape(-1, 2)
    if not np.isfinite(points).all():
        raise UserError(f'{path}: has NaN or infinite values; repair the file')
    return points.astype(np.float32)
