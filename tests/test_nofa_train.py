"""NOFA's training stages: what moves and what does not, the same update on any number of devices, resuming."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.methods.nofa import train as training
from avatar_jax.methods.nofa.config import STAGES, ModelConfig
from avatar_jax.methods.nofa.teacher import Teacher
from tests.comparison import close, close_l2
from tests.nofa_tiny import awake, batch, variables_of

CONFIG = ModelConfig.tiny()
VARIABLES = awake(variables_of(CONFIG), CONFIG, 0.02)
TRUTH = training.Frozen(teacher=Teacher('truth'))
BATCH = jax.tree.map(jnp.asarray, batch(4))
MOVES = {
    'general': {'encoder', 'generator', 'deformation'},
    'teeth': {'encoder', 'generator'},
    'compensation': {'compensation'},
}


@lru_cache(maxsize=8)
def step_of(config, stage):
    return jax.jit(partial(training.train_step, config, stage, 3))


def differing(a, b):
    """Names of networks, by collection, of which some number differs."""
    out = set()
    for collection, tree in a.items():
        for name, values in tree.items():
            same = jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), values, b[collection][name])
            if not all(jax.tree.leaves(same)):
                out.add((collection, name))
    return out


@pytest.mark.slow
@pytest.mark.parametrize('stage', STAGES)
def test_a_stage_moves_its_networks_alone(stage):
    state = training.init_state(CONFIG, VARIABLES, stage)
    back = training.variables_of(state)
    assert not differing(VARIABLES, back)
    losses = []
    for _ in range(6):
        state, metrics = step_of(CONFIG, stage)(state, BATCH, TRUTH)
        losses.append(float(metrics['loss']))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0], 'one batch is learnt'
    moved = differing(VARIABLES, training.variables_of(state))
    expected = {('params', name) for name in MOVES[stage]}
    assert moved == (expected | {('batch_stats', 'encoder')} if stage == 'general' else expected)
    before, after = (v['params']['generator']['backbone']['mapping'] for v in (VARIABLES, training.variables_of(state)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    names = {
        'general': {'reconstruction', 'mouth', 'latent'},
        'teeth': {'reconstruction', 'teeth', 'latent'},
        'compensation': {'reconstruction', 'depth'},
    }[stage]
    assert names <= set(metrics)
    assert not {'mouth', 'teeth', 'depth', 'latent'} - names & set(metrics)


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['general', 'compensation'])
def test_devices_share_a_batch(stage):
    """An axis of ``vmap`` stands for devices; the first stage has batch norm and the latent discriminator."""
    config = ModelConfig.tiny(train__encoder__discriminator=0.1, train__encoder__delta=1e-3, train__encoder__pool=5)
    state = training.init_state(config, VARIABLES, stage)
    # A few steps on, with rows that differ.
    state = state.replace(step=jnp.int32(4))
    results = {}
    for devices in (1, 2):
        shares = jax.tree.map(lambda x, d=devices: x.reshape(d, -1, *x.shape[1:]), BATCH)
        body = partial(training.train_step, config, stage, 3, frozen=TRUTH, axis_name='data')
        results[devices] = jax.jit(jax.vmap(body, in_axes=(None, 0), axis_name='data'))(state, shares)
    (one, metrics), (two, metrics_two) = results[1], results[2]
    for name in metrics:
        close(metrics_two[name][0], metrics[name][0], rtol=2e-3, atol=1e-5, what=name)
    # Adam divides by the gradient's own size, which can be nothing but rounding (a bias before batch norm): the first
    # moments of a network are compared as one vector.
    for name, group in one.groups.items():
        a, b = (
            np.concatenate([np.ravel(x[0]) for x in jax.tree.leaves(g.opt_state.mu)]) for g in (group, two.groups[name])
        )
        close_l2(b, a, 1e-4, f'{name} gradient')
        jax.tree.map(
            lambda x: np.testing.assert_array_equal(x[0], x[1], err_msg='devices differ'), two.groups[name].params
        )
    jax.tree.map(
        lambda a, b: close(b[0], a[0], rtol=1e-3, scale=1e-4, atol=1e-6, what='untrained'), one.extra, two.extra
    )


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped():
    step = step_of(CONFIG, 'general')
    state = training.init_state(CONFIG, VARIABLES, 'general')
    for _ in range(2):
        state, _ = step(state, BATCH, TRUTH)
    saved = jax.tree.map(np.array, state)
    state, metrics = step(state, BATCH, TRUTH)
    again, metrics_again = step(jax.tree.map(jnp.asarray, saved), BATCH, TRUTH)
    jax.tree.map(np.testing.assert_array_equal, (state, metrics), (again, metrics_again))


@pytest.mark.slow
def test_the_generator_can_stay_and_learn_slowly():
    config = ModelConfig.tiny(train__train_generator=False)
    state = training.init_state(config, VARIABLES, 'general')
    assert set(state.groups) == {'encoder', 'deformation'}
    state, _ = step_of(config, 'general')(state, BATCH, TRUTH)
    assert ('params', 'generator') not in differing(VARIABLES, training.variables_of(state))


@pytest.mark.slow
def test_the_identity_teacher_teaches_nothing():
    config = ModelConfig.tiny(loss__teeth={'reconstruction': 0.0, 'teeth': 1.0, 'identity': 0.0, 'latent': 0.0})
    state = training.init_state(config, VARIABLES, 'teeth')
    after, metrics = step_of(config, 'teeth')(state, BATCH, training.Frozen())
    assert float(metrics['teeth']) == 0
    assert float(metrics['encoder/grad_norm']) == float(metrics['generator/grad_norm']) == 0
    assert not differing(VARIABLES, training.variables_of(after))


def test_host_arrays_come_from_pairs():
    people = batch(2)
    raw = {
        'images': people['images'],
        'labels': people['labels'],
        'landmarks': people['landmarks'],
        'windows': np.random.default_rng(0).normal(size=(2, 2, 27, 70)).astype(np.float32),
        'identity': np.random.default_rng(1).normal(size=(2, 192)).astype(np.float32),
        'person': np.asarray([4, 8]),
    }
    out = training.with_host_arrays(CONFIG, 'general', raw)
    assert sorted(out) == sorted(people)
    np.testing.assert_array_equal(out['expressions'], raw['windows'][:, :, 13, :64])
    np.testing.assert_array_equal(out['shapes'][1, 1], raw['identity'][1, :80])
    with pytest.raises(UserError, match='person 8.*mouth is outside'):
        training.with_host_arrays(CONFIG, 'general', raw | {'landmarks': raw['landmarks'] + [[[[0.0]]], [[[99.0]]]]})
    without = {k: v for k, v in raw.items() if k != 'landmarks'}
    with pytest.raises(UserError, match='landmarks: missing'):
        training.with_host_arrays(CONFIG, 'general', without)
    assert 'landmarks' not in training.with_host_arrays(CONFIG, 'compensation', without)


def test_runs_that_cannot_be_are_refused():
    with pytest.raises(UserError, match='stage before'):
        training.RunConfig(stage='teeth')
    with pytest.raises(UserError, match='stage: '):
        training.RunConfig(stage='refine')
    with pytest.raises(UserError, match='compensation.use'):
        training.RunConfig(
            stage='compensation', init='x', model=ModelConfig.tiny(compensation__use=False, tuning__tune='none')
        )
    with pytest.raises(UserError, match='init already holds it'):
        training.RunConfig(init='x', backbone='y')


@pytest.mark.slow
def test_a_sample_sheet_shows_everybody():
    state = training.init_state(CONFIG, VARIABLES, 'compensation')
    sheet, scores = training.sample_sheet(CONFIG, state, batch(2))
    assert sheet.shape == (64, 6 * 32, 3)
    assert sheet.dtype == np.uint8
    assert set(scores) == {'sample/psnr_source', 'sample/psnr_driven'}
