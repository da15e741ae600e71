"""Stages of HiDe-NeRF for ``avatar-jax bench``, with random weights.

| stage | what is timed |
|---|---|
| planes | source picture to tri-planes (once per avatar) |
| identity | source picture to identity features (once per avatar) |
| modulations | identity features to all that the refine network is told of them (once per avatar) |
| codes | expression to driving code: the head model, drawn |
| deformation | codes and sample points to displacements (LED) |
| rendering | displaced points: planes, point network, compositing |
| refine | raw picture to final picture, modulations given |
| frame | codes, deformation, rendering and refine: what an animated frame costs |
| discriminators | what both discriminators say of raw and final pictures (training only) |
| training | a training step of pairs, without discriminators |
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.methods.hidenerf import adversary, cameras, field, model, secc, train
from avatar_jax.methods.hidenerf.appearance import Appearance
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.hidenerf.refine import IdentityEncoder
from avatar_jax.render.cameras import unpack_label


def config_of(preset: str, dtype: str | None = None, ray_chunk: int | None = None) -> ModelConfig:
    """The model of a preset. Raises ``UserError`` for another type than float32."""
    if dtype not in (None, 'float32'):
        raise UserError(f'--dtype {dtype}: HiDe-NeRF computes in float32; leave it out')
    changes = {} if ray_chunk is None else {'volume__ray_chunk': ray_chunk}
    if preset == 'full':
        # The paper's size with the built-in head: no licence is needed to measure.
        return ModelConfig.paper(basis='procedural', shape='mean', **changes)
    return getattr(ModelConfig, preset)(**changes)


class Stages:
    """Functions and example arguments of all stages for one batch size."""

    def __init__(self, config: ModelConfig, batch: int):
        self.config, self.batch = config, batch
        self.variables = {**model.init(config, jax.random.key(0)), 'mesh': secc.load_mesh(config.basis)}
        keys = jax.random.split(jax.random.key(1), 4)
        still = np.zeros((batch, 3), np.float32)
        self.labels = jnp.asarray(label_from_pose(still, still, config.label_mode), jnp.float32)
        self.expression = 0.1 * jax.random.normal(keys[0], (batch, 64))
        side, raw = config.image_size, config.raw_size
        self.images = jax.random.uniform(keys[1], (batch, side, side, 3), minval=-1, maxval=1)
        self.raw = jax.random.uniform(keys[2], (batch, raw, raw, config.volume.channels), minval=-1, maxval=1)
        self.shift = 0.01 * jax.random.normal(keys[3], (batch, raw * raw, config.volume.samples, 3))
        self.shape = jnp.zeros((batch, self.variables['mesh'].num_shape))
        self._known: tuple | None = None

    def _source(self) -> tuple[model.Source, jax.Array, tuple]:
        """Sources, driving codes and the first avatar's modulations, computed once."""
        if self._known is None:
            c, v = self.config, self.variables

            def compute(v, images, labels, shape, expression):
                source = model.encode(v['params'], c, v['mesh'], images, labels, shape)
                first = model.identity_of(jax.tree.map(lambda x: x[0], source))
                codes = model.driving_codes(c, v['mesh'], shape, expression, labels)
                return source, codes, model.prepare(v, c, first)

            self._known = jax.jit(compute)(v, self.images, self.labels, self.shape, self.expression)
        return self._known

    def stage(self, name: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """Function, arguments and the numbers of those that may be overwritten."""
        c, v = self.config, self.variables

        def planes(v, images, labels):
            cam2world, intrinsics = unpack_label(labels)
            size = cameras.plane_extent(cam2world, intrinsics, c.volume.pivot, c.appearance.extent)
            own = cameras.source_map(cam2world, size, c.volume.pivot)
            seen = model.seen(c, images)
            return Appearance(c.appearance).apply(
                {'params': v['params']['appearance']}, seen, own, size, c.volume.pivot
            )

        if name == 'planes':
            return planes, (v, self.images, self.labels), ()
        if name == 'identity':
            net = IdentityEncoder(c.refine)
            return (lambda v, x: net.apply({'params': v['params']['identity']}, x)), (v, self.images), ()
        if name == 'codes':
            return (
                lambda v, *x: model.driving_codes(c, v['mesh'], *x),
                (v, self.shape, self.expression, self.labels),
                (),
            )
        if name == 'discriminators':
            return self._discriminators()
        if name == 'training':
            return self._training()
        source, codes, told = self._source()
        first = model.identity_of(jax.tree.map(lambda x: x[0], source))
        simple = {
            'modulations': (lambda v, i: model.prepare(v, c, i), (first,)),
            'deformation': (
                lambda v, labels, *x: model.displacements(v['params'], c, self._rays(labels), *x),
                (self.labels, codes, source.canonical),
            ),
            'rendering': (
                lambda v, s, labels, shift: field.render(
                    v['params']['points'], c, s.planes, s.affine, self._rays(labels), shift, s.front
                ),
                (source, self.labels, self.shift),
            ),
            'refine': (
                lambda v, x, told: model.refiner(c).apply({'params': v['params']['refine']}, x, told, method='refined'),
                (self.raw, told),
            ),
            'frame': (
                lambda v, i, told, e, labels: model.frame(v, c, i, told, {'expression': e}, labels),
                (first, told, self.expression, self.labels),
            ),
        }
        function, arguments = simple[name]
        return function, (v, *arguments), ()

    def _rays(self, labels: jax.Array) -> field.Rays:
        return field.rays_of(self.config.volume, labels, self.config.raw_size)

    def _discriminators(self) -> tuple[Callable, tuple, tuple[int, ...]]:
        def said(judges, raw, images, labels):
            seen = zip(adversary.NAMES, (raw, images), strict=True)
            return [adversary.logits(self.config, name, judges[name], x, labels) for name, x in seen]

        judges = jax.jit(lambda key: adversary.init(self.config, key))(jax.random.key(2))
        return said, (judges, self.raw[..., :3], self.images, self.labels), ()

    def _training(self) -> tuple[Callable, tuple, tuple[int, ...]]:
        count, side = self.batch, self.config.image_size
        c = self.config.replace(train__batch_size=count, train__accumulate=1, loss__adversarial=0.0)
        c = c.replace(loss__network='pyramid')
        batch = {
            'images': jnp.zeros((count, 2, side, side, 3)),
            'labels': jnp.broadcast_to(self.labels[:, None], (count, 2, 25)),
            'masks': jnp.ones((count, 2, side, side)),
            'shapes': self.shape,
            'expression': self.expression,
            'importance': jnp.ones((count, side, side)),
        }
        if c.loss.depth:
            batch['depths'] = jnp.ones((count, side, side))
        frozen = {'mesh': self.variables['mesh'], 'bank': None}
        # The state is overwritten: it needs arrays of its own.
        state = train.init_state(c, {'params': jax.tree.map(jnp.copy, self.variables['params'])})
        flags = train.Flags(False, False)
        return (lambda s, b, f: train.train_step(c, 0, flags, s, b, f)), (state, batch, frozen), (0,)
