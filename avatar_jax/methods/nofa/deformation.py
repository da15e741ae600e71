"""The deformation field (paper section 3.3): where a seen point is in the canonical volume.

``x_c = x_d + W(x_d; alpha) * D(x_d; alpha, beta)``: D-Net gives an offset from identity and expression coefficients,
W-Net a weight in (0, 1) of every place that depends on the identity alone, as skinning weights do. Both are small MLPs
of the encoded point. What depends on the picture alone enters through the first layer, so it is computed once for each
picture (``condition``) and added to the layer of every point.

The last layer of D-Net starts at zero: at first nothing is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.methods.nofa.config import DeformationConfig
from avatar_jax.models import host_draws
from avatar_jax.models.encoding import encoded_size, positional_encoding
from avatar_jax.types import PyTree


class _Layer(nn.Module):
    """Holds weight [I,O] and bias [O]; He's first weights, or zeros."""

    inputs: int
    features: int
    zero: bool = False

    @nn.compact
    def __call__(self):
        deviation = 0.0 if self.zero else (2 / self.inputs) ** 0.5
        weight = self.param(
            'weight', lambda key, shape: host_draws.normal(key, shape, deviation), (self.inputs, self.features)
        )
        return {'weight': weight, 'bias': self.param('bias', nn.initializers.zeros, (self.features,))}


def layer_sizes(
    encoded: int, condition: int, width: int, depth: int, skip: int | None, out: int
) -> list[tuple[int, int]]:
    """(inputs, outputs) of every layer of an MLP that reads the encoded point again at hidden layer ``skip``."""
    sizes = [(encoded + condition, width)]
    for i in range(1, depth):
        sizes.append((width + (encoded if i == skip else 0), width))
    return [*sizes, (width, out)]


class _Mlp(nn.Module):
    sizes: tuple[tuple[int, int], ...]
    zero_last: bool

    @nn.compact
    def __call__(self):
        last = len(self.sizes) - 1
        return {str(i): _Layer(*s, self.zero_last and i == last, name=str(i))() for i, s in enumerate(self.sizes)}


class DeformationField(nn.Module):
    """Parameters of both networks: ``dnet`` (111,491) and ``wnet`` (19,457), layers under their numbers."""

    config: DeformationConfig

    @nn.compact
    def __call__(self) -> dict[str, PyTree]:
        c = self.config
        d_sizes = layer_sizes(encoded_size(3, c.octaves), c.num_shape + c.num_expression, c.width, c.depth, c.skip, 3)
        out = {'dnet': _Mlp(tuple(d_sizes), True, name='dnet')()}
        if c.use_wnet:
            w_sizes = layer_sizes(encoded_size(3, c.w_octaves), c.num_shape, c.w_width, c.w_depth, None, 1)
            out['wnet'] = _Mlp(tuple(w_sizes), False, name='wnet')()
        return out


@flax.struct.dataclass
class Condition:
    """What N pictures add to the first layers: ``offset`` [N,width] of D-Net, ``weight`` [N,w_width] of W-Net."""

    offset: jax.Array
    weight: jax.Array | None


def condition(
    params: Mapping[str, PyTree],
    config: DeformationConfig,
    shape: jax.Array,
    expression: jax.Array,
    statistics: Mapping[str, jax.Array] | None = None,
) -> Condition:
    """The pictures' part of the first layers; once for each picture.

    Args:
        params: of ``DeformationField``.
        shape, expression: identity [N,num_shape] and expression [N,num_expression] coefficients.
        statistics: ``mean`` and ``std`` [num_shape + num_expression] by which they are standardised; None: as they are.
    """
    if shape.shape[-1] != config.num_shape or expression.shape[-1] != config.num_expression:
        raise ValueError(
            f'deformation: {shape.shape[-1]} identity and {expression.shape[-1]} expression coefficients; '
            f'{config.num_shape} and {config.num_expression} are expected'
        )
    both = jnp.concatenate([shape, expression], -1)
    if statistics is not None:
        both = (both - statistics['mean']) / statistics['std']
    if not config.use_identity:
        both = both.at[..., : config.num_shape].set(0)
    offset = _first(params['dnet'], encoded_size(3, config.octaves), both)
    weight = None
    if config.use_wnet:
        weight = _first(params['wnet'], encoded_size(3, config.w_octaves), both[..., : config.num_shape])
    return Condition(offset, weight)


def _first(layers: PyTree, encoded: int, coefficients: jax.Array) -> jax.Array:
    layer = layers['0']
    return jnp.matmul(coefficients, layer['weight'][encoded:]) + layer['bias']


def _run(layers: PyTree, encoded: jax.Array, added: jax.Array, skip: int | None) -> jax.Array:
    """An MLP of encoded points [N,M,E]; ``added`` [N,width] is the pictures' part of the first layer."""
    count = len(layers)
    x = jax.nn.relu(jnp.matmul(encoded, layers['0']['weight'][: encoded.shape[-1]]) + added[:, None])
    for i in range(1, count):
        layer = layers[str(i)]
        width = x.shape[-1]
        y = jnp.matmul(x, layer['weight'][:width]) + layer['bias']
        if i == skip and i < count - 1:
            y = y + jnp.matmul(encoded, layer['weight'][width:])
        x = jax.nn.relu(y) if i < count - 1 else y
    return x


def offsets(
    params: Mapping[str, PyTree], config: DeformationConfig, given: Condition, points: jax.Array, box_warp: float
) -> tuple[jax.Array, jax.Array]:
    """Offsets of D-Net [N,M,3] in world units (before the weights and the limit) and weights of W-Net [N,M,1] in (0,1).

    Args:
        points: [N,M,3] world; ``box_warp``: side of the cube that the planes cover.
    """
    unit = points * (2 / box_warp)
    encoded = positional_encoding(unit, max(config.octaves, config.w_octaves if config.use_wnet else 0))
    moved = _run(params['dnet'], encoded[..., : encoded_size(3, config.octaves)], given.offset, config.skip)
    if not config.use_wnet:
        return moved, jnp.ones((*points.shape[:-1], 1), points.dtype)
    weight = _run(params['wnet'], encoded[..., : encoded_size(3, config.w_octaves)], given.weight, None)
    return moved, jax.nn.sigmoid(weight)


def backward(
    params: Mapping[str, PyTree], config: DeformationConfig, given: Condition, box_warp: float
) -> Callable[[jax.Array], jax.Array]:
    """The deformation as the renderer takes it: world points [N,M,3] -> canonical ones."""

    def deform(points: jax.Array) -> jax.Array:
        moved, weight = offsets(params, config, given, points, box_warp)
        change = weight * moved
        if config.clip is not None:
            change = jnp.clip(change, -config.clip, config.clip)
        return points + change

    return deform
