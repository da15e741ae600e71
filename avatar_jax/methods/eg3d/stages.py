"""Stages of the tri-plane generator for ``avatar-jax bench``, with random weights.

| stage | what is timed |
|---|---|
| backbone | style rows to planes |
| rendering | planes and cameras to the raw image, depth and features |
| superresolution | raw image and features to the image |
| frame | the three together |
| inversion | value and gradient, with respect to the style rows, of a loss on raw and final image |
| training | value and gradient with respect to all parameters of the same loss, and an Adam update |
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator, init_generator
from avatar_jax.render import cameras
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer


def config_of(preset: str, dtype: str | None = None, ray_chunk: int | None = None) -> GeneratorConfig:
    """The generator of a preset."""
    family, _, raw = preset.partition('-')
    make = getattr(GeneratorConfig, family)
    config = make(int(raw)) if raw else make()
    if dtype:
        config = config.replace(dtype=dtype)
    return config if ray_chunk is None else config.replace(rendering={'ray_chunk': ray_chunk})


class Stages:
    """Functions and example arguments of all stages for one batch size."""

    def __init__(self, config: GeneratorConfig, batch: int):
        self.model, self.looking = TriPlaneGenerator(config), TriPlaneGenerator(config.for_frames())
        self.variables = init_generator(config, jax.random.key(0))
        pivot, radius = config.rendering.avg_camera_pivot, config.rendering.avg_camera_radius
        self.labels = cameras.orbit_labels(batch, radius, pivot)
        keys = jax.random.split(jax.random.key(1), 3)
        z = jax.random.normal(keys[0], (batch, config.z_dim))
        self.ws = self._apply('mapping', self.variables, z, self.labels)
        raw, size = config.neural_rendering_resolution, config.img_resolution
        planes = (batch, 3, config.plane_resolution, config.plane_resolution, config.plane_channels)
        self.planes = jax.random.normal(keys[1], planes)
        self.features = jnp.tanh(jax.random.normal(keys[2], (batch, raw, raw, config.decoder_out)))
        self.target = jnp.zeros((batch, size, size, 3)), jnp.zeros((batch, raw, raw, 3))

    def _apply(self, method, variables, *arguments):
        return self.model.apply(variables, *arguments, method=method)

    def stage(self, name: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """Function, arguments and the numbers of those that may be overwritten."""

        def loss(variables, ws, labels, target):
            out = self._apply('synthesis', variables, ws, labels)
            return ((out['image'] - target[0]) ** 2).mean() + ((out['image_raw'] - target[1]) ** 2).mean()

        def frame(variables, ws, labels):
            return self.looking.apply(variables, ws, labels, method='synthesis')

        def train(params, state, buffers, ws, labels, target):
            value, grads = jax.value_and_grad(lambda p: loss({'params': p, **buffers}, ws, labels, target))(params)
            updates, state = optimizer.update(grads, state, params)
            return jax.tree.map(lambda p, u: p + u, params, updates), state, value

        if name == 'training':
            params = jax.tree.map(jnp.copy, self.variables['params'])  # the step overwrites them
            buffers = {k: v for k, v in self.variables.items() if k != 'params'}
            optimizer = make_optimizer(OptimizerConfig(lr=1e-4))
            return train, (params, optimizer.init(params), buffers, self.ws, self.labels, self.target), (0, 1)
        simple = {
            'backbone': (lambda v, ws: self._apply('planes', v, ws), (self.ws,)),
            'rendering': (
                lambda v, planes, c: self.looking.apply(v, planes, c, method='render'),
                (self.planes, self.labels),
            ),
            'superresolution': (
                lambda v, features, ws: self._apply('superresolve', v, features[..., :3], features, ws),
                (self.features, self.ws),
            ),
            'frame': (frame, (self.ws, self.labels)),
            'inversion': (jax.value_and_grad(loss, 1), (self.ws, self.labels, self.target)),
        }
        function, arguments = simple[name]
        return function, (self.variables, *arguments), ()
