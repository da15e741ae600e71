"""The one place that knows how a train step is spread over devices and processes.

A step is written once, for one device's share of the batch, and averages its gradients and metrics over the named axis
(``mean_over_devices(tree, axis_name)``). It is then wrapped as

* ``pmap`` (default): one program per device over the axis;
* ``shard_map``: the same body on a mesh;
* ``single``: plain ``jit`` with ``axis_name=None``, on one device;
* ``sharded``: ``jit`` of the same body with ``axis_name=None`` on a mesh of two axes, ``data`` and ``model``: the batch
  is cut over both, every large array of the state over ``model``, and the compiler puts in the collectives. For models
  whose parameters and optimizer states do not fit one device.

All four take and return the state as an ordinary pytree without a device axis and batches as ``[B, ...]``; the same
global batch gives the same update on any number of devices (B must be divisible by it). Random numbers that belong to
a sample must be derived from the sample's global index (``sample_keys``), never from the device.

With several processes (``avatar_jax.processes``), the axis runs over all devices of all of them, in the order of the
processes. Each process hands in its own rows, ``B / processes`` of them; states are global arrays in all cases, so the
rest of a program does not see the difference. ``to_host`` makes numpy arrays of a state wherever it lives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from avatar_jax.checks import Check
from avatar_jax.errors import UserError

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr

AXIS, MODEL_AXIS = 'data', 'model'
KINDS = ('pmap', 'shard_map', 'single', 'sharded')
TRANSFERS = 'allow'  # of ``in_loop``
PORTION = 0.5  # of a device's memory that rows side by side may take
SMALL = 4096  # arrays of fewer numbers are not worth cutting
PyTree = Any
StepFn = Callable[[PyTree, PyTree, PyTree, str | None], tuple[PyTree, PyTree]]


@dataclass(frozen=True)
class ScaleConfig:
    """How a step is made to fit; results do not depend on it (beyond the order of sums).

    Attributes:
        accumulate: number of equal parts of each device's share on which gradients are computed, one after the other,
            and averaged: memory of a part, time of the whole.
        model_shards: size of the second mesh axis with ``parallel='sharded'``; 0: all devices.
    """

    accumulate: int = 1
    model_shards: int = 0

    def __post_init__(self):
        check = Check(self, 'scale')
        check.at_least(1, 'accumulate')
        check.at_least(0, 'model_shards')


# ----------------------------------------------------------------------------------------------- inside of the step


def mean_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """Average over the devices; the identity without an axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def sum_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sum over the devices; the identity without an axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def num_shards(axis_name: str | None) -> int:
    """How many devices share the batch (a Python int inside the step)."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def sample_keys(key: jax.Array, num_local: int, axis_name: str | None) -> jax.Array:
    """One key per sample of this device's share, by the sample's place in the global batch: [num_local]."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_local
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(num_local))


# ------------------------------------------------------------------------------------------------------------ arrays


def as_arrays(tree: PyTree) -> PyTree:
    """A tree with its numpy arrays, of a file perhaps, as copies on the default device; JAX's own stay as they are.

    Nothing is compiled, while ``jnp.asarray`` compiles a program for each shape.
    """
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x, may_alias=False), tree)


def copies(tree: PyTree) -> PyTree:
    """A tree whose arrays share no memory with the given ones, for programs that overwrite what they are given."""
    return jax.device_put(tree, may_alias=False)


# ---------------------------------------------------------------------------------------------------- around the step


class Parallel:
    """A step on its devices and the functions that place its arguments; made by ``parallelise``.

    Attributes:
        kind: one of ``KINDS``.
        num_devices: how many devices share a batch, over all processes.
        constants: where ``step`` wants them; another program of the same devices takes them without a copy.
    """

    def __init__(
        self,
        kind: str,
        jitted: Callable,
        traceable: Callable,
        constants: PyTree,
        place: Callable[[str, Any], Sharding],
        num_devices: int,
        num_local: int,
    ):
        self.kind, self.num_devices = kind, num_devices
        self._jitted, self._traceable, self.constants = jitted, traceable, constants
        self._place, self._num_local = place, num_local
        self._compiled: dict[Any, Any] = {}

    def put_state(self, state: PyTree) -> PyTree:
        """Puts a state (numpy or on any device; the same one in every process) where ``step`` wants it.

        Always a copy: the step donates its argument.
        """

        def put(x):
            return jax.make_array_from_callback(x.shape, self._place('state', x), lambda index: x[index])

        return jax.tree.map(put, to_host(state))

    def put_batch(self, batch: PyTree) -> PyTree:
        """Puts this process's rows ``[B / processes, ...]`` there.

        Raises:
            UserError: they do not divide among this process's devices.
        """
        check_batch(batch, self._num_local)

        def put(x):
            x = np.asarray(x)
            if self.kind == 'pmap':  # its own axis in front
                x = x.reshape(self._num_local, -1, *x.shape[1:])
            return jax.make_array_from_process_local_data(self._place('batch', x), x)

        return jax.tree.map(put, batch)

    def compile(self, state: PyTree, batch: PyTree) -> jax.stages.Compiled:
        """The compiled program for placed arguments of these shapes; compiled once and then used by ``step``.

        It is the program of one device: its costs and its memory are those of a device's share.
        """
        key = tuple((x.shape, x.dtype) for x in jax.tree.leaves((state, batch)))
        if key not in self._compiled:
            self._compiled[key] = self._jitted.lower(state, batch, self.constants).compile()
        return self._compiled[key]

    def step(self, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        """``(state, metrics)`` after one step from placed arguments; donates the state."""
        # The compiled program itself, not the wrapper: pmap's wrapper wants host-local arrays when there are several
        # processes and hands them back, and such arrays can neither be stored nor cut.
        return self.compile(state, batch)(state, batch, self.constants)

    def trace(self, state: PyTree, batch: PyTree) -> ClosedJaxpr:
        """The closed jaxpr of the step; takes placed arguments or their shapes, computes nothing.

        Inside of its ``shard_map`` are the shapes of one device; with 'sharded' and 'single' those of the whole batch.
        """

        def shape(x, own_axis=False):
            # Where the program has no devices in its text, it is known by where its arguments lie.
            where = getattr(x, 'sharding', None) if self.kind in ('single', 'sharded') else None
            size = (x.shape[0] * x.shape[1], *x.shape[2:]) if own_axis else x.shape
            return jax.ShapeDtypeStruct(size, x.dtype, sharding=where)

        batch = jax.tree.map(lambda x: shape(x, self.kind == 'pmap'), batch)
        state, constants = jax.tree.map(shape, (state, self.constants))
        return jax.make_jaxpr(self._traceable)(state, batch, constants)


def parallelise(
    step: StepFn,
    *,
    kind: str = 'pmap',
    devices: Sequence[jax.Device] | None = None,
    constants: PyTree = (),
    model_shards: int = 0,
) -> Parallel:
    """Wraps ``step(state, batch, constants, axis_name) -> (state, metrics)``.

    Args:
        kind: 'pmap', 'shard_map', 'single' (which uses the first device only) or 'sharded'.
        devices: default: all, of all processes.
        constants: arrays that never change (frozen networks); an argument of the compiled program, as closed-over
            arrays would be folded into it for minutes.
        model_shards: with 'sharded', over how many devices the state is cut; 0: all.
    """
    if kind not in KINDS:
        raise UserError(f'parallel: {kind!r}; use one of {", ".join(map(repr, KINDS))}')
    devices = device_order(jax.devices() if devices is None else devices)
    if kind == 'single':
        if jax.process_count() > 1:
            raise UserError("parallel: 'single' uses one device; with several processes use 'pmap' or 'shard_map'")
        devices = devices[:1]
    count = len(devices)
    num_local = sum(d.process_index == jax.process_index() for d in devices)
    if num_local * jax.process_count() != count:
        raise UserError(
            f'devices: this process has {num_local} of {count}, but there are {jax.process_count()} '
            'processes; give every process the same number of devices'
        )
    # Auto axes: with the newer explicit ones shard_map refuses inputs that are laid out otherwise.
    if kind == 'sharded':
        shards = model_shards or count
        if count % shards:
            raise UserError(f'scale.model_shards: {shards} does not divide {count} devices')
        mesh = Mesh(np.asarray(devices).reshape(-1, shards), (AXIS, MODEL_AXIS), axis_types=(AxisType.Auto,) * 2)
    else:
        mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, P())
    rows = NamedSharding(mesh, P((AXIS, MODEL_AXIS) if kind == 'sharded' else AXIS))

    def place(what: str, x: jax.Array | np.ndarray) -> Sharding:
        if what == 'batch':
            return rows
        return NamedSharding(mesh, cut(x.shape, shards)) if kind == 'sharded' else replicated

    # Inlined: the programs are those of the plain functions, but what is traced is known when costs are counted.
    @partial(jax.jit, inline=True)
    def body(state, batch, constants):
        return step(state, batch, constants, AXIS)

    @partial(jax.jit, inline=True)
    def whole(state, batch, constants):
        return step(state, batch, constants, None)

    # check_vma=False: with the check, gradients with respect to replicated inputs are already summed over the axis and
    # the average in the step would leave them too large by the number of devices.
    mapped = jax.shard_map(body, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False)
    if kind == 'pmap':
        jitted = jax.pmap(
            body, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0, devices=devices
        )
    elif kind == 'shard_map':
        jitted = jax.jit(mapped, donate_argnums=0)
    elif kind == 'sharded':

        def kept_in_place(state, batch, constants):
            state, metrics = whole(state, batch, constants)
            state = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, place('state', x)), state)
            metrics = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, replicated), metrics)
            return state, metrics

        jitted = jax.jit(kept_in_place, donate_argnums=0)
    else:
        jitted = jax.jit(whole, donate_argnums=0)
    constants = jax.tree.map(lambda x: _everywhere(x, replicated), constants)
    return Parallel(
        kind, jitted, mapped if kind in ('pmap', 'shard_map') else whole, constants, place, count, num_local
    )


def device_order(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Devices by process, then by number: the order in which the axis runs over them."""
    return sorted(devices, key=lambda d: (d.process_index, d.id))


def cut(shape: Sequence[int], shards: int) -> P:
    """Along which axis an array of the state is cut over ``MODEL_AXIS``: the longest that divides, or none."""
    if int(np.prod(shape)) < SMALL:
        return P()
    lengths = [n if n % shards == 0 else 0 for n in shape]
    longest = int(np.argmax(lengths))
    return P(*[MODEL_AXIS if i == longest else None for i in range(len(shape))]) if lengths[longest] else P()


def to_host(tree: PyTree) -> PyTree:
    """Numpy copies of all arrays, whole, in every process.

    Arrays that are cut over several processes are gathered one after the other, by all processes together.
    """
    return jax.tree.map(_to_host, tree)


def _to_host(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        if not x.is_fully_replicated:
            x = jax.jit(lambda y: y, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)
        x = x.addressable_data(0)
    return np.array(x)  # a copy: the step that follows may donate the buffer


def _everywhere(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def check_batch(batch: PyTree, num_devices: int) -> None:
    """Raises ``UserError`` unless all arrays have the same leading size and it is divisible by the device count."""
    sizes = {np.shape(x)[0] for x in jax.tree.leaves(batch)}
    if len(sizes) != 1:
        raise ValueError(f'arrays of one batch differ in their leading size: {sorted(sizes)}')
    (size,) = sizes
    if size % num_devices:
        raise UserError(f'batch size {size}: not divisible by {num_devices} devices; use a multiple of {num_devices}')


# ---------------------------------------------------------------------------------------------- rows that never meet


def over_devices(function: Callable[[PyTree, PyTree], PyTree], devices: Sequence[jax.Device]) -> Callable:
    """``function(shared, rows)`` with the first axis of all ``rows`` cut over devices: people, frames.

    Results have the same first axis, and are the same as on one device, for nothing passes between rows.

    Args:
        devices: that many must divide the number of rows.
    """
    if len(devices) < 2:
        return function
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    specs = (P(), P(AXIS))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)


def in_portions(function: Callable[..., PyTree], rows: Sequence[PyTree], portion: int) -> PyTree:
    """``function(*row)`` for each row of the first axis, ``portion`` of them at a time: memory of a portion, results of
    all.

    Args:
        rows: arguments, each with the same first axis. portion: at least 1.
    """
    if portion >= jax.tree.leaves(rows)[0].shape[0]:
        return jax.vmap(function)(*rows)
    return jax.lax.map(lambda row: function(*row), tuple(rows), batch_size=portion)


def portion_of(rows: int, devices: Sequence[jax.Device], bytes_each: float, most: int | None = None) -> tuple[int, int]:
    """How rows that never meet are computed: their number with those that fill up, and the portion of each device.

    Portions are of one size, so that there is one program, and as equal as they can be.

    Args:
        bytes_each: what a row needs while it is computed.
        most: rows that a device computes side by side; None: as many as ``PORTION`` of its memory is enough for, or all
            where that is not known.
    """
    share = -(-rows // len(devices))
    if most is None:
        memory = device_memory(devices[0])
        most = share if memory is None else max(1, int(PORTION * memory // bytes_each))
    parts = -(-share // most)
    portion = -(-share // parts)
    return len(devices) * parts * portion, portion


def in_loop() -> AbstractContextManager:
    """For what is done again and again, steps and frames: nothing passes between host and devices unless the code says
    so (``jax.device_put``, ``jax.device_get``). Only tests refuse it (``TRANSFERS``): it costs time, and is no error.
    """
    return jax.transfer_guard(TRANSFERS)


def device_memory(device: jax.Device) -> int | None:
    """Bytes of a device; of a CPU, its part of the machine's. None where that is not known."""
    stats = device.memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit']
    if device.platform != 'cpu' or 'SC_PHYS_PAGES' not in getattr(os, 'sysconf_names', ()):
        return None
    whole = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return whole // jax.local_device_count(device.platform)


def apart(tree: PyTree, count: int) -> list[PyTree]:
    """The first ``count`` rows of a tree of [rows, ...], a tree each."""
    if all(isinstance(x, jax.Array) and len(x.devices()) == 1 for x in jax.tree.leaves(tree)):
        return _apart(tree, count=count)
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


@partial(jax.jit, static_argnames='count')  # one small program instead of some for each shape
def _apart(tree, *, count):
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


def on_all(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """A tree with a copy on each of the devices, for ``over_devices``'s ``shared``."""
    if len(devices) < 2:
        return jax.device_put(tree)
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return jax.device_put(tree, NamedSharding(mesh, P()))


def on_rows(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """A tree of [rows, ...] cut over the devices, for ``over_devices``'s ``rows``."""
    if len(devices) < 2:
        return jax.device_put(tree)
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return jax.device_put(tree, NamedSharding(mesh, P(AXIS)))
