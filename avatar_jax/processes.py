"""Several processes that train one model: how they join, agree, stop together and say what went wrong.

The engine is ``jax.distributed``: process 0 runs the coordination service, all others connect to it, and from then on
``jax.devices()`` are the devices of all processes and collectives run over XLA's own transport (gloo between CPUs, NCCL
between GPUs, the links of a TPU). Nothing here moves numbers; this module adds what people need around it: checks
before joining, a time limit that ends in one line instead of a stack trace, a comparison of what the processes are
about to do, and an ending that does not wait for processes that are gone.

The same program starts in every process, with the same options but ``--process-id``; every process reads its own rows
of each batch, and only process 0 writes logs, pictures, configuration and weights. The output folder must be storage
that all of them see.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from avatar_jax.errors import UserError

FAILED_STATUS = 2
LOST_SIGNS = (
    'Gloo',
    'gloo',
    'NCCL',
    'Connection closed by peer',
    'Connection reset',
    'coordination service',
    'CoordinationService',
    'heartbeat',
    'Socket closed',
)


@dataclass(frozen=True)
class ProcessOptions:
    """How this process finds the others.

    Attributes:
        coordinator: ``host:port`` of process 0; 'auto' takes address, number and id from Slurm, a TPU pod, GKE or MPI,
            as ``jax.distributed`` finds them; '' is a run of one process.
        num_processes, process_id: how many there are and which one this is; -1 stands for not given.
        join_timeout: seconds until all must have joined.
    """

    coordinator: str = ''
    num_processes: int = -1
    process_id: int = -1
    join_timeout: float = 300.0

    def check(self) -> None:
        """Raises ``UserError`` for options that cannot work, before anything is waited for."""
        n, i, c = self.num_processes, self.process_id, self.coordinator
        if self.join_timeout <= 0:
            raise UserError(f'--join-timeout {self.join_timeout:g}: give a positive number of seconds')
        if c == 'auto':
            return
        if not c:
            if n > 1 or i > 0:
                raise UserError(
                    "--coordinator: missing; give HOST:PORT of process 0, or 'auto' under Slurm or on TPU pods"
                )
            return
        host, _, port = c.rpartition(':')
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f'--coordinator {c}: not HOST:PORT, e.g. node1:12345')
        for name, value, least in (('num-processes', n, 1), ('process-id', i, 0)):
            if value < least:
                raise UserError(f'--{name}: give it with --coordinator {c}, in every process')
        if i >= n:
            raise UserError(f'--process-id {i}: must be less than --num-processes {n}; numbers start at 0')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of commands that can run in several processes."""
    group = parser.add_argument_group('several processes', 'start the same command once per process')
    group.add_argument(
        '--coordinator',
        default='',
        metavar='HOST:PORT',
        help="address at which process 0 listens; 'auto' under Slurm, on TPU pods, on GKE and under MPI",
    )
    group.add_argument('--num-processes', type=int, default=-1, metavar='N', help='number of processes')
    group.add_argument('--process-id', type=int, default=-1, metavar='I', help='number of this process, from 0')
    group.add_argument(
        '--join-timeout',
        type=float,
        default=300.0,
        metavar='SECONDS',
        help='time until all processes must have joined (default: 300)',
    )


def from_arguments(args: argparse.Namespace) -> ProcessOptions:
    """The options that were given."""
    return ProcessOptions(args.coordinator, args.num_processes, args.process_id, args.join_timeout)


def join(options: ProcessOptions) -> None:
    """Joins the other processes; returns at once for a run of one process. Call before anything touches a device.

    Raises:
        UserError: options that cannot work, or nothing to find the others by.
    A time-out ends the process with status 2 and one line: the engine would abort it with a stack trace.
    """
    import jax

    options.check()
    if not options.coordinator or jax.distributed.is_initialized():
        return
    explicit = {}
    if options.coordinator != 'auto':
        explicit = {
            'coordinator_address': options.coordinator,
            'num_processes': options.num_processes,
            'process_id': options.process_id,
        }
    watchdog = threading.Timer(options.join_timeout, _give_up, [options])
    watchdog.daemon = True
    watchdog.start()
    try:
        # The engine's own limit comes later, so that the watchdog's line is what is seen.
        jax.distributed.initialize(
            **explicit, initialization_timeout=int(options.join_timeout) + 60, shutdown_timeout_seconds=60
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f'--coordinator {options.coordinator}: cannot join ({reason}); check the address, or start '
            'under Slurm, on a TPU pod or with HOST:PORT'
        ) from error
    finally:
        watchdog.cancel()


def _give_up(options: ProcessOptions) -> None:
    """Says in one line what is missing and ends the process, whose main thread is inside the engine."""
    waited = f'within {options.join_timeout:g} s'
    if options.coordinator == 'auto':
        line = f'not all processes joined {waited}; check that every one was started and can reach the first'
    elif options.process_id == 0:
        line = (
            f'not all {options.num_processes} processes joined {waited}; check that each was started with '
            f'--coordinator {options.coordinator} and its own --process-id, or raise --join-timeout'
        )
    elif _answers(options.coordinator):
        line = (
            f'the coordinator {options.coordinator} answers, but not all {options.num_processes} processes joined '
            f'{waited}; check that each was started, or raise --join-timeout'
        )
    else:
        line = (
            f'--coordinator {options.coordinator}: no answer {waited}; start process 0 there, check the address '
            'and the firewall'
        )
    _end(line, FAILED_STATUS)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _end(line: str, status: int) -> None:
    sys.stdout.flush()
    print(f'avatar-jax: error: {line}', file=sys.stderr, flush=True)
    os._exit(status)


def several() -> bool:
    """Whether there is more than one process."""
    import jax

    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def agree(what: str, value: object) -> None:
    """Compares ``value`` (as JSON) over all processes; all must call it.

    Raises:
        UserError: in every process, naming ``what`` and the processes whose value is another than that of process 0.
    """
    if not several():
        return
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value, sort_keys=True, default=str)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    all_digests = np.asarray(multihost_utils.process_allgather(digest))
    other = [str(i) for i, d in enumerate(all_digests) if not np.array_equal(d, all_digests[0])]
    if other:
        raise UserError(
            f'processes: {what} of process {", ".join(other)} differs from that of process 0; start all '
            'with the same program, options and files, and with storage that all of them see'
        )


def told_by_first(text: str) -> str:
    """``text`` of process 0 in every process (cut to 1,000 bytes); all must call it."""
    if not several():
        return text
    import numpy as np
    from jax.experimental import multihost_utils

    line = np.zeros(1000, np.uint8)
    data = text.encode('utf-8', 'backslashreplace')[:1000]
    line[: len(data)] = np.frombuffer(data, np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(line))
    return told.tobytes().rstrip(b'\0').decode('utf-8', 'ignore')


@contextlib.contextmanager
def ending_together(where: str) -> Iterator[None]:
    """Around the work of one process among several: an error ends the process at once, with its line and status.

    Left to itself, Python would wait at exit for all other processes, also for those that have died, and then be
    aborted. ``where`` names the run in the message about lost processes. Does nothing with one process.
    """
    try:
        yield
    except BaseException as error:
        import jax

        if not jax.distributed.is_initialized() or not several() or isinstance(error, SystemExit):
            raise
        line, status = explain(error, where)
        if line is None:
            import traceback

            traceback.print_exc()
            line = 'this is a bug in avatar_jax; please report it with the lines above'
        if jax.process_index() == 0:
            time.sleep(2.0)  # when this one goes, the others are aborted: let them say their own line first
        _end(line, status)


def explain(error: BaseException, where: str) -> tuple[str | None, int]:
    """The line and the exit status for an error in one process among several; (None, 1) for a bug."""
    if isinstance(error, UserError):
        return str(error), FAILED_STATUS
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted', 130
    if type(error).__name__ in ('XlaRuntimeError', 'JaxRuntimeError') and any(s in str(error) for s in LOST_SIGNS):
        return (
            f'{where}: another process of this run has ended or cannot be reached; the last complete checkpoint is '
            'untouched: start all processes again with --resume'
        ), FAILED_STATUS
    if type(error).__name__ in ('XlaRuntimeError', 'JaxRuntimeError') and 'RESOURCE_EXHAUSTED' in str(error):
        return 'not enough device memory; use a smaller batch, picture or chunk size', FAILED_STATUS
    return None, 1
