"""The default landmark backend: this project's own network on crops around a face."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.models.perception.face_net import FACE_NET_METHOD, FaceNet, FaceNetConfig, crop_matrix
from avatar_jax.ops.landmark_layouts import MIRROR
from avatar_jax.parallel import as_arrays
from avatar_jax.procedural.expressions import mirror_expression
from avatar_jax.track.detect import Face, apply, inverse, rotation
from avatar_jax.types import PyTree

WEIGHTS = 'face_net'
# Where the crop lies in a cascade's box: its side in box sides, and its centre below the box's centre.
BOX_SCALE, BOX_DROP = 1.45, 0.06
# Variations of a crop over which a photograph's landmarks are averaged: (zoom, turn in radians, mirrored).
VARIATIONS = (
    (1.0, 0.0, False),
    (1.0, 0.0, True),
    (1.08, 0.08, False),
    (1.08, -0.08, True),
    (0.93, -0.08, False),
    (0.93, 0.08, True),
)
QUICK = VARIATIONS[:2]
PRESENT = 0.5  # probability of a face below which it counts as gone
# Of readings that are faces (of the face's size): at most so much between a crop and its mirror image, and so large an
# expected error. Faces in photographs have 0.03 to 0.08 and 0.04 to 0.06, patterns 0.13 and 0.08 or more.
_AGREE, _ERROR = 0.10, 0.075


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was read of one face in a picture.

    Attributes:
        points: [68,2] pixels, y down, first pixel centred at 0.5.
        sigma: [68] expected error per axis in pixels.
        expression: [64] in the procedural basis, or None; angle: [3] radians, or None.
        present: probability that there is a face.
        spread: mean distance in pixels between the points of a crop and those of its mirror image; 0 where only one of
            them was read.
        gaze: [2] to the right of the picture and up, 1 is 24 degrees, or None where it was not measured.
    """

    points: np.ndarray
    sigma: np.ndarray
    expression: np.ndarray | None = None
    angle: np.ndarray | None = None
    present: float = 1.0
    spread: float = 0.0
    gaze: np.ndarray | None = None

    @property
    def is_face(self) -> bool:
        """Whether the network is sure, and answers the same to the mirror image: it has a guess for every picture."""
        size = max(self.size, 1e-6)
        return bool(self.present > PRESENT and self.spread < _AGREE * size and np.median(self.sigma) < _ERROR * size)

    @property
    def size(self) -> float:
        """Root-mean-square distance of the points from their mean."""
        return float(np.sqrt(((self.points - self.points.mean(0)) ** 2).sum(-1).mean()))


@functools.cache
def _load(path: str) -> tuple[Any, FaceNetConfig, dict[str, np.ndarray], str]:
    from avatar_jax.configure import from_plain
    from avatar_jax.io.weights import load_weights

    weights = load_weights(path, method=FACE_NET_METHOD)
    config = from_plain(FaceNetConfig, weights.config)
    calibration = weights.variables.get('calibration', {})
    variables = {k: weights.variables[k] for k in ('params', 'batch_stats')}
    return as_arrays(variables), config, calibration, weights.sha256


class FaceReader:
    """Landmarks, expression, angle and mask of faces in pictures.

    Args:
        path: weight file; the shipped one by default.

    Raises:
        UserError: not such weights.
    """

    name = 'network'

    def __init__(self, path: str | None = None):
        from avatar_jax.io.weights import shipped

        self.variables, self.config, self.calibration, self.sha256 = _load(str(path or shipped(WEIGHTS)))
        net = FaceNet(self.config)
        self._run = jax.jit(lambda v, x: net.apply(v, x.astype(jnp.float32) / 127.5 - 1))

    def run(self, crops: np.ndarray) -> PyTree:
        """Network output (numpy) for crops [N,side,side,3] uint8, one compilation for each of few sizes of N."""
        n = len(crops)
        size = next(s for s in (1, 2, 6, 16, n) if s >= n)
        padded = np.concatenate([crops, np.repeat(crops[-1:], size - n, 0)]) if size > n else crops
        return jax.tree.map(lambda a: np.asarray(a)[:n], self._run(self.variables, padded))

    def from_box(self, pixels: np.ndarray, face: Face) -> Reading:
        """Reads a detected face: from its box, then from the crop around what was found, then averaged."""
        side = self.config.side
        turn = rotation(face.tilt, face.center)
        middle = face.center + apply(inverse(rotation(face.tilt, np.zeros(2))), np.array([0, BOX_DROP * face.size]))
        scale = side / (BOX_SCALE * face.size)
        linear = turn[:, :2] * scale
        matrix = np.concatenate([linear, (side / 2 - linear @ middle)[:, None]], 1)
        first = self.read(pixels, matrix, QUICK)
        second = self.around(pixels, first.points, QUICK)
        return self.around(pixels, second.points, VARIATIONS)

    def around(self, pixels: np.ndarray, points: np.ndarray, variations: tuple = QUICK) -> Reading:
        """Reads the face at roughly known landmarks [68,2]."""
        return self.read(pixels, crop_matrix(points, self.config.side), variations)

    def read(self, pixels: np.ndarray, matrix: np.ndarray, variations: tuple = QUICK) -> Reading:
        """Reads the crop that ``matrix`` [2,3] (pixels -> crop) cuts out, averaged over ``variations`` of it."""
        side = self.config.side
        matrices, crops = [], []
        for zoom, turn, mirrored in variations:
            linear = zoom * rotation(np.rad2deg(turn), np.zeros(2))[:, :2]
            varied = np.concatenate(
                [linear @ matrix[:, :2], (linear @ (matrix[:, 2] - side / 2) + side / 2)[:, None]], 1
            )
            crop = cut(pixels, varied, side)
            matrices.append(varied)
            crops.append(crop[:, ::-1] if mirrored else crop)
        out = self.run(np.stack(crops))
        points, sigmas, expressions, angles = [], [], [], []
        for i, (*_, mirrored) in enumerate(variations):
            p, s, e, a = out.landmarks[i] * side, np.exp(out.log_sigma[i]) * side, out.expression[i], out.angle[i]
            if mirrored:
                p = np.stack([side - p[:, 0], p[:, 1]], 1)[MIRROR]
                s, e, a = s[MIRROR], mirror_expression(e), a * np.array([1, -1, -1])
            scale = np.sqrt(abs(np.linalg.det(matrices[i][:, :2])))
            points.append(apply(inverse(matrices[i]), p))
            sigmas.append(s / scale)
            roll = np.arctan2(matrices[i][0, 1], matrices[i][0, 0])  # by which the crop was turned counter-clockwise
            expressions.append(e)
            angles.append(a - np.array([0, 0, roll]))
        present = float(1 / (1 + np.exp(-np.clip(out.present.mean(), -30, 30))))
        spread = float(np.linalg.norm(points[0] - points[1], axis=1).mean()) if len(points) > 1 else 0.0
        numbers = (np.mean(a, 0) for a in (points, sigmas, expressions, angles))
        return Reading(*numbers, present, spread)

    def masks(self, crops: np.ndarray) -> np.ndarray:
        """Head masks [N,S,S] in [0,1] of aligned crops [N,S,S,3] uint8, at their own size."""
        import cv2

        side, size = self.config.side, crops.shape[1]
        small = np.stack([cv2.resize(c, (side, side), interpolation=cv2.INTER_AREA) for c in crops])
        logits = self.run(small).mask
        return np.stack([1 / (1 + np.exp(-cv2.resize(m, (size, size), interpolation=cv2.INTER_CUBIC))) for m in logits])


def cut(pixels: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """The square [side,side,3] that ``matrix`` (first pixels centred at 0.5) cuts out, antialiased."""
    import cv2

    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.6:  # reduce first, by blocks, only what the crop shows
        corners = apply(inverse(matrix), np.array([[0, 0], [side, 0], [0, side], [side, side]], float))
        low = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, None)
        high = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, pixels.shape[1::-1])
        if (high > low).all():
            part = pixels[low[1] : high[1], low[0] : high[0]]
            size = np.maximum(1, np.round((high - low) * scale * 1.2)).astype(int)
            ratio = size / (high - low)
            pixels = cv2.resize(part, tuple(int(v) for v in size), interpolation=cv2.INTER_AREA)
            matrix = np.concatenate([matrix[:, :2] / ratio, (matrix[:, :2] @ low + matrix[:, 2])[:, None]], 1)
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(pixels, shifted, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
