"""Ambient occlusion baked on the vertices, and the shadow that the key light casts: depth maps of the mesh."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from avatar_jax.procedural.mesh import HAIR, head_mesh
from avatar_jax.procedural.model import neutral_mean
from avatar_jax.procedural.samples import vertex_normals
from avatar_jax.procedural.style import CUTS, STYLE_OF_CUT
from avatar_jax.render.rasterizer import rasterize

_CENTRE, _HALF = np.array([0.0, 0.0, -0.45]), 1.75  # decimetre: what the maps show
SHADOW_SIDE = 176
_BAKE_SIDE, _BAKE_DIRECTIONS = 88, 26


def _axes(direction: np.ndarray) -> np.ndarray:
    """[3, 3]: right, down and away from the light, for a unit direction towards it."""
    forward = -np.asarray(direction, np.float64)
    helper = np.array([0.0, 1.0, 0.0]) if abs(forward[1]) < 0.95 else np.array([0.0, 0.0, 1.0])
    right = np.cross(forward, helper)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


@dataclass(frozen=True)
class DepthMap:
    """What one direction sees: ``axes`` [3, 3], and ``moments`` [side * side, 2]: mean depth and mean squared depth."""

    axes: np.ndarray
    moments: np.ndarray
    side: int

    def lit(self, points: np.ndarray, bias: float = 0.022, bleeding: float = 0.2) -> np.ndarray:
        """[N] how much of the light arrives at points [N, 3], 0..1 (the bound of Chebyshev over the moments)."""
        p = (points - _CENTRE.astype(np.float32)) @ self.axes.T.astype(np.float32)
        scale = np.float32(self.side / (2 * _HALF))
        x = np.clip(p[:, 0] * scale + np.float32(self.side / 2 - 0.5), 0, self.side - 1.001)
        y = np.clip(p[:, 1] * scale + np.float32(self.side / 2 - 0.5), 0, self.side - 1.001)
        column, row = x.astype(np.int32), y.astype(np.int32)
        fx, fy = (x - column)[:, None], (y - row)[:, None]
        at = row * self.side + column
        m = self.moments
        top = m[at] * (1 - fx) + m[at + 1] * fx
        low = m[at + self.side] * (1 - fx) + m[at + self.side + 1] * fx
        mean, square = (top * (1 - fy) + low * fy).T
        behind = p[:, 2] - mean - np.float32(bias)
        variance = np.maximum(square - mean * mean, np.float32(4e-4))
        share = variance / (variance + behind * behind)
        return np.where(behind <= 0, 1, np.clip((share - bleeding) / (1 - bleeding), 0, 1)).astype(np.float32)


def depth_map(
    vertices: np.ndarray, triangles: np.ndarray, direction: np.ndarray, side: int = SHADOW_SIDE, softness: float = 0.0
) -> DepthMap:
    """The depth map of a mesh from a direction, blurred over ``softness`` (decimetre)."""
    axes = _axes(direction)
    p = (vertices - _CENTRE) @ axes.T
    screen = np.stack([(p[:, 0] / _HALF + 1) * side / 2, (p[:, 1] / _HALF + 1) * side / 2, p[:, 2]], 1)
    seen = rasterize(screen, triangles, side, side, perspective=False)
    depth = np.where(seen.face >= 0, seen.depth, np.float32(2.0))
    moments = np.stack([depth, depth * depth], -1)
    reach = round(softness * side / (2 * _HALF))
    for _ in range(2 if reach else 0):
        for axis in (0, 1):
            moments = _box(moments, reach, axis)
    return DepthMap(axes, np.ascontiguousarray(moments.reshape(-1, 2), np.float32), side)


def _box(x: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """Mean over 2 * reach + 1 neighbours along an axis, the ends repeated."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (reach + 1, reach)
    total = np.cumsum(np.pad(x, pad, mode='edge'), axis=axis, dtype=np.float64)
    width = 2 * reach + 1
    high = np.take(total, np.arange(width, total.shape[axis]), axis)
    return (high - np.take(total, np.arange(total.shape[axis] - width), axis)) / width


@functools.lru_cache(maxsize=len(CUTS))
def baked_occlusion(cut: str) -> np.ndarray:
    """[V] float32 share of the surroundings that each vertex of the mean head with this cut of hair sees, 0..1."""
    mesh, vertices = head_mesh(), neutral_mean(STYLE_OF_CUT[cut])
    normal = vertex_normals(vertices)
    k = np.arange(_BAKE_DIRECTIONS) + 0.5
    y = 1 - 1.7 * k / _BAKE_DIRECTIONS  # few from below
    turn = np.pi * (1 + 5**0.5) * k
    directions = np.stack([np.sqrt(1 - y * y) * np.cos(turn), y, np.sqrt(1 - y * y) * np.sin(turn)], 1)
    total, seen = np.full(len(vertices), 1e-3), np.full(len(vertices), 1e-3)
    for d in directions:
        weight = np.maximum(normal @ d, 0)
        weight[mesh.part == HAIR] += 0.15  # a volume rather than a surface
        total += weight
        seen += weight * depth_map(vertices, mesh.triangles, d, _BAKE_SIDE).lit(vertices, 0.06, 0.1)
    return (seen / total).astype(np.float32)
