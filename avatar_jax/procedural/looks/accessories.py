"""Glasses and hats as meshes in the head's frame: made for a person's neutral head, they turn with it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.curves import step
from avatar_jax.procedural.looks.traits import Glasses, Hat
from avatar_jax.procedural.mesh import EAR, EYE, GLASSES, HAT, SKIN, hair_azimuths, head_mesh
from avatar_jax.procedural.skin import ROWS
from avatar_jax.procedural.style import grid_weights

_AROUND = 30  # points of a rim
_WRAP = 0.22  # how much the front bends around the face: z falls by so much times x squared


@dataclass(frozen=True)
class Piece:
    """A mesh of one part.

    Attributes:
        vertices: [V, 3] decimetre. triangles: [F, 3], counter-clockwise from outside. canonical: [V, 2] painting
        coordinates. part: its number.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    canonical: np.ndarray
    part: int

    def normals(self) -> np.ndarray:
        """[V, 3] float32 area-weighted unit normals."""
        corner = self.vertices[self.triangles]
        flat = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        out = np.zeros((len(self.vertices), 3))
        for k in range(3):
            np.add.at(out, self.triangles[:, k], flat)
        return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _join(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], part: int) -> Piece:
    first = np.cumsum([0] + [len(p[0]) for p in parts])
    return Piece(
        np.concatenate([p[0] for p in parts]).astype(np.float32),
        np.concatenate([p[1] + k for p, k in zip(parts, first[:-1], strict=True)]).astype(np.int32),
        np.concatenate([p[2] for p in parts]).astype(np.float32),
        part,
    )


def _grid(rows: int, columns: int, wrap_rows: bool, wrap_columns: bool) -> np.ndarray:
    """Triangles over a grid of vertices; counter-clockwise where rows x columns is the outward normal."""
    ids = np.arange(rows * columns).reshape(rows, columns)
    if wrap_rows:
        ids = np.concatenate([ids, ids[:1]])
    if wrap_columns:
        ids = np.concatenate([ids, ids[:, :1]], 1)
    a, b, c, d = ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]
    return np.concatenate([np.stack([a, c, d], -1), np.stack([a, d, b], -1)]).reshape(-1, 3)


def _tube(points: np.ndarray, across: np.ndarray, along: np.ndarray, closed: bool):
    """A square tube around ``points`` [N, 3] with half sides ``across`` and ``along`` [N, 3] (vectors)."""
    corners = np.stack([points + i * across + j * along for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))], 1)
    n = len(points)
    canonical = np.stack([np.repeat(np.arange(n) / n, 4), np.tile(np.arange(4) / 4, n)], 1)
    return corners.reshape(-1, 3), _grid(n, 4, closed, True), canonical


def _outline(g: Glasses) -> np.ndarray:
    """[N, 2] of a lens around its centre: x away from the nose, y up."""
    t = 2 * np.pi * np.arange(_AROUND) / _AROUND
    power = {'round': 1.0, 'oval': 0.94, 'rectangle': 0.45, 'square': 0.5, 'aviator': 0.8, 'cat': 0.62}[g.shape]
    c, s = np.cos(t), np.sin(t)
    x = g.half_width * np.sign(c) * np.abs(c) ** power
    y = g.half_height * np.sign(s) * np.abs(s) ** power
    if g.shape == 'aviator':
        x = x * (1 - 0.16 * np.clip(-s, 0, 1)) + 0.035 * s
        y = np.where(s < 0, y * 1.15, y * 0.85)
    elif g.shape == 'cat':
        y = y + 0.30 * g.half_height * np.clip(s, 0, 1) * np.clip(c, 0, 1) * 2
    return np.stack([x, y], 1)


def glasses_pieces(g: Glasses, neutral: np.ndarray) -> tuple[Piece, Piece]:
    """(frame, lenses) on a neutral head: on the bridge of the nose, clear of cheeks, lashes and temples.

    Args:
        g: the glasses. neutral: [V, 3] vertices of the person without an expression.
    """
    m = head_mesh()
    eyes = [neutral[(m.part == EYE) & (m.eye == s)].mean(0) for s in (-1, 1)]
    flesh = neutral[(m.part == SKIN) & (np.abs(m.azimuth) < 1.3)]
    middle = (eyes[0][0] + eyes[1][0]) / 2
    height = (eyes[0][1] + eyes[1][1]) / 2 - 0.025
    shift = max((eyes[1][0] - eyes[0][0]) / 2, g.half_width + g.rim + 0.062)
    outline = _outline(g)
    far = np.abs(flesh[:, 0] - middle)
    near = (far > shift - 0.8 * g.half_width) & (far < shift + g.half_width)
    near &= np.abs(flesh[:, 1] - height) < g.half_height
    front = float((flesh[near, 2] + _WRAP * np.square(far[near])).max()) + 0.035

    def place(x, y):
        return np.stack([middle + x, height + y, front - _WRAP * np.square(x)], -1)

    frame, lenses = [], []
    for side in (-1.0, 1.0):
        x = side * (shift + outline[:, 0])
        ring = place(x, outline[:, 1])
        out = np.stack([side * outline[:, 0], outline[:, 1], 0 * x], -1)
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        out *= np.array([1.0, 1.0, 0.0])
        thick = np.full(len(ring), g.rim)
        if g.rimless_below:
            thick = np.where(outline[:, 1] < 0.1 * g.half_height, 0.002, thick)
        deep = np.broadcast_to([0.0, 0.0, max(0.7 * g.rim, 0.008)], ring.shape) * (thick / g.rim)[:, None]
        order = slice(None) if side > 0 else slice(None, None, -1)
        frame.append(_tube((ring + out * thick[:, None])[order], (out * thick[:, None])[order], deep[order], True))
        centre = place(np.array([side * shift]), np.array([0.0]))
        rings = [centre + (ring - centre) * r for r in (0.35, 0.7, 1.0)]
        glass = np.concatenate([centre] + [r + [0, 0, b] for r, b in zip(rings, (0.016, 0.009, 0.0), strict=True)])
        glass[0, 2] += 0.018
        n = len(ring)
        fan = np.stack([np.zeros(n, int), 1 + np.arange(n), 1 + np.roll(np.arange(n), -1)], 1)
        tris = np.concatenate([fan, 1 + _grid(3, n, False, True)])
        if side < 0:
            tris = tris[:, ::-1]
        local = np.concatenate([[[0.0, 0.0]]] + [outline * r for r in (0.35, 0.7, 1.0)]) * [side, 1.0]
        lenses.append((glass, tris, local))
        frame.append(_temple(g, side, place, shift, neutral, flesh, middle))
    t = np.linspace(-1, 1, 9)
    inner = shift - g.half_width - 0.3 * g.rim
    nose = flesh[(far < 0.06) & (np.abs(flesh[:, 1] - height - 0.3 * g.half_height) < 0.06), 2]
    bridge = place(t * inner, 0.28 * g.half_height + 0.03 * (1 - t * t))
    bridge[:, 2] += np.maximum((nose.max() if len(nose) else 0) + 0.02 - front, 0) * (1 - t * t)
    up = np.broadcast_to([0.0, 1.0, 0.0], bridge.shape) * max(g.rim, 0.009)
    frame.append(_tube(bridge, up, np.broadcast_to([0, 0, max(0.6 * g.rim, 0.008)], bridge.shape), False))
    return _join(frame, GLASSES), _join(lenses, GLASSES)


def _temple(g: Glasses, side: float, place, shift: float, neutral: np.ndarray, flesh: np.ndarray, middle: float):
    """From the outer end of a rim past the temple, over the ear and down behind it."""
    m = head_mesh()
    ear = neutral[(m.part == EAR) & (m.azimuth * side > 0)]
    inner = np.median(ear[:, 0] * side) - 0.035
    top = ear[ear[:, 1] > np.quantile(ear[:, 1], 0.8)]
    hinge = place(np.array([side * (shift + g.half_width + g.rim)]), np.array([0.42 * g.half_height]))[0]
    over = np.array([side * inner, top[:, 1].mean() - 0.01, top[:, 2].mean()])
    t = np.linspace(0, 1, 9)[:, None]
    points = hinge + (over - hinge) * t
    points[:, 0] += side * 0.05 * np.sin(np.pi * t[:, 0]) ** 0.7
    for k in range(1, len(points)):  # outside the skin everywhere
        close = (np.abs(flesh[:, 1] - points[k, 1]) < 0.1) & (np.abs(flesh[:, 2] - points[k, 2]) < 0.08)
        close &= (flesh[:, 0] - middle) * side > 0
        if close.any() and k < 7:
            points[k, 0] = side * max(points[k, 0] * side, (flesh[close, 0] * side).max() + 0.018)
    tail = over + np.array([[0.0, -0.03, -0.07], [0.0, -0.10, -0.12]]) * [side, 1, 1]
    points = np.concatenate([points, tail])
    taper = np.linspace(1, 0.75, len(points))[:, None]
    tall = np.array([0.0, 1.0, 0.0]) * max(1.1 * g.rim, 0.010) * taper
    wide = np.array([side, 0.0, 0.0]) * max(0.5 * g.rim, 0.007) * taper
    return _tube(points, tall, wide, False)


def hat_line(hat: Hat, azimuth: np.ndarray) -> np.ndarray:
    """Height of the hat's edge at each azimuth."""
    return hat.back + (hat.front - hat.back) * step(-1.0, 1.0, np.cos(azimuth))


def outward(points: np.ndarray) -> np.ndarray:
    """Unit directions away from the middle of the skull at points [..., 3]."""
    out = np.stack(
        [
            points[..., 0] / 0.52,
            np.where(points[..., 1] > 0.25, (points[..., 1] - 0.25) / 0.9, 0),
            (points[..., 2] + 0.55) / 0.95,
        ],
        -1,
    )
    return out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-6)


_RINGS = 13


@functools.lru_cache(maxsize=8)
def _hat_rest(kind: str, front: float, back: float):
    a = hair_azimuths()
    s = np.linspace(0.02, 1, _RINGS)[:, None]
    line = hat_line(Hat(kind, None, None, front, back), a)[None]
    height = face.CROWN - (face.CROWN - line) * s**1.6
    azimuth = np.broadcast_to(a[None], height.shape)
    base = face.surface(azimuth, height, relief=False)
    if kind == 'beanie':
        thick = 0.095 + 0.05 * step(0.72, 0.78, s) + 0.06 * step(0.5, 0.0, s)
    elif kind == 'cap':
        thick = 0.085 + 0.05 * step(0.9, 0.3, s)
    else:
        thick = 0.10 + 0.22 * step(0.95, 0.35, s) - 0.10 * np.exp(-np.square((s - 0.05) / 0.15))
    thick = thick * (0.9 + 0.1 * step(0, 1, s))
    points = base + outward(base) * np.broadcast_to(thick, height.shape)[..., None]
    index, weight = grid_weights(height.ravel(), azimuth.ravel(), ROWS)
    canonical = np.stack([azimuth, np.broadcast_to(s, height.shape)], -1)
    return points, index, weight, canonical


def hat_piece(hat: Hat, neutral: np.ndarray) -> Piece:
    """The hat on a neutral head [V, 3]: on the skull, over the hair."""
    points, index, weight, canonical = _hat_rest(hat.kind, round(hat.front, 3), round(hat.back, 3))
    moved = np.einsum('nk,nkd->nd', weight, neutral[index] - head_mesh().positions[index])
    shell = (points.reshape(-1, 3) + moved).reshape(points.shape)
    parts = [(shell.reshape(-1, 3), _grid(*points.shape[:2], False, True), canonical.reshape(-1, 2))]
    if hat.kind in ('cap', 'brim'):
        edge = shell[-1]
        centre = edge.mean(0)
        away = (edge - centre) * [1.0, 0.0, 1.0]
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        a = hair_azimuths()
        if hat.kind == 'cap':
            keep = np.abs(a) < 1.15
            edge, away, a = edge[keep], np.broadcast_to([0.0, -0.22, 1.0], (keep.sum(), 3)), a[keep]
            reach = 0.62 * np.sqrt(np.clip(1 - np.square(a / 1.2), 0, 1))
            droop = 0.10 * np.square(a / 1.15)
        else:
            reach, droop = np.full(len(a), 0.42), 0.06 * np.square(np.sin(a)) * -1
        r = np.linspace(0, 1, 5)[:, None]
        brim = edge + (r * reach)[..., None] * away - np.stack([0 * r * a, r * droop, 0 * r * a], -1)
        brim[..., 1] -= 0.01
        closed = hat.kind == 'brim'
        flat = np.stack([np.broadcast_to(a, brim.shape[:2]), np.broadcast_to(1.5 + r, brim.shape[:2])], -1)
        parts.append((brim.reshape(-1, 3), _grid(*brim.shape[:2], False, closed), flat.reshape(-1, 2)))
    return _join(parts, HAT)
