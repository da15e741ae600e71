"""Cameras of HFA-GP: the two axis conventions, the orbit for novel views, and the cameras of basis previews.

A label has 25 numbers: camera-to-world row by row (16), then normalised intrinsics (9), constant for all frames. Stored
labels and the generator use OpenCV axes (x right, y down, z forward); the released data set class hands them on in
OpenGL axes (x right, y up, z backward), and the released model turns them back. The two flips cancel, so the generator
gets the stored labels, and nothing here needs them but readers of foreign files and comparisons with the release.
"""

from __future__ import annotations

import math

import numpy as np

from avatar_jax.faces.camera_labels import flip_axes, make_label, pose_matrix

AXES = ('opencv', 'opengl')
RADIUS = 2.7
__all__ = ['facing_origin', 'flip_axes', 'front_label', 'orbit_labels', 'sphere_position']


def sphere_position(theta: np.ndarray, phi: np.ndarray, radius: float = RADIUS) -> np.ndarray:
    """Camera positions [..., 3] around the head: theta turns it around the vertical axis, phi lowers it (both pi/2 in
    front). phi is kept within [1e-5, pi - 1e-5].
    """
    theta = np.asarray(theta, np.float64)
    phi = np.clip(np.asarray(phi, np.float64), 1e-5, math.pi - 1e-5)
    return radius * np.stack([np.sin(phi) * np.cos(theta), np.cos(phi), np.sin(phi) * np.sin(theta)], -1)


def facing_origin(position: np.ndarray, axes: str = 'opencv') -> np.ndarray:
    """Camera-to-world [..., 4, 4] of cameras at ``position`` [..., 3] that look at the origin, upright."""
    if axes not in AXES:
        raise ValueError(f'axes={axes!r}: use one of {", ".join(AXES)}')

    def unit(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    forward = unit(-np.asarray(position, np.float64))
    left = unit(np.cross(np.broadcast_to([0.0, 1.0, 0.0], forward.shape), forward))
    up = unit(np.cross(forward, left))
    down, ahead = (-up, forward) if axes == 'opencv' else (up, -forward)
    return pose_matrix(np.stack([-left, down, ahead], -1), np.asarray(position, np.float64))


def orbit_labels(frames: int, period: float = 120.0, radius: float = RADIUS) -> np.ndarray:
    """Labels [T, 25] float32 of the released novel-view orbit: 18 degrees to the sides, 9 up and down."""
    phase = 2 * math.pi * np.arange(frames) / period
    theta, phi = math.pi * (0.5 + 0.1 * np.cos(phase)), math.pi * (0.5 - 0.05 * np.sin(phase))
    return make_label(facing_origin(sphere_position(theta, phi, radius)))


def front_label(radius: float = RADIUS) -> np.ndarray:
    """The label [25] from straight ahead, for previews."""
    return make_label(facing_origin(sphere_position(math.pi / 2, math.pi / 2, radius)))
