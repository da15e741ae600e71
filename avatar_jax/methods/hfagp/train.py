"""Training of an avatar on one person's video: state, the pure step of both stages, the order of the frames.

In the first ``tune_iter`` updates basis and encoder learn while the generator is frozen: gradients pass through it to
the codes, but not to its parameters. From update ``tune_iter + 1`` on the generator learns too, with an Adam whose
moments and count start there, while those of basis and encoder go on. The mapping network never gets a gradient and is
no part of the trained parameters.

Whether a step tunes the generator, and whether sound is smoothed in time, is said by the batch (``with_stage``), so
that each stage is a program of its own without conditionals; both follow from the number of finished updates alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.hfagp import model as models
from avatar_jax.methods.hfagp.config import ModelConfig, TrainConfig
from avatar_jax.methods.hfagp.encoders import ATTENDED
from avatar_jax.methods.hfagp.losses import Distance, distance_of, terms
from avatar_jax.parallel import as_arrays, mean_over_devices, sample_keys
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.train.state import Group, TrainState, step_key
from avatar_jax.types import PyTree

Render = Callable[[PyTree, PyTree, jax.Array, jax.Array, jax.Array], jax.Array]
"""(generator parameters that are tuned, ``TrainState.extra``, codes [N,L,d], labels [N,25], keys [N]) -> [N,H,W,3]."""

PERSONAL, GENERATOR, ATTENTION = 'personal', 'generator', 'attention'
TUNED = 'tuned'  # name of the batch entry that says that the generator learns in this step


# ------------------------------------------------------------------------------------------------------------- state


def split_generator(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Generator parameters as (tuned in the second stage, the mapping network)."""
    backbone = dict(params['backbone'])
    mapping = {'backbone': {'mapping': backbone.pop('mapping')}} if 'mapping' in backbone else {}
    return {**params, 'backbone': backbone}, mapping


def join_generator(tuned: Mapping[str, Any], mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``split_generator``."""
    return {**tuned, 'backbone': {**tuned['backbone'], **mapping.get('backbone', {})}}


def split_attention(encoder: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoders as (all but the attention over sound codes, that attention), which has an optimizer of its own."""
    if 'sound' not in encoder:
        return dict(encoder), {}
    sound = dict(encoder['sound'])
    attention = sound.pop('attention')
    return {**encoder, 'sound': sound}, attention


def join_attention(encoder: Mapping[str, Any], attention: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``split_attention``."""
    return {**encoder, 'sound': {**encoder['sound'], 'attention': attention}} if attention else dict(encoder)


def create_state(
    config: TrainConfig, personal: PyTree, generator: PyTree, extra: PyTree, attention: PyTree = None
) -> TrainState:
    """A state before the first update, of any parameters.

    Args:
        personal: {'basis', 'encoder'}. generator: tuned in the second stage. attention: of the sound encoder.
        extra: arrays that are not trained.
    """
    tx = make_optimizer(config.optimizer)
    groups = {
        PERSONAL: Group.create(personal, tx),
        GENERATOR: Group.create(generator, make_optimizer(config.generator_optimizer)),
    }
    if attention:
        groups[ATTENTION] = Group.create(attention, tx)
    return TrainState.create(groups, extra)


def init_state(config: ModelConfig, variables: Mapping[str, Any]) -> TrainState:
    """A state before the first update, of the model's variables."""
    params = variables['params']
    encoder, attention = split_attention(params['encoder'])
    tuned, mapping = split_generator(params['generator'])
    extra = {c: tree['generator'] for c, tree in variables.items() if c != 'params'}
    extra = as_arrays({**extra, 'mapping': mapping})
    return create_state(
        config.settings.train, {'basis': params['basis'], 'encoder': encoder}, tuned, extra, attention or None
    )


def variables_of(state: TrainState) -> dict[str, Any]:
    """The model's variables of a state."""
    personal = state.groups[PERSONAL].params
    attention = state.groups[ATTENTION].params if ATTENTION in state.groups else {}
    generator = join_generator(state.groups[GENERATOR].params, state.extra['mapping'])
    params = {
        'basis': personal['basis'],
        'encoder': join_attention(personal['encoder'], attention),
        'generator': generator,
    }
    others = {c: {'generator': tree} for c, tree in state.extra.items() if c != 'mapping'}
    return {'params': params, **others}


# -------------------------------------------------------------------------------------------------------------- step


def tunes(config: TrainConfig, done: int) -> bool:
    """Whether the update after ``done`` finished ones changes the generator."""
    return done >= config.tune_iter


def smooths(config: TrainConfig, done: int) -> bool:
    """Whether the update after ``done`` finished ones smooths sound codes in time."""
    return config.smooth_from is not None and done >= config.smooth_from


def with_stage(config: TrainConfig, batch: Mapping[str, Any], done: int) -> dict[str, Any]:
    """A batch that says what the update after ``done`` finished ones trains.

    ``sound`` may hold each frame's neighbours [B, 8, 16, C]; without smoothing only the frame's own window is kept.
    """
    out = {k: v for k, v in batch.items() if k != TUNED}
    if 'sound' in out:
        neighbours = np.ndim(out['sound']) == 4
        if smooths(config, done) and not neighbours:
            raise ValueError('a step that smooths sound in time needs the neighbours of each frame, [B, 8, 16, C]')
        if neighbours and not smooths(config, done):
            out['sound'] = out['sound'][:, ATTENDED // 2]
    if tunes(config, done):
        out[TUNED] = np.ones(len(next(iter(out.values()))), np.float32)
    return out


def codes_of_batch(config: ModelConfig, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
    """Codes [drivers * B, L, d] of a batch, driver by driver; ``params``: basis and encoder."""
    c, vectors, ws = config.settings, {}, []
    smooth = 'sound' in batch and batch['sound'].ndim == 4
    for driver in c.drivers:
        name = models.basis_name(config, driver)
        if name not in vectors:
            vectors[name] = models.directions(params['basis'][name]['bases'], c.basis.orthogonal)
        signal = batch.get(driver, batch['pictures']) if driver == 'picture' else batch[driver]
        weights = models.weights_of(params, config, driver, signal, smooth and driver == 'sound')
        ws.append(models.codes_of(params, config, driver, weights, vectors[name]))
    return jnp.concatenate(ws)


def update_step(
    config: ModelConfig,
    seed: int,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    render: Render,
    distance: tuple[str, Distance | None],
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update with any generator.

    Args:
        config: static; the drivers of ``config.settings`` are trained together, on the mean of their losses.
        batch: of this device: ``pictures`` [B,S,S,3] in [-1,1], ``labels`` [B,25] (OpenCV axes), the drivers' signals
            by name, and ``tuned`` if the generator learns. Without a ``picture`` signal the picture encoder sees
            ``pictures``.
        render: see ``Render``. distance: of ``losses.distance_of``.
    """
    c = config.settings
    count = batch['pictures'].shape[0]
    keys = sample_keys(step_key(seed, state.step), count, axis_name)
    tuned = TUNED in batch
    trained = {name: group.params for name, group in state.groups.items()}
    smooth = 'sound' in batch and batch['sound'].ndim == 4
    learning = [PERSONAL, *([GENERATOR] if tuned else []), *([ATTENTION] if smooth and ATTENTION in trained else [])]

    def loss(learned):
        groups = {**trained, **learned}
        personal = groups[PERSONAL]
        encoder = join_attention(personal['encoder'], groups.get(ATTENTION, {}))
        ws = codes_of_batch(config, {'basis': personal['basis'], 'encoder': encoder}, batch)
        many = len(c.drivers)

        def repeated(x):
            return jnp.concatenate([x] * many) if many > 1 else x

        image = render(groups[GENERATOR], state.extra, ws, repeated(batch['labels']), repeated(keys))
        return terms(c.loss, distance, repeated(batch['pictures']), image)

    learned = {name: trained[name] for name in learning}
    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(learned)
    value, parts, grads = mean_over_devices((value, parts, grads), axis_name)
    metrics = {'loss': value, 'psnr': -10 * jnp.log10(jnp.maximum(parts['mse'] / 4, 1e-10)), **parts}
    groups = {}
    for name in learning:
        optimizer = c.train.generator_optimizer if name == GENERATOR else c.train.optimizer
        groups[name], found = state.groups[name].apply_gradients(grads[name], make_optimizer(optimizer))
        metrics |= {f'{name}/{k}': v for k, v in found.items()}
    return state.with_groups(**groups).replace(step=state.step + 1), metrics


def render_tuned(
    config: ModelConfig, tuned: PyTree, extra: PyTree, ws: jax.Array, labels: jax.Array, keys: jax.Array
) -> jax.Array:
    """``Render`` of the tri-plane generator: jittered samples, constant noise maps."""
    generator = {c: tree for c, tree in extra.items() if c != 'mapping'}
    generator['params'] = join_generator(tuned, extra['mapping'])
    return models.render(generator, config, ws, labels, keys).rgb


def train_step(
    config: ModelConfig,
    seed: int,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    frozen: Mapping[str, PerceptionBank | None],
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the model: ``update_step`` with its generator and the networks of ``frozen['bank']``."""
    return update_step(
        config,
        seed,
        state,
        batch,
        partial(render_tuned, config),
        distance_of(config.settings.loss, frozen['bank']),
        axis_name,
    )


# -------------------------------------------------------------------------------------------------------------- data


def frame_numbers(config: TrainConfig, seed: int, done: int, frames: int) -> np.ndarray:
    """Which frames of the video the update after ``done`` finished ones sees: [batch_size].

    Every epoch visits each frame once in a shuffled order. A batch may begin in one epoch and end in the next, so that
    all have the same size (the released program keeps a smaller last batch instead).
    """
    if frames < 1:
        raise UserError('training: the video has no frames to train on; give a longer one')
    places = done * config.batch_size + np.arange(config.batch_size)
    epochs, within = np.divmod(places, frames)
    out = np.empty(config.batch_size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch) if config.reshuffle else 0]).permutation(frames)
        out[epochs == epoch] = order[within[epochs == epoch]]
    return out
