"""Measures time and memory of a method's stages, with --train of a training step on one or several devices, or with
--everything of all stages of all methods.

Weights and data are random. Compilation is timed separately. On a machine with other load, the minimum is the number to
trust; the load average is in the report.
"""

from __future__ import annotations

import argparse

from avatar_jax import processes
from avatar_jax.bench.choices import bench_of, check_together, measure
from avatar_jax.methods.base import DEFAULT, an_example, methods
from avatar_jax.options import seconds_of

BUDGET = '8m'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``avatar-jax bench``."""
    able = [m for m in methods() if m.bench is not None]
    presets = '; '.join(f'{m.name}: {", ".join(m.bench.presets)}' for m in able)
    stages = '; '.join(f'{m.name}: {", ".join(m.bench.stages)}' for m in able)
    add = parser.add_argument
    text = f'{", ".join(m.name for m in able)} (default: %(default)s)'
    add('--method', metavar='NAME', default=DEFAULT, help=text)
    text = f'size of the model (default: the first of the method). {presets}'
    add('--preset', metavar='NAME', help=text)
    add('--stages', nargs='+', metavar='STAGE', help=f'measure only these stages (default: all). {stages}')
    add('--batch-sizes', nargs='+', type=int, default=[1], metavar='N', help='images per call (default: 1)')
    add('--repeats', type=int, default=5, metavar='N', help='timed calls per stage or step (default: 5)')
    text = 'type of the activations of convolutions (default: as the preset has it)'
    add('--dtype', choices=('float32', 'bfloat16'), help=text)
    text = 'rays that are rendered at a time (default: as the preset has it)'
    add('--ray-chunk', type=int, metavar='N', help=text)
    text = (
        "also print rates beside what this machine reaches with the same shapes, and each stage's heaviest operations"
    )
    add('--profile', action='store_true', help=text)
    text = (
        'only compile, and print the peak memory of each stage at every preset (or at --preset); with --train that of '
        'the training step'
    )
    add('--memory', action='store_true', help=text)
    add('--out', metavar='FILE.json', help='file for all figures; a folder for --everything')
    add('--everything', action='store_true', help='measure all stages of all methods and write tables into --out DIR')
    text = f'with --everything: begin nothing new after this time, e.g. 90s, 8m or 1h (default: {BUDGET})'
    add('--budget', metavar='TIME', help=text)
    add = parser.add_argument_group('a whole video').add_argument
    text = 'measure a video of this avatar (of avatar-jax invert) instead: read the driver, render and encode'
    add('--video', metavar='DIR', help=text)
    add('--frames', type=int, default=1000, metavar='N', help='with --video: its length (default: 1000)')
    text = (
        'with --video: what drives it, e.g. another video, which is then decoded and tracked (default: made-up speech)'
    )
    add('--motion', metavar='FILE', help=text)
    add('--weights', metavar='FILE|NAME', help='with --video: weights of the avatar (default: those in the package)')
    add = parser.add_argument_group('training steps').add_argument
    add('--train', action='store_true', help='measure the training step of --config instead of the stages')
    example = f'{an_example()}:tiny'
    add('--config', metavar='FILE[:VARIANT]', help=f'config file of the training (default: {example})')
    text = 'numbers of devices to measure with (default: 1)'
    add('--devices', nargs='+', type=int, default=[1], metavar='N', help=text)
    text = "batch size per device (default: the config's batch over the largest number of devices)"
    add('--rows', type=int, default=0, metavar='N', help=text)
    text = 'how the step is distributed (default: pmap)'
    add('--parallel', choices=('pmap', 'shard_map', 'sharded'), default='pmap', help=text)
    add('--count-only', action='store_true', help='count operations and collectives; compile and run nothing')
    parser.set_defaults(overrides=())
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """``avatar-jax bench``."""
    check_together(vars(args))
    if args.everything:
        from avatar_jax.bench.everything import run_everything

        run_everything(args.out, seconds_of(args.budget or BUDGET), args.repeats, report=print)
    elif args.video:
        from avatar_jax.bench.video import run_video

        run_video(args.video, args.motion, args.frames, args.weights, args.out, print)
    elif args.train:
        from avatar_jax.bench.training import run_train_benchmark
        from launch.config_args import load_run

        processes.join(processes.from_arguments(args))
        training, config = load_run(args.config or f'{an_example()}:tiny', args.overrides)
        program, how = training.program(config), (args.rows, args.repeats, args.parallel, args.out)
        run_train_benchmark(program, args.devices, *how, print, args.count_only, args.memory)
    else:
        how = (args.dtype, args.ray_chunk, args.stages, args.batch_sizes)
        measure(
            bench_of(args.method, args.preset), args.preset, *how, args.repeats, args.out, args.memory, args.profile
        )
