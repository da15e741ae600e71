"""The instructions of the pickle format, one function each; ``pickle_reader`` carries them out.

An instruction takes the machine, reads what follows it in the program and works on the stack. None of them imports,
calls or recurses; instructions that are not here are refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from avatar_jax.foreign.limits import MAX_TEXT, Damaged, Refused, shown
from avatar_jax.foreign.pickle_machine import Machine
from avatar_jax.foreign.pickle_values import MARK, SMALL, Blob, Global, check_key

STOP = ord('.')
INSTRUCTIONS: list[Callable[[Machine], None] | None] = [None] * 256
"""By code; the end of the program, ``STOP``, is left to the machine."""

_MAX_INTEGER = 64  # bytes; the largest that occur are the 10 bytes of torch's magic number


def _opcode(code: bytes) -> Callable:
    def register(function: Callable) -> Callable:
        INSTRUCTIONS[code[0]] = function
        return function

    return register


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
    m.push(MARK)


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
