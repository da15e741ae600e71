"""StyleUNet: a U-Net whose features steer a StyleGAN2 decoder (GPAvatar, canonical encoder and super-resolution).

The input goes down to 4 x 4, which gives the style code, and up again with skips; at every resolution on the way up two
small heads predict a scale and a shift of the decoder's features. Unlike StyleGAN2 there is neither an equalised
learning rate nor a blur filter: layers are PyTorch's plain ones and resampling is bilinear.

Module names are the published keys with the dots before numbers written as underscores (``conv_body_down.0.conv1`` is
``conv_body_down_0/conv1``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.checks import Check
from avatar_jax.models import host_draws
from avatar_jax.models.perception.layers import flatten_chw
from avatar_jax.ops.activations import SQRT2, normalize_2nd_moment
from avatar_jax.ops.conv import conv2d
from avatar_jax.ops.modulated import modulated_conv2d
from avatar_jax.ops.resize import double, halve, resize

SLOPE = 0.2
# Sigmoids are widened by a thousandth on both sides so that 0 and 1 can be reached.
WIDEN, LOWER = 1.002, 0.001


def _normal(deviation: float = 1.0):
    return lambda key, shape, dtype=jnp.float32: host_draws.normal(key, shape, deviation)


def _uniform(fan_in: int):
    """PyTorch's default of weights and biases."""
    return lambda key, shape, dtype=jnp.float32: host_draws.uniform(key, shape, fan_in**-0.5)


@dataclass(frozen=True)
class StyleUNetConfig:
    """Sizes of one StyleUNet.

    Attributes:
        in_size: side of the input; twice ``out_size`` (one more block down), or at most ``out_size`` (resized up
            first).
        out_size: side of the output, a power of two of at least 8.
        in_dim, out_dim: channels of input and output.
        activation: end with the widened sigmoid.
        channel_base, channel_max: the U-Net has min(channel_max, channel_base / r) channels at resolution r, the
            decoder twice as many.
        style_dim: length of the style code. mapping_layers: of the network that maps it.
    """

    in_size: int = 512
    out_size: int = 256
    in_dim: int = 3
    out_dim: int = 96
    activation: bool = False
    channel_base: int = 8192
    channel_max: int = 256
    style_dim: int = 512
    mapping_layers: int = 8

    def __post_init__(self):
        check = Check(self)
        check.power_of_two(8, 'out_size')
        check.need(
            self.in_size <= self.out_size or self.in_size == 2 * self.out_size,
            'in_size',
            f'use {2 * self.out_size}, or at most {self.out_size}',
        )

    @property
    def levels(self) -> int:
        """log2 of the output size, minus 2: blocks on the way up."""
        return self.out_size.bit_length() - 3

    def channels(self, resolution: int) -> int:
        """Of the U-Net at a resolution; the decoder has twice as many."""
        return max(1, min(self.channel_max, self.channel_base // resolution))

    @property
    def noise_sizes(self) -> tuple[int, ...]:
        """Side of each noise map in the order of use."""
        return tuple(2 ** ((j + 5) // 2) for j in range(2 * self.levels + 1))


def lrelu(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, without gain."""
    return jnp.where(x >= 0, x, SLOPE * x)


def wide_sigmoid(x: jax.Array) -> jax.Array:
    """sigmoid(x) stretched to (-0.001, 1.001)."""
    return jax.nn.sigmoid(x) * WIDEN - LOWER


class Conv(nn.Module):
    """Convolution of kernel 1 or 3 that keeps the size; weight [k,k,I,O], bias [O]."""

    inputs: int
    features: int
    kernel: int = 3
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        k = self.kernel
        fan_in = self.inputs * k * k
        y = conv2d(x, self.param('weight', _uniform(fan_in), (k, k, self.inputs, self.features)), 1, k // 2)
        if not self.use_bias:
            return y
        return y + self.param('bias', _uniform(fan_in), (self.features,))


class Linear(nn.Module):
    """weight [I,O], bias [O]. ``kind``: 'plain', 'mapping' (for a leaky ReLU) or 'modulation' (bias 1)."""

    inputs: int
    features: int
    kind: str = 'plain'

    @nn.compact
    def __call__(self, x):
        gain = {'mapping': 2 / (1 + SLOPE**2), 'modulation': 1.0}.get(self.kind)
        init = _uniform(self.inputs) if gain is None else _normal((gain / self.inputs) ** 0.5)
        weight = self.param('weight', init, (self.inputs, self.features))
        bias = {'plain': _uniform(self.inputs), 'mapping': nn.initializers.zeros, 'modulation': nn.initializers.ones}
        return jnp.matmul(x, weight) + self.param('bias', bias[self.kind], (self.features,))


class ResBlock(nn.Module):
    """Two convolutions with a resize by 1/2 or 2 between them, beside a 1x1 convolution of the resized input."""

    inputs: int
    features: int
    up: bool

    @nn.compact
    def __call__(self, x):
        change = double if self.up else halve
        y = lrelu(Conv(self.inputs, self.inputs, name='conv1')(x))
        y = lrelu(Conv(self.inputs, self.features, name='conv2')(change(y)))
        # A 1x1 convolution without bias and a resize commute: the cheaper order.
        skip = Conv(self.inputs, self.features, 1, use_bias=False, name='skip')
        return y + (change(skip(x)) if self.up else skip(change(x)))


class ModulatedConv(nn.Module):
    """Convolution modulated by a style [B,S]; ``upsample`` enlarges the input bilinearly first."""

    inputs: int
    features: int
    style_dim: int
    kernel: int = 3
    demodulate: bool = True
    upsample: bool = False

    @nn.compact
    def __call__(self, x, style):
        k = self.kernel
        init = _normal((self.inputs * k * k) ** -0.5)
        weight = self.param('weight', init, (k, k, self.inputs, self.features))
        styles = Linear(self.style_dim, self.inputs, 'modulation', name='modulation')(style)
        x = double(x) if self.upsample else x
        return modulated_conv2d(x, weight, styles, padding=k // 2, demodulate=self.demodulate)


class StyleConv(nn.Module):
    """Modulated convolution, noise [B,H,W,1] (or None) of a learnt strength, bias, leaky ReLU."""

    inputs: int
    features: int
    style_dim: int
    upsample: bool = False

    @nn.compact
    def __call__(self, x, style, noise):
        y = ModulatedConv(self.inputs, self.features, self.style_dim, upsample=self.upsample, name='modulated_conv')(
            x, style
        )
        strength = self.param('weight', nn.initializers.zeros, (1,))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        y = y * SQRT2
        return lrelu((y if noise is None else y + strength * noise) + bias)


class ToRGB(nn.Module):
    """1x1 modulated convolution to the output, plus the enlarged output of the level below."""

    inputs: int
    features: int
    style_dim: int

    @nn.compact
    def __call__(self, x, style, skip=None):
        conv = ModulatedConv(self.inputs, self.features, self.style_dim, 1, demodulate=False, name='modulated_conv')
        y = conv(x, style) + self.param('bias', nn.initializers.zeros, (self.features,))
        return y if skip is None else y + double(skip)


class Constant(nn.Module):
    """A learnt array under the name ``weight``."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        return self.param('weight', _normal(), self.shape)


class StyleDecoder(nn.Module):
    """StyleGAN2 synthesis from a style code, with scales and shifts of the features at every resolution."""

    config: StyleUNetConfig

    @nn.compact
    def __call__(self, style, scales, shifts, noise):
        """[B,S], per level [B,r,r,D(r)] twice, noise maps (or None each) -> [B,out,out,out_dim]."""
        c = self.config
        style = normalize_2nd_moment(style)
        for k in range(c.mapping_layers):
            style = lrelu(Linear(c.style_dim, c.style_dim, 'mapping', name=f'style_mlp_{2 * k + 1}')(style))
        width, noise = 2 * c.channels(4), iter(noise)
        x = jnp.broadcast_to(Constant((4, 4, width), name='constant_input')(), (style.shape[0], 4, 4, width))
        x = StyleConv(width, width, c.style_dim, name='style_conv1')(x, style, next(noise))
        rgb = ToRGB(width, c.out_dim, c.style_dim, name='to_rgb1')(x, style)
        for i in range(c.levels):
            before, width = width, 2 * c.channels(2 ** (i + 3))
            up = StyleConv(before, width, c.style_dim, upsample=True, name=f'style_convs_{2 * i}')
            x = up(x, style, next(noise)) * scales[i] + shifts[i]
            x = StyleConv(width, width, c.style_dim, name=f'style_convs_{2 * i + 1}')(x, style, next(noise))
            rgb = ToRGB(width, c.out_dim, c.style_dim, name=f'to_rgbs_{i}')(x, style, rgb)
        return rgb


class StyleUNet(nn.Module):
    """The whole network; see the module's text."""

    config: StyleUNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, noise: Sequence[jax.Array] | None = None) -> jax.Array:
        """Images [B,h,w,in_dim] -> [B,out_size,out_size,out_dim].

        Args:
            x: side ``in_size``, or anything smaller than ``out_size``.
            noise: one map [B or 1, r, r, 1] for each of ``config.noise_sizes``; None adds no noise.
        """
        c = self.config
        if x.shape[1] < c.out_size or x.shape[2] < c.out_size:
            x = resize(x, c.out_size)
        first = c.channels(max(c.in_size, c.out_size))
        if c.in_size > c.out_size:
            x = lrelu(Conv(c.in_dim, first, 1, name='conv_body_first_0')(x))
            x = ResBlock(first, c.channels(c.out_size), up=False, name='conv_body_first_1')(x)
        else:
            x = lrelu(Conv(c.in_dim, first, 1, name='conv_body_first')(x))
        skips, resolution = [], c.out_size
        for i in range(c.levels):
            x = ResBlock(c.channels(resolution), c.channels(resolution // 2), up=False, name=f'conv_body_down_{i}')(x)
            resolution //= 2
            skips.append(x)
        deep = c.channels(4)
        x = lrelu(Conv(deep, deep, name='final_conv')(x))
        style = Linear(16 * deep, c.style_dim, name='final_linear')(flatten_chw(x))
        scales, shifts = [], []
        for i in range(c.levels):
            width = c.channels(2 ** (i + 3))
            block = ResBlock(c.channels(2 ** (i + 2)), width, up=True, name=f'conv_body_up_{i}')
            x = block(x + skips[-1 - i])
            for found, kind in ((scales, 'scale'), (shifts, 'shift')):
                y = lrelu(Conv(width, width, name=f'condition_{kind}_{i}_0')(x))
                found.append(Conv(width, 2 * width, name=f'condition_{kind}_{i}_2')(y))
        noise = [None] * len(c.noise_sizes) if noise is None else noise
        y = StyleDecoder(c, name='stylegan_decoder')(style, scales, shifts, noise)
        return wide_sigmoid(y) if c.activation else y


def init_params(key: jax.Array, config: StyleUNetConfig) -> dict[str, Any]:
    """Fresh parameters, without running the network."""
    image = jax.ShapeDtypeStruct((1, config.in_size, config.in_size, config.in_dim), jnp.float32)
    return StyleUNet(config).lazy_init(key, image)['params']


def keep_variance(params: Mapping[str, Any]) -> dict[str, Any]:
    """First values with which the input's differences reach the output: He's scale in the U-Net, without biases.

    PyTorch's own first values shrink activations at every layer and add biases, so that at first the output hardly
    depends on the input (by 2 % of its spread, with the sizes for procedural heads); short trainings cannot afford
    that.

    Args:
        params: fresh parameters of ``init_params``.
    """
    he = (6 / (1 + SLOPE**2)) ** 0.5  # from a variance of 1 / (3 fan_in) to that of He for the leaky ReLU

    def scaled(path, value):
        names = [k.key for k in path]
        if names[0] == 'stylegan_decoder':  # its outputs of all resolutions are added
            return value * 0.3 if _is_to_rgb(names) else value
        if names[-1] == 'bias':
            return jnp.zeros_like(value)
        if 'conv2' in names or 'skip' in names:  # two branches that are added
            return value * (he if 'conv2' in names else 3**0.5) / SQRT2
        return value * (3**0.5 if names[0] == 'final_linear' or names[0].endswith('_2') else he)

    return jax.tree_util.tree_map_with_path(scaled, params)


def silence(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters, but the decoder's output is 0 (with ``activation``: 0.5) for every input."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if _is_to_rgb([k.key for k in path]) else x, params
    )


def _is_to_rgb(names: Sequence[str]) -> bool:
    return (
        names[0] == 'stylegan_decoder' and names[1].startswith('to_rgb') and names[2:] == ['modulated_conv', 'weight']
    )


def draw_noise(key: jax.Array, config: StyleUNetConfig, batch: int) -> list[jax.Array]:
    """Fresh noise maps [batch, r, r, 1] of all layers."""
    keys = jax.random.split(key, len(config.noise_sizes))
    return [host_draws.normal(k, (batch, r, r, 1)) for k, r in zip(keys, config.noise_sizes, strict=True)]


def stored_noise(maps: Mapping[str, Any], config: StyleUNetConfig) -> list[jax.Array]:
    """Noise maps [1, r, r, 1] kept with the weights as ``noise0``, ``noise1``, ..."""
    return [jnp.asarray(maps[f'noise{j}']) for j in range(len(config.noise_sizes))]


def init_noise(key: jax.Array, config: StyleUNetConfig) -> dict[str, jax.Array]:
    """Maps to be kept with the weights."""
    return {f'noise{j}': value for j, value in enumerate(draw_noise(key, config, 1))}
