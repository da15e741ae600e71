"""The Inception-v3 that FID is defined with, under the key names of the port of its 2015 weights (``pt_inception``).

Differences from an ordinary Inception-v3: 1008 classes, no auxiliary head, average pools that do not count the border,
a max pool in the last block, and plain bilinear resizing of the input.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.models.perception.layers import BatchNorm, Conv, Linear, avg_pool_3x3, max_pool
from avatar_jax.ops.resize import resize

SIZE = 299
FEATURES = 2048

# name -> (outputs, kernel, stride, padding)
_Branch = tuple[tuple[str, int, int | tuple[int, int], int, int | tuple[int, int]], ...]


class Unit(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU: keys ``conv``, ``bn``."""

    inputs: int
    features: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: int | tuple[int, int] = 0

    @nn.compact
    def __call__(self, x):
        x = Conv(self.inputs, self.features, self.kernel, self.stride, self.padding, name='conv')(x)
        return jax.nn.relu(BatchNorm(self.features, eps=1e-3, name='bn')(x))


def _chain(x: jax.Array, layers: _Branch) -> jax.Array:
    for name, features, kernel, stride, padding in layers:
        x = Unit(x.shape[-1], features, kernel, stride, padding, name=name)(x)
    return x


class _Parallel(nn.Module):
    """Branches side by side, concatenated in order; ``pool`` adds the pooling branch at the end."""

    branches: tuple[_Branch, ...]
    pool: str  # 'average' or 'max' with a 1x1 unit of pool_features, or 'reduce': the bare stride-2 max pool
    pool_features: int = 0

    @nn.compact
    def __call__(self, x):
        parts = [_chain(x, branch) for branch in self.branches]
        if self.pool == 'reduce':
            parts.append(max_pool(x, 3, 2))
        else:
            pooled = avg_pool_3x3(x) if self.pool == 'average' else max_pool(x, 3, 1, 1)
            parts.append(_chain(pooled, (('branch_pool', self.pool_features, 1, 1, 0),)))
        return jnp.concatenate(parts, -1)


class _Wide(nn.Module):
    """The last kind of block: two of its branches fork into a 1x3 and a 3x1 unit."""

    pool: str

    @nn.compact
    def __call__(self, x):
        parts = [_chain(x, (('branch1x1', 320, 1, 1, 0),))]
        for stem, ends in (
            ((('branch3x3_1', 384, 1, 1, 0),), ('branch3x3_2a', 'branch3x3_2b')),
            (
                (('branch3x3dbl_1', 448, 1, 1, 0), ('branch3x3dbl_2', 384, 3, 1, 1)),
                ('branch3x3dbl_3a', 'branch3x3dbl_3b'),
            ),
        ):
            y = _chain(x, stem)
            parts.append(_chain(y, ((ends[0], 384, (1, 3), 1, (0, 1)),)))
            parts.append(_chain(y, ((ends[1], 384, (3, 1), 1, (1, 0)),)))
        pooled = avg_pool_3x3(x) if self.pool == 'average' else max_pool(x, 3, 1, 1)
        parts.append(_chain(pooled, (('branch_pool', 192, 1, 1, 0),)))
        return jnp.concatenate(parts, -1)


def _mixed_a(pool_features: int, name: str) -> nn.Module:
    branches = (
        (('branch1x1', 64, 1, 1, 0),),
        (('branch5x5_1', 48, 1, 1, 0), ('branch5x5_2', 64, 5, 1, 2)),
        (('branch3x3dbl_1', 64, 1, 1, 0), ('branch3x3dbl_2', 96, 3, 1, 1), ('branch3x3dbl_3', 96, 3, 1, 1)),
    )
    return _Parallel(branches, 'average', pool_features, name=name)


def _mixed_c(width: int, name: str) -> nn.Module:
    wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    branches = (
        (('branch1x1', 192, 1, 1, 0),),
        (('branch7x7_1', width, 1, 1, 0), ('branch7x7_2', width, *wide), ('branch7x7_3', 192, *tall)),
        (
            ('branch7x7dbl_1', width, 1, 1, 0),
            ('branch7x7dbl_2', width, *tall),
            ('branch7x7dbl_3', width, *wide),
            ('branch7x7dbl_4', width, *tall),
            ('branch7x7dbl_5', 192, *wide),
        ),
    )
    return _Parallel(branches, 'average', 192, name=name)


class FIDInception(nn.Module):
    """Inception-v3 of the FID. Its ``fc`` (1008 classes) is carried along so that files match, and not used."""

    @nn.compact
    def __call__(self, x: jax.Array, blocks: bool = False):
        """Images [N,299,299,3] in [-1, 1] -> [N,2048], or with ``blocks`` also the three earlier feature maps."""
        taps = []
        x = _chain(x, (('Conv2d_1a_3x3', 32, 3, 2, 0), ('Conv2d_2a_3x3', 32, 3, 1, 0), ('Conv2d_2b_3x3', 64, 3, 1, 1)))
        x = max_pool(x, 3, 2)
        taps.append(x)
        x = max_pool(_chain(x, (('Conv2d_3b_1x1', 80, 1, 1, 0), ('Conv2d_4a_3x3', 192, 3, 1, 0))), 3, 2)
        taps.append(x)
        for pool_features, name in ((32, 'Mixed_5b'), (64, 'Mixed_5c'), (64, 'Mixed_5d')):
            x = _mixed_a(pool_features, name)(x)
        x = _Parallel(
            (
                (('branch3x3', 384, 3, 2, 0),),
                (('branch3x3dbl_1', 64, 1, 1, 0), ('branch3x3dbl_2', 96, 3, 1, 1), ('branch3x3dbl_3', 96, 3, 2, 0)),
            ),
            'reduce',
            name='Mixed_6a',
        )(x)
        for width, name in ((128, 'Mixed_6b'), (160, 'Mixed_6c'), (160, 'Mixed_6d'), (192, 'Mixed_6e')):
            x = _mixed_c(width, name)(x)
        taps.append(x)
        x = _Parallel(
            (
                (('branch3x3_1', 192, 1, 1, 0), ('branch3x3_2', 320, 3, 2, 0)),
                (
                    ('branch7x7x3_1', 192, 1, 1, 0),
                    ('branch7x7x3_2', 192, (1, 7), 1, (0, 3)),
                    ('branch7x7x3_3', 192, (7, 1), 1, (3, 0)),
                    ('branch7x7x3_4', 192, 3, 2, 0),
                ),
            ),
            'reduce',
            name='Mixed_7a',
        )(x)
        x = _Wide('average', name='Mixed_7b')(x)
        x = _Wide('max', name='Mixed_7c')(x)
        features = x.mean((1, 2))
        Linear(FEATURES, 1008, name='fc')(features)
        return (features, taps) if blocks else features


def fid_features(variables: Mapping, images: jax.Array, blocks: bool = False):
    """Features [N,2048] of images [N,H,W,3] in [0, 1] (8-bit values divided by 255), resized as FID defines it."""
    x = resize(images, SIZE, 'bilinear') * 2 - 1
    return FIDInception().apply(variables, x, blocks)
