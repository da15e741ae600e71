"""NOFA's training stages: what moves and what does not, the same update on any number of devices, resuming."""

from functools import lru_cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.methods.nofa import train as training
from avatar_jax.methods.nofa import training as starting
from avatar_jax.methods.nofa.code_metric import code_error, code_metric
from avatar_jax.methods.nofa.config import ModelConfig, StageConfig
from avatar_jax.methods.nofa.model import network, w_avg
from avatar_jax.methods.nofa.teacher import Teacher
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.render.cameras import frontal_label
from tests.comparison import close, close_l2
from tests.nofa_tiny import awake, batch, variables_of

# One model for all tests, so that each kind of step is compiled once.
CONFIG = ModelConfig.tiny(
    train__encoder__discriminator=0.1, train__encoder__delta=1e-3, train__encoder__pool=5, train__rays=12
)
VARIABLES = awake(variables_of(CONFIG), CONFIG, 0.02)
WIDTH = CONFIG.generator.w_dim
TRUTH = training.Frozen(teacher=Teacher('truth'), metric=jnp.diag(jnp.arange(1.0, WIDTH + 1) / WIDTH))
BATCH = batch(4)
EVERYWHERE = np.ones(BATCH['images'].shape[:-1], np.float32)
RAYS = BATCH | {'masks': EVERYWHERE, 'importance': EVERYWHERE}
CODES = {k: BATCH[k] for k in ('images', 'labels')} | {
    'latents': np.random.default_rng(0).normal(size=(4, CONFIG.generator.z_dim)).astype(np.float32)
}
MOVES = {
    'general': {'encoder', 'generator', 'deformation'},
    'teeth': {'encoder', 'generator'},
    'compensation': {'compensation'},
    'codes': {'encoder'},
}
TERMS = {
    'general': {'reconstruction', 'opacity', 'latent', 'delta', 'adversarial', 'latent_discriminator'},
    'teeth': {'reconstruction', 'teeth', 'latent'},
    'compensation': {'reconstruction', 'opacity', 'depth'},
    'codes': {'codes'},
}
BATCHES = {'general': RAYS, 'compensation': RAYS, 'codes': CODES}  # single rays are quicker to compile


@pytest.fixture(scope='module')
def kind(request):
    """A kind of step. Tests of one kind come one after the other, so that its program is not freed in between."""
    return request.param


def stage_of(kind):
    return 'general' if kind == 'codes' else kind


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
@pytest.mark.parametrize('kind', MOVES, indirect=True, scope='module')
def test_a_step_moves_its_networks_alone_and_goes_on_where_it_stopped(kind):
    """Single rays, whole pictures in the second stage, and the encoder's codes.

    A state that was taken apart into plain arrays, as a checkpoint does, gives the same next step bit for bit.
    """
    stage, shown = stage_of(kind), BATCHES.get(kind, BATCH)
    step, state = step_of(CONFIG, stage), training.init_state(CONFIG, VARIABLES, stage)
    assert not differing(VARIABLES, training.variables_of(state))
    losses = []
    for done in range(6):
        if done == 2:
            saved = jax.tree.map(np.array, state)
        state, metrics = step(state, shown, TRUTH)
        losses.append(float(metrics['loss']))
        if done == 2:
            again = step(jax.device_put(saved), shown, TRUTH)
            jax.tree.map(np.testing.assert_array_equal, (state, metrics), again)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0], 'one batch is learnt'
    moved = differing(VARIABLES, training.variables_of(state))
    expected = {('params', name) for name in MOVES[kind]}
    assert moved == (expected | {('batch_stats', 'encoder')} if stage == 'general' else expected)
    before, after = (v['params']['generator']['backbone']['mapping'] for v in (VARIABLES, training.variables_of(state)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    names = set.union(*TERMS.values())
    assert names & set(metrics) == TERMS[kind]


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'devices'), [('general', 4), ('compensation', 2)], indirect=['kind'], scope='module')
def test_devices_share_a_batch(kind, devices):
    """An axis of ``vmap`` stands for devices; the first stage has batch norm and the latent discriminator."""
    stage, shown = stage_of(kind), BATCHES.get(kind, BATCH)
    state = training.init_state(CONFIG, VARIABLES, stage)
    # A few steps on, with rows that differ.
    state = state.replace(step=jnp.int32(4))
    one, metrics = step_of(CONFIG, stage)(state, shown, TRUTH)
    shares = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), shown)
    body = partial(training.train_step, CONFIG, stage, 3, frozen=TRUTH, axis_name='data')
    step = jax.jit(jax.vmap(body, in_axes=(None, 0), axis_name='data'))
    one, (many, metrics_many) = jax.device_get((one, step(state, shares)))
    for name in metrics:
        close(metrics_many[name][0], metrics[name], rtol=2e-3, atol=1e-5, what=name)
    # Adam divides by the gradient's own size, which can be nothing but rounding (a bias before batch norm): the first
    # moments of a network are compared as one vector.
    for name, group in one.groups.items():
        a = np.concatenate([np.ravel(x) for x in jax.tree.leaves(group.opt_state.mu)])
        b = np.concatenate([np.ravel(x[0]) for x in jax.tree.leaves(many.groups[name].opt_state.mu)])
        close_l2(b, a, 1e-4, f'{name} gradient')
        jax.tree.map(
            lambda x: np.testing.assert_allclose(
                x[1:], np.broadcast_to(x[0], x[1:].shape), rtol=1e-6, err_msg='devices differ'
            ),
            many.groups[name].params,
        )
    jax.tree.map(lambda a, b: close(b[0], a, rtol=1e-3, scale=1e-4, atol=1e-6, what='untrained'), one.extra, many.extra)


@pytest.mark.slow
def test_whole_pictures_have_all_terms():
    """Traced only; the terms themselves are in tests/test_nofa_losses.py."""
    for stage, names in (('general', {'mouth', 'latent', 'adversarial'}), ('compensation', {'depth'})):
        state = jax.eval_shape(lambda stage=stage: training.init_state(CONFIG, VARIABLES, stage))
        after, metrics = jax.eval_shape(partial(training.train_step, CONFIG, stage, 3), state, BATCH, TRUTH)
        assert names | {'reconstruction', 'psnr'} <= set(metrics) and 'opacity' not in metrics
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_the_generator_can_stay():
    config = ModelConfig.tiny(train__train_generator=False)
    for stage, moving in (('general', {'encoder', 'deformation'}), ('teeth', {'encoder'})):
        state = training.init_state(config, VARIABLES, stage)
        assert set(state.groups) == moving
        assert not differing(VARIABLES, training.variables_of(state))


@pytest.mark.slow
def test_codes_are_compared_by_what_is_seen():
    """Small differences: the form is the mean squared error of raw pictures; large ones are told apart at all."""
    metric = np.asarray(code_metric(VARIABLES, CONFIG, side=8, step=0.05), np.float64)
    np.testing.assert_allclose(metric, metric.T, atol=1e-6 * metric.max())
    assert np.linalg.eigvalsh(metric).min() > 0
    difference = 0.02 * np.random.default_rng(0).normal(size=(2, WIDTH))
    want = [d @ metric @ d for d in difference]
    close(code_error(jnp.asarray(metric, jnp.float32), jnp.asarray(difference, jnp.float32)), np.mean(want), rtol=1e-4)
    generator, mean = network(VARIABLES, 'generator'), np.asarray(w_avg(VARIABLES))
    model, label = TriPlaneGenerator(CONFIG.generator), frontal_label()

    @jax.jit
    def picture(code):
        rows = jnp.broadcast_to(code, (1, CONFIG.generator.num_ws, WIDTH))
        return model.apply(generator, model.apply(generator, rows, method='planes'), label, 8, method='render').rgb

    errors = [float(jnp.mean((picture(mean + d) - picture(mean)) ** 2)) for d in difference]
    # One camera of the three that the matrix was measured with.
    assert all(0.3 < a / b < 3 for a, b in zip(errors, want, strict=True)), (errors, want)


def test_kinds_of_steps_and_learning_rates():
    train = ModelConfig.tiny(train__rays=8, train__whole_every=3, train__code_steps=2).settings.train
    assert [train.kind('general', n) for n in range(7)] == ['codes'] * 2 + ['whole', 'rays', 'rays', 'whole', 'rays']
    assert train.kind('compensation', 0) == 'rays' and train.kind('teeth', 0) == 'whole'
    assert ModelConfig.tiny().settings.train.kind('general', 0) == 'whole'
    with pytest.raises(UserError, match='whole_every'):
        ModelConfig.tiny(train__whole_every=3)
    falling = StageConfig(100, warm_up=10, final_lr=0.2)
    rates = [float(training.learning_rate(falling, n)) for n in (0, 9, 50, 100)]
    np.testing.assert_allclose(rates, [0.1, 0.9840, 0.6, 0.2], atol=2e-4)
    assert float(training.learning_rate(StageConfig(100), 70)) == 1


def test_host_arrays_come_from_pairs():
    people = batch(2)
    raw = {
        'images': people['images'],
        'labels': people['labels'],
        'landmarks': people['landmarks'],
        'windows': np.random.default_rng(0).normal(size=(2, 2, 27, 70)).astype(np.float32),
        'shapes': np.random.default_rng(1).normal(size=(2, 2, 80)).astype(np.float32),
        'person': np.asarray([4, 8]),
    }
    out = training.with_host_arrays(CONFIG, 'general', raw)
    assert sorted(out) == sorted(people)
    np.testing.assert_array_equal(out['expressions'], raw['windows'][:, :, 13, :64])
    np.testing.assert_array_equal(out['shapes'][1, 1], raw['shapes'][1, 0])
    few = raw | {'shapes': raw['shapes'][..., :79]}
    for known, found in ((0, {k: v for k, v in raw.items() if k != 'shapes'}), (79, few)):
        with pytest.raises(UserError, match=f'data: {known} shape coefficients, .*num_shape is 80'):
            training.with_host_arrays(CONFIG, 'general', found)
    with pytest.raises(UserError, match='person 8.*mouth is outside'):
        training.with_host_arrays(CONFIG, 'general', raw | {'landmarks': raw['landmarks'] + [[[[0.0]]], [[[99.0]]]]})
    without = {k: v for k, v in raw.items() if k != 'landmarks'}
    with pytest.raises(UserError, match='landmarks: missing'):
        training.with_host_arrays(CONFIG, 'general', without)
    assert 'landmarks' not in training.with_host_arrays(CONFIG, 'compensation', without)
    masked = raw | {'masks': np.ones((*people['images'].shape[:-1], 1), np.float32), 'latent': np.zeros((2, 16))}
    rays = training.with_host_arrays(CONFIG, 'general', masked, 'rays')
    assert rays['importance'].shape == rays['masks'].shape == (2, 2, 32, 32)
    assert rays['importance'].max() > rays['importance'].min(), 'mouths and eyes count more'
    assert sorted(training.with_host_arrays(CONFIG, 'general', masked, 'codes')) == ['images', 'labels', 'latents']
    with pytest.raises(UserError, match='code_steps: these data have no latent numbers'):
        training.with_host_arrays(CONFIG, 'general', raw, 'codes')
    with pytest.raises(UserError, match='rays: these data have no landmarks and masks'):
        training.with_host_arrays(CONFIG, 'general', raw, 'rays')


def test_statistics_of_coefficients_are_measured_on_the_data(monkeypatch):
    """Otherwise ``standardize`` would do nothing: fresh networks have means of 0 and deviations of 1."""
    rng, asked = np.random.default_rng(2), {}
    people = {
        'images': np.zeros((300, 2, 1, 1, 3), np.float32),
        'windows': (3 + 2 * rng.normal(size=(300, 2, 27, 70))).astype(np.float32),
        'shapes': np.repeat(5 + 0.5 * rng.normal(size=(300, 1, 80)), 2, 1).astype(np.float32),
    }

    def first_sets(source, frames, seed, count, arrays):
        asked.update(frames=frames, seed=seed)
        return {k: people[k][:count] for k in arrays}

    def clips(*_):
        return None

    config = ModelConfig.tiny(deformation__standardize=True)
    fresh = variables_of(config)
    monkeypatch.setattr(starting, 'first_variables', lambda run: (fresh, ''))
    run = training.RunConfig(seed=4, model=config, parallel='single')
    state = starting.start(run, SimpleNamespace(clips=clips, first_sets=first_sets)).state
    found = state.extra['variables']['constants']['coefficients']
    assert asked == {'frames': 2, 'seed': 4} and found['mean'].shape == found['std'].shape == (144,)
    for name, shape, expression in (('mean', 5, 3), ('std', 0.5, 2)):
        np.testing.assert_allclose(found[name][:80].mean(), shape, rtol=0.05)
        np.testing.assert_allclose(found[name][80:].mean(), expression, rtol=0.05)


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
