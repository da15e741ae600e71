"""Losses and the operations below them against brute force, invariants, and their behaviour under jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.losses import density as regularisers
from avatar_jax.losses.local import local_loss, local_target, region_boxes
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.losses.pixel import pyramid_loss, smooth_l1
from avatar_jax.methods.otavatar.losses import (
    LossConfig,
    controller_terms,
    density_terms,
    image_terms,
    prepare_targets,
    total,
)
from avatar_jax.ops.resize import halve
from avatar_jax.ops.roi_align import roi_align, roi_matrix
from avatar_jax.ops.warp import invert_affine, similarity_transform, warp_affine


@pytest.fixture(scope='module')
def rng():
    return np.random.default_rng(0)


def brute_roi(image, box, out, ratio, aligned):
    """ROI-Align written out: image [H,W], box (x1,y1,x2,y2)."""
    height, width = image.shape
    x1, y1, x2, y2 = (v - 0.5 if aligned else v for v in box)
    w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    gx, gy = (ratio, ratio) if ratio > 0 else (int(np.ceil(w / out)), int(np.ceil(h / out)))
    result = np.zeros((out, out))
    for i in range(out):
        for j in range(out):
            values = 0.0
            for a in range(gy):
                for b in range(gx):
                    y, x = y1 + (i + (a + 0.5) / gy) * h / out, x1 + (j + (b + 0.5) / gx) * w / out
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    y0, x0 = int(y), int(x)
                    y1_, x1_ = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                    fy, fx = y - y0, x - x0
                    values += (1 - fy) * ((1 - fx) * image[y0, x0] + fx * image[y0, x1_])
                    values += fy * ((1 - fx) * image[y1_, x0] + fx * image[y1_, x1_])
            result[i, j] = values / max(gx * gy, 1)
    return result


@pytest.mark.parametrize(('ratio', 'aligned'), [(-1, False), (-1, True), (3, False), (2, True)])
def test_roi_align_equals_the_definition(rng, ratio, aligned):
    image = rng.normal(size=(11, 14))
    boxes = np.array([[2, 3, 9, 8.5], [-4, -3, 6, 4], [10, 7, 19, 15], [5, 5, 5, 5], [30, 30, 40, 40], [1, 0, 13, 11]])
    images = jnp.asarray(np.repeat(image[None, ..., None], len(boxes), 0), jnp.float32)
    for given in (boxes, jnp.asarray(boxes, jnp.float32)):
        crops = np.asarray(roi_align(images, given, 4, sampling_ratio=ratio, aligned=aligned))[..., 0]
        for crop, box in zip(crops, boxes):
            np.testing.assert_allclose(crop, brute_roi(image, box, 4, ratio, aligned), atol=2e-5)


def test_roi_samples_inside_a_compiled_program_are_the_exact_number():
    """Boxes larger than the image need more samples per bin than a small box; the traced default covers them."""
    low, high = np.array([0.0, -40.0]), np.array([7.0, 60.0])
    concrete = roi_matrix(low, high, 5, 32)
    traced = jax.jit(lambda a, b: roi_matrix(a, b, 5, 32))(low, high)
    np.testing.assert_allclose(traced, concrete, atol=1e-5)
    capped = jax.jit(lambda a, b: roi_matrix(a, b, 5, 32, max_samples=1))(low, high)
    assert np.abs(np.asarray(capped) - concrete).max() > 0.01
    np.testing.assert_allclose(concrete[0].sum(-1), 1, atol=1e-6)


def test_similarity_recovers_a_known_transform(rng):
    points = rng.normal(size=(3, 5, 2)) * 20
    angle, scale, shift = rng.uniform(-3, 3, 3), rng.uniform(0.3, 3, 3), rng.normal(size=(3, 2)) * 9
    rotation = np.stack(
        [np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], 1
    )
    moved = scale[:, None, None] * np.einsum('bij,bnj->bni', rotation, points) + shift[:, None]
    matrix = np.asarray(similarity_transform(jnp.asarray(points), jnp.asarray(moved)))
    np.testing.assert_allclose(matrix[..., :2], scale[:, None, None] * rotation, atol=1e-4)
    np.testing.assert_allclose(matrix[..., 2], shift, atol=1e-3)
    both = invert_affine(jnp.asarray(matrix))
    np.testing.assert_allclose(
        np.asarray(both[..., :2]) @ matrix[..., :2], np.broadcast_to(np.eye(2), (3, 2, 2)), atol=1e-5
    )


def test_warp_by_whole_pixels_shifts_the_image(rng):
    image = jnp.asarray(rng.normal(size=(1, 8, 9, 2)), jnp.float32)
    matrix = jnp.asarray([[[1.0, 0, 2], [0, 1, -1]]])
    warped = np.asarray(warp_affine(image, matrix, (8, 9)))
    np.testing.assert_allclose(warped[:, :7, 2:], np.asarray(image)[:, 1:, :7], atol=1e-6)
    assert (warped[:, 7] == 0).all() and (warped[:, :, :2] == 0).all()


def test_smooth_l1():
    difference = jnp.asarray([0.0, 0.5, -2.0, 3.0])
    expected = np.mean([0, 0.125, 1.5, 2.5])
    np.testing.assert_allclose(smooth_l1(difference, jnp.zeros(4)), expected, rtol=1e-6)


def test_halving_is_a_mean_and_drops_an_odd_row(rng):
    image = rng.normal(size=(1, 5, 6, 1))
    halved = np.asarray(halve(jnp.asarray(image, jnp.float32)))
    assert halved.shape == (1, 2, 3, 1)
    np.testing.assert_allclose(halved[0, 1, 2, 0], image[0, 2:4, 4:6, 0].mean(), rtol=1e-5)


def test_pyramid_sees_edges_that_a_plain_distance_does_not(rng):
    target = jnp.asarray(np.tile([[1.0, -1.0], [-1.0, 1.0]], (8, 8))[None, ..., None], jnp.float32)
    flat = jnp.zeros_like(target)
    assert float(pyramid_loss(target, target, 3)) < 1e-6
    assert float(pyramid_loss(flat, target, 1)) > 2 * float(jnp.mean(jnp.abs(flat - target)))
    with pytest.raises(ValueError, match='scales'):
        pyramid_loss(target, target, 6)


def landmarks(rng, batch, size):
    """68 points in a plausible layout, in pixels."""
    points = np.zeros((batch, 68, 2))
    for part, centre, radius in (
        (slice(36, 42), (0.36, 0.42), 0.05),
        (slice(42, 48), (0.64, 0.42), 0.05),
        (slice(48, 68), (0.5, 0.7), 0.1),
        (slice(27, 36), (0.5, 0.5), 0.05),
    ):
        points[:, part] = np.array(centre) + radius * rng.uniform(-1, 1, (batch, part.stop - part.start, 2))
    return jnp.asarray(points * size, jnp.float32)


def test_local_loss_looks_at_mouth_and_eyes_alone(rng):
    target = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    points = landmarks(rng, 2, 32)
    boxes = region_boxes(points, 32)
    x1, y1, x2, y2 = (int(v) for v in boxes['left_eye'][0])
    at_eye = target.at[0, (y1 + y2) // 2, (x1 + x2) // 2].add(1.0)
    corner = target.at[:, 0, 0].add(1.0)
    with_eyes, mouth_only = local_target(target, points), local_target(target, points, eyes=False)
    # Two computations of the same parts: numbers around 1, each a sum of a few.
    assert float(local_loss(corner, with_eyes)) < 1e-6
    assert float(local_loss(at_eye, with_eyes)) > 1e-5
    assert float(local_loss(at_eye, mouth_only)) < 1e-6


@pytest.mark.slow
def test_image_terms_batch_equals_mean_of_people(rng):
    bank, config = PerceptionBank(), LossConfig(pixel=1.0, perceptual_scales_sr=2)
    image = jnp.asarray(rng.uniform(-1, 1, (3, 32, 32, 3)), jnp.float32)
    prediction = jnp.asarray(rng.uniform(-1, 1, (3, 16, 16, 3)), jnp.float32)
    points = landmarks(rng, 3, 32)

    def loss(prediction, image, points):
        targets = prepare_targets(bank, config, image, points, {'raw': 16, 'sr': 32})
        return total(image_terms(bank, config, prediction, targets['raw'], 'raw'))

    together, grad = jax.jit(jax.value_and_grad(loss))(prediction, image, points)
    apart = jax.jit(jax.vmap(lambda *x: loss(*(y[None] for y in x))))(prediction, image, points)
    np.testing.assert_allclose(together, apart.mean(), rtol=1e-5)
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0


def test_terms_and_names(rng):
    bank = PerceptionBank()
    image = jnp.asarray(rng.uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    points = landmarks(rng, 1, 32)

    def names(config, points=points):
        targets = prepare_targets(bank, config, image, points, {'raw': 32})
        terms = image_terms(bank, config, image, targets['raw'], 'raw')
        assert abs(float(total(terms))) < 1e-5, 'an image compared with itself'
        return sorted(n.removeprefix('raw/') for n in terms)

    assert names(LossConfig()) == ['local_left_eye', 'local_mouth', 'local_right_eye', 'pyramid']
    assert names(LossConfig(eyes=False, pixel=1.0)) == ['local_mouth', 'pixel', 'pyramid']
    assert names(LossConfig(), None) == ['pyramid']
    assert names(LossConfig(pyramid=0.0, local=0.0)) == []
    for options in ({'perceptual_network': 'vgg19'}, {'identity_network': 'arcface18'}):
        with pytest.raises(UserError, match='needs the weights'):
            names(LossConfig(**options))
    with pytest.raises(UserError, match='scales'):
        names(LossConfig(perceptual_scales_raw=6))


def test_landmarks_are_scaled_with_the_target(rng):
    """The same face at twice the size with twice the landmarks gives the same target."""
    bank, config = PerceptionBank(), LossConfig()
    small = jnp.asarray(rng.uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    large = small.repeat(2, 1).repeat(2, 2)
    points = landmarks(rng, 1, 32)
    a = prepare_targets(bank, config, small, points, {'raw': 32})['raw']
    b = prepare_targets(bank, config, large, 2 * points, {'raw': 32})['raw']
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_density_terms():
    config = LossConfig(density_points=500)
    # A density that grows linearly towards -z never violates monotonicity; the other way round it always does.
    inwards = density_terms(config, lambda p: -3.0 * p[..., 2], jax.random.key(0), 2)
    outwards = density_terms(config, lambda p: 3.0 * p[..., 2:], jax.random.key(0), 2)
    assert float(inwards['monotonic']) < 1e-6
    np.testing.assert_allclose(outwards['monotonic'], 3 / 256, rtol=1e-4)
    expected = 0.25 * 3 * 0.004 * np.sqrt(2 / np.pi)  # mean |n| of a normal number
    np.testing.assert_allclose(outwards['tv'], expected, rtol=0.1)
    assert density_terms(LossConfig(monotonic=0.0, tv=0.0), None, jax.random.key(0), 2) == {}


def test_points_of_a_person_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(3), 3)
    points, offsets = regularisers.random_points(keys, 3, 10)
    alone, alone_offsets = regularisers.random_points(keys[1:2], 1, 10)
    np.testing.assert_allclose(points[1], alone[0], atol=1e-6)
    np.testing.assert_allclose(offsets[1], alone_offsets[0], rtol=1e-5, atol=1e-6)
    assert np.abs(points).max() <= 1 and np.abs(points).max() > 0.8


def test_controller_terms(rng):
    params = {'a': jnp.asarray([1.0, -3.0]), 'b': {'c': jnp.asarray([[2.0]])}}
    alpha = jnp.full((2, 4, 3), 0.5)
    terms = controller_terms(LossConfig(controller_l1=2.0, alpha_norm=1.0, alpha_mutual=1.0), params, alpha, alpha)
    np.testing.assert_allclose(terms['controller_l1'], 2.0 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(terms['alpha_norm'], 10 - 1.0, rtol=1e-6)
    np.testing.assert_allclose(terms['alpha_mutual'], 10.0, rtol=1e-6)
    grad = jax.grad(lambda a: total(controller_terms(LossConfig(alpha_mutual=1.0), params, a, alpha)))(alpha)
    assert np.isfinite(grad).all(), 'equal magnitudes have a finite gradient'
    with pytest.raises(ValueError, match='two frames'):
        controller_terms(LossConfig(alpha_mutual=1.0), params, alpha)
