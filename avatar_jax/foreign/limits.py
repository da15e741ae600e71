"""What reading a foreign file may cost, and the two ways in which it ends early.

A file announces sizes before it shows its content, so a header of a few bytes can ask for terabytes. Every size is
therefore compared with the bytes that are really there, and whatever needs memory of its own (inflating, converting,
copying) is charged to a ``Budget`` before it is allocated.
"""

from __future__ import annotations

import math

MAX_BYTES = 8 << 30
"""Default of ``max_bytes``: the most that all tensors of a file together may take up."""

MAX_OPCODES = 1_000_000
"""Instructions of all pickles in one file; a full set of generator and discriminators takes below 100,000."""

MAX_WORK = 2_000_000
"""Steps of instructions that take more than one."""

MAX_DEPTH = 100
"""Containers within containers. A module takes three levels; the walk through them takes up to six calls for each, and
Python allows a thousand."""

MAX_NODES = 1_000_000
"""Values of a file when shared containers are counted each time that they occur."""

MAX_TEXT = 16 << 20
"""Bytes of one text; the largest that occur are source texts of network modules (below 1 MiB)."""

MAX_DIMENSIONS = 32
_FREE = 512 << 20  # small files may inflate this far (masks and constant buffers compress a thousandfold)
_GROWTH = 32  # large ones this many times; tensors that are not constant inflate below twofold


class Unreadable(Exception):
    """A file, or a part of it, that is not read; ``read`` turns it into a ``UserError`` that names the file."""


class Damaged(Unreadable):
    """The content contradicts itself or ends too early."""


class Refused(Unreadable):
    """The content is well formed, but is not what may occur in a file of weights."""


def shown(text: object, limit: int = 120) -> str:
    """A name out of a file, for a message: without control characters, shortened."""
    text = str(text)
    text = text if len(text) <= limit else text[:limit] + '...'
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def is_count(value: object) -> bool:
    """Whether a value out of a file is an integer from 0 to 2**62 (and not a truth value)."""
    return type(value) is int and 0 <= value < 1 << 62


def shape_size(shape: object, what: str) -> int:
    """Number of elements of a shape out of a file.

    Raises:
        Damaged: it is not a tuple of at most 32 sizes, or no array can have that shape.
    """
    if type(shape) not in (tuple, list) or len(shape) > MAX_DIMENSIONS or not all(is_count(n) for n in shape):
        raise Damaged(f'{what} has an impossible shape')
    # An empty array still has strides, which overflow when its other sides are absurd.
    if math.prod(max(n, 1) for n in shape) >= 1 << 48:
        raise Damaged(f'{what} has an impossible shape {tuple(shape)}')
    return math.prod(shape)


class Budget:
    """Counts what reading one file costs.

    Args:
        file_bytes: size of the file.
        max_bytes: the most that its tensors together, and the memory allocated while reading, may take up.
        many: factor on the number of instructions, steps and values: files of many small records have more than
            weights.
    """

    def __init__(self, file_bytes: int, max_bytes: int = MAX_BYTES, many: int = 1):
        self.max_bytes = max_bytes
        self.many = many
        self.file_bytes = file_bytes
        self._allocated = 0
        self._limit = min(max_bytes, _FREE + _GROWTH * file_bytes)
        self._tensors = 0
        self._opcodes = 0
        self._work = 0

    def _explain(self, total: int, what: str) -> Refused:
        if total > self.max_bytes:
            return Refused(f'{what} would take {_amount(total)}, more than the limit of {_amount(self.max_bytes)}')
        return Refused(f'{what} would take {_amount(total)}, out of proportion to a file of {_amount(self.file_bytes)}')

    def allocate(self, number: int, what: str) -> None:
        """Charges memory that is about to be allocated.

        Raises:
            Refused: it would be too much.
        """
        self._allocated += number
        if self._allocated > self._limit:
            raise self._explain(self._allocated, what)

    def tensor(self, number: int, what: str) -> None:
        """Charges the bytes of a tensor when written out, also those of a view that takes no memory itself.

        Raises:
            Refused: it would be too much.
        """
        self._tensors += number
        if self._tensors > self._limit:
            raise self._explain(self._tensors, what)

    def opcodes_left(self) -> int:
        """How many more pickle instructions may be carried out."""
        return max(self.many * MAX_OPCODES - self._opcodes, 0)

    def opcodes(self, number: int) -> None:
        """Counts pickle instructions that were carried out."""
        self._opcodes += number

    def work(self, number: int) -> None:
        """Counts steps that one instruction takes, for instance copying a list: those add up if it is repeated.

        Raises:
            Refused: there are too many.
        """
        self._work += number
        if self._work > self.many * MAX_WORK:
            raise Refused('takes far more steps to build than weights need')


def _amount(number: int) -> str:
    for unit, size in (('TiB', 1 << 40), ('GiB', 1 << 30), ('MiB', 1 << 20), ('KiB', 1 << 10)):
        if number >= size:
            return f'{number / size:.1f} {unit}'
    return f'{number} bytes'
