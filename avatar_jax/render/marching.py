"""Compositing along rays: EG3D's midpoint rule.

Colours, densities and depths of neighbouring samples are averaged, the raw density is made positive by
softplus(x - 1), and there is no last infinite interval: a ray that leaves the samples keeps the rest of its light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + e^x), in the form that is fast on a CPU and exact for large |x|."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def interval_weights(
    densities: Float[jax.Array, '*rays samples'], depths: Float[jax.Array, '*rays samples']
) -> Float[jax.Array, '*rays samples-1']:
    """Shares of the light of the S-1 intervals between S samples.

    Args:
        densities: [..., S] raw (any sign); depths: [..., S] ascending.

    Returns:
        [..., S-1], float32.
    """
    density = softplus(0.5 * (densities[..., :-1] + densities[..., 1:]) - 1)
    alpha = 1 - jnp.exp(-density * (depths[..., 1:] - depths[..., :-1]))
    # The product of all earlier (1 - alpha + 1e-10), as a matrix product of logarithms: a cumulative product is as
    # fast, but takes XLA several times longer to compile.
    earlier = np.triu(np.ones((alpha.shape[-1],) * 2, np.float32), 1)
    # The floor holds where a compiler adds 1 and 1e-10 first: log 0 times a zero of the matrix would be NaN.
    passed = jnp.log(jnp.maximum(1 - alpha + 1e-10, 1e-10))
    through = jnp.exp(jnp.matmul(passed, earlier, precision=jax.lax.Precision.HIGHEST))
    return alpha * through


def sample_weights(weights: Float[jax.Array, '*rays intervals']) -> Float[jax.Array, '*rays intervals+1']:
    """Interval weights [..., S-1] -> sample weights [..., S]: an interval shares its weight between its two ends."""
    half = 0.5 * weights
    none = jnp.zeros_like(half[..., :1])
    return jnp.concatenate([half, none], -1) + jnp.concatenate([none, half], -1)


def composite(shares: Float[jax.Array, 'n m s'], colors: Float[jax.Array, 'n m s c']) -> Float[jax.Array, 'n m c']:
    """``sum_s shares[..., s] * colors[..., s, :]`` in full float32: [N, M, S], [N, M, S, C] -> [N, M, C]."""
    return jnp.einsum('nms,nmsc->nmc', shares, colors, precision=jax.lax.Precision.HIGHEST)


def mean_depth(
    weights: Float[jax.Array, '*rays intervals'], depths: Float[jax.Array, '*rays intervals+1']
) -> Float[jax.Array, '*rays']:
    """Weighted mean [...] of the interval middles; +inf where no weight at all was met (no gradient there)."""
    total = weights.sum(-1)
    empty = total == 0
    middles = 0.5 * (depths[..., :-1] + depths[..., 1:])
    mean = (weights * middles).sum(-1) / jnp.where(empty, 1.0, total)
    return jnp.where(empty | jnp.isnan(mean), jnp.inf, mean)


def clip_depth(depth: jax.Array, lowest: jax.Array, highest: jax.Array) -> jax.Array:
    """Brings depths, infinite ones included, into the range of the samples of *all* rays of *all* images.

    That range couples the images of a batch (for rays that met nothing): the release does so and its depth images
    show it. `lowest` and `highest` are the extrema over every sampled depth.
    """
    return jnp.clip(depth, lowest, highest)


def to_image_range(colors: jax.Array, opacity: jax.Array, white_back: bool) -> jax.Array:
    """Composited colours in [0, 1] -> [-1, 1]; what light is left is white when ``white_back``, else black."""
    if white_back:
        colors = colors + 1 - opacity
    return 2 * colors - 1


def march(
    colors: Float[jax.Array, 'n m s c'],
    densities: Float[jax.Array, 'n m s 1'],
    depths: Float[jax.Array, 'n m s 1'],
    white_back: bool = False,
) -> tuple[Float[jax.Array, 'n m c'], Float[jax.Array, 'n m 1'], Float[jax.Array, 'n m s-1 1']]:
    """Composites samples that are sorted by depth.

    Args:
        colors: [N, M, S, C] in [0, 1]; densities: [N, M, S, 1] raw; depths: [N, M, S, 1].
        white_back: see `to_image_range`.

    Returns:
        colors [N, M, C] in [-1, 1]; depth [N, M, 1]; weights [N, M, S-1, 1] (their sum is the opacity).
    """
    depths = depths[..., 0]
    weights = interval_weights(densities[..., 0], depths)
    composited = composite(sample_weights(weights), colors)
    composited = to_image_range(composited, weights.sum(-1, keepdims=True), white_back)
    depth = clip_depth(mean_depth(weights, depths), depths.min(), depths.max())
    return composited, depth[..., None], weights[..., None]
