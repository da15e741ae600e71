"""Time and memory of a method's stages.

Compilation is timed apart. On a shared machine the minimum is the number to trust; the load average is in the report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError

if TYPE_CHECKING:
    from avatar_jax.methods.base import Bench
    from avatar_jax.types import Config


def run_benchmark(
    bench: Bench,
    config: Config,
    stages: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 5,
    out_json: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
    profiled: bool = False,
) -> dict[str, Any]:
    """Measures the stages of a model with random weights.

    Args:
        bench: ``methods.base.Bench`` of its method.
        config: the model's configuration; how it is computed (``dtype``, ``ray_chunk``) is part of what is measured.
        stages: names from ``bench.stages``; None: all.
        batch_sizes: images per call; every stage runs with each.
        repeats: timed calls per stage, after one that is not counted.
        out_json: where to write the result, or None.
        report: receives one line per finished measurement, e.g. ``print``.
        profiled: also measure what the machine reaches with the same shapes, and list the heaviest operations
            (``bench.profile``).

    Returns:
        {'machine', 'config', 'load_average', 'results': [{'stage', 'batch', 'trace_s', 'compile_s', 'min_s',
            'median_s',
        'processor_min_s' (seconds summed over the cores: tells more than the clock on a busy machine), 'times_s',
        'flops', 'bytes' (counted from shapes; loops of unknown length count once), 'temp_bytes', 'argument_bytes',
        'output_bytes', 'peak_rss_bytes', 'device_peak_bytes', perhaps 'profile'}]}; what the platform does not tell
            is None. 'compared': what ``bench.compared`` asks for, in lines.
    """
    import jax

    stages = check_stages(bench, stages, batch_sizes)
    Check.values(OPTION, repeats=repeats).at_least(1, 'repeats')
    result: dict[str, Any] = {
        'machine': machine(),
        'config': dataclasses.asdict(config),
        'load_average': [_load()],
        'results': [],
        'compared': [],
    }
    for batch in batch_sizes:
        build = bench.build(config, batch)
        for stage in stages:
            function, arguments, donate = build.stage(stage)
            measured = {'stage': stage, 'batch': batch, **_measure(function, arguments, donate, repeats, profiled)}
            result['results'].append(measured)
            if report:
                report(summary(measured))
                if profiled:
                    report(measured['profile'].text())
            if profiled:
                measured['profile'] = measured['profile'].to_dict()
        del build
        jax.clear_caches()
        for line in comparisons(bench, [r for r in result['results'] if r['batch'] == batch]):
            result['compared'].append(line)
            if report:
                report(line)
    result['load_average'].append(_load())
    if out_json is not None:
        path = Path(out_json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')
    return result


def comparisons(bench: Bench, results: Sequence[dict[str, Any]]) -> list[str]:
    """Stages of one batch size that the method wants to see beside each other: time, operations, memory."""
    found, lines = {r['stage']: r for r in results}, []

    def together(names: str) -> dict[str, float] | None:
        rows = [found.get(name) for name in names.split('+')]
        if None in rows:
            return None
        memory = [r['temp_bytes'] + r['argument_bytes'] if r['temp_bytes'] else 0 for r in rows]
        return {'time': sum(r['min_s'] for r in rows), 'flops': sum(r['flops'] for r in rows), 'memory': max(memory)}

    for first, second in bench.compared:
        a, b = together(first), together(second)
        if a is None or b is None:
            continue
        counts = f'{a["flops"] / 1e9:.3g} and {b["flops"] / 1e9:.3g} GFLOP'
        parts = [
            f'{a["time"] / b["time"]:.2f} of the time',
            f'{a["flops"] / b["flops"]:.2f} of the operations ({counts})',
        ]
        if a['memory'] and b['memory']:
            sizes = f'{int(a["memory"]) >> 20} and {int(b["memory"]) >> 20} MiB'
            parts.append(f'{a["memory"] / b["memory"]:.2f} of the memory ({sizes})')
        lines.append(f'{first} against {second}, batch {results[0]["batch"]}: {", ".join(parts)}')
    return lines


def check_stages(bench: Bench, stages: Sequence[str] | None, batch_sizes: Sequence[int]) -> Sequence[str]:
    """The stages that are asked for, None being all. Raises ``UserError`` for what cannot be measured."""
    stages = bench.stages if stages is None else stages
    if unknown := sorted(set(stages) - set(bench.stages)):
        raise UserError(f'--stages: {", ".join(unknown)} unknown; use {", ".join(bench.stages)}')
    Check.values(OPTION, batch_sizes=min(batch_sizes, default=0)).at_least(1, 'batch_sizes')
    return stages


def summary(measured: dict[str, Any]) -> str:
    """One line of text for one measurement."""
    mib = (measured['temp_bytes'] or 0) / 2**20
    return (
        f'{measured["stage"]:16s} batch {measured["batch"]:<3d} min {measured["min_s"]:8.3f} s   median '
        f'{measured["median_s"]:8.3f} s   cores {measured["processor_min_s"]:8.3f} s   compile '
        f'{measured["compile_s"]:6.1f} s   {measured["flops"] / 1e9:8.2f} GFLOP   temporaries {mib:7.0f} MiB'
    )


def _measure(
    function: Callable, arguments: tuple, donate: tuple[int, ...], repeats: int, profiled: bool
) -> dict[str, Any]:
    import jax

    from avatar_jax.bench.profile import profile
    from avatar_jax.train.costs import count

    start = time.perf_counter()
    traces = jax.jit(function, donate_argnums=donate).trace(*arguments)
    lowered = traces.lower()
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    costs = count(traces.jaxpr)
    reset_peak()
    arguments = list(arguments)

    def call() -> tuple[float, float]:
        begin, begin_processor = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(compiled(*arguments))
        spent = time.perf_counter() - begin, time.process_time() - begin_processor
        for place in donate:  # what was overwritten comes back at the same place of the output
            arguments[place] = out[place]
        return spent

    times, processor = zip(*[call() for _ in range(repeats + 1)][1:], strict=True)
    resident = peak_rss()
    extra = {'profile': profile(call, compiled, traces.jaxpr, costs, min(times))} if profiled else {}
    memory = compiled.memory_analysis()
    stats = jax.devices()[0].memory_stats() or {}
    return {
        'trace_s': traced - start,
        'flops': costs.flops,
        'bytes': costs.bytes,
        'compile_s': done - traced,
        'min_s': min(times),
        'median_s': statistics.median(times),
        'processor_min_s': min(processor),
        'times_s': times,
        'temp_bytes': getattr(memory, 'temp_size_in_bytes', None),
        'argument_bytes': getattr(memory, 'argument_size_in_bytes', None),
        'output_bytes': getattr(memory, 'output_size_in_bytes', None),
        'peak_rss_bytes': resident,
        'device_peak_bytes': stats.get('peak_bytes_in_use'),
        **extra,
    }


def reset_peak() -> None:
    """Starts a new resident-memory maximum, where the system can (Linux)."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return  # the maximum then is that of the whole process


def peak_rss() -> int | None:
    """Largest resident memory since ``reset_peak``, bytes; None where the system does not tell."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM')), None)


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None


def machine() -> dict[str, Any]:
    """The system, versions and devices that figures belong to."""
    import jax

    return {
        'system': platform.platform(),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'cpu_cores': os.cpu_count(),
        'devices': [f'{d.platform}: {d.device_kind}' for d in jax.devices()],
        'matmul_precision': jax.config.jax_default_matmul_precision,
    }
