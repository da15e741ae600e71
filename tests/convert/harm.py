"""Pickle programs by hand, and what must happen to files that are made to do harm."""

from __future__ import annotations

import os
import resource
import struct
import time

import pytest

from avatar_jax.errors import UserError
from avatar_jax.io.foreign import read
from tests.convert import writers as w

COMMAND = 'touch "$AVATAR_SENTINEL"'


def text(value: str) -> bytes:
    raw = value.encode()
    return b'X' + struct.pack('<I', len(raw)) + raw


def name(module: str, what: str) -> bytes:
    return f'c{module}\n{what}\n'.encode()


def stacked(module: str, what: str) -> bytes:
    return text(module) + text(what) + b'\x93'


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b'(' + b''.join(arguments) + b'tR'


PERSISTENCE = name('torch_utils.persistence', '_reconstruct_persistent_obj')
HOOKS = name('collections', 'OrderedDict') + b')R'
TENSOR = name('torch._utils', '_rebuild_tensor_v2')


def refused(tmp_path, content: bytes, message: str | None = None, file: str = 'model.bin') -> str:
    """Reads a file that must be refused, soon (in seconds of this process: the machine may be busy); the message."""
    path = w.write(tmp_path, file, content)
    before = set(os.listdir(tmp_path))
    start = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert time.process_time() - start < 5
    assert set(os.listdir(tmp_path)) == before
    said = str(caught.value)
    assert said.startswith(str(path)) and said.isprintable()
    return said


def timed(tmp_path, content: bytes, message: str | None = None) -> None:
    """Refused within five seconds and two gigabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path, content, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # KiB
