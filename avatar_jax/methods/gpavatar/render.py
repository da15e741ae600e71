"""Two-pass volume rendering inside a cube (GPAvatar section 3.4): samples, compositing, and fine samples.

The opacity of a sample is its own (no step length). The first pass spreads samples evenly over each ray's way through
the cube, the second puts more where the first found something; both are evaluated by the one field and composited
together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.methods.gpavatar.cameras import cube_hits

# places [B,R,S,3], directions [B,R,3] -> opacity [B,R,S,1], values [B,R,S,C]
Field = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Draws(NamedTuple):
    """Random numbers of a training render: ``jitter`` [B,R,S+1] in [0,1) for the edges of the bins, ``bias`` [B,R] in
    (0,1] for the fine samples of each ray."""

    jitter: jax.Array
    bias: jax.Array

    @classmethod
    def from_key(cls, key: jax.Array, batch: int, num_rays: int, samples: int) -> Draws:
        """Fresh draws."""
        a, b = jax.random.split(key)
        return cls(jax.random.uniform(a, (batch, num_rays, samples + 1)), 1 - jax.random.uniform(b, (batch, num_rays)))


@struct.dataclass
class Rendered:
    """``coarse``, ``fine`` [B,R,C]; ``coarse_opacities`` [B,R,S] of the samples as the field gave them; ``opacity``,
    ``distance`` [B,R] (fine); ``weights``, ``depths`` [B,R,S'] of all samples, by depth.

    ``distance``: mean depth; what light passes is taken to stop at the farthest sample of the batch.
    """

    coarse: jax.Array
    fine: jax.Array
    coarse_opacities: jax.Array
    opacity: jax.Array
    distance: jax.Array
    weights: jax.Array
    depths: jax.Array


def bin_depths(near: jax.Array, far: jax.Array, samples: int, jitter: jax.Array | None = None) -> jax.Array:
    """Depths [...,S] of the middles of S equal bins between near and far [...]; ``jitter`` [...,S+1] moves their
    edges.
    """
    edges = near[..., None] + jnp.arange(samples + 1, dtype=jnp.float32) / samples * (far - near)[..., None]
    if jitter is not None:
        middles = (edges[..., 1:] + edges[..., :-1]) / 2
        low = jnp.concatenate([edges[..., :1], middles], -1)
        high = jnp.concatenate([middles, edges[..., -1:]], -1)
        edges = low + (high - low) * jitter
    return (edges[..., 1:] + edges[..., :-1]) / 2


def along(origins: jax.Array, directions: jax.Array, depths: jax.Array) -> jax.Array:
    """Places [...,S,3]."""
    return origins[..., None, :] + directions[..., None, :] * depths[..., None]


def light_weights(opacities: jax.Array) -> jax.Array:
    """Share [...,S] of each sample: its opacity times what all nearer ones let through. Its gradient is exact at 1."""
    through = jnp.cumprod(1 - opacities, -1)
    return opacities * jnp.concatenate([jnp.ones_like(through[..., :1]), through[..., :-1]], -1)


def composite(
    opacities: jax.Array, values: jax.Array, background: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples sorted by depth -> (values [...,C], opacity [...], weights [...,S]).

    Args:
        opacities: [...,S]. values: [...,S,C].
        background: what all channels have behind the samples.
    """
    weights = light_weights(opacities)
    found = jnp.einsum('...s,...sc->...c', weights, values, precision=jax.lax.Precision.HIGHEST)
    total = weights.sum(-1)
    # Limits that pass the full gradient when they are met exactly (jnp.clip halves it).
    opacity = jnp.where(total < 0, 0.0, jnp.where(total > 1, 1.0, total))
    if background:
        found = found + (1 - opacity)[..., None] * background
    return found, opacity, weights


def fine_depths(weights: jax.Array, depths: jax.Array, samples: int, bias: jax.Array | None = None) -> jax.Array:
    """Depths [...,n] where the first pass found something; no gradient passes.

    Args:
        weights: [...,S] of the first pass. depths: [...,S], ascending.
        samples: n. bias: [...] place of the samples within their share of the light, in (0,1]; None: the middle.
    """
    weights, depths = jax.lax.stop_gradient(weights) + 1e-5, jax.lax.stop_gradient(depths)
    cdf = jnp.cumsum(weights / weights.sum(-1, keepdims=True), -1)
    first, last = cdf[..., :1], cdf[..., -1:]
    within = 0.5 if bias is None else bias[..., None]
    u = first + (jnp.arange(samples) + within) * (last - first) / samples
    count = depths.shape[-1]
    passed = jnp.sum(cdf[..., None, :-1] <= u[..., None], -1)  # knots, the last one excluded, that are not beyond u
    low, high = jnp.maximum(passed - 1, 0), jnp.minimum(passed, count - 1)

    def at(x, index):
        return jnp.take_along_axis(x, index, -1)

    c0, c1, t0, t1 = at(cdf, low), at(cdf, high), at(depths, low), at(depths, high)
    flat = c1 - c0 < 1e-10
    share = jnp.where(flat, 0.5, (u - c0) / jnp.where(flat, 1.0, c1 - c0))
    t = t0 + share * (t1 - t0)
    middles = (t[..., 1:] + t[..., :-1]) / 2
    begin = jnp.maximum(t[..., :1] - (t[..., 1:2] - t[..., :1]) / 2, depths[..., :1])
    end = jnp.minimum(t[..., -1:] + (t[..., -1:] - t[..., -2:-1]) / 2, depths[..., -1:])
    edges = jnp.concatenate([begin, middles, end], -1)
    return (edges[..., 1:] + edges[..., :-1]) / 2


def merge(*samples: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sets of (depths [...,S], opacities [...,S], values [...,S,C]) -> one, sorted by depth."""
    depths, opacities, values = (jnp.concatenate(x, axis) for x, axis in zip(zip(*samples), (-1, -1, -2), strict=True))
    order = jnp.argsort(depths, -1, stable=True)
    return (
        jnp.take_along_axis(depths, order, -1),
        jnp.take_along_axis(opacities, order, -1),
        jnp.take_along_axis(values, order[..., None], -2),
    )


def render(
    field: Field,
    origins: jax.Array,
    directions: jax.Array,
    samples: int,
    fine_samples: int,
    draws: Draws | None = None,
    background: float = 0.0,
    span: tuple[float, float] | None = None,
    density: bool = False,
    more: jax.Array | None = None,
) -> Rendered:
    """Renders rays [B,R,3] through a field, coarse then fine.

    Args:
        field: evaluated twice, each time with all places of a pass (its own business to do that in portions).
        samples, fine_samples: per ray in the two passes.
        draws: random places, for training; None is deterministic.
        background: see ``composite``.
        span: constant (near, far) instead of the cube.
        more: [B,R,K] depths of further samples, evaluated with the fine ones.
        density: the field gives densities; a sample's opacity is 1 - exp(-density * distance to the next sample).
    """
    if span is None:
        near, far, _ = cube_hits(origins, directions)
    else:
        near, far = (jnp.full(directions.shape[:-1], x, jnp.float32) for x in span)
    depths = bin_depths(near, far, samples, None if draws is None else draws.jitter)
    opacities, values = field(along(origins, directions, depths), directions)
    first = depths, opacities[..., 0], values
    coarse, _, weights = composite(_opacities(first[1], depths, density), values, background)
    deeper = fine_depths(weights, depths, fine_samples, None if draws is None else draws.bias)
    if more is not None:
        deeper = jnp.concatenate([deeper, more], -1)
    more_opacities, more_values = field(along(origins, directions, deeper), directions)
    depths, together, values = merge(first, (deeper, more_opacities[..., 0], more_values))
    fine, opacity, weights = composite(_opacities(together, depths, density), values, background)
    distance = jnp.sum(weights * depths, -1) + (1 - opacity) * depths.max()
    return Rendered(coarse, fine, first[1], opacity, distance, weights, depths)


def _opacities(amount: jax.Array, depths: jax.Array, density: bool) -> jax.Array:
    if not density:
        return amount
    lengths = depths[..., 1:] - depths[..., :-1]
    return -jnp.expm1(-amount * jnp.concatenate([lengths, lengths[..., -1:]], -1))


def to_image(x: jax.Array, height: int, width: int) -> jax.Array:
    """[B,R,...] row by row -> [B,H,W,...]."""
    return x.reshape(x.shape[0], height, width, *x.shape[2:])


def depth_picture(distance: jax.Array) -> jax.Array:
    """Distances of a whole batch -> [0,1], by the batch's extrema (as released, so pictures of a batch are coupled)."""
    low, high = distance.min(), distance.max()
    return (distance - low) / (high - low)
