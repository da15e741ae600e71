"""A whole method in one file, as a package of a stranger could have it: docs/architecture.md walks through it.

The avatar of a person is the mean colour of the pictures; the driver's jaw makes it brighter by a learned gain. It is
found through the entry-point group ``avatar_jax.methods`` (tests/test_methods.py declares it there).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.io.assets import Asset
from avatar_jax.io.weights import load_weights, save_weights
from avatar_jax.methods.base import Bench, Built, Method, Row, Table, Training, later_value, option
from avatar_jax.parallel import mean_over_devices
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.program import Program
from avatar_jax.train.run import OutputConfig
from avatar_jax.train.runner import Run
from avatar_jax.train.state import Group, TrainState
from avatar_jax.types import Avatar, Frames

JAW = 0  # number of the jaw's coefficient


@dataclass(frozen=True)
class ModelConfig:
    """Side of the pictures; the basis of the expressions; how camera labels are normalised."""

    img_resolution: int = 32
    basis: str = 'procedural'
    label_mode: str = 'raw'

    def to_dict(self) -> dict[str, Any]:
        return to_plain(self)


read_config = partial(from_plain, ModelConfig)


def init(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
    return {'params': {'gain': 0.1 * jax.random.normal(key, (3,))}}


def save(path: Any, variables: Any, config: ModelConfig, provenance: Any, storage: str = 'float32') -> str:
    return save_weights(path, variables, method='toy', config=config.to_dict(), provenance=provenance, storage=storage)


def load(path: Any) -> tuple[Any, ModelConfig, str, Any]:
    weights = load_weights(path, method='toy')
    return weights.variables, read_config(weights.config), weights.sha256, weights.provenance


@dataclass(frozen=True)
class BuildOptions:
    """How an avatar is made."""

    darker: float = option(0.0, 'makes the avatar darker by this much, 0 to 1')


def build(model: Any, source: Any, options: BuildOptions, *, bank: Any, key: Any, on_step: Any) -> Built:
    """The mean colour of all pictures; of a video one frame after the other."""
    total = np.zeros(3)
    for portrait in source.portraits:
        total += np.asarray(portrait.image).reshape(-1, 3).mean(0)
    color = np.float32(np.clip(total / len(source.portraits) - options.darker, -1, 1))
    on_step(1, loss=0.0)
    config, camera = model.config, source.portraits[0].camera
    avatar = Avatar({'color': jnp.asarray(color)}, camera, 'toy', config, config.basis, model.sha256, source.name)
    return Built(avatar, report={'pictures': len(source.portraits)}, notes=('it is only a colour',))


def frame(variables, config, identity, prepared, signals, labels, keys=None, sr=True) -> Frames:
    """[N] pictures of one colour each."""
    brighter = signals['expression'][:, JAW, None] * variables['params']['gain']
    color = jnp.clip(identity['color'] + brighter, -1, 1)
    rgb = jnp.broadcast_to(color[:, None, None], (len(labels), config.img_resolution, config.img_resolution, 3))
    return Frames(rgb, rgb, jnp.zeros_like(rgb[..., :1]), jnp.ones_like(rgb[..., :1]))


@dataclass(frozen=True)
class DataConfig:
    """How many made-up people there are."""

    people: int = 8


@dataclass(frozen=True)
class RunConfig:
    """One training run: the gain is learned from colours with known jaws."""

    seed: int = 0
    steps: int = 6
    batch: int = 4
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 0.05))
    output: OutputConfig = field(default_factory=lambda: OutputConfig(1, 0, 2, tensorboard=False))
    parallel: str = 'single'
    MAY_DIFFER = ('output.*', 'steps', 'parallel')

    def loop(self) -> Any:
        return self.output.loop(self.steps)


run_config = partial(from_plain, RunConfig)


def make_batch(people: int, rows: int, number: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    jaw = rng.uniform(0, 1, (rows, 1)).astype(np.float32)
    return {'jaw': jaw, 'brighter': jaw * np.float32([0.5, 0.4, 0.3]) + np.float32(1 / people)}


def fresh_state(config: RunConfig) -> TrainState:
    params = init(config.model, jax.random.key(config.seed))['params']
    return TrainState.create({'gain': Group.create(params, make_optimizer(config.optimizer))})


def step_of(config: RunConfig) -> Any:
    tx = make_optimizer(config.optimizer)

    def step(state, batch, constants, axis_name):
        def loss(params):
            return jnp.mean((batch['jaw'] * params['gain'] - batch['brighter']) ** 2)

        group = state.groups['gain']
        value, grads = mean_over_devices(jax.value_and_grad(loss)(group.params), axis_name)
        group, norms = group.apply_gradients(grads, tx)
        return state.with_groups(gain=group).replace(step=state.step + 1), {'loss': value, **norms}

    return step


def start(config: RunConfig, streams: Any, quiet: bool = False) -> Run:
    def batches(first):
        return (make_batch(config.data.people, config.batch, number) for number in itertools.count(first))

    def export(state, folder, provenance):
        save(folder / 'weights.safetensors', {'params': state.groups['gain'].params}, config.model, provenance)

    step = step_of(config)
    return Run(fresh_state(config), lambda kind: step, batches, export, config.batch, 'colours', config.batch)


def program(config: RunConfig) -> Program:
    steps, state, nothing = ((1.0, 'step', step_of(config)),), partial(fresh_state, config), lambda: np.float32(0)
    made_up = partial(make_batch, config.data.people)
    shapes = partial(jax.eval_shape, state), partial(jax.eval_shape, nothing)
    return Program('Toy', steps, state, shapes[0], nothing, shapes[1], made_up, 1, config.batch, False)


def stages(config: ModelConfig, batch: int) -> Any:
    signals, labels = {'expression': jnp.zeros((batch, 64))}, jnp.zeros((batch, 25))
    arguments = (init(config, jax.random.key(0)), {'color': jnp.zeros(3)}, signals, labels)
    return SimpleNamespace(stage=lambda name: ((lambda v, i, s, c: frame(v, config, i, None, s, c).rgb), arguments, ()))


def bench_config(preset: str, dtype: str | None, ray_chunk: int | None) -> ModelConfig:
    return ModelConfig(16 if preset == 'small' else 64)


def table_run(variant: str, size: str, seed: int, steps: int | None, pictures: Any) -> tuple[str, list[str]]:
    rate = {'fast': 0.1, 'slow': 0.001}[variant]
    overrides = [f'--config.seed={seed}', f'--config.optimizer.lr={rate}', f'--config.steps={steps or 20}']
    return 'tests/toy_config.py', overrides


def table_scores(model: Any, people: int) -> dict[str, dict[str, float]]:
    return {'all': {'error': float(np.abs(np.asarray(model.variables['params']['gain']) - [0.5, 0.4, 0.3]).mean())}}


ROWS = {'fast': Row('fast', 'all', {'error': 0.1}), 'slow': Row('slow', 'all', {'error': 0.2})}
METHOD = Method(
    name='toy',
    title='Toy',
    config=read_config,
    load=load,
    save=save,
    init=init,
    sources=('portrait', 'portraits', 'video'),
    build=build,
    build_options=BuildOptions,
    signals=('expression',),
    frame=frame,
    interpolate=lambda a, b, amount: jax.tree.map(lambda x, y: (1 - amount) * x + amount * y, a, b),
    trainings={'colours': Training(run_config, start, program, 'tests/toy_config.py')},
    foreign=later_value('tests.toy_foreign:FOREIGN'),
    bench=Bench(('small', 'large'), ('frame',), bench_config, stages, 'a toy is quick'),
    assets=(Asset('toy', 'a colour', 'none', 'nowhere', ('toy.bin',), ('toy',)),),
    tables={'toy1': Table('Toy, Table 1', ROWS, (('fast', 'slow'),), {'error': False}, table_run, table_scores)},
)
