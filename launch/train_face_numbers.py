"""Fits the map from the face landmarker's blendshapes and irises to expression numbers, and writes its weight file.

    python -m launch.train_face_numbers --out DIR [--heads N]

Procedural heads are drawn and read by the landmarker (``avatar-jax assets --get face-landmarker``); a linear map from
what it says to the numbers that they were drawn with is fitted on four fifths of them and measured on the others. So
is the mean distance of its points from the landmarks, on heads that are turned by less than 25 degrees.
Writes ``face_numbers.safetensors`` and ``report.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from launch.program import at_least, main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--out', type=Path, required=True, help='folder for weights and report')
    parser.add_argument('--heads', type=int, default=1000, help='heads to draw (default: 1000)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.io.assets import located
    from avatar_jax.io.atomic import write_json
    from avatar_jax.io.weights import save_weights
    from avatar_jax.procedural.expressions import EXPRESSION_NAMES
    from avatar_jax.progress import Progress
    from avatar_jax.track.face_numbers import METHOD, eye_distance, fit_map, mean_offset
    from avatar_jax.track.landmarker import LandmarkReader
    from data_pipelines.face_crops import FaceCropsConfig, sample

    at_least(args, heads=100)
    path = located('face-landmarker')
    if path is None:
        raise UserError('the face landmarker is not here; fetch it with avatar-jax assets --get face-landmarker')
    began = time.monotonic()
    reader = LandmarkReader(path, numbers=None)
    config = FaceCropsConfig(seed=args.seed, resolution=256, zoom=0.8, yaw_degrees=35.0, pitch_degrees=20.0)
    values, truth, places = [], [], []
    with Progress(args.heads, 'heads', unit='head') as bar:
        for index in range(args.heads):
            head = sample(config, index)
            found = reader.measure(head['rgb'], head['landmarks'])
            if found is not None:
                values.append(found[0])
                truth.append(head['expression'])
                if abs(head['angle'][1]) < np.deg2rad(25):
                    places.append(found[1:])
            bar.update()
    held_out = len(values) // 5
    numbers = fit_map(np.stack(values), np.stack(truth), held_out)
    read, known = (np.stack(points) for points in zip(*places, strict=True))
    kept = len(places) - len(places) // 5
    numbers = dataclasses.replace(numbers, offset=mean_offset(read[:kept], known[:kept]))
    eyes = np.array([eye_distance(points) for points in known[kept:]])
    away = {
        name: float(
            (np.linalg.norm(read[kept:] - known[kept:] - eyes[:, None, None] * by, axis=-1) / eyes[:, None]).mean()
        )
        for name, by in (('as read', 0), ('offset taken off', numbers.offset))
    }
    spread = np.std(truth[-held_out:], axis=0)
    said = numbers(np.stack(values[-held_out:]))
    figures = {
        name: {
            'correlation': float(np.corrcoef(said[:, i], np.stack(truth)[-held_out:, i])[0, 1]) if s > 0 else None,
            'error': float(numbers.error[i]),
            'spread': float(s),
        }
        for i, (name, s) in enumerate(zip(EXPRESSION_NAMES, spread, strict=True))
    }
    report = {
        'heads': len(values),
        'held_out': held_out,
        'not_read': args.heads - len(values),
        'landmarker_sha256': reader.task.sha256,
        'seconds': round(time.monotonic() - began, 1),
        'landmarks': away,
        'numbers': figures,
    }
    file = args.out / 'face_numbers.safetensors'
    arrays = {k: np.float32(getattr(numbers, k)) for k in ('weight', 'bias', 'error', 'offset')}
    provenance = {
        'command': 'launch.train_face_numbers',
        **{k: v for k, v in report.items() if k not in ('numbers', 'landmarks')},
    }
    save_weights(file, {'params': arrays}, method=METHOD, config={}, provenance=provenance)
    write_json(args.out / 'report.json', report)
    print(file)
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
