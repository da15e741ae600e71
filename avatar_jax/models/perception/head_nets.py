"""Two small networks that this project trains on procedural heads, to stand in where no public weights are given.

* `HeadIdentity`: who it is, as a unit vector; equal people under any expression, pose and light lie close together.
* `HeadCoefficients`: expression, head angle, translation and 68 landmarks of one picture.

They know procedural heads only. Every report names them as stand-ins; they are no substitute for face recognition or
for a fitted face model on photographs. Input images are [N,H,W,3] in [-1,1], framed like the EG3D crop, of any size:
they are resized first. `launch/train_head_nets.py` trains both.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from avatar_jax.checks import Check
from avatar_jax.models.perception.layers import BatchNorm, Conv, Linear
from avatar_jax.ops.resize import resize

NUM_EXPRESSION, NUM_LANDMARKS = 64, 68


@dataclass(frozen=True)
class HeadNetsConfig:
    """Sizes of the two networks.

    Attributes:
        identity_size, coefficient_size: side in pixels that images are brought to; a multiple of 32.
        identity_widths, coefficient_widths: channels after each halving of the size.
        embedding: length of the identity vector.
        hidden: width of the layer before the coefficients.
    """

    identity_size: int = 64
    identity_widths: tuple[int, ...] = (24, 48, 96, 128)
    embedding: int = 128
    coefficient_size: int = 128
    coefficient_widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    hidden: int = 256

    def __post_init__(self):
        check = Check(self)
        for size, widths in (('identity_size', 'identity_widths'), ('coefficient_size', 'coefficient_widths')):
            object.__setattr__(self, widths, tuple(getattr(self, widths)))
            value, halvings = getattr(self, size), len(getattr(self, widths))
            check.need(value >= 2**halvings and value % 2**halvings == 0, size, f'cannot be halved {halvings} times')


@struct.dataclass
class HeadCoefficientsOutput:
    """What the network reads in N pictures.

    Attributes:
        expression: [N,64]. angle: [N,3] radians. translation: [N,3] decimetres.
        landmarks: [N,68,2] (x, y), y downwards, as fractions of the image side.
    """

    expression: jax.Array
    angle: jax.Array
    translation: jax.Array
    landmarks: jax.Array


def fit_size(image: jax.Array, size: int) -> jax.Array:
    """Square images [N,H,H,3] brought to ``size``: area means when shrinking, bilinear when growing."""
    if image.ndim != 4 or image.shape[1] != image.shape[2] or image.shape[3] != 3:
        raise ValueError(f'head networks take square RGB images [N,H,H,3], got {image.shape}')
    return resize(image, size, 'area' if image.shape[1] > size else 'bilinear')


class _Stage(nn.Module):
    """Halves the size, then one residual convolution."""

    inputs: int
    features: int
    kernel: int
    refine: bool

    @nn.compact
    def __call__(self, x, train):
        x = Conv(self.inputs, self.features, self.kernel, 2, self.kernel // 2, name='down')(x)
        x = jax.nn.relu(BatchNorm(self.features, name='down_norm')(x, train))
        if self.refine:
            y = Conv(self.features, self.features, name='refine')(x)
            x = jax.nn.relu(x + BatchNorm(self.features, name='refine_norm')(y, train))
        return x


class Trunk(nn.Module):
    """Stages of a small residual network; returns the activation after each, [N,S/2,S/2,w0], [N,S/4,S/4,w1], ..."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> list[jax.Array]:
        taps = []
        for i, width in enumerate(self.widths):
            # The first stage is the most expensive per pixel and sees the least: it is not refined. (The shipped
            # weights have this layout: another one needs new weights.)
            x = _Stage(x.shape[-1], width, 5 if i == 0 else 3, i > 0, name=f'stage{i}')(x, train)
            taps.append(x)
        return taps


class HeadIdentity(nn.Module):
    """Identity embedding of procedural heads."""

    config: HeadNetsConfig = HeadNetsConfig()

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, features: bool = False):
        """[N,H,H,3] -> unit vectors [N,embedding]; with ``features`` also the activations of the trunk."""
        c = self.config
        taps = Trunk(c.identity_widths, name='trunk')(fit_size(image, c.identity_size), train)
        x = taps[-1].reshape(image.shape[0], -1)
        x = Linear(x.shape[-1], c.embedding, use_bias=False, name='embed')(x)
        x = BatchNorm(c.embedding, name='embed_norm')(x, train)
        x = x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)
        return (x, taps) if features else x


class HeadCoefficients(nn.Module):
    """Coefficients and landmarks of procedural heads."""

    config: HeadNetsConfig = HeadNetsConfig()

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, features: bool = False):
        """[N,H,H,3] -> HeadCoefficientsOutput; with ``features`` also the activations of the trunk."""
        c = self.config
        taps = Trunk(c.coefficient_widths, name='trunk')(fit_size(image, c.coefficient_size), train)
        # The layout of the face matters here, so the map is flattened, not averaged.
        x = taps[-1].reshape(image.shape[0], -1)
        x = Linear(x.shape[-1], c.hidden, use_bias=False, name='hidden')(x)
        x = jax.nn.relu(BatchNorm(c.hidden, name='hidden_norm')(x, train))
        # Starts near the mean of the data: most coefficients are small most of the time.
        y = Linear(c.hidden, NUM_EXPRESSION + 6 + 2 * NUM_LANDMARKS, init_scale=0.05, name='out')(x)
        scale = self.variable('batch_stats', 'scale', jnp.ones, y.shape[-1:]).value
        offset = self.variable('batch_stats', 'offset', jnp.zeros, y.shape[-1:]).value
        y = y * scale + offset  # to the units of the coefficients: their spread and mean over the training data
        expression, angle, translation, landmarks = jnp.split(y, (64, 67, 70), axis=-1)
        out = HeadCoefficientsOutput(expression, angle, translation, landmarks.reshape(-1, NUM_LANDMARKS, 2))
        return (out, taps) if features else out


def pack(output: HeadCoefficientsOutput) -> jax.Array:
    """The four parts side by side, [N, 64 + 3 + 3 + 136], in the order of the network's last layer."""
    landmarks = output.landmarks.reshape(output.landmarks.shape[0], -1)
    return jnp.concatenate([output.expression, output.angle, output.translation, landmarks], -1)


def margin_logits(
    embedding: jax.Array, centres: jax.Array, labels: jax.Array, margin: float = 0.2, scale: float = 16.0
) -> jax.Array:
    """Additive-cosine-margin logits [N,P] of unit vectors [N,E] against class centres [P,E] (any length)."""
    centres = centres / (jnp.linalg.norm(centres, axis=-1, keepdims=True) + 1e-12)
    cosine = embedding @ centres.T
    return scale * (cosine - margin * jax.nn.one_hot(labels, centres.shape[0]))
