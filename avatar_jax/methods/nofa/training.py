"""A training run of one of NOFA's stages: networks, data and step, as ``train.runner`` wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.io.weights import check_config, weight_file
from avatar_jax.losses.networks import bank_of
from avatar_jax.methods.eg3d.files import load_generator
from avatar_jax.methods.nofa import losses, model
from avatar_jax.methods.nofa import train as training
from avatar_jax.methods.nofa.code_metric import code_metric
from avatar_jax.methods.nofa.config import ModelConfig
from avatar_jax.methods.nofa.foreign import BACKBONES, GFPGAN, state_dict
from avatar_jax.methods.nofa.release import gfpgan_variables
from avatar_jax.methods.nofa.teacher import Teacher
from avatar_jax.methods.nofa.train import Frozen, RunConfig
from avatar_jax.models.e4e_files import with_backbone
from avatar_jax.ops.windows import RADIUS
from avatar_jax.render.cameras import orbit_labels
from avatar_jax.train.loop import Sample
from avatar_jax.train.program import Program
from avatar_jax.train.runner import Run, devices_for
from avatar_jax.train.state import TrainState

if TYPE_CHECKING:
    from avatar_jax.faces.conventions import Conventions

FRAMES = 2  # of a person: source and target
STATISTICS_OF = 256  # people whose coefficients are measured, with ``deformation.standardize``


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values."""
    return from_plain(RunConfig, values)


def start(config: RunConfig, streams: ModuleType, quiet: bool = False) -> Run:
    """A run that is ready to begin; see ``methods.base.Training``."""
    model_config, stage = config.model, config.model.settings.train.stage(config.stage)
    field = f'model.settings.train.{config.stage}.batch_size'
    devices = devices_for(config.parallel, stage.batch_size, field)
    variables, digest = first_variables(config)
    frozen = frozen_of(config)
    if config.stage == 'general' and model_config.settings.train.code_steps:
        frozen = frozen.replace(metric=code_metric(variables, model_config))
    notes: list[str] = []
    conventions = getattr(model_config, 'conventions', None) or conventions_of(model_config)
    source = streams.clips(config.data, model_config.img_resolution, conventions, notes)
    for note in () if quiet else notes:
        print(note)
    if model_config.settings.deformation.standardize and not config.init:
        found = streams.first_sets(source, FRAMES, config.seed, STATISTICS_OF, ('images', 'windows', 'shapes'))
        variables = with_statistics_of(variables, model_config, found)
    data = SimpleNamespace(**to_plain(config.data), cameras='any', num_workers=0)

    train = model_config.settings.train

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(
            streams.pairs(source, data, stage.batch_size, config.seed, 'uniform', first), first
        ):
            yield training.with_host_arrays(model_config, config.stage, batch, train.kind(config.stage, number))

    shown: list[dict[str, Any]] = []

    def sample(state: TrainState, done: int) -> Sample:
        del done
        if not shown:
            found = streams.first(streams.pairs(source, data, stage.batch_size, config.seed, 'uniform', 0))
            found = training.with_host_arrays(model_config, config.stage, found)
            shown.append({k: v[: config.output.sample_people] for k, v in found.items()})
        return training.sample_sheet(model_config, state, shown[0])

    def export(state: TrainState, folder: Path, provenance: dict[str, Any]) -> None:
        path = folder / 'weights.safetensors'
        model.save_model(path, training.variables_of(state), model_config, provenance, config.storage)

    networks = losses.networks(model_config.settings.loss, frozen.bank)
    return Run(
        state=training.init_state(model_config, variables, config.stage, config.seed),
        step=lambda kind: _step(config),
        kind_of=lambda step: train.kind(config.stage, step),
        batches=batches,
        export=export,
        batch_size=stage.batch_size,
        unit='people',
        images_per_step=stage.batch_size * FRAMES,
        constants=frozen,
        bound={'networks': networks, 'init': digest},
        provenance={'stage': config.stage, 'data': to_plain(config.data), 'networks': networks, 'init': digest},
        sample=sample if config.output.sample_people else None,
        headline='psnr',
        bf16=model_config.generator.dtype == 'bfloat16',
        devices=devices,
    )


def conventions_of(model_config: ModelConfig) -> Conventions:
    """What the pictures and cameras of the data have to be like."""
    from avatar_jax.faces.conventions import of_model

    return of_model(model_config)


def _step(config: RunConfig):
    def step(state, batch, frozen, axis_name):
        return training.train_step(config.model, config.stage, config.seed, state, batch, frozen, axis_name)

    return step


def first_variables(config: RunConfig) -> tuple[dict[str, Any], str]:
    """The variables that a run starts from, and what identifies them.

    Raises:
        UserError: a file that does not fit the configuration.
    """
    model_config, key = config.model, jax.random.key(config.seed)
    if config.init:
        variables, found, digest, _ = model.load_model(weight_file(config.init))
        a, b = ({k: v for k, v in to_plain(c).items() if k == 'generator'} for c in (found, model_config))
        check_config(config.init, a, b)
        return variables, digest
    generator, digest = None, ''
    if config.generator:
        generator, theirs, digest = load_generator(config.generator)
        model.check_generator(model_config.generator, theirs, config.generator)
    variables = model.init(model_config, key, generator)
    if config.backbone:
        encoder = with_backbone(
            model.network(variables, 'encoder'), state_dict(config.backbone, BACKBONES), config.backbone
        )
        variables = model.with_network(variables, 'encoder', encoder)
    return variables, digest


def with_statistics_of(
    variables: Mapping[str, Any], config: ModelConfig, batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The variables with means and standard deviations of a batch's coefficients, for ``deformation.standardize``."""
    c = config.settings.deformation
    expressions = batch['windows'][..., RADIUS, : c.num_expression].reshape(-1, c.num_expression)
    return model.with_coefficient_statistics(variables, training.shapes_of(batch, c.num_shape), expressions)


def frozen_of(config: RunConfig) -> Frozen:
    """Networks of the losses, and the teacher.

    Raises:
        UserError: a teacher without its file, or a file that no teacher reads.
    """
    train = config.model.settings.train
    bank = bank_of(config.perception, config.model.img_resolution, config.stand_ins)
    if config.teacher and train.teacher != 'gfpgan':
        raise UserError(
            f"teacher: {config.teacher} is read with model.settings.train.teacher='gfpgan' only; leave it out"
        )
    if not config.teacher:
        return Frozen(bank, Teacher.create(train.teacher, train.align_teacher))
    variables, network = gfpgan_variables(state_dict(config.teacher, (GFPGAN,)), config.teacher)
    return Frozen(bank, Teacher.create(train.teacher, train.align_teacher, variables, network))


def program(config: RunConfig) -> Program:
    """The step of the stage with made-up data, for measuring and counting."""
    model_config, stage = config.model, config.model.settings.train.stage(config.stage)
    size, rendering = model_config.img_resolution, model_config.generator.rendering

    def make_batch(rows: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        labels = orbit_labels(rows * FRAMES, rendering.avg_camera_radius, rendering.avg_camera_pivot)
        marks = rng.uniform(0.3 * size, 0.7 * size, (rows, FRAMES, 68, 2)).astype(np.float32)
        batch = {
            'images': rng.uniform(-1, 1, (rows, FRAMES, size, size, 3)).astype(np.float32),
            'landmarks': marks,
            'labels': np.asarray(labels, np.float32).reshape(rows, FRAMES, 25),
            'windows': rng.uniform(0, 0.3, (rows, FRAMES, 27, 70)).astype(np.float32),
            'shapes': rng.normal(size=(rows, FRAMES, model_config.settings.deformation.num_shape)).astype(np.float32),
        }
        return training.with_host_arrays(model_config, config.stage, batch)

    def make_state() -> TrainState:
        variables = model.init(model_config, jax.random.key(config.seed))
        return training.init_state(model_config, variables, config.stage, config.seed)

    constants = partial(frozen_of, config)
    return Program(
        name=f'NOFA, {config.stage}',
        variants=((1.0, 'step', _step(config)),),
        make_state=make_state,
        abstract_state=lambda: jax.eval_shape(make_state),
        make_constants=constants,
        abstract_constants=lambda: jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), constants()),
        make_batch=make_batch,
        images_per_row=FRAMES,
        batch=stage.batch_size,
        bf16=model_config.generator.dtype == 'bfloat16',
    )
