"""Several processes of one command on this machine, one for each GPU (or some CPU devices).

    python -m launch.cluster.local --processes 8 -- train --config configs/NAME.py --out runs/a
    python -m launch.cluster.local --processes 2 --cpu-devices 2 \\
        -- train --config configs/NAME.py:tiny --out /tmp/a

One process that sees all GPUs needs no wrapper: ``avatar-jax train`` uses them all. One process for each GPU reads and
decodes data in as many processes, which pays when reading is the bottleneck.

Commands whose work falls into shares (invert, evaluate, ablate) run as one process for each share, which know nothing
of each other: when one dies, the others go on. When all are done, evaluate and ablate make the report of the whole:

    python -m launch.cluster.local --processes 4 -- evaluate --out DIR

In trainings SIGTERM and Ctrl-C go to one of the processes, which tells the others; all write one checkpoint and leave
with 75, and so does the wrapper. When a process dies the others are ended, and with ``--restarts N`` the command is
started again, up to N times, from the last complete checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from avatar_jax.checks import OPTION, Check
from launch.cluster.command import OWN_FLAGS, TOGETHER, at_least_one, main, parser_of, resuming, shell, split_command
from launch.cluster.supervise import SHARED, died, free_port, plan, supervise


def run(argv: Sequence[str]) -> int:
    """The wrapper; returns the exit status."""
    own, command = split_command(argv, (*TOGETHER, *SHARED), (*OWN_FLAGS, '--share'))
    shared = bool(command) and command[0] in SHARED
    parser = parser_of(__doc__, 'local')
    parser.add_argument('--processes', type=int, default=1, metavar='N', help='number of processes (default: 1)')
    parser.add_argument('--gpus-each', type=int, default=1, metavar='N', help='GPUs per process (default: 1)')
    parser.add_argument(
        '--cpu-devices', type=int, default=0, metavar='N', help='use no GPUs, but N CPU devices per process'
    )
    parser.add_argument(
        '--port', type=int, default=0, metavar='N', help='port of the coordinator (default: a free one)'
    )
    parser.add_argument(
        '--restarts', type=int, default=0, metavar='N', help='restarts after a process has died (default: 0)'
    )
    args = parser.parse_args(own)
    at_least_one(processes=args.processes, gpus_each=args.gpus_each)
    Check(args, OPTION).at_least(0, 'cpu_devices', 'restarts')
    for attempt in range(args.restarts + 1):
        started = plan(
            resuming(command) if attempt or args.restarts else command,
            args.processes,
            args.port or free_port(),
            args.cpu_devices,
            args.gpus_each,
        )
        if args.dry_run:
            for environment, words in started + _whole(command, args):
                print(shell([f'{k}={v}' for k, v in environment.items()] + words))
            return 0
        status = supervise(started, apart=shared)
        if not died(status):
            whole = _whole(command, args)
            return supervise(whole) if whole and status in (0, 2) else status  # 2: some people failed
        print(
            f'launch.cluster.local: a process ended with status {status}'
            + (', starting again' if attempt < args.restarts else ''),
            file=sys.stderr,
        )
    return status


def _whole(command: Sequence[str], args: argparse.Namespace) -> list[tuple[dict[str, str], list[str]]]:
    """The process, if any, that comes after all shares."""
    after = args.processes > 1 and SHARED.get(command[0])
    return plan(command, 1, 0, args.cpu_devices, args.gpus_each) if after else []


if __name__ == '__main__':
    sys.exit(main(run))
