"""Inversion and decoupling-by-inverting on a linear toy: every schedule against a plain Python loop, people against
each other, devices against one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avatar_jax.errors import UserError
from avatar_jax.inversion.decoupling import (
    DecouplingConfig,
    Objective,
    Optimizers,
    decoupling_iteration,
    segments,
    step_labels,
)
from avatar_jax.inversion.invert import (
    StageConfig,
    Transforms,
    advance,
    begin_phase,
    finish,
    interpolate,
    invert,
    run_stage,
    start,
)
from avatar_jax.inversion.tuning import TuningConfig, tune
from avatar_jax.parallel import check_batch, parallelise
from avatar_jax.train.optimizers import OptimizerConfig, clip_by_global_norm, make_optimizer
from avatar_jax.train.state import Group, TrainState, step_key
from tests.devices import on_four_devices

D, K, F, P = 4, 3, 2, 5
W_AVG = jnp.linspace(-0.5, 0.5, D)
ADAM = make_optimizer(OptimizerConfig('adam', 0.02))
ADAMW = make_optimizer(OptimizerConfig('adamw', 0.01, weight_decay=0.1))
SGD = make_optimizer(OptimizerConfig('sgd', 0.05))
OPTIMIZERS = Optimizers(ADAM, ADAM, ADAMW, ADAM)


def make_objective():
    """Images are a linear map of the code plus a motion term; the raw one is its first half; noise comes per sample."""

    def loss(generator, regulariser, motion, w, bias, batch, keys, sr, frames):
        total, terms = 0.0, {}
        for j in frames:
            ws = (w + motion[:, j, None]).mean(1)  # [B, D]
            image = ws @ generator['map'] + bias[:, :P] + 0.3 * jnp.tanh(bias[:, :1])
            bits = jax.random.key_data(keys).astype(jnp.float32) / 2.0**32  # cheaper to compile than normal draws
            noise = jnp.sin(20 * bits.sum(1, keepdims=True) + jnp.arange(P))
            error = (image + 0.05 * noise - batch['image'][:, j]) ** 2
            raw = error[:, : P // 2].mean()
            total = total + raw + 0.1 * (image @ regulariser['map'].T).mean()
            terms['raw'] = terms.get('raw', 0.0) + raw
            if sr:
                total = total + error.mean()
                terms['sr'] = terms.get('sr', 0.0) + error.mean()
        return total, terms

    return Objective(lambda params, batch: batch['motion'] @ params['map'], loss)


def make_state(optimizers=OPTIMIZERS, seed=0):
    rng = np.random.default_rng(seed)
    controller = {'map': jnp.asarray(rng.normal(size=(K, D)), jnp.float32)}
    generator = {'map': jnp.asarray(rng.normal(size=(D, P)), jnp.float32)}
    return TrainState.create(
        {
            'controller': Group.create(controller, optimizers.controller, ema=True),
            'generator': Group.create(generator, optimizers.generator, ema=True),
        }
    )


def make_batch(size, seed=1):
    rng = np.random.default_rng(seed)
    return {
        'image': rng.normal(size=(size, F, P)).astype(np.float32),
        'motion': rng.normal(size=(size, F, K)).astype(np.float32),
    }


def iterate(state, batch, config, axis_name=None, optimizers=OPTIMIZERS, seed=7, accumulate=1):
    return decoupling_iteration(
        state,
        batch,
        step_key(seed, state.step),
        objective=make_objective(),
        config=config,
        optimizers=optimizers,
        w_avg=W_AVG,
        num_frames=F,
        axis_name=axis_name,
        accumulate=accumulate,
    )


def by_hand(state, batch, config, optimizers=OPTIMIZERS):
    """The same iteration as a plain loop: one gradient, one update at a time."""
    objective, key = make_objective(), step_key(7, state.step)
    c, g = state.groups['controller'], state.groups['generator']
    c_params, c_state, g_params, g_state = c.params, c.opt_state, g.params, g.opt_state
    if config.reset_from_ema:
        c_params = c.ema
    size, n_steps = len(batch['image']), config.num_steps
    w, bias = jnp.broadcast_to(W_AVG, (size, config.code_rows, D)), jnp.zeros((size, 18))
    w_state, b_state = optimizers.code.init(w), optimizers.intrinsics.init(bias)
    inner = g.ema if config.inner_generator == 'ema' else g.params
    losses = []

    def loss_fn(gen, params, w, bias, n, sr, frames, reg):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, n), i))(jnp.arange(size))
        return objective.loss(gen, reg, objective.motion(params, batch), w, bias, batch, keys, sr, frames)[0]

    gradients = jax.jit(jax.value_and_grad(loss_fn, argnums=(1, 2, 3)), static_argnums=(5, 6))
    for n in range(n_steps):
        sr = n >= n_steps - config.sr_steps
        if config.mode == 'successively':
            is_controller = n >= config.identity_steps
        else:
            is_controller = (n + 1) % config.alternate_every == 0
        loss, grads = gradients(inner, c_params, w, bias, n, sr, tuple(range(F)), g.params)
        losses.append(loss)
        if config.mode == 'joint' or not is_controller:
            w_grad = grads[1]
            if config.mode != 'joint' and config.clip_code is not None:
                if config.clip_scope == 'batch':
                    w_grad = clip_by_global_norm(w_grad, config.clip_code)[0]
                else:
                    own = w_grad * size  # each sample's gradient of its own loss
                    w_grad = jnp.stack([clip_by_global_norm(x, config.clip_code)[0] for x in own])
            if config.optimise_intrinsics:
                update, b_state = optimizers.intrinsics.update(grads[2], b_state, bias)
                bias = bias + update
            update, w_state = optimizers.code.update(w_grad, w_state, w)
            w = w + update
        if config.mode == 'joint' or is_controller:
            clipped, _ = clip_by_global_norm(grads[0], config.clip_controller)
            update, c_state = optimizers.controller.update(
                clipped, c_state, c_params, lr_scale=config.controller_lr_scale
            )
            c_params = optax.apply_updates(c_params, update)
    if config.refine != 'off':
        groups = [(j,) for j in range(F)] if config.refine == 'per_frame' else [tuple(range(F))]
        for j, frames in enumerate(groups):

            def both(gen, params, j=j, frames=frames):
                return loss_fn(gen, params, w, bias, n_steps + j, True, frames, gen)

            loss, (g_grad, c_grad) = jax.value_and_grad(both, argnums=(0, 1))(g_params, c_params)
            losses.append(loss)
            if config.refine_controller:
                clipped, _ = clip_by_global_norm(c_grad, config.clip_controller)
                update, c_state = optimizers.controller.update(clipped, c_state, c_params)
                c_params = optax.apply_updates(c_params, update)
            clipped, _ = clip_by_global_norm(g_grad, config.clip_generator)
            update, g_state = optimizers.generator.update(clipped, g_state, g_params)
            g_params = optax.apply_updates(g_params, update)
    ema = jax.tree.map(
        lambda a, v: config.ema_decay * a + (1 - config.ema_decay) * v, (c.ema, g.ema), (c_params, g_params)
    )
    return {
        'w': w,
        'bias': bias,
        'c': c_params,
        'g': g_params,
        'c_ema': ema[0],
        'g_ema': ema[1] if config.ema_generator else g.ema,
        'loss': jnp.stack(losses),
    }


RELEASE = DecouplingConfig(identity_steps=6, controller_steps=2, sr_steps=3)
PAPER = DecouplingConfig(
    identity_steps=5,
    controller_steps=3,
    sr_steps=8,
    clip_code=None,
    clip_controller=None,
    clip_generator=None,
    reset_from_ema=True,
    inner_generator='raw',
    refine='together',
    refine_controller=False,
    optimise_intrinsics=False,
)
CASES = {
    'release': RELEASE,
    'paper': PAPER,
    'alternating': DecouplingConfig(
        identity_steps=8,
        controller_steps=2,
        sr_steps=3,
        mode='alternatively',
        alternate_every=5,
        controller_lr_scale=2.0,
    ),
    'joint': DecouplingConfig(identity_steps=4, controller_steps=1, sr_steps=2, mode='joint', code_rows=3),
    'per sample, W+, no refinement': DecouplingConfig(
        identity_steps=5, controller_steps=1, sr_steps=0, code_rows=2, clip_scope='sample', clip_code=0.05, refine='off'
    ),
    'controller only': DecouplingConfig(identity_steps=0, controller_steps=3, sr_steps=1),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_schedules_equal_a_plain_loop(name):
    config = CASES[name]
    batch = make_batch(3)
    first = jax.jit(partial(iterate, config=config))
    state = first(make_state(), batch)[0]  # a second iteration starts from averages that differ from the parameters
    expected = by_hand(state, batch, config)
    new, metrics, codes, _ = first(state, batch)
    losses = [metrics['inner/loss'], *([metrics['refine/loss']] if config.refine != 'off' else [])]
    actual = {
        'w': codes.w,
        'bias': codes.bias,
        'c': new.groups['controller'].params,
        'g': new.groups['generator'].params,
        'c_ema': new.groups['controller'].ema,
        'g_ema': new.groups['generator'].ema,
        'loss': jnp.concatenate(losses),
    }
    for key, value in expected.items():
        for a, b in zip(jax.tree.leaves(actual[key]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5, err_msg=f'{name}: {key}')
    assert int(new.step) == 2


def test_segments_cover_the_schedule_and_fold_repetitions():
    for config in CASES.values():
        labels = step_labels(config)
        unrolled = [
            label
            for repeats, runs in segments(labels)
            for _ in range(repeats)
            for label, count in runs
            for _ in range(count)
        ]
        assert unrolled == labels
    long = DecouplingConfig(mode='alternatively')
    assert segments(step_labels(long)) == [
        (9, [(('identity', False), 9), (('controller', False), 1)]),
        (1, [(('identity', True), 9)]),
        (1, [(('controller', True), 1)]),
    ]
    assert segments(step_labels(DecouplingConfig())) == [
        (1, [(('identity', False), 90)]),
        (1, [(('controller', True), 10)]),
    ]


def test_super_resolution_terms_appear_only_in_its_steps():
    _, metrics, _, _ = jax.jit(partial(iterate, config=RELEASE))(make_state(), make_batch(2))
    assert metrics['identity/raw'].shape == (6,) and metrics['identity/sr'].shape == (1,)
    assert metrics['controller/sr'].shape == (2,) and metrics['refine/sr'].shape == (2,)
    assert metrics['inner/loss'].shape == (8,)


@pytest.mark.slow
def test_codes_of_a_batch_do_not_see_each_other():
    """Without the common clipping, a sample's code in a batch of three is its code in a batch of one."""
    config = DecouplingConfig(identity_steps=6, controller_steps=0, sr_steps=2, clip_scope='sample', refine='off')
    batch = make_batch(3)
    together = jax.jit(partial(iterate, config=config))(make_state(), batch)[2]
    alone = jax.jit(partial(iterate, config=config))(make_state(), jax.tree.map(lambda x: x[:1], batch))[2]
    np.testing.assert_allclose(together.w[:1], alone.w, atol=1e-5)
    np.testing.assert_allclose(together.bias[:1], alone.bias, atol=1e-5)


def test_refused_settings():
    assert all(sr for _, sr in step_labels(DecouplingConfig(sr_steps=1000)))
    for bad in (
        {'mode': 'sometimes'},
        {'sr_steps': -1},
        {'identity_steps': -1},
        {'alternate_every': 1, 'mode': 'alternatively'},
        {'inner_generator': 'ema', 'ema_generator': False},
    ):
        with pytest.raises(UserError, match='decoupling'):
            DecouplingConfig(**bad)
    for bad in ({'space': 'z'}, {'steps': 5, 'sr_steps': 6}, {'optimise_code': False, 'optimise_intrinsics': False}):
        with pytest.raises(UserError, match='inversion'):
            StageConfig(**bad)


# ------------------------------------------------------------------------------------------------- one-shot inversion


def person_loss(target, scale, code, bias, key, sr):
    del key
    error = scale * ((code.mean(0) - target) ** 2).mean() + 0.1 * (bias**2).sum()
    terms = {'raw': error}
    if sr:
        terms['sr'] = 0.5 * error
    return error + terms.get('sr', 0.0), terms


ADAMS = Transforms(ADAM, ADAM)
ROWS = jnp.broadcast_to(W_AVG, (3, D))
TARGETS = jnp.asarray([[1.0, 0, -1, 0.5], [0.2, 0.1, 0, -0.1], W_AVG])


@pytest.mark.slow
def test_many_people_are_the_same_function_under_vmap():
    stages = (StageConfig('w', 30, 5), StageConfig('w+', 20, 5))

    def one(target):
        return invert(partial(person_loss, target, 1.0), ROWS, jnp.zeros(18), jax.random.key(0), stages, ADAMS)

    codes, bias, results = jax.jit(jax.vmap(one))(TARGETS)
    assert codes.shape == (3, 3, D) and bias.shape == (3, 18)
    for i, target in enumerate(TARGETS):
        code, _, _ = one(target)
        np.testing.assert_allclose(codes[i], code, atol=1e-5)
    assert results[0].curve.shape == (3, 30) and results[1].terms['sr'].shape == (3, 20)
    assert np.isnan(results[0].terms['sr'][:, :25]).all() and np.isfinite(results[0].terms['sr'][:, 25:]).all()
    assert np.isfinite(results[0].terms['raw']).all()


def test_each_person_stops_on_its_own():
    stage = StageConfig('w', 400, 0, early_stop=True, tolerance=0.02, patience=10)
    scales = jnp.asarray([1.0, 1.0, 1.0])

    def one(target, scale):
        return run_stage(
            partial(person_loss, target, scale),
            W_AVG[None],
            jnp.zeros(18),
            jax.random.key(0),
            stage,
            Transforms(SGD, SGD),
        )

    result = jax.jit(jax.vmap(one))(TARGETS, scales)
    steps = np.asarray(result.steps)
    assert steps[2] == 11, 'a person that starts at the optimum stops when patience ends'
    assert steps[2] < steps[0] <= 400 and bool(result.converged[2])
    for i in range(3):
        alone = one(TARGETS[i], scales[i])
        assert int(alone.steps) == steps[i]
        np.testing.assert_allclose(result.code[i], alone.code, atol=1e-6)
        assert np.isfinite(result.curve[i, : steps[i]]).all() and np.isnan(result.curve[i, steps[i] :]).all()


def test_previous_code_and_fixed_parts():
    loss = partial(person_loss, TARGETS[0], 1.0)
    args = (loss, W_AVG[None], jnp.full(18, 0.1), jax.random.key(0))
    whole = run_stage(*args, StageConfig('w', 8, 2), ADAMS, record=lambda code, bias: (code, bias))
    previous = run_stage(*args, StageConfig('w', 8, 2, return_previous=True), ADAMS)
    np.testing.assert_allclose(previous.code, whole.record[0][6], atol=1e-6)
    np.testing.assert_allclose(previous.bias, whole.bias, atol=1e-6)
    assert np.abs(whole.record[0][7] - whole.record[0][6]).max() > 1e-4  # a step is far more than that
    camera = run_stage(*args, StageConfig('w', 8, 2, optimise_code=False), ADAMS)
    np.testing.assert_array_equal(camera.code, W_AVG[None])
    assert np.abs(camera.bias - 0.1).max() > 0.01
    fixed = run_stage(*args, StageConfig('w', 8, 2, optimise_intrinsics=False), ADAMS)
    np.testing.assert_array_equal(fixed.bias, np.full(18, 0.1, np.float32))
    with pytest.raises(ValueError, match='cannot follow'):
        invert(loss, ROWS, jnp.zeros(18), jax.random.key(0), (StageConfig('w+', 2, 0), StageConfig('w', 2, 0)), ADAMS)


def row_loss(code, bias, key, sr):
    """Rows matter differently, and so do draws; space W must follow the sum of the rows' gradients."""
    noise = jax.random.uniform(key, ())
    error = ((code * jnp.asarray([[1.0], [0.1], [2.0]])[: len(code)] - TARGETS[0]) ** 2).sum() * (1 + 0.1 * noise)
    return error + (bias**2).sum(), {'error': error}


@pytest.mark.slow
@pytest.mark.parametrize('clip', [None, 0.5])
def test_tied_rows_follow_a_single_shared_row(clip):
    def shared(code, bias, key, sr):
        return row_loss(jnp.broadcast_to(code, (3, D)), bias, key, sr)

    stage = StageConfig('w', 15, 5, clip=clip)
    for transforms in (ADAMS, Transforms(SGD, SGD)):
        tied = run_stage(row_loss, ROWS, jnp.ones(18), jax.random.key(0), stage, transforms)
        single = run_stage(shared, W_AVG[None], jnp.ones(18), jax.random.key(0), stage, transforms)
        for row in tied.code:
            np.testing.assert_allclose(row, single.code[0], atol=1e-5)
        np.testing.assert_allclose(tied.curve, single.curve, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('early_stop', [False, True])
def test_steps_in_pieces_give_the_same_numbers(early_stop):
    stage = StageConfig('w+', 24, 8, early_stop=early_stop, tolerance=0.05, patience=6)
    whole = run_stage(row_loss, ROWS, jnp.zeros(18), jax.random.key(0), stage, ADAMS)
    state, outs = start(ROWS, jnp.zeros(18), ADAMS), []
    for first, count, sr in ((0, 16, False), (16, 8, True)):
        state = begin_phase(state)
        for n in range(first, first + count, 4):
            state, out = advance(row_loss, state, jax.random.key(0), n, 4, sr, False, stage, ADAMS)
            outs.append(out)
    pieces = finish(state, outs, stage)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_interpolation_ends_at_both_people():
    a, b = {'w': TARGETS[0], 'bias': jnp.zeros(2)}, {'w': TARGETS[1], 'bias': jnp.ones(2)}
    np.testing.assert_allclose(interpolate(a, b, 0.0)['w'], a['w'])
    np.testing.assert_allclose(interpolate(a, b, 1.0)['w'], b['w'])
    np.testing.assert_allclose(interpolate(a, b, 0.25)['bias'], [0.25, 0.25])


def test_finetuning_stops_at_its_threshold():
    def loss(params, key):
        error = (params['x'] ** 2).sum()
        return error, {'error': error}

    params = {'x': jnp.asarray([1.0, -2.0])}
    sgd = OptimizerConfig('sgd', 0.05)
    result = tune(loss, params, jax.random.key(0), TuningConfig('generator', 40, sgd, 'error', 1.0))
    errors, steps = result.terms['error'], int(result.steps)
    assert 1 < steps < 40 and bool(result.stopped)
    assert float(errors[steps - 1]) < 1.0 <= float(errors[steps - 2])
    assert np.isnan(result.curve[steps:]).all() and float(loss(result.params, None)[0]) < 1.0
    full = tune(loss, params, jax.random.key(0), TuningConfig('generator', 7, sgd))
    assert int(full.steps) == 7 and not bool(full.stopped)
    with pytest.raises(ValueError, match='stop_term'):
        tune(loss, params, jax.random.key(0), TuningConfig('generator', 7, sgd, 'lpips', 1.0))


# ------------------------------------------------------------------------------------------------------ many devices

SGDS = Optimizers(SGD, SGD, SGD, SGD)


def device_run(kind, count, scope='batch', accumulate=1):
    """Two SGD iterations on ``count`` devices; returns all leaves and metrics."""
    config = DecouplingConfig(identity_steps=4, controller_steps=2, sr_steps=3, clip_code=0.3, clip_scope=scope)

    def step(state, batch, constants, axis_name):
        del constants
        state, metrics, _, _ = iterate(state, batch, config, axis_name, SGDS, accumulate=accumulate)
        return state, metrics

    par = parallelise(step, kind=kind, devices=jax.devices()[:count])
    state = par.put_state(make_state(SGDS))
    for seed in (1, 2):
        state, metrics = par.step(state, par.put_batch(make_batch(8, seed)))
    return [np.asarray(x) for x in jax.tree.leaves((state, metrics))]


def compare_devices():
    """Runs in the process with four devices."""
    assert len(jax.devices()) == 4
    cases = {
        'batch': [('pmap', 1), ('pmap', 2), ('pmap', 4), ('shard_map', 4), ('sharded', 4), ('pmap', 2, 2)],
        'sample': [('pmap', 2), ('single', 1, 4)],
    }
    for scope, runs in cases.items():
        reference = device_run('single', 1, scope)
        for kind, count, *parts in runs:
            for a, b in zip(device_run(kind, count, scope, *parts), reference, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6, err_msg=f'{kind} on {count}, {scope}, {parts}')


@pytest.mark.slow
def test_one_two_and_four_devices_make_the_same_sgd_updates():
    on_four_devices('from tests.test_inversion import compare_devices; compare_devices()')


def test_batches_that_do_not_fit_are_refused():

    with pytest.raises(UserError, match='batch size 5: not divisible by 2 devices'):
        check_batch({'x': np.zeros((5, 2))}, 2)
    with pytest.raises(ValueError, match='leading size'):
        check_batch({'x': np.zeros((4, 2)), 'y': np.zeros(2)}, 2)
    with pytest.raises(UserError, match="use one of 'pmap', 'shard_map', 'single'"):
        parallelise(lambda s, b, c, a: (s, {}), kind='tpu')
