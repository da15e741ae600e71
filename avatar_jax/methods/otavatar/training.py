"""A run of decoupling-by-inverting: networks, data and step, as ``train.runner`` wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from avatar_jax import processes
from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.faces.conventions import differences
from avatar_jax.io.weights import check_config, check_tree, load_weights, weight_file
from avatar_jax.losses.networks import bank_of, refuse_unused
from avatar_jax.losses.perception import PerceptionBank, abstract_variables
from avatar_jax.methods.eg3d.config import check_resolutions
from avatar_jax.methods.eg3d.files import METHOD as GENERATOR_METHOD
from avatar_jax.methods.eg3d.files import load_generator, meaning
from avatar_jax.methods.otavatar import losses
from avatar_jax.methods.otavatar import train as training
from avatar_jax.methods.otavatar.controller import CONTROLLER_METHOD, ControllerConfig, abstract_params
from avatar_jax.methods.otavatar.model import (
    METHOD,
    NETWORKS,
    ModelConfig,
    abstract,
    code_std,
    init,
    join,
    network,
    save_model,
)
from avatar_jax.methods.otavatar.train import BATCH_KEYS, RunConfig
from avatar_jax.parallel import as_arrays, device_order
from avatar_jax.render.cameras import orbit_labels
from avatar_jax.train.loop import Sample
from avatar_jax.train.program import Program
from avatar_jax.train.runner import Run, devices_for
from avatar_jax.train.starting import Part, Starting, part_of, starting
from avatar_jax.train.state import TrainState


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values."""
    return from_plain(RunConfig, values)


def start(config: RunConfig, streams: ModuleType, quiet: bool = False) -> Run:
    """A run that is ready to begin; see ``methods.base.Training``."""
    model, settings = config.model, config.model.settings
    devices, share = devices_and_batch(config)
    check_resolutions(model.generator, 'model.generator')
    notes: list[str] = []
    source = streams.clips(config.data, model.img_resolution, model.conventions, notes)

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        sampling, count = settings.train.frame_sampling, settings.train.frames_per_clip
        stream = streams.pairs(source, config.data, share, config.seed, sampling, first, count)
        for batch in stream:
            yield {k: batch[k] for k in BATCH_KEYS if k in batch}

    fixed = streams.first(batches(0))  # also says early when there is too little data
    bank = bank_of(config.perception, model.img_resolution, config.stand_ins)
    refuse_unused(config.perception, losses.looks_through(bank, settings.loss), 'the training', '--config.perception')
    missing = losses.left_out(bank, settings.loss, 'landmarks' in fixed)
    begun = starting_point(config.init, model)
    variables, digest = with_parts(init(model, jax.random.key(config.seed)), begun, model), begun.digest

    def sample(state: TrainState, done: int) -> Sample:
        del done
        return training.sample_sheet(model, state, fixed, bank, config.output.sample_people)

    def export(state: TrainState, folder: Path, provenance: dict[str, Any]) -> None:
        save_model(folder / 'weights.safetensors', training.variables_of(state), model, provenance)

    return Run(
        state=training.init_state(model, variables),
        step=lambda kind: _step(config),
        batches=batches,
        export=export,
        batch_size=share,
        unit='people',
        images_per_step=share * settings.train.frames_per_clip,
        constants=bank,
        bound={'networks': dict(bank.sources), 'init': digest},
        provenance={
            'data': to_plain(config.data),
            'networks': bank.report(settings.loss.perceptual_network, settings.loss.identity_network),
            'left_out': missing,
            'init': digest,
            'parts': begun.report,
            'preset': {'name': settings.preset, 'changes': settings.changes},
        },
        notes=(*notes, *begun.notes)
        + tuple(f'the {name} term is left out of the loss: {why}' for name, why in missing.items()),
        sample=sample if config.output.sample_people else None,
        headline='inner/loss',
        phases=training.PHASES,
        bf16=model.generator.dtype == 'bfloat16',
        devices=devices,
        model_shards=config.scale.model_shards,
    )


def _step(config: RunConfig):
    def step(state, batch, bank, axis_name):
        return training.train_step(config.model, config.seed, state, batch, bank, axis_name, config.scale.accumulate)

    return step


def devices_and_batch(config: RunConfig) -> tuple[list, int]:
    """Devices and number of people per iteration; checked before anything is compiled.

    ``average_gradients=False`` trains one replica per device, which never meet, and keeps the first (as the released
    program does): only that one's share of the batch is computed.
    """
    settings = config.model.settings
    size = settings.train.batch_size
    devices = devices_for(config.parallel, size, 'model.settings.train.batch_size')
    if not settings.train.average_gradients and len(devices) > 1:
        if processes.several():
            raise UserError('model.settings.train.average_gradients: False keeps one replica; use one process')
        return device_order(devices)[:1], size // len(devices)
    parts = config.scale.accumulate * (1 if config.parallel == 'sharded' else len(devices))
    if size % parts:
        raise UserError(
            f'scale.accumulate: {size} people on {len(devices)} devices do not divide into '
            f'{config.scale.accumulate} parts; choose a divisor of {size // len(devices)}'
        )
    return devices, size


def starting_point(files: str, model: ModelConfig) -> Starting:
    """The networks that a run starts from (``train.starting``): generator and controller, each of its own file.

    Raises:
        UserError: a file cannot be used, or a network in it is another one than the configuration's (losses and
            schedules may differ).
    """

    def generator(path: str) -> Part | None:
        if not Path(path).is_dir() and part_of(path, 'generator', GENERATOR_METHOD) is None:
            return None
        variables, found, digest = load_generator(path)
        check_config(f'{path} (generator)', meaning(found), meaning(model.generator))
        return Part(variables, to_plain(found), digest)

    def controller(path: str) -> Part | None:
        if Path(path).is_dir():
            return None
        part = part_of(path, 'controller', CONTROLLER_METHOD)
        if part is not None:
            same_conventions(path, model)
            found = from_plain(ControllerConfig, part.config)
            check_config(f'{path} (controller)', to_plain(found), to_plain(model.settings.controller))
            check_tree(path, part.variables, {'params': abstract_params(found)})
        return part

    return starting(files, {'generator': generator, 'controller': controller})


def same_conventions(path: str, model: ModelConfig) -> None:
    """Raises ``UserError`` where a controller's file of OTAvatar knows other coefficients or cameras than a run."""
    weights = load_weights(weight_file(path))
    if weights.method == METHOD:
        wrong, _ = differences(model.conventions, ModelConfig.from_dict(weights.config).conventions)
        if wrong:
            raise UserError(f'{path}: {"; ".join(wrong)} (here model.basis, model.label_mode); set them alike')


def with_parts(variables: Mapping[str, Any], begun: Starting, model: ModelConfig) -> dict[str, Any]:
    """Fresh variables with the networks that were read in their places."""
    parts = {name: begun.parts.get(name, network(variables, name)) for name in NETWORKS}
    w_std = code_std(parts['generator'], model.generator) if model.settings.sigma_w == 'std' else None
    return as_arrays(join(parts['generator'], parts['controller'], w_std))


def program(config: RunConfig) -> Program:
    """The iteration with made-up data, for measuring and counting."""
    model, settings = config.model, config.model.settings
    frames, size = settings.train.frames_per_clip, model.img_resolution

    def abstract_constants():
        if size < 256:
            return jax.eval_shape(lambda: bank_of((), size, config.stand_ins))
        return PerceptionBank(weights={name: abstract_variables(name) for name in ('vgg19', 'arcface18')})

    def make_batch(rows):
        rng = np.random.default_rng(0)
        render = model.generator.rendering
        labels = orbit_labels(rows * frames, render.avg_camera_radius, render.avg_camera_pivot)
        return {
            'images': rng.uniform(-1, 1, (rows, frames, size, size, 3)).astype(np.float32),
            'landmarks': rng.uniform(0.3 * size, 0.7 * size, (rows, frames, 68, 2)).astype(np.float32),
            'windows': rng.uniform(0, 0.3, (rows, frames, 27, 70)).astype(np.float32),
            'labels': np.asarray(labels, np.float32).reshape(rows, frames, 25),
        }

    return Program(
        name='OTAvatar',
        variants=((1.0, 'iteration', _step(config)),),
        make_state=lambda: training.init_state(model, init(model, jax.random.key(config.seed))),
        abstract_state=lambda: jax.eval_shape(partial(training.init_state, model), abstract(model)),
        make_constants=lambda: bank_of(config.perception, size, config.stand_ins),
        abstract_constants=abstract_constants,
        make_batch=make_batch,
        images_per_row=frames,
        batch=settings.train.batch_size,
        bf16=model.generator.dtype == 'bfloat16',
    )
