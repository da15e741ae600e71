"""GFPGAN v1 "clean": restores degraded faces (Wang et al. 2021); NOFA's teacher for teeth.

A U-Net on the degraded picture gives all style rows of a StyleGAN2 decoder, and at every size a scale and a shift of
the second half of the decoder's features. It differs from the StyleUNet of GPAvatar, whose layers it uses: there is no
mapping network, every layer has its own style row, and the first half of the features passes unchanged.

Faces must be aligned as in FFHQ at 512 pixels: ``TEMPLATE``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.models.perception.layers import flatten_chw
from avatar_jax.models.styleunet import Constant, Conv, Linear, ResBlock, StyleConv, ToRGB, lrelu
from avatar_jax.ops.warp import invert_affine, similarity_transform, warp_affine

TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ],
    np.float32,
)
"""Left eye, right eye, nose tip and mouth corners of an aligned face at 512 pixels."""
_WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


@dataclass(frozen=True)
class GFPGANConfig:
    """Sizes.

    Attributes:
        size: side of the pictures. style_dim: length of a style row.
        multiplier: of the decoder's channels from 64 pixels on. narrow: of all channels of the decoder.
    """

    size: int = 512
    style_dim: int = 512
    multiplier: int = 2
    narrow: float = 1.0

    def __post_init__(self):
        check = Check(self, 'gfpgan')
        check.power_of_two(8, 'size')
        check.within(8, 1024, 'size')

    @property
    def levels(self) -> int:
        """Sizes after the first: 7 for 512."""
        return self.size.bit_length() - 3

    @property
    def num_rows(self) -> int:
        """Style rows: 16 for 512."""
        return 2 * self.levels + 2

    def decoder_channels(self, resolution: int) -> int:
        """Of the decoder at a resolution."""
        factor = self.narrow * (self.multiplier if resolution >= 64 else 1)
        return int(_WIDTHS[resolution] * factor)

    def unet_channels(self, resolution: int) -> int:
        """Of the U-Net: half of the decoder's."""
        return int(_WIDTHS[resolution] * self.narrow * 0.5 * (self.multiplier if resolution >= 64 else 1))


class GFPGANDecoder(nn.Module):
    """StyleGAN2 synthesis from style rows; the second half of the features is scaled and shifted at every size."""

    config: GFPGANConfig

    @nn.compact
    def __call__(self, rows, scales, shifts, noise):
        """[B,num_rows,S], per level [B,r,r,D/2] twice, maps [1,r,r,1] (or None each) -> [B,size,size,3]."""
        c = self.config
        width, noise = c.decoder_channels(4), iter(noise)
        x = jnp.broadcast_to(Constant((4, 4, width), name='constant_input')(), (rows.shape[0], 4, 4, width))
        x = StyleConv(width, width, c.style_dim, name='style_conv1')(x, rows[:, 0], next(noise))
        rgb = ToRGB(width, 3, c.style_dim, name='to_rgb1')(x, rows[:, 1])
        for i in range(c.levels):
            before, width = width, c.decoder_channels(2 ** (i + 3))
            up = StyleConv(before, width, c.style_dim, upsample=True, name=f'style_convs_{2 * i}')
            x = up(x, rows[:, 2 * i + 1], next(noise))
            kept, changed = jnp.split(x, 2, axis=-1)
            x = jnp.concatenate([kept, changed * scales[i] + shifts[i]], -1)
            same = StyleConv(width, width, c.style_dim, name=f'style_convs_{2 * i + 1}')
            x = same(x, rows[:, 2 * i + 2], next(noise))
            rgb = ToRGB(width, 3, c.style_dim, name=f'to_rgbs_{i}')(x, rows[:, 2 * i + 3], rgb)
        return rgb


class GFPGAN(nn.Module):
    """The whole network."""

    config: GFPGANConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: list[jax.Array] | None = None, levels: bool = False
    ) -> jax.Array | tuple[jax.Array, list[jax.Array]]:
        """Aligned faces [B,size,size,3] in [-1,1] -> restored ones, nominally in [-1,1] but not limited.

        Args:
            noise: one map [1,r,r,1] for every style convolution (``stored_noise``); None adds none.
            levels: also return the pictures that the U-Net sees on its way up [B,r,r,3].
        """
        c = self.config
        if x.shape[1:] != (c.size, c.size, 3):
            raise UserError(
                f'gfpgan: takes faces of {c.size}x{c.size}, got {x.shape[1]}x{x.shape[2]}; align them first'
            )
        x = lrelu(Conv(3, c.unet_channels(c.size), 1, name='conv_body_first')(x))
        skips, resolution = [], c.size
        for i in range(c.levels):
            widths = c.unet_channels(resolution), c.unet_channels(resolution // 2)
            x = ResBlock(*widths, up=False, name=f'conv_body_down_{i}')(x)
            resolution //= 2
            skips.append(x)
        deep = c.unet_channels(4)
        x = lrelu(Conv(deep, deep, name='final_conv')(x))
        rows = Linear(16 * deep, c.num_rows * c.style_dim, name='final_linear')(flatten_chw(x))
        scales, shifts, pictures = [], [], []
        for i in range(c.levels):
            width = c.unet_channels(2 ** (i + 3))
            block = ResBlock(c.unet_channels(2 ** (i + 2)), width, up=True, name=f'conv_body_up_{i}')
            x = block(x + skips[-1 - i])
            for found, kind in ((scales, 'scale'), (shifts, 'shift')):
                y = lrelu(Conv(width, width, name=f'condition_{kind}_{i}_0')(x))
                found.append(Conv(width, c.decoder_channels(2 ** (i + 3)) // 2, name=f'condition_{kind}_{i}_2')(y))
            if levels or self.is_initializing():
                pictures.append(Conv(width, 3, 1, name=f'toRGB_{i}')(x))
        noise = [None] * (2 * c.levels + 1) if noise is None else noise
        rows = rows.reshape(-1, c.num_rows, c.style_dim)
        image = GFPGANDecoder(c, name='stylegan_decoder')(rows, scales, shifts, noise)
        return (image, pictures) if levels else image


@functools.lru_cache(maxsize=4)
def abstract_gfpgan(config: GFPGANConfig) -> dict[str, Any]:
    """Names and shapes of the parameters that are computed with; do not change what it returns."""
    image = jax.ShapeDtypeStruct((1, config.size, config.size, 3), jnp.float32)
    return jax.eval_shape(lambda x: GFPGAN(config).init(jax.random.key(0), x), image)['params']


def stored_noise(variables: Mapping[str, Any]) -> list[jax.Array]:
    """The maps kept with the weights, in order of use."""
    maps = variables['noise']['stylegan_decoder']['noises']
    return [jnp.asarray(maps[f'noise{j}']) for j in range(len(maps))]


def restore(
    variables: Mapping[str, Any],
    config: GFPGANConfig,
    image: jax.Array,
    points: jax.Array | None = None,
    keep: jax.Array | None = None,
) -> jax.Array:
    """Restores faces in pictures [B,S,S,3] in [-1,1]; the stored noise makes it repeatable.

    Args:
        points: five points of each face [B,5,2] in pixels: the face is warped to ``TEMPLATE``, restored, warped back
            and blended in. None takes the pictures as aligned faces of the network's size.
        keep: weights [B,S,S,1] of the restored picture in the blend; None takes it wherever it reaches. Only with
            ``points``.

    Returns:
        [B,S,S,3], limited to [-1,1]. No gradient goes to the warps.
    """
    network, noise = GFPGAN(config), stored_noise(variables)
    if points is None:
        return jnp.clip(network.apply({'params': variables['params']}, image, noise), -1, 1)
    template = jnp.asarray(TEMPLATE) * (config.size / 512)
    matrix = jax.lax.stop_gradient(similarity_transform(points, jnp.broadcast_to(template, points.shape)))
    face = warp_affine(image, matrix, config.size)
    restored = jnp.clip(network.apply({'params': variables['params']}, face, noise), -1, 1)
    inverse = invert_affine(matrix)
    # The face's own border fades, so that no edge of the warp is seen.
    reach = warp_affine(jnp.ones((*restored.shape[:3], 1)), inverse, image.shape[1:3])
    back = warp_affine(restored, inverse, image.shape[1:3])
    share = reach if keep is None else reach * keep
    return jnp.clip(back * (share / jnp.maximum(reach, 1e-6)) + image * (1 - share), -1, 1)
