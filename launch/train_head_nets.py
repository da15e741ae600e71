"""Trains the stand-in networks for procedural heads and writes a weight file and a report.

    python -m launch.train_head_nets --out DIR [--data DIR] [--people N] [--pictures N] [--steps N] [--resume]

Pictures are rendered into `--data` first (once: complete shards are kept), training people and held-out people apart.
Writes ``head_nets.safetensors`` and ``report.json`` with held-out verification accuracy and expression and landmark
errors. Interrupted runs continue with `--resume`.
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
    parser.add_argument('--people', type=int, default=1000, help='people to train on (default: 1000)')
    parser.add_argument('--pictures', type=int, default=5, help='pictures of each person (default: 5)')
    parser.add_argument(
        '--held-out', type=int, default=120, help='people to test on, who are not trained on (default: 120)'
    )
    parser.add_argument('--resolution', type=int, default=128, help='side of the pictures (default: 128)')
    parser.add_argument('--workers', type=int, default=1, help='processes that draw (default: 1)')
    parser.add_argument('--steps', type=int, default=1500, help='training steps (default: 1500)')
    parser.add_argument('--batch', type=int, default=48, help='pictures per step (default: 48)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    parser.add_argument('--looks', type=int, default=1, help='version of the looks of the heads, 1 or 2 (default: 1)')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.head_nets import HeadTrainConfig, train
    from data_pipelines.labelled_heads import heads

    at_least(args, people=2, pictures=2, held_out=4, resolution=32)
    config = HeadTrainConfig(steps=args.steps, batch=args.batch, seed=args.seed)
    folder = args.data or args.out / 'data'
    common = (args.pictures, args.resolution, args.seed, args.workers, args.looks)
    data = heads(folder, 'train', args.people, *common)
    held_out = heads(folder, 'val', args.held_out, *common)
    report = train(config, data, held_out, args.out, resume=args.resume)
    identity, coefficients = report['held_out']['identity'], report['held_out']['coefficients']
    print(
        f'held-out people: verification {identity["accuracy"]:.1%} (same {identity["cosine_same"]:.2f}, different '
        f'{identity["cosine_different"]:.2f}); expression error {coefficients["expression_mae"]:.3f} (the mean: '
        f'{coefficients["expression_mae_of_the_mean"]:.3f}), landmarks {coefficients["landmarks_pixels"]:.2f} px, '
        'mouth '
        f'opening correlation {coefficients["mouth_opening_correlation"]:.3f}, eyes '
        f'{coefficients["eye_openness_correlation"]:.3f}, angle {coefficients["angle_degrees"]:.2f} degrees'
    )
    print(args.out / 'head_nets.safetensors')
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
