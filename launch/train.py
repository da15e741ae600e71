"""Trains a method: OTAvatar by decoupling-by-inverting, GPAvatar on sets of frames.

    avatar-jax train --config configs/otavatar_heads.py:tiny --out DIR [--resume] [--config.FIELD=VALUE ...]
    avatar-jax train --config configs/gpavatar_heads.py:tiny --out DIR [--resume] [--config.FIELD=VALUE ...]

The folder gets config.json, metrics.jsonl (every term and norm), samples/, checkpoints/ and, when tensorboardX is
installed, TensorBoard files; weights.safetensors at the end. A run that was killed continues with --resume and gives
the same numbers as one that was not. SIGTERM and Ctrl-C write a checkpoint first; the exit status is then 75.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    from launch.config_args import add_config_argument

    add_config_argument(parser, default='configs/otavatar_heads.py')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the run')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out (or start, if there is none)')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.configure import from_plain
    from avatar_jax.train.logging import NonFiniteError
    from launch.config_args import load_config

    values = load_config(args.config, args.overrides).to_dict()
    if values.get('method') == 'gpavatar':
        from avatar_jax.methods.gpavatar.train import RunConfig
        from launch.train_gpavatar import train as run_training
    else:
        from avatar_jax.methods.otavatar.train import RunConfig

        run_training = train
    try:
        run_training(from_plain(RunConfig, values), args.out, resume=args.resume)
    except NonFiniteError as error:
        raise UserError(f'{args.out}: stopped at {error}; lower the learning rates, clip gradients, or set '
                        "output.nonfinite='skip'") from error  # fmt: skip
    return 0


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
    from avatar_jax.parallel import parallelise
    from avatar_jax.train.loop import fit, skip_nonfinite
    from launch.invert import perception_bank

    model, method = config.model, config.model.method
    devices, share = devices_and_batch(config)
    # Frozen networks of the losses, and where the trained ones start.
    bank = perception_bank(config.perception, model, config.stand_ins)
    if config.init:
        variables, found, digest, _ = load_model(model_path(config.init))
        check_same_networks(config.init, found, model)
    else:
        variables, digest = init(model, jax.random.key(config.seed)), ''
    state = training.init_state(model, variables)

    # Data: batches from any step on.
    source = open_source(config)
    batches = partial(stream_batches, config, source, share)

    # One compiled iteration for all devices.
    def step(state, batch, bank, axis_name):
        body = partial(training.train_step, model, config.seed, bank=bank, axis_name=axis_name)
        return (skip_nonfinite(body) if config.output.nonfinite == 'skip' else body)(state, batch)

    spread = parallelise(step, kind=config.parallel, devices=devices, constants=bank)
    fixed = next(iter(batches(0)))

    def sample(state, done):
        del done
        state = jax.tree.map(lambda x: jax.numpy.asarray(jax.device_get(x)), state)
        return training.sample_sheet(model, state, fixed, bank, config.output.sample_people)

    bound = {'run': to_plain(config), 'networks': dict(bank.sources), 'init': digest}
    state = fit(
        spread.put_state(state), lambda state, batch: spread.step(state, spread.put_batch(batch)), batches, folder=out,
        loop=config.loop(), config=bound, resume=resume, may_differ=[f'run.{p}' for p in training.RunConfig.MAY_DIFFER],
        label='train', headline='inner/loss', sample_fn=sample if config.output.sample_people else None,
        place_state=spread.put_state, images_per_step=share * method.train.frames_per_clip,
        phases=training.PHASES, quiet=quiet)  # fmt: skip
    provenance = {'command': 'train', 'seed': config.seed, 'iterations': int(state.step), 'data': to_plain(config.data),
                  'networks': bank.report(method.loss.perceptual_network, method.loss.identity_network),
                  'init': digest}  # fmt: skip
    save_model(Path(out) / 'weights.safetensors', jax.device_get(training.variables_of(state)), model, provenance)
    return state


def devices_and_batch(config: Any) -> tuple[list, int]:
    """Devices and number of people per iteration; checked before anything is compiled.

    ``average_gradients=False`` trains one replica per device, which never meet, and keeps the first (as the released
    program does): only that one's share of the batch is computed.
    """
    import jax

    method, devices = config.model.method, jax.local_devices()
    if config.parallel == 'single':
        devices = devices[:1]
    if method.train.frames_per_clip != 2:
        raise UserError(f'model.method.train.frames_per_clip: {method.train.frames_per_clip}; the data gives pairs, use 2')
    size = method.train.batch_size
    if size % len(devices):
        raise UserError(f'model.method.train.batch_size: {size} is not divisible by {len(devices)} devices; '
                        f'use a multiple of {len(devices)}')  # fmt: skip
    if not method.train.average_gradients and len(devices) > 1:
        return devices[:1], size // len(devices)
    return devices, size


def check_same_networks(path: str, found: Any, wanted: Any) -> None:
    """Raises ``UserError`` unless weights fit the networks of a run (losses and schedules may differ)."""
    from avatar_jax.configure import to_plain
    from avatar_jax.weights import check_config

    for part in ('generator', 'controller'):
        a, b = (to_plain(c.generator if part == 'generator' else c.method.controller) for c in (found, wanted))
        check_config(f'{path} ({part})', a, b)


def open_source(config: Any) -> Any:
    """The frames that batches are drawn from."""
    from data_pipelines.clips import ClipOptions
    from data_pipelines.sources import BuiltFrames, MemoryFrames, RenderedFrames

    data = config.data
    if data.source == 'built':
        source = BuiltFrames(data.folder, data.split)
    else:
        split = {'validation': 'val'}.get(data.split, data.split)
        source = RenderedFrames.of_people(
            data.people, data.seed, split, data.clips_per_person, data.resolution or config.model.generator.img_resolution,
            ClipOptions(num_frames=data.frames))  # fmt: skip
    return MemoryFrames(source, progress=True) if data.in_memory else source


def stream_batches(config: Any, source: Any, batch_size: int, start: int) -> Iterator[dict[str, Any]]:
    """Batches of the iterations from ``start`` on, with the arrays that training reads."""
    from avatar_jax.methods.otavatar.train import BATCH_KEYS
    from data_pipelines.pairs import PairConfig, pair_batches

    data = config.data
    settings = PairConfig(batch_size, config.seed, config.model.method.train.frame_sampling, data.cameras,
                          data.num_workers, data.num_threads, data.prefetch)  # fmt: skip
    with pair_batches(source, settings, start) as batches:
        for batch in batches:
            yield {k: batch[k] for k in BATCH_KEYS}
