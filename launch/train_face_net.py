"""Trains the landmark network on rendered heads and writes a weight file and a report.

    python -m launch.train_face_net --out DIR [--data DIR] [--count N] [--steps N] [--resume]

Heads are rendered into `--data` first (once: complete shards are kept), training people and held-out people apart.
Writes ``face_net.safetensors`` and ``report.json`` with held-out errors. Interrupted runs continue with `--resume`, and
may then be given another number of steps (the learning rate falls to zero over the last two fifths of it).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.program import at_least, main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder for weights, report, log and checkpoints'
    )
    parser.add_argument(
        '--data', type=Path, metavar='DIR', help='folder for the rendered heads (default: data in --out)'
    )
    parser.add_argument('--count', type=int, default=7000, help='heads to train on (default: 7000)')
    parser.add_argument('--held-out', type=int, default=250, help='heads to test on, of other people (default: 250)')
    parser.add_argument('--steps', type=int, default=4000, help='training steps (default: 4000)')
    parser.add_argument('--batch', type=int, default=32, help='heads per step (default: 32)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    parser.add_argument('--looks', type=int, default=1, help='version of the looks of the heads, 1 or 2 (default: 1)')
    parser.add_argument(
        '--present',
        metavar='FILE',
        help='do not train: fit only the part of these weights again that tells faces from other things',
    )
    parser.add_argument('--resume', action='store_true', help='continue the run in --out')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.face_net import FaceTrainConfig, train
    from avatar_jax.bundled.presence import solve_again
    from data_pipelines.face_crops import FaceCropsConfig, generate, load_shards

    at_least(args, count=2, held_out=4)
    config = FaceTrainConfig(steps=args.steps, batch=args.batch, seed=args.seed)
    folder = args.data or args.out / 'data'
    arrays = []
    for split, count in (('train', args.count), ('val', args.held_out)):
        crops = FaceCropsConfig(seed=args.seed, split=split, looks=args.looks)
        generate(crops, folder / split, 0, count, shard=min(250, count))
        arrays.append(load_shards(folder / split, limit=count))
    if args.present:
        report = solve_again(args.present, *arrays, args.out)
    else:
        report = train(config, *arrays, args.out, resume=args.resume)
    for name, value in report['held_out'].items():
        print(f'{name}: {value:.4g}')
    print(args.out / 'face_net.safetensors')
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
