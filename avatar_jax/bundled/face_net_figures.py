"""Figures of the landmark network where it was not trained: other heads, known pictures, clips that are tracked.

Distances are in eye distances.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.eval.statistics import pearson
from avatar_jax.faces.alignment import five_points
from avatar_jax.io.images import read_image
from avatar_jax.io.landmarks import find_landmarks, read_landmarks
from avatar_jax.models.perception.face_net import crop_matrix
from avatar_jax.procedural import ProceduralHead
from avatar_jax.track.choose import Chooser, plausible
from avatar_jax.track.clip import track_clip
from avatar_jax.track.detect import detect_faces
from avatar_jax.track.inputs import frame_files
from avatar_jax.track.landmark_model import LandmarkModel, at_landmarks
from avatar_jax.track.network import VARIATIONS, FaceReader
from avatar_jax.track.observe import FileLandmarks, observe
from avatar_jax.track.track import TrackConfig


def read_pictures(reader: FaceReader, pictures: list[tuple[np.ndarray, np.ndarray]], seed: int) -> dict[str, float]:
    """Landmark errors from crops as a detector gives them: two readings from a crop that is off by some tenths."""
    rng, errors, detected = np.random.default_rng(seed), [], 0
    for picture, truth in pictures:
        eyes = np.linalg.norm(truth[36:42].mean(0) - truth[42:48].mean(0))
        size = max(eyes, 0.9 * np.linalg.norm(truth[36:48].mean(0) - truth[48:].mean(0)))
        faces = detect_faces(picture)
        detected += any(np.linalg.norm(f.center - truth.mean(0)) < size for f in faces)
        start = truth + rng.normal(0, 0.15, 2) * size
        start = start.mean(0) + (start - start.mean(0)) * rng.uniform(0.85, 1.15)
        first = reader.read(picture, crop_matrix(start))
        found = reader.around(picture, reader.around(picture, first.points).points, VARIATIONS).points
        errors.append(np.linalg.norm(found - truth, axis=1) / size)
    errors = np.array(errors)
    return {
        'pictures': len(errors),
        'error': float(errors.mean()),
        'error_median': float(np.median(errors.mean(1))),
        'error_without_outline': float(errors[:, 17:].mean()),
        'error_eyes': float(errors[:, 36:48].mean()),
        'error_mouth': float(errors[:, 48:].mean()),
        'detector_finds': detected / len(errors),
    }


def known_pictures(reader: FaceReader, folder: Path) -> dict[str, Any]:
    """Mean distance of the five points (or 68) from landmark files, in eye distances, picture by picture."""
    rows = {}
    for path in frame_files(folder):
        file = find_landmarks(path)
        if file is None:
            continue
        truth, pixels = read_landmarks(file).astype(np.float64), read_image(path).pixels
        faces = plausible(detect_faces(pixels))
        if not faces:
            rows[path.name] = {'error': None}
            continue
        face = min(faces, key=lambda f: np.linalg.norm(f.center - truth.mean(0)))
        points = reader.from_box(pixels, face).points - 0.5
        found = points if len(truth) == 68 else five_points(points)
        five = five_points(truth)
        error = np.linalg.norm(found - truth, axis=1) / np.linalg.norm(five[0] - five[1])
        rows[path.name] = {'error': float(error.mean()), 'each': np.round(error, 4).tolist()}
    return rows


def expression_figures(found: np.ndarray, truth: np.ndarray, landmark_model: LandmarkModel) -> dict[str, float]:
    """Correlations of expressions [T,64] with the truth, each number's mean over the clip removed.

    'numbers': all numbers of all frames, so that each counts by how much it moves; 'channels': of each number that
    moves (standard deviation over 0.03), averaged; 'landmarks': of where they move the 68 points.
    """

    def moved(e):
        points = np.tensordot(e, np.asarray(landmark_model.expression), 1)
        return (points - points.mean(0)).ravel()

    active = np.flatnonzero(truth.std(0) > 0.03)
    return {
        'expression_correlation_numbers': pearson((found - found.mean(0)).ravel(), (truth - truth.mean(0)).ravel()),
        'expression_correlation_channels': float(np.mean([pearson(found[:, i], truth[:, i]) for i in active])),
        'expression_correlation_landmarks': pearson(moved(found), moved(truth)),
    }


def track_clips(
    reader: FaceReader, clips: Iterable[Any], say: Callable[[dict[str, float]], None] = lambda row: None
) -> dict[str, float]:
    """Rotation, expression and speed on rendered speech: from the pictures alone, and ('exact_...') from true
    landmarks.

    Args:
        clips: with ``frames`` (25 a second), ``landmarks`` [T,68,2] (first pixel centred at 0.5), ``expression`` [T,64]
            and ``angle`` [T,3], e.g. ``data_pipelines.speaking_heads``.
        say: is called with the figures of each clip.
    """
    landmark_model = at_landmarks(ProceduralHead())
    rows = []
    for clip in clips:
        config = TrackConfig(label_mode='raw')
        began, cpu = time.monotonic(), time.process_time()
        observed = observe(clip.frames, reader, Chooser())
        seen, seen_cpu = time.monotonic(), time.process_time()
        track = track_clip(observed, landmark_model, config, reader.calibration)
        ended, ended_cpu = time.monotonic(), time.process_time()
        exact = track_clip(FileLandmarks(clip.landmarks - 0.5).observe(clip.frames, 'clip'), landmark_model, config)
        true = clip.landmarks - 0.5
        eyes = np.linalg.norm(true[:, 36:42].mean(1) - true[:, 42:48].mean(1), axis=-1).mean()
        off = track.angle - clip.angle
        rows.append(
            {
                'rotation_degrees': float(np.rad2deg(np.abs(off)).mean()),
                'rotation_degrees_without_offset': float(np.rad2deg(np.abs(off - off.mean(0)).mean())),
                **expression_figures(track.expression, clip.expression, landmark_model),
                'exact_rotation_degrees': float(np.rad2deg(np.abs(exact.angle - clip.angle).mean())),
                **{
                    f'exact_{k}': v
                    for k, v in expression_figures(exact.expression, clip.expression, landmark_model).items()
                },
                'landmarks_of_eye_distance': float(np.linalg.norm(track.landmarks - true, axis=-1).mean() / eyes),
                'seconds_landmarks': seen - began,
                'seconds_fit': ended - seen,
                'cpu_seconds_landmarks': seen_cpu - cpu,
                'cpu_seconds_fit': ended_cpu - seen_cpu,
                'clip_seconds': len(clip.frames) / 25,
            }
        )
        say(rows[-1])
    # The first clip compiles.
    timed = rows[1:] or rows
    mean = {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
    for name in ('seconds_landmarks', 'seconds_fit', 'cpu_seconds_landmarks', 'cpu_seconds_fit'):
        mean[name] = float(np.mean([r[name] for r in timed]))
    return mean
