"""Cameras of the procedural data: labels of head poses, several cameras around one head, orbits.

The world of a label is the head frame, so a moving head before a fixed camera and a moving camera before a fixed head
are the same thing: the label holds the pose. The conversion from pose to label is the raw one of EG3D's preparation
(no normalisation of the radius), which is exact: head points project where the coefficients say.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.faces.pose import euler_angles, rotation_matrix


def pose_labels(angle: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Camera labels [..., 25] float32 of head poses: angles [..., 3] (rad), translations [..., 3] (dm)."""
    return label_from_pose(np.asarray(angle, np.float64), np.asarray(translation, np.float64), mode='raw')


def seen_from(
    angle: np.ndarray,
    translation: np.ndarray,
    camera_yaw: float,
    camera_pitch: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The same head poses as another camera of a rig sees them.

    The rig's cameras stand on a sphere around the head's resting place and look at its centre.

    Args:
        angle, translation: [..., 3] as the front camera sees them (rad, dm).
        camera_yaw: rad; a camera moved to the right of the picture (positive) sees the head turned to the left.
        camera_pitch: rad; a camera moved up (positive) sees the head look down.
    Returns:
        angles [..., 3] and translations [..., 3] in that camera's frame, float64.
    """
    head = np.swapaxes(rotation_matrix(np.asarray(angle, np.float64)), -1, -2)  # maps column vectors
    about_y = rotation_matrix(np.array([0.0, -camera_yaw, 0.0])).T
    about_x = rotation_matrix(np.array([camera_pitch, 0.0, 0.0])).T
    camera = about_x @ about_y
    turned = camera @ head
    return euler_angles(np.swapaxes(turned, -1, -2)), np.asarray(translation, np.float64) @ camera.T


def rig_yaws(num_cameras: int, spread: float = np.deg2rad(30.0)) -> np.ndarray:
    """Yaws [num_cameras] of a rig's cameras, the front one first, then alternating to both sides up to +-spread."""
    if num_cameras < 1:
        raise ValueError(f'a rig has at least one camera, got {num_cameras}')
    steps = num_cameras // 2
    yaws = [0.0]
    for k in range(1, steps + 1):
        yaws += [spread * k / steps, -spread * k / steps]
    return np.array(yaws[:num_cameras])


def orbit_poses(
    num_frames: int,
    yaw: float = np.deg2rad(35.0),
    pitch: float = np.deg2rad(12.0),
) -> tuple[np.ndarray, np.ndarray]:
    """A closed camera swing as head poses: angles [T,3] and translations [T,3] (zero).

    The camera starts in front and goes round an ellipse of the given half-axes; ``pose_labels`` makes labels of it.
    """
    phase = 2 * np.pi * np.arange(num_frames) / num_frames
    angle = np.stack([pitch * (1 - np.cos(phase)) / 2, yaw * np.sin(phase), np.zeros(num_frames)], axis=-1)
    return angle, np.zeros((num_frames, 3))
