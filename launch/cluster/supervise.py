"""Runs the processes of one command on this machine until all have ended; one that dies ends the others, or not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from launch.cluster.command import PREEMPTED_STATUS

GRACE = 30.0  # seconds between asking the remaining processes to end and ending them


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
