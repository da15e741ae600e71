"""Where the faces of a picture are: the cascade proposes, the landmark network judges, and looks itself if need be.

The cascade takes a third of a second for a picture; the network, run over squares of all sizes and places, one to
five. The network finds faces that the cascade misses (cut tightly, dark, half hidden, turned on their side) and
knows patterns that the cascade takes for faces. What neither confirms, but the cascade proposes and the network does
not rule out, counts as a last resort: a face behind a mask is like that. Figures: docs/tracking.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from avatar_jax.track.detect import Face, detect_faces
from avatar_jax.track.network import PRESENT, QUICK, VARIATIONS, FaceReader, Reading

SMALLEST = 0.15  # of the shorter side of the picture: faces that the network looks for
_CROP_PER_FACE = 1.45  # side of the network's crop in sides of a face's box
_LARGEST = 1.6  # side of the largest crop in shorter sides of the picture: the face may be cut
# How squares are laid: step in their sides, ratio of sizes, and by how many degrees they are turned.
COARSE, FINE, TURNED = (0.4, 1.5, (0.0,)), (0.25, 1.3, (0.0,)), (0.4, 1.5, (60.0, -60.0, 120.0, -120.0, 180.0))
_BATCH = 16
_TRIED = 6  # places that are looked at closely
_BOX_PER_SIZE = 3.2  # side of a cascade's box in ``Reading.size``

Choose = Callable[[np.ndarray, Sequence[Face]], tuple[Face | None, str]]


def as_face(reading: Reading) -> Face:
    """A face that was read, as the cascade would describe it."""
    eyes = np.stack([reading.points[36:42].mean(0), reading.points[42:48].mean(0)])
    middle, side = reading.points.mean(0), _BOX_PER_SIZE * reading.size
    return Face((middle[0] - side / 2, middle[1] - side / 2, side, side), 0.0, 10.0, eyes, 1)


def find_faces(
    pixels: np.ndarray, reader: FaceReader, *, search: bool = True, careful: bool = True
) -> list[tuple[Face, Reading]]:
    """Faces with their landmarks, the largest first.

    Args:
        pixels: [H, W, 3] uint8.
        reader: the network.
        search: let the network look over the whole picture where it confirms none of the cascade's proposals.
        careful: search in small steps and for heads that lie on their side or stand upside down, too, where no other
            is found.
    """
    proposed = [(face, reader.from_box(pixels, face)) for face in detect_faces(pixels)]
    found = [reading for _, reading in proposed if reading.is_face]
    for way in (COARSE, FINE, TURNED) if search and careful else (COARSE,) if search else ():
        found = found or search_faces(pixels, reader, *way)
    if found:
        found = sorted(_distinct(found), key=lambda reading: -reading.size)
        return [(as_face(reading), reading) for reading in found]
    return [(face, reading) for face, reading in proposed if reading.present > PRESENT]


def choose_face(
    pixels: np.ndarray, reader: FaceReader, choose: Choose, *, search: bool = True, careful: bool = True
) -> tuple[Reading | None, str]:
    """The face that ``choose`` takes of a picture's, and what was chosen in words. Arguments as ``find_faces``."""
    found = find_faces(pixels, reader, search=search, careful=careful)
    face, said = choose(pixels, [face for face, _ in found])
    return next((reading for other, reading in found if other is face), None), said


def search_faces(
    pixels: np.ndarray, reader: FaceReader, step: float, ratio: float, turns: Sequence[float]
) -> list[Reading]:
    """Faces that the network finds by itself in squares of all places and sizes, the surest first.

    Args:
        step: between neighbouring squares, in their sides.
        ratio: of neighbouring sizes.
        turns: degrees by which squares are turned.
    """
    seen: list[tuple[float, np.ndarray, float]] = []
    for degrees in turns:
        for side, corners in _squares(pixels.shape[:2], step, ratio):
            seen += _glance(pixels, reader, side, corners, np.deg2rad(degrees))
    found: list[Reading] = []
    tried: list[tuple[np.ndarray, float]] = []
    for _, points, side in sorted(seen, key=lambda s: -s[0]):
        middle = points.mean(0)
        if any(np.linalg.norm(middle - other) < 0.3 * extent for other, extent in tried):
            continue
        tried.append((middle, side))
        if len(tried) > _TRIED * len(turns):
            break
        reading = reader.around(pixels, points, QUICK)
        reading = reader.around(pixels, reading.points, QUICK)
        if reading.is_face:
            found.append(reader.around(pixels, reading.points, VARIATIONS))
    return _distinct([reading for reading in found if reading.is_face])


def _distinct(readings: Sequence[Reading]) -> list[Reading]:
    """One reading of each face, the surest."""
    kept: list[Reading] = []
    for reading in sorted(readings, key=lambda r: float(np.median(r.sigma)) / max(r.size, 1e-6)):
        if all(np.linalg.norm(reading.points.mean(0) - k.points.mean(0)) > k.size for k in kept):
            kept.append(reading)
    return kept


def _squares(shape: tuple[int, int], step: float, ratio: float):
    """Sides in pixels and centres [N, 2] of the squares that are looked at, from large to small."""
    height, width = shape
    side = _LARGEST * min(height, width)
    while side >= max(24.0, _CROP_PER_FACE * SMALLEST * min(height, width)):
        places = []
        for length in (width, height):
            count = max(1, int(np.ceil((length - 0.5 * side) / (step * side))))
            places.append(np.linspace(0.25 * side, length - 0.25 * side, count) if count > 1 else [length / 2])
        yield side, np.array([(x, y) for y in places[1] for x in places[0]])
        side /= ratio


def _glance(
    pixels: np.ndarray, reader: FaceReader, side: float, centres: np.ndarray, turn: float
) -> list[tuple[float, np.ndarray, float]]:
    """(how sure, landmarks [68, 2], side) of the squares in which the network sees a face."""
    import cv2

    scale = reader.config.side / side
    size = tuple(max(1, round(length * scale)) for length in pixels.shape[1::-1])
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    half = reader.config.side / 2
    linear = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    out = []
    for first in range(0, len(centres), _BATCH):
        part = centres[first : first + _BATCH]
        crops = []
        for centre in part:
            shift = half - linear @ (centre * scale) - 0.5 + linear @ [0.5, 0.5]  # OpenCV's first pixel lies at 0
            matrix = np.concatenate([linear, shift[:, None]], 1)
            crops.append(cv2.warpAffine(small, matrix, (reader.config.side, reader.config.side)))
        # A full batch always: one compiled program.
        read = reader.run(np.stack(crops + crops[-1:] * (_BATCH - len(crops))))
        for k, centre in enumerate(part):
            if read.present[k] > 0:  # log odds
                sure = float(read.present[k] - read.log_sigma[k].mean())
                out.append((sure, (read.landmarks[k] - 0.5) * side @ linear + centre, side))
    return out
