"""Files that other programs wrote, with this project's one-line errors: the door to ``avatar_jax.foreign``."""

from __future__ import annotations

import os

from avatar_jax.errors import UserError
from avatar_jax.foreign.limits import Unreadable
from avatar_jax.foreign.read import RawFile
from avatar_jax.foreign.read import read as read_raw
from avatar_jax.io.inputs import input_file, read_error

__all__ = ['RawFile', 'read']


def read(path: str | os.PathLike, *, max_bytes: int | None = None, many: int = 1) -> RawFile:
    """As ``avatar_jax.foreign.read.read``.

    Raises:
        UserError: it cannot be read, is of an unknown kind, damaged, too large, or holds something that is not data.
    """
    path = input_file(path)
    try:
        return read_raw(path, max_bytes=max_bytes, many=many)
    except Unreadable as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise read_error(path, error) from error
