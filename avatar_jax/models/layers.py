"""Layers with equalised learning rate, and the style-modulated layers and blocks of StyleGAN2.

Modules hold float32 parameters under the names of the published checkpoints and call the functions of ``ops``.
``dtype`` is the type of activations and convolutions (float32 or bfloat16); style affines and demodulation sums are
float32 always. ``conv_clamp`` is a construction option that limits activations in float32 too, because networks trained
in half precision have learnt to live with it.

Noise modes of the synthesis layers: 'random' (fresh normal noise from the rng stream ``noise``), 'const' (the stored
``noise_const``, collection ``noise``) and 'none'.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from avatar_jax.ops.activations import activation, bias_act
from avatar_jax.ops.modulated import modulated_conv2d
from avatar_jax.ops.resample import conv2d_resample, setup_filter, upsample2d

RESAMPLE = (1, 3, 3, 1)
NOISE_MODES = ('random', 'const', 'none')


def normal(scale: float = 1.0) -> Callable:
    """Initialiser: independent normal numbers of standard deviation ``scale``."""
    return nn.initializers.normal(scale)


def check_noise_mode(mode: str) -> None:
    """``ValueError`` for anything but 'random', 'const' or 'none'."""
    if mode not in NOISE_MODES:
        raise ValueError(f'noise_mode {mode!r}: use one of {", ".join(NOISE_MODES)}')


def fully_connected(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    act: str = 'linear',
    lr_multiplier: float = 1.0,
) -> jax.Array:
    """``act(x @ (weight * m / sqrt(in)) + bias * m)`` with the activation's default gain.

    Args:
        x: [..., in].
        weight: [in, out].
        bias: [out] or None.
        act: a name of ``ops.activations.ACTIVATIONS``.
        lr_multiplier: ``m``, which sets the effective learning rate of the layer.

    Returns:
        [..., out] in the dtype of ``x``.
    """
    y = jnp.matmul(x, (weight * (lr_multiplier * weight.shape[0] ** -0.5)).astype(x.dtype))
    return bias_act(y, None if bias is None else bias * lr_multiplier, act)


class FullyConnected(nn.Module):
    """Fully connected layer with equalised learning rate; see ``fully_connected``.

    Attributes:
        features: output size.
        activation: 'linear', 'lrelu', ...
        lr_multiplier: effective learning-rate factor.
        use_bias: whether there is a bias.
        bias_init: initial bias, not divided by ``lr_multiplier``.
        dtype: type of the computation.
    """

    features: int
    activation: str = 'linear'
    lr_multiplier: float = 1.0
    use_bias: bool = True
    bias_init: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., features]."""
        weight = self.param('weight', normal(1 / self.lr_multiplier), (x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            bias = self.param('bias', nn.initializers.constant(self.bias_init), (self.features,))
        return fully_connected(x.astype(self.dtype), weight, bias, self.activation, self.lr_multiplier)


class Conv2dLayer(nn.Module):
    """Convolution with equalised learning rate, optional FIR resampling by 2, activation and clamp.

    Attributes:
        features: output channels.
        kernel_size: 1 or 3; zero padding keeps the size.
        use_bias: whether there is a bias.
        activation: its default gain is applied.
        up, down: resampling factors.
        resample_filter: FIR taps.
        conv_clamp: limit of the absolute output, or None.
        dtype: type of the computation.
    """

    features: int
    kernel_size: int = 3
    use_bias: bool = True
    activation: str = 'linear'
    up: int = 1
    down: int = 1
    resample_filter: tuple[float, ...] = RESAMPLE
    conv_clamp: float | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: float = 1.0) -> jax.Array:
        """[N, H, W, C] -> [N, H * up / down, W * up / down, features]; ``gain`` also scales the clamp."""
        k, channels = self.kernel_size, x.shape[-1]
        weight = self.param('weight', normal(), (k, k, channels, self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x = conv2d_resample(
            x.astype(self.dtype),
            (weight * (channels * k * k) ** -0.5).astype(self.dtype),
            setup_filter(self.resample_filter),
            self.up,
            self.down,
            k // 2,
            flip_weight=self.up == 1,
        )
        act_gain = activation(self.activation).gain * gain
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, bias, self.activation, gain=act_gain, clamp=clamp)


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias, activation.

    Attributes:
        features: output channels.
        resolution: output height and width, the size of ``noise_const``.
        kernel_size: 3 or 1.
        up: 1 or 2.
        use_noise: whether noise parameters exist.
        activation: default gain applied.
        resample_filter: FIR taps for ``up=2``.
        conv_clamp: limit of the absolute output, or None.
    """

    features: int
    resolution: int
    kernel_size: int = 3
    up: int = 1
    use_noise: bool = True
    activation: str = 'lrelu'
    resample_filter: tuple[float, ...] = RESAMPLE
    conv_clamp: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, noise_mode: str = 'random', gain: float = 1.0) -> jax.Array:
        """x [N, H, W, C] (its dtype is used), w [N, w_dim] -> [N, H * up, W * up, features]."""
        check_noise_mode(noise_mode)
        k, size = self.kernel_size, self.resolution
        if (x.shape[1] * self.up, x.shape[2] * self.up) != (size, size):
            raise ValueError(f'synthesis layer of resolution {size} with up={self.up} got an input of shape {x.shape}')
        styles = FullyConnected(x.shape[-1], bias_init=1.0, name='affine')(w)
        weight = self.param('weight', normal(), (k, k, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        noise = None
        if self.use_noise:
            strength = self.param('noise_strength', nn.initializers.zeros, ())
            # The buffer is only touched where it is needed: checkpoints without it work in the other modes.
            if self.is_initializing() or noise_mode == 'const':
                const = self.variable(
                    'noise', 'noise_const', lambda: jax.random.normal(self.make_rng('params'), (size, size))
                )
            if noise_mode == 'const':
                noise = const.value * strength
            elif noise_mode == 'random':
                noise = jax.random.normal(self.make_rng('noise'), (x.shape[0], size, size, 1)) * strength
        y = modulated_conv2d(
            x,
            weight,
            styles,
            noise,
            self.up,
            padding=k // 2,
            resample_filter=setup_filter(self.resample_filter),
            flip_weight=self.up == 1,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(y, bias, self.activation, gain=activation(self.activation).gain * gain, clamp=clamp)


class ToRGB(nn.Module):
    """1x1 modulated convolution without demodulation, bias, clamp; no activation and no noise.

    Attributes:
        features: output channels.
        conv_clamp: limit of the absolute output, or None.
    """

    features: int
    conv_clamp: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """x [N, H, W, C], w [N, w_dim] -> [N, H, W, features] in the dtype of x."""
        channels = x.shape[-1]
        styles = FullyConnected(channels, bias_init=1.0, name='affine')(w) * channels**-0.5
        weight = self.param('weight', normal(), (1, 1, channels, self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        y = modulated_conv2d(x, weight, styles, demodulate=False)
        return bias_act(y, bias, clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """One resolution of the 'skip' generator: one or two synthesis layers and a ToRGB added to the skip image.

    Attributes:
        in_channels: channels of the incoming features; 0 makes the first block, which starts from a learnt constant
            [H, W, C] and has no ``conv0``.
        features: output channels.
        resolution: output height and width.
        img_channels: channels of the skip image.
        up: factor of ``conv0`` and of the skip image; 1 keeps both sizes.
        use_noise: whether noise parameters exist.
        resample_filter: FIR taps.
        conv_clamp: limit of activations, or None.
        dtype: type of the feature activations; the skip image is float32.
    """

    in_channels: int
    features: int
    resolution: int
    img_channels: int
    up: int = 2
    use_noise: bool = True
    resample_filter: tuple[float, ...] = RESAMPLE
    conv_clamp: float | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def num_conv(self) -> int:
        """Style rows of the convolutions; one more is for ToRGB."""
        return 1 if self.in_channels == 0 else 2

    @nn.compact
    def __call__(
        self, x: jax.Array | None, img: jax.Array | None, ws: jax.Array, noise_mode: str = 'random'
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the block.

        Args:
            x: [N, H, W, in_channels], or None for the first block.
            img: skip image [N, H, W, img_channels] or None.
            ws: [N, num_conv + 1, w_dim]: conv0 (if any), conv1, torgb.
            noise_mode: 'random', 'const' or 'none'.

        Returns:
            features [N, resolution, resolution, features] in ``dtype``, image [N, resolution, resolution,
                img_channels].
        """
        if ws.ndim != 3 or ws.shape[1] != self.num_conv + 1:
            raise ValueError(
                f'block of resolution {self.resolution} needs {self.num_conv + 1} style rows, ws {ws.shape}'
            )
        rows = iter(jnp.moveaxis(ws, 1, 0))

        def layer(name: str, up: int) -> SynthesisLayer:
            return SynthesisLayer(
                self.features,
                self.resolution,
                up=up,
                use_noise=self.use_noise,
                resample_filter=self.resample_filter,
                conv_clamp=self.conv_clamp,
                name=name,
            )

        if self.in_channels == 0:
            const = self.param('const', normal(), (self.resolution, self.resolution, self.features))
            x = jnp.broadcast_to(const, (ws.shape[0], *const.shape)).astype(self.dtype)
        else:
            if x is None or x.shape[-1] != self.in_channels:
                raise ValueError(f'block of resolution {self.resolution} takes {self.in_channels} channels')
            x = layer('conv0', self.up)(x.astype(self.dtype), next(rows), noise_mode)
        x = layer('conv1', 1)(x, next(rows), noise_mode)
        y = ToRGB(self.img_channels, self.conv_clamp, name='torgb')(x, next(rows)).astype(jnp.float32)
        if img is None:
            return x, y
        img = img.astype(jnp.float32)
        if self.up > 1:
            img = upsample2d(img, setup_filter(self.resample_filter), self.up)
        return x, img + y


def rematerialised(block: type[nn.Module], remat: bool, static: tuple[int, ...] = ()) -> type[nn.Module]:
    """``block``, or with ``remat`` one of the same names whose activations are computed again in the backward pass.

    ``static``: numbers of the arguments of its call (the first is 0) that are not arrays.
    """
    return nn.remat(block, static_argnums=tuple(i + 1 for i in static)) if remat else block


class SynthesisBlockNoUp(SynthesisBlock):
    """A block whose input and skip image already have its resolution."""

    up: int = 1
