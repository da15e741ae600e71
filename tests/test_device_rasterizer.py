"""The rasteriser of compiled programs: against brute force and the host's, without gaps, for many pictures at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.render import device_rasterizer as device
from avatar_jax.render import rasterizer as host
from tests.comparison import close

draw = jax.jit(device.rasterize, static_argnames=('height', 'width', 'perspective'))


def test_pixel_centres_ties_and_depth():
    square = np.array([[0, 0, 2.0], [0, 4, 2.0], [4, 4, 2.0], [4, 0, 2.0]], np.float32)
    screen = np.concatenate([square, square * [1, 1, 0.5], square * [1, 1, 0.5]]).astype(np.float32)
    triangles = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * k for k in range(3)])
    drawn = draw(screen, triangles, height=4, width=4)
    assert set(np.unique(drawn.face)) == {2, 3} and bool((drawn.depth == 1).all())
    turned = draw(screen, triangles[:, ::-1], height=4, width=4)  # no culling
    np.testing.assert_array_equal(turned.covered, drawn.covered)


def test_against_the_host():
    rng = np.random.default_rng(3)
    screen = np.stack([rng.uniform(-4, 28, 60), rng.uniform(-4, 20, 60), rng.uniform(-0.2, 5, 60)], 1)
    triangles = rng.integers(0, 60, (40, 3))
    triangles[3] = triangles[3, 0]  # without area
    for perspective in (True, False):
        ours = draw(screen.astype(np.float32), triangles, height=16, width=24, perspective=perspective)
        theirs = host.rasterize(screen, triangles, 16, 24, perspective=perspective)
        same = np.asarray(ours.face) == theirs.face
        assert same.mean() > 0.995 and (theirs.face >= 0).mean() > 0.3
        close(ours.depth[same], theirs.depth[same], rtol=1e-4, atol=1e-5, what='depth')
        close(ours.barycentric[same], theirs.barycentric[same], atol=1e-3, what='weights')
        attributes = rng.normal(size=(60, 2)).astype(np.float32)
        image = np.asarray(ours.interpolate(attributes, triangles))
        close(image[same], theirs.interpolate(attributes, triangles)[same], atol=3e-3, what='attributes')


def test_shared_edges_leave_no_gap():
    """Small triangles far from the origin of the picture, where float32 is coarse."""
    rng = np.random.default_rng(0)
    side = 40
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing='ij'), -1).reshape(-1, 2) * 0.7 + 220
    grid = grid + rng.uniform(-0.2, 0.2, grid.shape)
    ids = np.arange(side * side).reshape(side, side)
    a, b, c, d = ids[:-1, :-1].ravel(), ids[1:, :-1].ravel(), ids[1:, 1:].ravel(), ids[:-1, 1:].ravel()
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    screen = np.concatenate([grid, np.full((len(grid), 1), 10.0)], 1).astype(np.float32)
    drawn = draw(screen, triangles, height=256, width=256)
    assert bool(drawn.covered[222:246, 222:246].all())
    total = np.asarray(drawn.barycentric.sum(-1))[np.asarray(drawn.covered)]
    np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.slow
def test_large_triangles_and_many_pictures():
    """More pairs than one portion holds, and other numbers of portions in one batch."""
    config = host.SeccConfig(size=16)
    rng = np.random.default_rng(1)
    triangles = rng.integers(0, 30, (60, 3))
    code = rng.uniform(size=(30, 3)).astype(np.float32)
    points = rng.normal(size=(3, 30, 3)).astype(np.float32) * np.array([0.1, 1.0, 3.0], np.float32)[:, None, None]
    both = jax.jit(functools.partial(device.secc, config=config))(points, code, triangles)
    for k in range(3):
        expected = host.secc(points[k], code, triangles, config).image
        agree = np.abs(np.asarray(both[k]) - expected).max(-1) < 1e-3
        assert agree.mean() > 0.98, k
    assert float(jnp.abs(both[1] - both[2]).max()) > 0.1
    signed = device.secc(points[0], code, triangles, host.SeccConfig(size=16, signed=True))
    close(signed, 2 * both[0] - 1, atol=1e-6, what='signed')


@pytest.mark.slow
def test_codes_have_no_gradient():
    code, triangles = jnp.eye(3), jnp.array([[0, 1, 2]])
    points = jnp.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 0], [0, 0.5, 0]])
    total = jax.grad(lambda p: device.secc(p, code, triangles, host.SeccConfig(size=8)).sum())(points)
    assert float(jnp.abs(total).max()) == 0
