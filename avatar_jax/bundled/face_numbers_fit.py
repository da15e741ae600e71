"""How the map of ``track.face_numbers`` in the package was fitted, on procedural heads that the landmarker has read."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.io.atomic import write_json
from avatar_jax.io.weights import save_weights
from avatar_jax.procedural.expressions import EXPRESSION_NAMES
from avatar_jax.track.face_numbers import METHOD, FaceNumbers, eye_distance, fit_map, mean_offset
from avatar_jax.track.landmarker import LandmarkReader

FRONTAL = np.deg2rad(25)  # the offset of landmarks is measured on heads that are turned by less


def fit(
    reader: LandmarkReader, heads: Iterable[Mapping[str, np.ndarray]], on_head: Callable[[], object] = lambda: None
) -> tuple[FaceNumbers, dict[str, Any]]:
    """The map, fitted on the first four fifths of the heads, and how far it is off on the last one.

    Args:
        reader: reads the heads, without a map.
        heads: of ``data_pipelines.face_crops.sample``: 'rgb' [S,S,3], 'landmarks' [68,2], 'expression' [64], 'angle'
            [3] radians.
        on_head: called after each.

    Returns:
        the map, and {'heads', 'held_out', 'not_read', 'landmarker_sha256', 'seconds', 'landmarks': {which: mean
        distance in eye distances}, 'numbers': {expression: correlation, error, spread}}.
    """
    began, drawn = time.monotonic(), 0
    values, truth, places = [], [], []
    for head in heads:
        drawn += 1
        found = reader.measure(head['rgb'], head['landmarks'])
        if found is not None:
            values.append(found[0])
            truth.append(head['expression'])
            if abs(head['angle'][1]) < FRONTAL:
                places.append(found[1:])
        on_head()
    held_out = len(values) // 5
    numbers = fit_map(np.stack(values), np.stack(truth), held_out)
    read, known = (np.stack(points) for points in zip(*places, strict=True))
    kept = len(places) - len(places) // 5
    numbers = dataclasses.replace(numbers, offset=mean_offset(read[:kept], known[:kept]))
    report = {
        'heads': len(values),
        'held_out': held_out,
        'not_read': drawn - len(values),
        'landmarker_sha256': reader.task.sha256,
        'seconds': round(time.monotonic() - began, 1),
        'landmarks': {
            'as read': _distance(read[kept:], known[kept:], 0),
            'offset taken off': _distance(read[kept:], known[kept:], numbers.offset),
        },
        'numbers': _figures(numbers, np.stack(values[-held_out:]), np.stack(truth[-held_out:])),
    }
    return numbers, report


def write(folder: Path, numbers: FaceNumbers, report: Mapping[str, Any]) -> Path:
    """Writes ``face_numbers.safetensors`` and ``report.json`` into a folder; returns the weight file."""
    file = folder / 'face_numbers.safetensors'
    arrays = {k: np.float32(getattr(numbers, k)) for k in ('weight', 'bias', 'error', 'offset')}
    about = {k: v for k, v in report.items() if k not in ('numbers', 'landmarks')}
    provenance = {'command': 'launch.train_face_numbers', **about}
    save_weights(file, {'params': arrays}, method=METHOD, config={}, provenance=provenance)
    write_json(folder / 'report.json', report)
    return file


def _distance(read: np.ndarray, known: np.ndarray, offset: np.ndarray | float) -> float:
    """Mean distance of landmarks [N,68,2], in eye distances."""
    eyes = np.array([eye_distance(points) for points in known])[:, None]
    return float((np.linalg.norm(read - known - eyes[..., None] * offset, axis=-1) / eyes).mean())


def _figures(numbers: FaceNumbers, values: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Each expression number of held-out heads [N,64]: what the map says against what it was drawn with."""
    said, spread = numbers(values), truth.std(0)
    return {
        name: {
            'correlation': float(np.corrcoef(said[:, i], truth[:, i])[0, 1]) if s > 0 else None,
            'error': float(numbers.error[i]),
            'spread': float(s),
        }
        for i, (name, s) in enumerate(zip(EXPRESSION_NAMES, spread, strict=True))
    }
