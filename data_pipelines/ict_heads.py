"""Pictures of ICT-FaceKit heads: another head model with its own landmarks, for testing what learnt from our own.

Skin, lips and brows are painted in plain colours, there is no hair.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from avatar_jax.faces.bfm import read_arrays
from avatar_jax.faces.ict import ICT
from avatar_jax.faces.pose import rotation_matrix
from avatar_jax.render.rasterizer import area_weighted_normals, rasterize


class IctHeads:
    """Pictures of random ICT-FaceKit heads with their 68 landmarks."""

    def __init__(self, path: Path):
        self.model, data = ICT.load(path), read_arrays(path)
        vertices = np.asarray(self.model.neutral)
        marks = vertices[np.asarray(self.model.landmark_ids)]
        self.triangles = np.asarray(self.model.triangles)
        self.kind = np.zeros(
            len(vertices), int
        )  # 0 skin, 1 lips, 2 brows, 3 mouth, 4 teeth, 5 white of the eye, 6 iris
        names = [str(n) for n in data['region_names']]
        for name, (a, b) in zip(names, data['region_vertex_range']):
            kind = 4 if 'teeth' in name else 3 if 'mouth' in name or 'gum' in name else 5 if 'eyeball' in name else 0
            self.kind[a:b] = kind
        for side in ('left', 'right'):
            a, b = data[f'iris_{side}_vertex_range']
            self.kind[a:b] = 6
        face = slice(*self.model.face_vertices)
        self.kind[face] = np.where(
            _inside(vertices[face], marks[48:60]) & (vertices[face, 2] > marks[48:60, 2].min() - 0.1), 1, 0
        )
        for brow in (marks[17:22], marks[22:27]):
            near = np.min([_to_segment(vertices[face], a, b) for a, b in itertools.pairwise(brow)], 0)
            self.kind[face] = np.where(near < 0.035, 2, self.kind[face])

    def sample(self, index: int, side: int = 224) -> tuple[np.ndarray, np.ndarray]:
        """(picture [side,side,3] uint8, landmarks [68,2], first pixel centred at 0.5)."""
        import cv2

        rng = np.random.default_rng([7, index])
        m = self.model
        expression = np.where(rng.random(m.num_exp) < 0.12, rng.random(m.num_exp), 0).astype(np.float32)
        vertices = np.asarray(m.vertices(rng.normal(0, 0.8, m.num_id).astype(np.float32), expression))
        turned = vertices @ rotation_matrix(rng.normal(0, [0.15, 0.35, 0.12]))
        focal, distance = 3.0 * side, 10.0
        depth = distance - turned[:, 2]
        place = side / 2 + focal * turned[:, :2] * [1, -1] / depth[:, None]
        palette = np.array(
            [
                [0.85, 0.66, 0.55],
                [0.7, 0.35, 0.33],
                [0.25, 0.16, 0.1],
                [0.5, 0.2, 0.2],
                [0.92, 0.9, 0.86],
                [0.93, 0.92, 0.9],
                [0.25, 0.3, 0.35],
            ]
        ) * np.exp(rng.normal(0, 0.15, (7, 1)))
        palette[0] *= rng.uniform(0.4, 1.1)
        light = np.array([rng.normal(0, 0.5), rng.normal(0.3, 0.3), 1.0])
        shading = 0.45 + 0.65 * np.maximum(
            area_weighted_normals(turned, self.triangles) @ (light / np.linalg.norm(light)), 0
        )
        screen = np.concatenate([2 * place, depth[:, None]], 1)
        drawn = rasterize(screen, self.triangles, 2 * side, 2 * side, cull=True)
        colours = drawn.interpolate((palette[self.kind] * shading[:, None]).astype(np.float32), self.triangles)
        noise = cv2.resize(rng.random((5, 5, 3), np.float32), (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC)
        picture = np.where(drawn.covered[..., None], colours, noise)
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        return np.clip(255 * picture, 0, 255).astype(np.uint8), place[np.asarray(m.landmark_ids)]


def _inside(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Whether the x, y of points [N,3] lie inside a closed outline [K,3]."""
    x, y = points[:, 0], points[:, 1]
    inside = np.zeros(len(points), bool)
    for a, b in zip(outline, np.roll(outline, -1, 0)):
        crosses = (a[1] > y) != (b[1] > y)
        with np.errstate(divide='ignore', invalid='ignore'):
            inside ^= crosses & (x < (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]) + a[0])
    return inside


def _to_segment(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    share = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(points - a - share[:, None] * (b - a), axis=1)
