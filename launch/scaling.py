"""Prints the tables of docs/scaling.md: the predicted time of a training step on many accelerators.

    python -m launch.scaling --config configs/NAME.py --devices 1 8 64 512 --kinds H100 "TPU v5p"

Arithmetic, memory traffic and collectives are counted from the step of the configuration (nothing is compiled); peaks
and links are those of ``avatar_jax.train.costs.DEVICES``. Two ways to use more devices: ``--rows`` samples for each
(weak), or the configuration's batch divided among them (strong), as far as it can be divided.
"""

from __future__ import annotations

import argparse
import sys

from avatar_jax.errors import UserError
from launch.program import at_least, main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add('--config', required=True, metavar='FILE[:VARIANT]', help='config file of the training')
    text = 'numbers of devices (default: 1 8 64 512)'
    add('--devices', nargs='+', type=int, default=[1, 8, 64, 512], help=text)
    text = "kinds of devices, of avatar_jax.train.costs.DEVICES (default: H100 'TPU v5p')"
    add('--kinds', nargs='+', default=['H100', 'TPU v5p'], metavar='NAME', help=text)
    add('--rows', type=int, default=4, help='samples of each device in weak scaling (default: 4)')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bench.scaling import tables
    from launch.config_args import load_run

    at_least(args, rows=1)
    if min(args.devices) < 1:
        raise UserError(f'--devices {min(args.devices)}: must be at least 1')
    training, config = load_run(args.config)
    print(tables(training.program(config), args.devices, args.kinds, args.rows))
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
