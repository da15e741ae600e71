"""Training programs as data, for measuring and counting: the step, its state, a batch, from a run's configuration.

``program_of`` knows the methods that can be trained; ``launch.benchmark_train`` and ``launch.scaling`` use what it
gives and know no method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from avatar_jax.errors import UserError

PyTree = Any


@dataclass(frozen=True)
class Program:
    """One training step in its variants.

    Attributes:
        name: of the method.
        variants: (share of the steps, name, ``step(state, batch, constants, axis_name)``); shares add up to 1.
        make_state, abstract_state: a fresh state, and its shapes.
        make_constants, abstract_constants: the step's constants, and their shapes (of the paper's networks).
        make_batch: rows -> numpy arrays [rows, ...].
        images_per_row: pictures of one row of the batch. batch: rows of a step in the configuration.
        bf16: whether most arithmetic is in bfloat16.
        unit: the least number of rows that a device can have.
    """

    name: str
    variants: tuple[tuple[float, str, Callable], ...]
    make_state: Callable[[], PyTree]
    abstract_state: Callable[[], PyTree]
    make_constants: Callable[[], PyTree]
    abstract_constants: Callable[[], PyTree]
    make_batch: Callable[[int], dict[str, Any]]
    images_per_row: int
    batch: int
    bf16: bool
    unit: int = 1


def program_of(config: Any) -> Program:
    """The program of a ``RunConfig`` of any method."""
    kind = type(config).__module__
    if kind == 'avatar_jax.methods.otavatar.train':
        return _otavatar(config)
    if kind == 'avatar_jax.methods.eg3d.config':
        return _eg3d(config)
    raise UserError(f'{kind}: cannot be measured; there are OTAvatar and EG3D')


def load_run(spec: str, overrides: tuple[str, ...] = ()) -> Any:
    """The ``RunConfig`` of a config file, whatever its method."""
    from launch.config_args import load_config
    from launch.train import method_of

    return method_of(load_config(spec, overrides).to_dict())[0]


def _otavatar(config: Any) -> Program:
    import jax
    import numpy as np

    from avatar_jax.losses.perception import PerceptionBank, abstract_variables
    from avatar_jax.methods.otavatar import train as training
    from avatar_jax.methods.otavatar.model import abstract, init
    from launch.invert import perception_bank

    model, method = config.model, config.model.method

    def step(state, batch, bank, axis_name):
        return training.train_step(model, config.seed, state, batch, bank, axis_name, config.scale.accumulate)

    def make_state():
        return training.init_state(model, init(model, jax.random.key(config.seed)))

    def abstract_state():
        return jax.eval_shape(partial(training.init_state, model), abstract(model))

    def abstract_constants():
        if model.generator.img_resolution < 256:
            return jax.eval_shape(lambda: perception_bank((), model, config.stand_ins))
        return PerceptionBank(weights={name: abstract_variables(name) for name in ('vgg19', 'arcface18')})

    def make_batch(rows):
        rng, frames, size = np.random.default_rng(0), method.train.frames_per_clip, model.generator.img_resolution
        return {
            'images': rng.uniform(-1, 1, (rows, frames, size, size, 3)).astype(np.float32),
            'landmarks': rng.uniform(0.3 * size, 0.7 * size, (rows, frames, 68, 2)).astype(np.float32),
            'windows': rng.uniform(0, 0.3, (rows, frames, 27, 70)).astype(np.float32),
            'labels': _labels(model.generator, rows * frames).reshape(rows, frames, 25),
        }

    return Program(
        'OTAvatar',
        ((1.0, 'iteration', step),),
        make_state,
        abstract_state,
        lambda: perception_bank(config.perception, model, config.stand_ins),
        abstract_constants,
        make_batch,
        method.train.frames_per_clip,
        method.train.batch_size,
        model.generator.dtype == 'bfloat16',
    )


def _eg3d(config: Any) -> Program:
    import jax
    import numpy as np

    from avatar_jax.methods.eg3d import train as training

    generator, t = config.generator, config.train
    # One period of the regularisations, after all schedules have come to their end.
    period = math.lcm(*(n for n in (config.g_interval, t.d_reg_interval, 1) if n))
    end = 10**6 * period
    flags = [training.flags_at(config, end + k) for k in range(period)]
    shares = {f: flags.count(f) / period for f in flags}

    def named(flag):
        return '+'.join(['main', *(name for name in ('g_reg', 'd_reg') if getattr(flag, name))])

    def make_step(flag):
        return lambda state, batch, labels, axis_name: training.train_step(
            config, flag, state, batch, labels, axis_name
        )

    def make_state():
        return training.init_state(config, *training.fresh_variables(config))

    def make_batch(rows):
        size = generator.img_resolution
        images = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3)).astype(np.uint8)
        return {'image': images, 'label': _labels(generator, rows)}

    return Program(
        'EG3D',
        tuple((share, named(f), make_step(f)) for f, share in shares.items()),
        make_state,
        lambda: jax.eval_shape(make_state),
        lambda: _labels(generator, 64),
        lambda: jax.ShapeDtypeStruct((64, 25), np.float32),
        make_batch,
        1,
        t.batch,
        generator.dtype == 'bfloat16',
        unit=t.accumulate * (config.discriminator.mbstd_group_size or 1),
    )


def _labels(generator: Any, count: int) -> Any:
    """Camera labels on an orbit, [count, 25]."""
    import numpy as np

    from avatar_jax.render import cameras

    render = generator.rendering
    return np.asarray(cameras.orbit_labels(count, render.avg_camera_radius, render.avg_camera_pivot), np.float32)
