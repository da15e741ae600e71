"""Submits a command as a Slurm job: one process for each GPU of each node.

    python -m launch.cluster.slurm --nodes 4 --gpus-per-node 8 --time 24:00:00 --dry-run -- train --config ... --out ...

The processes find each other by what Slurm says about the job (``--coordinator auto``). Two minutes before the time
limit (``--warn``), and when the job is preempted, Slurm sends SIGTERM; the run writes a checkpoint and leaves with
status 75, and the script puts the job back into the queue, where it goes on with ``--resume``. ``--out`` must be on
storage that all nodes see. ``--setup`` is a line that makes ``avatar-jax`` available, e.g. ``source
/opt/venv/bin/activate``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.cluster.command import PREEMPTED_STATUS, at_least_one, call, main, parser_of, resuming, shell, split_command


def script(
    command: Sequence[str],
    *,
    nodes: int,
    gpus_per_node: int,
    cpus_per_gpu: int,
    time: str,
    name: str,
    warn: int,
    partition: str = '',
    account: str = '',
    setup: str = '',
    log: str = '',
) -> str:
    """The batch script."""
    lines = [
        '#!/bin/bash',
        f'#SBATCH --job-name={name}',
        f'#SBATCH --nodes={nodes}',
        f'#SBATCH --gpus-per-node={gpus_per_node}',
        f'#SBATCH --ntasks-per-node={gpus_per_node}  # one process for each GPU: task i of a node gets its GPU i',
        f'#SBATCH --cpus-per-task={cpus_per_gpu}',
        f'#SBATCH --time={time}',
        f'#SBATCH --signal=TERM@{warn}  # to the processes, {warn} seconds before the limit',
        '#SBATCH --requeue',
        '#SBATCH --open-mode=append',
        f'#SBATCH --output={log or name + "-%j.log"}',
    ]
    lines += [f'#SBATCH --partition={partition}'] if partition else []
    lines += [f'#SBATCH --account={account}'] if account else []
    lines += ['', setup] if setup else ['']
    lines += [
        '# --kill-on-bad-exit: when one process is lost the step ends, instead of waiting for it for ever.',
        f'srun --kill-on-bad-exit=1 {shell(["avatar-jax", *resuming(command), "--coordinator", "auto"])}',
        'status=$?',
        f'# {PREEMPTED_STATUS}: stopped on request, with a checkpoint. Back into the queue, to go on from there.',
        f'if [ "$status" -eq {PREEMPTED_STATUS} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$status"',
    ]
    return '\n'.join(lines) + '\n'


def run(argv: Sequence[str]) -> int:
    """The wrapper; returns the exit status."""
    own, command = split_command(argv)
    parser = parser_of(__doc__, 'slurm')
    parser.add_argument('--nodes', type=int, default=1, metavar='N', help='number of machines (default: 1)')
    parser.add_argument('--gpus-per-node', type=int, default=8, metavar='N', help='GPUs of each machine (default: 8)')
    parser.add_argument(
        '--cpus-per-gpu', type=int, default=8, metavar='N', help='processor cores for each GPU (default: 8)'
    )
    parser.add_argument('--time', default='24:00:00', metavar='HH:MM:SS', help='time limit (default: 24:00:00)')
    parser.add_argument('--name', default='avatar-jax', metavar='NAME', help='name of the job (default: avatar-jax)')
    parser.add_argument(
        '--warn', type=int, default=120, metavar='SECONDS', help='time between SIGTERM and the limit (default: 120)'
    )
    for option, text in (
        ('partition', 'partition of the cluster'),
        ('account', 'account that is charged'),
        ('setup', 'shell line that makes avatar-jax available'),
        ('log', 'file for the output (default: NAME-%%j.log)'),
    ):
        parser.add_argument(f'--{option}', default='', help=text)
    args = parser.parse_args(own)
    at_least_one(nodes=args.nodes, gpus_per_node=args.gpus_per_node, cpus_per_gpu=args.cpus_per_gpu, warn=args.warn)
    text = script(command, **{k: v for k, v in vars(args).items() if k != 'dry_run'})
    if args.dry_run:
        print(text, end='')
        return 0
    return call(['sbatch'], text)


if __name__ == '__main__':
    sys.exit(main(run))
