"""Blocks of encoder-decoder networks: convolution, group norm, activation; halving, doubling with a skip, residual.

Group norm keeps no statistics between calls: it is the same in training and inference and does not depend on how a
batch is divided among devices. Activations are NHWC, parameters ``weight`` [k,k,I,O] and ``bias`` [O] of convolutions
and [C] of norms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import reduce
from flax import linen as nn

from avatar_jax.models import host_draws
from avatar_jax.models.styleunet import lrelu
from avatar_jax.ops.conv import conv2d

ACTIVATIONS = {'relu': jax.nn.relu, 'lrelu': lrelu}
_LARGEST, _SMALLEST = 32, 4  # groups at most; channels per group at least


def num_groups(channels: int) -> int:
    """min(32, channels / 4), at least one."""
    return max(min(_LARGEST, channels // _SMALLEST), 1)


def group_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, groups: int, eps: float = 1e-5) -> jax.Array:
    """Each group of channels of each image [N,H,W,C] with mean 0 and (biased) variance 1, then scaled and shifted."""
    shape = x.shape
    if shape[-1] % groups:
        raise ValueError(f'group norm: {shape[-1]} channels do not divide into {groups} groups')
    grouped = x.astype(jnp.float32).reshape(*shape[:-1], groups, shape[-1] // groups)
    axes = (*range(1, len(shape) - 1), -1)
    mean = grouped.mean(axes, keepdims=True)
    variance = jnp.square(grouped - mean).mean(axes, keepdims=True)
    normal = ((grouped - mean) * jax.lax.rsqrt(variance + eps)).reshape(shape)
    return (normal * weight + bias).astype(x.dtype)


def avg_pool(x: jax.Array) -> jax.Array:
    """[N,H,W,C] -> [N,H/2,W/2,C], means of 2x2 pixels; sides are even."""
    return reduce(x, 'n (h a) (w b) c -> n h w c', 'mean', a=2, b=2)


def nearest_double(x: jax.Array) -> jax.Array:
    """[N,H,W,C] -> [N,2H,2W,C], each pixel four times."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


class Conv(nn.Module):
    """Convolution with bias; ``zero`` starts from nothing, else from He's variance."""

    inputs: int
    features: int
    kernel: int = 3
    stride: int = 1
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,inputs] -> [N,H/stride,W/stride,features]."""
        k = self.kernel
        deviation = 0.0 if self.zero else (2 / (self.inputs * k * k)) ** 0.5

        def init(key, shape):
            return jnp.zeros(shape) if self.zero else host_draws.normal(key, shape, deviation)

        weight = self.param('weight', init, (k, k, self.inputs, self.features))
        return conv2d(x, weight, self.stride, k // 2) + self.param('bias', nn.initializers.zeros, (self.features,))


class GroupNorm(nn.Module):
    """``group_norm`` with min(32, C / 4) groups."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,features] -> the same shape."""
        weight = self.param('weight', nn.initializers.ones, (self.features,))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return group_norm(x, weight, bias, num_groups(self.features))


class ConvNorm(nn.Module):
    """Convolution, norm, activation ('relu' or 'lrelu' with slope 0.2)."""

    inputs: int
    features: int
    kernel: int = 3
    stride: int = 1
    act: str = 'relu'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,inputs] -> [N,H/stride,W/stride,features]."""
        x = Conv(self.inputs, self.features, self.kernel, self.stride, name='conv')(x)
        return ACTIVATIONS[self.act](GroupNorm(self.features, name='norm')(x))


class Down(nn.Module):
    """``ConvNorm``, then half the size by averaging."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,inputs] -> [N,H/2,W/2,features]."""
        return avg_pool(ConvNorm(self.inputs, self.features, name='block')(x))


class Up(nn.Module):
    """Twice the size (nearest), a skip of that size beside it, ``ConvNorm``."""

    inputs: int
    skip: int
    features: int
    act: str = 'relu'

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        """[N,H,W,inputs] and [N,2H,2W,skip] -> [N,2H,2W,features]."""
        both = jnp.concatenate([nearest_double(x), skip], -1)
        return ConvNorm(self.inputs + self.skip, self.features, act=self.act, name='block')(both)


class ResBlock(nn.Module):
    """Norm, activation and convolution, twice, added to the input."""

    features: int
    act: str = 'relu'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,features] -> the same shape."""
        y = x
        for k in (1, 2):
            y = ACTIVATIONS[self.act](GroupNorm(self.features, name=f'norm{k}')(y))
            y = Conv(self.features, self.features, name=f'conv{k}')(y)
        return x + y
