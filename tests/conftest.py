"""All tests run on the CPU, share compiled programs through a cache folder outside the project, and compile quickly.

Compilation is most of the suite's time. Two switches halve it: tests that check logic compile with optimisations off
(``quick_compilation``), and XLA's older, quicker way of making loops is used where ``XLA_FLAGS`` is not set. The parity
tests always compile with optimisations; ``.ci/run`` runs them a second time with ``XLA_FLAGS`` set, thus compiled the
way users' programs are.
"""

import ctypes
import gc
import importlib.util
import mmap
import os
import tempfile
from pathlib import Path

import pytest

_OLDER_LOOPS = 'xla_cpu_use_fusion_emitters'


def _xla_knows(flag: str) -> bool:
    """Whether the installed XLA has a flag: it ends the process at one that it does not know."""
    spec = importlib.util.find_spec('jaxlib')
    for path in Path(spec.origin).parent.glob('*.so*') if spec and spec.origin else ():
        with path.open('rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as binary:
            if binary.find(flag.encode()) >= 0:
                return True
    return False


# Before the first import of jax anywhere.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(tempfile.gettempdir()) / f'avatar_jax_tests_{os.getuid()}'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
if 'XLA_FLAGS' not in os.environ and _xla_knows(_OLDER_LOOPS):
    os.environ['XLA_FLAGS'] = f'--{_OLDER_LOOPS}=false'


@pytest.fixture(scope='module', autouse=True)
def quick_compilation(request):
    """Compiles without optimisations outside ``tests/parity``, and frees a file's programs after its last test."""
    import jax

    jax.config.update('jax_disable_most_optimizations', 'tests.parity' not in request.module.__name__)
    yield
    jax.clear_caches()
    gc.collect()
    _return_memory()


def _return_memory() -> None:
    """Gives freed memory back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
