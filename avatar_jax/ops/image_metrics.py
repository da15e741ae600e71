"""Image metrics: PSNR, SSIM and L1, with every convention that published numbers use.

Images are [B, H, W, C] in [0, 1] (``to_unit`` maps the project's [-1, 1] there); ``prediction`` comes first, then
``target``. Everything is JAX and works under ``jit``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

K1, K2 = 0.01, 0.03


def to_unit(images: jax.Array) -> jax.Array:
    """[-1, 1] -> [0, 1], clipped as a picture file would be."""
    return jnp.clip((images + 1) / 2, 0.0, 1.0)


def psnr(
    prediction: Float[jax.Array, 'b h w c'],
    target: Float[jax.Array, 'b h w c'],
    *,
    data_range: float | str = 1.0,
    mask: jax.Array | None = None,
    over: str = 'image',
) -> jax.Array:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Args:
        prediction, target: [B, H, W, C].
        data_range: largest signal; 'target' is max - min of the whole target batch (torchmetrics' former default).
        mask: [B, H, W] or [B, H, W, 1] weights; only these pixels count (PSNR-M). NaN where a mask is empty.
        over: 'image' gives [B] values; 'batch' one value from one mean square error over all images.
    """
    prediction, target = jnp.asarray(prediction), jnp.asarray(target)
    square = (prediction - target) ** 2
    weight = jnp.ones(square.shape[:3]) if mask is None else jnp.reshape(mask, square.shape[:3])
    total, count = (square.mean(-1) * weight).sum((1, 2)), weight.sum((1, 2))
    if over not in ('image', 'batch'):
        raise ValueError(f"over='{over}': choose 'image' or 'batch'")
    if over == 'batch':
        total, count = total.sum(), count.sum()
    peak = target.max() - target.min() if data_range == 'target' else data_range
    return 10 * jnp.log10(peak**2 / (total / count))


def monitor_psnr(prediction: Float[jax.Array, 'b h w c'], target: Float[jax.Array, 'b h w c']) -> jax.Array:
    """OTAvatar's training monitor: 20 log10(255 / RMSE) of images in **[-1, 1]**, about 42 dB too high.

    Only for comparing training curves with the released program; never report it.
    """
    return 20 * jnp.log10(255 / jnp.sqrt(jnp.mean((prediction - target) ** 2)))


def l1(
    prediction: Float[jax.Array, 'b h w c'], target: Float[jax.Array, 'b h w c'], mask: jax.Array | None = None
) -> jax.Array:
    """Mean absolute difference per image [B]; with ``mask`` [B, H, W(, 1)] over its pixels only (NaN if empty)."""
    error = jnp.abs(prediction - target).mean(-1)
    weight = jnp.ones(error.shape) if mask is None else jnp.reshape(mask, error.shape)
    return (error * weight).sum((1, 2)) / weight.sum((1, 2))


def gaussian_window(sigma: float = 1.5, size: int = 11) -> np.ndarray:
    """Normalised Gaussian taps [size]."""
    x = np.arange(size) - (size - 1) / 2
    taps = np.exp(-(x**2) / (2 * sigma**2))
    return taps / taps.sum()


def _filter(x: jax.Array, taps: np.ndarray) -> jax.Array:
    """Separable filter of [B, H, W, C] at positions with full support."""
    for axis in (1, 2):
        length = x.shape[axis] - len(taps) + 1
        x = sum(float(t) * jax.lax.slice_in_dim(x, k, k + length, axis=axis) for k, t in enumerate(taps))
    return x


@partial(jax.jit, static_argnames=('window', 'covariance', 'data_range', 'k1', 'k2'))
def ssim_map(
    prediction: jax.Array,
    target: jax.Array,
    window: str = 'gaussian',
    covariance: str = 'population',
    data_range: float | str = 1.0,
    k1: float = K1,
    k2: float = K2,
) -> jax.Array:
    """Structural similarity at every position with full window support.

    Args:
        prediction, target: [B, H, W, C], each side at least the window.
        window: 'gaussian' (11 x 11, sigma 1.5; Wang et al., torchmetrics) or 'uniform' (7 x 7, scikit-image's default).
        covariance: 'population', or 'sample' (times n / (n - 1), scikit-image's default with the uniform window).
        data_range: largest signal; 'both' is the larger of the two batches' max - min (torchmetrics' default).
        k1, k2: the constants of the definition.

    Returns:
        [B, H - w + 1, W - w + 1, C].
    """
    if window not in ('gaussian', 'uniform'):
        raise ValueError(f"window='{window}': choose 'gaussian' or 'uniform'")
    if covariance not in ('population', 'sample'):
        raise ValueError(f"covariance='{covariance}': choose 'population' or 'sample'")
    taps = gaussian_window() if window == 'gaussian' else np.full(7, 1 / 7)
    if min(prediction.shape[1:3]) < len(taps):
        raise ValueError(f'images of {prediction.shape[1:3]} are smaller than the {len(taps)} x {len(taps)} window')
    x, y = prediction, target
    peak = jnp.maximum(x.max() - x.min(), y.max() - y.min()) if data_range == 'both' else data_range
    c1, c2 = (k1 * peak) ** 2, (k2 * peak) ** 2
    n = len(taps) ** 2
    factor = n / (n - 1) if covariance == 'sample' else 1.0
    mx, my = _filter(x, taps), _filter(y, taps)
    vx = factor * (_filter(x * x, taps) - mx * mx)
    vy = factor * (_filter(y * y, taps) - my * my)
    vxy = factor * (_filter(x * y, taps) - mx * my)
    return ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))


def ssim(
    prediction: Float[jax.Array, 'b h w c'],
    target: Float[jax.Array, 'b h w c'],
    *,
    window: str = 'gaussian',
    covariance: str = 'population',
    data_range: float | str = 1.0,
    k1: float = K1,
    k2: float = K2,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean structural similarity per image, [B]; options as ``ssim_map``.

    ``mask`` [B, H, W(, 1)] weighs positions by the mask at the window's centre (NaN if empty).
    """
    values = ssim_map(prediction, target, window, covariance, data_range, k1, k2).mean(-1)
    if mask is None:
        return values.mean((1, 2))
    border = (prediction.shape[1] - values.shape[1]) // 2
    weight = jnp.reshape(mask, prediction.shape[:3])
    weight = weight[:, border : border + values.shape[1], border : border + values.shape[2]]
    return (values * weight).sum((1, 2)) / weight.sum((1, 2))
