"""StyleGAN2 synthesis network, the backbone that draws the three feature planes as one many-channel image."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from avatar_jax.models.layers import RESAMPLE, SynthesisBlock, check_noise_mode, rematerialised


def block_resolutions(img_resolution: int) -> list[int]:
    """[4, 8, ..., img_resolution]; ``ValueError`` unless that is a power of two from 4 on."""
    if img_resolution < 4 or img_resolution & (img_resolution - 1):
        raise ValueError(f'image resolution {img_resolution}: must be a power of two, 4 at least')
    return [2**i for i in range(2, img_resolution.bit_length())]


def num_style_rows(img_resolution: int) -> int:
    """Rows of w that a network of this resolution takes: 14 for 256."""
    return 2 * len(block_resolutions(img_resolution))


class SynthesisNetwork(nn.Module):
    """Style rows to image: blocks ``b4``, ``b8``, ... up to ``img_resolution``.

    Attributes:
        img_resolution: output height and width, a power of two.
        img_channels: output channels, 96 for three planes of 32.
        channel_base, channel_max: block of resolution r has ``min(channel_base // r, channel_max)`` channels.
        conv_clamp: limit of activations, None in the published backbones.
        use_noise: whether noise parameters exist.
        resample_filter: FIR taps.
        dtype: type of the activations; the image is float32.
        remat: compute the activations of the blocks again in the backward pass instead of keeping them.
        num_half_res: how many of the highest resolutions run in ``dtype``; the others, and always the 4x4 block, run in
            float32. None: all but the 4x4 block.
    """

    img_resolution: int
    img_channels: int
    channel_base: int = 32768
    channel_max: int = 512
    conv_clamp: float | None = None
    use_noise: bool = True
    resample_filter: tuple[float, ...] = RESAMPLE
    dtype: DTypeLike = jnp.float32
    num_half_res: int | None = None
    remat: bool = False

    @property
    def num_ws(self) -> int:
        """Style rows that ``__call__`` takes."""
        return num_style_rows(self.img_resolution)

    def channels(self, resolution: int) -> int:
        """Feature channels of the block of that resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    @nn.compact
    def __call__(
        self, ws: jax.Array, noise_mode: str = 'random', tap: int | None = None
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """ws [N, num_ws, w_dim] -> image [N, img_resolution, img_resolution, img_channels], float32, unbounded.

        ``noise_mode``: 'random' (rng stream ``noise``), 'const' or 'none'. ``tap``: also return the features
        [N, tap, tap, C] that leave the block of that resolution, in its dtype.
        """
        check_noise_mode(noise_mode)
        if ws.ndim != 3 or ws.shape[1] != self.num_ws:
            raise ValueError(f'ws {ws.shape}: a {self.img_resolution} network takes [N, {self.num_ws}, w_dim]')
        resolutions = block_resolutions(self.img_resolution)
        halves = len(resolutions) if self.num_half_res is None else self.num_half_res
        if tap is not None and tap not in resolutions:
            raise ValueError(f'tap: {tap}; this network has the resolutions {", ".join(map(str, resolutions))}')
        x = img = tapped = None
        row = 0
        for i, resolution in enumerate(resolutions):
            block = rematerialised(SynthesisBlock, self.remat, (3,))(
                in_channels=self.channels(resolution // 2) if i else 0,
                features=self.channels(resolution),
                resolution=resolution,
                img_channels=self.img_channels,
                use_noise=self.use_noise,
                resample_filter=self.resample_filter,
                conv_clamp=self.conv_clamp,
                dtype=self.dtype if i and i >= len(resolutions) - halves else jnp.float32,
                name=f'b{resolution}',
            )
            # The row of ToRGB is also the first row of the next block.
            x, img = block(x, img, ws[:, row : row + block.num_conv + 1], noise_mode)
            tapped = x if resolution == tap else tapped
            row += block.num_conv
        return img if tap is None else (img, tapped)
