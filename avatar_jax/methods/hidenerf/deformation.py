"""The lightweight expression-aware deformation (LED, paper 3.2; reference section 4): one shallow 2-D network moves all
sample points of a picture at once.

It compares the driving with the canonical code and sees where the points are. Row h, column w, sample n, axis a of the
points is channel 3 n + a of pixel (h, w).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from avatar_jax.methods.hidenerf.parts import DeformationConfig
from avatar_jax.models.unet_blocks import Conv, ConvNorm, ResBlock, Up


def to_channels(points: jax.Array) -> jax.Array:
    """[N,H,W,S,3] -> [N,H,W,3 S]."""
    return points.reshape(*points.shape[:3], -1)


def to_points(channels: jax.Array) -> jax.Array:
    """[N,H,W,3 S] -> [N,H,W,S,3]."""
    return channels.reshape(*channels.shape[:3], -1, 3)


class Deformation(nn.Module):
    """Displacements of sample points; they start at zero.

    Attributes:
        samples: S, points per ray.
    """

    config: DeformationConfig
    samples: int

    @nn.compact
    def __call__(self, points: jax.Array, driving: jax.Array, canonical: jax.Array) -> jax.Array:
        """Displacements [N,H,W,S,3], before they are scaled to world units.

        Args:
            points: [N,H,W,S,3], about within [-1, 1]. driving, canonical: codes [N,f H,f H,3], f 1, 2 or 4.
        """
        c, size = self.config, points.shape[1]
        halvings = (driving.shape[1] // size).bit_length() - 1
        x, inputs = jnp.concatenate([driving, canonical], -1), 6
        for k, features in enumerate(c.expression):
            x = ConvNorm(inputs, features, stride=2 if k < halvings else 1, act='lrelu', name=f'expression{k}')(x)
            inputs = features
        y, inputs = to_channels(points), 3 * self.samples
        for k, features in enumerate(c.position):
            y = ConvNorm(inputs, features, act='lrelu', name=f'position{k}')(y)
            inputs = features
        both = jnp.concatenate([x, y], -1)
        width, (first, second) = both.shape[-1], c.decoder
        half = ConvNorm(width, first, stride=2, act='lrelu', name='down0')(both)
        x = ConvNorm(first, second, stride=2, act='lrelu', name='down1')(half)
        for k in range(c.residual):
            x = ResBlock(second, act='lrelu', name=f'residual{k}')(x)
        x = Up(second, first, first, act='lrelu', name='up0')(x, half)
        x = Up(first, width, first, act='lrelu', name='up1')(x, both)
        return to_points(Conv(first, 3 * self.samples, zero=True, name='last')(x))
