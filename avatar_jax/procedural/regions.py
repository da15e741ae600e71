"""Mouth and eye regions of an image, from the 68 landmarks."""

from __future__ import annotations

import numpy as np

MOUTH_LANDMARKS, LEFT_EYE_LANDMARKS, RIGHT_EYE_LANDMARKS = slice(48, 68), slice(36, 42), slice(42, 48)


def _ellipse(points: np.ndarray, height: int, width: int, grow: tuple[float, float], least: float) -> np.ndarray:
    """[H, W] bool: inside the ellipse around ``points`` [N, 2], its half axes ``grow`` times those of the points."""
    low, high = points.min(0), points.max(0)
    centre, half = (low + high) / 2, (high - low) / 2
    rx = half[0] * grow[0]
    ry = max(half[1] * grow[1], rx * least)  # a closed eye or mouth keeps some height
    y, x = np.mgrid[:height, :width] + 0.5
    return np.square((x - centre[0]) / max(rx, 1e-6)) + np.square((y - centre[1]) / max(ry, 1e-6)) <= 1


def region_masks(landmarks: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """Regions in which expression shows.

    Args:
        landmarks: [68, 2] (u right, v down) pixels, pixel (i, j) centred at (j + 0.5, i + 0.5).
        height, width: image size.

    Returns:
        ``mouth``, ``eyes`` and ``both``: [H, W] bool.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != (68, 2):
        raise ValueError(f'landmarks: expected [68, 2], got {list(landmarks.shape)}')
    mouth = _ellipse(landmarks[MOUTH_LANDMARKS], height, width, (1.35, 1.5), 0.6)
    eyes = _ellipse(landmarks[LEFT_EYE_LANDMARKS], height, width, (1.4, 1.8), 0.6) | _ellipse(
        landmarks[RIGHT_EYE_LANDMARKS], height, width, (1.4, 1.8), 0.6
    )
    return {'mouth': mouth, 'eyes': eyes, 'both': mouth | eyes}
