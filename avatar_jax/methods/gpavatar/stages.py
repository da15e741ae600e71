"""Stages of GPAvatar for ``avatar-jax bench``, with random weights.

| stage | what is timed |
|---|---|
| encoder | one portrait to tri-planes (once per portrait) |
| fusion | attention over two portraits (once per avatar) |
| points | head model to points |
| neighbours | nearest points of all samples of one pass |
| field | expression field of all samples of one pass, neighbours given |
| rendering | both passes: neighbours, field, planes, head, compositing |
| superresolution | rendered features to the picture |
| frame | points, rendering and super-resolution: what an animated frame costs |
| training | a training step of whole pictures |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.methods.gpavatar import cameras, field, head, mesh, model, render, train
from avatar_jax.methods.gpavatar.config import ModelConfig


def config_of(preset: str, dtype: str | None = None, ray_chunk: int | None = None) -> ModelConfig:
    """The model of a preset. Raises ``UserError`` for another type than float32."""
    if dtype not in (None, 'float32'):
        raise UserError(f'--dtype {dtype}: GPAvatar computes in float32 (its weights are tiny numbers); leave it out')
    # The full size with the built-in head, which has no fewer vertices than FLAME: no licence is needed to measure.
    config = ModelConfig.full(basis='procedural') if preset == 'full' else getattr(ModelConfig, preset)()
    return config.with_method(ray_chunk=ray_chunk) if ray_chunk is not None else config


class Stages:
    """Functions and example arguments of all stages for one batch size."""

    def __init__(self, config: ModelConfig, batch: int):
        self.config, self.batch = config, batch
        self.variables = {**model.init(config, jax.random.key(0)), 'mesh': mesh.load_mesh(config)}
        keys = jax.random.split(jax.random.key(1), 4)
        still = np.zeros((batch, 3), np.float32)
        self.labels = np.asarray(label_from_pose(still, still, 'raw'), np.float32)
        self.expression = 0.1 * jax.random.normal(keys[0], (batch, 64))
        self.planes = jax.random.normal(keys[1], config.plane_shape)
        self.images = jax.random.uniform(keys[2], (batch, config.image_size, config.image_size, 3))
        self.features = jax.random.normal(
            keys[3], (batch, config.raw_size, config.raw_size, config.settings.head.out_channels)
        )
        self.shape = jnp.zeros(mesh.NUM_SHAPE[config.basis])

    def stage(self, name: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """Function, arguments and the numbers of those that may be overwritten."""
        c, settings = self.config, self.config.settings
        points = mesh.head_points(c, self.variables['mesh'], self.shape, self.expression)
        identity = {'planes': self.planes, 'shape': self.shape}

        def places(labels):
            transforms, focal = cameras.camera_of_label(labels, c.world)
            origins, directions = cameras.rays(transforms, focal, c.raw_size, c.raw_size)
            near, far, _ = cameras.cube_hits(origins, directions)
            found = render.along(origins, directions, render.bin_depths(near, far, settings.samples))
            return found.reshape(self.batch, -1, 3)

        def scene(planes, points):
            return head.Scene(jnp.broadcast_to(planes, (self.batch, *planes.shape)), points)

        def rendering(v, planes, points, labels):
            transforms, focal = cameras.camera_of_label(labels, c.world)
            return model.render_views(v['params'], c, scene(planes, points), transforms, focal, sr=False)

        if name == 'training':
            return self._training()
        if name == 'field':
            where = jax.jit(places)(self.labels)
            known = jax.jit(lambda p, q: field.neighbours_of(p, q, settings.field))(where, points)

            def evaluate(v, where, points, known):
                querier = v['params']['nerf_mlp']['points_querier']
                prepared = field.prepare_points(querier, settings.field)
                return field.point_features(querier, prepared, settings.field, where, points, known)

            return evaluate, (self.variables, where, points, known), ()
        simple = {
            'encoder': (lambda v, x: model.encode(v['params'], c, x), (self.images,)),
            'fusion': (
                lambda v, p: model.fuse(
                    v['params'], v['constants']['attn_module']['scale'], c, jnp.stack([p, p[::-1]])[None]
                ),
                (self.planes,),
            ),
            'points': (lambda v, e: mesh.head_points(c, v['mesh'], self.shape, e), (self.expression,)),
            'neighbours': (
                lambda v, p, labels: field.neighbours_of(places(labels), p, settings.field),
                (points, self.labels),
            ),
            'rendering': (rendering, (self.planes, points, self.labels)),
            'superresolution': (lambda v, x: model.superresolve(v['params'], c, x), (self.features,)),
            'frame': (
                lambda v, i, e, labels: model.views(v, c, i, e, labels).image,
                (identity, self.expression, self.labels),
            ),
        }
        function, arguments = simple[name]
        return function, (self.variables, *arguments), ()

    def _training(self) -> tuple[Callable, tuple, tuple[int, ...]]:
        c, count = self.config, self.batch
        c = dataclasses.replace(c, settings=c.settings.replace(train__batch_size=count, loss__network='pyramid'))
        views, drivers, size = c.settings.train.sources, c.settings.train.drivers, c.img_resolution
        lead = (count, drivers + views)
        batch = {
            'images': jnp.zeros((*lead, size, size, 3)),
            'labels': jnp.broadcast_to(self.labels[:, None], (*lead, 25)),
            'windows': jnp.zeros((*lead, 27, 70)),
            'masks': jnp.ones((count, drivers, size, size)),
            'boxes': jnp.tile(jnp.array([0.2, 0.2, 0.8, 0.8]), (count, drivers, 1)),
            'views': jnp.asarray(model.views_of(c, np.broadcast_to(self.labels[:, None], (count, views, 25)))),
            'shapes': jnp.zeros((count, len(self.shape))),
        }
        frozen = {'mesh': self.variables['mesh'], 'alexnet': None}
        # The state is overwritten: it needs arrays of its own.
        state = train.init_state(
            c, jax.tree.map(jnp.copy, {k: self.variables[k] for k in ('params', 'noise', 'constants')})
        )
        return (lambda s, b, f: train.train_step(c, 0, s, b, f)), (state, batch, frozen), (0,)
