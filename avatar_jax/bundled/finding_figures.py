"""Which faces each detector finds in portraits that were turned, cut, darkened, covered, and so on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avatar_jax.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def conditions(pixels: np.ndarray, points: np.ndarray, seed: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, picture, landmarks) of a portrait under what makes faces hard to find.

    Args:
        pixels: [H,W,3] uint8. points: [68,2] its landmarks.
    """
    import cv2

    rng, face = np.random.default_rng(seed), float(np.ptp(points, axis=0).max())
    yield 'as it is', pixels, points
    for degrees in (-60, -30, -15, 15, 30, 60, 90, 180):
        yield f'turned by {abs(degrees)} degrees', *_turned(pixels, points, degrees)
    for share in (1.6, 1.25, 1.05, 0.9):
        low, high = points.min(0), points.max(0)
        middle, reach = (low + high) / 2, (high - low).max() * share / 2
        low = np.maximum(middle - reach, 0).astype(int)
        high = np.minimum(middle + reach, pixels.shape[1::-1]).astype(int)
        yield f'cut to {share} faces', np.ascontiguousarray(pixels[low[1] : high[1], low[0] : high[0]]), points - low
    for side in (48, 32, 20):
        scale = side / face
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yield f'face of {side} pixels', small, points * scale
    yield 'dark', np.clip(pixels * 0.15 + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8), points
    yield 'noisy', np.clip(pixels + rng.normal(0, 35, pixels.shape), 0, 255).astype(np.uint8), points
    yield 'blurred', cv2.GaussianBlur(pixels, (0, 0), face / 25), points
    low, high = points.min(0), points.max(0)
    yield 'mouth covered', _covered(pixels, [low[0] - 10, points[30, 1]], [high[0] + 10, points[8, 1] + 10]), points
    eye = points[[*range(17, 22), *range(36, 42)]]
    yield 'one eye covered', _covered(pixels, eye.min(0) - 0.1 * face, eye.max(0) + 0.1 * face), points
    eyes, margin = points[36:48], np.ptp(points[36:48], axis=0) * [0.15, 0.8]
    yield 'sunglasses', _covered(pixels, eyes.min(0) - margin, eyes.max(0) + margin), points


def _turned(pixels: np.ndarray, points: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    import cv2

    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = np.array([height * sine + width * cosine, height * cosine + width * sine]).astype(int)
    matrix[:, 2] += (size - [width, height]) / 2
    turned = cv2.warpAffine(pixels, matrix, tuple(size.tolist()), borderMode=cv2.BORDER_REPLICATE)
    return turned, points @ matrix[:, :2].T + matrix[:, 2]


def _covered(pixels: np.ndarray, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    out = pixels.copy()
    (x0, y0), (x1, y1) = (np.maximum(v, 0).astype(int) for v in (np.asarray(low), np.asarray(high)))
    out[y0:y1, x0:x1] = (60, 60, 70)
    return out


def search_pictures(folder: Path) -> dict[str, dict[str, int]]:
    """How many faces each way finds under each condition, and how many places it takes for faces that are none."""
    from avatar_jax.io.images import read_image
    from avatar_jax.track.choose import plausible
    from avatar_jax.track.detect import detect_faces
    from avatar_jax.track.inputs import frame_files
    from avatar_jax.track.measure import default_tracker
    from avatar_jax.track.search import COARSE, FINE, TURNED, as_face, find_faces, search_faces

    reader, rows = default_tracker().network, {}

    def by_network(pixels: np.ndarray) -> list:
        found: list = []
        for way in (COARSE, FINE, TURNED):
            found = found or [as_face(r) for r in search_faces(pixels, reader, *way)]
        return found

    ways = {
        'cascade': lambda pixels: plausible(detect_faces(pixels)),
        'network': by_network,
        'both': lambda pixels: [face for face, _ in find_faces(pixels, reader)],
    }
    for path in frame_files(folder):
        whole = read_image(path).pixels
        faces = find_faces(whole, reader)
        if not faces:
            raise UserError(f'{path}: no face found; give portraits with one clear face')
        for name, pixels, points in conditions(whole, faces[0][1].points):
            if min(pixels.shape[:2]) < 32:
                continue
            row = rows.setdefault(name, {'pictures': 0})
            row['pictures'] += 1
            size = np.sqrt(((points - points.mean(0)) ** 2).sum(-1).mean())
            for way, find in ways.items():
                near = [np.linalg.norm(f.center - points.mean(0)) < 1.5 * size for f in find(pixels)]
                row[way] = row.get(way, 0) + any(near)
                row[f'{way}, false'] = row.get(f'{way}, false', 0) + sum(not n for n in near)
    return rows
