"""Optimizers against the formulas written out in float64 NumPy, clipping, groups and averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from avatar_jax.errors import UserError
from avatar_jax.train.optimizers import OptimizerConfig, clip_by_global_norm, global_norm, make_optimizer, step_decay
from avatar_jax.train.state import Group, TrainState, num_params, step_key


def by_hand(config, x, grads):
    """The update rules in double precision, one step after the other."""
    x, m, v, velocity, path = x.astype(np.float64), 0.0, 0.0, 0.0, []
    for t, g in enumerate(grads.astype(np.float64), start=1):
        if config.type == 'sgd':
            velocity = config.momentum * velocity + g + config.weight_decay * x
            x = x - config.lr * velocity
        else:
            if config.type == 'adam':
                g = g + config.weight_decay * x
            else:
                x = x * (1 - config.lr * config.weight_decay)
            m = config.beta1 * m + (1 - config.beta1) * g
            v = config.beta2 * v + (1 - config.beta2) * g * g
            x = x - config.lr * (m / (1 - config.beta1**t)) / (np.sqrt(v / (1 - config.beta2**t)) + config.eps)
        path.append(x)
    return np.stack(path)


CONFIGS = [
    OptimizerConfig('adam', 0.01, 0.9, 0.9999),
    OptimizerConfig('adam', 0.01, 0.0, 0.99, weight_decay=0.1),
    OptimizerConfig('adamw', 0.001, 0.5, 0.999, weight_decay=1.0),
    OptimizerConfig('sgd', 0.1, weight_decay=0.2, momentum=0.9),
    OptimizerConfig('sgd', 0.1),
]


@pytest.mark.parametrize('config', CONFIGS, ids=lambda c: f'{c.type}-{c.beta2}-{c.weight_decay}')
def test_float32_steps_follow_the_formula(config):
    """Also at the first steps, where 1 - beta**t cancels: relative error of the moves, not of the positions."""
    rng = np.random.default_rng(0)
    x, grads = rng.normal(size=7).astype(np.float32), rng.normal(size=(12, 7)).astype(np.float32)
    tx = make_optimizer(config)
    params, state, path = {'x': jnp.asarray(x)}, tx.init({'x': jnp.asarray(x)}), []
    for g in grads:
        updates, state = tx.update({'x': jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params['x'])
    expected = by_hand(config, x, grads)
    np.testing.assert_allclose(np.stack(path), expected, atol=3e-6, rtol=0)
    first = np.asarray(make_optimizer(config).update({'x': grads[0]}, tx.init({'x': x}), {'x': x})[0]['x'])
    np.testing.assert_allclose(first, expected[0] - x.astype(np.float64), rtol=2e-5, atol=1e-9)


def test_learning_rate_scale_is_a_factor_of_the_step():
    tx = make_optimizer(OptimizerConfig('adamw', 0.01, weight_decay=0.5))
    params, grads = {'x': jnp.ones(3)}, {'x': jnp.asarray([1.0, -2.0, 3.0])}
    full, _ = tx.update(grads, tx.init(params), params)
    half, _ = tx.update(grads, tx.init(params), params, lr_scale=0.5)
    np.testing.assert_allclose(half['x'], full['x'] / 2, rtol=1e-6)


def test_clipping_constant_and_scope():
    grads = {'a': jnp.asarray([3.0, 0.0]), 'b': jnp.asarray([[4.0]])}
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped['a'][0], 3.0 / (5.0 + 1e-6), rtol=1e-6)
    untouched, _ = clip_by_global_norm(grads, 10.0)
    np.testing.assert_array_equal(untouched['b'], grads['b'])
    mixed = {'large': jnp.full(5000, 0.1), 'small': jnp.full((2, 3), 2.0), 'scalar': jnp.asarray(3.0)}
    np.testing.assert_allclose(global_norm(mixed), (5000 * 0.01 + 6 * 4 + 9) ** 0.5, rtol=1e-6)
    assert float(global_norm({})) == 0.0
    tiny = {'a': jnp.asarray([1.0])}
    np.testing.assert_allclose(clip_by_global_norm(tiny, 1.0)[0]['a'], 1 / (1 + 1e-6), rtol=1e-7)


def test_group_update_statistics_and_average():
    tx = make_optimizer(OptimizerConfig('sgd', 0.5))
    group = Group.create({'x': jnp.asarray([1.0, 1.0])}, tx, ema=True)
    group, stats = group.apply_gradients({'x': jnp.asarray([3.0, 4.0])}, tx)
    np.testing.assert_allclose([stats['grad_norm'], stats['update_norm']], [5.0, 2.5], rtol=1e-6)
    np.testing.assert_allclose(group.params['x'], [-0.5, -1.0])
    np.testing.assert_allclose(group.ema['x'], [1.0, 1.0])
    group = group.update_ema(0.75)
    np.testing.assert_allclose(group.ema['x'], [0.625, 0.5])
    np.testing.assert_allclose(group.inference_params['x'], group.ema['x'])
    assert num_params(group.params) == 2


def test_all_steps_are_one_program():
    """What was made of Python numbers has another type in JAX than what a step gives back."""
    tx = make_optimizer(OptimizerConfig('adam', 0.1))
    group = Group.create({'x': jnp.full(2, 1.0)}, tx, ema=True)
    after = jax.eval_shape(lambda g: g.apply_gradients(g.params, tx)[0].update_ema(0.5), group)
    types = [[(x.dtype, x.weak_type) for x in jax.tree.leaves(tree)] for tree in (group, after)]
    assert types[0] == types[1]


def test_state_refuses_unknown_groups_and_keys_depend_on_seed_step_stream():
    tx = make_optimizer(OptimizerConfig())
    state = TrainState.create({'a': Group.create({'x': jnp.ones(2)}, tx)})
    with pytest.raises(KeyError, match='no such group'):
        state.with_groups(b=state.groups['a'])
    keys = {tuple(np.asarray(jax.random.key_data(step_key(*k)))) for k in [(0, 1), (0, 2), (1, 1), (0, 1, 1), (0, 1)]}
    assert len(keys) == 4


def test_schedule_and_refused_settings():
    assert [round(float(step_decay(s, 10, 0.2)), 6) for s in (0, 9, 10, 25)] == [1.0, 1.0, 0.2, 0.04]
    assert float(step_decay(5, 0, 0.2)) == 1.0
    for bad in ({'type': 'lion'}, {'lr': -1.0}, {'beta1': 1.0}, {'momentum': 0.9}):
        with pytest.raises(UserError, match=f'optimizer.{next(iter(bad))}: '):
            OptimizerConfig(**bad)
