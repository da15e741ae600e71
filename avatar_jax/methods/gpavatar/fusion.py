"""Multi tri-planes attention (paper section 3.3): one set of planes from those of any number of portraits.

Every pixel of the planes decides for itself how much each portrait counts: a learnt query is compared with keys of the
portraits' features, and the features themselves are averaged with the resulting weights.

The paper's 'linear' kind takes products of linear layers, divided by their sum over the portraits. With plain layers
the products have both signs and the sum may vanish: planes of fresh networks grew to 770 where it did. Layers are
followed here by ``elu + 1``, as in linear attention (Katharopoulos et al. 2020): products are positive, and what
portraits get are shares of one.

``fuse`` takes all portraits at once. ``FusionState`` takes them one by one and gives the same result in memory that
does not grow with their number (the softmax keeps a running maximum).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.methods.gpavatar.field import init_linear, linear

KINDS = ('attention', 'linear', 'mean')
LAYERS = (1, 3, 5)
LEAST = 1e-3  # of every query and key of 'linear', so that no share is lost to rounding
GELU_POWER = 0.425  # mean square of the GELU of a normal number


def init_fusion(kind: str, dim: int, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters of the two projections; 'mean' has none."""
    if kind == 'mean':
        return {}
    params: dict[str, Any] = {}
    for name, k in zip(('to_q_', 'to_k_'), jax.random.split(key), strict=True):
        layers = LAYERS if kind == 'attention' else LAYERS[:1]
        for layer, key_l in zip(layers, jax.random.split(k, len(layers)), strict=True):
            params[f'{name}_{layer}'] = init_linear(key_l, dim, dim)
        if kind == 'attention':
            params[f'{name}_0'] = {'weight': jnp.ones(dim), 'bias': jnp.zeros(dim)}
    return params


def keep_variance(params: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """First values with which portraits differ in their shares, of fresh ``init_fusion``.

    PyTorch's own shrink queries and keys in every layer, so that all portraits get the same share whatever they show
    (logits had a standard deviation of 0.003, with the sizes for procedural heads). With these, queries and keys have
    about unit variance, and so have the logits of 'attention'.
    """

    def scaled(path, value):
        name, leaf = (k.key for k in path)
        layer = int(name.rpartition('_')[2])
        if layer == 0:
            return value
        if leaf == 'bias':
            return jnp.zeros_like(value)
        return value * (3 / (1.0 if layer == 1 else GELU_POWER)) ** 0.5

    return params if kind == 'mean' else jax.tree_util.tree_map_with_path(scaled, dict(params))


def project(params: Mapping[str, Any], name: str, x: jax.Array, kind: str) -> jax.Array:
    """Queries or keys [..., C]: layer norm and three layers with exact GELU ('attention'), or one layer and ``elu + 1``
    ('linear'), which is positive.
    """
    if kind == 'linear':
        return jax.nn.elu(linear(params[f'{name}_1'], x)) + 1 + LEAST
    norm = params[f'{name}_0']
    mean = x.mean(-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * norm['weight'] + norm['bias']
    for layer in LAYERS[:-1]:
        x = jax.nn.gelu(linear(params[f'{name}_{layer}'], x), approximate=False)
    return linear(params[f'{name}_{LAYERS[-1]}'], x)


def scores(params: Mapping[str, Any], query: jax.Array, planes: jax.Array, scale: jax.Array, kind: str) -> jax.Array:
    """How well planes [..., 3,H,W,C] answer the query [3,H,W,C]: [..., 3,H,W]."""
    q, k = project(params, 'to_q_', query, kind), project(params, 'to_k_', planes, kind)
    return jnp.sum(q * k, -1) * scale


def attention_weights(
    params: Mapping[str, Any], query: jax.Array, planes: jax.Array, scale: jax.Array, kind: str = 'attention'
) -> jax.Array:
    """Shares of V portraits at every pixel: planes [B,V,3,H,W,C] -> [B,V,3,H,W]."""
    if kind == 'mean':
        return jnp.full(planes.shape[:-1], 1 / planes.shape[1])
    found = scores(params, query, planes, scale, kind)
    if kind == 'attention':
        return jax.nn.softmax(found, 1)
    return found / found.sum(1, keepdims=True)


def fuse(
    params: Mapping[str, Any], query: jax.Array, planes: jax.Array, scale: jax.Array, kind: str = 'attention'
) -> jax.Array:
    """Planes of V portraits [B,V,3,H,W,C] -> [B,3,H,W,C]. One portrait is returned as it is."""
    if planes.shape[1] == 1:
        return planes[:, 0]
    return jnp.einsum('bvphw,bvphwc->bphwc', attention_weights(params, query, planes, scale, kind), planes)


@struct.dataclass
class FusionState:
    """What is known after some portraits: ``top`` [3,H,W] largest score, ``total`` [3,H,W], ``planes`` [3,H,W,C]."""

    top: jax.Array
    total: jax.Array
    planes: jax.Array

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> FusionState:
        """Before the first portrait; ``shape`` is that of the planes, (3,H,W,C)."""
        # With a dtype, as what ``add`` returns has: else the first portrait would need a program of its own.
        return cls(jnp.full(shape[:-1], -jnp.inf, jnp.float32), jnp.zeros(shape[:-1]), jnp.zeros(shape))

    def add(
        self, params: Mapping[str, Any], query: jax.Array, planes: jax.Array, scale: jax.Array, kind: str = 'attention'
    ) -> FusionState:
        """After one more portrait with planes [3,H,W,C]."""
        if kind == 'mean':
            return FusionState(self.top, self.total + 1, self.planes + planes)
        found = scores(params, query, planes, scale, kind)
        if kind == 'linear':
            return FusionState(self.top, self.total + found, self.planes + found[..., None] * planes)
        top = jnp.maximum(self.top, found)
        kept, new = jnp.exp(self.top - top), jnp.exp(found - top)
        return FusionState(top, self.total * kept + new, self.planes * kept[..., None] + planes * new[..., None])

    def result(self, kind: str = 'attention') -> jax.Array:
        """The fused planes [3,H,W,C] of all portraits so far."""
        del kind
        return self.planes / self.total[..., None]
