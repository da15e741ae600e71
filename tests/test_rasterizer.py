"""The z-buffered rasteriser: coverage, visibility, perspective, culling, edges shared without gap or overlap."""

import numpy as np
import pytest

from avatar_jax.render.rasterizer import SeccConfig, rasterize, secc, zbuffer_integer


def test_pixel_centres_of_one_triangle():
    screen = np.array([[0.5, 0.5, 1.0], [0.5, 3.5, 1.0], [3.5, 0.5, 1.0]])
    drawn = rasterize(screen, np.array([[0, 1, 2]]), 5, 5)
    y, x = np.mgrid[:5, :5]
    assert (drawn.covered == (x + y <= 3)).all()
    np.testing.assert_allclose(drawn.barycentric[0, 0], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(drawn.barycentric[3, 0], [0, 1, 0], atol=1e-6)
    assert (drawn.depth[drawn.covered] == 1).all() and (drawn.depth[~drawn.covered] == 0).all()


def test_nearest_wins_and_ties_go_to_the_first():
    square = np.array([[0, 0, 2.0], [0, 4, 2.0], [4, 4, 2.0], [4, 0, 2.0]])
    screen = np.concatenate([square, square * [1, 1, 0.5], square * [1, 1, 0.5]])
    triangles = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * k for k in range(3)])
    drawn = rasterize(screen, triangles, 4, 4)
    assert set(np.unique(drawn.face)) == {2, 3}
    assert (drawn.depth == 1).all()


def test_perspective_correct_interpolation():
    """A plane that recedes: the attribute x of the world must be recovered from the image."""
    world = np.array([[-1, -1, 2.0], [-1, 1, 2.0], [1, 1, 6.0], [1, -1, 6.0]])
    size, focal = 32, 30.0
    screen = np.stack([focal * world[:, 0] / world[:, 2] + 16, focal * world[:, 1] / world[:, 2] + 16, world[:, 2]], 1)
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    drawn = rasterize(screen, triangles, size, size)
    seen = drawn.interpolate(world, triangles)[drawn.covered]
    y, x = np.nonzero(drawn.covered)
    np.testing.assert_allclose(seen[:, 2], drawn.depth[drawn.covered], rtol=1e-5)
    np.testing.assert_allclose(focal * seen[:, 0] / seen[:, 2] + 16, x + 0.5, atol=1e-3)
    np.testing.assert_allclose(focal * seen[:, 1] / seen[:, 2] + 16, y + 0.5, atol=1e-3)
    flat = rasterize(screen, triangles, size, size, perspective=False).interpolate(world, triangles)[drawn.covered]
    assert np.abs(flat[:, 2] - seen[:, 2]).max() > 0.1


def test_culling_by_orientation():
    screen = np.array([[0, 0, 1.0], [0, 8, 1.0], [8, 0, 1.0]])
    assert rasterize(screen, np.array([[0, 1, 2]]), 8, 8, cull=True).covered.any()
    assert not rasterize(screen, np.array([[0, 2, 1]]), 8, 8, cull=True).covered.any()
    assert rasterize(screen, np.array([[0, 2, 1]]), 8, 8, cull=np.array([False])).covered.any()


def test_a_random_fan_covers_the_image_without_gaps():
    rng = np.random.default_rng(0)
    n = 12
    inner = np.sort(rng.uniform(0, 2 * np.pi, n))
    ring = np.stack([16 + 100 * np.cos(inner), 16 + 100 * np.sin(inner), np.ones(n)], 1)
    ring[0], ring[n // 2] = [500, 16, 1], [-500, 16.3, 1]
    angle = np.arctan2(ring[:, 1] - 16, ring[:, 0] - 16)
    ring = ring[np.argsort(angle)]
    screen = np.concatenate([[[16.2, 15.9, 1]], ring])
    triangles = np.stack([np.zeros(n, int), 1 + np.arange(n), 1 + (np.arange(n) + 1) % n], 1)
    drawn = rasterize(screen, triangles, 32, 32)
    inside = np.hypot(*(np.mgrid[:32, :32] + 0.5 - 16)) < 10
    assert drawn.covered[inside].all()
    np.testing.assert_allclose(drawn.barycentric.sum(-1)[drawn.covered], 1, atol=1e-6)


def test_against_brute_force():
    rng = np.random.default_rng(3)
    screen = np.stack([rng.uniform(-4, 28, 60), rng.uniform(-4, 20, 60), rng.uniform(1, 5, 60)], 1)
    triangles = rng.integers(0, 60, (40, 3))
    drawn = rasterize(screen, triangles, 16, 24)
    best = np.full((16, 24), np.inf)
    y, x = np.mgrid[:16, :24] + 0.5
    for p, q, r in screen[triangles]:
        area = (q[0] - p[0]) * (r[1] - p[1]) - (r[0] - p[0]) * (q[1] - p[1])
        if area == 0:
            continue
        w = [((b[0] - x) * (c[1] - y) - (c[0] - x) * (b[1] - y)) / area for b, c in ((q, r), (r, p), (p, q))]
        inside = (w[0] >= 0) & (w[1] >= 0) & (w[2] >= 0)
        depth = 1 / sum(k / v[2] for k, v in zip(w, (p, q, r), strict=True))
        best = np.where(inside & (depth < best), depth, best)
    assert (drawn.covered == np.isfinite(best)).mean() > 0.997
    both = drawn.covered & np.isfinite(best)
    assert (np.abs(drawn.depth - best)[both] < 1e-4).mean() > 0.997


def test_nothing_in_view():
    drawn = rasterize(np.array([[0, 0, -1.0], [1, 0, -1.0], [0, 1, -1.0]]), np.array([[0, 1, 2]]), 4, 4)
    assert not drawn.covered.any()
    assert not rasterize(
        np.array([[50, 50, 1.0], [60, 50, 1.0], [50, 60, 1.0]]), np.array([[0, 1, 2]]), 4, 4
    ).covered.any()


def test_integer_buffer_rules_and_background():
    screen = np.array([[0, 0, 1.0], [0, 4, 1.0], [4, 0, 1.0]])
    triangles, code = np.array([[0, 1, 2]]), np.array([[0, 0, 0.0], [1, 0, 0], [0, 1, 0]])
    strict = zbuffer_integer(screen, triangles, code, 6, 6, background=0.25)
    half_open = zbuffer_integer(screen, triangles, code, 6, 6, inside='half_open')
    y, x = np.mgrid[:6, :6]
    assert ((strict.face == 0) == ((x > 0) & (y > 0) & (x + y < 4))).all()
    assert ((half_open.face == 0) == (x + y < 4)).all()
    assert strict.image[5, 5].tolist() == [0.25] * 3 and strict.depth[5, 5] == -1e8
    np.testing.assert_allclose(strict.image[1, 2], [0.25, 0.5, 0], atol=1e-6)
    assert strict.to_uint8()[1, 2].tolist() == [63, 127, 0]
    picture = np.full((6, 6, 3), 0.5)
    assert (zbuffer_integer(screen, triangles, code, 6, 6, background=picture).image[5, 5] == 0.5).all()
    with pytest.raises(ValueError, match='unknown rule'):
        zbuffer_integer(screen, triangles, code, 6, 6, inside='loose')


def test_integer_buffer_keeps_the_first_of_equals():
    screen = np.array([[0, 0, 3.0], [0, 9, 3.0], [9, 0, 3.0]])
    far = screen * [1, 1, 0.5]
    triangles = np.array([[3, 4, 5], [0, 1, 2], [0, 1, 2]])
    drawn = zbuffer_integer(np.concatenate([screen, far]), triangles, np.zeros((6, 1)), 8, 8)
    assert set(np.unique(drawn.face)) == {-1, 1}


def test_secc_options():
    vertices = np.array([[-1, -1, 0.0], [1, -1, 0], [0, 1, 0]])
    triangles, code = np.array([[0, 1, 2]]), np.full((3, 3), 0.75)
    drawn = secc(vertices, code, triangles, SeccConfig(size=32, background=0.25))
    assert drawn.mask.any() and not drawn.mask.all()
    np.testing.assert_allclose(drawn.image[drawn.mask], 0.75, rtol=1e-6)
    assert (drawn.image[~drawn.mask] == 0.25).all()
    signed = secc(vertices, code, triangles, SeccConfig(size=32, background=0.25, signed=True))
    np.testing.assert_allclose(signed.image, 2 * drawn.image - 1, rtol=1e-6)
    integer = secc(vertices, code, triangles, SeccConfig(size=32, sampling='integer'))
    assert 0.8 < integer.mask.sum() / drawn.mask.sum() < 1.2
    np.testing.assert_allclose(integer.depth[integer.mask], 10, rtol=1e-6)
    top = np.nonzero(drawn.mask)[0].min()
    assert drawn.mask[top].sum() < drawn.mask[top + 10].sum()  # y up: the apex is in the first row
    with pytest.raises(ValueError, match='sampling'):
        secc(vertices, code, triangles, SeccConfig(sampling='nearest'))
