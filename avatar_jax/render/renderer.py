"""The two-pass volume renderer over tri-planes (EG3D 3.1-3.2 and its release)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avatar_jax.ops.grid_sample import sample_planes_mean
from avatar_jax.render import marching
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.rays import ray_limits
from avatar_jax.render.sampling import RenderDraws, importance_depths, stratified_depths

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Features [..., C] (mean over the planes) -> colours [..., K] in [0, 1] and raw densities [..., 1].
Decode = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
# World points [N, M, 3] of what is seen -> where the planes are looked up for them (backward deformation).
Deform = Callable[[jax.Array], jax.Array]

_COUNTED = 192  # longest row that `sort_order` sorts by counting


@flax.struct.dataclass
class RayOutput:
    """What N images of M rays give.

    Attributes:
        features: [N, M, K] composited colours in [-1, 1]; depth: [N, M, 1] distance along the ray;
        opacity: [N, M, 1], 0 where a ray met nothing, up to 1.
    """

    features: Float[jax.Array, 'n m k']
    depth: Float[jax.Array, 'n m 1']
    opacity: Float[jax.Array, 'n m 1']


def decode_points(
    decode: Decode,
    planes: Float[jax.Array, 'n 3 h w c'],
    points: Float[jax.Array, 'n m 3'],
    config: RenderConfig,
    deform: Deform | None = None,
) -> tuple[Float[jax.Array, 'n m k'], Float[jax.Array, 'n m 1']]:
    """Colours [N, M, K] and raw densities [N, M, 1] at world points [N, M, 3]; ``planes`` [N, 3, H, W, C].

    ``deform`` moves the points first; None looks the planes up where the points are.
    """
    points = points if deform is None else deform(points)
    return decode(sample_planes_mean(planes, points, config.box_warp, config.plane_axes))


@jax.custom_vjp
def _permute(values, order, inverse):
    """``take_along_axis(values, order, -1)`` for permutations, whose gradient is a gather and not a slow scatter."""
    del inverse
    return jnp.take_along_axis(values, order, -1, mode='promise_in_bounds')


def _permute_fwd(values, order, inverse):
    return _permute(values, order, inverse), (order, inverse)


def _permute_bwd(residuals, cotangent):
    order, inverse = residuals
    return _permute(cotangent, inverse, order), None, None


_permute.defvjp(_permute_fwd, _permute_bwd)


def sort_order(
    values: Float[jax.Array, '*rows count'],
) -> tuple[Int[jax.Array, '*rows count'], Int[jax.Array, '*rows count']]:
    """The stable ascending order of the last axis, and each entry's rank in it (the inverse permutation)."""
    count = values.shape[-1]
    # Compilers work values out again wherever they are used, now and then rounded otherwise. Ranks that come of such
    # comparisons are no permutation, so the numbers are fixed first.
    values = jax.lax.optimization_barrier(values)
    if count > _COUNTED:
        order = jnp.argsort(values, axis=-1)
        return order, jnp.argsort(order, axis=-1)
    # Rays have few samples: counting the smaller ones is a stream of vector instructions, sorting is a loop of calls.
    place = np.arange(count)
    rank, order = jnp.zeros(values.shape, jnp.int32), jnp.zeros(values.shape, jnp.int32)
    for i in range(count):
        one = values[..., i : i + 1]
        rank += ((one < values) | ((one == values) & (i < place))).astype(jnp.int32)
    for i in range(count):
        order += jnp.where(rank[..., i : i + 1] == place, i, 0)
    return order, rank


def _march_rays(decode, planes, config, deform, origins, directions, limits, draws):
    """One bundle of rays: (composited [N, M, K], unclipped depth, opacity, lowest, highest sample depth [N, M])."""

    def look(depths, noise):
        points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
        colors, density = decode_points(decode, planes, points.reshape(points.shape[0], -1, 3), config, deform)
        colors, density = (a.astype(jnp.float32).reshape(*depths.shape, -1) for a in (colors, density))
        density = density[..., 0]
        if config.density_noise > 0 and noise is not None:
            density = density + noise * config.density_noise
        return colors, density

    depths = jax.lax.stop_gradient(stratified_depths(config, origins.shape[:2], limits, draws.jitter))
    colors, density = look(depths, draws.density_coarse)
    if config.depth_resolution_importance == 0:
        weights = marching.interval_weights(density, depths)
        composited = marching.composite(marching.sample_weights(weights), colors)
    else:
        # The first pass only steers the second: no gradient through its weights.
        steering = marching.interval_weights(*jax.lax.stop_gradient((density, depths)))
        fine = importance_depths(depths, steering, config.depth_resolution_importance, draws.importance)
        fine_colors, fine_density = look(fine, draws.density_fine)
        both = jnp.concatenate([depths, fine], -1)
        order, inverse = sort_order(both)
        depths = jnp.take_along_axis(both, order, -1)
        density = _permute(jnp.concatenate([density, fine_density], -1), order, inverse)
        weights = marching.interval_weights(density, depths)
        # Carrying the weights back to the unsorted samples is far cheaper than sorting all the colours.
        shares = _permute(marching.sample_weights(weights), inverse, order)
        split = config.depth_resolution
        composited = marching.composite(shares[..., :split], colors)
        composited += marching.composite(shares[..., split:], fine_colors)
    depth = marching.mean_depth(weights, depths)
    return composited, depth, weights.sum(-1), depths.min(-1), depths.max(-1)


def in_chunks(function, chunk, *inputs):
    """``function`` over axis 1 of the inputs [N, M, ...], ``chunk`` rays at a time, with one chunk's memory in both
    passes.
    """
    total = jax.tree.leaves(inputs)[0].shape[1]
    whole = total // chunk
    function = jax.checkpoint(function)

    def cut(array):
        return rearrange(array[:, : whole * chunk], 'n (parts rays) ... -> parts n rays ...', rays=chunk)

    def join(array):
        return rearrange(array, 'parts n rays ... -> n (parts rays) ...')

    outputs = jax.tree.map(join, jax.lax.map(lambda parts: function(*parts), jax.tree.map(cut, inputs)))
    if whole * chunk == total:
        return outputs
    rest = function(*jax.tree.map(lambda a: a[:, whole * chunk :], inputs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), outputs, rest)


def render_rays(
    decode: Decode,
    planes: Float[jax.Array, 'n 3 h w c'],
    origins: Float[jax.Array, 'n m 3'],
    directions: Float[jax.Array, 'n m 3'],
    config: RenderConfig,
    draws: RenderDraws | None = None,
    deform: Deform | None = None,
) -> RayOutput:
    """Renders rays through tri-planes.

    Args:
        decode: pure function from features to colours and raw densities (see `models.decoder.decode`).
        planes: [N, 3, H, W, C].
        origins, directions: [N, M, 3] world, unit directions.
        config: rendering options. With ``ray_chunk``, results are the same and memory is bounded; 'auto' limits and the
            range that depths are clipped to are taken over all rays of all images in either case.
        draws: random numbers (`RenderDraws`), or None for the deterministic rendering.
        deform: moves the samples of both passes before the planes are looked up; depths, compositing and the second
            pass's places stay those of the rays. It may hold arrays [N, ...] of the images: chunks cut along rays only,
            and its activations are part of a chunk's memory.

    Returns:
        `RayOutput`, float32.
    """
    draws = RenderDraws() if draws is None else draws
    origins, directions = origins.astype(jnp.float32), directions.astype(jnp.float32)
    limits = ray_limits(origins, directions, config.box_warp) if config.ray_start == 'auto' else None
    march = partial(_march_rays, decode, planes, config, deform)
    batch, rays = origins.shape[:2]
    chunk = rays if config.ray_chunk is None else max(1, config.ray_chunk // batch)
    inputs = (origins, directions, limits, draws)
    outputs = march(*inputs) if chunk >= rays else in_chunks(march, chunk, *inputs)
    composited, depth, opacity, lowest, highest = outputs
    opacity = opacity[..., None]
    return RayOutput(
        features=marching.to_image_range(composited, opacity, config.white_back),
        depth=marching.clip_depth(depth, lowest.min(), highest.max())[..., None],
        opacity=opacity,
    )
