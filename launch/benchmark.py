"""``avatar-jax bench``: time and memory of the generator's stages, of an inversion step and of a training iteration.

With ``--train``, of a whole training step on 1..n devices (``launch.benchmark_train``). ``--method gpavatar`` has
stages of its own (``launch/benchmark_gpavatar.py``). Those of the generator, the default:

| stage | what is timed |
|---|---|
| backbone | style rows to planes |
| rendering | planes and cameras to the raw image, depth and features |
| superresolution | raw image and features to the image |
| frame | the three together |
| inversion | value and gradient, with respect to the style rows, of a loss on raw and final image |
| training | value and gradient with respect to all parameters of the same loss, and an Adam update |

Compilation is timed apart. On a shared machine the minimum is the number to trust; the load average is in the report.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar_jax import processes
from avatar_jax.errors import UserError

if TYPE_CHECKING:
    from avatar_jax.models.triplane import GeneratorConfig

STAGES = ('backbone', 'rendering', 'superresolution', 'frame', 'inversion', 'training')
PRESETS = ('ffhq512', 'ffhq512-128', 'afhq512', 'shapenet128', 'heads128', 'tiny')


def preset(name: str) -> GeneratorConfig:
    """The generator configuration of that name; `UserError` if there is none."""
    from avatar_jax.models.triplane import GeneratorConfig

    if name not in PRESETS:
        raise UserError(f'--preset {name}: unknown; use one of {", ".join(PRESETS)}')
    family, _, raw = name.partition('-')
    make = getattr(GeneratorConfig, family)
    return make(int(raw)) if raw else make()


def run_benchmark(
    config: Any,
    stages: Sequence[str] = STAGES,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 5,
    out_json: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
    builder: Callable[[Any, int], Any] | None = None,
    known: Sequence[str] = STAGES,
) -> dict[str, Any]:
    """Measures the stages of a generator (or of another model) with random weights.

    Args:
      config: the generator; its ``dtype`` and ``rendering.ray_chunk`` are part of what is measured.
      stages: names from ``known``.
      batch_sizes: images per call; every stage runs with each.
      repeats: timed calls per stage, after one that is not counted.
      out_json: where to write the result, or None.
      report: receives one line per finished measurement, e.g. ``print``.
      builder: (config, batch) -> an object whose ``stage(name)`` gives function, arguments and the places of those that
        may be overwritten; None is the generator's.
      known: the stages that it has.

    Returns:
      {'machine', 'config', 'load_average', 'results': [{'stage', 'batch', 'trace_s', 'compile_s', 'min_s', 'median_s',
      'processor_min_s' (seconds summed over the cores: tells more than the clock on a busy machine), 'times_s',
      'temp_bytes', 'argument_bytes', 'output_bytes', 'peak_rss_bytes', 'device_peak_bytes'}]}; what the platform does
      not tell is None.
    """
    import jax

    if unknown := sorted(set(stages) - set(known)):
        raise UserError(f'--stages: {", ".join(unknown)} unknown; use {", ".join(known)}')
    if repeats < 1 or min(batch_sizes, default=0) < 1:
        raise UserError('--repeats and --batch-sizes: must be at least 1')
    result: dict[str, Any] = {
        'machine': _machine(),
        'config': dataclasses.asdict(config),
        'load_average': [_load()],
        'results': [],
    }
    for batch in batch_sizes:
        build = (builder or _Stages)(config, batch)
        for stage in stages:
            function, arguments, donate = build.stage(stage)
            measured = {'stage': stage, 'batch': batch, **_measure(function, arguments, donate, repeats)}
            result['results'].append(measured)
            if report:
                report(summary(measured))
        del build
        jax.clear_caches()
    result['load_average'].append(_load())
    if out_json is not None:
        path = Path(out_json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')
    return result


def summary(measured: dict[str, Any]) -> str:
    """One line of text for one measurement."""
    mib = (measured['temp_bytes'] or 0) / 2**20
    return (
        f'{measured["stage"]:16s} batch {measured["batch"]:<3d} min {measured["min_s"]:8.3f} s   median '
        f'{measured["median_s"]:8.3f} s   cores {measured["processor_min_s"]:8.3f} s   compile '
        f'{measured["compile_s"]:6.1f} s   temporaries {mib:7.0f} MiB'
    )


class _Stages:
    """Functions and example arguments of all stages for one batch size."""

    def __init__(self, config: GeneratorConfig, batch: int):
        import jax
        import jax.numpy as jnp

        from avatar_jax.models.triplane import TriPlaneGenerator, init_generator
        from avatar_jax.render import cameras

        self.model = TriPlaneGenerator(config)
        self.variables = init_generator(config, jax.random.key(0))
        pivot, radius = config.rendering.avg_camera_pivot, config.rendering.avg_camera_radius
        self.labels = cameras.orbit_labels(batch, radius, pivot)
        keys = jax.random.split(jax.random.key(1), 3)
        z = jax.random.normal(keys[0], (batch, config.z_dim))
        self.ws = self._apply('mapping', self.variables, z, self.labels)
        raw, size = config.neural_rendering_resolution, config.img_resolution
        planes = (batch, 3, config.plane_resolution, config.plane_resolution, config.plane_channels)
        self.planes = jax.random.normal(keys[1], planes)
        self.features = jnp.tanh(jax.random.normal(keys[2], (batch, raw, raw, config.decoder_out)))
        self.target = jnp.zeros((batch, size, size, 3)), jnp.zeros((batch, raw, raw, 3))

    def _apply(self, method, variables, *arguments):
        return self.model.apply(variables, *arguments, method=method)

    def stage(self, name: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """Function, arguments and the numbers of those that may be overwritten."""
        import jax

        from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer

        def loss(variables, ws, labels, target):
            out = self._apply('synthesis', variables, ws, labels)
            return ((out['image'] - target[0]) ** 2).mean() + ((out['image_raw'] - target[1]) ** 2).mean()

        def frame(variables, ws, labels):
            return self._apply('synthesis', variables, ws, labels)

        def train(params, state, buffers, ws, labels, target):
            value, grads = jax.value_and_grad(lambda p: loss({'params': p, **buffers}, ws, labels, target))(params)
            updates, state = optimizer.update(grads, state, params)
            return jax.tree.map(lambda p, u: p + u, params, updates), state, value

        if name == 'training':
            import jax.numpy as jnp

            params = jax.tree.map(jnp.copy, self.variables['params'])  # the step overwrites them
            buffers = {k: v for k, v in self.variables.items() if k != 'params'}
            optimizer = make_optimizer(OptimizerConfig(lr=1e-4))
            return train, (params, optimizer.init(params), buffers, self.ws, self.labels, self.target), (0, 1)
        simple = {
            'backbone': (lambda v, ws: self._apply('planes', v, ws), (self.ws,)),
            'rendering': (lambda v, planes, c: self._apply('render', v, planes, c), (self.planes, self.labels)),
            'superresolution': (
                lambda v, features, ws: self._apply('superresolve', v, features[..., :3], features, ws),
                (self.features, self.ws),
            ),
            'frame': (frame, (self.ws, self.labels)),
            'inversion': (jax.value_and_grad(loss, 1), (self.ws, self.labels, self.target)),
        }
        function, arguments = simple[name]
        return function, (self.variables, *arguments), ()


def _measure(function: Callable, arguments: tuple, donate: tuple[int, ...], repeats: int) -> dict[str, Any]:
    import jax

    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    _reset_peak()
    times, processor = [], []
    arguments = list(arguments)
    for _ in range(repeats + 1):
        begin, begin_processor = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
        for place in donate:  # what was overwritten comes back at the same place of the output
            arguments[place] = out[place]
    times = times[1:]
    memory = compiled.memory_analysis()
    stats = jax.devices()[0].memory_stats() or {}
    return {
        'trace_s': traced - start,
        'compile_s': done - traced,
        'min_s': min(times),
        'median_s': statistics.median(times),
        'processor_min_s': min(processor[1:]),
        'times_s': times,
        'temp_bytes': getattr(memory, 'temp_size_in_bytes', None),
        'argument_bytes': getattr(memory, 'argument_size_in_bytes', None),
        'output_bytes': getattr(memory, 'output_size_in_bytes', None),
        'peak_rss_bytes': _peak_rss(),
        'device_peak_bytes': stats.get('peak_bytes_in_use'),
    }


def _reset_peak() -> None:
    """Starts a new resident-memory maximum, where the system can (Linux)."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return  # the maximum then is that of the whole process


def _peak_rss() -> int | None:
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM')), None)


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None


def _machine() -> dict[str, Any]:
    import jax

    return {
        'system': platform.platform(),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'cpu_cores': os.cpu_count(),
        'devices': [f'{d.platform}: {d.device_kind}' for d in jax.devices()],
        'matmul_precision': jax.config.jax_default_matmul_precision,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``avatar-jax bench``."""
    parser.add_argument('--method', choices=('otavatar', 'gpavatar'), default='otavatar', help='whose stages')
    parser.add_argument(
        '--preset',
        metavar='NAME',
        help=f'one of {", ".join(PRESETS)} (default: heads128); gpavatar: full, heads (default), tiny',
    )
    parser.add_argument('--stages', nargs='+', metavar='STAGE', help=f'among {", ".join(STAGES)} (default: all)')
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1], metavar='N', help='images per call')
    parser.add_argument('--repeats', type=int, default=5, metavar='N', help='timed calls per stage (default: 5)')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='type of the convolutions')
    parser.add_argument('--ray-chunk', type=int, metavar='N', help='rays in memory at once (default: the preset)')
    parser.add_argument('--out', metavar='FILE.json', help='write all numbers there')
    train = parser.add_argument_group('training steps')
    train.add_argument(
        '--train', action='store_true', help='measure the training step of --config instead of the stages'
    )
    train.add_argument(
        '--config',
        metavar='FILE[:VARIANT]',
        default='configs/otavatar_heads.py:tiny',
        help='the run (default: %(default)s)',
    )
    train.add_argument(
        '--devices', nargs='+', type=int, default=[1], metavar='N', help='numbers of devices (default: 1)'
    )
    train.add_argument(
        '--rows', type=int, default=0, metavar='N', help="samples of each device (default: the run's batch)"
    )
    train.add_argument('--parallel', choices=('pmap', 'shard_map', 'sharded'), default='pmap', help='how it is spread')
    train.add_argument('--count-only', action='store_true', help='count arithmetic and collectives, compile nothing')
    parser.set_defaults(overrides=())
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """``avatar-jax bench``."""
    if args.train:
        from launch.benchmark_train import run_train_benchmark
        from launch.programs import load_run

        processes.join(processes.from_arguments(args))
        run_train_benchmark(
            load_run(args.config, args.overrides),
            args.devices,
            args.rows,
            args.repeats,
            args.parallel,
            args.out,
            print,
            args.count_only,
        )
        return
    if args.overrides:
        raise UserError(f'{args.overrides[0]}: goes with --train')
    if args.method == 'gpavatar':
        from launch import benchmark_gpavatar as other

        config = other.preset(args.preset or 'heads', args.dtype, args.ray_chunk)
        run_benchmark(
            config,
            args.stages or other.STAGES,
            args.batch_sizes,
            args.repeats,
            args.out,
            print,
            other.Stages,
            other.STAGES,
        )
        print(other.PAPER)
        return
    config = preset(args.preset or 'heads128')
    if args.dtype:
        config = config.replace(dtype=args.dtype)
    if args.ray_chunk is not None:
        config = config.replace(rendering={'ray_chunk': args.ray_chunk})
    run_benchmark(config, args.stages or STAGES, args.batch_sizes, args.repeats, args.out, print)
