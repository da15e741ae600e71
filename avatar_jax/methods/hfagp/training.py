"""A training run of HFA-GP: networks, video and step, as ``train.runner`` wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.configure import from_plain, to_plain
from avatar_jax.io.weights import check_config, check_tree, load_weights, weight_file
from avatar_jax.losses.networks import bank_of, refuse_unused
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.eg3d.files import load_generator, meaning
from avatar_jax.methods.hfagp import losses, scores
from avatar_jax.methods.hfagp import model as models
from avatar_jax.methods.hfagp import train as training
from avatar_jax.methods.hfagp.batches import training_batches
from avatar_jax.methods.hfagp.build import measured
from avatar_jax.methods.hfagp.cameras import orbit_labels
from avatar_jax.methods.hfagp.config import METHOD, ModelConfig
from avatar_jax.methods.hfagp.prior import with_person
from avatar_jax.methods.model import save_avatar
from avatar_jax.train.loop import LoopConfig, Sample
from avatar_jax.train.program import Program
from avatar_jax.train.run import PeopleOutput, PersonConfig
from avatar_jax.train.runner import Run, devices_for
from avatar_jax.train.starting import Part, Starting, starting
from avatar_jax.train.state import TrainState

_PERSONAL = ('basis', 'encoder')


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        seed: decides initial weights, data order and all random draws.
        model: networks and method; ``model.settings.train`` has lengths, batch and optimizers.
        data: the video. output: logs, samples (``sample_people`` frames of the video), checkpoints.
        init: what to start from: a weight file with a generator (of any method) and perhaps a person, or parts:
            'generator=FILE,personal=FILE'; '' starts from fresh networks.
        perception: 'alexnet=FILE' and 'lpips_alex=FILE' for the perceptual term.
        parallel: 'pmap', 'shard_map' or 'single'.
        storage: number type of the final weight file: 'float32' or 'float16'.
        method: name of the method, by which ``avatar-jax train`` chooses the training.
    """

    method: str = METHOD
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: PersonConfig = field(default_factory=lambda: PersonConfig(folder='data/hfagp'))
    output: PeopleOutput = field(default_factory=PeopleOutput)
    init: str = ''
    perception: tuple[str, ...] = ()
    parallel: str = 'pmap'
    storage: str = 'float32'

    # What a resumed run may change.
    MAY_DIFFER = (
        'output.*',
        'data.in_memory',
        'data.workers',
        'parallel',
        'storage',
        'model.settings.train.iterations',
    )

    def __post_init__(self):
        check = Check(self)
        check.need(self.method == METHOD, 'method', f'this configuration is of {METHOD!r}')
        check.one_of('storage', 'float32', 'float16')
        check.need(self.parallel != 'sharded', 'parallel', "the state of HFA-GP fits a device; use 'pmap'")

    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return self.output.loop(self.model.settings.train.iterations)


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values."""
    return from_plain(RunConfig, values)


def start(config: RunConfig, streams: ModuleType, quiet: bool = False) -> Run:
    """A run that is ready to begin; see ``methods.base.Training``."""
    del quiet
    model, train = config.model, config.model.settings.train
    devices = devices_for(config.parallel, train.batch_size, 'model.settings.train.batch_size')
    index, count = streams.share(train.batch_size)
    bank = bank_of(config.perception, model.img_resolution, stand_ins=False)
    used = losses.looks_through(model, bank)
    refuse_unused(config.perception, used, 'the training', '--config.perception')
    network = losses.report(model.settings.loss, bank)
    begun = starting_point(config.init, model)
    notes: list[str] = [*begun.notes]
    video = streams.person(config.data, model.settings.loss.size, model.label_mode, notes)
    rows = slice(index * (train.batch_size // count), (index + 1) * (train.batch_size // count))
    streams.first(training_batches(video, model, config.seed))  # says early what does not fit

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in training_batches(video, model, config.seed, first):
            yield {name: values[rows] for name, values in batch.items()}

    def sample(state: TrainState, done: int) -> Sample:
        del done
        return scores.sheet(training.variables_of(state), model, video, config.output.sample_people)

    def export(state: TrainState, folder: Path, provenance: dict[str, Any]) -> None:
        final = training.variables_of(state)
        about = provenance | {'scores': measured(final, model, video)}
        digest = models.save_model(folder / 'weights.safetensors', final, model, about, config.storage)
        label = video.labels[video.train[0]]
        save_avatar(folder, models.avatar_of(final, model, digest, video.name, label), about)

    return Run(
        state=training.init_state(model, with_parts(model, begun, jax.random.key(config.seed))),
        step=lambda kind: _step(config),
        batches=batches,
        export=export,
        batch_size=train.batch_size,
        unit='frames',
        images_per_step=train.batch_size,
        kind_of=lambda number: (training.tunes(train, number), training.smooths(train, number)),
        constants={'bank': bank if used else None},
        bound={'networks': {'perceptual': network}, 'init': begun.digest},
        provenance={
            'data': to_plain(config.data),
            'networks': {'perceptual': network},
            'init': begun.digest,
            'parts': begun.report,
            'preset': {'name': model.settings.preset, 'changes': model.settings.changes},
        },
        sample=sample if config.output.sample_people else None,
        headline='psnr',
        bf16=model.generator.dtype == 'bfloat16',
        devices=devices,
        notes=notes,
    )


def _step(config: RunConfig):
    def step(state, batch, frozen, axis_name):
        return training.train_step(config.model, config.seed, state, batch, frozen, axis_name)

    return step


def starting_point(files: str, model: ModelConfig) -> Starting:
    """What a run starts from (``train.starting``): a generator, and a person (basis and encoders).

    Raises:
        UserError: a file cannot be used, or has other networks than the configuration's.
    """

    def generator(path: str) -> Part | None:
        variables, found, digest = load_generator(path)
        check_config(f'{path} (generator)', meaning(found), meaning(model.generator))
        return Part(variables, to_plain(found), digest)

    def personal(path: str) -> Part | None:
        if Path(path).is_dir():
            return None
        weights = load_weights(weight_file(path))
        if weights.method != METHOD:
            return None
        found = {name: weights.variables['params'][name] for name in _PERSONAL}
        check_tree(path, {'params': found}, {'params': {n: models.abstract(model)['params'][n] for n in _PERSONAL}})
        return Part({'params': found}, weights.config, weights.sha256)

    return starting(files, {'generator': generator, 'personal': personal})


def with_parts(model: ModelConfig, begun: Starting, key: jax.Array) -> dict[str, Any]:
    """Variables with the parts that were read, and fresh ones for the others."""
    if 'generator' not in begun.parts:
        variables = models.init(model, key)
    else:
        own = {c: {'generator': tree} for c, tree in begun.parts['generator'].items() if c != 'dataset'}
        variables = with_person(own, model, jax.random.fold_in(key, 1), False, 'init')
    if 'personal' in begun.parts:
        variables['params'] = {**variables['params'], **begun.parts['personal']['params']}
    return jax.tree.map(jax.numpy.asarray, variables)


def made_up_batch(model: ModelConfig, rows: int) -> dict[str, np.ndarray]:
    """A batch of noise with cameras around the head, for measuring."""
    rng, size = np.random.default_rng(0), model.settings.loss.size
    batch = {
        'pictures': rng.uniform(-1, 1, (rows, size, size, 3)).astype(np.float32),
        'labels': np.asarray(orbit_labels(rows), np.float32),
    }
    for driver in model.settings.drivers:
        if driver != 'picture':
            batch[driver] = rng.uniform(0, 0.3, (rows, *models.signal_shape(model, driver))).astype(np.float32)
    return batch


def program(config: RunConfig) -> Program:
    """The two stages' steps with made-up data, for measuring and counting."""
    model, train = config.model, config.model.settings.train
    share = min(1.0, train.tune_iter / train.iterations) if train.iterations else 1.0

    def first_stage(state, batch, frozen, axis_name):
        kept = {name: values for name, values in batch.items() if name != training.TUNED}
        return training.train_step(model, config.seed, state, kept, frozen, axis_name)

    variants = [(share, 'frozen generator', first_stage), (1 - share, 'tuned generator', _step(config))]

    def make_batch(rows: int) -> dict[str, Any]:
        return {**made_up_batch(model, rows), training.TUNED: np.ones(rows, np.float32)}

    def constants() -> dict[str, Any]:
        bank = bank_of(config.perception, model.img_resolution, stand_ins=False)
        return {'bank': bank if losses.looks_through(model, bank) else None}

    def abstract_constants() -> dict[str, PerceptionBank | None]:
        return jax.eval_shape(constants)

    return Program(
        name='HFA-GP',
        variants=tuple(v for v in variants if v[0] > 0),
        make_state=lambda: training.init_state(model, models.init(model, jax.random.key(config.seed))),
        abstract_state=lambda: jax.eval_shape(partial(training.init_state, model), models.abstract(model)),
        make_constants=constants,
        abstract_constants=abstract_constants,
        make_batch=make_batch,
        images_per_row=len(model.settings.drivers),
        batch=train.batch_size,
        bf16=model.generator.dtype == 'bfloat16',
    )
