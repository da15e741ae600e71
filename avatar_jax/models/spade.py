"""SPADE: features scaled and shifted place by place, as an image beside them says (Park et al. 2019).

A layer computes ``N(x) * (1 + gamma(s)) + beta(s)``. ``s`` is the conditioning map in the resolution of ``x``, and
gamma and beta are two convolutions of a common hidden layer of ``s``. ``N`` is the parameter-free instance norm, or
nothing: without it the layer keeps no statistics of ``x``, so images of a batch do not see each other and the scale of
the features survives (NOFA's compensation network). HiDe-NeRF's refinement uses the instance norm.

Names are the published keys split at the dots: ``mlp_shared.0``, ``mlp_gamma``, ``mlp_beta``; in a block ``norm_0``,
``norm_1``, ``norm_s``, ``conv_0``, ``conv_1``, ``conv_s``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.errors import UserError
from avatar_jax.models import host_draws
from avatar_jax.models.styleunet import lrelu
from avatar_jax.ops.conv import conv2d
from avatar_jax.ops.resize import resize

NORMS = ('none', 'instance')
RESIZES = ('antialiased', 'nearest')
NEAR_IDENTITY = 0.02  # gain of the first gamma and beta: modulation starts near the identity
_HE = 2 / (1 + 0.2**2)


def instance_norm(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Each channel of each image [N,H,W,C] with mean 0 and (biased) variance 1; no parameters."""
    mean = x.mean((1, 2), keepdims=True)
    variance = jnp.square(x - mean).mean((1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def normalized(x: jax.Array, norm: str) -> jax.Array:
    """``x`` [N,H,W,C] after the normalisation of that name."""
    return instance_norm(x) if norm == 'instance' else x


def fitted(condition: jax.Array, size: tuple[int, int], interpolation: str) -> jax.Array:
    """The conditioning map [N,h,w,S] in the size of the features.

    Args:
        interpolation: 'antialiased' (bilinear, meant for pictures) or 'nearest' (pixel floor(i * in / out), meant for
            labels).
    """
    return resize(condition, size, 'nearest') if interpolation == 'nearest' else resize(condition, size, antialias=True)


class Conv(nn.Module):
    """Convolution of stride 1 that keeps the size; weight [k,k,I,O], bias [O].

    First weights: normal with He's variance for a leaky ReLU, or with Xavier's deviation times ``xavier``.
    """

    inputs: int
    features: int
    kernel: int = 3
    use_bias: bool = True
    xavier: float | None = None

    @nn.compact
    def __call__(self, x):
        k = self.kernel
        fan_in, fan_out = self.inputs * k * k, self.features * k * k
        variance = _HE / fan_in if self.xavier is None else self.xavier**2 * 2 / (fan_in + fan_out)

        def init(key, shape):
            return host_draws.normal(key, shape, variance**0.5)

        y = conv2d(x, self.param('weight', init, (k, k, self.inputs, self.features)), 1, k // 2)
        return y + self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else y


class _Shared(nn.Module):
    """The hidden layer, under the name ``0``."""

    inputs: int
    features: int
    kernel: int

    @nn.compact
    def __call__(self, x):
        return jax.nn.relu(Conv(self.inputs, self.features, self.kernel, name='0')(x))


class Spade(nn.Module):
    """One SPADE layer.

    Attributes:
        channels: C of the features. condition: S of the conditioning map.
        hidden: channels of the common hidden layer.
        norm: 'none' or 'instance'.
        resize: how the map is brought to the features' size, see ``fitted``.
        kernel: of all three convolutions.
    """

    channels: int
    condition: int = 3
    hidden: int = 128
    norm: str = 'none'
    resize: str = 'antialiased'
    kernel: int = 3

    def __post_init__(self):
        if self.norm not in NORMS:
            raise UserError(f'spade norm: {self.norm!r}; use one of {", ".join(NORMS)}')
        if self.resize not in RESIZES:
            raise UserError(f'spade resize: {self.resize!r}; use one of {", ".join(RESIZES)}')
        super().__post_init__()

    def setup(self):
        self.mlp_shared = _Shared(self.condition, self.hidden, self.kernel)
        self.mlp_gamma = Conv(self.hidden, self.channels, self.kernel, xavier=NEAR_IDENTITY)
        self.mlp_beta = Conv(self.hidden, self.channels, self.kernel, xavier=NEAR_IDENTITY)

    def modulation(self, condition: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        """(gamma, beta) [N,*size,C] of a conditioning map [N,h,w,S]."""
        if condition.shape[-1] != self.condition:
            raise ValueError(f'SPADE: a map of {self.condition} channels is expected, got {condition.shape}')
        shared = self.mlp_shared(fitted(condition, size, self.resize))
        return self.mlp_gamma(shared), self.mlp_beta(shared)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Features [N,H,W,C] and a map [N,h,w,S] -> [N,H,W,C]."""
        gamma, beta = self.modulation(condition, x.shape[1:3])
        return normalized(x, self.norm) * (1 + gamma) + beta


class SpadeResBlock(nn.Module):
    """Residual block of SPADE, leaky ReLU (0.2) and 3x3 convolution, twice.

    Where the number of channels changes, the shortcut is SPADE and a bias-free 1x1 convolution, without activation.

    Attributes:
        inputs, features: channels before and after; between the convolutions there are the fewer of both.
        condition, hidden, norm, resize: of the SPADE layers.
    """

    inputs: int
    features: int
    condition: int = 3
    hidden: int = 128
    norm: str = 'none'
    resize: str = 'antialiased'

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Features [N,H,W,inputs] and a map [N,h,w,S] -> [N,H,W,features]."""
        middle = min(self.inputs, self.features)
        condition = fitted(condition, x.shape[1:3], self.resize)

        def spade(name, channels, x):
            return Spade(channels, self.condition, self.hidden, self.norm, self.resize, name=name)(x, condition)

        shortcut = x
        if self.inputs != self.features:
            shortcut = spade('norm_s', self.inputs, x)
            shortcut = Conv(self.inputs, self.features, 1, use_bias=False, name='conv_s')(shortcut)
        y = Conv(self.inputs, middle, name='conv_0')(lrelu(spade('norm_0', self.inputs, x)))
        y = Conv(middle, self.features, name='conv_1')(lrelu(spade('norm_1', middle, y)))
        return y + shortcut
