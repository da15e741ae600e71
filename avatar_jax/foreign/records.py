"""Inert stand-ins for what a pickle builds: containers, objects, arrays and tensors that are not loaded yet."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from avatar_jax.foreign.limits import Budget, Damaged, Refused, shape_size, shown
from avatar_jax.foreign.pickle_values import Blob, Global, Value


class InertDict(dict):
    """A dictionary of some class (``cls``), with the attributes (``state``) that the file gives it."""

    __slots__ = ('cls', 'state')

    def __init__(self, cls: str):
        super().__init__()
        self.cls, self.state = cls, None


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that is not loaded: what the file stores about it.

    Attributes:
        cls: the class; ``module.name``, for persistent objects the name alone.
        state: its attributes.
        items: its items, if it is a dictionary.
        persistent: it was stored together with the source text of its class (which is dropped unread).
    """

    cls: str
    state: Any = None
    items: dict = field(default_factory=dict)
    persistent: bool = False


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers of a torch file. ``data`` is set when they have been found; ``count`` are elements of ``dtype``."""

    dtype: np.dtype
    count: int
    data: np.ndarray | None = None


@dataclass(eq=False, slots=True)
class TensorRef:
    """A tensor of a torch file: a view of a storage, offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


@dataclass(eq=False, slots=True)
class DtypeRef:
    """A numpy dtype, e.g. ``f8``, and its byte order."""

    code: str
    order: str | None = None

    def dtype(self) -> np.dtype:
        return np.dtype((self.order or '=').replace('|', '=') + self.code)


@dataclass(eq=False, slots=True)
class ArrayRef:
    """A numpy array in the making."""

    state: tuple | None = None


STORAGES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
    'ComplexFloatStorage': np.complex64,
    'ComplexDoubleStorage': np.complex128,
    'UntypedStorage': np.uint8,
}
TORCH_DTYPES = {
    'float32': np.float32,
    'float64': np.float64,
    'float16': np.float16,
    'bfloat16': ml_dtypes.bfloat16,
    'int64': np.int64,
    'int32': np.int32,
    'int16': np.int16,
    'int8': np.int8,
    'uint8': np.uint8,
    'uint16': np.uint16,
    'uint32': np.uint32,
    'uint64': np.uint64,
    'bool': np.bool_,
    'complex64': np.complex64,
    'complex128': np.complex128,
    'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
    'float8_e5m2': ml_dtypes.float8_e5m2,
}
_CODE = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,6}|O[48]?')


def raw_bytes(value: Value, what: str) -> memoryview:
    """The bytes behind a byte string of either Python."""
    if type(value) is Blob:
        return value.data
    if type(value) is bytes:
        return memoryview(value)
    if type(value) is str:  # short byte strings of Python 2 have become texts
        try:
            return memoryview(value.encode('latin-1'))
        except UnicodeEncodeError as error:
            raise Damaged(f'{what} is not made of bytes') from error
    raise Damaged(f'{what} is not made of bytes')


def numpy_dtype(code: str) -> DtypeRef:
    """A dtype by its code without byte order.

    Raises:
        Refused: it has fields, or is a date, or has a precision that differs between machines.
    """
    if not _CODE.fullmatch(code):
        raise Refused(f'holds an array of the type {shown(repr(code), 40)}, which is not read')
    return DtypeRef('O' if code[0] == 'O' else code)


def array_from_bytes(
    raw: memoryview, dtype: DtypeRef, shape: tuple[int, ...], fortran: bool, budget: Budget, what: str = 'a numpy array'
) -> np.ndarray:
    """A read-only array over bytes of a file, in the machine's byte order.

    Raises:
        Damaged: number of bytes and shape disagree, or they are no values of that type.
        Refused: it would take too much memory.
    """
    kind = dtype.dtype()
    size = shape_size(shape, what)
    if size * kind.itemsize != len(raw):
        raise Damaged(f'{what} of shape {tuple(shape)} needs {size * kind.itemsize} bytes, but has {len(raw)}')
    if not len(raw):
        return np.zeros(shape, kind.newbyteorder('='))
    flat = np.frombuffer(raw, kind)
    if not kind.isnative:
        budget.allocate(len(raw), what)
        flat = flat.astype(kind.newbyteorder('='))
    check_values(flat, what)
    flat.flags.writeable = False
    return flat.reshape(shape, order='F' if fortran else 'C')


def check_values(flat: np.ndarray, what: str) -> None:
    """Refuses bit patterns that are no values of the type: truth values above one, characters that do not exist.

    Raises:
        Damaged: there are such.
    """
    if flat.dtype == np.bool_ and flat.size and flat.view(np.uint8).max() > 1:
        raise Damaged(f'{what} of truth values holds other numbers')
    if flat.dtype.kind == 'U' and flat.size and flat.dtype.itemsize:
        codes = flat.view(np.uint32)
        if codes.max() > 0x10FFFF or ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise Damaged(f'{what} of texts holds characters that do not exist')


def storage_dtype(what: Value) -> np.dtype:
    """Element type of a storage class.

    Raises:
        Damaged: it is not a storage class.
    """
    if (
        type(what) is not Global
        or what.module not in ('torch', 'torch.storage', 'torch.cuda')
        or what.name not in STORAGES
    ):
        raise Damaged('stores numbers of an unknown kind')
    return np.dtype(STORAGES[what.name])
