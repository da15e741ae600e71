"""Alignment: where landmarks land, what happens at borders and with tiny faces."""

import numpy as np
import pytest

from avatar_jax.faces import alignment


def portrait(width=200, height=160, seed=0):
    """A smooth random picture and five plausible landmarks."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (12, 15, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    points = np.array([[-20, -14], [20, -14], [0, 4], [-14, 22], [14, 22]], np.float64)
    return image, points + [width / 2 + 7, height / 2 - 3]


def blob(image, x, y, color, radius=1.6):
    """Draws a soft dot centred on the pixel centre (x, y)."""
    yy, xx = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * radius**2))[..., None]
    return (image * (1 - weight) + np.array(color) * weight).astype(np.uint8)


def brightest(image):
    """Centre of mass of the brightest spot, (x, y)."""
    level = image.astype(np.float64).sum(-1)
    weight = np.where(level > 0.5 * level.max(), level, 0)
    yy, xx = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(xx * weight).sum(), (yy * weight).sum()]) / weight.sum()


@pytest.mark.parametrize('index', range(5))
def test_landmarks_follow_the_picture(index):
    image, points = portrait()
    image = blob(np.zeros_like(image), *points[index], (255, 255, 255))
    crop, aligned = alignment.eg3d_crop(image, points)
    spot = brightest(crop)
    expected = alignment.aligned_to_eg3d(aligned.landmarks)[index]
    # Rounding of the resized size and of the crop corner: up to about a source pixel of the enlargement.
    scale = aligned.trans_params[2] * 512 / 700
    np.testing.assert_allclose(spot, expected, atol=1.0 * scale)


def test_standard_size():
    image, points = portrait(400, 300)
    one = alignment.align(image, points)
    two = alignment.align(image[::2, ::2], points / 2)
    np.testing.assert_allclose(one.landmarks, two.landmarks, atol=1.5)
    assert one.image.shape == (224, 224, 3)


def test_outside_is_black():
    image, points = portrait()
    aligned = alignment.align(np.maximum(image, 40), points + [90, 60])
    assert (aligned.image[-1, -1] == 0).all() and aligned.image.any()


def test_landmarks_off_the_picture_give_an_empty_crop():
    image, points = portrait()
    assert not alignment.align(image, points + [4000, 0]).image.any()


def test_tiny_face_in_a_large_picture(monkeypatch):
    """The crop-first path, taken when the enlarged picture would not fit in memory, gives the same picture."""
    image, points = portrait()
    whole = alignment.align(image, points, 1024, 300).image.astype(int)
    monkeypatch.setattr(alignment, 'MAX_RESIZED_PIXELS', 1000)
    part = alignment.align(image, points, 1024, 300).image.astype(int)
    assert np.abs(whole - part).mean() < 1.0
    monkeypatch.undo()
    large = np.zeros((2000, 3000, 3), np.uint8)
    assert alignment.align(large, points * 0.05 + 1000, 1024, 300).image.shape == (1024, 1024, 3)


def test_refusals():
    image, points = portrait()
    for points_lost in (np.full((5, 2), 50.0), points * np.nan):
        with pytest.raises(ValueError, match='one pixel'):
            alignment.align(image, points_lost)
    with pytest.raises(ValueError, match='5 or 68'):
        alignment.align(image, points[:4])
    with pytest.raises(ValueError, match='resample'):
        alignment.align(image, points, resample='nearest')
    with pytest.raises(ValueError, match='no extent'):
        alignment.ffhq_quad(np.full((5, 2), 50.0))


def test_singular_recognition_points_give_the_identity():
    np.testing.assert_array_equal(alignment.template_matrix(np.zeros((5, 2), np.float32)), np.eye(2, 3))


def test_recognition_matrix_maps_the_template_to_itself():
    up = alignment.RECOGNITION_TEMPLATE.copy()
    up[:, 1] = 112 - 1 - up[:, 1]
    np.testing.assert_allclose(alignment.recognition_matrix(up, 112), np.eye(2, 3), atol=1e-4)


def test_pose_residual_measures_the_fit():
    exact = alignment.STANDARD_POINTS[:, :2] * 50 + 100
    fit = alignment.solve_pose(exact)
    assert fit.residual < 1e-4
    np.testing.assert_allclose(fit.scale, 50, rtol=1e-4)
    swapped = exact[[1, 0, 2, 4, 3]] * [1, -1]  # neither a turn nor a size explains this
    moved = exact + np.array([[0, 0], [0, 0], [0, 0], [0, 15], [0, 0]])
    assert alignment.solve_pose(moved).residual > 0.04
    assert np.isfinite(alignment.solve_pose(swapped).residual)


def test_quad_is_an_upright_square_around_an_upright_face():
    points = np.array([[80, 100], [120, 100], [100, 120], [85, 140], [115, 140]], np.float64)
    quad = alignment.ffhq_quad(points, enlarge=1.0)
    # eyes 40 apart, mouth 40 below: half side = max(2 * 40, 1.8 * 40) = 80; centre a tenth of the way to the mouth
    np.testing.assert_allclose(quad, [[20, 24], [20, 184], [180, 184], [180, 24]], atol=1e-9)
    turned = points @ np.array([[0, 1], [-1, 0]])
    np.testing.assert_allclose(alignment.ffhq_quad(turned, 1.0), quad @ np.array([[0, 1], [-1, 0]]), atol=1e-9)


def test_in_the_wild_crop_keeps_the_inside_and_fades_outside():
    image, points = portrait(300, 260)
    image = image.copy()
    image[:] = np.linspace(0, 200, 300, dtype=np.uint8)[None, :, None]
    inner = alignment.in_the_wild_crop(image, points, 64, enlarge=0.6, transform_size=256)
    quad = alignment.ffhq_quad(points, 0.6)
    expected = np.interp(
        quad[0, 0] + (np.arange(64) + 0.5) / 64 * (quad[3, 0] - quad[0, 0]), np.arange(300), image[0, :, 0]
    )
    np.testing.assert_allclose(inner[32, :, 0], expected, atol=2)
    outer = alignment.in_the_wild_crop(image, points, 64, enlarge=4.0, transform_size=256)
    assert outer.shape == (64, 64, 3) and outer.dtype == np.uint8
    # Far outside only the median colour is left.
    assert abs(int(outer[2, 2, 0]) - np.median(image)) < 12
    small = alignment.in_the_wild_crop(np.repeat(np.repeat(image, 4, 0), 4, 1), points * 4 + 1.5, 64, 0.6, 256)
    np.testing.assert_allclose(small.astype(int), inner.astype(int), atol=3)  # the shrink-first path
