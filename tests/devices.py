"""A process with four devices on the CPU, where tests run programs one after the other: JAX starts once for all."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests.runs import flags_of_devices

ROOT = Path(__file__).resolve().parents[1]
COUNT = 4


def on_four_devices(program: str) -> None:
    """Runs Python source, which fails by raising, in this session's process with four devices.

    Steps of loops that move numbers to or from a device unasked fail there as everywhere (tests/conftest.py). Compiled
    programs and memory are freed afterwards.
    """
    if _started().poll() is not None:  # an earlier program ended it
        _started.cache_clear()
    process = _started()
    process.stdin.write(json.dumps(program) + '\n')
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f'the process ended with status {process.wait()}: {_errors(process)}'
    failed = json.loads(answer)
    assert not failed, failed


@functools.cache
def _started() -> subprocess.Popen:
    errors = tempfile.TemporaryFile('w+')  # noqa: SIM115 -- a pipe that nobody reads could fill up
    process = subprocess.Popen(
        [sys.executable, '-c', 'from tests.devices import serve; serve()'],
        cwd=ROOT,
        env=flags_of_devices(COUNT) | {'PYTHONPATH': os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    process.errors = errors
    atexit.register(stop)
    return process


def _errors(process: subprocess.Popen) -> str:
    process.errors.seek(0)
    return process.errors.read()[-3000:]


def stop() -> None:
    """Ends the process, if there is one."""
    if _started.cache_info().currsize:
        process = _started()
        _started.cache_clear()
        process.stdin.close()
        process.wait()
        process.stdout.close()
        process.errors.close()


def serve() -> None:
    """In the process: runs what comes in, and answers with the text of an error or with nothing."""
    import jax

    from avatar_jax import parallel
    from tests.conftest import _free

    answers, sys.stdout = sys.stdout, sys.stderr
    parallel.TRANSFERS = 'disallow'
    assert len(jax.devices()) == COUNT
    for line in sys.stdin:
        failed = ''
        try:
            exec(compile(json.loads(line), 'program', 'exec'), {'__name__': 'program'})
        except BaseException:
            failed = traceback.format_exc()[-3000:]
        _free()
        answers.write(json.dumps(failed) + '\n')
        answers.flush()
