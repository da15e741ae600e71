"""From a source picture to its pyramid of tri-planes (paper 3.1, eq. 1 and 2; reference section 3)."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.methods.hidenerf import cameras
from avatar_jax.methods.hidenerf.parts import PYRAMID, AppearanceConfig
from avatar_jax.models.styleunet import lrelu
from avatar_jax.models.unet_blocks import Conv, ConvNorm, Down, ResBlock, Up
from avatar_jax.ops.grid_sample import grid_sample, sample_planes_mean
from avatar_jax.ops.resize import double

Planes = tuple[jax.Array, ...]
LOUD = 4.0  # weight of colours beside features, so that a network that does not know them yet learns them soon


@struct.dataclass
class Front:
    """Source pictures [N,h,h,3] in [-1, 1] and the projections [N,3,4] onto them (``cameras.picture_map``)."""

    picture: jax.Array
    view: jax.Array


class Extractor(nn.Module):
    """Downsampling blocks, then upsampling blocks with skips; the last three sizes are the pyramid."""

    config: AppearanceConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> list[jax.Array]:
        """Pictures [N,R,R,3] in [-1, 1] -> maps at R/4, R/2 and R, coarse to fine."""
        widths = self.config.widths
        x = ConvNorm(image.shape[-1], widths[0], 7, name='first')(image)
        skips = []
        for k, (inputs, features) in enumerate(itertools.pairwise(widths)):
            skips.append(x)
            x = Down(inputs, features, name=f'down{k}')(x)
        for k in range(self.config.residual):
            x = ResBlock(widths[-1], name=f'residual{k}')(x)
        maps = []
        for k, skip in enumerate(reversed(skips)):
            features = skip.shape[-1]
            x = Up(x.shape[-1], features, features, name=f'up{k}')(x, skip)
            maps.append(x)
        return maps[-PYRAMID:]


class _Decoder(nn.Module):
    """A small convolutional decoder of one plane."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = lrelu(Conv(self.inputs, self.features, name='conv0')(x))
        return Conv(self.features, self.features, name='conv1')(x)


class Pyramid(nn.Module):
    """Maps to tri-planes, level by level; each plane has a decoder of its own."""

    config: AppearanceConfig

    @nn.compact
    def __call__(
        self, maps: list[jax.Array], affine: jax.Array, extent: jax.Array, pivot: tuple[float, float, float]
    ) -> Planes:
        """Tri-planes [N,3,h,h,C], coarse to fine.

        Args:
            maps: of the extractor. affine, extent: of the source's camera (``cameras.source_map``), for 'plane_warp'.
        """
        single = self.config.single_scale
        channels = self.config.channels * (PYRAMID if single else 1)
        levels, below = [], None
        for j, x in enumerate(maps):
            if single and j < len(maps) - 1:
                continue
            parts = jnp.split(Conv(x.shape[-1], 3 * channels, 1, name=f'split{j}')(x), 3, -1)
            planes = []
            for k, part in enumerate(parts):
                if below is not None:
                    part = jnp.concatenate([part, double(below[:, k])], -1)
                planes.append(_Decoder(part.shape[-1], channels, name=f'plane{j}_{k}')(part))
            below = jnp.stack(planes, 1)
            if self.config.transform == 'plane_warp':
                below = cameras.warp_planes(below, affine, extent, pivot)
            levels.append(below)
        return tuple(levels)


class Appearance(nn.Module):
    """``Extractor`` and ``Pyramid``."""

    config: AppearanceConfig

    @nn.compact
    def __call__(
        self, image: jax.Array, affine: jax.Array, extent: jax.Array, pivot: tuple[float, float, float]
    ) -> Planes:
        """Pictures [N,R,R,3] in [-1, 1] -> tri-planes, coarse to fine; see ``Pyramid``."""
        maps = Extractor(self.config, name='extractor')(image)
        return Pyramid(self.config, name='pyramid')(maps, affine, extent, pivot)


def look_up(planes: Planes, affine: jax.Array, points: jax.Array) -> jax.Array:
    """Features [N,M,C of all levels] of world points [N,M,3]: means over the three planes, levels side by side.

    Args:
        planes: [N,3,h,h,C] of each level, coarse to fine. affine: [N,3,4] of ``cameras.look_up_map``.
    """
    places = cameras.apply_map(affine, points)
    return jnp.concatenate([sample_planes_mean(p, places, 2.0, cameras.AXES) for p in planes], -1)


def colours(front: Front, points: jax.Array) -> jax.Array:
    """Colours [N,M,3], times ``LOUD``, that source pictures have where their cameras see world points [N,M,3]."""
    return LOUD * grid_sample(front.picture, cameras.project(front.view, points), padding='border')
