"""One writer for a folder: a lock file that says who holds it, and that a dead holder does not keep.

The file is made by an atomic link, which shared storage (NFS and the like) keeps, too. On the machine of the holder its
process tells whether it lives; from elsewhere the file's time does, which the holder renews every ``BEAT`` seconds and
which is compared with the storage's own clock. A lock that was not renewed for ``STALE`` seconds is taken over; to find
out, a new process waits as long. Of several that take it over at once, one gets it: the file is replaced, never removed
first, while the operating system locks the file that is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from avatar_jax.errors import UserError
from avatar_jax.io.atomic import write_error
from avatar_jax.progress import activity

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

NAME = '.avatar_jax.lock'
BEAT, STALE = 10.0, 60.0  # seconds


class FolderLock:
    """Holds a folder for one process, from ``with`` on.

    with FolderLock(folder, 'training'):
        ...

    Args:
        folder: made if missing.
        work: what is done there, for messages: 'training'.

    Raises:
        UserError: another process holds it (named), or the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, work: str):
        self.folder, self.work = Path(folder), work
        self.path = self.folder / NAME
        self._token = secrets.token_hex(8)
        self._done = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._beat = threading.Thread(target=self._renew, daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._beat is not None:
            self._beat.join()
        if _read(self.path).get('token') == self._token:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def check(self) -> None:
        """Raises ``UserError`` when another process has taken the folder over meanwhile (this one stood still)."""
        holder = _read(self.path)
        if holder.get('token') not in (None, self._token):
            raise UserError(
                f'{self.folder}: was taken over by {_named(holder)}, which took this one for dead; it goes on'
            )

    def _take(self) -> None:
        for _ in range(3):
            if self._create():
                return
            holder = _read(self.path)
            if _alive(self.path, holder):
                raise UserError(
                    f'{self.folder}: {_named(holder)} is {holder.get("work", self.work)} there; end it or wait, or '
                    'choose another folder'
                )
            if self._replace(holder):
                return
        raise UserError(
            f'{self.folder}: other processes take it at the same moment; start one, or choose another folder'
        )

    def _create(self) -> bool:
        """Makes the lock file with its content in one step; False where there is one."""
        with self._written() as own:
            try:
                os.link(own, self.path)
            except FileExistsError:
                return False
            except OSError:  # storage without links: nearly as good
                if self.path.exists():
                    return False
                os.rename(own, self.path)
            return True

    def _replace(self, holder: dict[str, Any]) -> bool:
        """Puts this process's lock file in place of a stale one; False if somebody else was quicker."""
        with contextlib.suppress(FileNotFoundError), open(self.path, 'rb') as stale, self._written() as own:
            _lock_file(stale)
            same = os.path.samestat(os.fstat(stale.fileno()), self.path.stat())
            if same and _read(self.path).get('token') == holder.get('token'):
                os.replace(own, self.path)
                return True
        return False

    @contextlib.contextmanager
    def _written(self) -> Iterator[Path]:
        """A file beside the lock that says who this process is; gone afterwards unless it was moved."""
        own = self.path.with_name(f'{NAME}.{self._token}')
        try:
            own.write_text(json.dumps(_identity() | {'token': self._token, 'work': self.work}), encoding='utf-8')
            yield own
        finally:
            with contextlib.suppress(OSError):
                own.unlink()

    def _renew(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):
                if _read(self.path).get('token') == self._token:
                    os.utime(self.path)


def _lock_file(file: BinaryIO) -> None:
    """Waits until nobody else has locked an open file; without effect on storage or systems that lack it."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def _identity() -> dict[str, Any]:
    """Who this process is: its machine, its number there and when it began, for numbers are used again."""
    pid = os.getpid()
    return {
        'host': socket.gethostname(),
        'machine': _machine(),
        'pid': pid,
        'born': _born(pid),
        'since': time.strftime('%Y-%m-%d %H:%M'),
    }


def _machine() -> str:
    """What shares process numbers with this process: one start of one machine, and one container on it."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip())
        parts.append(os.readlink('/proc/self/ns/pid'))
    return ' '.join(parts) or socket.gethostname()


def _born(pid: int) -> str:
    """When a process began, in its machine's own count; '' where that cannot be told."""
    try:
        return Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace').rpartition(')')[2].split()[19]
    except (OSError, IndexError):
        return ''


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    if 'pid' not in holder:
        return 'another process'
    return f'process {holder["pid"]} on {holder.get("host", "another machine")} (since {holder.get("since", "?")})'


def _alive(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the process that holds a lock still runs."""
    if holder.get('machine') == _machine() and isinstance(holder.get('pid'), int):
        try:
            os.kill(holder['pid'], 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's
            pass
        return _born(holder['pid']) in ('', holder.get('born')) or not holder.get('born')
    return _renewed(path, holder)


def _renewed(path: Path, holder: dict[str, Any]) -> bool:
    """Whether a holder elsewhere renews its lock; watched until that is certain, at most ``STALE`` seconds."""
    first = _renewal(path)
    if first is None or _now(path) - first >= STALE:
        return False
    with activity(f'{path.parent}: is {_named(holder)} still at work?'):
        while True:
            time.sleep(min(1.0, BEAT / 4))
            last = _renewal(path)
            if last is None or _read(path).get('token') != holder.get('token'):
                return False  # released or taken: look again
            if last != first:
                return True
            if _now(path) - first >= STALE:
                return False


def _renewal(path: Path) -> float | None:
    """When the lock was renewed; None where there is none any more. Opening makes shared storage look again."""
    try:
        with open(path, 'rb') as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _now(path: Path) -> float:
    """The time by the clock of the storage, which may be another machine's."""
    probe = path.with_name(f'{NAME}.{secrets.token_hex(8)}')
    try:
        probe.write_bytes(b'')
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
