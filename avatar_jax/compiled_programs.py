"""Compiled programs are kept from one command to the next, in a folder of the user's.

Compilation is most of what a command's first frame costs. JAX can keep compiled programs in a folder; this module
chooses the folder, keeps it small, and removes what a killed process or a full disk left half written. ``avatar-jax``
calls ``keep`` before it computes. JAX is not imported here: a command that computes nothing need not wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
import warnings
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.io import atomic
from avatar_jax.io.user_cache import user_cache

MAX_BYTES = 2 << 30
_SHORT = 0.5  # seconds of compilation below which a program is not kept
_JAX_FOLDER = 'JAX_COMPILATION_CACHE_DIR'
_SEEN = 'whole.json'  # entry -> [bytes, time of change, checksum] when it was found to be whole
_ZSTD = b'\x28\xb5\x2f\xfd'  # what it packs begins with
_WRITING = 60  # seconds in which another process may still be writing an entry
_OLD = 30 * 86400  # seconds after which programs of another version or machine go
_TROUBLE = 'persistent compilation cache'  # in each warning of JAX that speaks of an entry


def keep(max_bytes: int = MAX_BYTES) -> Path | None:
    """Keeps compiled programs for later processes of this user, on this machine, with these versions.

    They are in ``programs`` in the user's cache folder (``io.user_cache``). JAX's own settings come first: nothing is
    done where ``JAX_COMPILATION_CACHE_DIR`` is set or ``JAX_ENABLE_COMPILATION_CACHE`` is false.

    Args:
        max_bytes: programs that were not used for longest are removed until the rest needs at most so much.

    Returns:
        The folder in use, or None.
    """
    switch = os.environ.get('JAX_ENABLE_COMPILATION_CACHE', '')
    if os.environ.get(_JAX_FOLDER) or switch.lower() in ('0', 'false', 'off', 'no'):
        return None
    top = user_cache() / 'programs'
    folder = top / _key()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_damaged(folder)
        _make_room(folder, max_bytes)
        _remove_old(top, folder)
    except (OSError, UserError):  # a home that cannot be written to: programs are compiled each time
        return None
    if 'jax' in sys.modules:  # it has read its environment
        config = sys.modules['jax'].config
        config.update('jax_compilation_cache_dir', str(folder))
        config.update('jax_persistent_cache_min_compile_time_secs', _SHORT)
    else:
        os.environ[_JAX_FOLDER] = str(folder)
        os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', str(_SHORT))
    _watch(folder)
    return folder


def _key() -> str:
    """Names versions and machine: a program for another processor can end the process that loads it."""
    versions = [f'{name} {metadata.version(name)}' for name in ('jax', 'jaxlib')]
    features = ''
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        features = ' '.join(
            sorted({line for line in lines if line.split(':')[0].strip() in ('flags', 'Features', 'model name')})
        )
    machine = [platform.machine(), platform.processor(), features]
    return hashlib.sha256('\n'.join(versions + machine).encode()).hexdigest()[:16]


def _entries(folder: Path) -> dict[Path, os.stat_result]:
    found = {}
    for path in folder.glob('*-cache'):
        with contextlib.suppress(FileNotFoundError):  # another process makes room
            found[path] = path.stat()
    return found


def _is_whole(data: bytes) -> bool:
    """Whether an entry can be unpacked to its end: JAX packs with zlib, or with zstandard where that is installed."""
    try:
        if data[:4] == _ZSTD:
            import zstandard

            for _ in zstandard.ZstdDecompressor().read_to_iter(data):
                pass
        else:
            zlib.decompress(data)
    except (zlib.error, ImportError):
        return False
    except Exception as error:
        if type(error).__name__ != 'ZstdError':
            raise
        return False
    return True


def _remove_damaged(folder: Path, again: bool = False) -> None:
    """Removes entries that are not whole; ``again``: one could not be read in spite of that.

    An entry is unpacked once, and has its checksum compared from then on: what zstandard packs has none of its own, so
    that JAX would run a program with a changed byte. ``again`` removes what zstandard packed and was not seen before.
    """
    record, known = folder / _SEEN, {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(record.read_text())
    now = {}
    for path, stat in _entries(folder).items():
        mark, seen = [stat.st_size, stat.st_mtime_ns], known.get(path.name, [])
        first = seen[:2] != mark
        if first and not again and time.time() - stat.st_mtime < _WRITING:
            continue
        with contextlib.suppress(FileNotFoundError):  # another process makes room
            data = path.read_bytes()
            mark.append(zlib.crc32(data))
            if (_is_whole(data) and not (again and data[:4] == _ZSTD)) if first else seen == mark:
                now[path.name] = mark
            else:
                path.unlink()
    if now != known:
        atomic.write_json(record, now)


def _make_room(folder: Path, max_bytes: int) -> None:
    entries = _entries(folder)
    total = sum(stat.st_size for stat in entries.values())
    for path, stat in sorted(entries.items(), key=lambda e: max(e[1].st_atime, e[1].st_mtime)):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size


def _remove_old(top: Path, folder: Path) -> None:
    """Removes programs of other versions and machines that were not used for a month."""
    (folder / 'used').touch()
    for other in top.iterdir():
        used = other / 'used'
        if other != folder and used.is_file() and time.time() - used.stat().st_mtime > _OLD:
            shutil.rmtree(other, ignore_errors=True)


def _watch(folder: Path) -> None:
    """An entry that JAX cannot read is compiled anew, without a word; at the end of the process it is removed."""
    show, damaged = warnings.showwarning, []

    def showwarning(message: Warning | str, *rest: Any, **options: Any) -> None:
        if _TROUBLE not in str(message):
            show(message, *rest, **options)
        elif not damaged:
            damaged.append(folder)
            atexit.register(_remove_damaged, folder, True)

    warnings.showwarning = showwarning
