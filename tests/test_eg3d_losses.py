"""Losses and augmentations of EG3D's training beyond the reference numbers: invariants and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.methods.eg3d import losses as L
from avatar_jax.methods.eg3d.augment import PRESETS, AdaConfig, AdaState, AugmentConfig, KeyDraws, augment
from avatar_jax.methods.eg3d.augment.corrupt import BANK, filter_bands
from avatar_jax.methods.eg3d.augment.geometry import inverse_map
from avatar_jax.methods.eg3d.config import LossConfig
from avatar_jax.models.discriminator import minibatch_std
from avatar_jax.models.fresh_noise import noise_maps, noise_size
from avatar_jax.ops.resample import filter2d
from avatar_jax.render.config import RenderConfig


def images(count=2, size=16, channels=6, seed=0):
    y, x = np.mgrid[0:size, 0:size] / size
    base = np.stack([np.sin(4 * x + c) * np.cos(3 * y - c) for c in range(channels)], -1)
    noise = np.random.default_rng(seed).normal(0, 0.1, (count, size, size, channels))
    return jnp.asarray(base + noise, jnp.float32)


@pytest.mark.parametrize('sigma', [0.0, 0.3, 1.0, 2.6])
def test_blur_is_the_filter_with_its_taps(sigma):
    x = images(1, 12, 3)
    reach = int(np.floor(3 * sigma))
    taps = np.exp2(-np.square(np.arange(-reach, reach + 1) / sigma)) if reach else np.ones(1)
    expected = filter2d(x, (taps / taps.sum()).astype(np.float32))
    np.testing.assert_allclose(L.blur(x, sigma), expected, atol=2e-6)


@pytest.mark.slow
def test_augmentation_belongs_to_the_sample_and_is_nothing_at_p_zero():
    config, x = AugmentConfig.preset('bgc'), images(4)
    keys = jax.random.split(jax.random.key(0), 4)
    run = jax.jit(lambda x, p, keys: augment(config, x, p, KeyDraws(keys)))
    together = run(x, 1.0, keys)
    alone = run(jnp.broadcast_to(x[2], x.shape), 1.0, jnp.broadcast_to(keys[2], keys.shape))
    np.testing.assert_allclose(together[2], alone[0], atol=1e-5)
    # Only the resampling's low-pass filter is left at p = 0, and nothing at all of the other transforms.
    np.testing.assert_allclose(run(x, 0.0, keys)[:, 3:-3, 3:-3], x[:, 3:-3, 3:-3], atol=0.15)
    others = AugmentConfig(brightness=1, contrast=1, hue=1, saturation=1, lumaflip=1, noise=1, cutout=1)
    np.testing.assert_allclose(augment(others, x, 0.0, KeyDraws(keys)), x, atol=2e-6)
    assert np.abs(np.asarray(augment(others, x, 1.0, KeyDraws(keys)) - x)).max() > 0.1


@pytest.mark.slow
def test_mirror_is_exact_in_the_middle_and_differentiable():
    config = AugmentConfig(xflip=1, rotate90=1)
    inverse = inverse_map(config, 1.0, KeyDraws(jax.random.split(jax.random.key(1), 64)), 64, (8, 8))
    found = {tuple(np.round(np.asarray(m[:2, :2]).ravel()).astype(int)) for m in inverse}
    assert len(found) == 8  # all the symmetries of the square
    x = images(2)
    keys = jax.random.split(jax.random.key(0), 2)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(augment(config, x, 1.0, KeyDraws(keys)) ** 2)))(x)
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0


def test_bands_add_up_and_reflect():
    np.testing.assert_allclose(BANK.sum(0), np.eye(1, 43, 21)[0], atol=1e-6)
    x = images(1, 32, 3)
    np.testing.assert_allclose(filter_bands(x, jnp.ones((1, 4))), x, atol=2e-6)
    flat = jnp.full((1, 32, 32, 3), 0.5)
    np.testing.assert_allclose(filter_bands(flat, jnp.asarray([[1.0, 0, 0, 0]])), flat, atol=2e-6)
    with pytest.raises(ValueError, match='more than 21 pixels'):
        filter_bands(images(1, 16, 3), jnp.ones((1, 4)))


def test_controller_moves_p_and_forgets():
    config = AdaConfig(mode='ada', kimg=1.0, interval=2)
    state = AdaState.create(config).report(jnp.float32(1.0), 8)
    assert float(state.advance(config, jnp.int32(1), 8).p) == 0.0  # not due
    moved = state.report(jnp.float32(0.5), 8).advance(config, jnp.int32(2), 8)
    assert float(moved.p) == pytest.approx(8 * 2 / 1000) and float(moved.count) == 0
    down = moved.report(jnp.float32(0.0), 8).advance(config, jnp.int32(4), 8)
    assert float(down.p) == 0.0
    fixed = AdaConfig(mode='fixed', p=0.2)
    assert AdaState.create(fixed).advance(fixed, jnp.int32(4), 8).p == np.float32(0.2)
    for bad in ({'mode': 'on'}, {'mode': 'fixed'}, {'interval': 0}):
        with pytest.raises(UserError, match='augment'):
            AdaConfig(**bad)
    with pytest.raises(UserError, match='use one of'):
        AugmentConfig.preset('everything')
    assert all(AugmentConfig.preset(name) for name in PRESETS)


def field(points):
    """A density that falls towards negative z, and varies."""
    return (jnp.sin(3 * points[..., :1]) + points[..., 2:]) * 2


@pytest.mark.parametrize('kind', ['l1', 'monotonic-detach', 'monotonic-fixed', 'l1-alt', 'total-variation'])
def test_density_regularisers(kind):
    rendering = RenderConfig(reg_type=kind, box_warp=0.8)
    rng = np.random.default_rng(0)
    points, steps = (jnp.asarray(rng.uniform(-1, 1, (2, 50, 3)), jnp.float32) for _ in range(2))
    second = None if kind == 'l1' else L.DensityDraws(points, steps)
    terms = L.density_penalty(field, rendering, L.DensityDraws(points, steps, second))
    if kind in ('l1-alt', 'total-variation'):
        assert terms == {}
        return
    length = 0.004 if kind == 'l1' else 0.8 / 256
    expected = 0.25 * np.abs(np.asarray(field(points) - field(points + steps * length))).mean()
    np.testing.assert_allclose(terms['l1'], expected, rtol=1e-4)
    if kind != 'l1':
        np.testing.assert_allclose(terms['monotonic'], 10 * 2 * 0.8 / 256, rtol=1e-3)

        def fall(scale):
            draws = L.DensityDraws(points, steps, L.DensityDraws(points, steps))
            return L.density_penalty(lambda p: scale * field(p), rendering, draws)['monotonic']

        # Where the front is held fixed only the other end moves.
        slope = jax.grad(fall)(1.0)
        whole = 10 * 2 * 0.8 / 256
        assert (abs(slope - whole) < 1e-3) == (kind == 'monotonic-fixed')


def test_path_length_of_a_linear_map():
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(5, 4 * 4 * 3)), jnp.float32)
    ws = jnp.asarray(rng.normal(size=(3, 2, 5)), jnp.float32)
    noise = jnp.asarray(rng.normal(size=(3, 4, 4, 3)), jnp.float32)
    lengths = L.path_lengths(lambda w: (w.sum(1) @ weight).reshape(3, 4, 4, 3), ws, noise)
    expected = np.linalg.norm(np.asarray(noise).reshape(3, -1) @ np.asarray(weight).T / 4, axis=1)
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)
    penalty = L.path_length_penalty(lengths, jnp.float32(1.0), LossConfig(path_length_weight=2.0))
    np.testing.assert_allclose(penalty, 2 * np.mean((expected - 1) ** 2), rtol=1e-5)


def test_consecutive_groups_are_those_of_the_shares():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
    whole = minibatch_std(x, 2, contiguous=True)
    parts = [minibatch_std(x[i : i + 4], 2, contiguous=True) for i in (0, 4)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-6)
    np.testing.assert_allclose(minibatch_std(x[:4], 4), minibatch_std(x[:4], 4, contiguous=True), atol=1e-6)
    order = np.asarray([0, 4, 1, 5, 2, 6, 3, 7])  # strided groups {n, n+4} side by side
    np.testing.assert_allclose(minibatch_std(x, 2)[order], minibatch_std(x[order], 2, contiguous=True), atol=1e-6)


def test_noise_maps_are_cut_from_one_block():
    noise = {'a': jnp.zeros((4, 4)), 'b': {'c': jnp.zeros((2, 2))}}
    assert noise_size(noise) == 20
    maps = noise_maps(noise, jnp.arange(40.0).reshape(2, 20))
    assert maps['a'].shape == (2, 4, 4) and maps['b']['c'][1].tolist() == [[36, 37], [38, 39]]


def test_loss_options_are_checked():
    for bad in ({'filter_mode': 'cubic'}, {'r1_gamma': -1.0}, {'resolution_multiple': 0}):
        with pytest.raises(UserError, match='loss'):
            LossConfig(**bad)
