"""All tests run on the CPU and share compiled programs through a cache folder outside the project."""

import os
import tempfile
from pathlib import Path

# Before the first import of jax anywhere.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(tempfile.gettempdir()) / f'avatar_jax_tests_{os.getuid()}'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
