"""Metrics: limits, masks, invariances, statistics."""

import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.eval import distributions, faces, statistics, sync
from avatar_jax.ops import image_metrics as image


def pictures(seed=0, batch=2, size=24):
    r = np.random.default_rng(seed)
    return r.random((batch, size, size, 3)).astype(np.float32)


def test_equal_pictures():
    x = pictures()
    assert np.isinf(image.psnr(x, x)).all()
    np.testing.assert_allclose(image.ssim(x, x), 1.0, atol=1e-5)
    np.testing.assert_array_equal(image.l1(x, x), 0)


def test_known_psnr_and_mask():
    x = np.full((1, 16, 16, 3), 0.5, np.float32)
    y = x.copy()
    y[:, :8] += 0.1
    np.testing.assert_allclose(image.psnr(y, x), 10 * np.log10(2 / 0.01), rtol=1e-5)
    mask = np.zeros((1, 16, 16, 1), np.float32)
    mask[:, :8] = 1
    np.testing.assert_allclose(image.psnr(y, x, mask=mask), 20, rtol=1e-4)
    np.testing.assert_allclose(image.l1(y, x, mask[..., 0]), 0.1, rtol=1e-4)
    assert np.isinf(image.psnr(y, x, mask=1 - mask)).all()
    assert np.isnan(image.psnr(y, x, mask=0 * mask)).all()
    with pytest.raises(ValueError, match='over'):
        image.psnr(x, y, over='pixels')


def test_ssim_mask_reads_only_its_region():
    x, y = pictures(1), pictures(1)
    y[:, :, 16:] = 0
    mask = np.zeros((2, 24, 24), np.float32)
    mask[:, :, :10] = 1
    np.testing.assert_allclose(image.ssim(y, x, mask=mask), 1.0, atol=1e-5)
    assert (image.ssim(y, x) < 0.95).all()
    with pytest.raises(ValueError, match='smaller'):
        image.ssim(x[:, :8], y[:, :8])


def test_ssim_against_direct_sums():
    x, y = pictures(2, 1, 12), pictures(3, 1, 12)
    taps = np.outer(image.gaussian_window(), image.gaussian_window())[..., None]
    value = 0.0
    for i in range(2):
        for j in range(2):
            a, b = x[0, i : i + 11, j : j + 11], y[0, i : i + 11, j : j + 11]
            ma, mb = (taps * a).sum((0, 1)), (taps * b).sum((0, 1))
            va, vb = (taps * (a - ma) ** 2).sum((0, 1)), (taps * (b - mb) ** 2).sum((0, 1))
            cov = (taps * (a - ma) * (b - mb)).sum((0, 1))
            value += ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean() / 4
    np.testing.assert_allclose(image.ssim(x, y)[0], value, rtol=1e-4)


def test_to_unit_clips():
    np.testing.assert_array_equal(image.to_unit(jnp.array([-2.0, -1, 0, 1, 3])), [0, 0, 0.5, 1, 1])


def test_frechet_distance_of_a_shift():
    x = np.random.default_rng(0).standard_normal((200, 6))
    np.testing.assert_allclose(distributions.frechet_distance(x, x), 0, atol=1e-9)
    np.testing.assert_allclose(distributions.frechet_distance(x, x + 2.0), 24, rtol=1e-9)
    few = x[:3]  # singular covariance
    np.testing.assert_allclose(distributions.frechet_distance(few, few, ddof=1), 0, atol=1e-6)
    with pytest.raises(ValueError, match='too few'):
        distributions.moments(x[:1], ddof=1)


def test_kernel_distance():
    r = np.random.default_rng(1)
    x, y = r.standard_normal((300, 8)), r.standard_normal((300, 8))
    near, far = distributions.kernel_distance(x, y), distributions.kernel_distance(x, y + 1)
    assert abs(near) < 0.05 < far
    a, b = (distributions.kernel_distance(x, y + 1, subsets=5, subset_size=50, seed=3) for _ in range(2))
    assert a == b and abs(a - far) < 1.0


def test_reductions():
    p, q = np.zeros((2, 257)), np.zeros((2, 257))
    q[:, 80:144] = 0.5
    q[:, 224:227] = [3.0, 4.0, 0.0]
    q[:, 254:257] = [0, 0, 12.0]
    np.testing.assert_allclose(faces.expression_distance(p, q), 0.5)
    np.testing.assert_allclose(faces.expression_distance(p, q, 'l2'), 4.0)
    np.testing.assert_allclose(faces.pose_distance(p, q, 'l2'), 5.0)
    np.testing.assert_allclose(faces.pose_distance(p, q, 'l2', 'angle+trans'), 13.0)
    for call in (
        lambda: faces.expression_distance(p, q, 'rms'),
        lambda: faces.pose_distance(p, q, parts='all'),
        lambda: faces.keypoint_distance(p, q, 'linf'),
    ):
        with pytest.raises(ValueError, match='choose'):
            call()


def test_openings_do_not_depend_on_size_or_place():
    landmarks = np.random.default_rng(2).random((3, 68, 2)) * 100
    for measure in (faces.mouth_opening, faces.eye_openness):
        np.testing.assert_allclose(measure(landmarks), measure(landmarks * 3 - 20), rtol=1e-9)
    shut = landmarks.copy()
    shut[:, 65:68] = shut[:, 63:60:-1]
    shut[:, [41, 40, 47, 46]] = shut[:, [37, 38, 43, 44]]
    np.testing.assert_allclose(faces.mouth_opening(shut), 0, atol=1e-12)
    np.testing.assert_allclose(faces.eye_openness(shut), 0, atol=1e-12)


def test_response_is_a_coordinate_between_two_states():
    closed, opened = pictures(3), pictures(4)
    mask = np.ones((2, 24, 24), np.float32)
    for t in (-0.5, 0.0, 0.3, 1.0):
        np.testing.assert_allclose(faces.response(closed + t * (opened - closed), closed, opened, mask), t, atol=1e-5)
    assert np.isnan(faces.response(closed, closed, closed, mask)).all()


def test_region_boxes():
    landmarks = np.full((1, 68, 2), 32.0)
    landmarks[0, 48:68] = [[20, 50]] * 10 + [[44, 54]] * 10
    landmarks[0, 36:42], landmarks[0, 42:48] = [20, 24], [44, 24]
    boxes = faces.region_boxes(landmarks, 64)
    assert boxes['mouth'][0, 50, 30] == 1 and boxes['mouth'][0, 30, 30] == 0
    assert boxes['eyes'][0, 24, 20] == 1 and boxes['eyes'][0, 24, 32] == 0
    np.testing.assert_array_equal(boxes['mouth_eyes'], np.maximum(boxes['mouth'], boxes['eyes']))
    traced = faces.region_boxes(jnp.asarray(landmarks), 64)
    np.testing.assert_array_equal(traced['mouth_eyes'], boxes['mouth_eyes'])


def test_sync_offset_is_found():
    r = np.random.default_rng(5)
    video = r.standard_normal((40, 8))
    audio = np.roll(video, 3, axis=0)  # the audio comes three frames late
    scores = sync.sync_scores(video, audio, 6)
    assert scores.offset == -3
    assert scores.confidence > 1
    confidence = sync.frame_confidence(video, audio, 6)
    assert confidence.shape == (40,) and np.median(confidence) > 1


def test_pearson():
    x = np.arange(10.0)
    np.testing.assert_allclose(statistics.pearson(x, 3 * x + 1), 1)
    np.testing.assert_allclose(statistics.pearson(x, -x), -1)
    y = x.copy()
    y[3] = np.nan
    np.testing.assert_allclose(statistics.pearson(x, y), 1)
    assert np.isnan(statistics.pearson(x, np.ones(10)))
    with pytest.raises(ValueError, match='different length'):
        statistics.pearson(x, x[:3])


def test_bootstrap():
    values = np.random.default_rng(6).normal(5, 2, 100)
    a, b = statistics.bootstrap(values, seed=1), statistics.bootstrap(values, seed=1)
    assert a == b and a != statistics.bootstrap(values, seed=2)
    np.testing.assert_allclose(a.mean, values.mean())
    np.testing.assert_allclose(a.high - a.low, 2 * 1.96 * values.std() / 10, rtol=0.15)
    assert statistics.bootstrap([1.0, np.nan]) == (1.0, 1.0, 1.0, 1)
    empty = statistics.bootstrap([np.nan])
    assert empty.count == 0 and np.isnan(empty.mean)
