"""Trains OTAvatar by decoupling-by-inverting, EG3D adversarially, GPAvatar on sets of frames: the config file decides.

    avatar-jax train --config configs/otavatar_heads.py:tiny --out DIR [--resume] [--config.FIELD=VALUE ...]
    avatar-jax train --config configs/eg3d_heads.py:tiny --out DIR
    avatar-jax train --config configs/gpavatar_heads.py:tiny --out DIR

The folder gets config.json, metrics.jsonl (every term and norm), samples/, checkpoints/ and, when tensorboardX is
installed, TensorBoard files; weights.safetensors at the end. A run that was killed continues with --resume and gives
the same numbers as one that was not. SIGTERM and Ctrl-C write a checkpoint first; the exit status is then 75.
With --coordinator the run is spread over several processes; docs/scaling.md tells how.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from avatar_jax import processes
from avatar_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    from launch.config_args import add_config_argument

    add_config_argument(parser, default='configs/otavatar_heads.py')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the run')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out (or start, if there is none)')
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.train.logging import NonFiniteError
    from launch.config_args import load_config

    # Before anything computes, as checking a configuration may.
    processes.join(processes.from_arguments(args))
    with processes.ending_together(args.out):
        config, start = method_of(load_config(args.config, args.overrides).to_dict())
        try:
            start(config, args.out, resume=args.resume)
        except NonFiniteError as error:
            raise UserError(
                f'{args.out}: stopped at {error}; lower the learning rates, clip gradients, or set '
                "output.nonfinite='skip'"
            ) from error
    return 0


def method_of(values: dict[str, Any]) -> tuple[Any, Any]:
    """The run configuration that plain values belong to (the one with these fields), and what trains it."""
    import dataclasses

    from avatar_jax.configure import from_plain
    from avatar_jax.methods.eg3d.config import RunConfig as EG3DRun
    from avatar_jax.methods.gpavatar.train import RunConfig as GPAvatarRun
    from avatar_jax.methods.otavatar.train import RunConfig as OTAvatarRun
    from launch import train_eg3d, train_gpavatar

    known = {EG3DRun: train_eg3d.train, GPAvatarRun: train_gpavatar.train}
    kind = next((k for k in known if {f.name for f in dataclasses.fields(k)} == set(values)), OTAvatarRun)
    return from_plain(kind, values), known.get(kind, train)


def train(config: Any, out: str | Path, *, resume: bool = False, quiet: bool = False) -> Any:
    """Trains and writes ``weights.safetensors``; returns the final ``TrainState``.

    Args:
        config: ``methods.otavatar.train.RunConfig``.
        out: folder of the run.
        resume: continue the run that is there.

    Raises:
        UserError: data, weights or folder cannot be used; another run is there.
        avatar_jax.train.logging.NonFiniteError: a term became NaN or infinite.
        avatar_jax.train.loop.Preempted: asked to stop; the checkpoint is written.
    """
    import jax

    from avatar_jax.configure import to_plain
    from avatar_jax.methods.otavatar import train as training
    from avatar_jax.methods.otavatar.model import init, load_model, save_model
    from avatar_jax.methods.registry import model_path
    from avatar_jax.parallel import parallelise, to_host
    from avatar_jax.train.costs import estimate
    from avatar_jax.train.loop import fit, skip_nonfinite
    from launch.invert import perception_bank

    model, method = config.model, config.model.method
    devices, share = devices_and_batch(config)
    check_resolutions(model.generator, 'model.generator')
    # Data: batches from any step on.
    source = open_source(config)
    batches = partial(stream_batches, config, source, share)
    fixed = next(iter(batches(0)))  # also says early when there is too little data
    # Frozen networks of the losses, and where the trained ones start.
    bank = perception_bank(config.perception, model, config.stand_ins)
    if config.init:
        variables, found, digest, _ = load_model(model_path(config.init))
        check_same_networks(config.init, found, model)
    else:
        variables, digest = init(model, jax.random.key(config.seed)), ''
    state = training.init_state(model, variables)

    # One compiled iteration for all devices.
    def step(state, batch, bank, axis_name):
        body = partial(
            training.train_step, model, config.seed, bank=bank, axis_name=axis_name, accumulate=config.scale.accumulate
        )
        return (skip_nonfinite(body) if config.output.nonfinite == 'skip' else body)(state, batch)

    spread = parallelise(
        step, kind=config.parallel, devices=devices, constants=bank, model_shards=config.scale.model_shards
    )

    def sample(state, done):
        del done
        state = jax.tree.map(lambda x: jax.numpy.asarray(jax.device_get(x)), state)
        return training.sample_sheet(model, state, fixed, bank, config.output.sample_people)

    bound = {'run': to_plain(config), 'networks': dict(bank.sources), 'init': digest}
    processes.agree('the configuration', bound)

    def announce(state, batch):
        known = estimate(spread, state, spread.put_batch(batch), model.generator.dtype == 'bfloat16')
        return f'train: {share} people per step on {spread.num_devices} device(s); {known.text()}'

    state = fit(
        spread.put_state(state),
        lambda state, batch: spread.step(state, spread.put_batch(batch)),
        batches,
        folder=out,
        loop=config.loop(),
        config=bound,
        resume=resume,
        may_differ=[f'run.{p}' for p in training.RunConfig.MAY_DIFFER],
        label='train',
        headline='inner/loss',
        sample_fn=sample if config.output.sample_people else None,
        place_state=spread.put_state,
        images_per_step=share * method.train.frames_per_clip,
        phases=training.PHASES,
        announce=None if quiet else announce,
        quiet=quiet,
    )
    state = to_host(state) if processes.several() else state
    if not processes.is_first():
        return state
    provenance = {
        'command': 'train',
        'seed': config.seed,
        'iterations': int(state.step),
        'data': to_plain(config.data),
        'networks': bank.report(method.loss.perceptual_network, method.loss.identity_network),
        'init': digest,
    }
    save_model(Path(out) / 'weights.safetensors', jax.device_get(training.variables_of(state)), model, provenance)
    return state


def devices_and_batch(config: Any) -> tuple[list, int]:
    """Devices and number of people per iteration; checked before anything is compiled.

    ``average_gradients=False`` trains one replica per device, which never meet, and keeps the first (as the released
    program does): only that one's share of the batch is computed.
    """
    import jax

    from avatar_jax.parallel import device_order

    method, devices = config.model.method, device_order(jax.devices())
    if config.parallel == 'single':
        devices = devices[:1]
    if method.train.frames_per_clip != 2:
        raise UserError(
            f'model.method.train.frames_per_clip: {method.train.frames_per_clip}; the data gives pairs, use 2'
        )
    size = method.train.batch_size
    if size % len(devices):
        raise UserError(
            f'model.method.train.batch_size: {size} is not divisible by {len(devices)} devices; '
            f'use a multiple of {len(devices)}'
        )
    if not method.train.average_gradients and len(devices) > 1:
        if processes.several():
            raise UserError('model.method.train.average_gradients: False keeps one replica; use one process')
        return devices[:1], size // len(devices)
    parts = config.scale.accumulate * (1 if config.parallel == 'sharded' else len(devices))
    if size % parts:
        raise UserError(
            f'scale.accumulate: {size} people on {len(devices)} devices do not divide into '
            f'{config.scale.accumulate} parts; choose a divisor of {size // len(devices)}'
        )
    return devices, size


def check_resolutions(generator: Any, where: str) -> None:
    """Raises ``UserError`` for picture sizes that the networks cannot make, before anything is compiled."""
    for name in ('img_resolution', 'plane_resolution'):
        value = getattr(generator, name)
        if value < 8 or value & (value - 1):
            close = 2 ** max(3, round(math.log2(max(value, 1))))
            raise UserError(f'{where}.{name}: {value}; use a power of two from 8 on, e.g. {close}')
    if not 1 <= generator.neural_rendering_resolution <= generator.img_resolution:
        raise UserError(
            f'{where}.neural_rendering_resolution: {generator.neural_rendering_resolution}; '
            f'use 1 to {generator.img_resolution}'
        )


def check_same_networks(path: str, found: Any, wanted: Any) -> None:
    """Raises ``UserError`` unless weights fit the networks of a run (losses and schedules may differ)."""
    from avatar_jax.configure import to_plain
    from avatar_jax.io.weights import check_config

    def networks(config, part):
        plain = to_plain(config.generator if part == 'generator' else config.method.controller)
        if part == 'generator':  # how it is computed, not what
            plain = {k: v for k, v in plain.items() if k not in ('dtype', 'remat')}
            plain['rendering'] = {k: v for k, v in plain['rendering'].items() if k != 'ray_chunk'}
        return plain

    for part in ('generator', 'controller'):
        a, b = (networks(c, part) for c in (found, wanted))
        check_config(f'{path} ({part})', a, b)


def open_source(config: Any) -> Any:
    """The frames that batches are drawn from."""
    from data_pipelines.clips import ClipOptions
    from data_pipelines.sources import MemoryFrames, RenderedFrames
    from data_pipelines.sources import open_source as open_folder

    data = config.data
    if data.source == 'built':
        source = open_folder(data.folder, data.split)
    elif data.source == 'heads':
        source = open_heads(data, data.resolution or config.model.img_resolution)
    else:
        split = {'validation': 'val'}.get(data.split, data.split)
        source = RenderedFrames.of_people(
            data.people,
            data.seed,
            split,
            data.clips_per_person,
            data.resolution or config.model.img_resolution,
            ClipOptions(num_frames=data.frames),
        )
    if source.table.basis != config.model.basis:
        raise UserError(
            f"data.folder: its expressions are in the basis '{source.table.basis}', but model.basis is "
            f"'{config.model.basis}'; set model.basis, or use other data"
        )
    keep = data.in_memory and data.source != 'heads'  # those are in memory already
    return MemoryFrames(source, progress=processes.is_first()) if keep else source


def open_heads(data: Any, resolution: int) -> Any:
    """The pictures of ``data.source='heads'``; makes those that are missing (which resumes)."""
    from data_pipelines.fast_heads import FastHeadsConfig, generate
    from data_pipelines.sources import HeadShards

    split = {'validation': 'val'}.get(data.split, data.split)
    config = FastHeadsConfig(data.seed, split, resolution, frames_per_identity=data.frames)
    count = data.people * data.frames
    if processes.is_first():
        generate(config, Path(data.folder), 0, count, workers=os.cpu_count() or 1)
    processes.agree('the data', {'pictures': count})  # also waits until they are there
    return HeadShards(data.folder, data.people)


def share_of_data(batch_size: int) -> tuple[int, int]:
    """Number of this process and count of processes, for the data stream of a global batch."""
    import jax

    if batch_size % jax.process_count():
        raise UserError(f'batch of {batch_size}: not divisible by {jax.process_count()} processes; use a multiple')
    return jax.process_index(), jax.process_count()


def stream_batches(config: Any, source: Any, batch_size: int, start: int) -> Iterator[dict[str, Any]]:
    """Batches of the iterations from ``start`` on, with the arrays that training reads."""
    from avatar_jax.methods.otavatar.train import BATCH_KEYS
    from data_pipelines.pairs import PairConfig, pair_batches

    data = config.data
    settings = PairConfig(
        batch_size,
        config.seed,
        config.model.method.train.frame_sampling,
        data.cameras,
        data.num_workers,
        data.num_threads,
        data.prefetch,
    )
    with pair_batches(source, settings, start, *share_of_data(batch_size)) as batches:
        for batch in batches:
            yield {k: batch[k] for k in BATCH_KEYS}
