"""Which vertices of the procedural head are its 68 landmarks (iBUG layout)."""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.skin import COLUMNS, MOUTH_ROW, ROWS


def landmark_vertices(points: np.ndarray, ids: np.ndarray, slits: dict) -> np.ndarray:
    """Vertices [68] that are the landmarks.

    Args:
        points: [V,3] positions of the vertices. ids: [rows, columns] vertices of the skin's grid.
        slits: vertices of the upper and of the lower edge of 'eye_l', 'eye_r' and 'mouth'.
    """

    def nearest(x, y, rows=None):
        region = ids if rows is None else ids[rows]
        d = np.square(points[region][..., 0] - x) + np.square(points[region][..., 1] - y)
        d = d + 10.0 * (points[region][..., 2] < -0.75)
        return int(region.ravel()[np.argmin(d)])

    def at(azimuth, height):
        return int(ids[np.argmin(np.abs(ROWS - height)), np.argmin(np.abs(COLUMNS - azimuth))])

    jaw_a = np.array([-1.52, -1.47, -1.40, -1.30, -1.13, -0.92, -0.66, -0.38])
    jaw_v = np.array([0.165, -0.01, -0.18, -0.382, -0.575, -0.68, -0.735, -0.80])
    jaw = [at(a, v) for a, v in zip(jaw_a, jaw_v, strict=True)]
    jaw += [at(0, -0.80)] + [at(-a, v) for a, v in zip(jaw_a[::-1], jaw_v[::-1], strict=True)]
    bx, by = np.array([-0.60, -0.50, -0.38, -0.25, -0.12]), np.array([0.44, 0.50, 0.515, 0.495, 0.455])
    brow = [nearest(x, y) for x, y in zip(bx, by, strict=True)]
    brow += [nearest(-x, y) for x, y in zip(bx[::-1], by[::-1], strict=True)]
    nose = [at(0, y) for y in (0.26, 0.165, 0.075, -0.045)]
    nose += [
        nearest(x, y, slice(30, 38))
        for x, y in ((-0.135, -0.155), (-0.07, -0.175), (0, -0.185), (0.07, -0.175), (0.135, -0.155))
    ]

    def eye(name):
        up, lo = slits[name]
        n = len(up) - 1
        i, j = round(n / 3), round(2 * n / 3)
        return [up[0], up[i], up[j], up[-1], lo[j], lo[i]]

    up, lo = slits['mouth']
    n = len(up) - 1
    centre = n // 2

    def column(edge_index, v):
        c = int(np.argmin(np.abs(ids[MOUTH_ROW] - up[edge_index])))
        return int(ids[np.argmin(np.abs(ROWS - v)), c])

    m = face.MOUTH_LINE
    k1, k2 = round(n * 0.19), round(n * 0.385)
    outer = [
        up[0],
        column(k1, m + 0.040),
        column(k2, m + 0.082),
        column(centre, m + 0.075),
        column(n - k2, m + 0.082),
        column(n - k1, m + 0.040),
        up[-1],
        column(n - k1, m - 0.068),
        column(n - k2, m - 0.092),
        column(centre, m - 0.092),
        column(k2, m - 0.092),
        column(k1, m - 0.068),
    ]
    inner = [up[1], up[k2], up[centre], up[n - k2], up[-2], lo[n - k2], lo[centre], lo[k2]]
    return np.array(jaw + brow + nose + eye('eye_l') + eye('eye_r') + outer + inner, np.int32)
