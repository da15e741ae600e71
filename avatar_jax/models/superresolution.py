"""The five super-resolution modules: two style blocks that turn rendered features into the final image.

All six layers take the last style row. The skip path starts from the rendered colours, so the result is the FIR
up-sampled raw image plus two ToRGB residuals.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from avatar_jax.models.layers import RESAMPLE, SynthesisBlock, SynthesisBlockNoUp, rematerialised
from avatar_jax.ops.resize import resize


class Variant(NamedTuple):
    """What distinguishes a module: image size, channels of the two blocks, and how inputs are brought to size."""

    img_resolution: int
    channels: tuple[int, int]
    up: bool  # whether the first block up-samples (the second always does)
    shrink: bool  # whether larger inputs are reduced; if not, they are an error
    antialias: bool  # whether ``sr_antialias`` has a say


VARIANTS: dict[str, Variant] = {
    '8XDC': Variant(512, (256, 128), True, True, True),
    '8X': Variant(512, (128, 64), True, True, True),
    '4X': Variant(256, (128, 64), False, False, True),
    '2X': Variant(128, (128, 64), False, True, True),
    'deepfp32': Variant(256, (128, 64), False, False, False),
}


def input_resolution(variant: str, img_resolution: int | None = None) -> int:
    """Size to which a module resizes its inputs: a quarter or half of the output (128, 128, 128, 64, 128)."""
    spec = _variant(variant)
    size, factor = img_resolution or spec.img_resolution, 4 if spec.up else 2
    if size % factor:
        raise ValueError(f'super-resolution {variant}: image resolution {size} is no multiple of {factor}')
    return size // factor


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f'super-resolution {name!r} is unknown; use one of {", ".join(VARIANTS)}')
    return VARIANTS[name]


class SuperResolution(nn.Module):
    """Rendered colours and features to the image.

    Attributes:
        variant: '8XDC' (512 pixels), '8X' (512), '4X' (256), '2X' (128) or 'deepfp32' (256).
        img_resolution: output size; None: that of the published module.
        channels: output channels of the two blocks; None: those of the published module.
        img_channels: channels of the colour image.
        conv_clamp: limit of activations; 256 for networks trained in half precision.
        sr_antialias: widen the kernel when inputs are reduced ('deepfp32' takes no such option and never does).
        use_noise: whether noise parameters exist.
        resample_filter: FIR taps.
        dtype: type of the feature activations.
        remat: compute the activations of the blocks again in the backward pass instead of keeping them.
    """

    variant: str = '8XDC'
    img_resolution: int | None = None
    channels: tuple[int, int] | None = None
    img_channels: int = 3
    conv_clamp: float | None = 256.0
    sr_antialias: bool = True
    use_noise: bool = True
    resample_filter: tuple[float, ...] = RESAMPLE
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __call__(self, rgb: jax.Array, x: jax.Array, ws: jax.Array, noise_mode: str = 'none') -> jax.Array:
        """Makes the image.

        Args:
            rgb: rendered colours [N, r, r, img_channels], nominally in [-1, 1].
            x: rendered features [N, r, r, C].
            ws: style rows [N, rows, w_dim]; the last one is used.
            noise_mode: 'random', 'const' or 'none'.

        Returns:
            [N, R, R, img_channels] float32, nominally in [-1, 1], not clamped.
        """
        return self.with_raw(rgb, x, ws, noise_mode)[0]

    @nn.compact
    def with_raw(
        self, rgb: jax.Array, x: jax.Array, ws: jax.Array, noise_mode: str = 'none'
    ) -> tuple[jax.Array, jax.Array]:
        """As ``__call__``, and also the raw image as the published programs report it in float32.

        Where the first block neither resizes nor up-samples ('4X' and 'deepfp32' at 128, '2X' at 64), they add its
        ToRGB result to the raw image in place: the second value then is ``rgb`` plus that residual. In all other cases
        it is ``rgb``. Only wanted for bit-compatible comparisons.
        """
        spec = _variant(self.variant)
        size = input_resolution(self.variant, self.img_resolution)
        features = self.channels or spec.channels
        ws = jnp.repeat(ws[:, -1:], 3, axis=1)
        raw, resized = rgb, rgb.shape[1:3] != (size, size)
        if x.shape[1:3] != rgb.shape[1:3]:
            raise ValueError(f'colours {rgb.shape} and features {x.shape} differ in size')
        if resized:
            if rgb.shape[1] > size and not spec.shrink:
                raise ValueError(f'super-resolution {self.variant} takes inputs up to {size} pixels, got {rgb.shape}')
            antialias = self.sr_antialias and spec.antialias
            rgb, x = resize(rgb, size, antialias=antialias), resize(x, size, antialias=antialias)
        options = {
            'img_channels': self.img_channels,
            'use_noise': self.use_noise,
            'resample_filter': self.resample_filter,
            'conv_clamp': self.conv_clamp,
            'dtype': self.dtype,
        }
        first = rematerialised(SynthesisBlock if spec.up else SynthesisBlockNoUp, self.remat, (3,))
        second = rematerialised(SynthesisBlock, self.remat, (3,))
        size *= 2 if spec.up else 1
        x, rgb = first(x.shape[-1], features[0], size, name='block0', **options)(x, rgb, ws, noise_mode)
        if not spec.up and not resized:
            raw = rgb
        x, rgb = second(features[0], features[1], 2 * size, name='block1', **options)(x, rgb, ws, noise_mode)
        return rgb, raw
