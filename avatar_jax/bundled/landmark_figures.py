"""What reads landmarks better, on pictures and videos of the user's: each backend's error, jitter and time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.faces.alignment import five_points
from avatar_jax.io.landmarks import read_landmarks, side_file
from avatar_jax.track.choose import Chooser
from avatar_jax.track.inputs import is_photograph, open_frames
from avatar_jax.track.observe import Observed, observe
from avatar_jax.track.smooth import fill_gaps, jitter
from avatar_jax.track.tracker import Tracker

BACKENDS = {'face_net': 'none', 'face landmarker': None}


def compare_backends(paths: Iterable[str | Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Name of a file -> backend -> figures.

    ``found``: share of the frames with a face. ``milliseconds`` of one processor core per frame. ``five points``: mean
    distance from those of a landmark file beside the picture, in eye distances. ``apart``: mean distance from the other
    backend's landmarks without the outline. ``jitter``: of what was read, in eye distances (``track.smooth.jitter``).
    ``opening``: standard deviation of the mouth's opening in eye distances, so that stillness is not taken for calm.

    Args:
        paths: pictures and videos.

    Raises:
        UserError: a file cannot be read.
    """
    trackers = {name: Tracker(mediapipe=file) for name, file in BACKENDS.items()}
    out = {}
    for path in paths:
        seen = {name: _observed(tracker, path) for name, tracker in trackers.items()}
        rows = {name: _figures(path, *found) for name, found in seen.items()}
        a, b = (found.points[:, 17:] for found, _ in seen.values())
        apart = np.linalg.norm(a - b, axis=-1).mean(-1) / _eyes(next(iter(seen.values()))[0].points)
        if np.isfinite(apart).any():
            for row in rows.values():
                row['apart'] = float(np.nanmean(apart))
        out[Path(path).name] = rows
    return out


def _observed(tracker: Tracker, path: str | Path) -> tuple[Observed, float]:
    frames = open_frames(path)
    began = time.process_time()
    found = observe(frames, tracker.reader, Chooser('size', tracker.network), careful=is_photograph(frames))
    return found, (time.process_time() - began) / max(found.num_frames, 1)


def _eyes(points: np.ndarray) -> np.ndarray:
    """[T] eye distances of [T,68,2]."""
    return np.linalg.norm(points[:, 36:42].mean(1) - points[:, 42:48].mean(1), axis=-1)


def _figures(path: str | Path, found: Observed, seconds: float) -> dict[str, Any]:
    row = {'found': float(found.found.mean()), 'milliseconds': 1000 * seconds}
    if not found.found.any():
        return row
    points = fill_gaps(found.points.astype(np.float64), found.found, found.times)
    eyes = _eyes(points)
    beside = side_file(path)
    if beside.path is not None and found.num_frames == 1:
        marks = five_points(read_landmarks(beside.path))
        off = np.linalg.norm(five_points(points[0]) - 0.5 - marks, axis=-1).mean()
        row['five points'] = float(off / np.linalg.norm(marks[1] - marks[0]))
    if found.num_frames > 2:
        row['jitter'] = jitter(points, found.times, eyes)
        row['opening'] = float(np.std(np.linalg.norm(points[:, 62] - points[:, 66], axis=-1) / eyes))
    return row
