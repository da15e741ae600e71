"""From what the face landmarker says to what the project means: expression numbers, and places of landmarks.

Expression numbers of the procedural basis come from 52 blendshapes and the irises by a linear map with known errors.

The map was fitted on rendered procedural heads (``bundled.face_numbers_fit``), whose numbers are known. Its answers are
regressions, drawn to the mean where the landmarker does not see a difference; ``error`` tells how far they are off, and
the fit to the clip weighs them by it. And the mesh's points do not lie where the 68 landmarks of the head models do
(along the jaw, on the brows): their mean distance there is taken off.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from avatar_jax.ops.landmark_layouts import MIRROR
from avatar_jax.procedural.expressions import INDEX

METHOD = 'face_numbers'
WEIGHTS = 'face_numbers'
GAZE = (INDEX['gaze_x'], INDEX['gaze_y'])
# Points of the mesh: outer and inner corner (image left to right), iris, of the eye at the image's left and right.
_EYES = ((33, 133, 468), (362, 263, 473))
_ACROSS, _DOWN = (234, 454), (10, 152)  # ears, and forehead to chin
NUM_FEATURES = 52 + 6


def features(blendshapes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[58]: the blendshapes [52]; where each iris lies from its eye's middle, right and up, in half eye widths; turn of
    the head to the side and up, radians.

    Args:
        points: [478,3] of an upright crop, pixels, y down.
    """
    rows = []
    for left, right, iris in _EYES:
        axis = points[right, :2] - points[left, :2]
        half = max(float(np.linalg.norm(axis)) / 2, 1e-6)
        axis = axis / (2 * half)
        away = (points[iris, :2] - (points[left, :2] + points[right, :2]) / 2) / half
        rows += [away @ axis, away @ [axis[1], -axis[0]]]
    across, down = (points[b] - points[a] for a, b in (_ACROSS, _DOWN))
    return np.array([*blendshapes, *rows, np.arctan2(across[2], across[0]), np.arctan2(down[2], down[1])])


@dataclass(frozen=True)
class FaceNumbers:
    """The map.

    Attributes:
        weight: [58,64]. bias: [64].
        error: [64] root-mean-square error on held-out procedural heads.
        offset: [68,2] eye distances, right and down in an upright crop: how far the mesh's points lie from the
            landmarks.
    """

    weight: np.ndarray
    bias: np.ndarray
    error: np.ndarray
    offset: np.ndarray = field(default_factory=lambda: np.zeros((68, 2)))

    @classmethod
    @functools.cache
    def shipped(cls) -> FaceNumbers:
        """The map in the package."""
        from avatar_jax.io.weights import load_weights, shipped

        found = load_weights(shipped(WEIGHTS), method=METHOD).variables
        return cls(*(np.asarray(found['params'][k], np.float64) for k in ('weight', 'bias', 'error', 'offset')))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Features [..., 58] -> expression [..., 64], not clipped."""
        return values @ self.weight + self.bias

    @staticmethod
    def gaze(expression: np.ndarray) -> np.ndarray:
        """[..., 2] gaze of expressions [..., 64]: to the right of the picture and up, 1 is 24 degrees."""
        return np.clip(expression[..., GAZE], -1, 1)


def fit_map(values: np.ndarray, truth: np.ndarray, held_out: int, ridge: float = 1e-2) -> FaceNumbers:
    """Ridge regression.

    Args:
        values: [N,58] features. truth: [N,64] expressions.
        held_out: so many of the last rows only measure the error.
        ridge: in variances of a feature.
    """
    n = len(values) - held_out
    mean, spread = values[:n].mean(0), values[:n].std(0) + 1e-3
    x, usual = (values[:n] - mean) / spread, truth[:n].mean(0)
    solved = np.linalg.solve(x.T @ x / n + ridge * np.eye(x.shape[1]), x.T @ (truth[:n] - usual) / n)
    weight = solved / spread[:, None]
    out = FaceNumbers(weight, usual - mean @ weight, np.zeros(truth.shape[1]))
    error = np.sqrt(np.square(out(values[n:]) - truth[n:]).mean(0))
    return FaceNumbers(out.weight, out.bias, error)


def eye_distance(points: np.ndarray) -> float:
    """Between the middles of the eyes of landmarks [68,2]."""
    return float(np.linalg.norm(points[36:42].mean(0) - points[42:48].mean(0)))


def mean_offset(read: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[68,2] ``FaceNumbers.offset``, alike on both sides, of landmarks [N,68,2] in upright crops."""
    scale = np.array([eye_distance(points) for points in truth])[:, None, None]
    mean = ((read - truth) / scale).mean(0)
    return (mean + mean[MIRROR] * [-1, 1]) / 2
