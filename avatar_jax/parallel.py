"""The one place that knows how a train step is spread over devices.

A step is written once, for one device's share of the batch, and averages its gradients and metrics over the named axis
(``mean_over_devices(tree, axis_name)``). It is then wrapped as

* ``pmap`` (default): one program per device over the axis;
* ``shard_map``: the same body on a mesh;
* ``single``: plain ``jit`` with ``axis_name=None``.

All three take and return the state as an ordinary pytree without a device axis and batches as ``[B, ...]``; the same
global batch gives the same update on any number of devices (B must be divisible by it). Random numbers that belong to
a sample must be derived from the sample's global index (``sample_keys``), never from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from avatar_jax.errors import UserError

AXIS = 'data'
PyTree = Any


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


@dataclass(frozen=True)
class Parallel:
    """A compiled step and the functions that place its arguments.

    Attributes:
        step: ``(state, batch) -> (state, metrics)``; donates the state.
        put_state: puts a state (numpy or any device) where ``step`` wants it.
        put_batch: puts a host batch ``[B, ...]`` there; raises UserError when B is not divisible by the device count.
        num_devices: how many devices share a batch.
    """

    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    put_state: Callable[[PyTree], PyTree]
    put_batch: Callable[[PyTree], PyTree]
    num_devices: int


def parallelise(step: Callable[[PyTree, PyTree, PyTree, str | None], tuple[PyTree, PyTree]], *, kind: str = 'pmap',
                devices: Sequence[jax.Device] | None = None, constants: PyTree = ()) -> Parallel:  # fmt: skip
    """Wraps ``step(state, batch, constants, axis_name) -> (state, metrics)``.

    Args:
        kind: 'pmap', 'shard_map' or 'single' (which uses the first device only).
        devices: default: all local ones.
        constants: arrays that never change (frozen networks); an argument of the compiled program, as closed-over
            arrays would be folded into it for minutes.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    if kind == 'single':
        device = devices[0]
        constants = jax.device_put(constants, device)
        jitted = jax.jit(lambda s, b, c: step(s, b, c, None), donate_argnums=0)
        return Parallel(lambda state, batch: jitted(state, batch, constants),
                        lambda state: jax.device_put(jax.tree.map(np.asarray, state), device),
                        lambda batch: jax.device_put(batch, device), 1)  # fmt: skip
    if kind not in ('pmap', 'shard_map'):
        raise UserError(f"parallel: {kind!r}; use 'pmap', 'shard_map' or 'single'")
    count = len(devices)
    # Auto axes: with the newer explicit ones shard_map refuses inputs that are laid out otherwise.
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, P())
    constants = jax.device_put(constants, replicated)

    def body(state, batch, constants):
        return step(state, batch, constants, AXIS)

    if kind == 'pmap':
        mapped = jax.pmap(body, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0,
                          devices=devices)  # fmt: skip

        def put_batch(batch):
            check_batch(batch, count)
            return jax.tree.map(lambda x: np.asarray(x).reshape(count, -1, *np.shape(x)[1:]), batch)
    else:
        # check_vma=False: with the check, gradients with respect to replicated inputs are already summed over the
        # axis and the average in the step would leave them too large by the number of devices.
        mapped = jax.jit(
            jax.shard_map(body, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False),
            donate_argnums=0)

        def put_batch(batch):
            check_batch(batch, count)
            return jax.device_put(batch, NamedSharding(mesh, P(AXIS)))

    return Parallel(lambda state, batch: mapped(state, batch, constants),
                    lambda state: jax.device_put(jax.tree.map(np.asarray, state), replicated),
                    put_batch, count)  # fmt: skip


def check_batch(batch: PyTree, num_devices: int) -> None:
    """Raises ``UserError`` unless all arrays have the same leading size and it is divisible by the device count."""
    sizes = {np.shape(x)[0] for x in jax.tree.leaves(batch)}
    if len(sizes) != 1:
        raise ValueError(f'arrays of one batch differ in their leading size: {sorted(sizes)}')
    (size,) = sizes
    if size % num_devices:
        raise UserError(f'batch size {size}: not divisible by {num_devices} devices; use a multiple of {num_devices}')
