"""Measures the landmark network where it was not trained: held-out procedural heads, ICT-FaceKit heads, known pictures.

    python -m launch.evaluate_face_net [--weights FILE] [--heads N] [--ict ict_facekit.npz] [--pictures DIR] [--clips N]

ICT-FaceKit heads are another head model with its own landmarks; skin, lips and brows are painted in plain colours,
there is no hair. ``--pictures`` is a folder of photographs with landmark files beside them. ``--clips`` renders
speaking procedural heads and tracks them from the pictures alone: pose, expression and speed against the truth.
Distances are in eye distances.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from launch.program import main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--weights', metavar='FILE', help='weight file (default: the one in the package)')
    parser.add_argument('--heads', type=int, default=100, help='held-out procedural heads (default: 100)')
    parser.add_argument('--ict', type=Path, metavar='FILE', help='imported ICT-FaceKit model (.npz)')
    parser.add_argument('--ict-heads', type=int, default=40, help='heads of that model (default: 40)')
    parser.add_argument('--pictures', type=Path, metavar='DIR', help='folder of photographs with landmark files')
    parser.add_argument('--clips', type=int, default=0, help='rendered clips of 100 frames to track (default: 0)')
    parser.add_argument('--report', type=Path, metavar='FILE', help='file for the figures (.json)')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled import face_net_figures as figures
    from avatar_jax.io.atomic import write_json
    from avatar_jax.track.network import FaceReader
    from data_pipelines.face_crops import FaceCropsConfig, sample
    from data_pipelines.ict_heads import IctHeads
    from data_pipelines.speaking_heads import speaking_head

    reader = FaceReader(args.weights)
    report: dict[str, Any] = {'weights': reader.sha256}
    if args.heads:
        config = FaceCropsConfig(split='test', yaw_degrees=45.0, pitch_degrees=20.0, light=1.0)
        heads = [sample(config, i) for i in range(args.heads)]
        report['procedural heads'] = figures.read_pictures(reader, [(h['rgb'], h['landmarks']) for h in heads], 0)
    if args.ict:
        ict = IctHeads(args.ict)
        report['ICT-FaceKit heads'] = figures.read_pictures(reader, [ict.sample(i) for i in range(args.ict_heads)], 0)
    if args.pictures:
        report['pictures'] = figures.known_pictures(reader, args.pictures)
    if args.clips:
        clips = (speaking_head(500 + k, 'test', 100, 256) for k in range(args.clips))
        report['clips'] = figures.track_clips(reader, clips, lambda row: print(row, flush=True))
    for name, values in report.items():
        print(f'{name}: {values}')
    if args.report:
        write_json(args.report, report)
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
