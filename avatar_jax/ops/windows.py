"""Motion descriptors: 27-frame windows of expression and pose, as the controllers read them.

Windows are channel-last ([27, C]); ``channel_first=True`` gives the [C, 27] order of stored files. Frames outside the
clip repeat its first or last frame. numpy in, numpy out; JAX in, JAX out.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.ops.arrays import Array, namespace
from avatar_jax.ops.coefficients import NUM_COEFFICIENTS, NUM_RECORD, SLICES

RADIUS = 13
WINDOW = 2 * RADIUS + 1
# What networks read per frame. OTAvatar's released program reads the 70 of 'motion' (its paper says 73: 'pirenderer').
CHANNELS = {
    'expression': ('exp',),
    'motion': ('exp', 'angle', 'trans'),
    'pirenderer': ('exp', 'angle', 'trans', 'crop'),
}
CROP_SCALE_CHANNEL = 70  # of the 73-channel descriptor
MIN_FRAME_WEIGHT = 1e-3


def window_indices(frames: Array, length: int, radius: int = RADIUS) -> Array:
    """Frame numbers i-radius ... i+radius, clamped to the clip: [...] int -> [..., 2*radius+1] int."""
    if length < 1:
        raise UserError('motion: the clip has no frames; give at least one')
    xp = namespace(frames)
    return xp.clip(xp.asarray(frames)[..., None] + np.arange(-radius, radius + 1), 0, length - 1)


def descriptors(records: Array, channels: str = 'motion') -> Array:
    """The numbers of each frame that a controller reads.

    Args:
        records: [..., 257] coefficients or [..., 260] video records.
        channels: 'motion' (expression 64, angle 3, translation 3), 'pirenderer' (also crop 3), 'expression' (64).

    Returns:
        [..., C].

    Raises:
        ValueError: unknown ``channels``, wrong width, or 'pirenderer' without crop numbers.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels='{channels}': choose one of {', '.join(CHANNELS)}")
    width = records.shape[-1]
    if width not in (NUM_COEFFICIENTS, NUM_RECORD) or ('crop' in CHANNELS[channels] and width != NUM_RECORD):
        raise ValueError(f"records of width {width} do not hold the channels '{channels}'")
    return namespace(records).concatenate([records[..., SLICES[part]] for part in CHANNELS[channels]], axis=-1)


def windows(per_frame: Array, frames: Array | None = None, radius: int = RADIUS, channel_first: bool = False) -> Array:
    """Windows around the given frames of one clip.

    Args:
        per_frame: [T, C] descriptors.
        frames: [N] frame numbers; None means all T.
        radius: frames on each side.
        channel_first: [N, C, 2*radius+1] instead of [N, 2*radius+1, C].
    """
    xp = namespace(per_frame)
    index = window_indices(np.arange(per_frame.shape[0]) if frames is None else frames, per_frame.shape[0], radius)
    result = xp.asarray(per_frame)[index]
    return xp.swapaxes(result, -1, -2) if channel_first else result


def motion_windows(
    records: Array,
    frames: Array | None = None,
    channels: str = 'motion',
    radius: int = RADIUS,
    channel_first: bool = False,
) -> Array:
    """``windows(descriptors(records))``: [T, 257 or 260] -> [N, 27, C]."""
    return windows(descriptors(records, channels), frames, radius, channel_first)


def crop_scale_ratio(driving: Array, source: Array, expression_weight: float = 0.3) -> tuple[Array, Array]:
    """Cross-identity normalisation of the crop scale (PIRenderer).

    The driving frame j most like the source is the one with the least
    ``0.3 mean|exp_i - exp_src| + 0.7 mean|angle_i - angle_src|``.

    Args:
        driving: [T, 260] records.
        source: [260] or [1, 260] record.

    Returns:
        (j, scale_src / scale_j): multiply the crop scale of all driving frames by the ratio.
    """
    xp = namespace(driving, source)
    source = source.reshape(-1)

    def distance(part):
        return xp.abs(driving[:, SLICES[part]] - source[SLICES[part]]).mean(-1)

    j = xp.argmin(expression_weight * distance('exp') + (1 - expression_weight) * distance('angle'))
    scale = SLICES['crop'].start
    return j, source[scale] / driving[j, scale]


def scale_crop(windows73: Array, ratio: Array) -> Array:
    """Multiplies the crop-scale channel of channel-last 73-channel windows by ``ratio``."""
    factor = namespace(windows73, ratio).where(np.arange(windows73.shape[-1]) == CROP_SCALE_CHANNEL, ratio, 1.0)
    return (windows73 * factor).astype(windows73.dtype)


def frame_weights(records: Array) -> Array:
    """Unnormalised probability of drawing each frame in training: |expression|_1 + 0.001, [T, >=257] -> [T]."""
    return namespace(records).abs(records[..., SLICES['exp']]).sum(-1) + MIN_FRAME_WEIGHT
