"""All tests run on the CPU, share compiled programs through a cache folder outside the project, and compile quickly.

Compilation is most of the suite's time. Where ``XLA_FLAGS`` is not set, three flags more than halve it: few
optimisations, machine code in one piece (pieces are for many cores, and cost a sixth more), and XLA's older way of
making loops. A fourth has operations follow each other as memory likes it, not as many cores do: full-size networks
need a quarter less. Where ``XLA_FLAGS`` is set, to whatever, programs are compiled as users' are. ``.ci/run`` runs the
parity tests in both ways.
"""

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_PLAIN = '--xla_backend_optimization_level=0'
_WHOLE = f'{_PLAIN} --xla_cpu_parallel_codegen_split_count=1'
_SMALL = f'{_WHOLE} --xla_cpu_enable_concurrency_optimized_scheduler=false'
_QUICK = f'{_SMALL} --xla_cpu_use_fusion_emitters=false'


def _xla_takes(flags: str) -> bool:
    """Whether the installed XLA starts with flags: it ends the process at one that it does not know."""
    environment = os.environ | {'XLA_FLAGS': flags}
    return not subprocess.run(
        [sys.executable, '-c', 'import jax; jax.devices()'], env=environment, capture_output=True, check=False
    ).returncode


# Freed arrays of this many bytes and more go back to the system at once: glibc would learn from the first ones to keep
# them, and full-size networks would be in memory twice.
_LARGE = 4 << 20
if hasattr(ctypes.CDLL(None), 'mallopt'):  # only glibc has it
    ctypes.CDLL(None).mallopt(-3, _LARGE)  # M_MMAP_THRESHOLD

# Before the first import of jax anywhere.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(tempfile.gettempdir()) / f'avatar_jax_tests_{os.getuid()}'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ['AVATAR_CACHE'] = os.devnull  # what this machine has fetched changes no test
if not os.environ.get('XLA_FLAGS'):  # the processes of pytest-xdist inherit what the first one finds here
    os.environ['XLA_FLAGS'] = next((flags for flags in (_QUICK, _SMALL, _WHOLE) if _xla_takes(flags)), _PLAIN)


# Bytes of a process from which on its programs are freed: after a file, whose programs few other files use, and after a
# test, which others of its file may share programs with.
_MUCH, _TOO_MUCH = 1.0e9, 1.4e9


def pytest_collection_finish():
    """What modules hold stays for ever: looking for garbage need not go through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def loops_without_implicit_transfers():
    """Steps of all trainings and inversions, and frames, fail if they move numbers to or from a device unasked."""
    from avatar_jax import parallel

    parallel.TRANSFERS = 'disallow'


@pytest.fixture(scope='session')
def float16():
    """Skips where XLA cannot compile float16: on a CPU it takes instructions that came with AVX2."""
    import jax
    import jax.numpy as jnp

    try:
        jax.jit(lambda x: x.astype(jnp.float16))(jnp.ones(1)).block_until_ready()
    except jax.errors.JaxRuntimeError:
        pytest.skip('XLA has no float16 for this processor')


@pytest.fixture(scope='module', autouse=True)
def free_programs():
    """Frees a file's compiled programs after its last test. Little ones may stay: the next file uses many of them."""
    yield
    if _resident() > _MUCH:
        _free()


@pytest.fixture(autouse=True)
def free_programs_of_large_tests():
    """Frees them after a test that needed much, too: the next one is to start from little."""
    yield
    if _resident() > _TOO_MUCH:
        _free()


@pytest.fixture
def little_memory():
    """Frees everything before a test of full-size networks, and after it."""
    _free()
    yield
    _free()


def _free() -> None:
    """Frees compiled programs, and gives their memory back to the system."""
    import jax

    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # only glibc has it
    if trim is not None:
        trim(0)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, ValueError):
        return 0
