"""Style-modulated convolution of StyleGAN2: scale the input, one shared convolution, scale the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from avatar_jax.ops.resample import Filter, conv2d_resample

if TYPE_CHECKING:
    from jaxtyping import Float


def modulated_conv2d(
    x: Float[jax.Array, 'n h w i'],
    weight: Float[jax.Array, 'kh kw i o'],
    styles: Float[jax.Array, 'n i'],
    noise: jax.Array | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Filter = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Float[jax.Array, 'n h_out w_out o']:
    """Convolution whose kernel is ``weight * styles``, per sample, optionally normalised per output channel.

    The kernel is never built: modulation scales the input channels and demodulation the output channels, which is the
    same sum, several times faster than per-sample kernels, and merges with the batch under ``vmap``.

    Args:
        x: [N, H, W, I]; its dtype is the dtype of the convolution.
        weight: [kh, kw, I, O] float32.
        styles: [N, I] float32.
        noise: added to the result; broadcastable to [N, H', W', 1], or [H', W'].
        up, down, padding, resample_filter, flip_weight: as for ``conv2d_resample``.
        demodulate: divide each output channel by the root of the sum of squares of its modulated kernel (+ 1e-8).

    Returns:
        [N, H', W', O] in the dtype of ``x``. Demodulation sums are float32; in half precision the kernel and the styles
        are first scaled by their largest entries, which demodulation cancels, so that products stay in range.
    """
    kh, kw, channels, _ = weight.shape
    if styles.shape != (x.shape[0], channels):
        raise ValueError(f'styles {styles.shape}: expected [{x.shape[0]}, {channels}] for x {x.shape}')
    if demodulate and jnp.finfo(x.dtype).bits < 32:
        weight = weight * (channels * kh * kw) ** -0.5 / jnp.max(jnp.abs(weight), axis=(0, 1, 2), keepdims=True)
        styles = styles / jnp.max(jnp.abs(styles), axis=1, keepdims=True)
    y = conv2d_resample(
        x * styles[:, None, None, :].astype(x.dtype),
        weight.astype(x.dtype),
        resample_filter,
        up,
        down,
        padding,
        flip_weight=flip_weight,
    )
    if demodulate:
        # [I, O]; one by one, since XLA's CPU reduction over the leading axes is fifty times slower than adding slices.
        energy = sum(jnp.square(weight[i, j]) for i in range(kh) for j in range(kw))
        scale = lax.rsqrt(jnp.matmul(jnp.square(styles), energy, precision=lax.Precision.HIGHEST) + 1e-8)
        y = y * scale[:, None, None, :].astype(x.dtype)
    if noise is not None:
        y = y + (noise[None, :, :, None] if noise.ndim == 2 else noise).astype(x.dtype)
    return y
