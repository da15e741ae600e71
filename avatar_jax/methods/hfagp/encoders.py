"""From a driving signal to the weights of the basis: pictures, face-model coefficients, sound.

| driver | signal of one frame | network |
|---|---|---|
| ``picture`` | [S, S, 3] in [-1, 1], S = 256 | ``PictureEncoder``: StyleGAN2's residual trunk, five linear layers |
| ``coefficients`` | [P], 76 in NerFACE's data | ``CoefficientEncoder``: seven linear layers |
| ``sound`` | [16, 29], a window of speech features | ``SoundEncoder``: ``SoundNet``, then seven linear layers |

Linear layers have the equalised learning rate of StyleGAN2 and no activation in between, as released: each stack is one
affine map, but learns differently from one matrix. Parameters have the names of the released checkpoints
(``release.py``), with ``_`` for the dot before a number.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from avatar_jax.models.discriminator import DiscriminatorBlock
from avatar_jax.models.layers import FullyConnected, normal
from avatar_jax.ops.conv import conv1d, conv2d

SOUND_WINDOW, SOUND_CHANNELS = 16, 29
SLOPE = 0.02
ATTENDED = 8  # frames that the temporal attention looks at
ATTENTION_CHANNELS = 32  # of the sound code, from which attention is computed
PICTURE_CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


class LinearStack(nn.Module):
    """Linear layers ``fc_0`` .. without activations.

    Attributes:
        features: width of all layers but the last.
        outputs: width of the last.
        layers: how many.
    """

    features: int
    outputs: int
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., outputs]."""
        for i in range(self.layers - 1):
            x = FullyConnected(self.features, name=f'fc_{i}')(x)
        return FullyConnected(self.outputs, name=f'fc_{self.layers - 1}')(x)


class PictureEncoder(nn.Module):
    """Weights of the basis from a picture (section 3.2 of the paper; the released ``Encoder``).

    Attributes:
        size: side of the picture, a power of two from 8 on.
        outputs: k.
        width: features of the trunk's result and of the linear layers.
        channels: (resolution, channels) pairs of the trunk; empty takes the released table.
    """

    size: int = 256
    outputs: int = 50
    width: int = 512
    channels: tuple[tuple[int, int], ...] = ()

    def trunk_channels(self, resolution: int) -> int:
        """Feature channels at a resolution."""
        return dict(self.channels or PICTURE_CHANNELS.items())[resolution]

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """[N, size, size, 3] in [-1, 1] -> [N, outputs]."""
        if image.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f'picture encoder: takes [N, {self.size}, {self.size}, 3], got {image.shape}')
        x, resolution = image, self.size
        while resolution > 4:
            x = DiscriminatorBlock(
                self.trunk_channels(resolution // 2),
                self.trunk_channels(resolution),
                from_rgb=resolution == self.size,
                name=f'b{resolution}',
            )(x)
            resolution //= 2
        weight = self.param('weight', normal(), (4, 4, x.shape[-1], self.width))
        x = conv2d(x, weight * (16 * x.shape[-1]) ** -0.5, padding='VALID')[:, 0, 0]
        return LinearStack(self.width, self.outputs, 5, name='head')(x)


class CoefficientEncoder(nn.Module):
    """Weights of the basis from coefficients of any kind (the released ``Weights_3DMM``).

    Attributes:
        outputs: k.
        width: of the layers in between.
    """

    outputs: int = 50
    width: int = 512

    @nn.compact
    def __call__(self, coefficients: jax.Array) -> jax.Array:
        """[N, P] -> [N, outputs]."""
        return LinearStack(self.width, self.outputs, 7, name='head')(coefficients)


def _uniform(fan_in: int, gain: float = 1.0):
    """Initial values uniform within gain / sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = gain * fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class PlainLayer(nn.Module):
    """A linear layer or a convolution in time, with bias; ``kernel`` 0 is linear.

    Attributes:
        features: outputs.
        kernel: taps, zero-padded by ``kernel // 2``.
        stride: step in time.
        first: initial values: 'pytorch' (weights and biases uniform within 1 / sqrt(inputs)) or 'he' (weights of
            He et al., with which a rectified layer keeps the size of its signal, and no biases).
    """

    features: int
    kernel: int = 0
    stride: int = 1
    first: str = 'pytorch'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] (linear) or [N, T, in] -> the same with ``features``."""
        inputs, he = x.shape[-1] * max(self.kernel, 1), self.first == 'he'
        shape = (x.shape[-1], self.features)
        init = _uniform(inputs, 6**0.5 if he else 1.0)
        weight = self.param('weight', init, (self.kernel, *shape) if self.kernel else shape)
        bias = self.param('bias', nn.initializers.zeros if he else init, (self.features,))
        if not self.kernel:
            return x @ weight + bias
        return conv1d(x, weight, self.stride, self.kernel // 2) + bias


def leaky(x: jax.Array) -> jax.Array:
    """Leaky rectifier with the small slope of the sound networks."""
    return jnp.where(x >= 0, x, SLOPE * x)


class SoundNet(nn.Module):
    """One window of speech features to a code (the released ``AudioNet``).

    Attributes:
        features: length of the code. first: initial values, see ``PlainLayer``.
    """

    features: int = 64
    first: str = 'pytorch'

    @nn.compact
    def __call__(self, window: jax.Array) -> jax.Array:
        """[N, 16, C] -> [N, features]."""
        if window.ndim != 3 or window.shape[1] != SOUND_WINDOW:
            raise ValueError(f'sound network: takes windows [N, {SOUND_WINDOW}, C], got {window.shape}')
        x = window
        for i, width in enumerate((32, 32, 64, 64)):
            x = leaky(PlainLayer(width, 3, 2, self.first, name=f'encoder_conv_{2 * i}')(x))
        x = leaky(PlainLayer(64, first=self.first, name='encoder_fc1_0')(x[:, 0]))
        return PlainLayer(self.features, first=self.first, name='encoder_fc1_2')(x)


class SoundAttention(nn.Module):
    """Smooths sound codes in time (the released ``AudioAttNet``): a weighted mean of eight neighbours."""

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        """Codes of each frame's neighbours [N, 8, F] -> [N, F]."""
        if codes.shape[1] != ATTENDED:
            raise ValueError(f'sound attention: takes {ATTENDED} neighbours, got {codes.shape}')
        x = codes[..., :ATTENTION_CHANNELS]
        for i, width in enumerate((16, 8, 4, 2, 1)):
            x = leaky(PlainLayer(width, 3, name=f'attentionConvNet_{2 * i}')(x))
        share = jax.nn.softmax(PlainLayer(ATTENDED, name='attentionNet_0')(x[..., 0]), axis=-1)
        return jnp.einsum('nt,ntf->nf', share, codes)


class SoundEncoder(nn.Module):
    """Weights of the basis from windows of speech features (section 5 of the released form).

    Attributes:
        outputs: k.
        width: of the linear layers in between.
        features: length of the sound code.
        first: initial values of the network of windows, see ``PlainLayer``.
    """

    outputs: int = 50
    width: int = 512
    features: int = 64
    first: str = 'pytorch'

    def setup(self):
        self.net = SoundNet(self.features, self.first)
        self.attention = SoundAttention()
        self.weights = CoefficientEncoder(self.outputs, self.width)

    def __call__(self, windows: jax.Array, smooth: bool = False) -> jax.Array:
        """Weights [N, outputs].

        Args:
            windows: [N, 16, C]; with ``smooth`` [N, 8, 16, C], each frame's neighbours (``sound_neighbours``).
            smooth: average the codes of the neighbours by attention.
        """
        if not smooth:
            return self.weights(self.net(windows))
        n = windows.shape[0]
        codes = self.net(windows.reshape(n * ATTENDED, *windows.shape[2:]))
        return self.weights(self.attention(codes.reshape(n, ATTENDED, -1)))

    def both(self, windows: jax.Array) -> jax.Array:
        """Touches all parts, for initialisation: windows [N, 8, 16, C]."""
        return self(windows, smooth=True)


def sound_neighbours(windows: jax.Array, frames: jax.Array) -> jax.Array:
    """Windows of the frames i-4 .. i+3 around each frame, zeros outside of the sequence.

    Zeros stand for the *input* of the sound network: what lies outside gives the network's answer to silence, not
    zero.

    Args:
        windows: [T, 16, C] of the whole sequence (training frames in training, all windows when animating).
        frames: [N] frame numbers.

    Returns:
        [N, 8, 16, C].
    """
    index = frames[:, None] + jnp.arange(ATTENDED) - ATTENDED // 2
    inside = (index >= 0) & (index < windows.shape[0])
    found = jnp.asarray(windows)[jnp.clip(index, 0, windows.shape[0] - 1)]
    return jnp.where(inside[..., None, None], found, 0)
