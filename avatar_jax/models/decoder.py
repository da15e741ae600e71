"""EG3D's small decoder: tri-plane features of a point -> colour features and density."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def decode(params: dict[str, Any], features: jax.Array, lr_mul: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Decodes features that were already averaged over the planes.

    Args:
        params: ``{'net': {'0': {'weight', 'bias'}, '2': {'weight', 'bias'}}}``, weights [in, out] before the gain
            lr_mul/sqrt(in).
        features: [..., C].
        lr_mul: learning-rate multiplier that the weights were stored with.

    Returns:
        colours [..., K] in (-0.001, 1.001) and raw densities [..., 1], float32.
    """
    first, second = params['net']['0'], params['net']['2']
    # Full float32 always: densities are compared and exponentiated along rays.
    hidden = _linear(first, features.astype(jnp.float32), lr_mul)
    # Softplus; log(1 + e) in place of log1p(e) is off by 6e-8 at most and a quarter faster on a CPU.
    hidden = jnp.maximum(hidden, 0) + jnp.log(1 + jnp.exp(-jnp.abs(hidden)))
    out = _linear(second, hidden, lr_mul)
    return jax.nn.sigmoid(out[..., 1:]) * (1 + 2 * 0.001) - 0.001, out[..., :1]


def _linear(layer, x, lr_mul):
    weight = layer['weight'] * (lr_mul / layer['weight'].shape[0] ** 0.5)
    return jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST) + layer['bias'] * lr_mul


class _Linear(nn.Module):
    """Holds the parameters of one layer."""

    in_features: int
    out_features: int
    lr_mul: float

    def setup(self):
        shape = (self.in_features, self.out_features)
        self.weight = self.param('weight', lambda key: jax.random.normal(key, shape) / self.lr_mul)
        self.bias = self.param('bias', nn.initializers.zeros, (self.out_features,))

    def __call__(self):
        return {'weight': self.weight, 'bias': self.bias}


class _Layers(nn.Module):
    features: int
    hidden: int
    out: int
    lr_mul: float

    @nn.compact
    def __call__(self):
        first = _Linear(self.features, self.hidden, self.lr_mul, name='0')()
        return {'0': first, '2': _Linear(self.hidden, self.out, self.lr_mul, name='2')()}


class OSGDecoder(nn.Module):
    """Parameters of `decode`. Calling it returns them, since the renderer needs a pure function inside its loops.

    Attributes:
        features: C, plane channels; hidden: width; out: K, colour channels; lr_mul: learning-rate multiplier.
    """

    features: int = 32
    hidden: int = 64
    out: int = 32
    lr_mul: float = 1.0

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return {'net': _Layers(self.features, self.hidden, self.out + 1, self.lr_mul, name='net')()}
