"""The cameras of a video: they follow the driver's head, circle around the avatar, or stand still."""

from __future__ import annotations

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import intrinsics, label_from_pose, make_label, orbit_pose
from avatar_jax.types import Avatar, Config, Motion

CAMERAS = ('track', 'orbit', 'fixed')


def camera_labels(kind: str, config: Config, avatar: Avatar, motion: Motion) -> np.ndarray:
    """Camera labels [T,25] of a video.

    Args:
        kind: 'track' follows the driver's head, as the paper does (the head stands still in the world, so its pose is
            the camera's); 'orbit' circles around the head (the released program's ``--rotate``); 'fixed' is the
            camera of the portrait, or a frontal one if the avatar has none.
    """
    if kind not in CAMERAS:
        raise UserError(f'camera {kind!r}: use one of {", ".join(CAMERAS)}')
    frames = motion.num_frames
    if kind == 'track':
        angle, translation = np.asarray(motion.angle, np.float32), np.asarray(motion.translation, np.float32)
        return np.asarray(label_from_pose(angle, translation, config.label_mode), np.float32)
    if kind == 'orbit':
        return np.asarray(make_label(orbit_pose(np.arange(frames, dtype=np.float64)), intrinsics()), np.float32)
    if avatar.camera is not None:
        label = np.asarray(avatar.camera.label, np.float32)
    else:
        zero = np.zeros(3, np.float32)
        label = np.asarray(label_from_pose(zero, zero, config.label_mode), np.float32)
    return np.broadcast_to(label, (frames, 25))
