"""A training run of HiDe-NeRF: networks, data and steps, as ``train.runner`` wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache, partial
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
from avatar_jax.losses.networks import named_files
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.hidenerf import adversary, model, secc
from avatar_jax.methods.hidenerf import train as training
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.hidenerf.losses import network_of
from avatar_jax.methods.hidenerf.parts import LossConfig, TrainConfig
from avatar_jax.methods.hidenerf.train import RunConfig
from avatar_jax.train.loop import Sample
from avatar_jax.train.program import Program
from avatar_jax.train.runner import Run, devices_for
from avatar_jax.train.state import TrainState
from avatar_jax.types import PyTree

FRAMES = 2  # of a clip: driver and source
NETWORKS = ('vgg16', 'lpips_vgg')


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values."""
    return from_plain(RunConfig, values)


def start(config: RunConfig, streams: ModuleType, quiet: bool = False) -> Run:
    """A run that is ready to begin; see ``methods.base.Training``."""
    settings, train = config.model, config.model.train
    devices = devices_for(config.parallel, train.batch_size, 'model.train.batch_size')
    state, digest = training.fresh_state(settings, config.seed), ''
    if config.init:
        variables, found, digest, _ = model.load_model(weight_file(config.init))
        if config.init_parts:
            variables = with_parts(config, variables, model.init(settings, jax.random.key(config.seed)))
        else:
            check_config(config.init, to_plain(networks_of(found)), to_plain(networks_of(settings)))
        key = jax.random.split(jax.random.key(config.seed))[1]
        judges = adversary.init(settings, key) if settings.adversarial else None
        state = training.init_state(settings, variables, judges)
    bank = bank_of(config)
    mesh = secc.load_mesh(settings.basis)
    frozen = {'mesh': mesh, 'bank': bank}
    codes = secc.CodeStore(mesh, settings.secc) if train.codes == 'host' else None
    network = network_of(settings.loss, bank)
    notes: list[str] = []
    source = streams.clips(config.data, settings.img_resolution, settings.conventions, notes)
    for note in () if quiet else notes:
        print(note)
    # Says what the data lack before anything is compiled.
    training.with_host_arrays(settings, streams.first_sets(source, FRAMES, config.seed, 1), mesh)

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in streams.sets(source, config.data, train.batch_size, FRAMES, config.seed, first):
            yield training.with_host_arrays(settings, batch, mesh, codes)

    shown: list[dict[str, Any]] = []

    def sample(state: TrainState, done: int) -> Sample:
        del done
        if not shown:
            found = streams.first_sets(source, FRAMES, config.seed + 1, config.output.sample_people)
            shown.append(training.with_host_arrays(settings, found, mesh, codes))
        return training.sample_sheet(settings, state, shown[0], frozen)

    def export(state: TrainState, folder: Path, provenance: dict[str, Any]) -> None:
        path = folder / 'weights.safetensors'
        variables = {**training.variables_of(state), 'mesh': frozen['mesh']}
        model.save_model(path, variables, settings, provenance, config.storage)

    return Run(
        state=state,
        step=partial(_step, settings, config.seed),
        batches=batches,
        export=export,
        batch_size=train.batch_size,
        unit='pairs of frames',
        images_per_step=train.batch_size,
        kind_of=lambda number: training.flags_at(settings, number),
        constants=frozen,
        bound={'networks': {'perceptual': network}, 'init': digest},
        provenance={'data': to_plain(config.data), 'networks': {'perceptual': network}, 'init': digest},
        sample=sample if config.output.sample_people else None,
        headline='psnr',
        devices=devices,
        check=partial(training.check_batch, settings),
    )


def _step(settings: ModelConfig, seed: int, flags: training.Flags):
    def step(state, batch, frozen, axis_name):
        return training.train_step(settings, seed, flags, state, batch, frozen, axis_name)

    return step


def bank_of(config: RunConfig) -> PerceptionBank | None:
    """The networks that the perceptual loss looks through; None: it needs none, or there are none.

    Raises:
        UserError: a network that this loss does not use.
    """
    files = named_files(config.perception, 'perception')
    if unused := [name for name in files if name not in NETWORKS]:
        raise UserError(
            f"perception: {unused[0]!r} is not used; HiDe-NeRF's loss looks through {' and '.join(NETWORKS)}"
        )
    return PerceptionBank.load(files) if files else None


def with_parts(config: RunConfig, known: PyTree, fresh: PyTree) -> PyTree:
    """Fresh variables with ``config.init_parts`` of known ones.

    Raises:
        UserError: a part is of another size.
    """
    params = dict(fresh['params'])
    for part in config.init_parts:
        found = known['params'][part]
        if part == 'points':
            found = _told_more(found, params[part], config.model)
        if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, params[part]):
            raise UserError(f'init_parts: {part!r} of {config.init} has other sizes than here; leave it out')
        params[part] = found
    return {'params': params}


def _told_more(known: PyTree, fresh: PyTree, config: ModelConfig) -> PyTree:
    """A point network that begins to see ``appearance.picture``: it answers as before, and heeds no colour yet."""
    first, here = known['net']['0']['weight'], fresh['net']['0']['weight'].shape[0]
    if config.appearance.picture is None or len(first) != here - 3:
        return known
    first = first * (here / len(first)) ** 0.5  # weights are stored before the gain, which counts the inputs
    weight = jnp.concatenate([first, jnp.zeros((3, first.shape[1]), first.dtype)])
    return {'net': {**known['net'], '0': {**known['net']['0'], 'weight': weight}}}


def networks_of(settings: ModelConfig) -> ModelConfig:
    """The configuration without what does not change the networks' shapes (losses, training)."""
    return dataclasses.replace(settings, loss=LossConfig(), train=TrainConfig())


def program(config: RunConfig) -> Program:
    """The steps with made-up data, for measuring and counting, after the discriminators have begun."""
    settings, size = config.model, config.model.img_resolution
    period = settings.train.r1_every if settings.adversarial and settings.loss.r1_gamma else 1
    end = settings.train.gan_from + 10**6 * period
    flags = [training.flags_at(settings, end + k) for k in range(period)]
    mesh = cache(partial(secc.load_mesh, settings.basis))

    def make_batch(rows: int) -> dict[str, np.ndarray]:
        still = np.zeros((1, 3), np.float32)
        label = np.asarray(label_from_pose(still, still, settings.label_mode), np.float32)
        batch = {
            'images': np.zeros((rows, FRAMES, size, size, 3), np.float32),
            'labels': np.broadcast_to(label, (rows, FRAMES, 25)),
            'masks': np.full((rows, FRAMES, size, size), 255, np.uint8),
            'landmarks': np.tile(np.linspace(0.3, 0.7, 68, dtype=np.float32)[:, None] * size, (rows, FRAMES, 1, 2)),
            'windows': np.zeros((rows, FRAMES, 27, 70), np.float32),
            'shapes': np.zeros((rows, FRAMES, mesh().num_shape), np.float32),
            'depths': np.ones((rows, FRAMES, size, size), np.float32),
        }
        return training.with_host_arrays(settings, batch, mesh())

    def constants() -> dict[str, Any]:
        return {'mesh': mesh(), 'bank': bank_of(config)}

    def named(flag: training.Flags) -> str:
        return 'main' + ('+adversarial' if flag.adversarial else '') + ('+penalty' if flag.penalty else '')

    make_state = partial(training.fresh_state, settings, config.seed)
    return Program(
        name='HiDe-NeRF',
        variants=tuple(
            (flags.count(f) / period, named(f), _step(settings, config.seed, f)) for f in dict.fromkeys(flags)
        ),
        make_state=make_state,
        abstract_state=lambda: jax.eval_shape(make_state),
        make_constants=constants,
        abstract_constants=lambda: jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), constants()),
        make_batch=make_batch,
        images_per_row=1,
        batch=settings.train.batch_size,
        bf16=False,
        unit=settings.train.accumulate * (settings.discriminator.mbstd_group_size or 1) if settings.adversarial else 1,
    )
