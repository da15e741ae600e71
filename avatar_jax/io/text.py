"""Text files from other systems: byte order marks, UTF-16, old encodings, comments."""

from __future__ import annotations

import codecs
import os

from avatar_jax.io.inputs import input_file

# The longer marks first: that of UTF-32 begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, 'utf-32'),
    (codecs.BOM_UTF32_BE, 'utf-32'),
    (codecs.BOM_UTF8, 'utf-8-sig'),
    (codecs.BOM_UTF16_LE, 'utf-16'),
    (codecs.BOM_UTF16_BE, 'utf-16'),
)


def decode(data: bytes) -> str:
    """Bytes of a text file as text: by its mark, else UTF-16 where every other byte is zero, UTF-8, or Windows-1252.

    Raises:
        ValueError: it holds zero bytes, so it is no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding)
    head = data[:4096]
    if b'\0' in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > 0.4 * len(head) / 2 and min(even, odd) == 0:
            return data.decode('utf-16-le' if odd else 'utf-16-be')
        raise ValueError('holds zero bytes')
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return data.decode('cp1252', 'replace')


def read_text(path: str | os.PathLike) -> str:
    """The text of a file.

    Raises:
        UserError: missing or unreadable. ValueError: it is no text.
    """
    path = input_file(path)
    return decode(path.read_bytes())


def lines(text: str, comments: tuple[str, ...] = ('#',)) -> list[str]:
    """Lines without comments, blanks around them, and empty ones."""
    found = []
    for line in text.splitlines():
        for mark in comments:
            line = line.partition(mark)[0]
        if line.strip():
            found.append(line.strip())
    return found
