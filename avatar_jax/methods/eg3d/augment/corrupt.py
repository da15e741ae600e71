"""Frequency-band gains, additive noise and cut-outs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.eg3d.augment.draws import Draws

# Low-pass taps of the wavelet sym2 (4 numbers, sum sqrt(2)).
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
NUM_BANDS = 4
_POWER = np.asarray([10, 1, 1, 1], np.float32) / 13  # expected share of the bands in natural images


def _bank() -> np.ndarray:
    """Taps [4, 43] of four octave bands, lowest first; they add up to the identity."""
    low = np.asarray(SYM2)
    high = low * (-1.0) ** np.arange(low.size)
    low, high = (np.convolve(f, f[::-1]) / 2 for f in (low, high))  # power-complementary: low + high = delta
    bank = np.eye(NUM_BANDS, 1)
    for band in range(1, NUM_BANDS):
        spread = np.zeros((NUM_BANDS, 2 * bank.shape[1] - 1))
        spread[:, ::2] = bank
        bank = np.stack([np.convolve(row, low) for row in spread])
        start = (bank.shape[1] - high.size) // 2
        bank[band, start : start + high.size] += high
    return bank.astype(np.float32)


BANK = _bank()


def band_gains(config, p: jax.Array, draws: Draws, count: int) -> jax.Array:
    """Gains [N, 4] of the bands; the expected power of a picture is kept."""
    gains = jnp.ones((count, NUM_BANDS))
    for band, strength in enumerate(config.imgfilter_bands):
        gain = jnp.exp2(draws.normal(f'imgfilter{band}') * config.imgfilter_std)
        gain = jnp.where(draws.chosen(f'imgfilter{band}', config.imgfilter * p * strength), gain, 1.0)
        row = jnp.ones((count, NUM_BANDS)).at[:, band].set(gain)
        gains = gains * row / jnp.sqrt(jnp.sum(_POWER * jnp.square(row), axis=-1, keepdims=True))
    return gains


def filter_bands(images: jax.Array, gains: jax.Array) -> jax.Array:
    """Filters images [N, H, W, C] with each sample's mixture of the bands, along both axes; reflected at the border."""
    taps = jnp.matmul(gains, BANK, precision=jax.lax.Precision.HIGHEST)  # [N, 43]
    for axis in (2, 1):
        size = images.shape[axis]
        images = jnp.einsum(
            'noi,naib->naob' if axis == 2 else 'noi,niab->noab',
            _reflected(taps, size),
            images,
            precision=jax.lax.Precision.HIGHEST,
        )
    return images


def _reflected(taps: jax.Array, size: int) -> jax.Array:
    """Matrices [N, size, size] of the correlation with symmetric ``taps`` [N, t] and reflection at both ends."""
    half = taps.shape[1] // 2
    if half >= size:
        raise ValueError(f'imgfilter needs images of more than {half} pixels, got {size}')
    source = np.arange(size)[:, None] + np.arange(-half, half + 1)  # [size, t], places outside included
    source = np.abs(source)
    source = np.where(source >= size, 2 * (size - 1) - source, source)
    place = np.zeros((size, taps.shape[1], size), np.float32)
    np.put_along_axis(place, source[..., None], 1.0, axis=2)
    return jnp.einsum('nt,oti->noi', taps, place, precision=jax.lax.Precision.HIGHEST)


def add_noise(images: jax.Array, config, p: jax.Array, draws: Draws) -> jax.Array:
    """Normal noise, a standard deviation per sample."""
    sigma = draws.magnitude('noise') * config.noise_std
    sigma = jnp.where(draws.chosen('noise', config.noise * p), sigma, 0.0)
    return images + draws.normal('noise/pixels', *images.shape[1:]) * sigma[:, None, None, None]


def cut_out(images: jax.Array, config, p: jax.Array, draws: Draws) -> jax.Array:
    """Blacks out a square of ``cutout_size`` of the image at a random place."""
    _, height, width, _ = images.shape
    size = jnp.where(draws.chosen('cutout', config.cutout * p), config.cutout_size, 0.0)[:, None]
    centre = draws.uniform('cutout/centre', 2)
    keep_x = jnp.abs((jnp.arange(width) + 0.5) / width - centre[:, :1]) >= size / 2
    keep_y = jnp.abs((jnp.arange(height) + 0.5) / height - centre[:, 1:]) >= size / 2
    return images * (keep_y[:, :, None] | keep_x[:, None, :])[..., None].astype(images.dtype)
