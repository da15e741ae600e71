"""What a pickle is made of besides plain values, and what may be a key in it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from avatar_jax.foreign.limits import Damaged, Refused

Value = object
"""What a pickle can build: plain values, containers of them, and the records of ``foreign.records``."""

SMALL = 4096
"""Byte strings up to this length become ``bytes`` (or text); longer ones stay views of the file."""

MAX_LINE = 256
"""Characters of a number or a name in the textual instructions."""

_KEY_PARTS = 16


class _Mark:
    __slots__ = ()


MARK = _Mark()
"""Separates values on the stack."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle refers to. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f'{self.module}.{self.name}'


class Blob:
    """A long byte string that stays a view of the file. ``text``: it is a byte string of Python 2, perhaps a text."""

    __slots__ = ('data', 'text')

    def __init__(self, data: memoryview, text: bool = False):
        self.data, self.text = data, text


def check_key(key: Value) -> Hashable:
    """Lets through what may be a key of a dictionary or an element of a set.

    Hashing is done by Python itself, recursively for tuples, so only short tuples of plain values are let through.

    Raises:
        Damaged: it cannot be hashed at all.
        Refused: it is none of these.
    """
    kind = type(key)
    if kind is str or kind is bytes or kind is bool or key is None or kind is float or kind is Global:
        return key
    if kind is int and -(1 << 63) <= key < 1 << 64:  # far larger ones could be made to collide
        return key
    if kind is tuple and len(key) <= _KEY_PARTS:
        for part in key:
            if type(part) is tuple:
                raise Refused('a pickle uses nested tuples as a key')
            check_key(part)
        return key
    if kind in (list, dict, set):
        raise Damaged(f'a pickle uses a {kind.__name__} as a key')
    raise Refused('a pickle uses an unusual value as a key')
