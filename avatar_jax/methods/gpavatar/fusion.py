"""Multi tri-planes attention (paper section 3.3): one set of planes from those of any number of portraits.

Every pixel of the planes decides for itself how much each portrait counts: a learnt query is compared with keys of the
portraits' features, and the features themselves are averaged with the resulting weights.

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


def project(params: Mapping[str, Any], name: str, x: jax.Array, kind: str) -> jax.Array:
    """Queries or keys [..., C]: layer norm and three layers with exact GELU ('attention'), or one layer ('linear')."""
    if kind == 'linear':
        return linear(params[f'{name}_1'], x)
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
    return found / _away_from_zero(found.sum(1, keepdims=True))


def fuse(
    params: Mapping[str, Any], query: jax.Array, planes: jax.Array, scale: jax.Array, kind: str = 'attention'
) -> jax.Array:
    """Planes of V portraits [B,V,3,H,W,C] -> [B,3,H,W,C]. One portrait is returned as it is."""
    if planes.shape[1] == 1:
        return planes[:, 0]
    return jnp.einsum('bvphw,bvphwc->bphwc', attention_weights(params, query, planes, scale, kind), planes)


def _away_from_zero(x: jax.Array) -> jax.Array:
    """The paper divides by a sum that may vanish; its size is kept above 1e-6."""
    return jnp.where(jnp.abs(x) < 1e-6, jnp.where(x < 0, -1e-6, 1e-6), x)


@struct.dataclass
class FusionState:
    """What is known after some portraits: ``top`` [3,H,W] largest score, ``total`` [3,H,W], ``planes`` [3,H,W,C]."""

    top: jax.Array
    total: jax.Array
    planes: jax.Array

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> FusionState:
        """Before the first portrait; ``shape`` is that of the planes, (3,H,W,C)."""
        return cls(jnp.full(shape[:-1], -jnp.inf), jnp.zeros(shape[:-1]), jnp.zeros(shape))

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
        total = _away_from_zero(self.total) if kind == 'linear' else self.total
        return self.planes / total[..., None]
