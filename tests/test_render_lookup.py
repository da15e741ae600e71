"""Look-ups against a loop over pixels; gradients against differences; second derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.ops.grid_sample import (
    PLANE_AXES,
    grid_sample,
    grid_sample_3d,
    plane_axes_of,
    sample_planes,
    sample_planes_mean,
    weighted_rows,
)


def brute_force(data, position, padding):
    """Multilinear interpolation of ``data`` [*sizes, C] at one fractional index per axis."""
    if padding == 'border':
        position = [np.clip(p, 0, s - 1) for p, s in zip(position, data.shape)]
    total = np.zeros(data.shape[-1])
    for corner in itertools.product(*[(int(np.floor(p)), int(np.floor(p)) + 1) for p in position]):
        weight = np.prod([1 - abs(p - c) for p, c in zip(position, corner)])
        if all(0 <= c < s for c, s in zip(corner, data.shape)):
            total += weight * data[corner]
    return total


@pytest.mark.parametrize('align', [False, True])
@pytest.mark.parametrize('padding', ['zeros', 'border'])
@pytest.mark.parametrize('sizes', [(5, 7), (3, 4, 6)])
def test_linear_lookup_is_the_definition(sizes, padding, align):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2, *sizes, 3)).astype(np.float32)
    grid = rng.uniform(-1.4, 1.4, (2, 11, len(sizes))).astype(np.float32)
    lookup = grid_sample if len(sizes) == 2 else grid_sample_3d
    out = lookup(jnp.asarray(data), jnp.asarray(grid), 'bilinear', padding, align)
    for n, m in np.ndindex(2, 11):
        xyz = grid[n, m].astype(np.float64)[::-1]  # slowest axis first
        position = [(x + 1) / 2 * (s - 1) if align else ((x + 1) * s - 1) / 2 for x, s in zip(xyz, sizes)]
        np.testing.assert_allclose(out[n, m], brute_force(data[n], position, padding), atol=2e-5)


def test_nan_coordinates_read_nothing_and_options_are_checked():
    image = jnp.ones((1, 4, 4, 2))
    for mode in ('nearest', 'bilinear'):
        assert (grid_sample(image, jnp.full((1, 3, 2), jnp.nan), mode) == 0).all()
    with pytest.raises(ValueError, match='padding'):
        grid_sample(image, jnp.zeros((1, 3, 2)), padding='reflect')
    with pytest.raises(ValueError, match='mode'):
        grid_sample(image, jnp.zeros((1, 3, 2)), mode='bicubic')
    with pytest.raises(ValueError, match='go together'):
        grid_sample(image, jnp.zeros((2, 3, 2)))


@pytest.mark.slow
def test_gradients_match_plain_differentiation_to_second_order():
    rng = np.random.default_rng(1)
    table = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
    index = jnp.asarray(rng.integers(0, 9, (3, 6)))
    weight = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)

    def plain(table, weight):
        return (table[index] * weight[..., None]).sum(0)

    def first(lookup):
        return jax.grad(lambda t, w: jnp.sin(lookup(t, w)).sum(), (0, 1))

    def second(lookup):
        return jax.grad(lambda t, w: sum((g**2).sum() for g in first(lookup)(t, w)), (0, 1))

    def ours(table, weight):
        return weighted_rows(table, index, weight)

    for order in (first, second):
        for a, b in zip(order(ours)(table, weight), order(plain)(table, weight)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('axes', sorted(PLANE_AXES))
def test_plane_lookup_uses_the_named_axes(axes):
    rng = np.random.default_rng(2)
    planes = rng.normal(size=(2, 3, 5, 6, 2)).astype(np.float32)
    points = rng.uniform(-0.9, 0.9, (2, 7, 3)).astype(np.float32)
    out = sample_planes(jnp.asarray(planes), jnp.asarray(points), 1.6, axes)
    for n, p, m in np.ndindex(2, 3, 7):
        u, v = points[n, m, list(PLANE_AXES[axes][p])] * (2 / 1.6)
        expected = brute_force(planes[n, p], [((v + 1) * 5 - 1) / 2, ((u + 1) * 6 - 1) / 2], 'zeros')
        np.testing.assert_allclose(out[n, p, m], expected, atol=2e-5)
    mean = sample_planes_mean(jnp.asarray(planes), jnp.asarray(points), 1.6, axes)
    np.testing.assert_allclose(mean, out.mean(1), atol=1e-6)


@pytest.mark.slow
def test_plane_gradients_match_differences():
    rng = np.random.default_rng(3)
    planes = rng.normal(size=(1, 3, 4, 4, 2))
    pixel = rng.integers(-1, 4, (1, 5, 3)) + rng.uniform(0.25, 0.75, (1, 5, 3))  # away from the kinks, borders included
    points = (pixel - 1.5) / 4
    probe = rng.normal(size=(1, 5, 2))

    def loss(planes, points):
        return (sample_planes_mean(planes, points, 1.0, 'orthogonal') * probe.astype(np.float32)).sum()

    arguments = [jnp.asarray(a, jnp.float32) for a in (planes, points)]
    grads = jax.grad(loss, (0, 1))(*arguments)
    step = 1e-2  # the function is linear in the planes and piecewise linear in the points
    for which, grad in enumerate(grads):
        for _ in range(12):
            at = tuple(rng.integers(0, s) for s in grad.shape)
            moved = [[a.at[at].add(s * step) if i == which else a for i, a in enumerate(arguments)] for s in (1, -1)]
            difference = (loss(*moved[0]) - loss(*moved[1])) / (2 * step)
            np.testing.assert_allclose(grad[at], difference, atol=3e-3)


def test_conventions_are_recognised_from_their_matrices():
    legacy = [np.eye(3), np.eye(3)[[0, 2, 1]], np.eye(3)[[2, 0, 1]]]
    assert plane_axes_of(np.stack(legacy)) == 'legacy'
    orthogonal = [np.eye(3), np.eye(3)[[0, 2, 1]], np.eye(3)[[2, 1, 0]]]
    assert plane_axes_of(np.stack(orthogonal)) == 'orthogonal'
    with pytest.raises(ValueError, match='neither'):
        plane_axes_of(np.stack([np.eye(3)] * 3))
