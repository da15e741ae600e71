"""Beam's direct runner with several processes, made to notice when one of them is gone.

Beam waits forever for the answer of a worker process that was killed (by the system, for want of memory). Here such a
death becomes an error of the pipeline, after which the other processes finish what they have been given.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.worker_handlers import SubprocessSdkWorkerHandler, WorkerHandler

LOOK_EVERY = 0.5  # seconds


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class WatchedWorker(SubprocessSdkWorkerHandler):
    """One worker process; when it ends before it is told to, all that waits for it fails."""

    def start_worker(self) -> None:
        """Starts the process, and a thread that watches it."""
        self.closing = threading.Event()
        super().start_worker()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """Ends the process when it has done what it was given."""
        self.closing.set()
        super().close()

    def _watch(self) -> None:
        while self.worker_thread.is_alive():
            self.worker_thread.join(LOOK_EVERY)
        while not self.closing.wait(LOOK_EVERY):  # again and again: it may be asked for more
            with contextlib.suppress(RuntimeError):  # the list of questions changed meanwhile
                self.control_conn.abort(RuntimeError('a worker process has ended; the system may lack memory'))


@contextlib.contextmanager
def quiet_deaths() -> Iterator[None]:
    """Without the tracebacks that Beam's threads of an ended process leave: the error of the pipeline says it."""
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        lost = args.exc_type.__module__.startswith('grpc') or 'Worker subprocess exited' in str(args.exc_value)
        if not lost:
            usual(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual
