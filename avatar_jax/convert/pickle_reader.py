"""A reader for the pickle format that runs nothing.

A pickle is a program for a small stack machine. Three of its instructions can call anything that Python can import,
which is why loading a foreign pickle in the usual way runs whatever its author wanted. This machine has the same
instructions but no way to import or to call: a name stays a name, and what to do where the program wants to call one
is decided by a ``Constructors`` object from an explicit list (``avatar_jax.convert.constructors``). Everything else is
refused with its name.

All protocols (0 to 5) are understood. Extension codes, out-of-band buffers and textual persistent ids, which have no
place in files of weights, are refused. Large byte strings stay views of the file. The cost of a pickle is bounded: the
number of instructions, the size of integers and texts, and what may serve as a key (see ``avatar_jax.convert.limits``);
no instruction recurses. The result may still contain itself or share containers so often that walking it would not
end; ``avatar_jax.convert.tree`` checks that.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from avatar_jax.convert.limits import MAX_TEXT, Budget, Damaged, Refused, shown

SMALL = 4096
"""Byte strings up to this length become ``bytes`` (or text); longer ones stay views of the file."""

_MAX_INTEGER = 64  # bytes; the largest that occur are the 10 bytes of torch's magic number
_MAX_LINE = 256  # characters of a number or a name in the textual instructions
_KEY_PARTS = 16


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


class Constructors(Protocol):
    """What a pickle may refer to and what comes of it. Every method may raise ``Refused`` or ``Damaged``."""

    def refer(self, module: str, name: str) -> Global:
        """The program refers to a name."""

    def call(self, what: Global, arguments: tuple) -> Any:
        """The program wants ``what(*arguments)``."""

    def new(self, what: Global, arguments: tuple) -> Any:
        """The program wants a new object of the class ``what``."""

    def build(self, value: Any, state: Any) -> Any:
        """The program hands an object its state; gives the object."""

    def items(self, value: Any) -> dict | None:
        """The dictionary behind an object that takes items, or None."""

    def persistent(self, identifier: Any) -> Any:
        """The program refers to something stored outside of it."""


class _Mark:
    __slots__ = ()


_MARK = _Mark()
_STOP = ord('.')
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_OPERATIONS: list[Callable[[Machine], None] | None] = [None] * 256


def _opcode(code: bytes) -> Callable:
    def register(function: Callable) -> Callable:
        _OPERATIONS[code[0]] = function
        return function

    return register


class Machine:
    """Reads one pickle.

    Args:
        data: the bytes, from the first instruction on; what follows the pickle is not looked at.
        constructors: decides what names may occur and what they mean.
        budget: pays for instructions and texts.
    """

    def __init__(self, data: memoryview, constructors: Constructors, budget: Budget):
        self.data = data
        self.end = len(data)
        self.position = 0
        self.constructors = constructors
        self.budget = budget
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Carries out the program and gives its value; ``position`` is then the first byte after the pickle.

        Raises:
            Damaged: it is not a pickle or ends too early.
            Refused: it wants something that weights have no need of.
        """
        data, end, operations = self.data, self.end, _OPERATIONS
        for count in range(self.budget.opcodes_left()):
            position = self.position
            if position >= end:
                raise Damaged('ends in the middle of a pickle')
            code = data[position]
            self.position = position + 1
            if code == _STOP:
                self.budget.opcodes(count + 1)
                return self._result()
            operation = operations[code]
            if operation is None:
                raise _no_such_instruction(code, position)
            operation(self)
        raise Refused('has far more pickle instructions than weights need')

    def _result(self) -> Any:
        value = self.pop()
        if self.stack:
            raise Damaged('a pickle ends with values left over')
        return value

    # Reading the program.

    def take(self, number: int) -> memoryview:
        """The next ``number`` bytes."""
        start = self.position
        if number > self.end - start:
            raise Damaged(f'a pickle announces {number} bytes where {self.end - start} are left')
        self.position = start + number
        return self.data[start : start + number]

    def number(self, size: int) -> int:
        """The next unsigned little-endian number."""
        return int.from_bytes(self.take(size), 'little')

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """The next line, without its end."""
        # Searching in pieces: a line ends soon, or is a byte string of a whole array.
        start, size = self.position, 512
        while True:
            stop = min(start + size, self.end, start + limit + 1)
            piece = bytes(self.data[start:stop])
            found = piece.find(b'\n')
            if found >= 0:
                self.position = start + found + 1
                return piece[:found]
            if stop >= start + limit + 1:
                raise Damaged(f'a line in a pickle is longer than {limit} characters')
            if stop == self.end:
                raise Damaged('ends in the middle of a pickle')
            size *= 8

    def text(self, raw: memoryview | bytes, encoding: str = 'utf-8') -> str:
        """Decodes and charges a text."""
        if len(raw) > MAX_TEXT:
            raise Refused(f'holds a text of {len(raw)} bytes')
        self.budget.allocate(4 * len(raw), 'the texts in it')
        try:
            return str(raw, encoding)
        except UnicodeDecodeError as error:
            raise Damaged('a text in a pickle is not valid') from error

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise Damaged('a pickle takes a value where there is none')
        value = self.stack.pop()
        if value is _MARK:
            raise Damaged('a pickle takes a value where there is none')
        return value

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise Damaged('a pickle takes a value where there is none')
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """Values above the last mark; the mark goes too."""
        stack = self.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                values = stack[index + 1 :]
                del stack[index:]
                return values
        raise Damaged('a pickle refers to a mark that it did not set')

    def pop_global(self) -> Global:
        value = self.pop()
        if type(value) is not Global:
            raise Damaged('a pickle calls something that is not a name')
        return value

    def pop_arguments(self) -> tuple:
        value = self.pop()
        if type(value) is not tuple:
            raise Damaged('a pickle calls something with arguments that are not a tuple')
        return value

    def memoize(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Damaged(f'a pickle recalls value {index}, which it did not store')
        self.stack.append(self.memo[index])


def _no_such_instruction(code: int, position: int) -> Exception:
    if code in _NAMES:
        return Refused(f'uses the pickle instruction {_NAMES[code]}, which files of weights have no need of')
    return Damaged(f'is not a pickle: byte {position} is no instruction (0x{code:02x})')


def check_key(key: Any) -> Any:
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


# Numbers, truth values, texts.


@_opcode(b'N')
def _none(m: Machine) -> None:
    m.push(None)


@_opcode(b'\x88')
def _newtrue(m: Machine) -> None:
    m.push(True)


@_opcode(b'\x89')
def _newfalse(m: Machine) -> None:
    m.push(False)


def _integer(line: bytes) -> int:
    if not re.fullmatch(rb'[+-]?[0-9]{1,150}', line):
        raise Damaged('an integer in a pickle is not valid')
    return int(line)


@_opcode(b'I')
def _int(m: Machine) -> None:
    line = m.line().rstrip(b'\r')
    m.push({b'00': False, b'01': True}[line] if line in (b'00', b'01') else _integer(line))


@_opcode(b'L')
def _long(m: Machine) -> None:
    line = m.line().rstrip(b'\r')
    m.push(_integer(line[:-1] if line.endswith(b'L') else line))


@_opcode(b'J')
def _binint(m: Machine) -> None:
    m.push(int.from_bytes(m.take(4), 'little', signed=True))


@_opcode(b'K')
def _binint1(m: Machine) -> None:
    m.push(m.number(1))


@_opcode(b'M')
def _binint2(m: Machine) -> None:
    m.push(m.number(2))


def _long_of(m: Machine, size: int) -> None:
    if size > _MAX_INTEGER:
        raise Refused(f'holds an integer of {size} bytes')
    m.push(int.from_bytes(m.take(size), 'little', signed=True))


@_opcode(b'\x8a')
def _long1(m: Machine) -> None:
    _long_of(m, m.number(1))


@_opcode(b'\x8b')
def _long4(m: Machine) -> None:
    _long_of(m, m.number(4))


@_opcode(b'F')
def _float(m: Machine) -> None:
    line = m.line().rstrip(b'\r')
    if not re.fullmatch(rb'[+-]?(?:[0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+|inf|nan)', line):
        raise Damaged('a number in a pickle is not valid')
    m.push(float(line))


@_opcode(b'G')
def _binfloat(m: Machine) -> None:
    m.push(struct.unpack('>d', m.take(8))[0])


_NO_ESCAPE = re.compile(rb'\\(?![\'"nrt]|x[0-9a-fA-F]{2})')


def _unescape(line: bytes) -> bytes:
    """The bytes that Python 2 wrote as ``line``."""
    if _NO_ESCAPE.search(line.replace(b'\\\\', b'')):
        raise Damaged('a byte string in a pickle is not valid')
    try:
        return line.decode('unicode_escape').encode('latin-1')
    except UnicodeError as error:
        raise Damaged('a byte string in a pickle is not valid') from error


def _push_python2(m: Machine, raw: memoryview | bytes) -> None:
    """A ``str`` of Python 2: a text in latin-1, or the numbers of an array."""
    m.push(m.text(raw, 'latin-1') if len(raw) <= SMALL else Blob(memoryview(raw), text=True))


@_opcode(b'S')
def _string(m: Machine) -> None:
    line = m.line(m.end).rstrip(b'\r')
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise Damaged('a byte string in a pickle is not valid')
    m.budget.allocate(4 * len(line), 'the byte strings in it')
    _push_python2(m, _unescape(line[1:-1]))


@_opcode(b'T')
def _binstring(m: Machine) -> None:
    _push_python2(m, m.take(_signed_size(m)))


@_opcode(b'U')
def _short_binstring(m: Machine) -> None:
    _push_python2(m, m.take(m.number(1)))


def _signed_size(m: Machine) -> int:
    size = int.from_bytes(m.take(4), 'little', signed=True)
    if size < 0:
        raise Damaged(f'a pickle announces {size} bytes')
    return size


def _push_bytes(m: Machine, size: int) -> None:
    raw = m.take(size)
    m.push(bytes(raw) if size <= SMALL else Blob(raw))


@_opcode(b'C')
def _short_binbytes(m: Machine) -> None:
    _push_bytes(m, m.number(1))


@_opcode(b'B')
def _binbytes(m: Machine) -> None:
    _push_bytes(m, m.number(4))


@_opcode(b'\x8e')
def _binbytes8(m: Machine) -> None:
    _push_bytes(m, m.number(8))


@_opcode(b'\x96')
def _bytearray8(m: Machine) -> None:
    _push_bytes(m, m.number(8))


@_opcode(b'V')
def _unicode(m: Machine) -> None:
    line = m.line(MAX_TEXT)
    m.push(_without_surrogates(m.text(line, 'raw-unicode-escape')))


def _without_surrogates(text: str) -> str:
    if any('\ud800' <= c <= '\udfff' for c in text):
        raise Damaged('a text in a pickle is not valid')
    return text


@_opcode(b'X')
def _binunicode(m: Machine) -> None:
    m.push(m.text(m.take(m.number(4))))


@_opcode(b'\x8c')
def _short_binunicode(m: Machine) -> None:
    m.push(m.text(m.take(m.number(1))))


@_opcode(b'\x8d')
def _binunicode8(m: Machine) -> None:
    m.push(m.text(m.take(m.number(8))))


# Containers.


@_opcode(b'(')
def _mark(m: Machine) -> None:
    m.push(_MARK)


@_opcode(b']')
def _empty_list(m: Machine) -> None:
    m.push([])


@_opcode(b'}')
def _empty_dict(m: Machine) -> None:
    m.push({})


@_opcode(b')')
def _empty_tuple(m: Machine) -> None:
    m.push(())


@_opcode(b'\x8f')
def _empty_set(m: Machine) -> None:
    m.push(set())


@_opcode(b'l')
def _list(m: Machine) -> None:
    m.push(m.pop_to_mark())


@_opcode(b't')
def _tuple(m: Machine) -> None:
    m.push(tuple(m.pop_to_mark()))


@_opcode(b'\x85')
def _tuple1(m: Machine) -> None:
    m.push((m.pop(),))


@_opcode(b'\x86')
def _tuple2(m: Machine) -> None:
    b, a = m.pop(), m.pop()
    m.push((a, b))


@_opcode(b'\x87')
def _tuple3(m: Machine) -> None:
    c, b, a = m.pop(), m.pop(), m.pop()
    m.push((a, b, c))


def _set_items(m: Machine, target: Any, values: list[Any]) -> None:
    items = target if type(target) is dict else m.constructors.items(target)
    if items is None:
        raise Damaged('a pickle puts items into something that is not a dictionary')
    if len(values) % 2:
        raise Damaged('a pickle has a key without a value')
    for index in range(0, len(values), 2):
        items[check_key(values[index])] = values[index + 1]


@_opcode(b'd')
def _dict(m: Machine) -> None:
    target: dict = {}
    _set_items(m, target, m.pop_to_mark())
    m.push(target)


@_opcode(b's')
def _setitem(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    _set_items(m, m.top(), [key, value])


@_opcode(b'u')
def _setitems(m: Machine) -> None:
    values = m.pop_to_mark()
    _set_items(m, m.top(), values)


@_opcode(b'a')
def _append(m: Machine) -> None:
    _extend(m, [m.pop()])


@_opcode(b'e')
def _appends(m: Machine) -> None:
    _extend(m, m.pop_to_mark())


def _extend(m: Machine, values: list[Any]) -> None:
    target = m.top()
    if type(target) is not list:
        raise Damaged('a pickle appends to something that is not a list')
    target.extend(values)


@_opcode(b'\x90')
def _additems(m: Machine) -> None:
    values = m.pop_to_mark()
    target = m.top()
    if type(target) is not set:
        raise Damaged('a pickle adds to something that is not a set')
    target.update(check_key(v) for v in values)


@_opcode(b'\x91')
def _frozenset(m: Machine) -> None:
    m.push(frozenset(check_key(v) for v in m.pop_to_mark()))


# The stack and the memo.


@_opcode(b'0')
def _pop(m: Machine) -> None:
    if not m.stack:
        raise Damaged('a pickle takes a value where there is none')
    m.stack.pop()


@_opcode(b'1')
def _pop_mark(m: Machine) -> None:
    m.pop_to_mark()


@_opcode(b'2')
def _dup(m: Machine) -> None:
    m.push(m.top())


@_opcode(b'p')
def _put(m: Machine) -> None:
    m.memoize(_index(m))


@_opcode(b'q')
def _binput(m: Machine) -> None:
    m.memoize(m.number(1))


@_opcode(b'r')
def _long_binput(m: Machine) -> None:
    m.memoize(m.number(4))


@_opcode(b'\x94')
def _memoize(m: Machine) -> None:
    m.memoize(len(m.memo))


def _index(m: Machine) -> int:
    line = m.line().rstrip(b'\r')
    if not re.fullmatch(rb'[0-9]{1,10}', line):
        raise Damaged('a pickle names a stored value in an impossible way')
    return int(line)


@_opcode(b'g')
def _get(m: Machine) -> None:
    m.recall(_index(m))


@_opcode(b'h')
def _binget(m: Machine) -> None:
    m.recall(m.number(1))


@_opcode(b'j')
def _long_binget(m: Machine) -> None:
    m.recall(m.number(4))


# Names and calls.

_MODULE = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', re.ASCII)
_NAME = re.compile(r'[A-Za-z_]\w*', re.ASCII)


def _refer(m: Machine, module: Any, name: Any) -> None:
    if type(module) is not str or type(name) is not str:
        raise Damaged('a pickle refers to a name that is not a text')
    # Dots in the second part would be a chain of attributes.
    if not _MODULE.fullmatch(module[:200]) or not _NAME.fullmatch(name[:200]) or len(module) + len(name) > 300:
        raise Refused(f'refers to {shown(repr(module))}, {shown(repr(name))}, which is not a plain name')
    m.push(m.constructors.refer(module, name))


def _name(m: Machine) -> str:
    return m.text(m.line().rstrip(b'\r'))


@_opcode(b'c')
def _global(m: Machine) -> None:
    module = _name(m)
    _refer(m, module, _name(m))


@_opcode(b'\x93')
def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    _refer(m, module, name)


@_opcode(b'R')
def _reduce(m: Machine) -> None:
    arguments = m.pop_arguments()
    m.push(m.constructors.call(m.pop_global(), arguments))


@_opcode(b'\x81')
def _newobj(m: Machine) -> None:
    arguments = m.pop_arguments()
    m.push(m.constructors.new(m.pop_global(), arguments))


@_opcode(b'\x92')
def _newobj_ex(m: Machine) -> None:
    keywords, arguments = m.pop(), m.pop_arguments()
    what = m.pop_global()
    if type(keywords) is not dict or keywords:
        raise Refused(f'makes {what} with keyword arguments')
    m.push(m.constructors.new(what, arguments))


@_opcode(b'i')
def _inst(m: Machine) -> None:
    module = _name(m)
    _refer(m, module, _name(m))
    what = m.pop_global()
    m.push(m.constructors.new(what, tuple(m.pop_to_mark())))


@_opcode(b'o')
def _obj(m: Machine) -> None:
    values = m.pop_to_mark()
    if not values or type(values[0]) is not Global:
        raise Damaged('a pickle calls something that is not a name')
    m.push(m.constructors.new(values[0], tuple(values[1:])))


@_opcode(b'b')
def _build(m: Machine) -> None:
    state = m.pop()
    m.push(m.constructors.build(m.pop(), state))


@_opcode(b'Q')
def _binpersid(m: Machine) -> None:
    m.push(m.constructors.persistent(m.pop()))


# The frame of the pickle.


@_opcode(b'\x80')
def _proto(m: Machine) -> None:
    version = m.number(1)
    if version > 5:
        raise Damaged(f'a pickle says that it has protocol {version}; there are 0 to 5')


@_opcode(b'\x95')
def _frame(m: Machine) -> None:
    size = m.number(8)
    if size > m.end - m.position:
        raise Damaged(f'a pickle announces {size} bytes where {m.end - m.position} are left')
