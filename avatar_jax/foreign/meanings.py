"""What the names that a pickle may call mean: for each a function that makes a plain value out of plain values.

None of them has anything to do with the thing of that name but the values that it takes. Arguments of another number,
type or range than the writers of such files produce are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from avatar_jax.foreign.limits import Budget, Damaged, Refused, is_count, shape_size, shown
from avatar_jax.foreign.pickle_values import SMALL, Blob, Global, Value, check_key
from avatar_jax.foreign.records import (
    TORCH_DTYPES,
    ArrayRef,
    DtypeRef,
    Record,
    Storage,
    TensorRef,
    array_from_bytes,
    numpy_dtype,
    raw_bytes,
)

TENSOR_CLASSES = ('torch.Tensor', 'torch.nn.parameter.Parameter', 'torch.nn.parameter.Buffer')
_STORAGE_WORK = 200  # what reading a stored tensor costs, in pickle instructions


class Maker(Protocol):
    """What the functions here need of ``constructors.Inert``.

    Attributes:
        budget: pays for what is allocated.
        load_storage: reads the numbers of a tensor that a pickle holds as a torch file of its own; None: none can be.
        loaded: identity of a byte string -> it and its storage: once each, and shared.
    """

    budget: Budget
    load_storage: Callable[[memoryview], Storage] | None
    loaded: dict[int, tuple[Any, Storage]]

    def call(self, what: Global, arguments: tuple) -> Value: ...

    def new(self, what: Global, arguments: tuple) -> Value: ...

    def dictionary(self, cls: Global, arguments: tuple) -> Value: ...


# Plain Python.


def _reconstructor(self: Maker, cls: Any, base: Any, state: Any) -> Any:
    if type(cls) is not Global or type(base) is not Global:
        raise Damaged('rebuilds an object of something that is not a class')
    if str(base) == 'builtins.object' and state is None:
        return self.new(cls, ())
    if str(base) == 'builtins.dict' and isinstance(state, dict):
        return self.dictionary(cls, (state,))
    raise Refused(f'rebuilds {cls} from {base}')


def _set(self: Maker, values: Any = None) -> set:
    if values is not None and type(values) not in (list, tuple):
        raise Damaged('makes a set of something that is not a list')
    self.budget.work(len(values or ()))
    return {check_key(v) for v in values or ()}


def _encode(self: Maker, text: Any, encoding: Any) -> bytes | Blob:
    """How Python 3 writes bytes for Python 2."""
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise Refused('calls _codecs.encode with unusual arguments')
    self.budget.allocate(len(text), 'the byte strings in it')
    raw = bytes(raw_bytes(text, 'a byte string in a pickle'))
    return raw if len(raw) <= SMALL else Blob(memoryview(raw))


def _bytes(self: Maker) -> bytes:
    return b''


def _bytearray(self: Maker, value: Any = b'', encoding: Any = None) -> bytes | Blob:
    if type(value) is str:
        return _encode(self, value, encoding)
    if type(value) not in (bytes, Blob) or encoding is not None:
        raise Refused('makes a byte array of something that is not bytes')
    return value


def _complex(self: Maker, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise Damaged('makes a complex number of something that is not a number')
    return complex(real, imaginary)


def _path(self: Maker, *parts: Any) -> str:
    if not all(type(part) is str for part in parts) or len(parts) > 64:
        raise Damaged('makes a path of something that is not a text')
    self.budget.allocate(8 * sum(map(len, parts)), 'the texts in it')
    return '/'.join(parts).replace('//', '/')


def _persistent_object(self: Maker, meta: Any) -> Record:
    """A module with its source text, which is left where it is."""
    if not isinstance(meta, dict) or meta.get('type') != 'class':
        raise Damaged('a persistent object of the network file is not a class')
    version, name, state = meta.get('version'), meta.get('class_name'), meta.get('state')
    if type(version) is not int or not 1 <= version <= 6:
        raise Refused(f'persistent objects have version {shown(repr(version), 20)}; this reader knows up to 6')
    if type(name) is not str or not name.isidentifier() or len(name) > 200 or not isinstance(state, dict):
        raise Damaged('a persistent object of the network file lacks its class name or its state')
    return Record(name, state=state, persistent=True)


# numpy.


def _dtype(self: Maker, code: Any, align: Any = False, copy: Any = True) -> DtypeRef:
    if type(code) is not str or align not in (False, True) or copy not in (False, True):
        raise Refused('calls numpy.dtype with unusual arguments')
    return numpy_dtype(code)


def set_dtype_state(value: DtypeRef, state: Value) -> None:
    if value.order is not None or type(state) is not tuple or len(state) not in (8, 9) or state[1] not in list('<>|='):
        raise Damaged('a numpy dtype has an impossible state')
    if state[2:5] != (None, None, None) or (len(state) == 9 and state[8]):
        raise Refused('holds an array with fields or of arrays, which is not read')
    if type(state[5]) is int and state[5] > 0 and value.code[0] in 'SU' and state[5] != value.dtype().itemsize:
        raise Damaged('a numpy dtype has an impossible state')
    value.order = state[1]


def _array(self: Maker, cls: Any, shape: Any, code: Any) -> ArrayRef:
    if cls != Global('numpy', 'ndarray') or shape != (0,) or code not in (b'b', 'b'):
        raise Refused('rebuilds a numpy array in an unusual way')
    return ArrayRef()


def array_state(state: Value) -> tuple:
    if type(state) is not tuple or len(state) != 5 or state[0] not in (0, 1) or type(state[2]) is not DtypeRef:
        raise Damaged('a numpy array has an impossible state')
    shape_size(state[1], 'a numpy array')
    if type(state[1]) is not tuple or state[3] not in (False, True):
        raise Damaged('a numpy array has an impossible state')
    return state[1:]


def _frombuffer(self: Maker, raw: Any, dtype: Any, shape: Any, order: Any) -> ArrayRef:
    if order not in ('C', 'F'):
        raise Damaged('a numpy array has an impossible order')
    return ArrayRef(array_state((1, shape, dtype, order == 'F', raw)))


def _scalar(self: Maker, dtype: Any, raw: Any) -> np.generic:
    if type(dtype) is not DtypeRef or dtype.code == 'O':
        raise Refused('holds a numpy number of an unusual type')
    raw = raw_bytes(raw, 'a numpy number')
    self.budget.allocate(len(raw), 'the numbers in it')
    return array_from_bytes(raw, dtype, (), False, self.budget, 'a numpy number')[()]


# torch.


def _load_from_bytes(self: Maker, raw: Any) -> Storage:
    if self.load_storage is None or type(raw) not in (bytes, Blob):
        raise Refused('holds a torch file where none can be')
    self.budget.work(_STORAGE_WORK)
    if id(raw) not in self.loaded:
        self.loaded[id(raw)] = (raw, self.load_storage(raw_bytes(raw, 'a tensor')))
    return self.loaded[id(raw)][1]


def _tensor(
    self: Maker,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> TensorRef:
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise Damaged('a tensor lacks its numbers, its shape or its strides')
    shape_size(shape, 'a tensor')
    if not is_count(offset) or len(strides) != len(shape) or not all(is_count(s) for s in strides):
        raise Damaged('a tensor has an impossible offset or impossible strides')
    if type(requires_grad) is not bool or (hooks is not None and not isinstance(hooks, dict)):
        raise Damaged('a tensor has impossible attributes')
    if metadata is not None and (not isinstance(metadata, dict) or len(metadata) > 8 or any(metadata.values())):
        raise Refused('holds a tensor that is stored conjugated or negated; save it resolved')
    return TensorRef(storage, offset, shape, strides, storage.dtype)


def _tensor_v3(
    self: Maker,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorRef:
    if type(dtype) is not Global or dtype.module != 'torch' or dtype.name not in TORCH_DTYPES:
        raise Damaged('a tensor has an unknown type')
    made = _tensor(self, storage, offset, shape, strides, requires_grad, hooks, metadata)
    made.dtype = np.dtype(TORCH_DTYPES[dtype.name])
    return made


def _parameter(self: Maker, data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> TensorRef:
    if type(data) is not TensorRef or type(requires_grad) is not bool or not isinstance(hooks, dict):
        raise Damaged('a parameter lacks its tensor')
    return data


def _from_type(self: Maker, function: Any, cls: Any, arguments: Any, state: Any) -> TensorRef:
    if type(function) is not Global or function.module != 'torch._utils' or type(arguments) is not tuple:
        raise Refused('rebuilds a tensor in an unusual way')
    if type(cls) is not Global or str(cls) not in TENSOR_CLASSES:
        raise Refused('rebuilds a tensor of an unusual class')
    return self.call(function, arguments)


def _size(self: Maker, shape: Any) -> tuple:
    shape_size(shape, 'a torch.Size')
    return tuple(shape)


def _device(self: Maker, kind: Any, index: Any = None) -> str:
    if type(kind) is not str or len(kind) > 64 or not (index is None or is_count(index)):
        raise Damaged('names an impossible device')
    return kind if index is None else f'{kind}:{index}'


TABLE: tuple[tuple[str, Callable, int, int], ...] = (
    ('copyreg._reconstructor', _reconstructor, 3, 3),
    ('builtins.set', _set, 0, 1),
    ('builtins.frozenset', _set, 0, 1),
    ('builtins.bytes', _bytes, 0, 0),
    ('builtins.bytearray', _bytearray, 0, 2),
    ('builtins.complex', _complex, 2, 2),
    ('_codecs.encode', _encode, 2, 2),
    ('pathlib.PosixPath', _path, 0, 64),
    ('pathlib.PurePosixPath', _path, 0, 64),
    ('pathlib.WindowsPath', _path, 0, 64),
    ('pathlib._local.PosixPath', _path, 0, 64),
    ('numpy.dtype', _dtype, 1, 3),
    ('numpy._core.multiarray._reconstruct', _array, 3, 3),
    ('numpy._core.multiarray.scalar', _scalar, 2, 2),
    ('numpy._core.numeric._frombuffer', _frombuffer, 4, 4),
    ('torch._utils._rebuild_tensor', _tensor, 4, 4),
    ('torch._utils._rebuild_tensor_v2', _tensor, 6, 7),
    ('torch._utils._rebuild_tensor_v3', _tensor_v3, 7, 8),
    ('torch._utils._rebuild_parameter', _parameter, 3, 3),
    ('torch._utils._rebuild_parameter_with_state', _parameter, 4, 4),
    ('torch._tensor._rebuild_from_type_v2', _from_type, 4, 4),
    ('torch.storage._load_from_bytes', _load_from_bytes, 1, 1),
    ('torch.Size', _size, 1, 1),
    ('torch.device', _device, 1, 2),
    ('torch_utils.persistence._reconstruct_persistent_obj', _persistent_object, 1, 1),
)
"""Name, meaning, fewest and most arguments."""
