"""Landmark files beside a picture or video: 5, 68, 98 or 478 points; text, ``.npy`` or JSON.

``portrait.jpg`` is looked up as ``portrait.landmarks5.txt``, ``portrait.landmarks68.txt``, ``portrait.landmarks.txt``
and so on, also with ``.npy``, ``.json``, ``.pts`` and ``.csv``: such a file binds, and is refused where something is
wrong with it. ``portrait.txt``, ``portrait.npy`` and ``portrait.pts`` are guesses, for captions, transcripts and sound
features have such names, too: they are used where they hold landmarks, and ignored with a note where they do not.
Points are (x, y) pixels of the upright picture, y downwards, one per row; 5 points are image-left eye, image-right eye,
nose tip, image-left and image-right mouth corner; 68 are in iBUG, 98 in WFLW, 478 in MediaPipe order. A third number
per point (depth) is left out.

Text may have a byte order mark, be UTF-16, hold ``#`` comments and a line of column names; ``.pts`` is iBUG's form, its
numbers taken as they are.

A video's file holds all frames: ``.npy`` [T, N, 2], text with one frame per row, JSON with a list of frames; NaN or
null stands for a frame without a face.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.inputs import input_file
from avatar_jax.io.text import lines, read_text

NUM_POINTS = (5, 68, 98, 468, 478)
_BINDING = ('.landmarks5', '.landmarks68', '.landmarks98', '.landmarks468', '.landmarks478', '.landmarks')
_SUFFIXES = ('.txt', '.npy', '.json', '.pts', '.csv')
_GUESSED = ('.txt', '.npy', '.pts')  # '.json' is too common a name for something else
_JSON_KEYS = ('landmarks', 'landmarks68', 'points', 'keypoints')
_EXPECTED = '5 or 68 points (x, y) (98 and 478 are read as well)'


@dataclasses.dataclass(frozen=True)
class SideFile:
    """What lies beside a picture or video.

    Attributes:
        path: the landmark file, or None.
        guessed: only its name suggests that it belongs there: where it does not fit it is to be ignored.
        notes: files that were ignored, one phrase each.
    """

    path: Path | None = None
    guessed: bool = False
    notes: tuple[str, ...] = ()

    def ignored(self, reason: str) -> SideFile:
        """Without a guessed file that does not fit after all."""
        return SideFile(None, False, (*self.notes, f'{self.path.name} beside it was ignored: {reason}'))


def side_file(picture: str | os.PathLike) -> SideFile:
    """The landmark file that belongs to ``picture``; guessed ones only where they hold landmarks."""
    picture = Path(picture)
    stems = (picture.with_suffix(''), picture)  # portrait.landmarks5.txt, then portrait.jpg.landmarks5.txt
    for stem in stems:
        for ending in _BINDING:
            for suffix in _SUFFIXES:
                path = stem.with_name(stem.name + ending + suffix)
                if os.path.isfile(path):
                    return SideFile(path)
    found = SideFile()
    for stem in stems:
        for suffix in _GUESSED:
            path = stem.with_name(stem.name + suffix)
            if path == picture or not os.path.isfile(path):
                continue
            found = dataclasses.replace(found, path=path, guessed=True)
            try:
                read_landmark_frames(path)
                return found
            except UserError:
                found = found.ignored('it holds no landmarks')
    return found


def find_landmarks(picture: str | os.PathLike) -> Path | None:
    """The landmark file that belongs to ``picture``, or None."""
    return side_file(picture).path


def read_landmarks(path: str | os.PathLike) -> np.ndarray:
    """Reads the landmarks of one picture: float32 [5 or 68, 2]; 98 and 478 points are brought to 68.

    Raises:
        UserError: missing or damaged file, another number of points, several frames, NaN.
    """
    from avatar_jax.ops.landmark_layouts import to_68

    frames = read_landmark_frames(path)
    if len(frames) != 1:
        raise UserError(f'{path}: holds {len(frames)} frames of landmarks; a picture needs one')
    points = frames[0]
    if not np.isfinite(points).all():
        raise UserError(f'{path}: has NaN or infinite values; repair the file')
    return points if len(points) == 5 else to_68(points)


def read_landmark_frames(path: str | os.PathLike) -> np.ndarray:
    """Reads landmarks of all frames: float32 [T, N, 2] with N of ``NUM_POINTS``; NaN in frames without a face.

    Raises:
        UserError: missing or damaged file, another number of points.
    """
    path = input_file(path)
    wrong = UserError(f'{path}: is not a landmark file; expected one "x y" pair of numbers per row, or {_EXPECTED}')
    try:
        suffix = path.suffix.lower()
        if suffix == '.npy':
            points = np.load(path, allow_pickle=False)
        elif suffix == '.json':
            points = _from_json(json.loads(read_text(path)))
        else:
            points = _from_text(read_text(path))
        points = np.asarray(points, np.float64)
    except (ValueError, OSError, EOFError, UnicodeDecodeError, TypeError, RecursionError) as error:
        raise wrong from error
    if points.ndim == 3 and points.shape[2] in (2, 3):
        points = points[..., :2]
    elif points.ndim == 2 and points.shape[1] in (2, 3) and len(points) in NUM_POINTS:
        points = points[None, :, :2]
    elif points.ndim == 2 and points.shape[1] // 2 in NUM_POINTS and points.shape[1] % 2 == 0:
        points = points.reshape(len(points), -1, 2)  # one frame per row
    elif points.size in [2 * n for n in NUM_POINTS] and (points.ndim == 1 or points.shape[-1] == 2):
        points = points.reshape(1, -1, 2)
    if points.ndim != 3 or points.shape[1] not in NUM_POINTS or not len(points):
        raise UserError(f'{path}: holds {points.shape} numbers; expected {_EXPECTED}')
    return points.astype(np.float32)


def _from_text(text: str) -> np.ndarray:
    """The numbers of a text file: points by rows, or iBUG's ``.pts`` with a head and braces."""
    rows = lines(text, ('#', '//'))
    expected = None
    if '{' in rows and '}' in rows:
        head = dict(row.split(':', 1) for row in rows[: rows.index('{')] if ':' in row)
        expected = int(head['n_points']) if 'n_points' in head else None
        rows = rows[rows.index('{') + 1 : rows.index('}')]
    table = [row.replace(',', ' ').replace(';', ' ').split() for row in rows]
    if len(table) > 1 and not any(map(_is_number, table[0])):  # the names of the columns
        table = table[1:]
    if expected is not None and expected != len(table):
        raise ValueError('another number of points than the head says')
    if len({len(row) for row in table}) > 1:
        table = [[word for row in table for word in row]]
    return np.array(table, np.float64)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _from_json(content: Any) -> np.ndarray:
    """The numbers of a JSON file: points, frames of points, or either under a usual key; null becomes NaN."""
    if isinstance(content, dict):
        found = [content[k] for k in _JSON_KEYS if k in content]
        if not found:
            raise ValueError('no landmarks')
        content = found[0]
    frames = [f.get(next((k for k in _JSON_KEYS if k in f), ''), None) if isinstance(f, dict) else f for f in content]
    shapes = {np.shape(f) for f in frames if f is not None}
    if len(shapes) != 1:
        raise ValueError('frames of different sizes')
    shape = shapes.pop()
    return np.array([np.full(shape, np.nan) if f is None else np.asarray(f, np.float64) for f in frames])
