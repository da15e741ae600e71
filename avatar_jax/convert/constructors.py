"""The names that may occur in files of weights, and what each of them means here.

Nothing is imported and nothing is called: every entry of the lists below is an entry of our own code that makes a plain
value out of plain values. The lists are complete; a name that is not in them is refused. The one exception are network
files in which each module carries its own source text ("persistent" objects): the classes of their other modules may
have any name outside of Python's own library, are never called, and become ``Record`` objects.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from avatar_jax.convert.limits import Budget, Damaged, Refused, is_count, shape_size, shown
from avatar_jax.convert.pickle_reader import SMALL, Blob, Global, check_key


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
_TORCH_DTYPES = {
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

_DICTIONARIES = {
    'collections.OrderedDict',
    'collections.defaultdict',
    'collections.Counter',
    'dnnlib.util.EasyDict',
    'easydict.EasyDict',
    'munch.Munch',
    'yacs.config.CfgNode',
    'argparse.Namespace',
    'types.SimpleNamespace',
    'pytorch_lightning.utilities.parsing.AttributeDict',
    'lightning.pytorch.utilities.parsing.AttributeDict',
    'lightning_fabric.utilities.data.AttributeDict',
    'lightning.fabric.utilities.data.AttributeDict',
}
ATTRIBUTES_ARE_ITEMS = {'argparse.Namespace', 'types.SimpleNamespace'}
"""Classes whose content is their attributes."""

SPARSE = {
    f'scipy.sparse.{module}.{form}_{kind}': form
    for form in ('csc', 'csr', 'coo')
    for module in (form, f'_{form}')
    for kind in ('matrix', 'array')
}
CHUMPY = {'chumpy.ch.Ch'}
OPAQUE = {
    'omegaconf.dictconfig.DictConfig',
    'omegaconf.listconfig.ListConfig',
    'omegaconf.base.ContainerMetadata',
    'omegaconf.base.Metadata',
    *(f'omegaconf.nodes.{kind}Node' for kind in ('Any', 'String', 'Integer', 'Float', 'Boolean', 'Bytes', 'Path')),
}
"""Objects of training programs, of which only the name is kept."""

_REFERENCES = {
    'numpy.ndarray',
    'torch.Tensor',
    'torch.nn.parameter.Parameter',
    'torch.nn.parameter.Buffer',
    'typing.Any',
    *(f'builtins.{n}' for n in ('object', 'int', 'float', 'bool', 'str', 'bytes', 'list', 'tuple', 'dict', 'set')),
    *(f'pytorch_lightning.callbacks.{n}' for n in ('model_checkpoint.ModelCheckpoint', 'early_stopping.EarlyStopping')),
    *(f'torch.{n}' for n in STORAGES),
    *(f'torch.cuda.{n}' for n in STORAGES),
    'torch.storage.UntypedStorage',
    *(f'torch.{n}' for n in _TORCH_DTYPES),
}
"""Names that may be mentioned, but not called."""

_STORAGE_WORK = 200  # what reading a stored tensor costs, in pickle instructions
_PERSISTENCE = re.compile(r'(?:\w+\.)*torch_utils\.persistence\._reconstruct_persistent_obj')
# Parts of Python itself under the names that they had in Python 2, and libraries of which every name is known here.
_NEVER_PLACEHOLDERS = frozenset(sys.stdlib_module_names) | {
    *('__builtin__', 'copy_reg', 'commands', 'cPickle', 'cStringIO', 'StringIO', 'UserDict', 'exceptions', 'popen2'),
    *('urllib2', 'httplib', 'SocketServer', 'Queue', 'thread', 'new', 'imp', 'distutils', 'asyncore', 'pip'),
    *('setuptools', 'pkg_resources', 'numpy', 'scipy', 'jax', 'jaxlib', 'avatar_jax', 'torch', 'joblib', 'dill'),
    *('cloudpickle', 'pytest', 'IPython', 'six'),
}
_OLD_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}


def _canonical(module: str, name: str) -> Global:
    if module == 'numpy.core' or module.startswith('numpy.core.'):
        module = 'numpy._core' + module.removeprefix('numpy.core')
    return Global(_OLD_MODULES.get(module, module), name)


class Inert:
    """The constructors of weight files.

    Args:
        budget: pays for arrays that cannot be views of the file.
        load_storage: reads the numbers of a tensor that a pickle holds as a torch file of its own.

    Attributes:
        persistence: whether the pickle has persistent objects.
    """

    def __init__(self, budget: Budget, load_storage: Callable[[memoryview], Storage] | None = None):
        self.budget = budget
        self.load_storage = load_storage
        self.persistence = False
        self._loaded: dict[int, tuple[Any, Storage]] = {}  # byte string -> its storage: once each, and shared

    # The interface of the machine.

    def refer(self, module: str, name: str) -> Global:
        what = _canonical(module, name)
        full = str(what)
        if _PERSISTENCE.fullmatch(full):
            self.persistence = True
            return Global('torch_utils.persistence', '_reconstruct_persistent_obj')
        if full in _CALLS or full in _DICTIONARIES or full in SPARSE or full in CHUMPY or full in OPAQUE:
            return what
        if full in _REFERENCES or self._placeholder(what):
            return what
        raise Refused(f'refers to {module}.{name}, which is not among the names that files of weights may hold')

    def _placeholder(self, what: Global) -> bool:
        """Whether a name that is in no list may be the class of a module in a network file."""
        if not self.persistence:
            return False
        return what.module.startswith('torch.nn.') or what.module.split('.')[0] not in _NEVER_PLACEHOLDERS

    def call(self, what: Global, arguments: tuple) -> Any:
        full = str(what)
        if full in _CALLS:
            return _CALLS[full](self, *_arguments(full, arguments))
        if full in _DICTIONARIES:
            return self._dictionary(full, arguments)
        raise Refused(f'calls {what}')

    def new(self, what: Global, arguments: tuple) -> Any:
        full = str(what)
        if full in _DICTIONARIES:
            return self._dictionary(full, arguments)
        if full in SPARSE or full in CHUMPY or full in OPAQUE or (full not in _CALLS and full not in _REFERENCES):
            if arguments:
                raise Refused(f'makes {what} with arguments')
            return Record(full)
        raise Refused(f'makes an object of {what}')

    def build(self, value: Any, state: Any) -> Any:
        if isinstance(value, ArrayRef | Record | InertDict) and value.state is not None:
            raise Refused('a pickle gives an object two states')
        if type(value) is ArrayRef:
            value.state = _array_state(state)
        elif type(value) is DtypeRef:
            _set_dtype_state(value, state)
        elif type(value) is Record or type(value) is InertDict:
            value.state = self._state(state, value.cls)
        else:
            raise Refused('a pickle gives a state to something that has none')
        return value

    def items(self, value: Any) -> dict | None:
        if type(value) is InertDict:
            return value
        return value.items if type(value) is Record and not value.persistent else None

    def persistent(self, identifier: Any) -> Any:
        raise Refused('refers to data outside of the pickle')

    def _state(self, state: Any, cls: str) -> dict:
        """Attributes as a dictionary; objects with slots store a pair of them."""
        if type(state) is tuple and len(state) == 2 and all(isinstance(part, dict | None) for part in state):
            self.budget.work(sum(len(part or ()) for part in state))
            state = {**(state[0] or {}), **(state[1] or {})}
        if not isinstance(state, dict):
            raise Refused(f'gives {cls} a state that is not a dictionary')
        return state

    def _dictionary(self, full: str, arguments: tuple) -> InertDict:
        made = InertDict(full)
        if full == 'collections.defaultdict':
            arguments = _default_factory(arguments)
        if len(arguments) > 1:
            raise Damaged(f'makes {full} with {len(arguments)} arguments')
        for pairs in arguments:  # none, or one
            if not isinstance(pairs, dict | list):
                raise Damaged(f'makes {full} of something that is not a list')
            self.budget.work(len(pairs))
            if isinstance(pairs, dict):
                made.update(pairs)
                continue
            for pair in pairs:
                if type(pair) not in (list, tuple) or len(pair) != 2:
                    raise Damaged(f'makes {full} of something that is not a list of pairs')
                made[check_key(pair[0])] = pair[1]
        return made


def _default_factory(arguments: tuple) -> tuple:
    if arguments and arguments[0] is not None and type(arguments[0]) is not Global:
        raise Damaged('makes collections.defaultdict of something that is not a class')
    return arguments[1:]


def _arguments(full: str, arguments: tuple) -> tuple:
    fewest, most = _ARGUMENTS[full]
    if not fewest <= len(arguments) <= most:
        raise Damaged(f'calls {full} with {len(arguments)} arguments')
    return arguments


def raw_bytes(value: Any, what: str) -> memoryview:
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


# Plain Python.


def _reconstructor(self: Inert, cls: Any, base: Any, state: Any) -> Any:
    if type(cls) is not Global or type(base) is not Global:
        raise Damaged('rebuilds an object of something that is not a class')
    if str(base) == 'builtins.object' and state is None:
        return self.new(cls, ())
    if str(base) == 'builtins.dict' and str(cls) in _DICTIONARIES and isinstance(state, dict):
        return self._dictionary(str(cls), (state,))
    raise Refused(f'rebuilds {cls} from {base}')


def _set(self: Inert, values: Any = None) -> set:
    if values is not None and type(values) not in (list, tuple):
        raise Damaged('makes a set of something that is not a list')
    self.budget.work(len(values or ()))
    return {check_key(v) for v in values or ()}


def _encode(self: Inert, text: Any, encoding: Any) -> bytes | Blob:
    """How Python 3 writes bytes for Python 2."""
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise Refused('calls _codecs.encode with unusual arguments')
    self.budget.allocate(len(text), 'the byte strings in it')
    raw = bytes(raw_bytes(text, 'a byte string in a pickle'))
    return raw if len(raw) <= SMALL else Blob(memoryview(raw))


def _bytes(self: Inert) -> bytes:
    return b''


def _bytearray(self: Inert, value: Any = b'', encoding: Any = None) -> bytes | Blob:
    if type(value) is str:
        return _encode(self, value, encoding)
    if type(value) not in (bytes, Blob) or encoding is not None:
        raise Refused('makes a byte array of something that is not bytes')
    return value


def _complex(self: Inert, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise Damaged('makes a complex number of something that is not a number')
    return complex(real, imaginary)


def _path(self: Inert, *parts: Any) -> str:
    if not all(type(part) is str for part in parts) or len(parts) > 64:
        raise Damaged('makes a path of something that is not a text')
    self.budget.allocate(8 * sum(map(len, parts)), 'the texts in it')
    return '/'.join(parts).replace('//', '/')


def _persistent_object(self: Inert, meta: Any) -> Record:
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

_CODE = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,6}|O[48]?')


def numpy_dtype(code: str) -> DtypeRef:
    """A dtype by its code without byte order.

    Raises:
        Refused: it has fields, or is a date, or has a precision that differs between machines.
    """
    if not _CODE.fullmatch(code):
        raise Refused(f'holds an array of the type {shown(repr(code), 40)}, which is not read')
    return DtypeRef('O' if code[0] == 'O' else code)


def _dtype(self: Inert, code: Any, align: Any = False, copy: Any = True) -> DtypeRef:
    if type(code) is not str or align not in (False, True) or copy not in (False, True):
        raise Refused('calls numpy.dtype with unusual arguments')
    return numpy_dtype(code)


def _set_dtype_state(value: DtypeRef, state: Any) -> None:
    if value.order is not None or type(state) is not tuple or len(state) not in (8, 9) or state[1] not in list('<>|='):
        raise Damaged('a numpy dtype has an impossible state')
    if state[2:5] != (None, None, None) or (len(state) == 9 and state[8]):
        raise Refused('holds an array with fields or of arrays, which is not read')
    if type(state[5]) is int and state[5] > 0 and value.code[0] in 'SU' and state[5] != value.dtype().itemsize:
        raise Damaged('a numpy dtype has an impossible state')
    value.order = state[1]


def _array(self: Inert, cls: Any, shape: Any, code: Any) -> ArrayRef:
    if cls != Global('numpy', 'ndarray') or shape != (0,) or code not in (b'b', 'b'):
        raise Refused('rebuilds a numpy array in an unusual way')
    return ArrayRef()


def _array_state(state: Any) -> tuple:
    if type(state) is not tuple or len(state) != 5 or state[0] not in (0, 1) or type(state[2]) is not DtypeRef:
        raise Damaged('a numpy array has an impossible state')
    shape_size(state[1], 'a numpy array')
    if type(state[1]) is not tuple or state[3] not in (False, True):
        raise Damaged('a numpy array has an impossible state')
    return state[1:]


def _frombuffer(self: Inert, raw: Any, dtype: Any, shape: Any, order: Any) -> ArrayRef:
    if order not in ('C', 'F'):
        raise Damaged('a numpy array has an impossible order')
    return ArrayRef(_array_state((1, shape, dtype, order == 'F', raw)))


def _scalar(self: Inert, dtype: Any, raw: Any) -> np.generic:
    if type(dtype) is not DtypeRef or dtype.code == 'O':
        raise Refused('holds a numpy number of an unusual type')
    raw = raw_bytes(raw, 'a numpy number')
    self.budget.allocate(len(raw), 'the numbers in it')
    return array_from_bytes(raw, dtype, (), False, self.budget, 'a numpy number')[()]


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


# torch.


def storage_dtype(what: Any) -> np.dtype:
    """Element type of a storage class.

    Raises:
        Damaged: it is not a storage class.
    """
    if type(what) is not Global or what.module not in ('torch', 'torch.storage', 'torch.cuda') or what.name not in STORAGES:
        raise Damaged('stores numbers of an unknown kind')
    return np.dtype(STORAGES[what.name])


def _load_from_bytes(self: Inert, raw: Any) -> Storage:
    if self.load_storage is None or type(raw) not in (bytes, Blob):
        raise Refused('holds a torch file where none can be')
    self.budget.work(_STORAGE_WORK)
    if id(raw) not in self._loaded:
        self._loaded[id(raw)] = (raw, self.load_storage(raw_bytes(raw, 'a tensor')))
    return self._loaded[id(raw)][1]


def _tensor(
    self: Inert,
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
    self: Inert,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorRef:
    if type(dtype) is not Global or dtype.module != 'torch' or dtype.name not in _TORCH_DTYPES:
        raise Damaged('a tensor has an unknown type')
    made = _tensor(self, storage, offset, shape, strides, requires_grad, hooks, metadata)
    made.dtype = np.dtype(_TORCH_DTYPES[dtype.name])
    return made


def _parameter(self: Inert, data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> TensorRef:
    if type(data) is not TensorRef or type(requires_grad) is not bool or not isinstance(hooks, dict):
        raise Damaged('a parameter lacks its tensor')
    return data


def _from_type(self: Inert, function: Any, cls: Any, arguments: Any, state: Any) -> TensorRef:
    if type(function) is not Global or str(function) not in _TENSOR_CALLS or type(arguments) is not tuple:
        raise Refused('rebuilds a tensor in an unusual way')
    if type(cls) is not Global or str(cls) not in _REFERENCES or cls.module not in ('torch', 'torch.nn.parameter'):
        raise Refused('rebuilds a tensor of an unusual class')
    return self.call(function, arguments)


def _size(self: Inert, shape: Any) -> tuple:
    shape_size(shape, 'a torch.Size')
    return tuple(shape)


def _device(self: Inert, kind: Any, index: Any = None) -> str:
    if type(kind) is not str or len(kind) > 64 or not (index is None or is_count(index)):
        raise Damaged('names an impossible device')
    return kind if index is None else f'{kind}:{index}'


# Name, meaning, fewest and most arguments.
_TABLE: tuple[tuple[str, Callable, int, int], ...] = (
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
_CALLS = {name: function for name, function, _, _ in _TABLE}
_ARGUMENTS = {name: (fewest, most) for name, _, fewest, most in _TABLE}
_TENSOR_CALLS = {name for name in _CALLS if name.startswith('torch._utils.')}
