"""Pivotal tuning in the place of the second stage (``--tune generator``): the generator alone, around the codes found.

The paper's second stage moves basis, encoder and generator together. Here the first two are done before, so that every
frame's code stands still; the generator is then fitted to the frames by ``inversion.tuning``, with its stopping rule
and its regulariser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.inversion import tuning
from avatar_jax.inversion.saving import StepClock
from avatar_jax.inversion.tuning import Tuned, TuningConfig
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.hfagp import losses, train
from avatar_jax.methods.hfagp import model as models
from avatar_jax.methods.hfagp.batches import PersonFrames, training_batch
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.parallel import copies
from avatar_jax.types import PyTree

SHOWN = 10  # steps between two calls of ``on_step``


def fit_generator(
    config: ModelConfig,
    variables: Mapping[str, Any],
    video: PersonFrames,
    bank: PerceptionBank | None,
    key: jax.Array,
    settings: TuningConfig,
    done: int,
    on_step: Callable[..., None],
) -> tuple[dict[str, Any], Tuned, float]:
    """Fits a copy of the generator to a person whose basis and encoder are trained.

    Args:
        key: jitters the samples along the rays, as in the training, and draws the codes of the regulariser.
        settings: its stopping rule looks at the frames of one step.
        done: steps of the training; the order of the frames goes on from there.
        on_step: called as ``on_step(steps, loss=mean)``.

    Returns:
        the variables with the fitted generator, what ``inversion.tuning`` tells, and the seconds of the steps without
        compilation.
    """
    known = config.settings.train
    seed = int(jax.random.bits(key) >> 1)
    bank = bank if losses.network_of(config.settings.loss, bank) == 'lpips' else None
    tuned, mapping = train.split_generator(variables['params']['generator'])
    state = tuning.start(copies(tuned), settings)
    outs, clock = [], StepClock()
    for step in range(settings.steps):
        frames = train.frame_numbers(known, seed, done + step, len(video.train))
        smooth = train.smooths(known, known.iterations)
        batch = training_batch(video, frames, config.settings.loss.size, config.settings.drivers, smooth)
        begun = time.perf_counter()
        state, out = _advance(variables, state, batch, key, bank, config=config, settings=settings)
        stopped = bool(state.stopped)
        clock.add('fit', 1, time.perf_counter() - begun)
        outs.append(out)
        if stopped or (step + 1) % SHOWN == 0 or step + 1 == settings.steps:
            on_step(step + 1, loss=float(np.mean([np.asarray(o[0]) for o in outs[-SHOWN:]])))
        if stopped:
            break
    found = tuning.finish(state, outs)
    params = {**variables['params'], 'generator': train.join_generator(found.params, mapping)}
    return {**variables, 'params': params}, found, float(clock.per_step().sum())


@partial(jax.jit, static_argnames=('config', 'settings'), donate_argnames='state')
def _advance(variables, state, batch, key, bank, *, config, settings):
    ws = jax.lax.stop_gradient(train.codes_of_batch(config, variables['params'], batch))
    many = len(config.settings.drivers)
    labels, pictures = (jnp.concatenate([batch[k]] * many) for k in ('labels', 'pictures'))
    distance = losses.distance_of(config.settings.loss, bank)
    untouched, mapping = train.split_generator(variables['params']['generator'])
    extra = {c: tree['generator'] for c, tree in variables.items() if c != 'params'} | {'mapping': mapping}

    def loss(params: PyTree, step_key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        keys = jnp.concatenate([jax.random.split(step_key, len(batch['labels']))] * many)
        image = train.render_tuned(config, params, extra, ws, labels, keys)
        value, terms = losses.terms(config.settings.loss, distance, pictures, image)
        psnr = -10 * jnp.log10(jnp.maximum(terms['mse'] / 4, 1e-10))
        return value, {**terms, tuning.PSNR: -psnr}

    def picture(params: PyTree, rows: jax.Array) -> jax.Array:
        generator = {c: tree for c, tree in extra.items() if c != 'mapping'}
        generator['params'] = train.join_generator(params, mapping)
        return models.render(generator, config, rows[None], labels[:1]).rgb

    def random_code(code_key: jax.Array) -> jax.Array:
        z = jax.random.normal(code_key, (1, config.generator.z_dim))
        model = TriPlaneGenerator(config.generator)
        return model.apply(models.generator_of(variables), z, labels[:1], method='mapping')[0]

    apart = None if distance[1] is None else lambda a, b: distance[1](b, a)
    local = tuning.locality_term(picture, untouched, ws[0], random_code, settings.locality, apart)
    return tuning.advance(loss, state, key, 1, settings, local)
