"""Where the time of a compiled program goes: rates, what the machine reaches, and the heaviest operations.

A rate alone says little, so the same run measures what this machine does at best with the same shapes: the largest
convolutions or products of the stage by themselves, and a pass over its largest array. The operations are those of the
compiled program, with the time that the profiler of JAX saw for each.
"""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.train.costs import Costs, Product, products

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr
    from jax.stages import Compiled

HEAVIEST = 10
CANDIDATES = 3  # of products that are run by themselves
CALLS = 3
# They hold other operations, which are listed themselves.
_HOLDING = {'while', 'call', 'conditional', 'async-start', 'async-done'}
_LINE = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (\(?[a-z0-9]+\[[^=]*?) ([a-z][\w\-]*)\(')
_ORIGIN = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
        name, kind, shape: its name there, what it is ('convolution', 'fusion', ...), and its result.
        origin: the part of the program that it was written as, e.g. 'block/conv/conv_general_dilated'; '' if the
            compiler does not tell.
        calls: times that it ran in one call of the program. seconds: of all of them together.
        share: of the seconds of all operations. Operations may run side by side, so that the sum can exceed the clock.
    """

    name: str
    kind: str
    shape: str
    origin: str
    calls: float
    seconds: float
    share: float


@dataclass(frozen=True)
class Peak:
    """What the machine reaches with a stage's own shapes.

    Attributes:
        flops: FLOP/s of the fastest of its largest products. product: which one that is, as text.
        bandwidth: bytes/s of a negation of its largest operand, read and written.
    """

    flops: float
    bandwidth: float
    product: str


@dataclass(frozen=True)
class Profile:
    """A stage's arithmetic and traffic, its rates (per second of the clock), and where its time goes.

    Attributes:
        flops, bytes: counted, see ``train.costs.Costs``. peak: of this machine.
        flops_per_s, bytes_per_s: reached. compute_share, memory_share: of the peaks.
        operations: the heaviest first; empty where the profiler names none.
    """

    flops: float
    bytes: float
    flops_per_s: float
    bytes_per_s: float
    peak: Peak
    compute_share: float
    memory_share: float
    operations: tuple[Operation, ...]

    def text(self) -> str:
        """Several lines for people."""
        p = self.peak
        lines = [
            f'    {self.flops / 1e9:.2f} GFLOP, {self.bytes / 1e9:.3f} GB; {self.flops_per_s / 1e9:.1f} GFLOP/s '
            f'({self.compute_share:.0%} of {p.flops / 1e9:.0f}: {p.product}), {self.bytes_per_s / 1e9:.2f} GB/s '
            f'({self.memory_share:.0%} of {p.bandwidth / 1e9:.1f})'
        ]
        lines += [
            f'   {o.seconds * 1e3:9.2f} ms {o.share:4.0%} {o.calls:5.0f} x {o.kind:12s} {o.shape} {o.origin or o.name}'
            for o in self.operations
        ]
        if not self.operations:
            lines.append('    the profiler names no operations on this platform')
        return '\n'.join(lines)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def profile(
    call: Callable[[], object], compiled: Compiled, jaxpr: ClosedJaxpr, costs: Costs, seconds: float
) -> Profile:
    """A stage's profile.

    Args:
        call: runs the compiled program once and waits for its results.
        compiled: the program. jaxpr: what it was compiled from. costs: counted from that.
        seconds: of a call, without the profiler.
    """
    peak = measure_peak(jaxpr)
    rates = costs.flops / seconds, costs.bytes / seconds
    return Profile(
        costs.flops,
        costs.bytes,
        *rates,
        peak,
        rates[0] / peak.flops if peak.flops else 0.0,
        rates[1] / peak.bandwidth,
        tuple(heaviest(recorded(call), described(compiled.as_text() or ''))),
    )


def measure_peak(jaxpr: ClosedJaxpr) -> Peak:
    """Rates of the program's largest products, each by itself, and of a pass over their largest array."""
    found = sorted(products(jaxpr), key=lambda p: -p.flops * p.times)[:CANDIDATES]
    rates = [(p.flops / _best(*_alone(p)), p.text) for p in found]
    flops, text = max(rates, default=(0.0, 'no product'))
    largest = max((np.prod(s, dtype=np.int64) for p in found for s in p.shapes), default=1 << 20)
    array = jnp.ones(max(int(largest), 1 << 16), jnp.float32)
    return Peak(flops, 2.0 * array.nbytes / _best(jax.jit(jnp.negative), array), text)


def recorded(call: Callable[[], object], calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """Runs it under JAX's profiler: name of an operation -> (runs, seconds) per call, over all threads and devices."""
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(calls):
                call()
        seen: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        # The reader makes types without a module, of which Python 3.12 warns; as an error that would end the process.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            for file in sorted(Path(folder).rglob('*.xplane.pb')):
                data = jax.profiler.ProfileData.from_file(str(file))
                for event in (e for plane in data.planes for line in plane.lines for e in line.events):
                    name = next((v for k, v in event.stats if k == 'hlo_op'), None)
                    if name is not None:
                        seen[str(name)][0] += 1 / calls
                        seen[str(name)][1] += event.duration_ns * 1e-9 / calls
    return {name: (runs, seconds) for name, (runs, seconds) in seen.items()}


def described(text: str) -> dict[str, tuple[str, str, str]]:
    """Operations of a compiled program's text: name -> (kind, shape, origin)."""
    found = {}
    for line in text.splitlines():
        if matched := _LINE.match(line):
            name, shape, kind = matched.groups()
            origin = _ORIGIN.search(line)
            found[name] = (kind, re.sub(r'\{[^}]*\}', '', shape), _short(origin.group(1)) if origin else '')
    return found


def heaviest(
    seen: dict[str, tuple[float, float]], known: dict[str, tuple[str, str, str]], count: int = HEAVIEST
) -> list[Operation]:
    """The ``count`` operations that took longest, without those which hold others."""
    alone = {n: v for n, v in seen.items() if known.get(n, ('',))[0] not in _HOLDING}
    total = sum(seconds for _, seconds in alone.values()) or 1.0
    rows = sorted(alone.items(), key=lambda item: -item[1][1])[:count]
    return [
        Operation(name, *known.get(name, ('operation', '', '')), runs, seconds, seconds / total)
        for name, (runs, seconds) in rows
    ]


def _short(origin: str) -> str:
    """The last steps of a path such as 'jit(f)/jit(main)/block/conv/conv_general_dilated'."""
    return '/'.join([p for p in origin.split('/') if not p.startswith('jit(')][-4:])


def _alone(product: Product) -> tuple[Callable, Sequence[jax.Array]]:
    """The product as a compiled function, and small numbers of its shapes."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=s) * 0.1, d) for s, d in zip(product.shapes, product.dtypes, strict=True)]
    return jax.jit(product.function), arrays


def _best(function: Callable, arguments: jax.Array | Iterable[jax.Array], at_least: float = 0.05) -> float:
    """The shortest of some calls, repeated for at least so many seconds."""
    arguments = [arguments] if isinstance(arguments, jax.Array) else list(arguments)
    jax.block_until_ready(function(*arguments))
    times: list[float] = []
    while len(times) < 3 or (sum(times) < at_least and len(times) < 200):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begin)
    return max(min(times), 1e-9)
