"""Coefficient regressor: a ResNet-50 that reads a 224 x 224 aligned face and gives the 257 coefficients.

Deep3DFaceRecon's network (v1.5 bottlenecks: the stride is on the 3 x 3 convolution). Parameters are named as in its
checkpoints: ``net_recon.backbone.layer1.0.conv1.weight`` is ``params['backbone']['layer1']['0']['conv1']['weight']``
after the ``net_recon.`` prefix is taken off.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avatar_jax.configure import from_plain
from avatar_jax.io.weights import check_tree, load_weights
from avatar_jax.models.perception.layers import BatchNorm, Conv, max_pool
from avatar_jax.parallel import as_arrays

METHOD = 'deep3d_recon'
"""Of weight files that hold a regressor."""

EXPANSION = 4
HEADS = (80, 64, 80, 3, 27, 2, 1)  # identity, expression, albedo, angle, light, (tx, ty), tz
PREFIX = 'net_recon.'


@dataclass(frozen=True)
class ReconConfig:
    """Widths of the regressor; the defaults are ResNet-50 (24,034,625 parameters)."""

    stem: int = 64
    planes: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    heads: tuple[int, ...] = HEADS


class Projection(nn.Module):
    """1 x 1 strided convolution and batch norm of a shortcut, named '0' and '1'."""

    inputs: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, inputs] -> [B, H', W', features]."""
        x = Conv(self.inputs, self.features, 1, self.stride, 0, name='0')(x)
        return BatchNorm(self.features, name='1')(x, train)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (strided), 1 x 1 convolutions with batch norm, added to the shortcut."""

    inputs: int
    planes: int
    stride: int = 1
    project: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, inputs] -> [B, ceil(H / stride), ceil(W / stride), 4 planes]."""
        p, out = self.planes, EXPANSION * self.planes
        y = nn.relu(BatchNorm(p, name='bn1')(Conv(self.inputs, p, 1, 1, 0, name='conv1')(x), train))
        y = nn.relu(BatchNorm(p, name='bn2')(Conv(p, p, 3, self.stride, 1, name='conv2')(y), train))
        y = BatchNorm(out, name='bn3')(Conv(p, out, 1, 1, 0, name='conv3')(y), train)
        if self.project:
            x = Projection(self.inputs, out, self.stride, name='downsample')(x, train)
        return nn.relu(x + y)


class Stage(nn.Module):
    """Bottlenecks named '0', '1', ...; the first one strides and projects where the shape changes."""

    inputs: int
    planes: int
    blocks: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, inputs] -> [B, H', W', 4 planes]."""
        inputs, out = self.inputs, EXPANSION * self.planes
        for k in range(self.blocks):
            stride = self.stride if k == 0 else 1
            project = stride != 1 or inputs != out
            x = Bottleneck(inputs, self.planes, stride, project, name=str(k))(x, train)
            inputs = out
        return x


class Backbone(nn.Module):
    """ResNet without its classifier."""

    config: ReconConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """[B, H, W, 3] -> feature maps 'stem', 'layer1', ... in the order of computation."""
        cfg = self.config
        x = Conv(3, cfg.stem, 7, 2, 3, name='conv1')(x)
        x = max_pool(nn.relu(BatchNorm(cfg.stem, name='bn1')(x, train)), 3, 2, 1)
        features, inputs = {'stem': x}, cfg.stem
        for k, (planes, blocks) in enumerate(zip(cfg.planes, cfg.blocks, strict=True), 1):
            x = Stage(inputs, planes, blocks, 1 if k == 1 else 2, name=f'layer{k}')(x, train)
            features[f'layer{k}'], inputs = x, EXPANSION * planes
        return features


class _ZeroLinear(nn.Module):
    """A 1 x 1 convolution on pooled features, zero-initialised."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param('weight', nn.initializers.zeros, (1, 1, self.inputs, self.features))
        return x @ weight[0, 0] + self.param('bias', nn.initializers.zeros, (self.features,))


class Heads(nn.Module):
    """The seven output layers, named '0' ... '6'."""

    inputs: int
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, inputs] -> [B, sum(sizes)]."""
        parts = [_ZeroLinear(self.inputs, size, name=str(k))(x) for k, size in enumerate(self.sizes)]
        return jnp.concatenate(parts, axis=-1)


class ReconNet(nn.Module):
    """The whole regressor."""

    config: ReconConfig = ReconConfig()

    def setup(self):
        self.backbone = Backbone(self.config)
        self.final_layers = Heads(EXPANSION * self.config.planes[-1], self.config.heads)

    def features(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Feature maps of images [B, 224, 224, 3] in **[0, 1]**, by name."""
        return self.backbone(images, train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Aligned RGB images [B, 224, 224, 3] in **[0, 1]**, without further normalisation -> coefficients [B, 257].

        With ``train`` the batch's own statistics normalise, and ``batch_stats`` moves if it is mutable.
        """
        last = list(self.backbone(images, train).values())[-1]
        return self.final_layers(last.mean((1, 2)))


@lru_cache(maxsize=4)
def abstract_recon(config: ReconConfig) -> dict[str, Any]:
    """Names and shapes of the regressor's variables; do not change what it returns."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(lambda x: ReconNet(config).init(jax.random.key(0), x), image)


def load_recon(path: str | os.PathLike) -> tuple[dict[str, Any], ReconConfig]:
    """Variables and configuration of a weight file.

    Raises:
        UserError: missing, damaged or foreign file, or weights that do not fit their configuration.
    """
    weights = load_weights(path, method=METHOD)
    config = from_plain(ReconConfig, weights.config)
    check_tree(path, weights.variables, abstract_recon(config))
    return as_arrays(weights.variables), config
