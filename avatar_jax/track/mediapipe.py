"""Landmarks from MediaPipe's face landmarker, with the user's own ``face_landmarker.task`` and package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.ops.landmark_layouts import FILE_SIGMA, OUTLINE_SIGMA, to_68
from avatar_jax.track.detect import Face
from avatar_jax.track.network import QUICK, FaceReader, Reading
from avatar_jax.track.search import as_face


def file_error(path: str | Path) -> str | None:
    """What is wrong with the model file, in one line; None if nothing is."""
    path = Path(path)
    if not path.is_file():
        return f'{path}: no such file; give the face_landmarker.task of MediaPipe'
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\x03\x04':  # a .task file is a zip archive
            return f'{path}: is not a MediaPipe task file'
    return None


class MediaPipeReader:
    """Detects faces and reads 478 points of each; masks of crops come from this project's network.

    Args:
        path: ``face_landmarker.task``.
        faces: how many faces at most.

    Raises:
        UserError: no such file, or mediapipe is not installed.
    """

    name = 'mediapipe'

    def __init__(self, path: str | Path, faces: int = 8, network: FaceReader | None = None):
        wrong = file_error(path)
        if wrong:
            raise UserError(wrong)
        try:
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise UserError(
                "mediapipe is not installed; install it with: pip install 'avatar-jax[mediapipe]', or leave out "
                '--mediapipe to use the own network'
            ) from error
        self._image = mediapipe.Image, mediapipe.ImageFormat.SRGB
        options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(path)), num_faces=faces)
        try:
            self._landmarker = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise UserError(f'{path}: MediaPipe cannot use it ({str(error).splitlines()[0][:100]})') from error
        self.network = network

    def _all(self, pixels: np.ndarray) -> list[Reading]:
        make, layout = self._image
        result = self._landmarker.detect(make(image_format=layout, data=np.ascontiguousarray(pixels)))
        size = np.array(pixels.shape[1::-1], np.float64)
        return [self._reading(np.array([[p.x, p.y] for p in face]) * size) for face in result.face_landmarks]

    @staticmethod
    def _reading(points: np.ndarray) -> Reading:
        """MediaPipe's numbers are shares of the size, so the first pixel is centred at 0.5 as here."""
        full = to_68(points)
        eyes = np.linalg.norm(full[36:42].mean(0) - full[42:48].mean(0))
        sigma = np.full(68, FILE_SIGMA * max(float(eyes), 0.5 * float(np.ptp(full[:, 1]))))
        sigma[:17] *= OUTLINE_SIGMA
        return Reading(full, sigma)

    def detect(self, pixels: np.ndarray, choose: Any, **search: bool) -> tuple[Reading | None, str]:
        """The chosen face of a picture, and what was chosen. MediaPipe looks over the whole picture in any case."""
        readings = self._all(pixels)
        faces = [as_face(r) for r in readings]
        order = sorted(range(len(faces)), key=lambda i: -faces[i].size)
        face, said = choose(pixels, [faces[i] for i in order])
        return (None, said) if face is None else (next(r for r, f in zip(readings, faces) if f is face), said)

    def from_box(self, pixels: np.ndarray, face: Face) -> Reading:
        """The face nearest to a detected one."""
        readings = self._all(pixels)
        if not readings:
            return Reading(np.zeros((68, 2)), np.full(68, np.inf), present=0.0)
        return min(readings, key=lambda r: float(np.linalg.norm(r.points.mean(0) - face.center)))

    def around(self, pixels: np.ndarray, points: np.ndarray, variations: tuple = QUICK) -> Reading:
        """The face nearest to the landmarks of the frame before."""
        readings = self._all(pixels)
        if not readings:
            return Reading(points, np.full(68, np.inf), present=0.0)
        return min(readings, key=lambda r: float(np.linalg.norm(r.points.mean(0) - points.mean(0))))
