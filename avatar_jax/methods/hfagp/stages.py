"""Stages of HFA-GP for ``avatar-jax bench``, with random weights.

| stage | what is timed |
|---|---|
| encoder | pictures to weights of the basis |
| coefficients | coefficients to weights of the basis |
| sound | windows of sound features to weights of the basis |
| qr | orthogonalisation of the basis (once per avatar, and in every training step) |
| frame | coefficients to the picture: what an animated frame costs |
| training | a step of the second stage, driven by pictures |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from avatar_jax.methods.hfagp import model as models
from avatar_jax.methods.hfagp import train as training
from avatar_jax.methods.hfagp.basis import directions
from avatar_jax.methods.hfagp.config import DRIVERS, ModelConfig
from avatar_jax.methods.hfagp.training import made_up_batch
from avatar_jax.parallel import as_arrays

_DRIVEN = {'encoder': 'picture', 'coefficients': 'coefficients', 'sound': 'sound'}


def config_of(preset: str, dtype: str | None = None, ray_chunk: int | None = None) -> ModelConfig:
    """The model of a preset, with all three drivers."""
    config = getattr(ModelConfig, preset)('paper', *DRIVERS)
    generator = config.generator
    if dtype is not None:
        generator = generator.replace(dtype=dtype)
    if ray_chunk is not None:
        generator = generator.replace(rendering={'ray_chunk': ray_chunk})
    return dataclasses.replace(config, generator=generator)


class Stages:
    """Functions and example arguments of all stages for one batch size."""

    def __init__(self, config: ModelConfig, batch: int):
        self.config, self.batch = config, batch
        self.variables = models.init(config, jax.random.key(0))
        self.inputs = as_arrays(made_up_batch(config, batch))
        self.vectors = models.per_video(self.variables, config)

    def stage(self, name: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """Function, arguments and the numbers of those that may be overwritten."""
        c, variables, inputs = self.config, self.variables, self.inputs
        if name == 'training':
            return self._training()
        if name == 'qr':
            bases = variables['params']['basis'][models.SHARED]['bases']
            return (lambda b: directions(b, c.settings.basis.orthogonal)), (bases,), ()
        if name == 'frame':

            def frame(v, vectors, signal, labels):
                return models.frame(v, c, {}, vectors, {'coefficients': signal}, labels).rgb

            return frame, (variables, self.vectors, inputs['coefficients'], inputs['labels']), ()
        driver = _DRIVEN[name]
        signal = inputs['pictures'] if driver == 'picture' else inputs[driver]
        return (lambda p, s: models.weights_of(p, c, driver, s)), (variables['params'], signal), ()

    def _training(self) -> tuple[Callable, tuple, tuple[int, ...]]:
        settings = dataclasses.replace(self.config.settings, drivers=('picture',))
        config = dataclasses.replace(self.config, settings=settings)
        params = self.variables['params']
        own = {**self.variables, 'params': {**params, 'encoder': {'picture': params['encoder']['picture']}}}
        # The state is overwritten: it needs arrays of its own.
        state = training.init_state(config, jax.tree.map(jnp.copy, own))
        batch = {k: self.inputs[k] for k in ('pictures', 'labels')} | {training.TUNED: jnp.ones(self.batch)}
        return (lambda s, b, f: training.train_step(config, 0, s, b, f)), (state, batch, {'bank': None}), (0,)
