"""Writes files in the layouts that other programs write, from numpy arrays alone.

The pickles are written by Python's own pickler, which is told to write names, calls and tensors of other libraries
where stand-ins of this module occur.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGE_NAMES = {
    np.dtype(np.float32): 'FloatStorage',
    np.dtype(np.float64): 'DoubleStorage',
    np.dtype(np.float16): 'HalfStorage',
    np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
    np.dtype(np.int64): 'LongStorage',
    np.dtype(np.int32): 'IntStorage',
    np.dtype(np.int16): 'ShortStorage',
    np.dtype(np.int8): 'CharStorage',
    np.dtype(np.uint8): 'ByteStorage',
    np.dtype(np.bool_): 'BoolStorage',
    np.dtype(np.complex64): 'ComplexFloatStorage',
}


@dataclass(frozen=True)
class Name:
    """A global name."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """``what(*arguments)``, then a state."""

    what: Any
    arguments: tuple
    state: Any = None
    items: dict | None = None


@dataclass(eq=False)
class New:
    """An object made without calling its class's initialiser (protocol 2 and later), then items and a state."""

    what: Any
    state: Any = None
    items: dict | None = None
    arguments: tuple = ()


@dataclass(eq=False)
class Py2:
    """A byte string of Python 2."""

    raw: bytes


@dataclass(eq=False)
class Storage:
    """Numbers that tensors refer to."""

    data: np.ndarray
    key: str = ''
    location: str = 'cpu'
    view: tuple | None = None


@dataclass(eq=False)
class Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int = 0
    shape: tuple | None = None
    strides: tuple | None = None
    parameter: bool = False

    @property
    def layout(self) -> tuple[int, tuple, tuple]:
        shape = self.storage.data.shape if self.shape is None else self.shape
        strides = self.strides
        if strides is None:
            strides = tuple(int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape)))
        return self.offset, tuple(shape), tuple(strides)


def tensor(array: np.ndarray, parameter: bool = False) -> Tensor:
    """A contiguous tensor of its own."""
    return Tensor(Storage(np.ascontiguousarray(array)), 0, np.shape(array), parameter=parameter)


ORDERED = Name('collections', 'OrderedDict')


def ordered(items: dict | None = None) -> Call:
    """An ``OrderedDict``."""
    return Call(ORDERED, (), items=items or None)


@dataclass
class Options:
    """How a pickle is written."""

    protocol: int = 2
    outside: bool = False  # numbers of tensors are stored outside of the pickle
    numpy_core: str = 'numpy.core'
    legacy_pid: bool = False
    order: list[Storage] = field(default_factory=list)
    keys: dict[int, str] = field(default_factory=dict)


class Writer(pickle._Pickler):
    """Python's pickler with the stand-ins."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO, options: Options):
        super().__init__(file, options.protocol)
        self.options = options
        self.known: dict[Name, Name] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage) or not self.options.outside:
            return None
        if all(obj is not known for known in self.options.order):
            self.options.keys[id(obj)] = obj.key or str(len(self.options.order))
            self.options.order.append(obj)
        kind = self.name('torch', STORAGE_NAMES[obj.data.dtype])
        pid = ('storage', kind, self.options.keys[id(obj)], obj.location, obj.data.size)
        return (*pid, obj.view) if self.options.legacy_pid else pid

    def name(self, module: str, name: str) -> Name:
        return self.known.setdefault(Name(module, name), Name(module, name))

    def save_name(self, obj: Name) -> None:
        kept = self.name(obj.module, obj.name)
        if id(kept) in self.memo:
            self.write(self.get(self.memo[id(kept)][0]))
            return
        if self.proto >= 4:
            self.save(kept.module)
            self.save(kept.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f'{kept.module}\n{kept.name}\n'.encode())
        self.memoize(kept)

    def fill(self, obj: Call | New) -> None:
        self.memoize(obj)
        if obj.items:
            self._batch_setitems(obj.items.items())
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    def save_call(self, obj: Call) -> None:
        self.save(obj.what)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)
        self.fill(obj)

    def save_new(self, obj: New) -> None:
        if self.proto < 2:  # what old-style pickles call instead
            self.save_call(Call(Name('copy_reg', '_reconstructor'), (obj.what, Name('__builtin__', 'object'), None)))
        else:
            self.save(obj.what)
            self.save(obj.arguments)
            self.write(pickle.NEWOBJ)
        self.fill(obj)

    def save_py2(self, obj: Py2) -> None:
        if self.proto == 0:
            self.write(b'S' + repr(obj.raw)[1:].encode() + b'\n')
        elif len(obj.raw) < 256:
            self.write(b'U' + bytes([len(obj.raw)]) + obj.raw)
        else:
            self.write(b'T' + struct.pack('<i', len(obj.raw)) + obj.raw)
        self.memoize(obj)

    def save_tensor(self, obj: Tensor) -> None:
        storage = obj.storage
        if not self.options.outside:
            storage = Call(Name('torch.storage', '_load_from_bytes'), (stream(storage),))
        made = Call(Name('torch._utils', '_rebuild_tensor_v2'), (storage, *obj.layout, obj.parameter, ordered()))
        if obj.parameter:
            made = Call(Name('torch._utils', '_rebuild_parameter'), (made, True, ordered()))
        self.save(made)

    def save_array(self, obj: np.ndarray) -> None:
        self.save(array(obj, self.options.numpy_core))

    dispatch[Name] = save_name
    dispatch[Call] = save_call
    dispatch[New] = save_new
    dispatch[Py2] = save_py2
    dispatch[Tensor] = save_tensor


def pickled(value: Any, options: Options | None = None) -> bytes:
    """A pickle of a value with stand-ins."""
    file = io.BytesIO()
    Writer(file, options or Options()).dump(value)
    return file.getvalue()


def dtype(kind: np.dtype) -> Call:
    """A numpy dtype as pickles hold it."""
    order = '|' if kind.itemsize == 1 else '>' if kind.byteorder == '>' else '<'
    state = (3, order, None, None, None, -1, -1, 0)
    return Call(Name('numpy', 'dtype'), (kind.str[1:], False, True), state)


def array(value: np.ndarray, core: str = 'numpy.core', py2: bool = False) -> Call:
    """A numpy array as pickles hold it; ``py2``: as Python 2 wrote it."""
    value = np.asarray(value)
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    raw = value.tobytes('F' if fortran else 'C')
    text = (lambda b: Py2(b)) if py2 else (lambda b: b)
    state = (1, value.shape, dtype(value.dtype), fortran, text(raw))
    what = Name(f'{core}.multiarray', '_reconstruct')
    return Call(what, (Name('numpy', 'ndarray'), (0,), text(b'b')), state)


# torch's containers.


def stream(value: Any, protocol: int = 2, storages: list[Storage] | None = None, views: bool = False) -> bytes:
    """torch's older format: a value whose tensors are stored behind the pickles.

    ``views``: the storages refer to parts of those in ``storages``, which are what is stored.
    """
    options = Options(protocol, outside=True, legacy_pid=True)
    system = {'protocol_version': PROTOCOL, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
    head = b''.join(pickle.dumps(v, protocol) for v in (MAGIC, PROTOCOL, system))
    body = pickled(value, options)
    kept = {s.key: s for s in storages} if views else {options.keys[id(s)]: s for s in options.order}
    parts = [head, body, pickle.dumps(sorted(kept), protocol)]
    for key in sorted(kept):
        parts += [struct.pack('<q', kept[key].data.size), kept[key].data.tobytes()]
    return b''.join(parts)


def torch_zip(
    value: Any,
    *,
    name: str = 'archive',
    protocol: int = 2,
    big_endian: bool = False,
    byteorder: bool = True,
    descriptors: bool = True,
    wide: bool = True,
) -> bytes:
    """torch's zip archive: sizes behind each member and 64-bit tables as torch writes them, numbers aligned."""
    options = Options(protocol, outside=True)
    members = [('data.pkl', pickled(value, options))]
    if byteorder:
        members.append(('byteorder', b'big' if big_endian else b'little'))
    for storage in options.order:
        data = storage.data
        members.append((f'data/{options.keys[id(storage)]}', (data.byteswap() if big_endian else data).tobytes()))
    members += [('version', b'3\n'), ('.data/serialization_id', b'0' * 40)]
    return zip_archive([(f'{name}/{n}', c) for n, c in members], descriptors=descriptors, wide=wide, align=64)


@dataclass
class Packed:
    """Bytes that are deflated already, and what they inflate to."""

    raw: bytes
    size: int
    crc: int = 0


def deflated_zeros(megabytes: int, head: bytes = b'') -> Packed:
    """A few bytes and then many zeros in little space, without making them: one deflated piece, repeated."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = machine.compress(head) + machine.flush(zlib.Z_FULL_FLUSH)
    piece = machine.compress(bytes(1 << 20)) + machine.flush(zlib.Z_FULL_FLUSH)
    return Packed(start + piece * megabytes + machine.flush(), len(head) + (megabytes << 20))


def zip_archive(
    members: list[tuple[str, bytes | Packed]],
    *,
    descriptors: bool = False,
    wide: bool = False,
    align: int = 0,
    deflate: bool = False,
) -> bytes:
    """A zip archive, laid out by hand so that every field can be chosen."""
    out, table = bytearray(), bytearray()
    for name, content in members:
        raw = name.encode()
        if isinstance(content, Packed):
            packed, size, crc = content.raw, content.size, content.crc
        else:
            packed, size, crc = content, len(content), zlib.crc32(content)
            if deflate:
                machine = zlib.compressobj(9, zlib.DEFLATED, -15)
                packed = machine.compress(content) + machine.flush()
        flags = 0x0800 | (8 if descriptors else 0)
        method = 8 if deflate else 0
        at = len(out)
        padding = b''
        if align:
            missing = -(at + 30 + len(raw) + 4) % align
            padding = b'FB' + struct.pack('<H', missing) + b'Z' * missing
        numbers = (0, 0, 0) if descriptors else (crc, len(packed), size)
        out += struct.pack('<4sHHHHHIIIHH', b'PK\3\4', 0, flags, method, 0, 0, *numbers, len(raw), len(padding))
        out += raw + padding + packed
        if descriptors:
            out += struct.pack('<4sIII', b'PK\7\10', crc, len(packed), size)
        extra, sizes, place = b'', (len(packed), size), at
        if wide:
            extra = struct.pack('<HHQQQ', 1, 24, size, len(packed), at)
            sizes, place = (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF
        entry = (b'PK\1\2', 0, 0, flags, method, 0, 0, crc, *sizes, len(raw), len(extra), 0, 0, 0, 0, place)
        table += struct.pack('<4sHHHHHHIIIHHHHHII', *entry) + raw + extra
    start, size, number = len(out), len(table), len(members)
    out += table
    if wide:
        end = len(out)
        out += struct.pack('<4sQHHIIQQQQ', b'PK\6\6', 44, 45, 45, 0, 0, number, number, size, start)
        out += struct.pack('<4sIQI', b'PK\6\7', 0, end, 1)
        out += struct.pack('<4sHHHHIIH', b'PK\5\6', 0, 0, number, number, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    else:
        out += struct.pack('<4sHHHHIIH', b'PK\5\6', 0, 0, number, number, size, start, 0)
    return bytes(out)


# Network pickles.

PERSISTENT = Name('torch_utils.persistence', '_reconstruct_persistent_obj')
_HOOKS = ('_backward_hooks', '_forward_hooks', '_forward_pre_hooks', '_state_dict_hooks', '_load_state_dict_pre_hooks')


def module_state(
    parameters: dict[str, np.ndarray | None] | None = None,
    buffers: dict[str, np.ndarray | None] | None = None,
    modules: dict[str, Any] | None = None,
    temporary: tuple[str, ...] = (),
    **attributes: Any,
) -> dict[str, Any]:
    """Attributes of a module, as its framework stores them."""

    def wrap(values: dict | None, parameter: bool) -> Call:
        return ordered({k: None if v is None else tensor(v, parameter) for k, v in (values or {}).items()})

    return {
        'training': False,
        '_parameters': wrap(parameters, True),
        '_buffers': wrap(buffers, False),
        '_non_persistent_buffers_set': set(temporary),
        **{hook: ordered() for hook in _HOOKS},
        '_is_full_backward_hook': None,
        '_modules': ordered(modules),
        **attributes,
    }


def persistent(class_name: str, state: dict[str, Any], source: str = 'raise SystemExit("was run")\n') -> Call:
    """A module stored with its source text."""
    meta = {'type': 'class', 'version': 6, 'module_src': source, 'class_name': class_name, 'state': state}
    return Call(PERSISTENT, (meta,))


def nested_modules(tensors: dict[str, np.ndarray], buffers: tuple[str, ...] = (), **attributes: Any) -> Call:
    """A persistent module tree for a flat state dict; the leaves named in ``buffers`` are buffers."""
    own = {k: v for k, v in tensors.items() if '.' not in k}
    children: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        first, _, rest = key.partition('.')
        if rest:
            children.setdefault(first, {})[rest] = value
    state = module_state(
        {k: v for k, v in own.items() if k not in buffers},
        {k: v for k, v in own.items() if k in buffers},
        {name: nested_modules(part, buffers) for name, part in children.items()},
        **attributes,
    )
    return persistent('Module', state)


# Others.


def safetensors(tensors: dict[str, np.ndarray], metadata: dict | None = None) -> bytes:
    """A ``.safetensors`` file."""
    names = {'float32': 'F32', 'float64': 'F64', 'float16': 'F16', 'int64': 'I64', 'bool': 'BOOL', 'bfloat16': 'BF16'}
    names |= {
        'uint8': 'U8',
        'float8_e4m3fn': 'F8_E4M3',
        'int32': 'I32',
        'int16': 'I16',
        'int8': 'I8',
        'complex64': 'C64',
        'uint64': 'U64',
    }
    table: dict[str, Any] = {'__metadata__': metadata} if metadata else {}
    position, parts = 0, []
    for name, value in tensors.items():
        raw = np.ascontiguousarray(value).tobytes()
        code = names[value.dtype.name]
        table[name] = {'dtype': code, 'shape': list(value.shape), 'data_offsets': [position, position + len(raw)]}
        position += len(raw)
        parts.append(raw)
    header = json.dumps(table).encode()
    header += b' ' * (-len(header) % 8)
    return struct.pack('<Q', len(header)) + header + b''.join(parts)


def npy(value: np.ndarray, allow_pickle: bool = False) -> bytes:
    """A ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, value, allow_pickle=allow_pickle)
    return file.getvalue()


def mat_file(*elements: bytes) -> bytes:
    """A MATLAB file of version 5."""
    return b'MATLAB 5.0 MAT-file'.ljust(124) + struct.pack('<H', 0x0100) + b'IM' + b''.join(elements)


def mat_part(kind: int, raw: bytes, size: int | None = None) -> bytes:
    """One element of a MATLAB file; ``size`` is what it announces."""
    return struct.pack('<II', kind, len(raw) if size is None else size) + raw + b'\0' * (-len(raw) % 8)


def mat_matrix(name: bytes, shape: tuple[int, ...], kind: int, content: bytes, bits: int = 0) -> bytes:
    """A matrix element; ``content`` are the elements of its numbers or cells."""
    sides = struct.pack(f'<{len(shape)}i', *shape)
    flags = struct.pack('<II', kind | bits << 8, 0)
    return mat_part(14, mat_part(6, flags) + mat_part(5, sides) + mat_part(1, name) + content)


def mat_array(name: str, value: np.ndarray) -> bytes:
    """A matrix element of doubles or singles."""
    double = value.dtype == np.float64
    return mat_matrix(name.encode(), value.shape, 6 if double else 7, mat_part(9 if double else 7, value.tobytes('F')))


def mat_compressed(raw: bytes) -> bytes:
    """An element compressed as a whole."""
    packed = zlib.compress(raw)
    return struct.pack('<II', 15, len(packed)) + packed


def write(folder: Path, name: str, content: bytes) -> Path:
    """Puts bytes into a file."""
    path = folder / name
    path.write_bytes(content)
    return path
