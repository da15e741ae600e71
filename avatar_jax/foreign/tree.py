"""From what a pickle built to plain values: arrays, containers without cycles, one flat list of tensors.

A pickle can build a list that contains itself, or thirty lists of which each holds the previous one twice, which
nobody can walk to the end. ``finish`` copies what was built into fresh containers (what was shared stays shared),
checks that walking the copy ends soon, and turns references to stored numbers into read-only arrays over them.
``flatten`` names the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avatar_jax.foreign.constructors import ATTRIBUTES_ARE_ITEMS, CHUMPY, OPAQUE, SPARSE
from avatar_jax.foreign.limits import MAX_DEPTH, MAX_NODES, Budget, Damaged, Refused, shape_size, shown
from avatar_jax.foreign.pickle_values import Blob, Global, Value
from avatar_jax.foreign.records import (
    ArrayRef,
    DtypeRef,
    InertDict,
    Record,
    Storage,
    TensorRef,
    array_from_bytes,
    check_values,
    raw_bytes,
)

Child = Callable[[Value], Value]  # copies what a container holds
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Global, np.generic, np.ndarray)


def tensor_array(ref: TensorRef, budget: Budget) -> np.ndarray:
    """The numbers of a tensor: a read-only view of its storage.

    Raises:
        Damaged: it reaches beyond its storage.
        Refused: written out it would take too much memory.
    """
    size = shape_size(ref.shape, 'a tensor')
    data, width = ref.storage.data, ref.dtype.itemsize
    if data is None:
        raise Damaged('the numbers of a tensor are missing')
    if not size:
        return np.zeros(ref.shape, ref.dtype)
    last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.strides, strict=True))
    if (last + 1) * width > data.nbytes:
        raise Damaged(f'a tensor of shape {ref.shape} reaches beyond the {data.nbytes // width} numbers stored for it')
    budget.tensor(size * width, 'the tensors in it')
    # The stride along a side of length one is never used and may be anything.
    strides = [s * width if n > 1 else width for n, s in zip(ref.shape, ref.strides, strict=True)]
    array = np.ndarray(ref.shape, ref.dtype, buffer=data, offset=ref.offset * width, strides=strides)
    if ref.dtype != ref.storage.dtype:
        check_values(np.frombuffer(data, ref.dtype, count=data.nbytes // width), 'a tensor')
    return array


def sparse_array(
    form: str,
    shape: Value,
    data: Value,
    indices: Value,
    pointers: Value,
    budget: Budget,
) -> np.ndarray:
    """Writes out a sparse matrix.

    Args:
        form: 'csc' or 'csr' (``pointers`` [columns + 1] or [rows + 1] into ``indices``), or 'coo' (``pointers`` are the
            rows, ``indices`` the columns).
        shape: (rows, columns).
        data: [n] the numbers.
        indices: [n] rows (csc) or columns (csr, coo).
        pointers: see ``form``.
        budget: pays for the result.

    Raises:
        Damaged: the parts do not fit each other.
        Refused: written out it would take too much memory.
    """
    what = 'a sparse matrix'
    parts = (data, indices, pointers)
    if not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in parts) or data.dtype.kind not in 'biufc':
        raise Damaged(f'{what} is incomplete')
    if type(shape) is not tuple or len(shape) != 2 or indices.dtype.kind not in 'iu' or pointers.dtype.kind not in 'iu':
        raise Damaged(f'{what} is incomplete')
    budget.allocate(shape_size(shape, what) * data.dtype.itemsize, what)
    along, across = (shape[1], shape[0]) if form == 'csc' else shape
    indices, pointers = indices.astype(np.int64), pointers.astype(np.int64)
    if form == 'coo':
        outer = pointers
    else:
        ordered = len(pointers) == along + 1 and pointers[0] == 0 and (np.diff(pointers) >= 0).all()
        if not ordered or pointers[-1] > len(data):
            raise Damaged(f'{what} has impossible indices')
        data, indices = data[: pointers[-1]], indices[: pointers[-1]]
        outer = np.repeat(np.arange(along), np.diff(pointers))
    across_limit = shape[1] if form == 'coo' else across
    fits = len(indices) == len(data) == len(outer)
    if not fits or (len(data) and (min(indices.min(), outer.min()) < 0 or indices.max() >= across_limit)):
        raise Damaged(f'{what} has impossible indices')
    if len(data) and outer.max() >= along:
        raise Damaged(f'{what} has impossible indices')
    dense = np.zeros(shape, data.dtype)
    where = (indices, outer) if form == 'csc' else (outer, indices)
    np.add.at(dense, where, data)  # entries that occur twice add up
    return dense


@dataclass
class Finished:
    """A tree of plain values.

    Attributes:
        tree: nested dicts, lists, tuples, sets, numbers, texts, bytes, read-only arrays, ``Record`` and ``Global``.
        partial: arrays that use only a part of the numbers stored for them, or some more than once.
        notes: what was left out.
    """

    tree: Any
    partial: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Finisher:
    def __init__(self, budget: Budget):
        self.budget = budget
        self.done: dict[int, tuple[Any, int, int]] = {}  # object -> its copy, levels below, values when unfolded
        self.open: set[int] = set()
        self.depth = 0
        self.partial: list[np.ndarray] = []
        self.left_out: dict[str, int] = {}

    def value(self, value: Value) -> tuple[Any, int, int]:
        """The copy of a value, the number of container levels in it, the number of values when unfolded."""
        if isinstance(value, _PLAIN):
            return value, 0, 1
        key = id(value)
        if key in self.done:
            made = self.done[key]
            if self.depth + made[1] > MAX_DEPTH:
                raise Refused(f'has more than {MAX_DEPTH} containers within each other')
            return made
        if key in self.open:
            raise Refused('holds a container that contains itself')
        if self.depth >= MAX_DEPTH:
            raise Refused(f'has more than {MAX_DEPTH} containers within each other')
        self.open.add(key)
        self.depth += 1
        made = self.container(value)
        self.depth -= 1
        self.open.discard(key)
        if made[2] > self.budget.many * MAX_NODES:
            raise Refused('shares containers so often that it has no end in practice')
        self.done[key] = made
        return made

    def container(self, value: Value) -> tuple[Any, int, int]:
        levels, count = 0, 1

        def child(part: Value) -> Value:
            nonlocal levels, count
            made, below, nodes = self.value(part)
            levels, count = max(levels, below), count + nodes
            return made

        kind = type(value)
        if kind is dict or kind is InertDict:
            copy = self.dictionary(value, child)
        elif kind is list:
            copy = [child(part) for part in value]
        elif kind is tuple:
            copy = tuple([child(part) for part in value])
        elif kind is set or kind is frozenset:
            copy, count = set(value), count + len(value)  # elements are plain values
        elif kind is Record:
            copy = self.record(value, child)
        elif kind is ArrayRef:
            copy = self.array(value, child)
        elif kind is TensorRef:
            copy = self.tensor(value)
        elif kind is Storage:
            copy = tensor_array(TensorRef(value, 0, (value.count,), (1,), value.dtype), self.budget)
        elif kind is DtypeRef:
            copy = value.dtype()
        elif kind is Blob:
            self.budget.allocate(len(value.data), 'the byte strings in it')
            copy = str(value.data, 'latin-1') if value.text else bytes(value.data)
        else:
            raise TypeError(f'{kind.__name__} is not a value that a reader makes')
        return copy, levels + 1, count

    def dictionary(self, value: dict, child: Child) -> dict:
        copy = {key: child(part) for key, part in value.items()}
        if type(value) is InertDict and value.cls in ATTRIBUTES_ARE_ITEMS and value.state is not None:
            copy.update(child(value.state))
        return copy

    def record(self, value: Record, child: Child) -> Value:
        if value.cls in OPAQUE:
            self.left_out[value.cls] = self.left_out.get(value.cls, 0) + 1
            return Record(value.cls)
        state = None if value.state is None else child(value.state)
        if value.cls in CHUMPY and not value.persistent:
            if not isinstance(state, dict) or not isinstance(state.get('x'), np.ndarray):
                raise Damaged('a chumpy array has no numbers')
            return state['x']
        if value.cls in SPARSE and not value.persistent:
            return self.sparse(SPARSE[value.cls], state or {})
        return Record(value.cls, state, self.dictionary(value.items, child), value.persistent)

    def sparse(self, form: str, state: dict) -> np.ndarray:
        shape = state.get('_shape', state.get('shape'))
        if form == 'coo' and 'coords' in state:
            coordinates = state['coords']
            if type(coordinates) is not tuple or len(coordinates) != 2:
                raise Damaged('a sparse matrix is incomplete')
            rows, columns = coordinates
        elif form == 'coo':
            rows, columns = state.get('row'), state.get('col')
        else:
            rows, columns = state.get('indptr'), state.get('indices')
        return sparse_array(form, shape, state.get('data'), columns, rows, self.budget)

    def array(self, value: ArrayRef, child: Child) -> Value:
        if value.state is None:
            raise Damaged('a numpy array has no content')
        shape, dtype, fortran, raw = value.state
        if dtype.code == 'O':
            return self.objects(shape, raw, child)
        raw = raw_bytes(raw, 'a numpy array')
        self.budget.tensor(len(raw), 'the arrays in it')
        return array_from_bytes(raw, dtype, shape, bool(fortran), self.budget)

    def objects(self, shape: tuple[int, ...], raw: Value, child: Child) -> Value:
        """An array of objects, as nested lists; one without sides as the object itself."""
        if type(raw) is not list or len(raw) != shape_size(shape, 'a numpy array'):
            raise Damaged('a numpy array of objects has another number of them than it says')
        parts = [child(part) for part in raw]
        if not parts:
            return []
        for side in reversed(shape):
            parts = [parts[i : i + side] for i in range(0, len(parts), side)]
        return parts[0]

    def tensor(self, ref: TensorRef) -> np.ndarray:
        array = tensor_array(ref, self.budget)
        if not _whole(ref):
            self.partial.append(array)
        return array


def _whole(ref: TensorRef) -> bool:
    """Whether a tensor uses each of the numbers stored for it exactly once, in whatever order of its sides."""
    reach = 1
    for stride, side in sorted((s, n) for n, s in zip(ref.shape, ref.strides, strict=True) if n != 1):
        if stride != reach and side:
            return False
        reach *= side
    return ref.offset == 0 and reach * ref.dtype.itemsize == ref.storage.data.nbytes


def finish(value: Value, budget: Budget) -> Finished:
    """Plain values from what a pickle built.

    Raises:
        Damaged: tensors or arrays do not fit the numbers stored for them.
        Refused: it contains itself, or could not be walked to the end, or would take too much memory.
    """
    finisher = _Finisher(budget)
    tree = finisher.value(value)[0]
    notes = [f'{n} objects of {cls} are left out' for cls, n in sorted(finisher.left_out.items())]
    return Finished(tree, finisher.partial, notes)


@dataclass
class Flat:
    """Tensors of a tree by name, and what its modules say about themselves.

    Attributes:
        tensors: containers are joined by ``/``, names inside of a module by ``.`` (its state-dict key):
            ``G_ema/backbone.synthesis.b4.const``.
        modules: name of a module (``G_ema``, ``G_ema/backbone.mapping``) -> its class and attributes.
        others: classes of objects that are not modules, with where they are.
    """

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def put(self, name: str, array: np.ndarray) -> None:
        if name in self.tensors:
            raise Damaged(f'has two tensors of the name {shown(name)}')
        array.flags.writeable = False
        self.tensors[name] = array


def is_module(value: Value) -> bool:
    """Whether an object is a module of a network: it has parameters, buffers and sub-modules."""
    return (
        isinstance(value, Record)
        and isinstance(value.state, dict)
        and all(isinstance(value.state.get(part), dict) for part in ('_parameters', '_buffers', '_modules'))
    )


def flatten(tree: Value) -> Flat:
    """Names the tensors of a finished tree.

    Raises:
        Damaged: two tensors have the same name, or a module holds something that is none.
    """
    flat = Flat()
    _walk(flat, tree, '')
    return flat


def _walk(flat: Flat, value: Any, path: str) -> None:
    if isinstance(value, np.ndarray):
        flat.put(path, value)
    elif isinstance(value, dict):
        for key, part in value.items():
            _walk(flat, part, f'{path}/{key}' if path else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _walk(flat, part, f'{path}/{index}' if path else str(index))
    elif is_module(value):
        _walk_module(flat, value, path, '')
    elif isinstance(value, Record):
        flat.others.append(f'{path or "the file"}: {value.cls}')
        _walk(flat, value.items, path)
        if value.state is not None:
            _walk(flat, value.state, path)


def _walk_module(flat: Flat, module: Record, top: str, dotted: str) -> None:
    """Parameters and buffers under the names that they have in the state dict of the outermost module."""
    state = module.state
    prefix = f'{top}/' if top else ''
    temporary = state.get('_non_persistent_buffers_set') or ()
    for part in ('_parameters', '_buffers'):
        for name, array in state[part].items():
            full = f'{prefix}{dotted}{name}'
            if array is None or (part == '_buffers' and name in temporary):
                continue
            if not isinstance(array, np.ndarray):
                raise Damaged(f'{shown(full)} is not a tensor')
            flat.put(full, array)
    flat.modules[f'{prefix}{dotted}'.rstrip('./')] = {
        'class': module.cls,
        'persistent': module.persistent,
        'init_args': state.get('_init_args'),
        'init_kwargs': state.get('_init_kwargs'),
        'attributes': {k: v for k, v in state.items() if isinstance(k, str) and not _internal(k)},
    }
    for name, part in state['_modules'].items():
        if part is None:
            continue
        if not is_module(part):
            raise Damaged(f'{shown(f"{prefix}{dotted}{name}")} is not a module')
        _walk_module(flat, part, top, f'{dotted}{name}.')


def _internal(name: str) -> bool:
    """Whether an attribute serves the training framework and says nothing about the network."""
    return name in (
        '_parameters',
        '_buffers',
        '_modules',
        '_non_persistent_buffers_set',
        '_init_args',
        '_init_kwargs',
        '_is_full_backward_hook',
        'training',
    ) or name.endswith(('_hooks', '_hooks_with_kwargs', '_hooks_always_called'))
