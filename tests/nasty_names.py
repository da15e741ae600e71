"""Names that files really have, and that programs stumble over. Endings are added by the tests."""

from __future__ import annotations

import os
from pathlib import Path

NASTY = {
    'colons': '2024-05-01T10:15:30',
    'protocol': 'http:',
    'drive': 'C:talk',
    'speech': 'speech:1',
    'no utf-8': os.fsdecode(b'Jos\xe9'),
    'chinese': '张伟',
    'emoji': '🙂 clip',
    'combining': 'e\u0301te\u0301',
    'right to left': 'שלום\u202e',
    'leading dash': '-x',
    'option': '--out',
    'line break': 'two\nlines',
    'tab and bell': 'a\tb\a',
    'spaces': '  a  b ',
    'quotes': '\'"`$(x)',
    'backslash': 'a\\b',
    'percent': 'frame%03d%s',
    'braces': '{0}[1]*?',
    'hash': 'a#b;c&d',
    'dots': 'a.b..c.',
    'equals': 'a=b',
    'long': 'n' * 200,
    'long chinese': '张' * 70,
}


def writable(folder: Path, name: str) -> bool:
    """Whether the file system takes a name (some insist on UTF-8)."""
    try:
        (folder / name).write_bytes(b'x')
        (folder / name).unlink()
    except OSError:
        return False
    return True
