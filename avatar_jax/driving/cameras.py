"""The cameras of a video: they follow the driver's head, circle around the avatar, or stand still."""

from __future__ import annotations

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import PIVOT, intrinsics, label_from_pose, make_label, orbit_pose, split_label
from avatar_jax.faces.translation import pivot_place, translate_label
from avatar_jax.types import Avatar, Config, Motion

CAMERAS = ('track', 'orbit', 'fixed')
MOVES = ('none', 'shift', 'zoom')
BEHIND = 100.0  # degrees from the front beyond which no face is seen


def camera_labels(kind: str, config: Config, avatar: Avatar, motion: Motion, move: str = 'none') -> np.ndarray:
    """Camera labels [T,25] of a video.

    Args:
        kind: 'track' follows the driver's head, as the paper does (the head stands still in the world, so its pose is
            the camera's); 'orbit' circles around the head (the released program's ``--rotate``); 'fixed' is the
            camera of the portrait, or a frontal one if the avatar has none.
        move: with 'track', what becomes of the head's way through the driver's picture where the model's cameras have
            one distance, which discards it: 'none'; 'shift' lets the head move up, down and sideways as much as the
            driver's since the first frame; 'zoom' lets it come nearer and go away as well.

    Raises:
        UserError: an unknown name, or a movement where it means nothing or is there already.
    """
    if move not in MOVES:
        raise UserError(f'--move {move}: use one of {", ".join(MOVES)}')
    if move != 'none' and kind != 'track':
        raise UserError(f"--move {move}: goes with --camera track, which follows the driver's head")
    if move != 'none' and config.label_mode == 'raw':
        raise UserError(f'--move {move}: the cameras of these weights follow the head already; leave it out')
    if kind not in CAMERAS:
        raise UserError(f'camera {kind!r}: use one of {", ".join(CAMERAS)}')
    frames = motion.num_frames
    if kind == 'track':
        angle, translation = np.asarray(motion.angle, np.float32), np.asarray(motion.translation, np.float32)
        labels = np.asarray(label_from_pose(angle, translation, config.label_mode), np.float32)
        if move == 'none':
            return labels
        places, depths = pivot_place(np.asarray(label_from_pose(angle, translation, 'raw'), np.float64))
        labels, offset, zoom = labels.astype(np.float64), places - places[0], None
        if move == 'zoom':
            zoom = depths[0] / depths
            # A camera that comes nearer enlarges around the picture's middle, where the head need not be.
            offset = offset + (pivot_place(labels)[0] - 0.5) * (1 - zoom[:, None])
        return np.asarray(translate_label(labels, offset, zoom), np.float32)
    if kind == 'orbit':
        return np.asarray(make_label(orbit_pose(np.arange(frames, dtype=np.float64)), intrinsics()), np.float32)
    if avatar.camera is not None:
        label = np.asarray(avatar.camera.label, np.float32)
    else:
        zero = np.zeros(3, np.float32)
        label = np.asarray(label_from_pose(zero, zero, config.label_mode), np.float32)
    return np.broadcast_to(label, (frames, 25))


def behind_note(labels: np.ndarray) -> str:
    """One line where cameras [T, 25] see the back of the head, which no portrait shows; '' elsewhere."""
    away = split_label(np.asarray(labels, np.float64))[0][:, :3, 3] - PIVOT
    angles = np.degrees(np.arccos(np.clip(away[:, 2] / np.linalg.norm(away, axis=1), -1, 1)))
    behind = angles > BEHIND
    if not behind.any():
        return ''
    return (
        f'{behind.sum()} of {len(labels)} frames look at the head from behind (up to {angles.max():.0f} degrees from '
        'the front), which no portrait shows: what is seen there is made up'
    )
