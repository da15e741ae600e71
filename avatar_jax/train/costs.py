"""What a step costs before it has run: counted arithmetic, memory traffic and collectives, and the time they need.

``count`` walks a jaxpr and multiplies what is inside of loops by their lengths, which XLA's own cost analysis does not
(an iteration of decoupling-by-inverting is almost all loop). Memory comes from the compiled program.

The time is ``max(FLOPs / (share of peak), bytes / (share of bandwidth)) + exposed collectives``; ``docs/scaling.md``
uses the same functions.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from avatar_jax.errors import UserError
from avatar_jax.parallel import AXIS, Parallel, StepFn
from avatar_jax.types import PyTree

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr, Jaxpr

# Shares of the peak that networks of this kind reach; see docs/scaling.md for what was measured.
COMPUTE_SHARE, MEMORY_SHARE = 0.35, 0.6
_COLLECTIVES = {'psum', 'psum_invariant', 'pmax', 'pmin', 'all_gather', 'reduce_scatter', 'all_to_all', 'ppermute'}
_MOVING = {
    'gather',
    'scatter',
    'scatter-add',
    'scatter_add',
    'reduce_sum',
    'reduce_max',
    'cumsum',
    'cumprod',
    'sort',
    'concatenate',
    'transpose',
    'dynamic_slice',
    'dynamic_update_slice',
}


@dataclass(frozen=True)
class Costs:
    """Per device and step. ``flops``: 2 per multiply-add of products and convolutions, 1 per other floating result.

    ``bytes``: operands and results of products, convolutions, look-ups and reductions (the rest is taken as fused).
    ``collective_bytes``, ``collectives``: size of what is summed over devices, and how many calls.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collective_bytes: float = 0.0
    collectives: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.collective_bytes + other.collective_bytes,
            self.collectives + other.collectives,
        )

    def __mul__(self, times: float) -> Costs:
        return Costs(self.flops * times, self.bytes * times, self.collective_bytes * times, self.collectives * times)


@dataclass(frozen=True)
class Device:
    """One accelerator. FLOP/s of products of float32 as JAX does them by default, and of bfloat16; bytes and bytes/s.

    ``link``: bytes/s at which an all-reduce passes a device among the ``per_host`` devices of one machine (or of a pod
    slice); ``network``: the same beyond. ``latency``: seconds of a small all-reduce of two devices; each doubling of
    their number adds ``hop``.
    """

    name: str
    flops: float
    flops_bf16: float
    bandwidth: float
    memory: float
    link: float = 0.0
    network: float = 0.0
    per_host: int = 1
    latency: float = 0.0
    hop: float = 0.0


# Published peaks, dense. Float32: TF32 on GPUs, one bfloat16 pass on TPUs (JAX's default precision on each). Links:
# NVLink one way, and one 400 (A100: 200) Gbit/s adapter for each GPU; one of the axes of a TPU's torus. Latencies are
# assumed.
DEVICES = (
    Device('H100', 494e12, 989e12, 3.35e12, 80e9, 450e9, 50e9, 8, 15e-6, 5e-6),
    Device('H200', 494e12, 989e12, 4.8e12, 141e9, 450e9, 50e9, 8, 15e-6, 5e-6),
    Device('A100', 156e12, 312e12, 2.04e12, 80e9, 300e9, 25e9, 8, 15e-6, 5e-6),
    Device('TPU v5p', 459e12, 459e12, 2.77e12, 95e9, 90e9, 90e9, 8960, 5e-6, 2e-6),
    Device('TPU v5e', 197e12, 197e12, 0.82e12, 16e9, 45e9, 6e9, 256, 5e-6, 2e-6),
    Device('TPU v4', 275e12, 275e12, 1.2e12, 32e9, 45e9, 45e9, 4096, 5e-6, 2e-6),
    Device('TPU v6e', 918e12, 918e12, 1.64e12, 32e9, 90e9, 12e9, 256, 5e-6, 2e-6),
)


# ------------------------------------------------------------------------------------------------------------ counting


def count(jaxpr: ClosedJaxpr | Jaxpr) -> Costs:
    """Costs of a (closed) jaxpr as one device runs it; bodies of ``while`` loops count once, of ``cond`` the
    dearest.
    """
    return _count(getattr(jaxpr, 'jaxpr', jaxpr))


@dataclass(frozen=True)
class Product:
    """One product or convolution of a program, which can be run by itself.

    Attributes:
        function: takes its operands. shapes, dtypes: of these. text: kind and shapes, for people.
        flops: of one run. times: that it runs, with loops in full.
    """

    function: Callable[..., jax.Array]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    text: str
    flops: float
    times: float


def products(jaxpr: ClosedJaxpr | Jaxpr, times: float = 1.0) -> Iterator[Product]:
    """All products and convolutions of a (closed) jaxpr; those of all branches of a ``cond``."""
    for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        name = equation.primitive.name
        if name in ('dot_general', 'conv_general_dilated'):
            avals = [v.aval for v in equation.invars]
            shapes = tuple(tuple(a.shape) for a in avals)
            kind = 'product' if name == 'dot_general' else 'convolution'
            text = f'{kind} of {" and ".join("x".join(map(str, s)) for s in shapes)}'
            run = functools.partial(equation.primitive.bind, **equation.params)
            yield Product(run, shapes, tuple(a.dtype for a in avals), text, _one(name, equation).flops, times)
            continue
        inner = list(_inner(equation.params))
        for body in inner[:1] if name.startswith('custom') else inner:
            yield from products(body, times * (equation.params['length'] if name == 'scan' else 1))


def _count(jaxpr: Any) -> Costs:
    total = Costs()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = list(_inner(equation.params))
        if name == 'scan':
            total += _count(inner[0]) * equation.params['length']
        elif name == 'cond':
            total += max((_count(j) for j in inner), key=lambda c: c.flops)
        elif inner and not name.startswith('reduce') and name not in ('argmax', 'argmin', 'scatter', 'scatter-add'):
            # A custom derivative carries its rule along; only its first jaxpr, the function, is run here.
            total += _count(inner[0]) if name.startswith('custom') else sum(map(_count, inner), Costs())
        else:
            total += _one(name, equation)
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, 'jaxpr', item)
            if hasattr(item, 'eqns'):
                yield item


def _size(variable: Any) -> int:
    return int(np.prod(getattr(variable.aval, 'shape', ()), dtype=np.int64))


def _bytes(variables: PyTree) -> float:
    return float(sum(_size(v) * getattr(getattr(v.aval, 'dtype', None), 'itemsize', 4) for v in variables))


def _one(name: str, equation: Any) -> Costs:
    out = equation.outvars[0]
    moved = _bytes(equation.invars) + _bytes(equation.outvars)
    if name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        depth = np.prod([equation.invars[0].aval.shape[i] for i in contracted], dtype=np.float64)
        return Costs(float(2.0 * _size(out) * depth), moved)
    if name == 'conv_general_dilated':
        kernel, numbers = equation.invars[1].aval.shape, equation.params['dimension_numbers']
        depth = np.prod(kernel, dtype=np.float64) / kernel[numbers.rhs_spec[0]]  # inputs of one output number
        # Zeros that are put between the inputs take no part.
        useful = 1.0 / np.prod(equation.params['lhs_dilation'], dtype=np.float64)
        return Costs(float(2.0 * _size(out) * depth * useful), moved)
    if name in _COLLECTIVES:
        return Costs(0.0, 0.0, _bytes(equation.invars), 1.0)
    dtype = getattr(getattr(out, 'aval', None), 'dtype', None)
    arithmetic = _size(out) if dtype is not None and jnp.issubdtype(dtype, jnp.floating) else 0
    if name in ('broadcast_in_dim', 'reshape', 'squeeze', 'convert_element_type', 'slice', 'pad', 'copy'):
        arithmetic = 0
    return Costs(float(arithmetic), moved if name in _MOVING else 0.0)


def step_costs(spread: Parallel, state: PyTree, batch: PyTree) -> Costs:
    """Costs of one device's part of a step of ``parallel.Parallel``, from arrays or their shapes."""
    costs = count(spread.trace(state, batch))
    # The partitioned program is written for all devices together.
    return costs * (1.0 / spread.num_devices) if spread.kind == 'sharded' else costs


def count_step(step: StepFn, state: PyTree, batch: PyTree, constants: PyTree, devices: int = 1) -> Costs:
    """Costs of one device's part of ``step(state, batch, constants, axis_name)``, from shapes alone.

    ``batch``: one device's share. ``devices``: how many there are in thought; none is touched.
    """
    if devices == 1:
        return count(jax.make_jaxpr(lambda s, b, c: step(s, b, c, None))(state, batch, constants))
    mesh = AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda s, b, c: step(s, b, c, AXIS), mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices * x.shape[0], *x.shape[1:]), x.dtype), batch)
    return count(jax.make_jaxpr(mapped)(state, batch, constants))


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays (or shapes) of a tree."""
    return sum(int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


# ---------------------------------------------------------------------------------------------------------------- time


def find_device(kind: str) -> Device | None:
    """The entry of ``DEVICES`` for a device's own description; None for others."""
    text = kind.lower().replace('tpu v5 lite', 'tpu v5e').replace('tpu v6 lite', 'tpu v6e').replace('tpu v5', 'tpu v5p')
    text = text.replace('tpu v5pe', 'tpu v5e').replace('tpu v5pp', 'tpu v5p')
    return next((d for d in DEVICES if d.name.lower() in text), None)


@functools.cache
def this_device() -> Device | None:
    """The local device; a CPU is measured for a fraction of a second. None for unknown accelerators."""
    device = jax.local_devices()[0]
    return _measured_cpu() if device.platform == 'cpu' else find_device(device.device_kind)


def _measured_cpu() -> Device:
    a = np.ones((768, 768), np.float32)
    big = np.ones(1 << 23, np.float32)

    def best(function) -> float:
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
        return max(min(times), 1e-9)

    flops = 2.0 * 768**3 / best(lambda: a @ a)
    bandwidth = 2.0 * big.nbytes / best(big.copy)
    try:
        memory = float(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    except (ValueError, OSError, AttributeError):
        memory = 0.0
    # Forced devices share the cores.
    shared = max(sum(d.platform == 'cpu' for d in jax.local_devices()), 1)
    return Device('CPU', flops / shared, flops / shared, bandwidth / shared, memory / shared)


def compute_time(costs: Costs, device: Device, bf16: bool = False) -> tuple[float, str]:
    """Seconds without collectives, and whether 'arithmetic' or 'memory' decides them."""
    arithmetic = costs.flops / ((device.flops_bf16 if bf16 else device.flops) * COMPUTE_SHARE)
    memory = costs.bytes / (device.bandwidth * MEMORY_SHARE)
    return (arithmetic, 'arithmetic') if arithmetic >= memory else (memory, 'memory')


def collective_time(costs: Costs, device: Device, devices: int) -> float:
    """Seconds of the collectives of a step on a number of devices, none of it hidden behind arithmetic.

    A ring all-reduce of C bytes on N devices passes ``2 (N - 1) / N * C`` bytes through each link; every call costs
    ``latency + hop * log2(N)`` besides.
    """
    if devices == 1:
        return 0.0
    speed = device.link if devices <= device.per_host else min(device.link, device.network)
    calls = costs.collectives * (device.latency + device.hop * math.log2(devices))
    return 2 * (devices - 1) / devices * costs.collective_bytes / speed + calls


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds of a step, and its largest part: 'arithmetic', 'memory' (traffic) or 'collectives'."""

    devices: int
    compute: float
    collectives: float
    bottleneck: str

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return self.compute + self.collectives


def predict(costs: Costs, device: Device, devices: int, bf16: bool = False) -> Prediction:
    """What a step with these costs of one device takes on ``devices`` of them."""
    compute, why = compute_time(costs, device, bf16)
    together = collective_time(costs, device, devices)
    return Prediction(devices, compute, together, why if compute >= together else 'collectives')


@dataclass(frozen=True)
class ProgramMemory:
    """Bytes that a compiled program holds on one device, as the compiler plans them (0 where it does not tell).

    Attributes:
        arguments: what it is given. temporaries: what it needs meanwhile. new: results that overwrite no argument.
    """

    arguments: int
    temporaries: int
    new: int

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.arguments + self.temporaries + self.new

    def text(self) -> str:
        """One phrase."""
        return f'{_gib(self.peak)} (arguments {_gib(self.arguments)}, temporaries {_gib(self.temporaries)})'


def program_memory(compiled: jax.stages.Compiled) -> ProgramMemory:
    """What a compiled program needs."""
    memory = compiled.memory_analysis()
    sizes = ('argument', 'temp', 'output', 'alias')
    arguments, temporaries, results, reused = (int(getattr(memory, f'{s}_size_in_bytes', 0)) for s in sizes)
    return ProgramMemory(arguments, temporaries, max(results - reused, 0))


@dataclass(frozen=True)
class Estimate:
    """What is known before the first step. Bytes and seconds per device; ``time`` None: unknown device."""

    costs: Costs
    state_bytes: int
    temporary_bytes: int
    total_bytes: int
    limit_bytes: int
    compile_seconds: float
    time: float | None
    device: str

    def text(self) -> str:
        """One line."""
        limit = f' of {_gib(self.limit_bytes)}' if self.limit_bytes else ''
        about = f', about {_seconds(self.time)} per step' if self.time is not None else ''
        return (
            f'compiled in {self.compile_seconds:.1f} s; per device ({self.device}): memory '
            f'{_gib(self.total_bytes)}{limit} '
            f'(arguments {_gib(self.state_bytes)}, temporaries {_gib(self.temporary_bytes)}), '
            f'{self.costs.flops / 1e9:.3g} GFLOP{about}'
        )


def estimate(spread: Parallel, state: PyTree, batch: PyTree, bf16: bool = False) -> Estimate:
    """Compiles a step (which ``spread.step`` then uses) and says what it will take.

    Raises:
        UserError: it needs more memory than the device has.
    """
    begin = time.perf_counter()
    compiled = spread.compile(state, batch)
    took = time.perf_counter() - begin
    memory = program_memory(compiled)
    total = memory.peak
    stats = jax.local_devices()[0].memory_stats() or {}
    device = this_device()
    limit = int(stats.get('bytes_limit', 0) or (device.memory if device and device.name == 'CPU' else 0))
    costs = step_costs(spread, state, batch)
    seconds = None if device is None else compute_time(costs, device, bf16)[0]
    if stats.get('bytes_limit') and total > stats['bytes_limit']:
        raise UserError(
            f'a step needs {_gib(total)} per device, which has {_gib(limit)}; use a smaller batch, '
            'scale.accumulate, remat, dtype=bfloat16, more devices or parallel=sharded'
        )
    kind = jax.local_devices()[0].device_kind
    return Estimate(costs, memory.arguments, memory.temporaries, total, limit, took, seconds, kind)


def _gib(count: float) -> str:
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'


def _seconds(value: float) -> str:
    return f'{value:.1f} s' if value >= 1 else f'{1000 * value:.0f} ms'
