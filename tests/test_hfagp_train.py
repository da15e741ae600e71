"""Training of HFA-GP: the two stages, sound smoothing, devices, the order of the frames."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.hfagp import cameras, model, train
from avatar_jax.methods.hfagp.config import DRIVERS, ModelConfig, TrainConfig
from avatar_jax.methods.hfagp.encoders import ATTENDED

SIDE = 32


def toy_render(tuned, extra, ws, labels, keys):
    """A generator of a matrix: pictures that depend on code, camera and key."""
    flat = ws.reshape(len(ws), -1) @ tuned['a'] + labels @ extra['b']
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    colour = jnp.tanh(flat + 0.1 * noise)
    return jnp.broadcast_to(colour[:, None, None], (len(ws), SIDE, SIDE, 3))


def toy(drivers=('coefficients',), **train_options):
    """(config, state) with the toy generator; wide steps, so that a few are seen."""
    config = ModelConfig.tiny('paper', *drivers)
    options = {'optimizer': {'lr': 0.01}, 'generator_optimizer': {'lr': 0.01}, **train_options}
    config = dataclasses.replace(config, settings=config.settings.with_options({'train': options}))
    rng = np.random.default_rng(0)
    personal = {k: v for k, v in model.abstract(config)['params'].items() if k in ('basis', 'encoder')}
    personal = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), personal)
    encoder, attention = train.split_attention(personal['encoder'])
    generator = {'a': jnp.asarray(0.2 * rng.normal(size=(96, 3)), jnp.float32)}
    extra = {'b': jnp.asarray(0.1 * rng.normal(size=(25, 3)), jnp.float32)}
    state = train.create_state(
        config.settings.train, {'basis': personal['basis'], 'encoder': encoder}, generator, extra, attention or None
    )
    return config, state


def batch_of(config, size=2, neighbours=False, seed=0):
    rng = np.random.default_rng(seed)
    out = {
        'pictures': np.tanh(rng.normal(size=(size, SIDE, SIDE, 3))).astype(np.float32),
        'labels': cameras.orbit_labels(size, 7),
    }
    for driver in config.settings.drivers:
        shape = model.signal_shape(config, driver)
        if driver == 'picture':
            continue
        lead = (size, ATTENDED) if driver == 'sound' and neighbours else (size,)
        out[driver] = rng.normal(size=(*lead, *shape)).astype(np.float32)
    return out


@cache
def step_of(config):
    return jax.jit(lambda state, batch: train.update_step(config, 0, state, batch, toy_render, ('none', None)))


def same(a, b):
    a, b = jax.device_get((a, b))
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_generator_is_frozen_and_then_tuned():
    config, state = toy(tune_iter=2, iterations=4)
    step, batch = step_of(config), batch_of(config)
    assert [train.tunes(config.settings.train, n) for n in range(4)] == [False, False, True, True]
    for done in range(4):
        before = state
        state, metrics = step(state, train.with_stage(config.settings.train, batch, done))
        assert same(before.groups['generator'], state.groups['generator']) == (done < 2), done
        assert not same(before.groups['personal'].params, state.groups['personal'].params)
        assert ('generator/grad_norm' in metrics) == (done >= 2)
        assert int(state.step) == done + 1
    # The generator's Adam started with the second stage, the other went on.
    assert (int(state.groups['generator'].opt_state.count), int(state.groups['personal'].opt_state.count)) == (2, 4)


@pytest.mark.slow
def test_training_learns_and_is_deterministic():
    config, start = toy(tune_iter=2, iterations=4)
    step, batch = step_of(config), batch_of(config)
    runs = []
    for _ in range(2):
        state, values = start, []
        for done in range(30):
            state, metrics = step(state, train.with_stage(config.settings.train, batch, done))
            values.append(float(metrics['loss']))
        runs.append((state, values))
    assert runs[0][1] == runs[1][1] and same(runs[0][0].groups, runs[1][0].groups)
    assert runs[0][1][-1] < 0.8 * runs[0][1][0]


@pytest.mark.slow
def test_a_batch_gives_the_same_update_on_any_number_of_devices():
    """Two devices (an axis of vmap) with one frame each, and one device with both."""
    config, state = toy(('coefficients', 'sound'), tune_iter=0)
    batch = train.with_stage(config.settings.train, batch_of(config), 0)
    whole, _ = jax.device_get(step_of(config)(state, batch))
    body = lambda s, b: train.update_step(config, 0, s, b, toy_render, ('none', None), 'data')
    split = jax.tree.map(lambda x: np.asarray(x).reshape(2, 1, *x.shape[1:]), batch)
    shared, _ = jax.device_get(jax.jit(jax.vmap(body, in_axes=(None, 0), axis_name='data'))(state, split))
    for name in ('personal', 'generator'):
        # Moments, not parameters: Adam's first step hides the size of a gradient.
        for a, b in zip(
            jax.tree.leaves(whole.groups[name].opt_state.mu), jax.tree.leaves(shared.groups[name].opt_state.mu)
        ):
            np.testing.assert_allclose(b[0], b[1], rtol=1e-6)  # two lanes of one loop
            np.testing.assert_allclose(b[0], a, rtol=1e-3, atol=1e-5 * max(1e-3, float(np.abs(a).max())))


@pytest.mark.slow
def test_sound_is_smoothed_from_a_step_on():
    config, state = toy(('sound',), smooth_from=1, tune_iter=9, iterations=9)
    step, batch = step_of(config), batch_of(config, neighbours=True)
    first = train.with_stage(config.settings.train, batch, 0)
    np.testing.assert_array_equal(first['sound'], batch['sound'][:, 4])
    before = state
    state, _ = step(state, first)
    assert same(before.groups['attention'], state.groups['attention'])
    state, metrics = step(state, train.with_stage(config.settings.train, batch, 1))
    assert not same(before.groups['attention'].params, state.groups['attention'].params)
    assert int(state.groups['attention'].opt_state.count) == 1 and 'attention/grad_norm' in metrics
    with pytest.raises(ValueError, match='needs the neighbours'):
        train.with_stage(config.settings.train, batch_of(config), 1)


def test_every_epoch_sees_every_frame_once():
    for reshuffle in (True, False):
        config = TrainConfig(batch_size=3, reshuffle=reshuffle)
        seen = np.concatenate([train.frame_numbers(config, 5, n, 7) for n in range(7)])
        epochs = seen.reshape(3, 7)
        assert all(sorted(e) == list(range(7)) for e in epochs)
        assert (list(epochs[0]) == list(epochs[1])) == (not reshuffle)
    with pytest.raises(UserError, match='no frames to train on'):
        train.frame_numbers(config, 0, 0, 0)


@pytest.mark.slow
def test_state_holds_all_variables():
    config = ModelConfig.tiny('paper', *DRIVERS)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), model.abstract(config))
    state = train.init_state(config, variables)
    assert set(state.groups) == {'personal', 'generator', 'attention'}
    assert 'mapping' not in state.groups['generator'].params['backbone']
    jax.tree.map(np.testing.assert_array_equal, train.variables_of(state), variables)


@pytest.mark.slow
def test_the_step_with_its_own_generator():
    """Both stages through tri-planes and super-resolution, with the stand-in of LPIPS."""
    config = ModelConfig.tiny('paper', 'picture')
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda s: (0.5 * rng.normal(size=s.shape)).astype(np.float32), model.abstract(config))
    state = train.init_state(config, variables)
    batch = batch_of(config)
    frozen = {'bank': PerceptionBank()}
    step = jax.jit(partial(train.train_step, config, 0), donate_argnums=())
    for done in (1, 2):
        before = state
        state, metrics = step(state, train.with_stage(config.settings.train, batch, done), frozen)
        assert {'loss', 'psnr', 'mse', 'pyramid', 'personal/grad_norm'} <= set(metrics)
        assert all(np.isfinite(v) for v in metrics.values())
        assert float(metrics['personal/grad_norm']) > 0
        assert same(before.groups['generator'], state.groups['generator']) == (done == 1)
    # The constant noise maps and the average code are never trained, noise strengths are.
    assert same(state.extra, before.extra)
    strengths = [
        x.key for p, _ in jax.tree_util.tree_leaves_with_path(state.groups['generator'].params) for x in p[-1:]
    ]
    assert 'noise_strength' in strengths
