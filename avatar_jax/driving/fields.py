"""How the components of different head models move the same points of a face.

The points are vertices of the procedural head's skin (the front of the face) and the 68 landmarks. Another model is
laid over it by a similarity of the landmarks and a smooth warp of what is left, and each point takes the nearest
vertex; points that have none nearby are not used. Displacements are in decimetres, in the procedural head's frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.driving.bases import (
    BASES,
    BFM,
    FLAME,
    FLAME_EXPRESSION,
    FLAME_JAW,
    ICT,
    ICT_NAMES,
    PROCEDURAL,
    WIDTH,
    width,
)
from avatar_jax.errors import UserError

if TYPE_CHECKING:
    from avatar_jax.faces.base import MorphableModel

_NEAR = 0.09  # decimetres between a point and its vertex
_JAW_STEP = 0.2  # radians over which the jaw's turn is made a displacement
_LIPS = 0.04  # decimetres around the closed mouth's line that are left out
_STRIDE = 2  # every second vertex of the skin is dense enough for fields as smooth as these
_INNER = slice(17, 68)  # landmarks that models agree on; the contour is not

HeadModels = Callable[[str], 'MorphableModel']


def load_head_model(basis: str) -> MorphableModel:
    """The head model of a basis: the procedural one, or the user's own file in the asset folders.

    Raises:
        UserError: unknown basis, or the file is not there; says which file is needed and where to put it.
    """
    from avatar_jax.io.assets import VARIABLE, find

    if basis == PROCEDURAL:
        from avatar_jax.procedural import ProceduralHead

        return ProceduralHead()
    if basis not in BASES:
        raise UserError(f"basis '{basis}': not known; there are {', '.join(BASES)}")
    kind = {BFM: 'bfm', FLAME: 'flame', ICT: 'ict'}[basis]
    here = next(p for p in find() if p.asset.name == kind)
    usable = {'bfm': ('BFM_model_front.mat',), 'flame': (), 'ict': ('ict_facekit.npz',)}[kind]
    files = [*here.imported, *(f for f in here.originals if f.name in usable)]
    if not files:
        wanted = here.asset.files[0]
        raise UserError(
            f"basis '{basis}': its head model is not here; import {wanted} with avatar-jax convert (or put "
            f'{usable[0] if usable else "the import"} as it is) into a folder named by {VARIABLE}, '
            'see avatar-jax assets'
        )
    if kind == 'bfm':
        from avatar_jax.faces.bfm import BFM as Model
    elif kind == 'flame':
        from avatar_jax.faces.flame import FLAME as Model
    else:
        from avatar_jax.faces.ict import ICT as Model
    model = Model.load(files[0])
    if kind == 'ict' and model.expression_names != ICT_NAMES:
        raise UserError(f"{files[0]}: its blendshapes are not those of '{ICT}' in their order; import the model again")
    return model


@dataclass(frozen=True)
class Fields:
    """Displacements of the shared points by the 64 expression numbers of a motion.

    Attributes:
        basis: whose numbers.
        moves: [64, P, 3] decimetres per unit.
        valid: [P] bool: the model has this point.
    """

    basis: str
    moves: np.ndarray
    valid: np.ndarray


def shared_points() -> tuple[np.ndarray, np.ndarray]:
    """([P] vertex ids of the procedural head, [P] weights); the last 68 are the landmarks.

    Landmarks together weigh as much as all other points.
    """
    from avatar_jax.procedural import surface
    from avatar_jax.procedural.mesh import SKIN, head_mesh

    mesh = head_mesh()
    front = (mesh.part == SKIN) & (mesh.follow < 0) & (np.abs(mesh.azimuth) < 1.25)
    front &= (mesh.positions[:, 1] > -0.95) & (mesh.positions[:, 1] < 0.85)
    # Where the lips meet, the nearest vertex of another model may be on the other lip; the landmarks speak for them.
    slit = np.abs(mesh.height - surface.MOUTH_LINE) < _LIPS
    front &= ~(slit & (np.abs(mesh.positions[:, 0]) < surface.MOUTH_HALF + _LIPS))
    dense = np.flatnonzero(front)[::_STRIDE]
    weights = np.concatenate([np.full(len(dense), 1 / len(dense)), np.full(68, 1 / 68)])
    return np.concatenate([dense, mesh.landmark_ids]), weights


def fields_of(model: MorphableModel) -> Fields:
    """The displacement fields of a head model.

    Raises:
        UserError: a FLAME model without landmarks.
    """
    from avatar_jax.procedural import ProceduralHead

    ids, _ = shared_points()
    if model.basis == PROCEDURAL:
        basis = np.zeros((WIDTH, model.num_exp), np.float32)
        np.fill_diagonal(basis, 1)
        neutral = model.vertices(np.zeros(model.num_id, np.float32), np.zeros(model.num_exp, np.float32))
        moved = np.asarray(model.vertices(np.zeros((WIDTH, model.num_id), np.float32), basis))
        return Fields(PROCEDURAL, (moved - np.asarray(neutral))[:, ids], np.ones(len(ids), bool))
    neutral, landmarks, moves, landmark_moves = _moved(model)
    home = ProceduralHead()
    target = np.asarray(home.landmarks(np.zeros(80, np.float32), np.zeros(64, np.float32)), np.float64)
    scale, rotation, shift = similarity(landmarks[_INNER], target[_INNER])
    placed = scale * neutral @ rotation + shift
    over = scale * landmarks @ rotation + shift
    placed = placed + smooth_warp(over[_INNER], target[_INNER] - over[_INNER])(placed)
    points = home.mean[ids[:-68]].astype(np.float64)
    nearest, distance = _nearest(points, placed)
    moves = np.concatenate([moves[:, nearest], landmark_moves], axis=1)
    valid = np.concatenate([distance < _NEAR, np.ones(68, bool)])
    return Fields(model.basis, (scale * moves @ rotation).astype(np.float32), valid)


def _moved(model: Any) -> tuple[np.ndarray, ...]:
    """Neutral vertices [V,3] and landmarks [68,3], and what each of the 64 numbers adds: [64,V,3], [64,68,3]."""
    used = min(width(model.basis), model.num_exp)
    zero_id = np.zeros((used + 1, model.num_id), np.float32)
    values = np.concatenate([np.zeros((1, model.num_exp)), np.eye(used, model.num_exp)]).astype(np.float32)
    vertices = np.asarray(model.vertices(zero_id, values), np.float64)
    landmarks = np.asarray(model.landmarks(zero_id, values), np.float64)
    moves, landmark_moves = np.zeros((WIDTH, *vertices.shape[1:])), np.zeros((WIDTH, 68, 3))
    moves[:used], landmark_moves[:used] = vertices[1:] - vertices[0], landmarks[1:] - landmarks[0]
    if model.basis == FLAME:
        pose = np.zeros((3, 6), np.float32)
        pose[:, 3:] = _JAW_STEP * np.eye(3)
        flat = np.zeros((3, model.num_id), np.float32), np.zeros((3, FLAME_EXPRESSION.stop), np.float32)
        turned = model(*flat, pose).vertices
        points = np.asarray(model.landmarks3d(turned), np.float64) * 10.0
        moves[FLAME_JAW] = (np.asarray(turned, np.float64) * 10.0 - vertices[0]) / _JAW_STEP
        landmark_moves[FLAME_JAW] = (points - landmarks[0]) / _JAW_STEP
    return vertices[0], landmarks[0], moves, landmark_moves


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, row-vector rotation [3,3] and shift [3] with ``target ~ scale * source @ rotation + shift`` (least
    squares).
    """
    a, b = source.mean(0), target.mean(0)
    u, s, vt = np.linalg.svd((source - a).T @ (target - b))
    flip = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * flip) @ vt
    scale = float((s * flip).sum() / ((source - a) ** 2).sum())
    return scale, rotation, b - scale * a @ rotation


def smooth_warp(points: np.ndarray, values: np.ndarray, stiffness: float = 1e-3) -> Callable[[np.ndarray], np.ndarray]:
    """The smoothest field (kernel |r|, with an affine part) that takes ``values`` [N,3] at ``points`` [N,3]."""
    n = len(points)
    kernel = -np.linalg.norm(points[:, None] - points[None], axis=-1) + stiffness * np.eye(n) * -1
    affine = np.concatenate([np.ones((n, 1)), points], 1)
    system = np.block([[kernel, affine], [affine.T, np.zeros((4, 4))]])
    solved = np.linalg.solve(system, np.concatenate([values, np.zeros((4, 3))]))

    def field(x: np.ndarray) -> np.ndarray:
        distance = -np.linalg.norm(x[:, None] - points[None], axis=-1)
        return distance @ solved[:n] + solved[n] + x @ solved[n + 1 :]

    return field


def _nearest(points: np.ndarray, vertices: np.ndarray, chunk: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Nearest vertex of each point, and its distance."""
    low, high = points.min(0) - 2 * _NEAR, points.max(0) + 2 * _NEAR
    inside = np.flatnonzero(((vertices > low) & (vertices < high)).all(1))
    if not len(inside):
        return np.zeros(len(points), int), np.full(len(points), np.inf)
    part = vertices[inside]
    index, distance = [], []
    for start in range(0, len(points), chunk):
        d = ((points[start : start + chunk, None] - part[None]) ** 2).sum(-1)
        best = d.argmin(1)
        index.append(inside[best])
        distance.append(np.sqrt(d[np.arange(len(best)), best]))
    return np.concatenate(index), np.concatenate(distance)
