"""Expressions moved from one coefficient basis to another.

Between the procedural basis and ICT-FaceKit a table of names is used (``tables``). Otherwise the numbers of the target
are those whose displacements of shared points of the face (``fields``) are nearest to the source's, in the
least-squares sense, within the nominal range of each component. Gaze, which moves no skin, is passed on by angle where
both sides have it. Head angles and translations mean the same in all bases.
"""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.driving import tables
from avatar_jax.driving.bases import (
    BASES,
    FLAME,
    FLAME_EXPRESSION,
    FLAME_EYES,
    FLAME_JAW,
    ICT,
    PROCEDURAL,
    WIDTH,
    names,
    ranges,
    width,
)
from avatar_jax.driving.fields import Fields, HeadModels, fields_of, load_head_model, shared_points
from avatar_jax.errors import UserError
from avatar_jax.types import Motion

GAZE_DEGREES = 24.0  # at gaze 1
_RIDGE = 2e-3  # of the mean square displacement: keeps components that hardly show at rest
_ITERATIONS = 400
WAYS = ('auto', 'table', 'fit')


def retarget(motion: Motion, basis: str, *, by: str = 'auto', models: HeadModels = load_head_model) -> Motion:
    """The same movement in another basis.

    Args:
        basis: the target.
        by: 'table' (procedural and ICT only), 'fit' (least squares), or 'auto', which prefers the table.
        models: gives the head model of a basis.

    Raises:
        UserError: unknown basis, or a head model that is needed is not here.
    """
    if by not in WAYS:
        raise ValueError(f'by {by!r}: choose from {", ".join(WAYS)}')
    if motion.basis == basis:
        return motion
    for name in (motion.basis, basis):
        if name not in BASES:
            raise UserError(f"basis '{name}': not known; there are {', '.join(BASES)}")
    has_table = {motion.basis, basis} == {PROCEDURAL, ICT}
    if by == 'table' and not has_table:
        raise UserError(f"there is no table from '{motion.basis}' to '{basis}'; use by='fit'")
    if has_table and by != 'fit':
        expression = tables.translate(motion.expression, motion.basis, basis)
    else:
        expression = fit_rows(
            np.asarray(motion.expression, np.float64), own_fields(motion.basis, models), own_fields(basis, models)
        )
    return motion.replace(expression=expression.astype(np.float32), basis=basis)


def fit_rows(expression: np.ndarray, source: Fields, target: Fields) -> np.ndarray:
    """[T, 64] numbers of ``target`` whose displacements are nearest to those of ``expression`` [T, 64].

    Gaze is set from the source's first, so that what it does to the lids is accounted for.
    """
    _, weights = shared_points()
    keep = source.valid & target.valid
    root = np.sqrt(weights[keep])[:, None]
    a = (source.moves[:, keep] * root).reshape(WIDTH, -1).astype(np.float64)
    b = (target.moves[:, keep] * root).reshape(WIDTH, -1).astype(np.float64)
    gram = b @ b.T
    size = np.trace(gram) / max(1, int((np.diag(gram) > 0).sum()))
    right = expression @ (a @ b.T)
    low, high = np.repeat(ranges(target.basis).T[:, None].astype(np.float64), len(expression), axis=1)
    looks, values = gaze_rows(expression, source.basis, target.basis)
    low[:, looks] = high[:, looks] = values
    right = right - values @ gram[looks]
    free = np.setdiff1d(np.arange(WIDTH), looks)
    out = np.zeros((len(expression), WIDTH))
    out[:, looks] = values
    reduced = gram[np.ix_(free, free)] + _RIDGE * size * np.eye(len(free))
    if names(target.basis):
        out[:, free] = _bounded(reduced, right[:, free], low[:, free], high[:, free])
    else:
        out[:, free] = np.clip(np.linalg.solve(reduced, right[:, free].T).T, low[:, free], high[:, free])
    return out


def _bounded(gram: np.ndarray, right: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """argmin x gram x / 2 - right x with low <= x <= high, for every row (accelerated projected gradient)."""
    step = 1.0 / np.linalg.eigvalsh(gram)[-1]
    x = np.clip(np.linalg.solve(gram, right.T).T, low, high)
    ahead, momentum = x, 1.0
    for _ in range(_ITERATIONS):
        new = np.clip(ahead - step * (ahead @ gram - right), low, high)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - x)
        x, momentum = new, following
    return x


def _gaze(expression: np.ndarray, basis: str) -> np.ndarray | None:
    """[T, 2] gaze to the right of the picture and up, 1 = 24 degrees; None where the basis has no gaze."""
    if basis == ICT:
        expression, basis = tables.translate(expression, ICT, PROCEDURAL), PROCEDURAL
    if basis == PROCEDURAL:
        return np.asarray(expression)[:, [names(PROCEDURAL).index(n) for n in ('gaze_x', 'gaze_y')]]
    if basis == FLAME:
        eyes = np.asarray(expression)[:, FLAME_EYES].reshape(-1, 2, 3).mean(1)
        return np.stack([eyes[:, 1], -eyes[:, 0]], 1) / np.deg2rad(GAZE_DEGREES)
    return None


def gaze_rows(source: np.ndarray, basis: str, target_basis: str) -> tuple[np.ndarray, np.ndarray]:
    """(which of the target's numbers are gaze [K], their values [T, K]): what the source says, or straight ahead."""
    gaze = _gaze(source, basis)
    gaze = np.zeros((len(source), 2)) if gaze is None else gaze
    if target_basis == FLAME:
        turn = np.deg2rad(GAZE_DEGREES) * np.stack([-gaze[:, 1], gaze[:, 0], np.zeros(len(gaze))], 1)
        return np.arange(FLAME_EYES.start, FLAME_EYES.stop), np.concatenate([turn, turn], 1)
    looks = np.array([i for i, n in enumerate(names(target_basis)) if n.startswith(('gaze_', 'eyeLook'))], int)
    rows = np.zeros((len(gaze), WIDTH))
    rows[:, [names(PROCEDURAL).index(n) for n in ('gaze_x', 'gaze_y')]] = np.clip(gaze, -1, 1)
    if target_basis == ICT:
        rows = tables.translate(rows, PROCEDURAL, ICT)
    return looks, rows[:, looks]


def region_weights() -> dict[str, np.ndarray]:
    """Weight [P] in 0..1 of each shared point in the mouth, eye and brow region; they sum to one everywhere."""
    from avatar_jax.procedural import ProceduralHead

    ids, _ = shared_points()
    height = ProceduralHead().mean[ids, 1]
    above_mouth = np.clip((height + 0.05) / 0.15, 0, 1)  # from below the nose to the lower lids
    above_eyes = np.clip((height - 0.38) / 0.08, 0, 1)
    return {'mouth': 1 - above_mouth, 'eyes': above_mouth * (1 - above_eyes), 'brows': above_eyes * above_mouth}


@functools.lru_cache(maxsize=4)
def own_fields(basis: str, models: HeadModels = load_head_model) -> Fields:
    """The fields of a basis, computed once."""
    return fields_of(models(basis))


def region_map(basis: str, region: str, models: HeadModels = load_head_model) -> np.ndarray:
    """[64, 64] matrix: ``expression @ map`` is the expression that moves the region alike and leaves the rest at rest,
    as far as the basis can. The jaw of FLAME belongs to the mouth and its eyes to the eyes as they are.

    Raises:
        UserError: the head model is not here.
    """
    fields = own_fields(basis, models)
    _, weights = shared_points()
    moves = fields.moves[:, fields.valid].astype(np.float64)
    if basis == FLAME:
        moves = np.where((np.arange(WIDTH) < FLAME_EXPRESSION.stop)[:, None, None], moves, 0)
    root = np.sqrt(weights[fields.valid])[:, None]
    all_points = (moves * root).reshape(WIDTH, -1)
    part = (moves * root * region_weights()[region][fields.valid][:, None]).reshape(WIDTH, -1)
    gram = all_points @ all_points.T
    ridge = _RIDGE * np.trace(gram) / width(basis) * np.eye(WIDTH)
    out = np.linalg.solve(gram + ridge, all_points @ part.T).T
    if basis == FLAME:
        for place, owner in ((FLAME_JAW, 'mouth'), (FLAME_EYES, 'eyes')):
            out[place] = 0
            out[place, place] = np.eye(place.stop - place.start) * (region == owner)
    return out
