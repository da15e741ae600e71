"""The processes of one command on this machine: what each is told, and how they run until all have ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from launch.cluster.command import PREEMPTED_STATUS

# Commands with --share -> whether the command without it then makes the report of the whole.
SHARED = {'invert': False, 'evaluate': True, 'ablate': True}

GRACE = 30.0  # seconds between asking the remaining processes to end and ending them


def plan(
    command: Sequence[str],
    processes: int,
    port: int,
    cpu_devices: int = 0,
    gpus_each: int = 1,
) -> list[tuple[dict[str, str], list[str]]]:
    """Environment changes and argument list of each process."""
    started = []
    for i in range(processes):
        if cpu_devices:
            flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={cpu_devices}'
            environment = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags.strip()}
        else:
            environment = {'CUDA_VISIBLE_DEVICES': ','.join(str(i * gpus_each + k) for k in range(gpus_each))}
        join = ['--coordinator', f'localhost:{port}', '--num-processes', str(processes), '--process-id', str(i)]
        if command[0] in SHARED:
            join = ['--share', f'{i + 1}/{processes}']
        if processes == 1:
            join = []
        started.append((environment, [sys.executable, '-m', 'avatar_jax.cli', *command, *join]))
    return started


def supervise(started: Sequence[tuple[dict[str, str], list[str]]], apart: bool = False) -> int:
    """Runs the processes; returns 0, 75, or the status of the first that failed (negative: its signal).

    Args:
        started: environment changes and words of each. apart: they know nothing of each other: all go on when one
            fails, and all are told to end.
    """
    processes = [subprocess.Popen(words, env={**os.environ, **environment}) for environment, words in started]

    def pass_on(number, frame):
        # One is enough and more would be too much, unless they are apart: the engine tells the others.
        alive = [p for p in processes if p.poll() is None]
        for p in alive if apart else alive[:1]:
            p.send_signal(signal.SIGTERM)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        failed, deadline = None, None
        while sum(p.poll() is None for p in processes):  # every one is asked, which `any` would not do
            bad = [p.returncode for p in processes if p.returncode not in (None, 0, PREEMPTED_STATUS)]
            if bad and failed is None and not apart:
                failed, deadline = bad[0], time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline:
                for p in processes:
                    if p.poll() is None:
                        p.kill()
            time.sleep(0.1)
        codes = [p.returncode for p in processes]
        signalled = [c for c in codes if c < 0]
        if signalled:  # the first cause: what the others said afterwards follows from it
            return signalled[0]
        return failed if failed is not None else max(codes)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for p in processes:
            if p.poll() is None:
                p.kill()


def died(status: int) -> bool:
    """Whether a process was killed or aborted, by a signal or by the engine; starting again may then help."""
    return status < 0 or status in (134, 137, 139)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]
