"""Which pixels of a head's picture teach most: those of the head more than others, those of mouth and eyes most."""

from __future__ import annotations

import numpy as np

BACKGROUND, HEAD, MOUTH, EYE = 0.3, 1.0, 6.0, 14.0  # eyes are small
_COVERED = 8  # of 255: from here on a pixel counts as the head's
_PARTS = ((48, 68), (36, 42), (42, 48))  # landmarks of mouth and eyes


def part_boxes(landmarks: np.ndarray) -> np.ndarray:
    """[N,3,4] integer boxes (x0, y0, x1, y1) around mouth and both eyes of landmarks [N,68,2] in pixels."""
    boxes = []
    for first, last in _PARTS:
        points = landmarks[:, first:last]
        low, high = points.min(1), points.max(1)
        pad = 0.3 * (high - low).max(-1, keepdims=True) + 1
        boxes.append(np.concatenate([np.floor(low - pad), np.ceil(high + pad)], -1))
    return np.stack(boxes, 1).astype(int)


def importance(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[N,H,W] float32 importance of every pixel; masks [N,H,W] uint8 (255 = head), ``boxes`` of ``part_boxes``."""
    covered = masks > _COVERED
    out = np.where(covered, HEAD, BACKGROUND).astype(np.float32)
    for row, parts in enumerate(boxes):
        for (x0, y0, x1, y1), weight in zip(parts, (MOUTH, EYE, EYE), strict=True):
            box = np.s_[row, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
            out[box] = np.where(covered[box], weight, out[box])
    return out
