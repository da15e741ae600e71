"""The user's cache folder: what can be made or fetched again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = 'AVATAR_CACHE'


def user_cache() -> Path:
    """``$AVATAR_CACHE``, else the folder ``avatar_jax`` where this system's users have their caches."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    if os.name == 'nt':
        base = os.environ.get('LOCALAPPDATA') or Path.home() / 'AppData' / 'Local'
    elif sys.platform == 'darwin':
        base = Path.home() / 'Library' / 'Caches'
    else:
        base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'avatar_jax'
