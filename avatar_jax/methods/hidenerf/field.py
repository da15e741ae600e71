"""Sample points of a picture's rays, what they are made of, and the raw picture (paper 3.3, eq. 5; reference sections 2
and 5).

Points lie on a fixed lattice of rows, columns and samples, because the deformation network sees all of them as one
image; there is no second pass of samples.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.methods.hidenerf.appearance import Front, Planes, colours, look_up
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.hidenerf.parts import VolumeConfig
from avatar_jax.models.decoder import decode
from avatar_jax.render import marching
from avatar_jax.render.cameras import unpack_label
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.rays import sample_rays
from avatar_jax.render.renderer import in_chunks
from avatar_jax.render.sampling import stratified_depths
from avatar_jax.types import PyTree

NOTHING = 1e-4  # opacity; rays that meet less have no end


@flax.struct.dataclass
class Rays:
    """``origins``, ``directions`` [N,M,3] and ``depths`` [N,M,S] of N pictures with M = H W rays, rows first."""

    origins: jax.Array
    directions: jax.Array
    depths: jax.Array

    @property
    def points(self) -> jax.Array:
        """Sample points [N,M,S,3] in the world."""
        return self.origins[:, :, None] + self.depths[..., None] * self.directions[:, :, None]


@flax.struct.dataclass
class Rendered:
    """``features`` [N,M,C] in [-1, 1] (raw picture first), ``depth`` and ``opacity`` [N,M,1]."""

    features: jax.Array
    depth: jax.Array
    opacity: jax.Array


def rays_of(config: VolumeConfig, labels: jax.Array, size: int, jitter: jax.Array | None = None) -> Rays:
    """Rays and samples of cameras [N,25]: t_n = near + (n + u) (far - near) / S.

    Args:
        jitter: u, uniforms [N,M,S] in [0, 1); None: 0.5.
    """
    origins, directions = sample_rays(*unpack_label(labels), size)
    strata = RenderConfig(
        depth_resolution=config.samples,
        depth_resolution_importance=0,
        ray_start=config.near,
        ray_end=config.far - config.spacing,  # where the last stratum begins
    )
    return Rays(origins, directions, stratified_depths(strata, origins.shape[:2], None, jitter))


def unit_points(config: VolumeConfig, points: jax.Array) -> jax.Array:
    """World points [...,3] as q = 2 (p - pivot) / box_warp, within [-1, 1] in the box."""
    return (points - jnp.asarray(config.pivot)) * (2 / config.box_warp)


def positional_encoding(q: jax.Array, octaves: int) -> jax.Array:
    """[...,3] -> [...,6 L]: for each octave l the sines, then the cosines, of 2^l pi q."""
    angles = q[..., None, :] * (jnp.pi * 2.0 ** jnp.arange(octaves))[:, None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -2).reshape(*q.shape[:-1], -1)


def evaluate(
    params: PyTree,
    config: ModelConfig,
    planes: Planes,
    affine: jax.Array,
    points: jax.Array,
    displaced: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Colours [N,M,C] in (-0.001, 1.001) and raw densities [N,M,1] of points.

    With ``appearance.picture`` the last of the C numbers is the share that the picture has.

    Args:
        params: of the point network. points: [N,M,3], whose positions are encoded. displaced: [N,M,3], where features
            are looked up.
    """
    features = look_up(planes, affine, displaced)
    encoded = positional_encoding(unit_points(config.volume, points), config.volume.octaves)
    return decode(params, jnp.concatenate([features, encoded], -1))


def _with_picture(front: Front, weights: jax.Array, found: jax.Array, displaced: jax.Array) -> jax.Array:
    """Composited colours [N,M,C] of samples [N,M,S,C+1], whose last number is the share that the picture has in three.

    A ray looks once, from the mean of its displaced points: copies of the picture from several depths would not meet.
    """
    share = found[..., -1:]
    own = jnp.concatenate([(1 - share) * found[..., :3], found[..., 3:-1]], -1)
    mixed, shares, end = jnp.split(
        marching.composite(weights, jnp.concatenate([own, share, displaced], -1)),
        [own.shape[-1], own.shape[-1] + 1],
        -1,
    )
    opacity = jnp.maximum(weights.sum(-1, keepdims=True), NOTHING)
    return mixed.at[..., :3].add(shares * colours(front, end / opacity))


def render(
    params: PyTree,
    config: ModelConfig,
    planes: Planes,
    affine: jax.Array,
    rays: Rays,
    shift: jax.Array,
    front: Front | None = None,
) -> Rendered:
    """Composites N pictures.

    Args:
        params: of the point network. planes, affine, front: of N sources. shift: displacements [N,M,S,3], world units.
    """
    c = config.volume

    def some(rays: Rays, shift: jax.Array) -> Rendered:
        points, shape = rays.points, rays.depths.shape
        flat, displaced = (x.reshape(shape[0], -1, 3) for x in (points, points + shift))
        colors, density = evaluate(params, config, planes, affine, flat, displaced)
        weights = marching.interval_weights(density.reshape(shape), rays.depths)
        at_samples, colors = marching.sample_weights(weights), colors.reshape(*shape, -1)
        if front is None:
            colors = marching.composite(at_samples, colors)
        else:
            colors = _with_picture(front, at_samples, colors, displaced.reshape(*shape, 3))
        opacity = weights.sum(-1, keepdims=True)
        depth = jnp.clip(marching.mean_depth(weights, rays.depths)[..., None], c.near, c.far)
        return Rendered(marching.to_image_range(colors, opacity, config.fill > 0), depth, opacity)

    pictures, count = rays.depths.shape[:2]
    chunk = count if c.ray_chunk is None else max(1, c.ray_chunk // pictures)
    return some(rays, shift) if chunk >= count else in_chunks(some, chunk, rays, shift)
