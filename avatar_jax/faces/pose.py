"""Head pose: Euler angles, rigid motion and the perspective camera of the coefficient regressor.

Conventions (Deep3DFaceRecon): lengths in decimetres, y up, z towards the viewer, points are rows. The rotation matrix
returned here multiplies row vectors from the right; as a map of column vectors the head rotation is ``Rz Ry Rx``.

All functions take numpy or JAX arrays and answer in kind, so that data workers need no device and training code stays
differentiable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avatar_jax.ops.arrays import Array, namespace

if TYPE_CHECKING:
    from jaxtyping import Float

CAMERA_DISTANCE = 10.0  # decimetres between the camera and the head origin
FOCAL_224 = 1015.0  # pixels at 224 x 224
CENTER_224 = 112.0
# The head frame inside the EG3D volume: world = 0.27 * decimetres + offset.
EG3D_SCALE = 0.27
EG3D_OFFSET = (0.0, 0.006, 0.161)


def _matrix(xp, rows) -> Array:
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_matrix(angles: Float[Array, '*batch 3']) -> Float[Array, '*batch 3 3']:
    """Euler angles to the row-vector rotation ``(Rz Ry Rx)^T``.

    Args:
        angles: [..., 3] radians: x (pitch, >0 looks down), y (yaw, >0 looks towards image right), z (roll,
            counter-clockwise in the picture).

    Returns:
        [..., 3, 3]; ``points @ R`` rotates rows of points.
    """
    xp = namespace(angles)
    angles = xp.asarray(angles)
    x, y, z = angles[..., 0], angles[..., 1], angles[..., 2]
    one, zero = xp.ones_like(x), xp.zeros_like(x)
    rx = _matrix(xp, [[one, zero, zero], [zero, xp.cos(x), -xp.sin(x)], [zero, xp.sin(x), xp.cos(x)]])
    ry = _matrix(xp, [[xp.cos(y), zero, xp.sin(y)], [zero, one, zero], [-xp.sin(y), zero, xp.cos(y)]])
    rz = _matrix(xp, [[xp.cos(z), -xp.sin(z), zero], [xp.sin(z), xp.cos(z), zero], [zero, zero, one]])
    return xp.swapaxes(rz @ ry @ rx, -1, -2)


def euler_angles(rotation: Float[Array, '*batch 3 3']) -> Float[Array, '*batch 3']:
    """Inverse of ``rotation_matrix`` for |yaw| < 90 degrees: [..., 3, 3] -> [..., 3] radians."""
    xp = namespace(rotation)
    r = xp.swapaxes(xp.asarray(rotation), -1, -2)
    x = xp.arctan2(r[..., 2, 1], r[..., 2, 2])
    y = xp.arctan2(-r[..., 2, 0], xp.sqrt(r[..., 2, 1] ** 2 + r[..., 2, 2] ** 2))
    z = xp.arctan2(r[..., 1, 0], r[..., 0, 0])
    return xp.stack([x, y, z], axis=-1)


def transform(
    points: Float[Array, '*batch n 3'], rotation: Float[Array, '*batch 3 3'], translation: Float[Array, '*batch 3']
) -> Float[Array, '*batch n 3']:
    """``points @ R + t``: [..., N, 3], [..., 3, 3], [..., 3] -> [..., N, 3] (decimetres)."""
    return points @ rotation + translation[..., None, :]


def to_camera(points: Float[Array, '*batch 3'], distance: float = CAMERA_DISTANCE) -> Float[Array, '*batch 3']:
    """Viewer coordinates [..., 3] to camera coordinates (x, y, depth = distance - z)."""
    xp = namespace(points)
    return xp.stack([points[..., 0], points[..., 1], distance - points[..., 2]], axis=-1)


def project(
    camera_points: Float[Array, '*batch 3'], focal: float = FOCAL_224, center: float = CENTER_224
) -> Float[Array, '*batch 2']:
    """Perspective projection to pixels with **v measured upwards**: [..., 3] -> [..., 2]."""
    xp = namespace(camera_points)
    depth = camera_points[..., 2]
    return xp.stack(
        [focal * camera_points[..., 0] / depth + center, focal * camera_points[..., 1] / depth + center], axis=-1
    )


def head_to_world(points: Float[Array, '*batch 3']) -> Float[Array, '*batch 3']:
    """Head frame (decimetres) to the EG3D volume: ``0.27 p + (0, 0.006, 0.161)``."""
    xp = namespace(points)
    return EG3D_SCALE * points + xp.asarray(EG3D_OFFSET, dtype=points.dtype)


def world_to_head(points: Float[Array, '*batch 3']) -> Float[Array, '*batch 3']:
    """Inverse of ``head_to_world``."""
    xp = namespace(points)
    return (points - xp.asarray(EG3D_OFFSET, dtype=points.dtype)) / EG3D_SCALE
