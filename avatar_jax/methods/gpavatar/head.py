"""NeRF head: opacity and colour features of places in space, from tri-planes and the expression field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct

from avatar_jax.methods.gpavatar.field import (
    FieldConfig,
    Neighbours,
    expression_features,
    harmonic_encoding,
    init_field,
    init_linear,
    linear,
    neighbours_of,
    point_features,
    prepare_points,
    unit_vector,
)
from avatar_jax.models.styleunet import wide_sigmoid
from avatar_jax.ops.grid_sample import sample_planes_mean

SHARPNESS = 10.0  # beta of the softplus that makes densities positive
BOX = 2.0  # side of the cube that the planes cover
FASTER = 0.2  # scale of first values that shall learn faster
_BEFORE_RELU = ('feature_layers_0', 'feature_layers_2', 'rgb_layers_0', 'point_layers_0')


@dataclass(frozen=True)
class HeadConfig:
    """Widths of the head.

    Attributes:
        plane_channels: of the tri-planes. width: of the shared layers. color_width: of the colour layer.
        out_channels: colour features; the first three are RGB.
        view: the colour depends on the view direction (release). octaves: of its encoding.
    """

    plane_channels: int = 32
    width: int = 128
    color_width: int = 64
    out_channels: int = 32
    view: bool = True
    octaves: int = 4


@struct.dataclass
class Scene:
    """What the field is asked about, for B heads.

    Attributes:
        planes: [B,3,H,W,C].
        points: [B,P,3] posed head points in world units, or None for a field without points.
        expression: [B,E] coefficients, for a field that reads them.
    """

    planes: jax.Array
    points: jax.Array | None = None
    expression: jax.Array | None = None


def init_head(config: HeadConfig, field: FieldConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters, linear layers as PyTorch's."""
    k = iter(jax.random.split(key, 7))
    w, view = config.width, 3 * (2 * config.octaves + 1) if config.view else 0
    return {
        'points_querier': init_field(field, next(k)),
        'feature_layers_0': init_linear(next(k), config.plane_channels + field.feature_dim, w),
        'feature_layers_2': init_linear(next(k), w, w),
        'feature_layers_4': init_linear(next(k), w, w),
        'density_layers_0': init_linear(next(k), w, 1),
        'rgb_layers_0': init_linear(next(k), w + view, config.color_width),
        'rgb_layers_2': init_linear(next(k), config.color_width, config.out_channels),
    }


def keep_variance(params: Mapping[str, Any]) -> dict[str, Any]:
    """First values with which differences of the features reach the colour (He's scale, no biases), of fresh
    ``init_head``.

    PyTorch's own shrink them by more than half in every layer. The points' features, which Adam moves by as much in a
    step as any other number, start small, so that they learn faster.
    """

    def scaled(path, value):
        *_, layer, kind = (k.key for k in path)
        if layer == 'points_feature':
            return FASTER * value
        return jnp.zeros_like(value) if kind == 'bias' else value * (6**0.5 if layer in _BEFORE_RELU else 3**0.5)

    return jax.tree_util.tree_map_with_path(scaled, params)


def positive(x: jax.Array) -> jax.Array:
    """softplus of sharpness 10: log(1 + e^(10 x)) / 10, and x itself where 10 x > 20."""
    scaled = SHARPNESS * x
    return jnp.where(scaled > 20, x, jnp.logaddexp(jnp.minimum(scaled, 20.0), 0.0) / SHARPNESS)


def decode(
    params: Mapping[str, Any],
    config: HeadConfig,
    features: jax.Array,
    places: jax.Array,
    directions: jax.Array,
    density: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Features [...,C+F] of places [...,3] seen along directions [...,3] -> opacity [...,1] in [0,1), colour [...,O].

    The opacity belongs to the sample, not to a length: there is no step size in it. It is 0 outside the open cube.
    ``density``: return the density (per unit of length, at least 0) instead, for the paper's volume rendering.
    """
    z = jax.nn.relu(linear(params['feature_layers_0'], features))
    z = jax.nn.relu(linear(params['feature_layers_2'], z))
    z = linear(params['feature_layers_4'], z)
    inside = jnp.all(jnp.abs(places) < BOX / 2, -1, keepdims=True)
    amount = positive(linear(params['density_layers_0'], z)) * inside
    if config.view:
        view = harmonic_encoding(unit_vector(directions), config.octaves)
        z = jnp.concatenate([z, jnp.broadcast_to(view, (*z.shape[:-1], view.shape[-1]))], -1)
    color = linear(params['rgb_layers_2'], jax.nn.relu(linear(params['rgb_layers_0'], z)))
    return amount if density else -jnp.expm1(-amount), jnp.concatenate(
        [wide_sigmoid(color[..., :3]), color[..., 3:]], -1
    )


def query(
    params: Mapping[str, Any],
    config: HeadConfig,
    field: FieldConfig,
    scene: Scene,
    places: jax.Array,
    directions: jax.Array,
    chunk: int | None = None,
    density: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Opacity (or density) [B,R,S,1] and colour [B,R,S,O] at S places on each of R rays.

    Args:
        places: [B,R,S,3]: *all* places of the call, since released weights are normalised over them.
        directions: [B,R,3] of the rays.
        chunk: rays evaluated at once; the result does not depend on it. None: all.
    """
    batch, rays, samples = places.shape[:3]
    querier = params['points_querier']
    prepared, neighbours = None, Neighbours(None, None)
    if field.with_points:
        prepared = prepare_points(querier, field)
        neighbours = neighbours_of(places.reshape(batch, -1, 3), scene.points, field)

    def part(places, directions, index):
        flat = places.reshape(batch, -1, 3)
        moving = expression_features(querier, scene.expression, flat.shape[1]) if field.with_expression else 0.0
        if field.with_points:
            found = Neighbours(index.reshape(batch, flat.shape[1], -1), neighbours.sums)
            moving += point_features(querier, prepared, field, flat, scene.points, found)
        still = sample_planes_mean(scene.planes, flat, BOX, 'orthogonal')
        features = jnp.concatenate([still, moving], -1).reshape(*places.shape[:3], -1)
        return decode(params, config, features, places, directions[:, :, None], density)

    index = neighbours.index
    if index is None:
        index = jnp.zeros((batch, rays * samples, 0), jnp.int32)
    index = index.reshape(batch, rays, samples, -1)
    if chunk is None or chunk >= rays:
        return part(places, directions, index)

    def split(x):  # [B,R,...] -> [n,B,chunk,...]; the last rays are repeated to fill the last chunk
        x = jnp.pad(x, ((0, 0), (0, -rays % chunk), *((0, 0),) * (x.ndim - 2)), mode='edge')
        return rearrange(x, 'n (parts rays) ... -> parts n rays ...', rays=chunk)

    found = jax.lax.map(lambda a: jax.checkpoint(part)(*a), (split(places), split(directions), split(index)))
    return tuple(rearrange(x, 'parts n rays ... -> n (parts rays) ...')[:, :rays] for x in found)
