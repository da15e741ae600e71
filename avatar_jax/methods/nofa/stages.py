"""Stages of NOFA for ``avatar-jax bench``, with random weights.

| stage | what is timed |
|---|---|
| encoder | source picture to style rows (once per avatar) |
| backbone | style rows to the canonical volume and the features of compensation (once per avatar) |
| compensation | features and source picture to the added volume (once per avatar) |
| deformation | the field alone, at all samples of a frame |
| rendering | rays through a volume, with the field |
| superresolution | raw picture to final picture |
| frame | rendering and superresolution: what an animated frame costs |
| tuning_compensation | a step of the fit of the compensation network (equation 12); the canonical volume is given |
| tuning_generator | a step of the fit of the generator in its place |
| training_general, training_teeth, training_compensation | a step of whole pictures of the training stages |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.inversion import tuning
from avatar_jax.inversion.tuning import TuningConfig
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.nofa import fit, model, train
from avatar_jax.methods.nofa.config import ModelConfig
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.render.cameras import frontal_label

STEPS = 1_000_000


def config_of(preset: str, dtype: str | None = None, ray_chunk: int | None = None) -> ModelConfig:
    """The model of a preset. Raises ``UserError`` for a wrong type."""
    config = ModelConfig.paper() if preset == 'full' else getattr(ModelConfig, preset)()
    # No files are needed to measure: a perceptual network would be another stage's cost.
    config = config.replace(loss__perceptual_network='pyramid', loss__identity_network='none')
    changes = {'dtype': dtype} if dtype else {}
    if ray_chunk is not None:
        changes['rendering'] = {'ray_chunk': ray_chunk}
    if not changes:
        return config
    return ModelConfig(config.generator.replace(**changes), config.settings, config.basis, config.label_mode)


class Stages:
    """Functions and example arguments of all stages for one batch size."""

    def __init__(self, config: ModelConfig, batch: int):
        self.config, self.batch = config, batch
        self.variables = model.init(config, jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 4)
        g, d, side = config.generator, config.settings.deformation, config.img_resolution
        label = frontal_label(g.rendering.avg_camera_radius, g.rendering.avg_camera_pivot)
        self.labels = jnp.broadcast_to(jnp.asarray(label, jnp.float32).reshape(1, 25), (batch, 25))
        self.images = jax.random.uniform(keys[0], (batch, side, side, 3), minval=-1, maxval=1)
        self.shape = jax.random.normal(keys[1], (batch, d.num_shape))
        self.expression = 0.1 * jax.random.normal(keys[2], (batch, d.num_expression))
        marks = np.random.default_rng(0).uniform(0.3 * side, 0.7 * side, (batch, 68, 2))
        self.landmarks = jnp.asarray(marks, jnp.float32)
        self.raw = jnp.zeros((batch, *(g.neural_rendering_resolution,) * 2, g.decoder_out))

    def stage(self, name: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """Function, arguments and the numbers of those that may be overwritten."""
        if name.startswith('tuning_'):
            return self._tuning(name.removeprefix('tuning_'))
        if name.startswith('training_'):
            return self._training(name.removeprefix('training_'))
        c, v, g = self.config, self.variables, self.config.generator
        ws = jnp.zeros((self.batch, g.num_ws, g.w_dim))
        planes = jnp.zeros((self.batch, 3, *(g.plane_resolution,) * 2, g.plane_channels))
        features = jnp.zeros((self.batch, *(c.feature_resolution,) * 2, c.feature_channels))
        rays, rendering = g.neural_rendering_resolution**2, g.rendering
        points = jnp.zeros((self.batch, rays * (rendering.depth_resolution + rendering.depth_resolution_importance), 3))
        drive = (self.shape, self.expression)

        looking = dataclasses.replace(c, generator=g.for_frames())

        def rendered(v, planes, ws, labels, shape, expression, sr):
            deform = model.deformation_of(v, c, shape, expression)
            return model.render(v, looking, planes, ws, labels, deform, sr=sr)

        def superresolved(v, raw, ws):
            own, network = model.network(v, 'generator'), TriPlaneGenerator(g)
            return network.apply(own, raw[..., :3], raw, ws, method='superresolve')

        simple = {
            'encoder': (lambda v, x: model.style_rows(v, c, x), (self.images,)),
            'backbone': (lambda v, ws: model.canonical(model.network(v, 'generator'), c, ws), (ws,)),
            'compensation': (lambda v, f, x: model.added(v, c, f, x), (features, self.images)),
            'deformation': (lambda v, x, *d: model.deformation_of(v, c, *d)(x), (points, *drive)),
            'rendering': (lambda v, *x: rendered(v, *x, sr=False), (planes, ws, self.labels, *drive)),
            'superresolution': (superresolved, (self.raw, ws)),
            'frame': (lambda v, *x: rendered(v, *x, sr=True), (planes, ws, self.labels, *drive)),
        }
        function, arguments = simple[name]
        return function, (v, *arguments), ()

    def fit_config(self, tune: str) -> TuningConfig:
        """Of a fit that does not end: its state goes on from call to call."""
        return TuningConfig(tune, STEPS, self.config.settings.tuning.optimizer)

    def _tuning(self, tune: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """One step of the fit for each picture of the batch, people side by side."""
        chosen = self.fit_config(tune)
        c, bank = fit.with_tuning(self.config, tuning=chosen), PerceptionBank()
        weights = c.settings.loss.one_shot
        size = c.generator.neural_rendering_resolution

        def one(state, v, image, label, shape, expression, marks, *volume):
            targets = fit.losses.prepare_targets(bank, c.settings.loss, weights, image[None], marks[None], size)
            problem = fit.Problem(image[None], label[None], shape[None], expression[None], targets)
            rows = jnp.zeros((1, c.generator.num_ws, c.generator.w_dim))
            given = tuple(x[None] for x in volume) or None
            loss, _ = fit.tuning_loss(v, c, problem, rows, bank, tune, False, given)
            return tuning.advance(loss, state, jax.random.key(0), 1, chosen)[0]

        people = (self.images, self.labels, self.shape, self.expression, self.landmarks)
        volume = ()
        if tune == 'compensation':
            g = c.generator
            planes = jnp.zeros((self.batch, 3, *(g.plane_resolution,) * 2, g.plane_channels))
            volume = (planes, jnp.zeros((self.batch, *(c.feature_resolution,) * 2, c.feature_channels)))
        first = fit.first_params(self.variables, tune)
        states = jax.vmap(lambda _: tuning.start(first, chosen))(jnp.arange(self.batch))

        def step(states, v, *rows):
            return (jax.vmap(one, in_axes=(0, None, *(0,) * len(rows)))(states, v, *rows),)

        return step, (states, self.variables, *people, *volume), (0,)

    def _training(self, stage: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        c, both = self.config, lambda x: jnp.stack([x, x], 1)
        batch = {
            'images': both(self.images),
            'landmarks': both(self.landmarks),
            'labels': both(self.labels),
            'expressions': both(self.expression),
            'shapes': both(self.shape),
        }
        # The state is overwritten: it needs arrays of its own.
        state = train.init_state(c, jax.tree.map(jnp.copy, self.variables), stage)
        frozen = train.Frozen()
        return (lambda s, b, f: train.train_step(c, stage, 0, s, b, f)), (state, batch, frozen), (0,)
