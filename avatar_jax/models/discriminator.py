"""Discriminators of EG3D: a residual StyleGAN2 network over the image, or over the image and the enlarged raw image.

The camera label conditions the result by projection: the last layer's vector is multiplied with a mapped label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from avatar_jax.models.layers import RESAMPLE, Conv2dLayer, FullyConnected
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.models.synthesis import block_resolutions
from avatar_jax.ops.resize import filtered_resizing

RAW_FADE_IMAGES = 500_000
RAW_FADE_BATCH = 32


def minibatch_std(
    x: jax.Array, group_size: int | None = 4, num_channels: int = 1, contiguous: bool = False
) -> jax.Array:
    """Appends channels with the standard deviation over groups of samples.

    Args:
        x: [N, H, W, C].
        group_size: samples per group, at most N (None: N); sample n belongs to group n mod (N / size).
        num_channels: how many channels are appended; each averages C / num_channels channels.
        contiguous: sample n belongs to group n // size instead, so that the groups of a batch are the same however the
            batch is divided among devices (into shares of whole groups).

    Returns:
        [N, H, W, C + num_channels] in the dtype of ``x``.
    """
    n, h, w, c = x.shape
    size = n if group_size is None else min(group_size, n)
    if n % size or c % num_channels:
        raise ValueError(f'minibatch std: {x.shape} cannot be split into groups of {size} and {num_channels} channels')
    groups, axis = ((n // size, size), 1) if contiguous else ((size, n // size), 0)
    y = x.reshape(*groups, h, w, num_channels, c // num_channels)
    y = y - y.mean(axis=axis, keepdims=True)
    y = jnp.sqrt(jnp.mean(jnp.square(y), axis=axis) + 1e-8).mean(axis=(1, 2, 4))  # [N / size, num_channels]
    y = (jnp.repeat(y, size, axis=0) if contiguous else jnp.tile(y, (size, 1)))[:, None, None, :]
    return jnp.concatenate([x, jnp.broadcast_to(y, (n, h, w, num_channels))], axis=3)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the size.

    Attributes:
        features: output channels.
        hidden: channels before the reduction.
        from_rgb: whether the input is an image, which a 1x1 convolution (``fromrgb``) first brings to ``hidden``.
        conv_clamp: limit of the convolutions with activation, or None; the shortcut has no limit.
        resample_filter: FIR taps.
        dtype: type of the computation.
    """

    features: int
    hidden: int
    from_rgb: bool = False
    conv_clamp: float | None = None
    resample_filter: tuple[float, ...] = RESAMPLE
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H/2, W/2, features]."""

        def conv(features: int, size: int, name: str, **kw) -> Conv2dLayer:
            return Conv2dLayer(
                features,
                size,
                activation='lrelu',
                resample_filter=self.resample_filter,
                conv_clamp=self.conv_clamp,
                dtype=self.dtype,
                name=name,
                **kw,
            )

        half = 0.5**0.5
        if self.from_rgb:
            x = conv(self.hidden, 1, 'fromrgb')(x)
        shortcut = Conv2dLayer(
            self.features,
            1,
            use_bias=False,
            down=2,
            resample_filter=self.resample_filter,
            dtype=self.dtype,
            name='skip',
        )(x, half)
        x = conv(self.hidden, 3, 'conv0')(x)
        x = conv(self.features, 3, 'conv1', down=2)(x, half)
        return shortcut + x


class DiscriminatorEpilogue(nn.Module):
    """4x4 features to a vector: minibatch standard deviation, convolution, two linear layers; float32.

    Attributes:
        out_features: size of the result.
        conv_clamp: limit of the convolution, or None.
        mbstd_group_size: samples per group of the minibatch standard deviation; None: the whole batch.
        mbstd_num_channels: appended channels; 0: none.
        mbstd_contiguous: see ``minibatch_std``.
    """

    out_features: int
    conv_clamp: float | None = None
    mbstd_group_size: int | None = 4
    mbstd_num_channels: int = 1
    mbstd_contiguous: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, 4, 4, C] -> [N, out_features]."""
        x = x.astype(jnp.float32)
        channels = x.shape[-1]
        if self.mbstd_num_channels:
            x = minibatch_std(x, self.mbstd_group_size, self.mbstd_num_channels, self.mbstd_contiguous)
        x = Conv2dLayer(channels, 3, activation='lrelu', conv_clamp=self.conv_clamp, name='conv')(x)
        x = rearrange(x, 'n h w c -> n (c h w)')  # channel-first, as the weights expect
        x = FullyConnected(channels, 'lrelu', name='fc')(x)
        return FullyConnected(self.out_features, name='out')(x)


class _Discriminator(nn.Module):
    """What the three discriminators share; see ``DualDiscriminator`` for the attributes."""

    c_dim: int = 25
    img_resolution: int = 512
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    conv_clamp: float | None = 256.0
    cmap_dim: int | None = None
    mapping_layers: int = 8
    disc_c_noise: float = 0.0
    mbstd_group_size: int | None = 4
    mbstd_num_channels: int = 1
    resample_filter: tuple[float, ...] = RESAMPLE
    dtype: DTypeLike = jnp.float32
    num_half_res: int = 4
    mbstd_contiguous: bool = False

    def channels(self, resolution: int) -> int:
        """Feature channels at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    def _check_image(self, image: jax.Array) -> None:
        expected = (self.img_resolution, self.img_resolution, self.img_channels)
        if image.ndim != 4 or image.shape[1:] != expected:
            raise ValueError(f'image {image.shape}: expected [N, {", ".join(map(str, expected))}]')

    def _logits(self, x: jax.Array, c: jax.Array | None) -> jax.Array:
        """The network itself, called from the compact method of the subclass."""
        resolutions = block_resolutions(self.img_resolution)[::-1]
        for i, resolution in enumerate(resolutions[:-1]):
            x = DiscriminatorBlock(
                self.channels(resolution // 2),
                self.channels(resolution),
                from_rgb=i == 0,
                conv_clamp=self.conv_clamp,
                resample_filter=self.resample_filter,
                dtype=self.dtype if i < self.num_half_res else jnp.float32,
                name=f'b{resolution}',
            )(x)
        width = 1
        if self.c_dim:
            width = self.channels(4) if self.cmap_dim is None else self.cmap_dim
        x = DiscriminatorEpilogue(
            width, self.conv_clamp, self.mbstd_group_size, self.mbstd_num_channels, self.mbstd_contiguous, name='b4'
        )(x)
        if not self.c_dim:
            return x
        if self.disc_c_noise > 0:
            noise = jax.random.normal(self.make_rng('noise'), c.shape)
            c = c + noise * jnp.std(c, axis=0, ddof=1) * self.disc_c_noise
        cmap = MappingNetwork(0, self.c_dim, width, None, self.mapping_layers, name='mapping')(None, c)
        return jnp.sum(x * cmap, axis=1, keepdims=True) * width**-0.5


class DualDiscriminator(_Discriminator):
    """Judges the final image together with the raw rendering.

    Attributes:
        c_dim: size of the camera label; 0: unconditional, one output per sample.
        img_resolution: height and width of the final image, a power of two from 8 on.
        img_channels: channels of each of the two images.
        channel_base, channel_max: ``min(channel_base // r, channel_max)`` channels at resolution r.
        conv_clamp: limit of activations (256 in the published networks), or None.
        cmap_dim: size of the mapped label; None: the channels at 4x4.
        mapping_layers: layers of the label mapping.
        disc_c_noise: strength of the noise added to labels, in standard deviations of the batch (rng stream ``noise``).
            The caller's labels are not changed.
        mbstd_group_size, mbstd_num_channels, mbstd_contiguous: see ``minibatch_std``.
        resample_filter: FIR taps.
        dtype: type of the activations of the ``num_half_res`` highest resolutions; the rest is float32.
    """

    @nn.compact
    def __call__(self, image: jax.Array, image_raw: jax.Array, c: jax.Array | None = None) -> jax.Array:
        """Scores images.

        Args:
            image: [N, R, R, img_channels] in [-1, 1].
            image_raw: [N, r, r, img_channels] in [-1, 1]; brought to R by antialiased bilinear resizing.
            c: camera labels [N, c_dim].

        Returns:
            logits [N, 1] float32, larger for real.
        """
        self._check_image(image)
        raw = filtered_resizing(image_raw, self.img_resolution, filter_mode='antialiased')
        return self._logits(jnp.concatenate([image, raw], axis=-1), c)


class DummyDualDiscriminator(_Discriminator):
    """As ``DualDiscriminator``, but the raw image fades to zero: for training that starts dual and ends single.

    The factor ``raw_fade`` (collection ``ema_stats``) starts at 1 and falls by 1 / (500000 / 32) with every call that
    has the collection mutable, down to 0.
    """

    @nn.compact
    def __call__(self, image: jax.Array, image_raw: jax.Array, c: jax.Array | None = None) -> jax.Array:
        """As ``DualDiscriminator.__call__``."""
        self._check_image(image)
        fade = self.variable('ema_stats', 'raw_fade', jnp.ones, ())
        raw = filtered_resizing(image_raw, self.img_resolution, filter_mode='antialiased') * fade.value
        if self.is_mutable_collection('ema_stats') and not self.is_initializing():
            fade.value = jnp.maximum(fade.value - RAW_FADE_BATCH / RAW_FADE_IMAGES, 0.0)
        return self._logits(jnp.concatenate([image, raw], axis=-1), c)


class SingleDiscriminator(_Discriminator):
    """Judges the final image alone; attributes as for ``DualDiscriminator``."""

    @nn.compact
    def __call__(self, image: jax.Array, c: jax.Array | None = None) -> jax.Array:
        """image [N, R, R, img_channels] in [-1, 1], labels c [N, c_dim] -> logits [N, 1] float32."""
        self._check_image(image)
        return self._logits(image, c)


def frozen_layers(img_resolution: int, count: int) -> list[tuple[str, str]]:
    """(block, layer) of the first ``count`` convolutions, in the order fromrgb, conv0, conv1, skip, next block, ..."""
    order = []
    for i, resolution in enumerate(block_resolutions(img_resolution)[:0:-1]):
        names = (['fromrgb'] if i == 0 else []) + ['conv0', 'conv1', 'skip']
        order += [(f'b{resolution}', name) for name in names]
    if not 0 <= count <= len(order):
        raise ValueError(f'freeze_layers={count}: a {img_resolution} discriminator has {len(order)} such layers')
    return order[:count]


def freeze_labels(params: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Labels for ``optax.multi_transform``: 'frozen' for the first ``count`` convolutions, else 'trainable'.

    Fine-tuning with the first layers of the discriminator fixed (Freeze-D): give 'frozen' to ``optax.set_to_zero()``.

    Args:
        params: parameters of a discriminator.
        count: number of frozen convolutions, counted as in ``frozen_layers``.

    Returns:
        A tree like ``params`` with a string at every leaf.
    """
    resolution = max(int(name[1:]) for name in params if name.startswith('b') and name[1:].isdigit())
    frozen = frozen_layers(resolution, count)

    def label(path, _) -> str:
        return 'frozen' if tuple(k.key for k in path[:2]) in frozen else 'trainable'

    return jax.tree_util.tree_map_with_path(label, dict(params))


Discriminator = DualDiscriminator | SingleDiscriminator
