"""Fits the map from the face landmarker's blendshapes and irises to expression numbers, and writes its weight file.

    python -m launch.train_face_numbers --out DIR [--heads N]

Procedural heads are drawn and read by the landmarker (``avatar-jax assets --get face-landmarker``); a linear map from
what it says to the numbers that they were drawn with is fitted on four fifths of them and measured on the others. So
is the mean distance of its points from the landmarks, on heads that are turned by less than 25 degrees.
Writes ``face_numbers.safetensors`` and ``report.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avatar_jax.errors import UserError
from launch.program import at_least, main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for weights and report')
    parser.add_argument('--heads', type=int, default=1000, help='heads to draw (default: 1000)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.face_numbers_fit import fit, write
    from avatar_jax.io.assets import located
    from avatar_jax.progress import Progress
    from avatar_jax.track.landmarker import LandmarkReader
    from data_pipelines.face_crops import FaceCropsConfig, sample

    at_least(args, heads=100)
    path = located('face-landmarker')
    if path is None:
        raise UserError('the face landmarker is not here; fetch it with avatar-jax assets --get face-landmarker')
    config = FaceCropsConfig(seed=args.seed, resolution=256, zoom=0.8, yaw_degrees=35.0, pitch_degrees=20.0)
    with Progress(args.heads, 'heads', unit='head') as bar:
        heads = (sample(config, index) for index in range(args.heads))
        numbers, report = fit(LandmarkReader(path, numbers=None), heads, on_head=bar.update)
    print(write(args.out, numbers, report))
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
