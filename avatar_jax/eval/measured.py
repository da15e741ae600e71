"""Scores from what other programs measured on the pictures of an evaluation, e.g. a landmark detector or py-feat.

``avatar-jax evaluate --save-frames`` writes the driven frames of every person (``made``) and the true ones (``true``).
A file ``NAME.npz`` for a person may hold, with T frames in their order:

| array | shape | score |
|---|---|---|
| ``landmarks``, ``landmarks_true`` | [T,68,2] pixels | AKD |
| ``expression``, ``expression_true`` | [T,E] | AED (EMOCA's or another regressor's) |
| ``pose``, ``pose_true`` | [T,P] radians | APD |
| ``degrees``, ``degrees_true`` | [T,3] head angles | PRMSE; rows of NaN are frames without a face |
| ``units``, ``units_true`` | [T,U] | AUCON (present above 0.5) |
| ``embedding``, ``embedding_true`` | [T,D], or [1,D] of the portrait | CSIM |
| ``vertices``, ``vertices_true`` | [T,V,3], or [1,V,3] of the portrait, decimetres | AVD |
| ``lips``, ``sound`` | [T,D] features of SyncNet | LSE-D, LSE-C |

An array without its counterpart is refused, and so is a name that is not in the table.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval import faces
from avatar_jax.eval.sync import sync_scores

GROUP = 'measured'
_Scores = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


def _mean(values: np.ndarray) -> float:
    """Over the frames that have a value."""
    values = np.asarray(values, np.float64)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')


def _sync(lips: np.ndarray, sound: np.ndarray) -> dict[str, float]:
    found = sync_scores(lips, sound)
    return {'lse_d': float(found.min_distance), 'lse_c': float(found.confidence), 'sync_offset': float(found.offset)}


# first array -> (second array, axes, whether the second may have one row, scores)
_TABLE: dict[str, tuple[str, int, bool, _Scores]] = {
    'landmarks': (
        'landmarks_true',
        3,
        False,
        lambda a, b: {
            'akd': _mean(faces.keypoint_distance(a, b)),
            'akd_l2': _mean(faces.keypoint_distance(a, b, 'l2')),
        },
    ),
    'expression': (
        'expression_true',
        2,
        False,
        lambda a, b: {'aed': _mean(np.abs(a - b).mean(-1)), 'aed_l2': _mean(np.linalg.norm(a - b, axis=-1))},
    ),
    'pose': ('pose_true', 2, False, lambda a, b: {'apd': _mean(np.abs(a - b).mean(-1))}),
    'degrees': ('degrees_true', 2, False, lambda a, b: {'prmse': _mean(faces.pose_rmse(a, b))}),
    'units': ('units_true', 2, False, lambda a, b: {'aucon': _mean(faces.action_unit_agreement(a, b))}),
    'embedding': ('embedding_true', 2, True, lambda a, b: {'csim': _mean(faces.identity_similarity(a, b))}),
    'vertices': ('vertices_true', 3, True, lambda a, b: {'avd': _mean(faces.vertex_distance(a, b))}),
    'lips': ('sound', 2, False, _sync),
}


def measured_scores(path: Path, frames: int) -> dict[str, float]:
    """Dotted name -> score of one person's file.

    Args:
        frames: of the person.

    Raises:
        UserError: the file cannot be read; an array of another name, length or shape, or without its counterpart.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: np.asarray(file[k], np.float64) for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: cannot be read as .npz ({type(error).__name__}); write it again') from error
    known = {name for first, (second, *_) in _TABLE.items() for name in (first, second)}
    if unknown := sorted(set(arrays) - known):
        raise UserError(f'{path}: has an array {unknown[0]!r}; use the names {", ".join(sorted(known))}')
    scores = {}
    for first, (second, axes, single, function) in _TABLE.items():
        if (first in arrays) != (second in arrays):
            raise UserError(f'{path}: {first} and {second} belong together; give both or neither')
        if first not in arrays:
            continue
        a, b = arrays[first], arrays[second]
        lengths = {frames, 1} if single else {frames}
        if a.ndim != axes or b.ndim != axes or a.shape[1:] != b.shape[1:] or len(a) != frames or len(b) not in lengths:
            raise UserError(
                f'{path}: {first} {a.shape} and {second} {b.shape} must have {axes} axes, {frames} frames and equal '
                'rows'
            )
        scores |= {f'{GROUP}.{name}': value for name, value in function(a, b).items()}
    if not scores:
        raise UserError(f'{path}: holds none of {", ".join(_TABLE)}')
    return scores
