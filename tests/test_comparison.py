"""The comparisons themselves: what they forgive, and that planted errors do not pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.comparison import EPS, close, close_but_for, close_l2, moved, with_moved, within_spread

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(8, 50)).astype(np.float32)


def one_wrong(by: float, count: int = 1) -> np.ndarray:
    wrong = REFERENCE.copy()
    wrong.flat[:count] += by
    return wrong


def test_close_holds_every_entry():
    close(REFERENCE * (1 + EPS), REFERENCE, rtol=2 * EPS)
    with pytest.raises(AssertionError, match='1 of 400'):
        close(one_wrong(1e-3), REFERENCE, atol=1e-4)
    with pytest.raises(AssertionError, match='shape'):
        close(REFERENCE[:1], REFERENCE, atol=10.0)  # no broadcasting
    close(np.float32([]), np.float32([]))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_must_be_at_the_same_places(value):
    special = REFERENCE.copy()
    special[0, 0] = value
    for compare in (
        lambda a, b: close(a, b, atol=1.0),
        lambda a, b: close_l2(a, b, 1.0),
        lambda a, b: within_spread([a, a], b),
    ):
        compare(special, special)
        other_sign = [] if np.isnan(value) else [(special, -special)]
        for pair in [(special, REFERENCE), (REFERENCE, special), *other_sign]:
            with pytest.raises(AssertionError, match='NaN or infinity'):
                compare(*pair)


def test_a_counted_share_may_differ_but_not_more_and_not_by_more():
    bound = {'share': 0.01, 'atol': 1e-5, 'most': 0.05}
    size = np.abs(REFERENCE).max()
    close_but_for(one_wrong(0.04 * size, 4), REFERENCE, **bound)
    with pytest.raises(AssertionError, match='5 of 400 entries, allowed 1.00%'):
        close_but_for(one_wrong(0.04 * size, 5), REFERENCE, **bound)
    with pytest.raises(AssertionError, match='over the bound, allowed'):
        close_but_for(one_wrong(0.06 * size), REFERENCE, **bound)


def test_moved_changes_numbers_by_at_most_one_unit_and_nothing_else():
    tree = {'a': REFERENCE, 'n': np.arange(3), 'none': None}
    other = moved(tree, 0)
    change = np.abs(other['a'] / REFERENCE.astype(np.float64) - 1)
    assert 0.25 * EPS < change.max() < 2 * EPS and (other['n'] == tree['n']).all() and other['none'] is None
    assert (moved(tree, 0)['a'] == other['a']).all() and (moved(tree, 1)['a'] != other['a']).any()


# A network with kinks, a maximum and an absolute value, whose reference is computed in float64: each planted error
# below is one that a port can have.


def kinked(x, params, xp, conv):
    for weight, bias, slope in params:
        x = conv(x, weight) + bias
        x = xp.maximum(x, 0) + slope * xp.minimum(x, 0)
    x = x.reshape(x.shape[0] // 2, 2, -1).max(1)
    return xp.abs(x).sum()


def dense(x, weight):
    return x @ weight


def layers(count=6, width=96):
    rng = np.random.default_rng(1)
    return [
        (
            rng.normal(size=(width, width)).astype(np.float32) * np.float32(1.4 / width**0.5),
            rng.normal(size=width).astype(np.float32) * np.float32(0.1),
            np.float32(0.25),
        )
        for _ in range(count)
    ]


def reference_gradient(x, params):
    """The gradient with respect to x in float64, by hand."""
    x, kept = x.astype(np.float64), []
    for weight, bias, slope in params:
        x = x @ weight.astype(np.float64) + bias
        kept.append(np.where(x > 0, 1.0, float(slope)))
        x = x * kept[-1]
    pairs = x.reshape(x.shape[0] // 2, 2, -1)
    grad = (pairs == pairs.max(1, keepdims=True)) * np.sign(pairs)
    grad = grad.reshape(x.shape)
    for (weight, _, _), kink in zip(reversed(params), reversed(kept), strict=True):
        grad = (grad * kink) @ weight.astype(np.float64).T
    return grad


MUTATIONS = {
    'a slope of 0.2 for 0.25': lambda p: (p[0], p[1], np.float32(0.2)),
    'no bias': lambda p: (p[0], 0 * p[1], p[2]),
    'a transposed kernel': lambda p: (p[0].T.copy(), p[1], p[2]),
    'one channel further': lambda p: (np.roll(p[0], 1, 1), p[1], p[2]),
}

gradient = jax.jit(jax.grad(lambda x, params: kinked(x, params, jnp, dense)))


@pytest.mark.parametrize('seed', range(3))
def test_rounding_passes_in_any_order_of_sums(seed):
    x = np.random.default_rng([2, seed]).normal(size=(16, 96)).astype(np.float32)
    expected = reference_gradient(x, layers())
    within_spread(with_moved(gradient, x, layers()), expected)
    order = np.random.default_rng(seed).permutation(96)  # the same network with its hidden channels in another order
    params = layers()
    params[0] = (params[0][0][:, order], params[0][1][order], params[0][2])
    params[1] = (params[1][0][order], params[1][1], params[1][2])
    within_spread(with_moved(gradient, x, params), expected)


@pytest.mark.parametrize('layer', [0, 3, 5])
@pytest.mark.parametrize('name', sorted(MUTATIONS))
def test_planted_errors_do_not_pass(name, layer):
    x = np.random.default_rng(2).normal(size=(16, 96)).astype(np.float32)
    expected = reference_gradient(x, layers())
    params = layers()
    params[layer] = MUTATIONS[name](params[layer])
    with pytest.raises(AssertionError, match='times the allowed'):
        within_spread(with_moved(gradient, x, params), expected)
