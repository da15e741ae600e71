"""The three networks of MediaPipe's ``face_landmarker.task``, run by OpenCV: faces, 478 points, 52 blendshapes.

Written from the published descriptions: BlazeFace (Bazarevsky et al. 2019) for boxes and anchors, the face mesh
(Kartynnik et al. 2019) with irises (Ablavatski et al. 2020), and the model card of Blendshapes V2. MediaPipe's own
package is not used. OpenCV reads the networks at once and needs no compilation: 3, 14 and 2 ms of one core.
"""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.inputs import file_sha256, input_file

DETECTOR_SIDE, MESH_SIDE = 128, 256
SURE = 0.5  # probability from which on the detector's boxes count
_MEMBERS = {
    'detector': 'face_detector.tflite',
    'mesh': 'face_landmarks_detector.tflite',
    'blendshapes': 'face_blendshapes.tflite',
}
_MAX_MEMBER = 64 << 20
_OVERLAP = 0.3  # of boxes that are of one face
_LAYERS = ((16, 2), (8, 6))  # cells across the picture, and anchors in each, of the detector's two layers
_BLENDSHAPES = """
_neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft
cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight eyeLookOutLeft
eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawForward jawLeft
jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft
mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight mouthRollLower
mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight
mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight
"""
BLENDSHAPES = tuple(_BLENDSHAPES.split())  # Left is the person's left
# Which of the 478 points the blendshape network reads.
_READ = """
0 1 4 5 6 7 8 10 13 14 17 21 33 37 39 40 46 52 53 54 55 58 61 63 65 66 67 70 78 80 81 82 84 87 88 91 93 95 103 105 107
109 127 132 133 136 144 145 146 148 149 150 152 153 154 155 157 158 159 160 161 162 163 168 172 173 176 178 181 185 191
195 197 234 246 249 251 263 267 269 270 276 282 283 284 285 288 291 293 295 296 297 300 308 310 311 312 314 317 318 321
323 324 332 334 336 338 356 361 362 365 373 374 375 377 378 379 380 381 382 384 385 386 387 388 389 390 397 398 400 402
405 409 415 454 466 468 469 470 471 472 473 474 475 476 477
"""
READ = np.array(_READ.split(), int)


@dataclass(frozen=True)
class Box:
    """A face that the detector sees, in shares of its square picture (first pixel centred at half a pixel).

    Attributes:
        centre, size: [2] of the box. eyes: [2,2] image-left and image-right eye.
        sure: probability.
    """

    centre: np.ndarray
    size: np.ndarray
    eyes: np.ndarray
    sure: float


@dataclass(frozen=True)
class Mesh:
    """What was read of a face in a crop.

    Attributes:
        points: [478,3] pixels of the crop (first pixel centred at 0.5), depth towards the camera negative, same scale.
        present: probability that there is a face.
    """

    points: np.ndarray
    present: float


class FaceTask:
    """The networks of a file.

    Args:
        path: ``face_landmarker.task``.

    Raises:
        UserError: no such file, or not one that this OpenCV can run.
    """

    def __init__(self, path: str | Path):
        self.path = input_file(path)
        self.sha256 = file_sha256(self.path)
        self._detector, self._mesh, self._blendshapes = _networks(str(self.path), self.sha256)

    def faces(self, square: np.ndarray) -> list[Box]:
        """Faces in a picture [128,128,3] uint8, the surest first."""
        boxes, scores = self._run(self._detector, ('regressors', 'classificators'), square[None] / 127.5 - 1)
        return decode(boxes.reshape(-1, 16), scores.reshape(-1))

    def mesh(self, crop: np.ndarray) -> Mesh:
        """The points of the face in a crop [256,256,3] uint8."""
        points, present = self._run(self._mesh, ('Identity', 'Identity_1'), crop[None] / 255)
        return Mesh(points.reshape(478, 3).astype(np.float64), float(_sigmoid(present.reshape(-1)[0])))

    def blendshapes(self, points: np.ndarray) -> np.ndarray:
        """[52] numbers in 0..1 (``BLENDSHAPES``) of the points [478,2+] in any pixels."""
        self._blendshapes.setInput(np.ascontiguousarray(points[None, READ, :2], np.float32))
        return self._blendshapes.forward().reshape(-1).astype(np.float64)

    @staticmethod
    def _run(network: Any, names: tuple[str, ...], picture: np.ndarray) -> list[np.ndarray]:
        network.setInput(np.ascontiguousarray(picture.transpose(0, 3, 1, 2), np.float32))
        return [np.asarray(a) for a in network.forward(names)]


@functools.lru_cache(maxsize=2)
def _networks(path: str, sha256: str) -> tuple[Any, ...]:
    import cv2

    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _MEMBERS.values():
                with archive.open(name) as file:
                    found.append(np.frombuffer(file.read(_MAX_MEMBER), np.uint8))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f'{path}: is not a MediaPipe task file with {", ".join(_MEMBERS.values())}') from error
    try:
        networks = tuple(cv2.dnn.readNetFromTFLite(data) for data in found)
        for network, shape in zip(networks, ((1, 3, DETECTOR_SIDE, DETECTOR_SIDE), (1, 3, MESH_SIDE, MESH_SIDE), None)):
            network.setInput(np.zeros(shape or (1, len(READ), 2), np.float32) + 0.5)
            network.forward(network.getUnconnectedOutLayersNames())
    except (cv2.error, AttributeError) as error:
        raise UserError(
            f'{path}: OpenCV {cv2.__version__} cannot run its networks; update it with pip install -U '
            'opencv-python-headless, or take the own network with --mediapipe none'
        ) from error
    return networks


def anchors() -> np.ndarray:
    """[896,2] centres (x, y) in shares of the picture: row by row, those of a cell one after the other."""
    out = []
    for cells, each in _LAYERS:
        y, x = np.meshgrid(*(2 * [(np.arange(cells) + 0.5) / cells]), indexing='ij')
        out.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), each, axis=0))
    return np.concatenate(out)


def decode(boxes: np.ndarray, scores: np.ndarray) -> list[Box]:
    """Faces out of what the detector says at its anchors, those of one face blended by their scores (BlazeFace).

    Args:
        boxes: [896,16] in detector pixels from the anchors: centre, size, six points (eyes first). scores: [896] log
            odds.
    """
    sure = _sigmoid(scores)
    keep = np.flatnonzero(sure > SURE)
    values = boxes[keep].astype(np.float64).reshape(-1, 8, 2) / DETECTOR_SIDE
    values[:, [0, *range(2, 8)]] += anchors()[keep, None]
    sure, out = sure[keep], []
    left = list(np.argsort(-sure))
    while left:
        best = left[0]
        same = [i for i in left if i == best or _overlap(values[i, :2], values[best, :2]) > _OVERLAP]
        left = [i for i in left if i not in same]
        mean = np.average(values[same], axis=0, weights=sure[same])
        out.append(Box(mean[0], mean[1], mean[2:4], float(sure[best])))
    return out


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Common share of two boxes [2,2] (centre, size)."""
    low = np.maximum(a[0] - a[1] / 2, b[0] - b[1] / 2)
    high = np.minimum(a[0] + a[1] / 2, b[0] + b[1] / 2)
    common = np.prod(np.maximum(high - low, 0))
    return float(common / max(np.prod(a[1]) + np.prod(b[1]) - common, 1e-12))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
