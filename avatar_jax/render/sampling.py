"""Where along a ray the volume is looked at: stratified first, then where the first pass found matter.

Every random number comes in from outside as `RenderDraws`, so that a rendering can be jittered (training), repeated
exactly, or deterministic (``None``: the middle of every stratum and evenly spaced quantiles).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.render.config import RenderConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@flax.struct.dataclass
class RenderDraws:
    """Random numbers of one rendering of N images with M rays each; a part that is None is deterministic.

    Attributes:
        jitter: [N, M, S] uniforms in [0, 1), the place inside each stratum.
        importance: [N, M, I] uniforms in [0, 1), the quantiles of the second pass.
        density_coarse, density_fine: [N, M, S] and [N, M, I] standard normals, scaled by ``density_noise``.
    """

    jitter: jax.Array | None = None
    importance: jax.Array | None = None
    density_coarse: jax.Array | None = None
    density_fine: jax.Array | None = None

    @classmethod
    def from_key(cls, key: jax.Array | None, config: RenderConfig, batch: int, rays: int) -> RenderDraws:
        """Fresh draws for a rendering; all None when ``key`` is None."""
        if key is None:
            return cls()
        shapes = [(batch, rays, config.depth_resolution), (batch, rays, config.depth_resolution_importance)]
        keys = jax.random.split(key, 4)
        uniforms = [jax.random.uniform(k, s) for k, s in zip(keys[:2], shapes)]
        noisy = config.density_noise > 0
        normals = [jax.random.normal(k, s) if noisy else None for k, s in zip(keys[2:], shapes)]
        return cls(*uniforms, *normals)


def stratified_depths(
    config: RenderConfig,
    shape: tuple[int, ...],
    limits: tuple[jax.Array, jax.Array] | None = None,
    jitter: jax.Array | None = None,
) -> jax.Array:
    """Depths of the first pass, ascending along the last axis.

    Args:
        config: its range, number of samples S and spacing.
        shape: leading shape, usually (N, M).
        limits: near and far [*shape, 1] of each ray (see `rays.ray_limits`) when the range is 'auto', else None.
        jitter: [*shape, S] uniforms; each sample moves *forwards* by that share of a stratum, so that the last one can
            pass ray_end by up to a stratum. None means 0.5.

    Returns:
        [*shape, S] distances along the unit ray.
    """
    count = config.depth_resolution
    jitter = jnp.full((*shape, count), 0.5, jnp.float32) if jitter is None else jitter
    if config.ray_start == 'auto':
        near, far = limits
        steps = jnp.asarray(np.arange(count, dtype=np.float32) / np.float32(count - 1))
        return near + (far - near) * steps + jitter * ((far - near) / (count - 1))
    if config.disparity_space_sampling:
        steps = jnp.asarray(np.linspace(0, 1, count, dtype=np.float32)) + jitter * (1 / (count - 1))
        return 1 / (1 / config.ray_start * (1 - steps) + 1 / config.ray_end * steps)
    steps = jnp.asarray(np.linspace(config.ray_start, config.ray_end, count).astype(np.float32))
    return steps + jitter * ((config.ray_end - config.ray_start) / (count - 1))


def smooth_weights(weights: Float[jax.Array, '*rays intervals']) -> Float[jax.Array, '*rays intervals']:
    """The first pass's weights [..., S-1], widened (max of neighbours), averaged, and raised by 0.01."""
    outside = jnp.full((*weights.shape[:-1], 1), -jnp.inf, weights.dtype)
    padded = jnp.concatenate([outside, weights, outside], -1)
    widened = jnp.maximum(padded[..., :-1], padded[..., 1:])
    return 0.5 * (widened[..., :-1] + widened[..., 1:]) + 0.01


def inverse_cdf(bins: jax.Array, density: jax.Array, u: jax.Array) -> jax.Array:
    """Samples a piecewise-constant density.

    Args:
        bins: [..., K+1] edges, or more than that: only the first K+1 are used.
        density: [..., K] non-negative weights of the bins; 1e-5 is added to each.
        u: [..., I] quantiles in [0, 1].

    Returns:
        [..., I] places. Steps of the cumulative distribution below 1e-5 are not divided by.
    """
    density = density + 1e-5
    density = density / density.sum(-1, keepdims=True)
    last = density.shape[-1]
    up_to = np.triu(np.ones((last, last + 1), np.float32), 1)
    cdf = jnp.matmul(density, up_to, precision=jax.lax.Precision.HIGHEST)  # 0, then the cumulative sums
    # Counting is a stream of vector instructions; a binary search is a loop of gathers.
    above = jnp.zeros(u.shape, jnp.int32)
    for i in range(last + 1):
        above += (cdf[..., i : i + 1] <= u).astype(jnp.int32)
    low, high = jnp.maximum(above - 1, 0), jnp.minimum(above, last)
    bins = bins[..., : last + 1]
    cdf_low, cdf_high = (jnp.take_along_axis(cdf, i, -1) for i in (low, high))
    bin_low, bin_high = (jnp.take_along_axis(bins, i, -1) for i in (low, high))
    width = cdf_high - cdf_low
    return bin_low + (u - cdf_low) / jnp.where(width < 1e-5, 1.0, width) * (bin_high - bin_low)


def importance_depths(
    depths: Float[jax.Array, '*rays samples'],
    weights: Float[jax.Array, '*rays samples-1'],
    count: int,
    u: Float[jax.Array, '*rays count'] | None = None,
) -> Float[jax.Array, '*rays count']:
    """Depths of the second pass, drawn where the first pass put its weight (EG3D's release, to the letter).

    Args:
        depths: [..., S] of the first pass, S >= 4.
        weights: [..., S-1] of the first pass's intervals.
        count: I, samples to draw.
        u: [..., I] uniforms; None takes evenly spaced ones, (i + 1/2)/I.

    Returns:
        [..., I], not sorted when ``u`` is not. No gradient flows back.

    The first and last smoothed weight are dropped and the weight of interval j+1 is used between the midpoints j and
    j+1, so that the last midpoint is never reached: the release's code takes one weight less than the formula that it
    was derived from expects, and its models were trained that way.
    """
    depths, weights = jax.lax.stop_gradient((depths, weights))
    if depths.shape[-1] < 4:
        raise ValueError(f'importance sampling needs at least 4 samples per ray, got {depths.shape[-1]}')
    if u is None:
        u = jnp.broadcast_to((jnp.arange(count, dtype=jnp.float32) + 0.5) / count, (*depths.shape[:-1], count))
    middles = 0.5 * (depths[..., 1:] + depths[..., :-1])
    return jax.lax.stop_gradient(inverse_cdf(middles, smooth_weights(weights)[..., 1:-1], u))


def draw_pixels(key: jax.Array, importance: Float[jax.Array, 'h w'], count: int) -> Int[jax.Array, ' count']:
    """Random pixels of a picture (row * W + column), drawn with probability in proportion to ``importance``.

    The draws are spread evenly over the cumulated importance, so that no region is missed or met twice by chance.
    """
    sums = jnp.cumsum(importance.reshape(-1))
    places = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count * sums[-1]
    return jnp.minimum(jnp.searchsorted(sums, places, side='right'), sums.size - 1)
