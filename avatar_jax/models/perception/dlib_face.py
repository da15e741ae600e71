"""The face recognition network of the dlib library (2017): 29 convolutions, 128 numbers of a face.

As its author describes it: a residual network like ResNet-34 with fewer layers and half the filters, trained so that
faces of one person lie within 0.6 of each other and those of two people further apart. It is the one recognition
network whose weights anybody may use for anything (CC0).

The cut-out is that of its training: eyes and nose base on the library's five points, a quarter of the side around.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.models.perception.layers import Conv, Linear, max_pool

SIDE = 150
SAME_PERSON = 0.6  # distance below which two faces count as one person's, as its author gives it
MEAN = (122.782, 117.001, 104.298)
_WIDTHS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))  # features and blocks of each stage, from the input on


class _Affine(nn.Module):
    """weight [C], bias [C]: batch norm after its training."""

    features: int

    @nn.compact
    def __call__(self, x):
        weight = self.param('weight', nn.initializers.ones, (self.features,))
        return x * weight + self.param('bias', nn.initializers.zeros, (self.features,))


class DlibFace(nn.Module):
    """Faces [N,150,150,3] in [-1,1], cut as ``losses.identity.aligned_dlib`` does, -> [N,128]."""

    @nn.compact
    def __call__(self, x):
        x = ((x + 1) * 127.5 - jnp.asarray(MEAN, x.dtype)) / 256
        layer, inputs = 0, 3

        def unit(x, inputs, features, kernel, stride):
            nonlocal layer
            padding = 0 if stride > 1 else kernel // 2
            x = Conv(inputs, features, kernel, stride, padding, True, name=f'conv{layer}')(x)
            x = _Affine(features, name=f'affine{layer}')(x)
            layer += 1
            return x

        x = max_pool(nn.relu(unit(x, inputs, 32, 7, 2)), 3, 2)
        inputs = 32
        for stage, (features, blocks) in enumerate(_WIDTHS):
            for block in range(blocks):
                halved = stage > 0 and block == 0
                y = nn.relu(unit(x, inputs, features, 3, 2 if halved else 1))
                y = unit(y, features, features, 3, 1)
                x = nn.relu(_padded_sum(y, _halved(x) if halved else x))
                inputs = features
        return Linear(256, 128, use_bias=False, name='fc')(x.mean((1, 2)))


def _halved(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels; an odd row or column at the end is dropped."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _padded_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum of two [N,H,W,C] whose sizes may differ: the smaller one is continued by zeros."""
    shape = tuple(max(m, n) for m, n in zip(a.shape, b.shape))
    a, b = (jnp.pad(v, [(0, m - n) for m, n in zip(shape, v.shape)]) if v.shape != shape else v for v in (a, b))
    return a + b


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Euclidean distance [...] of embeddings [..., 128]; below ``SAME_PERSON`` they count as one person's."""
    return jnp.sqrt(jnp.square(a - b).sum(-1))
