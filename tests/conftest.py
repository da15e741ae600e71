"""All tests run on the CPU, share compiled programs through a cache folder outside the project, and compile quickly.

Compilation is most of the suite's time. Without ``XLA_FLAGS``, two switches make a third of it: no optimisations
(``compilation``), and XLA's older, quicker way of making loops. With ``XLA_FLAGS``, whatever they are, XLA's
own way is used, and the parity tests are optimised: compiled as users' programs are. ``.ci/run`` does both.
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
# The processes of pytest-xdist inherit what the first one decided.
_AS_USERS = os.environ.setdefault('AVATAR_TESTS_AS_USERS', '1' if os.environ.get('XLA_FLAGS') else '')
if not _AS_USERS and not os.environ.get('XLA_FLAGS') and _xla_knows(_OLDER_LOOPS):
    os.environ['XLA_FLAGS'] = f'--{_OLDER_LOOPS}=false'


@pytest.fixture(scope='module', autouse=True)
def compilation(request):
    """Chooses whether XLA optimises, and frees a file's programs after its last test."""
    import jax

    optimised = bool(_AS_USERS) and request.module.__name__.startswith('tests.parity.')
    jax.config.update('jax_disable_most_optimizations', not optimised)
    yield
    jax.clear_caches()
    gc.collect()
    _return_memory()


def _return_memory() -> None:
    """Gives freed memory back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
