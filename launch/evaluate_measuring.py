"""Measures how portraits are measured: which faces are found, and how far crop, camera, landmarks and mask are off.

    python -m launch.evaluate_measuring [--heads N] [--pictures DIR] [--backends FILE...] [--report FILE]

``--heads``: procedural heads nobody was trained on, before random backgrounds, where everything is known. Each is
measured from the picture alone, with a file of its five true points, and, cut out truly, as an aligned frame with and
without the network. ``--pictures``: a folder of portraits with one clear face each; they are turned, cut, darkened,
covered, and so on, and looked for by the cascade, by the network, and by both as ``track.search`` does.
``--backends``: pictures and videos, read by the landmark network and by the face landmarker. Distances are in eye
distances.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from launch.program import main

FRAMES = 30  # of the clips that one frame is taken of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--heads', type=int, default=0, metavar='N', help='procedural heads to measure (default: none)')
    parser.add_argument('--pictures', type=Path, metavar='DIR', help='portraits to find faces in')
    text = 'pictures and videos to compare the landmark network and the face landmarker on'
    parser.add_argument('--backends', nargs='+', type=Path, default=(), metavar='FILE', help=text)
    parser.add_argument('--report', type=Path, metavar='FILE', help='write the figures here (.json)')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.finding_figures import search_pictures
    from avatar_jax.bundled.measuring_figures import measure_heads
    from avatar_jax.io.atomic import write_json
    from data_pipelines.clips import evaluation_clips

    if not args.heads and args.pictures is None and not args.backends:
        raise UserError('give --heads N, --pictures DIR or --backends FILE')
    report: dict[str, Any] = {}
    if args.heads:
        clips = (evaluation_clips(1, seed=1000 + i, num_frames=FRAMES)[0] for i in range(args.heads))
        report['heads'] = measure_heads(clips)
    if args.pictures:
        report['pictures'] = search_pictures(args.pictures)
    if args.backends:
        from avatar_jax.bundled.landmark_figures import compare_backends

        files = compare_backends(args.backends)
        report['backends'] = {f'{file}, {name}': row for file, rows in files.items() for name, row in rows.items()}
    for part in report.values():
        for name, values in part.items():
            print(name, {k: round(v, 4) for k, v in values.items()})
    if args.report:
        write_json(args.report, report)
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
