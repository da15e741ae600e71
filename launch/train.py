"""Trains the networks of the method that the config file names.

    avatar-jax train --config configs/NAME.py[:VARIANT] --out DIR [--resume] [--config.FIELD=VALUE ...]

The folder gets config.json, metrics.jsonl (every loss term and norm), samples/, checkpoints/ and, if tensorboardX is
installed, TensorBoard files; at the end weights.safetensors. An interrupted run continues with --resume and gives the
same numbers as one that was not interrupted. SIGTERM and Ctrl-C write a checkpoint first; the exit status is then 75.
With --coordinator the run is spread over several processes; docs/scaling.md tells how.
"""

from __future__ import annotations

import argparse

from avatar_jax import processes
from avatar_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    from avatar_jax.methods.base import an_example
    from launch.config_args import add_config_argument

    add_config_argument(parser, default=an_example())
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the run')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out, or start it if there is none')
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.train.logging import NonFiniteError
    from avatar_jax.train.runner import train
    from data_pipelines import streams
    from launch.config_args import load_run

    # Before anything computes, as checking a configuration may.
    processes.join(processes.from_arguments(args))
    with processes.ending_together(args.out):
        training, config = load_run(args.config, args.overrides)
        try:
            train(training.start, config, args.out, streams, resume=args.resume)
        except NonFiniteError as error:
            raise UserError(
                f'{args.out}: stopped at {error}; lower the learning rates, clip gradients, or set '
                "output.nonfinite='skip'"
            ) from error
    return 0
