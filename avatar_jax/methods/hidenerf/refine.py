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

from avatar_jax.methods.hidenerf.parts import RefineConfig
from avatar_jax.models.spade import Conv as SpadeConv
from avatar_jax.models.spade import Spade, instance_norm
from avatar_jax.models.styleunet import lrelu
from avatar_jax.models.unet_blocks import Conv, ConvNorm, Down, ResBlock, nearest_double
from avatar_jax.ops.resize import resize

Maps = tuple[jax.Array, ...]
Modulations = dict[str, tuple[jax.Array, jax.Array]]  # norm -> scale beyond 1, shift


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


class _Block(nn.Module):
    """``models.spade.SpadeResBlock`` in two halves: what its conditioning map says, and what happens to the features.

    The first half depends on the source alone, so an avatar needs it once.

    Attributes:
        inputs, features: channels before and after. condition: of the map; 0 makes a block without one, whose instance
            norms have a learnt scale and shift.
        hidden: of the SPADE layers.
    """

    inputs: int
    features: int
    condition: int
    hidden: int

    def setup(self):
        middle = min(self.inputs, self.features)
        widths = {'norm_0': self.inputs, 'norm_1': middle}
        if self.inputs != self.features:
            widths['norm_s'] = self.inputs
            self.conv_s = SpadeConv(self.inputs, self.features, 1, use_bias=False)
        for name, width in widths.items():
            if self.condition:
                setattr(self, name, Spade(width, self.condition, self.hidden, 'instance', 'nearest'))
            else:
                setattr(self, name, _Learnt(width))
        self.conv_0, self.conv_1 = SpadeConv(self.inputs, middle), SpadeConv(middle, self.features)
        self.names = tuple(widths)

    def modulations(self, condition: jax.Array | None, size: int) -> Modulations:
        """Scale and shift of each norm, [N,size,size,C] or [1,1,1,C], of a map [N,h,w,condition]."""
        if self.condition:
            condition = jnp.broadcast_to(condition, (condition.shape[0], size, size, self.condition))
            return {name: getattr(self, name).modulation(condition, (size, size)) for name in self.names}
        return {name: getattr(self, name)() for name in self.names}

    def __call__(self, x: jax.Array, modulations: Modulations) -> jax.Array:
        """Features [N,H,W,inputs] -> [N,H,W,features]."""

        def normed(x, name):
            scale, shift = modulations[name]
            return instance_norm(x) * (1 + scale) + shift

        shortcut = self.conv_s(normed(x, 'norm_s')) if self.inputs != self.features else x
        y = self.conv_0(lrelu(normed(x, 'norm_0')))
        return shortcut + self.conv_1(lrelu(normed(y, 'norm_1')))


class _Learnt(nn.Module):
    """Scale (beyond 1) and shift that no map decides."""

    features: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        scale, shift = (self.param(n, nn.initializers.zeros, (self.features,)) for n in ('scale', 'shift'))
        return scale[None, None, None], shift[None, None, None]


class Refine(nn.Module):
    """Encoder-decoder from rendered features to the final picture.

    Attributes:
        size: R, side of the final picture. raw: r, side of the rendered one. channels: rendered per pixel.
    """

    config: RefineConfig
    size: int
    raw: int
    channels: int = 3

    def setup(self):
        c = self.config
        self.first = ConvNorm(self.channels, c.encoder[0])
        self.down0, self.down1 = Down(c.encoder[0], c.encoder[1]), Down(c.encoder[1], c.encoder[2])
        for k in range(c.residual):
            setattr(self, f'residual{k}', ResBlock(c.encoder[2]))
        inputs = c.encoder[2]
        for k, features in enumerate(c.decoder):
            told = c.inject != 'to_raw' or self._side(k) <= self.raw
            width = c.identity[-1 - k] if told else 0
            setattr(self, f'spade{k}', _Block(inputs, features, width, c.hidden))
            inputs = features
        self.last = Conv(inputs, 3, zero=True)

    def _side(self, level: int) -> int:
        return self.raw // 4 * 2**level

    def modulations(self, identity: Maps) -> tuple[Modulations, ...]:
        """All that identity features [N,...] of ``IdentityEncoder`` say, from the smallest level up; once a source."""
        levels = range(len(self.config.decoder))
        return tuple(getattr(self, f'spade{k}').modulations(identity[-1 - k], self._side(k)) for k in levels)

    def refined(self, raw: jax.Array, modulations: tuple[Modulations, ...]) -> jax.Array:
        """Pictures [N,R,R,3], not limited to [-1, 1], of rendered features [N,r,r,C], the raw picture first."""
        a = self.first(raw)
        b = self.down0(a)
        x = self.down1(b)
        for k in range(self.config.residual):
            x = getattr(self, f'residual{k}')(x)
        skips = {1: b, 2: a}
        for k, told in enumerate(modulations):
            x = getattr(self, f'spade{k}')(nearest_double(x) if k else x, told)
            x = x + skips[k] if k in skips else x
        return resize(raw[..., :3], self.size) + self.last(lrelu(x))

    def __call__(self, raw: jax.Array, identity: Maps) -> jax.Array:
        """``refined`` of rendered features and identity features."""
        return self.refined(raw, self.modulations(identity))
