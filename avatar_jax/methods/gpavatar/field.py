"""Point-based expression field (paper section 3.2): what the moving head points say about any place in space.

Every point of the head mesh has a learnt feature. A place asks its K nearest points; each answers with a small network
of its feature and of the direction to it, and the answers are added with weights that fall with the distance.

Two exact rearrangements cut the arithmetic to a third: the first layer acts separately on feature and direction, so its
share of the feature is computed once for each point and not for each neighbour; and the last layer is linear, so it is
applied once to the weighted sum.

The released weights normalise 1/d^2 over *all places of one call* (for each neighbour rank), which makes a value depend
on all others. ``neighbours_of`` therefore returns the sums over the full set first; after that places can be evaluated
in any portions with the same result. The paper's form, over the K neighbours, needs no sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.models import host_draws
from avatar_jax.ops.knn import SEARCHES, nearest, squared_distances

SMALLEST = 1e-12  # squared distance: a place on a point would be 0/0
KINDS = ('points', 'expression', 'both')


@dataclass(frozen=True)
class FieldConfig:
    """The expression field.

    Attributes:
        kind: 'points'; 'expression', which hands the coefficients to the head directly (the paper's ablation); or
            'both', their sum: where the points are those of a mean head, they stand beside a person's own lids, and
            what small things do is known better from the coefficients.
        points: of the head mesh that the weights belong to. choice: of them, where the mesh has more: 'even' (random),
            or 'strained', more of them where expressions stretch the mesh. feature_dim: of each point's learnt feature,
            and of the result. hidden: width between the two layers.
        layers: 2 (release) or 1 (paper).
        neighbours: K.
        octaves: of the encoding of the direction: 4 gives 27 numbers (release), 6 gives 39 (paper).
        direction: 'unit', the unit vector from the point to the place (release), or 'offset', the vector from the
            place to the point (paper).
        normalise: weights sum to one over 'samples' (release: all places of a call, for each neighbour rank) or over
            'neighbours' (paper).
        power: of the distance in the weights: 2 (release) or 1 (paper).
        reference_samples: with 'samples', how many places the weights were trained with; sums of another number of
            places are then scaled to it. None takes the sums as they are.
        max_distance: neighbours farther away have no weight (the ablation without global sampling); None: no limit.
        expression_dim: number of coefficients, unless ``kind='points'``.
        knn, tile: see ``ops.knn.nearest``.
    """

    kind: str = 'points'
    points: int = 5023
    choice: str = 'even'
    feature_dim: int = 32
    hidden: int = 64
    layers: int = 2
    neighbours: int = 8
    octaves: int = 4
    direction: str = 'unit'
    normalise: str = 'samples'
    power: int = 2
    reference_samples: int | None = None
    max_distance: float | None = None
    expression_dim: int = 64
    knn: str = 'brute'
    tile: int = 1024

    def __post_init__(self):
        check = Check(self, 'field')
        check.one_of('kind', *KINDS)
        check.one_of('choice', 'even', 'strained')
        check.one_of('direction', 'unit', 'offset')
        check.one_of('normalise', 'samples', 'neighbours')
        check.one_of('power', 1, 2)
        check.one_of('layers', 1, 2)
        check.one_of('knn', *SEARCHES)
        check.at_least(1, 'points', 'octaves')
        check.within(1, self.points, 'neighbours')

    @property
    def with_points(self) -> bool:
        """Whether places ask the head's points."""
        return self.kind != 'expression'

    @property
    def with_expression(self) -> bool:
        """Whether the coefficients come in directly."""
        return self.kind != 'points'

    @property
    def encoding_dim(self) -> int:
        """Numbers that describe a direction."""
        return 3 * (2 * self.octaves + 1)


class Neighbours(NamedTuple):
    """``index`` [B,M,K] of the nearest points; ``sums`` [B,K] of 1/d^power over all places, or None."""

    index: jax.Array
    sums: jax.Array | None


def harmonic_encoding(x: jax.Array, octaves: int) -> jax.Array:
    """[..., D] -> [..., D*(2*octaves+1)]: sin(2^j x_i), then cos(2^j x_i) (i first, then j), then x."""
    scaled = (x[..., None] * (2.0 ** np.arange(octaves, dtype=np.float32))).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled), x], -1)


def unit_vector(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) along the last axis, with a finite gradient at zero."""
    square = jnp.sum(x**2, -1, keepdims=True)
    zero = square == 0
    return x / jnp.maximum(jnp.sqrt(jnp.where(zero, 1.0, square)), 1e-12)


def init_field(config: FieldConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters: point features N(0, 1), linear layers as PyTorch's."""
    keys = jax.random.split(key, 3)
    params = {}
    if config.with_expression:
        own = jax.random.fold_in(keys[0], 1) if config.with_points else keys[0]
        params['expression_layer'] = init_linear(own, config.expression_dim, config.feature_dim)
    if not config.with_points:
        return params
    width = config.hidden if config.layers == 2 else config.feature_dim
    params['points_feature'] = {'weight': host_draws.normal(keys[0], (config.points, config.feature_dim))}
    params['point_layers_0'] = init_linear(keys[1], config.feature_dim + config.encoding_dim, width)
    if config.layers == 2:
        params['point_layers_2'] = init_linear(keys[2], config.hidden, config.feature_dim)
    return params


def init_linear(key: jax.Array, inputs: int, features: int) -> dict[str, jax.Array]:
    """weight [I,O] and bias [O], uniform in +-1/sqrt(I)."""
    a, b = jax.random.split(key)
    limit = inputs**-0.5
    return {
        'weight': host_draws.uniform(a, (inputs, features), limit),
        'bias': host_draws.uniform(b, (features,), limit),
    }


def linear(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """[..., I] -> [..., O]."""
    return jnp.matmul(x, params['weight']) + params['bias']


def prepare_points(params: Mapping[str, Any], config: FieldConfig) -> jax.Array:
    """[P,H]: the first layer's share of every point's feature. It depends on the weights alone."""
    first = params['point_layers_0']
    return jnp.matmul(params['points_feature']['weight'], first['weight'][: config.feature_dim]) + first['bias']


def neighbours_of(places: jax.Array, points: jax.Array, config: FieldConfig) -> Neighbours:
    """First phase, over all places [B,M,3] of a call: nearest points [B,P,3] and, if the weights need them, the
    sums.
    """
    index = jnp.stack(
        [nearest(q, p, config.neighbours, config.knn, config.tile) for q, p in zip(places, points, strict=True)]
    )
    if config.normalise != 'samples':
        return Neighbours(index, None)
    sums = jax.vmap(lambda q, p, i: jnp.sum(closeness(squared_distances(q, p, i), config), 0))(places, points, index)
    if config.reference_samples is not None:
        sums = sums * (config.reference_samples / places.shape[1])
    return Neighbours(index, sums)


def closeness(square: jax.Array, config: FieldConfig) -> jax.Array:
    """Weights before normalisation of squared distances."""
    near = 1 / jnp.maximum(square, SMALLEST)
    near = near if config.power == 2 else jnp.sqrt(near)
    return near if config.max_distance is None else jnp.where(square <= config.max_distance**2, near, 0.0)


def point_features(
    params: Mapping[str, Any],
    prepared: jax.Array,
    config: FieldConfig,
    places: jax.Array,
    points: jax.Array,
    neighbours: Neighbours,
) -> jax.Array:
    """Second phase, for any portion of the places.

    Args:
        prepared: ``prepare_points``. places: [B,M,3]. points: [B,P,3].
        neighbours: of these places (the sums being those over the full set).

    Returns:
        [B,M,feature_dim].
    """
    index = neighbours.index
    offset = places[:, :, None] - jax.vmap(lambda p, i: p[i])(points, index)  # [B,M,K,3]
    near = closeness(jnp.sum(offset**2, -1), config)
    if config.normalise == 'samples':
        weight = near / jnp.maximum(neighbours.sums, 1e-30)[:, None]
    else:
        weight = near / jnp.maximum(near.sum(-1, keepdims=True), 1e-30)
    direction = unit_vector(offset) if config.direction == 'unit' else -offset
    encoded = harmonic_encoding(direction, config.octaves)
    first = params['point_layers_0']['weight'][config.feature_dim :]
    answer = jnp.matmul(encoded, first) + prepared[index]
    if config.layers == 1:
        return jnp.einsum('bmk,bmkh->bmh', weight, answer)
    total = jnp.einsum('bmk,bmkh->bmh', weight, jax.nn.relu(answer))
    last = params['point_layers_2']
    return jnp.matmul(total, last['weight']) + last['bias'] * weight.sum(-1, keepdims=True)


def expression_features(params: Mapping[str, Any], expression: jax.Array, count: int) -> jax.Array:
    """[B,E] coefficients -> [B,count,feature_dim], the same at every place."""
    found = linear(params['expression_layer'], expression)[:, None]
    return jnp.broadcast_to(found, (found.shape[0], count, found.shape[-1]))
