"""Head pose and camera label from a few landmarks: a regularised least-squares fit of the mean face.

Five points of one photograph determine a pose only roughly, because nobody is the mean face. The fit therefore weighs
the points by their accuracy and holds the angles and the distance near those of a usual portrait.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from avatar_jax.faces.alignment import STANDARD_POINTS
from avatar_jax.faces.camera_labels import CROP, FOCAL_1024, label_from_pose
from avatar_jax.faces.pose import CAMERA_DISTANCE, project, rotation_matrix, to_camera, transform

ANGLE_SPREAD = np.deg2rad([10.0, 20.0, 30.0])  # pitch, yaw, roll of portraits: standard deviations of the prior
DEPTH_SPREAD = 0.3  # decimetres, about the crop's nominal distance
# Decimetres by which a person's points differ from the mean face (x, y): faces are symmetric, so less sideways.
POINT_SPREAD = np.array([0.02, 0.04])


@dataclasses.dataclass(frozen=True)
class HeadPose:
    """A head in front of the coefficient regressor's camera (``faces.pose``).

    Attributes:
        angle: [3] radians: pitch (>0 down), yaw (>0 towards image right), roll (counter-clockwise).
        trans: [3] decimetres.
        residual: root-mean-square distance of the points from the fit, in decimetres on the face.
    """

    angle: np.ndarray
    trans: np.ndarray
    residual: float


def fit_pose(
    points_up: np.ndarray,
    standard: np.ndarray = STANDARD_POINTS,
    *,
    focal: float,
    center: tuple[float, float],
    sigma: np.ndarray | float = 0.0,
    depth_spread: float = DEPTH_SPREAD,
    iterations: int = 30,
) -> HeadPose:
    """Most probable pose of the mean face for points measured with known accuracy (Gauss-Newton).

    Args:
        points_up: [N, 2] pixels, y **up**.
        standard: [N, 3] the same points on the mean face, decimetres.
        focal: pixels.
        center: principal point, pixels, y up.
        sigma: [N, 2], [N, 1] or scalar measuring error in decimetres on the face.
        depth_spread: decimetres by which the head may be nearer or farther than the nominal distance; large values
            leave its size in the picture free.

    Raises:
        ValueError: fewer than three points, or points that are not finite.
    """
    points = np.asarray(points_up, np.float64)
    standard = np.asarray(standard, np.float64)
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError('a head pose needs three or more finite points')
    center = np.asarray(center, np.float64)
    per_pixel = CAMERA_DISTANCE / focal  # decimetres per pixel at the nominal distance
    weight = per_pixel / np.sqrt(np.broadcast_to(sigma, points.shape) ** 2 + POINT_SPREAD**2)
    start = (points.mean(0) - center) * per_pixel - standard.mean(0)[:2]
    state = np.array([0.0, 0.0, 0.0, *start, 0.0])

    def projection(x: np.ndarray) -> np.ndarray:
        seen = to_camera(transform(standard, rotation_matrix(x[:3]), x[3:]))
        return project(seen, focal, 0.0) + center

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.concatenate([((projection(x) - points) * weight).ravel(), x[:3] / ANGLE_SPREAD, x[5:] / depth_spread])

    limit = np.array([0.3, 0.3, 0.3, 5.0, 5.0, 1.0])  # per step, so that a bad start cannot turn the head over
    for _ in range(iterations):
        now = residuals(state)
        jacobian = np.stack([(residuals(state + h) - now) / 1e-6 for h in np.eye(6) * 1e-6], axis=1)
        step = np.linalg.solve(jacobian.T @ jacobian + 1e-9 * np.eye(6), -jacobian.T @ now)
        step = np.clip(step, -limit, limit)
        state = state + step
        if np.abs(step).max() < 1e-9:
            break
    fitted = projection(state)
    residual = np.sqrt(((fitted - points) ** 2).sum(-1).mean()) * per_pixel
    return HeadPose(state[:3], state[3:], float(residual))


def crop_pose(points: np.ndarray, size: int, sigma: np.ndarray | float = 0.0) -> HeadPose:
    """Pose of a head in EG3D's aligned crop.

    Args:
        points: [5, 2] pixels of the crop, y down, integers at pixel centres.
        size: side of the crop.
        sigma: see ``fit_pose``.
    """
    up = np.stack([points[:, 0] + 0.5, size - 0.5 - points[:, 1]], axis=-1)  # continuous coordinates, y up
    return fit_pose(up, focal=FOCAL_1024 * size / CROP, center=(size / 2, size / 2), sigma=sigma)


def crop_label(pose: HeadPose, mode: str = 'orig') -> np.ndarray:
    """EG3D camera label [25] of a pose found in the aligned crop; ``mode`` as ``camera_labels.normalise_pose``."""
    return label_from_pose(pose.angle, pose.trans, mode).astype(np.float32)
