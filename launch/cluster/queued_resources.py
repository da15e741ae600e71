"""A command on a TPU pod slice as a queued resource: the calls of ``gcloud``."""

from __future__ import annotations

from collections.abc import Sequence

from avatar_jax.errors import UserError
from launch.cluster.command import resuming, shell

RUNTIMES = {
    'v4': 'tpu-ubuntu2204-base',
    'v5litepod': 'v2-alpha-tpuv5-lite',
    'v5p': 'v2-alpha-tpuv5',
    'v6e': 'v2-alpha-tpuv6e',
}


def queued_resources(
    command: Sequence[str],
    *,
    name: str,
    accelerator: str,
    zone: str,
    runtime: str = '',
    spot: bool = False,
    project: str = '',
    setup: str = '',
) -> list[list[str]]:
    """The ``gcloud`` calls, in order."""
    family = accelerator.rsplit('-', 1)[0]
    runtime = runtime or RUNTIMES.get(family, '')
    if not runtime:
        raise UserError(f'--accelerator {accelerator}: unknown family; give --runtime, or one of {", ".join(RUNTIMES)}')
    place = [f'--zone={zone}', *([f'--project={project}'] if project else [])]
    create = [
        'gcloud',
        'compute',
        'tpus',
        'queued-resources',
        'create',
        name,
        f'--node-id={name}',
        f'--accelerator-type={accelerator}',
        f'--runtime-version={runtime}',
        *place,
        *(['--spot'] if spot else []),
    ]
    # Waits in the queue until the slice is there.
    wait = [
        'bash',
        '-c',
        'until [ "$('
        + shell(
            ['gcloud', 'compute', 'tpus', 'queued-resources', 'describe', name, *place, '--format=value(state.state)']
        )
        + ')" = ACTIVE ]; do sleep 30; done',
    ]
    on_all = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', name, *place, '--worker=all']
    calls = [create, wait]
    if setup:
        calls.append([*on_all, f'--command={setup}'])
    calls.append([*on_all, f'--command={shell(["avatar-jax", *resuming(command), "--coordinator", "auto"])}'])
    return calls
