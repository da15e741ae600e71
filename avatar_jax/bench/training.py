"""``avatar-jax bench --train``: what a training step costs on 1..n devices.

    avatar-jax bench --train --config configs/NAME.py:tiny --devices 1 2 4 --out scale.json

Every device gets ``--rows`` samples (weak scaling), made-up ones: reading data is not measured. Efficiency is images
per second and device over that of the first count. On a CPU the devices are forced ones that share its cores, so images
per second cannot grow; what such a run shows is the cost of being spread. With several processes, ``--devices`` is the
number of all devices of all of them. ``--count-only`` compiles nothing and counts
arithmetic, traffic and collectives, at any size.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar_jax.bench.stages import machine
from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.processes import is_first
from avatar_jax.train.program import Program

if TYPE_CHECKING:
    from avatar_jax.train.costs import Costs


def run_train_benchmark(
    program: Program,
    counts: Sequence[int] = (1,),
    rows: int = 0,
    repeats: int = 3,
    kind: str = 'pmap',
    out_json: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
    count_only: bool = False,
    memory_only: bool = False,
) -> dict[str, Any]:
    """Measures (or counts) a training step.

    Args:
        program: the step with made-up data.
        counts: numbers of devices, ascending.
        rows: samples of each device; 0: the configuration's batch over the largest count, at least 1.
        repeats: timed steps of each variant, after one that is not counted.
        kind: how the step is spread, see ``parallel.parallelise``.
        out_json: where to write the result, or None.
        report: receives one line per finished measurement.
        count_only: compile and run nothing. memory_only: compile, and run nothing.

    Returns:
        {'method', 'machine', 'results': [{'devices', 'rows', 'images', 'gflop', 'traffic_bytes', 'collective_bytes',
        'collectives', 'state_bytes', unless ``count_only`` 'compile_s', 'argument_bytes', 'temp_bytes', 'peak_bytes',
        and unless ``memory_only`` 'device_peak_bytes', 'step_s', 'times_s', 'images_per_s', 'efficiency',
        'predicted_s'}]}. Costs and bytes are those of one device; of several variants of a step, means by their shares
        (bytes: the largest).
    """
    import jax

    check = Check.values(OPTION, repeats=repeats, devices=min(counts, default=0), rows=rows)
    check.at_least(1, 'repeats', 'devices')
    check.at_least(0, 'rows')
    counts = sorted(set(counts))
    have = 0 if count_only else len(_devices(counts[-1]))
    if jax.process_count() > 1 and counts != [have]:
        raise UserError(f'--devices: with several processes give the number of all devices, {have}')
    if have < counts[-1] and not count_only:
        raise UserError(f'--devices {counts[-1]}: there are only {have} here')
    rows = rows or max(program.batch // counts[-1], 1)
    result: dict[str, Any] = {'method': program.name, 'parallel': kind, 'machine': machine(), 'results': []}
    for count in counts:
        if count_only:
            measured = _counted(program, count, rows)
        else:
            measured = _measured(program, count, rows, 0 if memory_only else repeats, kind)
        first = result['results'][0] if result['results'] else measured
        if 'step_s' in measured:
            measured['efficiency'] = measured['images_per_s'] / count / (first['images_per_s'] / first['devices'])
        result['results'].append(measured)
        if report and is_first():
            report(summary(program.name, measured))
        jax.clear_caches()
    if out_json is not None and is_first():
        path = Path(out_json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')
    return result


def summary(name: str, m: dict[str, Any]) -> str:
    """One line of text for one measurement."""
    text = (
        f'{name} on {m["devices"]} device(s), {m["rows"]} rows each: {m["gflop"]:.4g} GFLOP, '
        f'sums {m["collective_bytes"] / 2**20:.4g} MiB in {m["collectives"]:.0f} calls, '
        f'state {m["state_bytes"] / 2**20:.4g} MiB'
    )
    if 'peak_bytes' in m:
        text += f'; memory {m["peak_bytes"] / 2**20:.0f} MiB, compile {m["compile_s"]:.1f} s'
    if 'step_s' in m:
        text += (
            f', temporaries {m["temp_bytes"] / 2**20:.0f} MiB; {m["step_s"]:.3f} s/step, {m["images_per_s"]:.2f} '
            f'images/s, efficiency {m["efficiency"]:.2f}'
        )
    return text


def _devices(wanted: int) -> list:
    """Devices; on a CPU the wanted number of forced ones, if JAX has not used it yet."""
    import jax

    if not jax.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # the backend runs already: what is there is there
            jax.config.update('jax_num_cpu_devices', wanted)
    return jax.devices()


def _counted(program: Program, count: int, rows: int) -> dict[str, Any]:
    import jax

    from avatar_jax.train.costs import Costs, count_step, tree_bytes

    state, constants = program.abstract_state(), program.abstract_constants()
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), program.make_batch(1))
    costs = Costs()
    for share, _, step in program.variants:
        costs += count_step(step, state, batch, constants, count) * share
    return _record(program, count, rows, costs, tree_bytes(state), tree_bytes(constants))


def _record(
    program: Program, count: int, rows: int, costs: Costs, state_bytes: int, constant_bytes: int
) -> dict[str, Any]:
    return {
        'devices': count,
        'rows': rows,
        'images': rows * count * program.images_per_row,
        'gflop': costs.flops / 1e9,
        'traffic_bytes': costs.bytes,
        'collective_bytes': costs.collective_bytes,
        'collectives': costs.collectives,
        'state_bytes': state_bytes,
        'constant_bytes': constant_bytes,
    }


def _measured(program: Program, count: int, rows: int, repeats: int, kind: str) -> dict[str, Any]:
    """Compiles the step and, with ``repeats``, runs it."""
    import jax

    from avatar_jax.parallel import parallelise
    from avatar_jax.train.costs import Costs, compute_time, program_memory, step_costs, this_device, tree_bytes

    constants = program.make_constants()
    batch = program.make_batch(rows * count // jax.process_count())
    costs, compile_s, step_s, plans, times = Costs(), 0.0, 0.0, [], {}
    host = program.make_state()
    for share, name, step in program.variants:
        spread = parallelise(step, kind=kind, constants=constants, devices=jax.devices()[:count])
        state, placed = spread.put_state(host), spread.put_batch(batch)
        begin = time.perf_counter()
        plans.append(program_memory(spread.compile(state, placed)))
        compile_s += time.perf_counter() - begin
        costs += step_costs(spread, state, placed) * share
        if not repeats:
            continue
        taken = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            state, metrics = spread.step(state, placed)
            jax.block_until_ready((state, metrics))
            taken.append(time.perf_counter() - begin)
        times[name] = taken[1:]
        step_s += share * statistics.median(taken[1:])
    record = {
        **_record(program, count, rows, costs, tree_bytes(host), tree_bytes(constants)),
        'compile_s': compile_s,
        'argument_bytes': max(p.arguments for p in plans),
        'temp_bytes': max(p.temporaries for p in plans),
        'peak_bytes': max(p.peak for p in plans),
    }
    if not repeats:
        return record
    device = this_device()
    stats = jax.devices()[0].memory_stats() or {}
    return {
        **record,
        'device_peak_bytes': stats.get('peak_bytes_in_use'),
        'step_s': step_s,
        'times_s': times,
        'images_per_s': record['images'] / step_s,
        'predicted_s': compute_time(costs, device, program.bf16)[0] if device else None,
    }
