"""``avatar-jax bench --everything``: all stages of all methods within a given time, as one table for each size.

What matters most comes first: every method at its own default size, on accelerators also at the size of its paper and
with several frames side by side, then the error that bfloat16 makes in each stage. Each figure is written when it is
there. What the time did not suffice for is listed. Beside what was measured stands what ``train.costs`` predicts.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from avatar_jax.bench.stages import machine, run_benchmark, summary
from avatar_jax.errors import UserError
from avatar_jax.io.atomic import output_folder, write_json
from avatar_jax.methods.base import DEFAULT, methods
from avatar_jax.train.costs import Costs, compute_time, find_device

if TYPE_CHECKING:
    from avatar_jax.methods.base import Bench, Method
    from avatar_jax.types import PyTree

PREDICTED = ('H100', 'H200', 'TPU v5p')
SIDE_BY_SIDE = 8  # frames at once, on accelerators
FRAME, RAW = 'frame', 'results.json'


@dataclass(frozen=True)
class Item:
    """What is measured of a stage: its time, or (``error``) how far bfloat16 is from float32."""

    method: str
    preset: str
    stage: str
    batch: int = 1
    error: bool = False

    @property
    def text(self) -> str:
        """For people."""
        what = f'{self.method} {self.preset} {self.stage}'
        return f'{what} bfloat16 error' if self.error else f'{what} batch {self.batch}'


def plan(owners: Sequence[Method], accelerator: bool) -> list[Item]:
    """What to measure, the most important first. A method whose stages another has, too, of the same sizes, is left
    out."""
    seen, able = {}, []
    for owner in sorted(owners, key=lambda m: m.name != DEFAULT):
        if owner.bench is None or set(owner.bench.stages) <= seen.get(owner.bench.config, set()):
            continue
        seen[owner.bench.config] = set(owner.bench.stages)
        able.append(owner)
    items = [Item(m.name, m.bench.presets[0], s) for m in able for s in m.bench.stages]
    if accelerator:
        large = [m for m in able if len(m.bench.presets) > 1]
        items += [Item(m.name, m.bench.presets[1], s) for m in large for s in m.bench.stages]
        items += [Item(m.name, p, FRAME, SIDE_BY_SIDE) for m in able for p in m.bench.presets[:2]]
    small = [m for m in able if _takes_bfloat16(m.bench)]
    return items + [Item(m.name, m.bench.presets[0], s, error=True) for m in small for s in m.bench.stages]


def run_everything(
    folder: str | os.PathLike,
    seconds: float = 480.0,
    repeats: int = 3,
    owners: Sequence[Method] | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Measures as much of ``plan`` as the time allows.

    Args:
        folder: gets ``results.json`` after every figure and ``tables.md`` at the end.
        seconds: nothing new is begun after so many. repeats: timed calls per stage, after one that is not counted.
        owners: methods; None: all. report: receives one line per figure.

    Returns:
        {'machine', 'seconds', 'results': [of ``run_benchmark``, with 'method' and 'preset'], 'errors': [{'method',
        'preset', 'stage', 'relative_error'}], 'failed': lines, 'left_out': names}.

    Raises:
        UserError: the folder cannot be written to, or the time is not positive.
    """
    if not seconds > 0:
        raise UserError(f'--budget: must be above 0, got {seconds}')
    folder = output_folder(folder)
    owners = list(methods() if owners is None else owners)
    by_name = {m.name: m.bench for m in owners}
    begin, found, errors, failed, left_out = time.monotonic(), [], [], [], []
    result = {'machine': machine(), 'results': found, 'errors': errors, 'failed': failed, 'left_out': left_out}
    for item in plan(owners, jax.default_backend() != 'cpu'):
        if time.monotonic() - begin > seconds:
            left_out.append(item.text)
            continue
        bench, about = by_name[item.method], {'method': item.method, 'preset': item.preset}
        try:
            if item.error:
                wrong = bfloat16_error(bench, item.preset, item.stage)
                errors.append({**about, 'stage': item.stage, 'relative_error': wrong})
                line = f'{item.text}: {wrong:.1e}'
            else:
                config = bench.config(item.preset, None, None)
                (measured,) = run_benchmark(bench, config, [item.stage], [item.batch], repeats)['results']
                found.append({**about, **measured})
                line = f'{item.method} {item.preset} {summary(measured)}'
        except jax.errors.JaxRuntimeError as error:  # most often too little memory on the device: the others go on
            line = f'{item.text}: {str(error).splitlines()[0]}'
            failed.append(line)
        if report:
            report(line)
        result['seconds'] = round(time.monotonic() - begin, 1)
        write_json(folder / RAW, result)
    write_json(folder / RAW, result)
    (folder / 'tables.md').write_text(tables(result))
    if report:
        rest = f'; no time for {len(left_out)}: {left_out[0]}, ...' if left_out else ''
        report(f'{folder}: {len(found) + len(errors)} figures in tables.md and {RAW}{rest}')
    return result


def bfloat16_error(bench: Bench, preset: str, stage: str) -> float:
    """Relative L2 distance of a stage's results in bfloat16 to those in float32, with the same random numbers; that of
    the worst result."""

    def results(dtype: str) -> PyTree:
        function, arguments, _ = bench.build(bench.config(preset, dtype, None), 1).stage(stage)
        return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.jit(function)(*arguments))

    exact, rough = (jax.tree.leaves(results(dtype)) for dtype in ('float32', 'bfloat16'))
    jax.clear_caches()
    pairs = [(a, b) for a, b in zip(exact, rough, strict=True) if a.size and np.linalg.norm(a) > 0]
    return max((float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs), default=0.0)


def tables(result: Mapping[str, object]) -> str:
    """The figures as Markdown."""
    m = result['machine']
    lines = [
        f'Measured with `avatar-jax bench --everything`: {", ".join(m["devices"])}, {m["cpu_cores"]} CPU cores, JAX '
        f'{m["jax"]}, Python {m["python"]}. Times are the shortest of the calls; predictions are those of '
        'docs/scaling.md.',
    ]
    groups = dict.fromkeys((r['method'], r['preset']) for r in result['results'])
    for group in groups:
        lines += ['', f'## {group[0]}, {group[1]}', '', *_table([r for r in result['results'] if _of(r) == group])]
    if result['errors']:
        lines += ['', '## bfloat16 against float32', '', '| | stage | relative error |', '|---|---|---|']
        lines += [
            f'| {e["method"]}, {e["preset"]} | {e["stage"]} | {e["relative_error"]:.1e} |' for e in result['errors']
        ]
    lines += [f'\nFailed: {line}' for line in result['failed']]
    if result['left_out']:
        lines += ['', f'Left out for want of time: {", ".join(result["left_out"])}.']
    return '\n'.join(lines) + '\n'


def _of(row: Mapping[str, object]) -> tuple[object, object]:
    return row['method'], row['preset']


def _table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    heads = ['stage', 'batch', 'time', 'per second', 'GFLOP', 'GFLOP/s', 'compiled in', 'temporaries']
    yield f'| {" | ".join([*heads, *PREDICTED])} |'
    yield '|---' * (len(heads) + len(PREDICTED)) + '|'
    for r in rows:
        costs = Costs(r['flops'], r['bytes'])
        cells = [
            r['stage'],
            str(r['batch']),
            _time(r['min_s']),
            f'{r["batch"] / r["min_s"]:.3g}',
            f'{r["flops"] / 1e9:.3g}',
            f'{r["flops"] / r["min_s"] / 1e9:.3g}',
            _time(r['compile_s']),
            '?' if r['temp_bytes'] is None else f'{r["temp_bytes"] / 2**20:.0f} MiB',
        ]
        yield f'| {" | ".join([*cells, *(_time(compute_time(costs, find_device(k))[0]) for k in PREDICTED)])} |'


def _time(seconds: float) -> str:
    if not seconds or not math.isfinite(seconds):
        return '0'
    return f'{seconds:.3g} s' if seconds >= 1 else f'{1e3 * seconds:.3g} ms'


def _takes_bfloat16(bench: Bench) -> bool:
    try:
        bench.config(bench.presets[0], 'bfloat16', None)
    except UserError:
        return False
    return True
