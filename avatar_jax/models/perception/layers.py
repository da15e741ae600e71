"""Ordinary layers with the parameter names and conventions of PyTorch files: conv, linear, batch norm, PReLU, pools.

Channel counts are given explicitly, so a network's parameter tree follows from its definition alone. Activations are
NHWC; a flatten before a linear layer goes through C,H,W order, so that the weight columns stay as in the files.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax

from avatar_jax.ops.conv import conv2d

_he = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')

# ------------------------------------------------------------------------------------------------------ pure functions


def prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
    """``max(x, 0) + slope * min(x, 0)``; slope has one entry or one for each channel (last axis)."""
    return jnp.maximum(x, 0) + slope * jnp.minimum(x, 0)


def normalize_batch(
    x: jax.Array, weight: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, eps: float = 1e-5
) -> jax.Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis."""
    # One scale and one shift, rounded as PyTorch does it: activations near the kink of a ReLU then fall on the same
    # side.
    scale = weight * (1 / jnp.sqrt(var + eps))
    return x * scale + (bias - mean * scale)


def batch_statistics(
    x: jax.Array,
    running_mean: jax.Array,
    running_var: jax.Array,
    momentum: float = 0.1,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Statistics of one training step: ``(mean, biased variance, new running mean, new running variance)``.

    The running variance moves towards the *unbiased* one, by the fraction ``momentum``. With ``axis_name`` the batch is
    that of all devices along the axis.
    """
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    mean = x.mean(axes)
    if axis_name is not None:
        mean, count = lax.pmean(mean, axis_name), count * lax.psum(1, axis_name)
    var = jnp.square(x - mean).mean(axes)
    if axis_name is not None:
        var = lax.pmean(var, axis_name)
    unbiased = var * (count / max(count - 1, 1))
    return (
        mean,
        var,
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """Maximum over square windows of [N,H,W,C]; the border counts as minus infinity, partial windows are dropped.

    Written as maxima of strided slices, whose gradient is fast on the CPU; equal maxima share the gradient.
    """
    if padding:
        pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - window) // stride * stride
        x = functools.reduce(jnp.maximum, [lax.slice_in_dim(x, k, k + last + 1, stride, axis) for k in range(window)])
    return x


def avg_pool_3x3(x: jax.Array) -> jax.Array:
    """Average over 3x3 windows, stride 1, same size; at the border only the pixels inside count."""
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    both = []
    for y in (x, ones):
        padded = jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        both.append(rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:])
    return both[0] / both[1]


def flatten_chw(x: jax.Array) -> jax.Array:
    """[N,H,W,C] -> [N,C*H*W]."""
    return rearrange(x, 'n h w c -> n (c h w)')


# --------------------------------------------------------------------------------------------------- parameter holders


class Conv(nn.Module):
    """weight [kh,kw,I,O], bias [O]."""

    inputs: int
    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    padding: int | tuple[int, int] = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        weight = self.param('weight', _he, (*kernel, self.inputs, self.features))
        y = conv2d(x, weight, self.stride, self.padding)
        return y + self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else y


class Linear(nn.Module):
    """weight [I,O], bias [O]; ``init_scale`` multiplies the usual initial weights."""

    inputs: int
    features: int
    use_bias: bool = True
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(2.0 * self.init_scale**2, 'fan_in', 'normal')
        y = x @ self.param('weight', init, (self.inputs, self.features))
        return y + self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else y


class BatchNorm(nn.Module):
    """weight, bias and the collection ``batch_stats`` with running_mean, running_var; normalises the last axis.

    With ``train`` the batch's own statistics are used (with ``axis_name`` those of all devices' batches together), and
    the running ones move if the collection is mutable.
    """

    features: int
    eps: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x, train: bool = False, axis_name: str | None = None):
        shape = (self.features,)
        weight = self.param('weight', nn.initializers.ones, shape)
        bias = self.param('bias', nn.initializers.zeros, shape)
        mean = self.variable('batch_stats', 'running_mean', jnp.zeros, shape)
        var = self.variable('batch_stats', 'running_var', jnp.ones, shape)
        if not train:
            return normalize_batch(x, weight, bias, mean.value, var.value, self.eps)
        batch_mean, batch_var, new_mean, new_var = batch_statistics(x, mean.value, var.value, self.momentum, axis_name)
        if self.is_mutable_collection('batch_stats') and not self.is_initializing():
            mean.value, var.value = new_mean, new_var
        return normalize_batch(x, weight, bias, batch_mean, batch_var, self.eps)


class PReLU(nn.Module):
    """weight [1] or [C]."""

    features: int = 1

    @nn.compact
    def __call__(self, x):
        return prelu(x, self.param('weight', nn.initializers.constant(0.25), (self.features,)))


class Named(nn.Module):
    """Children held under given names, applied one after the other: the keys ``<this>.<name>.<parameter>``."""

    children: tuple[tuple[str, nn.Module], ...]

    @nn.compact
    def __call__(self, x):
        for name, child in self.children:
            x = child.clone(name=name)(x)
        return x
