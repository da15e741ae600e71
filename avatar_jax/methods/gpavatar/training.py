"""A training run of GPAvatar: networks, data and step, as ``train.runner`` wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.weights import check_config, weight_file
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.gpavatar import train as training
from avatar_jax.methods.gpavatar.config import ModelConfig
from avatar_jax.methods.gpavatar.losses import alexnet_of, network_of
from avatar_jax.methods.gpavatar.mesh import NUM_SHAPE, load_mesh
from avatar_jax.methods.gpavatar.model import abstract, init, load_model, save_model, views_of, with_coefficients
from avatar_jax.methods.gpavatar.train import RunConfig
from avatar_jax.methods.gpavatar.train_config import LossConfig, TrainConfig
from avatar_jax.train.loop import Sample
from avatar_jax.train.program import Program
from avatar_jax.train.runner import Run, devices_for
from avatar_jax.train.state import TrainState
from avatar_jax.types import PyTree


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values."""
    return from_plain(RunConfig, values)


def start(config: RunConfig, streams: ModuleType, quiet: bool = False) -> Run:
    """A run that is ready to begin; see ``methods.base.Training``."""
    del quiet
    model, train = config.model, config.model.settings.train
    devices = devices_for(config.parallel, train.batch_size, 'model.settings.train.batch_size')
    variables, digest, known = None, '', {}
    if config.init:
        known, found, digest, _ = load_model(weight_file(config.init))
        if (found.settings.field.kind, model.settings.field.kind) == ('points', 'both'):
            known, found = with_coefficients(known, found)
        check_config(config.init, to_plain(networks_of(found)), to_plain(networks_of(model)))
        variables = known
    else:
        variables = init(model, jax.random.key(config.seed))
    frozen = {'mesh': load_mesh(model), 'alexnet': alexnet(config.perception, known)}
    network = network_of(model.settings.loss, frozen['alexnet'])
    notes: list[str] = []
    source = streams.clips(config.data, model.img_resolution, model.conventions, notes)
    frames = train.drivers + train.sources

    def batches(first: int) -> Iterator[dict[str, Any]]:
        stream = streams.sets(source, config.data, train.batch_size, frames, config.seed, first)
        for number, batch in enumerate(stream, first):
            whole = number >= train.ray_iterations or (train.whole_every and (number + 1) % train.whole_every == 0)
            yield training.with_host_arrays(model, batch, rays=not whole)

    shown: list[dict[str, Any]] = []

    def sample(state: TrainState, done: int) -> Sample:
        del done
        if not shown:
            found = streams.first_sets(source, frames, config.seed + 1, config.output.sample_people)
            shown.append(training.with_host_arrays(model, found))
        return training.sample_sheet(model, state, shown[0], frozen)

    def export(state: TrainState, folder: Path, provenance: dict[str, Any]) -> None:
        kept = {k: v for k, v in known.items() if k in ('perception', 'unused')}
        final = training.variables_of(state) | kept
        save_model(folder / 'weights.safetensors', final, model, provenance, config.storage)

    return Run(
        state=training.init_state(model, variables),
        step=lambda kind: _step(model, config.seed),
        batches=batches,
        export=export,
        batch_size=train.batch_size,
        unit='sets of frames',
        images_per_step=train.batch_size,
        constants=frozen,
        bound={'networks': {'perceptual': network}, 'init': digest},
        provenance={
            'data': to_plain(config.data),
            'networks': {'perceptual': network},
            'init': digest,
            'preset': {'name': model.settings.preset, 'changes': model.settings.changes},
        },
        sample=sample if config.output.sample_people else None,
        headline='psnr',
        devices=devices,
        notes=notes,
    )


def _step(model: ModelConfig, seed: int):
    def step(state, batch, frozen, axis_name):
        return training.train_step(model, seed, state, batch, frozen, axis_name)

    return step


def networks_of(model: ModelConfig) -> ModelConfig:
    """The configuration without what does not change the networks' shapes (losses, training)."""
    return dataclasses.replace(
        model, settings=dataclasses.replace(model.settings, loss=LossConfig(), train=TrainConfig())
    )


def alexnet(files: Sequence[str], variables: Mapping[str, Any]) -> PyTree | None:
    """AlexNet for the perceptual loss: from ``alexnet=FILE``, else the one that imported weights contain, else None.

    Raises:
        UserError: another network, or a file that cannot be used.
    """
    for option in files:
        name, equals, path = option.partition('=')
        if name != 'alexnet' or not equals or not path:
            raise UserError(f"perception: {option!r}; GPAvatar's loss looks through alexnet=FILE")
        return PerceptionBank.load({name: path}).weights[name]
    return alexnet_of(variables['perception']['percep_loss']['net']) if 'perception' in variables else None


def program(config: RunConfig) -> Program:
    """The step on whole pictures with made-up data, for measuring and counting."""
    model = config.model
    train, size = model.settings.train, model.img_resolution

    def make_batch(rows: int) -> dict[str, Any]:
        lead, still = (rows, train.drivers + train.sources), np.zeros((1, 3), np.float32)
        label = np.asarray(label_from_pose(still, still, 'raw'), np.float32)
        labels = np.broadcast_to(label, (*lead, 25))
        return {
            'images': np.zeros((*lead, size, size, 3), np.float32),
            'labels': labels,
            'windows': np.zeros((*lead, 27, 70), np.float32),
            'masks': np.ones((rows, train.drivers, size, size), np.float32),
            'boxes': np.tile(np.array([0.2, 0.2, 0.8, 0.8], np.float32), (rows, train.drivers, 1)),
            'views': np.asarray(views_of(model, labels[:, train.drivers :])),
            'shapes': np.zeros((rows, NUM_SHAPE[model.basis]), np.float32),
        }

    def constants() -> dict[str, Any]:
        return {'mesh': load_mesh(model), 'alexnet': alexnet(config.perception, {})}

    return Program(
        name='GPAvatar',
        variants=((1.0, 'step', _step(model, config.seed)),),
        make_state=lambda: training.init_state(model, init(model, jax.random.key(config.seed))),
        abstract_state=lambda: jax.eval_shape(partial(training.init_state, model), abstract(model)),
        make_constants=constants,
        abstract_constants=lambda: jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), constants()),
        make_batch=make_batch,
        images_per_row=1,
        batch=train.batch_size,
        bf16=False,
    )
