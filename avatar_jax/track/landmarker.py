"""The landmark backend for real faces: ``face_task``'s networks on upright crops, from frame to frame.

A face is detected once, cut out with its eyes level, read, and followed from its own points; where it is lost it is
looked for again (``observe``). With it come what 68 landmarks cannot say: where the irises are, which is gaze, and 52
blendshapes, which a linear map fitted on procedural heads (``face_numbers``) turns into expression numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from avatar_jax.ops.landmark_layouts import FILE_SIGMA, MIRROR, OUTLINE_SIGMA, to_68
from avatar_jax.track.detect import Face, apply, inverse
from avatar_jax.track.face_numbers import FaceNumbers, eye_distance, features
from avatar_jax.track.face_task import DETECTOR_SIDE, MESH_SIDE, Box, FaceTask
from avatar_jax.track.network import PRESENT, QUICK, FaceReader, Reading, cut
from avatar_jax.track.search import Choose, as_face

NAME = 'face landmarker'
_CROP = 1.5  # side of the mesh's crop in sides of the face
_FOREHEAD = 0.30  # of the height of the 68 points: how far the mesh goes beyond the brows
_BORDER = 0.15  # around the whole picture when it is searched, for faces that fill it
_TURNS = (90.0, -90.0, 180.0)
_SAME = 0.5  # of a face's size: readings nearer than that are of one face


class LandmarkReader:
    """Detects faces and reads 68 landmarks, gaze and expression of each.

    Args:
        path: ``face_landmarker.task``.
        network: the project's own, which cuts masks; kept for who asks for it.
        numbers: 'shipped', or None to read no expressions.

    Raises:
        UserError: no such file, or not one that can be run.
    """

    def __init__(
        self, path: str | Path, network: FaceReader | None = None, numbers: FaceNumbers | str | None = 'shipped'
    ):
        self.task = FaceTask(path)
        self.network = network
        self.numbers = FaceNumbers.shipped() if numbers == 'shipped' else numbers
        self.name = f'{NAME} {self.task.sha256[:12]}'

    @property
    def calibration(self) -> dict[str, np.ndarray]:
        """Errors of the expression numbers on procedural heads, as the fit asks for them."""
        return {} if self.numbers is None else {'expression': self.numbers.error}

    def find(self, pixels: np.ndarray, *, search: bool = True, careful: bool = True) -> list[Reading]:
        """All faces of a picture, the largest first.

        Args:
            search: look at parts of the picture where none is found in the whole.
            careful: and for heads that lie on their side or stand upside down.
        """
        found: list[Reading] = []
        for level, places in enumerate(_places(pixels.shape[:2])):
            if level and (found or not search):
                break
            for square in places:
                found += self._in_square(pixels, square, 0.0)
        if not found and careful:
            whole = next(_places(pixels.shape[:2]))
            found = [r for turn in _TURNS for square in whole for r in self._in_square(pixels, square, turn)]
        kept: list[Reading] = []
        for reading in sorted(found, key=lambda r: -r.size):
            if all(np.linalg.norm(reading.points.mean(0) - k.points.mean(0)) > _SAME * k.size for k in kept):
                kept.append(reading)
        return kept

    def detect(
        self, pixels: np.ndarray, choose: Choose, *, search: bool = True, careful: bool = True
    ) -> tuple[Reading | None, str]:
        """The face that ``choose`` takes of a picture's, and what was chosen in words."""
        readings = self.find(pixels, search=search, careful=careful)
        faces = [as_face(reading) for reading in readings]
        face, said = choose(pixels, faces)
        chosen = next((r for r, other in zip(readings, faces) if other is face), None)
        return (self.around(pixels, chosen.points, ()) if chosen is not None and careful else chosen), said

    def from_box(self, pixels: np.ndarray, face: Face) -> Reading:
        """Reads a face that was detected by something else."""
        first = self._read(pixels, _matrix(face.center, face.size * _CROP, np.deg2rad(face.tilt)))
        return self.around(pixels, first.points)

    def around(self, pixels: np.ndarray, points: np.ndarray, variations: tuple = QUICK) -> Reading:
        """Reads the face at roughly known landmarks [68,2]; other ``variations`` than ``QUICK`` average over a few
        crops, as photographs deserve.
        """
        reading = self._read(pixels, crop_of(points))
        if variations is QUICK or reading.present < PRESENT:
            return reading
        readings = [reading]
        for zoom, turn, mirrored in ((1.0, 0.0, True), (0.92, 0.07, False), (1.08, -0.07, True)):
            readings.append(self._read(pixels, crop_of(reading.points, zoom, turn), mirrored))
        points = np.mean([r.points for r in readings], 0)
        return Reading(points, reading.sigma, reading.expression, None, reading.present, gaze=reading.gaze)

    def measure(self, pixels: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What the networks say of the face at known landmarks [68,2]: ``face_numbers.features`` [58], the mesh's
        points [68,2] and the known ones [68,2] in pixels of its crop; None where they see no face.
        """
        matrix = crop_of(points)
        mesh = self.task.mesh(cut(pixels, matrix, MESH_SIDE))
        if mesh.present < PRESENT:
            return None
        said = features(self.task.blendshapes(mesh.points), mesh.points)
        return said, to_68(mesh.points[:, :2]), apply(matrix, points)

    def _in_square(self, pixels: np.ndarray, square: tuple[np.ndarray, float], turn: float) -> list[Reading]:
        """Readings of the faces in one square (centre, side), turned by ``turn`` degrees."""
        matrix = _matrix(*square, np.deg2rad(turn), DETECTOR_SIDE)
        out = []
        for box in self.task.faces(cut(pixels, matrix, DETECTOR_SIDE)):
            reading = self._read(pixels, _from_box(box, inverse(matrix)))
            if reading.present > PRESENT:
                reading = self.around(pixels, reading.points)
            if reading.present > PRESENT:
                out.append(reading)
        return out

    def _read(self, pixels: np.ndarray, matrix: np.ndarray, mirrored: bool = False) -> Reading:
        """Reads the crop that ``matrix`` [2,3] (pixels -> crop) cuts out."""
        crop = cut(pixels, matrix, MESH_SIDE)
        mesh = self.task.mesh(np.ascontiguousarray(crop[:, ::-1]) if mirrored else crop)
        full = to_68(mesh.points[:, :2])
        if self.numbers is not None:
            full = full - eye_distance(full) * self.numbers.offset
        if mirrored:
            full = np.stack([MESH_SIDE - full[:, 0], full[:, 1]], 1)[MIRROR]
        points = apply(inverse(matrix), full)
        sigma = np.full(68, FILE_SIGMA * max(eye_distance(points), 0.5 * float(np.ptp(points[:, 1]))))
        sigma[:17] *= OUTLINE_SIGMA
        if mirrored or mesh.present < PRESENT or self.numbers is None:
            return Reading(points, sigma, present=mesh.present)
        expression = self.numbers(features(self.task.blendshapes(mesh.points), mesh.points))
        return Reading(points, sigma, expression, None, mesh.present, gaze=self.numbers.gaze(expression))


def _matrix(centre: np.ndarray, side: float, turn: float, out: int = MESH_SIDE) -> np.ndarray:
    """[2,3] from pixels to the crop of a square around ``centre`` whose upper edge is turned by ``turn`` radians
    clockwise.
    """
    scale = out / side
    linear = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.concatenate([linear, (out / 2 - linear @ np.asarray(centre))[:, None]], 1)


def crop_of(points: np.ndarray, zoom: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """[2,3] from pixels to the mesh's crop of a face at landmarks [68,2]: eyes level, half as large again.

    Args:
        zoom, turn: changes of the crop, a factor and radians.
    """
    across = points[42:48].mean(0) - points[36:42].mean(0)
    angle = float(np.arctan2(across[1], across[0])) + turn
    level = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    rows = points @ level.T
    low, high = rows.min(0), rows.max(0)
    low[1] -= _FOREHEAD * (high[1] - low[1])
    side = max(_CROP * float((high - low).max()) / zoom, 2.0)
    return _matrix(level.T @ ((low + high) / 2), side, angle)


def _from_box(box: Box, back: np.ndarray) -> np.ndarray:
    """[2,3] from pixels to the mesh's crop of a detected face; ``back`` leads from the detector's picture to pixels."""
    centre, eyes = (apply(back, np.atleast_2d(v) * DETECTOR_SIDE) for v in (box.centre, box.eyes))
    scale = float(np.sqrt(abs(np.linalg.det(back[:, :2]))))
    across = eyes[1] - eyes[0]
    turn = float(np.arctan2(across[1], across[0]))
    return _matrix(centre[0], max(_CROP * scale * DETECTOR_SIDE * float(box.size.max()), 2.0), turn)


def _places(shape: tuple[int, int]) -> Iterator[list[tuple[np.ndarray, float]]]:
    """Squares (centre, side) in which faces are looked for: the whole, then its parts, then smaller ones."""
    height, width = shape
    size = np.array([width, height], float)
    yield [(size / 2, float(size.max()) * (1 + 2 * _BORDER)), (size / 2, float(size.max()))]
    for share in (1.0, 0.55, 0.3):
        side = share * float(size.min())
        counts = np.maximum(1, np.ceil((size - 0.25 * side) / (0.75 * side))).astype(int)
        axes = [np.linspace(side / 2, n - side / 2, c) if c > 1 else np.array([n / 2]) for n, c in zip(size, counts)]
        yield [(np.array([x, y]), side) for y in axes[1] for x in axes[0]]
