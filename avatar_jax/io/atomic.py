"""Output files that are either complete or absent.

Everything is written under a hidden temporary name in the target's own folder and renamed at the end. A full disk, an
exception, Ctrl-C or SIGTERM (which the command line turns into an exception) removes the temporary file; a killed
process leaves at most a hidden ``.name.*.part`` file that nothing reads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.names import cut

# What a person can mend about the place that is written to. Anything else stays an ordinary OSError.
_REASONS = {
    errno.ENOSPC: 'no space left on the disk; free some space or choose another folder',
    errno.EDQUOT: 'the disk quota is used up; free some space or choose another folder',
    errno.EFBIG: 'the file is larger than the system allows; choose another folder or a smaller output',
    errno.EROFS: 'the file system is read-only; choose another folder',
    errno.EACCES: 'no permission to write there; choose another folder',
    errno.EPERM: 'no permission to write there; choose another folder',
    errno.ENOTDIR: 'a part of the path is a file, not a folder; choose another folder',
    errno.EISDIR: 'a folder of that name is in the way; choose another name',
    errno.EEXIST: 'a file of that name is in the way; choose another name',
    errno.ENOTEMPTY: 'a folder with files of that name is in the way; choose another name',
    errno.ENOENT: 'the folder does not exist and could not be made; choose another folder',
    errno.ENAMETOOLONG: 'the name is too long; choose a shorter one',
    errno.EIO: 'the disk reports an error; choose another folder',
}


def write_error(path: str | os.PathLike, error: OSError) -> Exception:
    """The error to raise for a failed write: a ``UserError`` when its reason is one a person can mend, else
    ``error``.
    """
    reason = _REASONS.get(error.errno)
    return error if reason is None else UserError(f'{os.fspath(path)}: could not be written: {reason}')


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # An error about some other file (an input read inside the block) is not about writing here.
        about = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        if path.parent not in (about, *about.parents) and about not in path.parents:
            raise
        explained = write_error(path, error)
        if explained is error:
            raise
        raise explained from error


def _temporary(path: Path) -> Path:
    # Long target names would make the temporary name exceed the 255 bytes that file systems allow.
    return path.with_name(f'.{cut(path.name, 180)}.{os.getpid()}-{secrets.token_hex(4)}.part')


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; file systems that cannot sync a folder are left as they are."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` to write to; it becomes ``path`` when the block ends without an error.

    Missing parent folders are made. An existing file is replaced only at the end, so a failed run keeps the old one.

    Raises:
        UserError: the place cannot be written to (no space, no permission, a file in the way, ...).
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, 'is a folder', str(path))
            yield temporary
            with open(temporary, 'rb') as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes ``data`` to ``path``, completely or not at all. Raises ``UserError`` like ``atomic_path``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8, completely or not at all. Raises ``UserError`` like ``atomic_path``."""
    write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def _plain(value: Any) -> Any:
    """JSON form of numpy and path values (called by ``json`` for what it does not know)."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, '__array__'):  # jax arrays
        return np.asarray(value).tolist()
    raise TypeError(f'{type(value).__name__} has no JSON form')


def _finite(value: Any) -> Any:
    """NaN and infinity are not JSON: they become null, as the readers of other languages expect."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return _finite(_plain(value))


def json_text(value: object) -> str:
    """Indented JSON of dicts, lists, numbers, numpy and jax arrays, paths; NaN and infinity become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + '\n'
    return text.encode('utf-8', 'backslashreplace').decode()  # names that are no UTF-8: JSON's own escapes


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes ``json_text(value)``, completely or not at all. Raises ``UserError`` like ``atomic_path``."""
    write_text(path, json_text(value))


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Like ``atomic_path`` for a folder of files: gives an empty temporary folder that becomes ``path`` at the end.

    An existing folder ``path`` is replaced as a whole, after the new one is complete.

    Raises:
        UserError: the place cannot be written to, or ``path`` is a file.
    """
    path = Path(path)
    temporary, old = _temporary(path), _temporary(path)
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, 'is a file', str(path))
            temporary.mkdir()
            yield temporary
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(temporary, path)
            except OSError:
                if old.exists():
                    os.rename(old, path)
                raise
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def output_folder(path: str | os.PathLike) -> Path:
    """Makes the folder ``path`` if needed and checks that files can be made in it, before any expensive work.

    Raises:
        UserError: it is a file, or cannot be made or written to.
    """
    path = Path(path)
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = _temporary(path / 'probe')
        try:
            probe.write_bytes(b'x')
        finally:
            probe.unlink(missing_ok=True)
    return path


def output_file(path: str | os.PathLike) -> Path:
    """Checks that the file ``path`` could be written, before any expensive work: its folder is made, nothing else.

    Raises:
        UserError: a folder of that name is in the way, the name is too long, its folder cannot be made or written to.
    """
    path = Path(path)
    output_folder(path.parent)
    with _explained(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, 'is a folder', str(path))
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # a name that is too long
    return path


def output_place(path: str | os.PathLike) -> Path:
    """As ``output_file``, of a folder that will be made or replaced (``atomic_folder``).

    Raises:
        UserError: it is a file, the name is too long, or the place cannot be written to.
    """
    path = Path(path)
    output_folder(path.parent)
    with _explained(path):
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)
        if os.path.exists(path) and not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, 'is a file', str(path))
    return path
