"""The camera of the fit: a pinhole of unknown focal length before the whole picture.

A pose is six numbers: Euler angles of ``faces.pose`` (radians), the place of the head's origin in the picture in units
of the focal length (x right, y **up**, from the principal point), and the logarithm of its distance in decimetres. The
last three hardly depend on each other, whatever the lens, which is what the solver wants.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.pose import CAMERA_DISTANCE, rotation_matrix

POSE = 6


def seen(points: jax.Array, pose: jax.Array, focal: jax.Array, centre: jax.Array) -> jax.Array:
    """Head points [N,3] (decimetres) under one pose [6] -> pixels [N,2], y down, first pixel centred at 0.5."""
    turned = points @ rotation_matrix(pose[:3])
    distance = jnp.exp(pose[5])
    depth = jnp.maximum(distance - turned[:, 2], 0.05 * distance)
    x = (turned[:, 0] + pose[3] * distance) / depth
    y = (turned[:, 1] + pose[4] * distance) / depth
    return jnp.stack([centre[0] + focal * x, centre[1] - focal * y], -1)


def from_translation(angle: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Pose [..., 6] of the regressor's angle [..., 3] and translation [..., 3] (decimetres, camera at 10)."""
    distance = CAMERA_DISTANCE - translation[..., 2]
    place = translation[..., :2] / distance[..., None]
    return np.concatenate([angle, place, np.log(distance)[..., None]], -1)


def to_translation(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse: (angle [..., 3], translation [..., 3])."""
    distance = np.exp(pose[..., 5])
    shift = pose[..., 3:5] * distance[..., None]
    return pose[..., :3], np.concatenate([shift, (CAMERA_DISTANCE - distance)[..., None]], -1)
