"""The refine network and the identity encoder (paper 3.3; reference section 5.1).

The raw picture is enlarged, and the network adds what is missing: at first nothing. Identity features of the source
reach its decoder through SPADE. They stand where the source has them and not where the driver's pose wants them, so
they carry statistics and texture; ``inject`` limits them where ghosts appear.
"""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from avatar_jax.methods.hidenerf.config import RefineConfig
from avatar_jax.models.spade import SpadeResBlock, instance_norm
from avatar_jax.models.styleunet import lrelu
from avatar_jax.models.unet_blocks import Conv, ConvNorm, Down, ResBlock, nearest_double
from avatar_jax.ops.resize import resize

Maps = tuple[jax.Array, ...]


class IdentityEncoder(nn.Module):
    """Features of the source picture at the sizes of the refine network's decoder."""

    config: RefineConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> Maps:
        """Pictures [N,R,R,3] in [-1, 1] -> maps at R, R/2, ..., largest first; 'pooled': their means [N,1,1,C]."""
        widths = self.config.identity
        x = ConvNorm(image.shape[-1], widths[0], 7, name='first')(image)
        maps = [x]
        for k, (inputs, features) in enumerate(itertools.pairwise(widths)):
            x = Down(inputs, features, name=f'down{k}')(x)
            maps.append(x)
        if self.config.inject == 'pooled':
            maps = [m.mean((1, 2), keepdims=True) for m in maps]
        return tuple(maps)


class _PlainBlock(nn.Module):
    """The residual block of the levels without identity features: instance norm with a learnt scale and shift."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def normed(x, name):
            width = (x.shape[-1],)
            scale = self.param(f'{name}_weight', nn.initializers.ones, width)
            return instance_norm(x) * scale + self.param(f'{name}_bias', nn.initializers.zeros, width)

        middle, shortcut = min(self.inputs, self.features), x
        if self.inputs != self.features:
            shortcut = Conv(self.inputs, self.features, 1, name='conv_s')(normed(x, 'norm_s'))
        y = Conv(self.inputs, middle, name='conv_0')(lrelu(normed(x, 'norm_0')))
        return shortcut + Conv(middle, self.features, name='conv_1')(lrelu(normed(y, 'norm_1')))


class Refine(nn.Module):
    """Encoder-decoder from rendered features to the final picture."""

    config: RefineConfig
    size: int

    @nn.compact
    def __call__(self, raw: jax.Array, identity: Maps) -> jax.Array:
        """Pictures [N,R,R,3]; not limited to [-1, 1].

        Args:
            raw: [N,r,r,C] rendered, the first three channels the raw picture. identity: of ``IdentityEncoder``.
        """
        c = self.config
        a = ConvNorm(raw.shape[-1], c.encoder[0], name='first')(raw)
        b = Down(c.encoder[0], c.encoder[1], name='down0')(a)
        x = Down(c.encoder[1], c.encoder[2], name='down1')(b)
        for k in range(c.residual):
            x = ResBlock(c.encoder[2], name=f'residual{k}')(x)
        skips = {1: b, 2: a}
        for k, features in enumerate(c.decoder):
            x = nearest_double(x) if k else x
            if c.inject == 'to_raw' and x.shape[1] > raw.shape[1]:
                x = _PlainBlock(x.shape[-1], features, name=f'spade{k}')(x)
            else:
                condition = identity[-1 - k]
                if condition.shape[1] == 1:
                    condition = jnp.broadcast_to(condition, (*x.shape[:3], condition.shape[-1]))
                block = SpadeResBlock(
                    x.shape[-1], features, condition.shape[-1], c.hidden, 'instance', 'nearest', name=f'spade{k}'
                )
                x = block(x, condition)
            x = x + skips[k] if k in skips else x
        added = Conv(x.shape[-1], 3, zero=True, name='last')(lrelu(x))
        return resize(raw[..., :3], self.size) + added
