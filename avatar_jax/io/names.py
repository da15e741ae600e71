"""File names as they are: colons, line breaks, bytes that are no UTF-8, terminals that cannot show them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.progress import Console


def shown(name: str | os.PathLike) -> str:
    """A name, or a message with names in it, as one line.

    Line breaks and other control characters are escaped; what is no UTF-8 is shown as ``\\xe9``.
    """
    text = os.fspath(name) if isinstance(name, os.PathLike) else name
    return ''.join(_shown(c) for c in text)


def _shown(c: str) -> str:
    code = ord(c)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries bytes that are no UTF-8
        return f'\\x{code - 0xDC00:02x}'
    unseen = code < 32 or 127 <= code < 160 or code in (0x2028, 0x2029) or 0xD800 <= code <= 0xDFFF
    if unseen or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:  # also what turns the line around
        return c.encode('unicode_escape').decode('ascii')
    return c


def media_url(path: str | os.PathLike) -> str:
    """What FFmpeg is given, to which ``12:30.mp4`` would be a protocol."""
    return os.fspath(Path(path).absolute())


def to_bytes(name: str) -> bytes:
    """A name's bytes, also if they are no UTF-8; for hashes and random numbers that depend on names."""
    return name.encode('utf-8', 'surrogateescape')


def cut(name: str, most: int) -> str:
    """The beginning of a file name, at most ``most`` bytes of it."""
    return to_bytes(name)[:most].decode('utf-8', 'ignore')


def check_utf8(path: str | os.PathLike, what: str) -> None:
    """Raises ``UserError`` where libraries that store ``what`` could not write the name of a folder."""
    try:
        os.fspath(path).encode('utf-8')
    except UnicodeEncodeError:
        raise UserError(f'{shown(path)}: {what} need a name in UTF-8; choose another folder') from None


def prepare_streams() -> None:
    """Makes stdout and stderr show what they can of every text, and exist: services have none.

    A stderr that is full or closed later does not end the work either.
    """
    for number in (0, 1, 2):  # or else the next file that is opened gets the number, and what libraries print to it
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: SIM115 -- for the whole program
        elif hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    if sys.stderr is sys.__stderr__:
        sys.stderr = Console(sys.stderr)
