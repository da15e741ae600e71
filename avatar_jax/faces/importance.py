"""Which pixels of a head's picture teach most: those of the head more than others, those of mouth and eyes most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avatar_jax.checks import Check

_COVERED = 8  # of 255: from here on a pixel counts as the head's
_EDGE = 3 / 128  # of the picture's side: how far on both sides the outline reaches
_PARTS = ((48, 68), (36, 42), (42, 48))  # landmarks of mouth and eyes


@dataclass(frozen=True)
class Importance:
    """How often pixels are drawn, in proportion.

    Attributes:
        background, head, mouth, eye: by what a pixel shows; eyes are small.
        edge: near the head's outline, where it is more than the above; 0: no more than others.
    """

    background: float = 0.3
    head: float = 1.0
    mouth: float = 6.0
    eye: float = 14.0
    edge: float = 0.0

    def __post_init__(self):
        check = Check(self, 'importance')
        check.at_least(0, 'background', 'mouth', 'eye', 'edge')
        check.above(0, 'head')


def part_boxes(landmarks: np.ndarray) -> np.ndarray:
    """[N,3,4] integer boxes (x0, y0, x1, y1) around mouth and both eyes of landmarks [N,68,2] in pixels."""
    boxes = []
    for first, last in _PARTS:
        points = landmarks[:, first:last]
        low, high = points.min(1), points.max(1)
        pad = 0.3 * (high - low).max(-1, keepdims=True) + 1
        boxes.append(np.concatenate([np.floor(low - pad), np.ceil(high + pad)], -1))
    return np.stack(boxes, 1).astype(int)


def importance(masks: np.ndarray, boxes: np.ndarray, weights: Importance | None = None) -> np.ndarray:
    """[N,H,W] float32 importance of every pixel; masks [N,H,W] uint8 (255 = head), ``boxes`` of ``part_boxes``."""
    weights = weights or Importance()
    covered = masks > _COVERED
    out = np.where(covered, weights.head, weights.background).astype(np.float32)
    if weights.edge:
        from scipy.ndimage import maximum_filter, minimum_filter

        wide = 2 * max(1, round(_EDGE * masks.shape[1])) + 1
        size = (1, wide, wide)
        edge = maximum_filter(covered, size) & ~minimum_filter(covered, size)
        out = np.where(edge, np.maximum(out, np.float32(weights.edge)), out)
    for row, parts in enumerate(boxes):
        for (x0, y0, x1, y1), weight in zip(parts, (weights.mouth, weights.eye, weights.eye), strict=True):
            box = np.s_[row, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
            out[box] = np.where(covered[box], weight, out[box])
    return out
