"""Smoothing in time of what was measured by frame: landmarks before poses are fitted, labels before training."""

from __future__ import annotations

import numpy as np

from avatar_jax.faces.camera_labels import split_label

LANDMARK_SIGMA = 2.0  # frames
LABEL_SIGMA = 3.0


def smooth_in_time(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the first axis, mirrored at the ends (the end frame is repeated first).

    Args:
        values: [T, ...].
        sigma: standard deviation in frames; 0 leaves the values alone. The kernel ends at 4 sigma.

    Returns:
        the same shape, float64.
    """
    from scipy.ndimage import gaussian_filter1d

    values = np.asarray(values, np.float64)
    if sigma < 0:
        raise ValueError(f'sigma={sigma}: must not be negative')
    if not sigma or len(values) < 2:
        return values
    return gaussian_filter1d(values, sigma, axis=0, mode='reflect', truncate=4.0)


def smooth_landmarks(landmarks: np.ndarray, sigma: float = LANDMARK_SIGMA) -> np.ndarray:
    """Landmarks [T, N, 2] of the frames that have some, in the order of time, smoothed as the release does."""
    return smooth_in_time(landmarks, sigma)


def smooth_labels(labels: np.ndarray, sigma: float = LABEL_SIGMA) -> np.ndarray:
    """Camera labels [T, 25] smoothed in time; rotations stay rotations (the nearest one to each mean).

    The released data set class has such a smoothing, with 3 frames, but does not call it.
    """
    labels = np.asarray(labels)
    pose, _ = split_label(smooth_in_time(labels, sigma))
    u, _, vt = np.linalg.svd(pose[:, :3, :3])
    mirrored = np.linalg.det(u @ vt) < 0
    u[mirrored, :, 2] *= -1
    out = labels.astype(np.float32).copy()
    moved = pose.copy()
    moved[:, :3, :3] = u @ vt
    out[:, :16] = moved.reshape(-1, 16)
    return out
