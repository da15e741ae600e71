"""Runs a command on a TPU pod slice: a queued resource with its machines, or a job on GKE.

    python -m launch.cluster.tpu --name run1 --accelerator v5p-64 --zone us-east5-a --dry-run \\
        -- train --config ... --out ...
    python -m launch.cluster.tpu --gke --name run1 --accelerator tpu-v5p-slice --topology 4x4x4 --hosts 16 \\
        --chips-per-host 4 --image REGION-docker.pkg.dev/P/R/avatar:1 --dry-run \\
        -- train --config ... --out gs-mount/run1

Every machine of the slice runs the same command; the processes find each other by what the platform says about the
slice (``--coordinator auto``). ``--out`` must be storage that all machines see (a mounted bucket or Filestore).

Queued resources: asks for the slice (``--spot`` for one that may be taken away), waits until it is there, installs with
``--setup`` on every machine, and runs. After a preemption, delete the queued resource and run the same line again: the
command resumes. GKE: one JobSet whose pods restart after a preemption (status 75 counts as one) and resume by
themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from avatar_jax.errors import UserError
from launch.cluster.command import at_least_one, call, main, parser_of, shell, split_command
from launch.cluster.gke import jobset
from launch.cluster.queued_resources import queued_resources


def run(argv: Sequence[str]) -> int:
    """The wrapper; returns the exit status."""
    own, command = split_command(argv)
    parser = parser_of(__doc__, 'tpu')
    parser.add_argument('--gke', action='store_true', help='start a job on GKE instead of asking for a queued resource')
    parser.add_argument('--name', required=True, help='name of the resource or job')
    parser.add_argument(
        '--accelerator',
        required=True,
        help="type of accelerator, e.g. v5p-64 (queued resources) or tpu-v5p-slice (GKE's label)",
    )
    for option, text in (
        ('zone', 'zone of the queued resource'),
        ('project', 'cloud project (default: that of gcloud)'),
        ('runtime', 'software version of the machines (default: by the accelerator)'),
        ('setup', 'shell line that installs avatar_jax, run on every machine'),
        ('topology', 'GKE: topology of the slice, e.g. 4x4x4'),
        ('image', 'GKE: container image'),
    ):
        parser.add_argument(f'--{option}', default='', help=text)
    parser.add_argument('--spot', action='store_true', help='a slice that is cheaper and may be taken away at any time')
    parser.add_argument('--hosts', type=int, default=1, metavar='N', help='GKE: machines of the slice (default: 1)')
    parser.add_argument(
        '--chips-per-host', type=int, default=4, metavar='N', help='GKE: chips of each machine (default: 4)'
    )
    parser.add_argument(
        '--restarts', type=int, default=20, metavar='N', help='GKE: restarts after preemptions (default: 20)'
    )
    args = parser.parse_args(own)
    at_least_one(hosts=args.hosts, chips_per_host=args.chips_per_host)
    if args.gke:
        for name in ('topology', 'image'):
            if not getattr(args, name):
                raise UserError(f'--{name}: needed with --gke')
        text = jobset(
            command,
            name=args.name,
            accelerator=args.accelerator,
            topology=args.topology,
            hosts=args.hosts,
            chips_per_host=args.chips_per_host,
            image=args.image,
            restarts=args.restarts,
        )
        if args.dry_run:
            print('kubectl apply -f - <<EOF\n' + text + 'EOF')
            return 0
        return call(['kubectl', 'apply', '-f', '-'], text)
    if not args.zone:
        raise UserError('--zone: needed for queued resources, e.g. us-east5-a')
    calls = queued_resources(
        command,
        name=args.name,
        accelerator=args.accelerator,
        zone=args.zone,
        runtime=args.runtime,
        spot=args.spot,
        project=args.project,
        setup=args.setup,
    )
    if args.dry_run:
        print('\n'.join(shell(words) for words in calls))
        return 0
    for words in calls:
        if status := call(words):
            return status
    return 0


if __name__ == '__main__':
    sys.exit(main(run))
