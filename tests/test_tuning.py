"""Pivotal tuning: the search in W, the loop for one and for many people, the locality regulariser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.inversion import tuning
from avatar_jax.inversion.tuning import LocalityConfig, PivotConfig, TuningConfig
from avatar_jax.train.optimizers import OptimizerConfig
from tests.comparison import close

SGD = OptimizerConfig('sgd', 0.05)
GOALS = jnp.asarray([[1.0, -2.0], [0.1, 0.2], [3.0, 1.0]])


def loss_of(goal):
    def loss(params, key):
        error = jnp.sum((params['x'] - goal) ** 2)
        return error, {'error': error}

    return loss


def start():
    return {'x': jnp.zeros(2)}


def test_people_side_by_side_stop_by_themselves():
    config = TuningConfig('compensation', 30, SGD, 'error', 0.05)
    one = jax.jit(lambda goal: tuning.tune(loss_of(goal), start(), jax.random.key(0), config))
    many = jax.jit(jax.vmap(lambda goal: tuning.tune(loss_of(goal), start(), jax.random.key(0), config)))(GOALS)
    assert len({int(s) for s in many.steps}) > 1, 'they need different numbers of steps'
    for i, goal in enumerate(GOALS):
        alone = one(goal)
        # differences to the goal, which begins at 3: roundings of that are kept
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-5, atol=1e-6), alone, many)
    report = tuning.report(one(GOALS[1]))
    assert report['stopped']
    assert len(report['loss']) == report['steps'] == len(report['terms']['error'])


def test_some_steps_at_a_time_are_the_same():
    config = TuningConfig('generator', 7, SGD)
    whole = jax.jit(lambda first: tuning.tune(loss_of(GOALS[0]), first, jax.random.key(0), config))(start())
    state, outs = tuning.start(start(), config), []
    few = jax.jit(lambda state: tuning.advance(loss_of(GOALS[0]), state, jax.random.key(0), 3, config))
    for _ in range(3):
        state, out = few(state)
        outs.append(out)
    parts = tuning.finish(state, outs)
    assert int(parts.steps) == 7
    np.testing.assert_allclose(parts.params['x'], whole.params['x'], rtol=1e-6)
    np.testing.assert_allclose(parts.curve[:7], whole.curve, rtol=1e-6)
    assert np.isnan(parts.curve[7:]).all()


def test_the_search_finds_the_code():
    goal = jnp.asarray([0.5, -1.0, 2.0])
    config = PivotConfig(steps=300, lr=0.1)
    mean, spread = tuning.code_statistics(jax.random.normal(jax.random.key(1), (600, 3)))
    close(spread, 3**0.5, rtol=0.1, what='spread of unit normal codes')
    find = jax.jit(partial(tuning.find_pivot, config=config), static_argnums=0)

    def loss(code, key):
        error = jnp.sum((code - goal) ** 2)
        return error, {'error': error}

    found = find(loss, mean, spread, jax.random.key(2))
    close(found.code, goal, atol=0.02, what='code')
    assert found.curve.shape == found.terms['error'].shape == (300,)
    assert float(found.curve[-1]) < 1e-2 * float(found.curve[0])


def test_the_rate_rises_and_falls():
    rates = np.asarray(jax.vmap(lambda n: tuning.pivot_rate(n, PivotConfig(steps=100)))(jnp.arange(100)))
    close(rates[:6], np.arange(6) / 5, atol=1e-6, what='warm-up of 5 %')
    close(rates[5:76], np.ones(71), atol=1e-6, what='plateau')
    assert (np.diff(rates[75:]) < 0).all()
    close(rates[99], 0.5 - 0.5 * np.cos(np.pi * 0.01 / 0.25), atol=1e-6, what='last')


@pytest.mark.slow
def test_locality_pulls_towards_the_untouched_generator():
    untouched, pivot = {'x': jnp.asarray([1.0, 1.0])}, jnp.zeros((2, 2))
    seen = []

    def render(params, code):
        return (params['x'] * code).reshape(1, 2, 2, 1)

    def random_code(key):
        code = jax.random.normal(key, (2, 2))
        seen.append(code)
        return code

    config = LocalityConfig(weight=1.0, radius=3.0)
    term = tuning.locality_term(render, untouched, pivot, random_code, config, lambda a, b: jnp.mean(jnp.abs(a - b)))
    assert float(term(untouched, jax.random.key(0))) == 0
    moved = {'x': jnp.asarray([2.0, 1.0])}
    value = term(moved, jax.random.key(0))
    code = seen[-1] * 3 / jnp.linalg.norm(seen[-1])
    got, wanted = (p['x'] * code for p in (moved, untouched))
    close(value, 0.1 * jnp.mean((got - wanted) ** 2) + 0.1 * jnp.mean(jnp.abs(got - wanted)), rtol=1e-5, what='term')
    close(jnp.linalg.norm(tuning.nearby_code(pivot, seen[-1], 3.0)), 3.0, rtol=1e-6, what='radius')

    plain = tuning.locality_term(render, untouched, pivot, random_code, LocalityConfig(1.0, 3.0, pixel=1.0))
    free, held = (
        jax.jit(partial(tuning.tune, loss_of(GOALS[0]), config=config, locality=plain))(
            untouched, key=jax.random.key(0)
        )
        for config in (
            TuningConfig('generator', 40, SGD, locality=LocalityConfig(weight, 3.0, pixel=1.0, every=every))
            for weight, every in ((0.0, 1), (2.0, 2))
        )
    )
    assert tuning.LOCAL in held.terms
    assert tuning.LOCAL not in free.terms
    share = float(jnp.mean(held.terms[tuning.LOCAL] > 0))
    assert 0.2 < share < 0.8, 'every second step on average'
    away = [float(jnp.abs(t.params['x'] - untouched['x']).max()) for t in (free, held)]
    assert away[1] < 0.9 * away[0]


def test_wrong_settings_are_named():
    for make, text in (
        (lambda: TuningConfig('all'), 'tuning.tune'),
        (lambda: TuningConfig(steps=0), 'tuning.steps'),
        (lambda: TuningConfig('compensation', locality=LocalityConfig(1.0)), 'locality.weight'),
        (lambda: LocalityConfig(radius=0.0), 'radius'),
        (lambda: PivotConfig(steps=0), 'pivot'),
        (lambda: PivotConfig(ramp_down=2.0), 'ramp_down'),
    ):
        with pytest.raises(UserError, match=text):
            make()
    with pytest.raises(ValueError, match='nothing to compare'):
        tuning.tune(loss_of(GOALS[0]), start(), jax.random.key(0), TuningConfig(locality=LocalityConfig(1.0)))
