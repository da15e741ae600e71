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
from typing import Any

from avatar_jax.foreign.limits import Budget, Damaged, Refused
from avatar_jax.foreign.meanings import TABLE, TENSOR_CLASSES, array_state, set_dtype_state
from avatar_jax.foreign.pickle_values import Global, Value, check_key
from avatar_jax.foreign.records import STORAGES, TORCH_DTYPES, ArrayRef, DtypeRef, InertDict, Record, Storage

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
    *TENSOR_CLASSES,
    'typing.Any',
    *(f'builtins.{n}' for n in ('object', 'int', 'float', 'bool', 'str', 'bytes', 'list', 'tuple', 'dict', 'set')),
    *(f'pytorch_lightning.callbacks.{n}' for n in ('model_checkpoint.ModelCheckpoint', 'early_stopping.EarlyStopping')),
    *(f'torch.{n}' for n in STORAGES),
    *(f'torch.cuda.{n}' for n in STORAGES),
    'torch.storage.UntypedStorage',
    *(f'torch.{n}' for n in TORCH_DTYPES),
}
"""Names that may be mentioned, but not called."""

_PERSISTENCE = re.compile(r'(?:\w+\.)*torch_utils\.persistence\._reconstruct_persistent_obj')
# Parts of Python itself under the names that they had in Python 2, and libraries of which every name is known here.
_NEVER_PLACEHOLDERS = frozenset(sys.stdlib_module_names) | {
    *('__builtin__', 'copy_reg', 'commands', 'cPickle', 'cStringIO', 'StringIO', 'UserDict', 'exceptions', 'popen2'),
    *('urllib2', 'httplib', 'SocketServer', 'Queue', 'thread', 'new', 'imp', 'distutils', 'asyncore', 'pip'),
    *('setuptools', 'pkg_resources', 'numpy', 'scipy', 'jax', 'jaxlib', 'avatar_jax', 'torch', 'joblib', 'dill'),
    *('cloudpickle', 'pytest', 'IPython', 'six'),
}
_OLD_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}
_CALLS = {name: function for name, function, _, _ in TABLE}
_ARGUMENTS = {name: (fewest, most) for name, _, fewest, most in TABLE}


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
        loaded: see ``meanings.Maker``, which this class is.
    """

    def __init__(self, budget: Budget, load_storage: Callable[[memoryview], Storage] | None = None):
        self.budget = budget
        self.load_storage = load_storage
        self.persistence = False
        self.loaded: dict[int, tuple[Any, Storage]] = {}

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
        raise Refused(
            f'refers to {module}.{name}, which is not among the names that files of weights may hold (save the state '
            'dict or the arrays alone)'
        )

    def _placeholder(self, what: Global) -> bool:
        """Whether a name that is in no list may be the class of a module in a network file."""
        if not self.persistence:
            return False
        return what.module.startswith('torch.nn.') or what.module.split('.')[0] not in _NEVER_PLACEHOLDERS

    def call(self, what: Global, arguments: tuple) -> Value:
        full = str(what)
        if full in _CALLS:
            return _CALLS[full](self, *_arguments(full, arguments))
        if full in _DICTIONARIES:
            return self.dictionary(what, arguments)
        raise Refused(f'calls {what}')

    def new(self, what: Global, arguments: tuple) -> Value:
        full = str(what)
        if full in _DICTIONARIES:
            return self.dictionary(what, arguments)
        if full in SPARSE or full in CHUMPY or full in OPAQUE or (full not in _CALLS and full not in _REFERENCES):
            if arguments:
                raise Refused(f'makes {what} with arguments')
            return Record(full)
        raise Refused(f'makes an object of {what}')

    def build(self, value: Value, state: Value) -> Value:
        if isinstance(value, ArrayRef | Record | InertDict) and value.state is not None:
            raise Refused('a pickle gives an object two states')
        if type(value) is ArrayRef:
            value.state = array_state(state)
        elif type(value) is DtypeRef:
            set_dtype_state(value, state)
        elif type(value) is Record or type(value) is InertDict:
            value.state = self._state(state, value.cls)
        else:
            raise Refused('a pickle gives a state to something that has none')
        return value

    def items(self, value: Value) -> dict | None:
        if type(value) is InertDict:
            return value
        return value.items if type(value) is Record and not value.persistent else None

    def persistent(self, identifier: Value) -> Value:
        raise Refused('refers to data outside of the pickle')

    def _state(self, state: Any, cls: str) -> dict:
        """Attributes as a dictionary; objects with slots store a pair of them."""
        if type(state) is tuple and len(state) == 2 and all(isinstance(part, dict | None) for part in state):
            self.budget.work(sum(len(part or ()) for part in state))
            state = {**(state[0] or {}), **(state[1] or {})}
        if not isinstance(state, dict):
            raise Refused(f'gives {cls} a state that is not a dictionary')
        return state

    def dictionary(self, cls: Global, arguments: tuple) -> InertDict:
        """A dictionary of one of the known classes."""
        full = str(cls)
        if full not in _DICTIONARIES:
            raise Refused(f'makes a dictionary of {cls}')
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
