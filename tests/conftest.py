"""All tests run on the CPU, share compiled programs through a cache folder outside the project, and compile quickly.

Compilation is most of the suite's time. Where ``XLA_FLAGS`` is not set, two flags halve it: few optimisations, and
XLA's older way of making loops. Where it is set, to whatever, programs are compiled as users' are. ``.ci/run`` runs the
parity tests in both ways.
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
if not os.environ.get('XLA_FLAGS') and _xla_knows(_OLDER_LOOPS):
    os.environ['XLA_FLAGS'] = f'--{_OLDER_LOOPS}=false --xla_backend_optimization_level=1'


@pytest.fixture(scope='module', autouse=True)
def free_programs():
    """Frees a file's compiled programs after its last test, and gives their memory back to the system."""
    import jax

    yield
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # only glibc has it
    if trim is not None:
        trim(0)
