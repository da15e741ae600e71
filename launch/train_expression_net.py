"""Trains the network that reads expression numbers from the landmark fit, and writes a weight file and a report.

    python -m launch.train_expression_net --out DIR [--data DIR] [--clips N] [--rendered N] [--steps N] [--resume]

Speech and independent expressions of procedural people are projected to landmarks through random lenses, with errors
from none to those of a network, and fitted as ``avatar-jax track`` fits them; `--rendered` clips are rendered and read
by the landmark network instead (slow). Fitted clips are kept in `--data`. Writes ``expression_net.safetensors`` and
``report.json`` with figures on the tenths of the clips that are held out.
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
    parser.add_argument('--data', type=Path, metavar='DIR', help='folder for the fitted clips (default: data in --out)')
    parser.add_argument('--clips', type=int, default=420, help='clips of simulated landmarks (default: 420)')
    parser.add_argument('--rendered', type=int, default=20, help='clips that are rendered and read (default: 20)')
    parser.add_argument(
        '--motions', type=int, default=2000, help='motions for training, with the errors that fits have (default: 2000)'
    )
    parser.add_argument('--steps', type=int, default=9000, help='training steps (default: 9000)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.expression_net import ExpressionTrainConfig, train
    from data_pipelines.fitted_clips import fitted_clips, motions

    at_least(args, clips=20, motions=1, rendered=0)
    clips = fitted_clips(args.data or args.out / 'data', args.clips, args.rendered)
    report = train(
        ExpressionTrainConfig(steps=args.steps, seed=args.seed),
        motions(args.motions),
        clips,
        args.out,
        resume=args.resume,
    )
    for kind, values in report['held_out'].items():
        print(f'{kind}: {values}')
    print(args.out / 'expression_net.safetensors')
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
