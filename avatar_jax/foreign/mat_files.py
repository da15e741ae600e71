"""A reader of MATLAB files, version 5 (what MATLAB writes as ``-v6`` and ``-v7``, and scipy).

A file is a sequence of elements, each with its type and size; a matrix is an element that holds others: flags, shape,
name, numbers. Numbers are often stored in a smaller type than the matrix has. Elements may be compressed as a whole.
Read are matrices of numbers (full and sparse), texts, cells and structures; functions and objects are refused.
Uncompressed numbers stay views of the file.

``scipy.io.loadmat`` reads the same files, but believes the sizes that they announce: version 1.17 takes 2 GiB for 208
bytes (a structure of 16384 x 16384) and 1.3 GiB for a compressed megabyte of zeros, where this reader refuses both.
``whosmat``, which lists shapes beforehand, does not look into cells, where the same structure can be.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from avatar_jax.foreign.archives import inflate
from avatar_jax.foreign.limits import Budget, Damaged, Refused, shape_size, shown
from avatar_jax.foreign.tree import sparse_array

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {
    1: 'i1',
    2: 'u1',
    3: 'i2',
    4: 'u2',
    5: 'i4',
    6: 'u4',
    7: 'f4',
    9: 'f8',
    12: 'i8',
    13: 'u8',
}
_TEXTS = {1: 'latin-1', 2: 'latin-1', 4: 'utf-16', 16: 'utf-8', 17: 'utf-16', 18: 'utf-32'}
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE = 1, 2, 3, 4, 5
_CLASSES = {
    6: 'f8',
    7: 'f4',
    8: 'i1',
    9: 'u1',
    10: 'i2',
    11: 'u2',
    12: 'i4',
    13: 'u4',
    14: 'i8',
    15: 'u8',
}
_UNREAD = {_OBJECT: 'an object', 16: 'a function', 17: 'an object'}
_MAX_LEVELS = 32
_MAX_PARTS = 1_000_000
_LOGICAL, _COMPLEX = 2, 8


def is_mat(data: memoryview) -> bool:
    """Whether bytes start with the header of a version 5 file."""
    return len(data) >= _HEADER and bytes(data[126:128]) in (b'IM', b'MI') and bytes(data[:6]) == b'MATLAB'


@dataclass
class _Element:
    kind: int
    data: memoryview


class _Elements:
    """Walks through consecutive elements."""

    def __init__(self, data: memoryview, order: str):
        self.data, self.order, self.position = data, order, 0

    def more(self) -> bool:
        return self.position < len(self.data)

    def next(self) -> _Element:
        data, at = self.data, self.position
        if at + 8 > len(data):
            raise Damaged('ends within an element')
        kind, size = struct.unpack_from(self.order + 'II', data, at)
        if kind >> 16:  # up to four bytes are stored in the head itself
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise Damaged(f'an element of {size} bytes is stored in the space of 4')
            self.position = at + 8
            return _Element(kind, data[at + 4 : at + 4 + size])
        start = at + 8
        if size > len(data) - start:
            raise Damaged(f'an element announces {size} bytes where {len(data) - start} are left')
        # Every element but a compressed one fills up to a multiple of eight; the last may end early.
        end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        self.position = min(end, len(data))
        return _Element(kind, data[start : start + size])


class _Reader:
    def __init__(self, order: str, budget: Budget):
        self.order, self.budget = order, budget
        self.parts = 0

    def numbers(self, element: _Element, what: str) -> np.ndarray:
        if element.kind not in _NUMBERS:
            raise Damaged(f'{what} is not made of numbers')
        dtype = np.dtype(self.order + _NUMBERS[element.kind])
        if len(element.data) % dtype.itemsize:
            raise Damaged(f'{what} is not made of whole numbers')
        if not len(element.data):
            return np.zeros(0, dtype.newbyteorder('='))
        return np.frombuffer(element.data, dtype)

    def typed(self, element: _Element, dtype: np.dtype, count: int, what: str) -> np.ndarray:
        """[count] numbers of an element as a matrix has them."""
        stored = self.numbers(element, what)
        if len(stored) != count:
            raise Damaged(f'{what} has {len(stored)} numbers and a shape of {count}')
        if stored.dtype == dtype and dtype.isnative:
            return stored
        self.budget.allocate(2 * count * max(dtype.itemsize, stored.dtype.itemsize), what)
        stored = stored.astype(stored.dtype.newbyteorder('='))
        with np.errstate(invalid='ignore', over='ignore'):
            made = stored.astype(dtype)
        if not np.array_equal(made, stored, equal_nan=stored.dtype.kind == 'f'):
            raise Damaged(f'{what} has numbers that do not fit its type')
        return made

    def matrix(self, data: memoryview, level: int) -> tuple[str, Any]:
        """Name and value of a matrix element."""
        self.parts += 1
        if level > _MAX_LEVELS or self.parts > _MAX_PARTS:
            raise Refused('holds cells within cells without end')
        if not len(data):  # how an empty cell is stored
            return '', np.zeros((0, 0))
        elements = _Elements(data, self.order)
        flags = self.numbers(elements.next(), 'a matrix')
        if flags.dtype.itemsize != 4 or len(flags) != 2:
            raise Damaged('a matrix lacks its kind')
        kind, bits, largest = int(flags[0]) & 0xFF, int(flags[0]) >> 8 & 0xFF, int(flags[1])
        if kind in _UNREAD:
            raise Refused(f'holds {_UNREAD[kind]}, not only numbers')
        sides = self.numbers(elements.next(), 'a matrix')
        name = self.name(elements.next())
        what = shown(name) if name else 'a matrix'
        shape = tuple(int(n) for n in sides) if sides.dtype.kind in 'iu' and len(sides) <= 32 else (-1,)
        count = shape_size(shape, what)
        if len(shape) < 2:
            raise Damaged(f'{what} has an impossible shape')
        if kind in _CLASSES:
            value = self.full(elements, kind, bits, shape, count, what)
        elif kind == _CHAR:
            value = self.text(elements.next(), shape, count, what)
        elif kind == _SPARSE:
            value = self.sparse(elements, bits, shape, largest, what)
        elif kind == _CELL:
            cells = self.children(elements, count, level)
            value = _nested(cells, shape)
        elif kind == _STRUCT:
            value = self.structure(elements, shape, count, level, what)
        else:
            raise Damaged(f'{what} has an unknown kind ({kind})')
        if elements.more():
            raise Damaged(f'{what} has more parts than a matrix of its kind')
        return name, value

    def name(self, element: _Element) -> str:
        if element.kind not in (1, 2, 16) or len(element.data) > 4096:
            raise Damaged('a matrix has an impossible name')
        text = bytes(element.data).rstrip(b'\0').decode('latin-1')
        if text and not (text.isascii() and text.isidentifier()):
            raise Damaged(f'a matrix has an impossible name ({shown(repr(text))})')
        return text

    def full(
        self, elements: _Elements, kind: int, bits: int, shape: tuple[int, ...], count: int, what: str
    ) -> np.ndarray:
        dtype = np.dtype(_CLASSES[kind])
        self.budget.tensor(count * dtype.itemsize, 'the arrays in it')
        value = self.typed(elements.next(), dtype, count, what)
        if bits & _COMPLEX:
            if dtype.kind != 'f':
                raise Refused(f'{what} has complex integers')
            self.budget.allocate(4 * count * dtype.itemsize, what)
            value = value + 1j * self.typed(elements.next(), dtype, count, what)
        if bits & _LOGICAL:
            if dtype != np.uint8 or (count and value.max() > 1):
                raise Damaged(f'{what} of truth values holds other numbers')
            value = value.view(np.bool_)
        value = value.reshape(shape, order='F')
        value.flags.writeable = False
        return value

    def text(self, element: _Element, shape: tuple[int, ...], count: int, what: str) -> str | list[str]:
        """A text, or a list of them if the matrix has several rows."""
        if element.kind not in _TEXTS:
            raise Damaged(f'{what} is not a text')
        self.budget.allocate(64 * (count + len(element.data)), what)
        encoding = _TEXTS[element.kind]
        if encoding in ('utf-16', 'utf-32'):
            encoding += '-le' if self.order == '<' else '-be'
        try:
            text = str(element.data, encoding)
        except UnicodeDecodeError as error:
            raise Damaged(f'{what} is not a valid text') from error
        if len(text) != count:
            raise Damaged(f'{what} has {len(text)} characters and a shape of {count}')
        if len(shape) != 2:
            raise Refused(f'{what} is a text of {len(shape)} dimensions')
        if shape[0] <= 1:
            return text
        return [text[row :: shape[0]] for row in range(shape[0])]

    def sparse(self, elements: _Elements, bits: int, shape: tuple[int, ...], largest: int, what: str) -> np.ndarray:
        rows = self.numbers(elements.next(), what)
        pointers = self.numbers(elements.next(), what)
        stored = self.numbers(elements.next(), what)
        if bits & _COMPLEX:
            raise Refused(f'{what} is a sparse matrix of complex numbers')
        self.budget.allocate(8 * (2 * len(rows) + len(pointers) + len(stored)), what)
        data = stored.astype(np.bool_ if bits & _LOGICAL else np.float64)
        if len(rows) > max(largest, 1):
            raise Damaged(f'{what} has more numbers than it announces')
        dense = sparse_array('csc', shape, data, rows, pointers, self.budget)
        self.budget.tensor(dense.nbytes, 'the arrays in it')
        return dense

    def children(self, elements: _Elements, count: int, level: int) -> list[Any]:
        if count > len(elements.data) // 8:
            raise Damaged(f'announces {count} cells in {len(elements.data)} bytes')
        values = []
        for _ in range(count):
            element = elements.next()
            if element.kind != _MATRIX:
                raise Damaged('a cell does not hold a matrix')
            values.append(self.matrix(element.data, level + 1)[1])
        return values

    def structure(self, elements: _Elements, shape: tuple[int, ...], count: int, level: int, what: str) -> dict | list:
        """A dictionary, or nested lists of them."""
        width = self.numbers(elements.next(), what)
        if width.dtype.itemsize != 4 or len(width) != 1 or not 0 < width[0] <= 4096:
            raise Damaged(f'{what} has impossible field names')
        width = int(width[0])
        raw = bytes(elements.next().data)
        if len(raw) % width:
            raise Damaged(f'{what} has impossible field names')
        names = [raw[i : i + width].split(b'\0')[0].decode('latin-1') for i in range(0, len(raw), width)]
        if len(set(names)) != len(names) or not all(n.isascii() and n.isidentifier() for n in names):
            raise Damaged(f'{what} has impossible field names')
        self.parts += count
        if self.parts > _MAX_PARTS:
            raise Refused(f'{what} holds {count} structures')
        values = self.children(elements, count * len(names), level)
        rows = [dict(zip(names, values[i * len(names) : (i + 1) * len(names)], strict=True)) for i in range(count)]
        return rows[0] if count == 1 else _nested(rows, shape)


def _nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Values in column-major order as nested lists (rows first)."""
    grid = np.empty(len(values), object)
    for index, value in enumerate(values):
        grid[index] = value
    return grid.reshape(shape, order='F').tolist()


def read_mat(data: memoryview, budget: Budget) -> dict[str, Any]:
    """Variables by name: arrays in MATLAB's shape, texts, dictionaries (structures), nested lists (cells).

    Args:
        data: all bytes of the file.
        budget: pays for what is allocated.

    Raises:
        Damaged, Refused: see ``avatar_jax.foreign.limits``.
    """
    order = '<' if bytes(data[126:128]) == b'IM' else '>'
    version = struct.unpack_from(order + 'H', data, 124)[0]
    if version != 0x0100:
        raise Refused(f'is a MATLAB file of an unknown version ({version:#06x})')
    reader = _Reader(order, budget)
    found: dict[str, Any] = {}
    elements = _Elements(data[_HEADER:], order)
    while elements.more():
        element = elements.next()
        if element.kind == _COMPRESSED:
            element = _inflated(element, order, budget)
        if element.kind != _MATRIX:
            raise Damaged(f'holds an element of the kind {element.kind} where a matrix should be')
        name, value = reader.matrix(element.data, 0)
        if not name or name in found:
            raise Damaged(f'has two matrices of the name {shown(name)}' if name else 'has a matrix without a name')
        found[name] = value
    return found


def _inflated(element: _Element, order: str, budget: Budget) -> _Element:
    """The element that a compressed one holds."""
    head = _start(element.data)
    kind, size = struct.unpack(order + 'II', head)
    content = inflate(element.data, size + 8, 15, budget, 'a compressed matrix')
    return _Element(kind, memoryview(content)[8:])


def _start(packed: memoryview) -> bytes:
    """The first eight bytes of compressed data: type and size of the element."""
    try:
        head = zlib.decompressobj().decompress(packed, 8)
    except zlib.error as error:
        raise Damaged('a compressed matrix is not valid compressed data') from error
    if len(head) < 8:
        raise Damaged('a compressed matrix is empty')
    return head
