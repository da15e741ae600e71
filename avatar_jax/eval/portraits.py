"""Scores of same-person reenactment with one and with several portraits, on sets of frames of one person each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.eval.estimators import from_bank
from avatar_jax.eval.faces import (
    action_unit_agreement,
    expression_distance,
    identity_similarity,
    pose_rmse,
    vertex_distance,
)
from avatar_jax.eval.shape import neutral_vertices
from avatar_jax.faces.importance import part_boxes
from avatar_jax.losses.networks import default_bank
from avatar_jax.methods.model import Model
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.ops.resize import resize
from avatar_jax.ops.windows import RADIUS
from avatar_jax.types import Avatar, Camera, Portrait

MOST = 4  # portraits
NETWORK_SIDE = 128  # pixels that the stand-ins for coefficients and identity were trained on
NUM_SHAPE = 80  # of the numbers of a procedural person: those of its shape
SCORES = ('psnr', 'aed', 'prmse', 'csim', 'aucon', 'avd')


def portrait_scores(
    model: Model, sets: Callable[[int], Mapping[str, np.ndarray]], people: int, most: int = MOST
) -> dict[str, dict[str, float]]:
    """Scores with 1..most portraits: {'1': {'psnr': ..., 'aed': ..., 'prmse': ..., ...}, ...}.

    PSNR (dB) of the whole picture; expression distance, error of the head's angles (degrees), similarity of identity
    and share of equal action units to the true picture, and the mean distance of the shape's vertices (decimetres) from
    that of the first portrait; NaN where the package has no network that tells them.

    Args:
        model: of procedural heads; of a method that takes one portrait, only the first is used.
        sets: number of a person -> ``images`` [1 + most, H, W, 3], ``masks`` (uint8), ``windows``, ``labels``: one
            driver frame, and portraits of the same person in poses and expressions of their own.
    """
    most = most if model.method.takes_portraits else 1
    judge, found = _Judge(), {str(n): [] for n in range(1, most + 1)}
    for k in range(people):
        item = sets(k)
        portraits = [
            Portrait(
                image=item['images'][i],
                camera=Camera.from_label(item['labels'][i]),
                mask=item['masks'][i].astype(np.float32) / 255,
                source=f'frame {i}',
            )
            for i in range(1, 1 + most)
        ]
        for n in range(1, most + 1):
            avatar = model.build(portraits[:n]).avatar
            found[str(n)].append(judge(driven(model, avatar, item), item))
    return {n: _means(rows) for n, rows in found.items()}


def built_scores(
    model: Model,
    sets: Callable[[int], Mapping[str, np.ndarray]],
    people: int,
    builds: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
    """The same scores of avatars of one portrait, with all that is known of it, built in several ways; and ``mouth``,
    the PSNR of the mouth alone.

    Args:
        sets: as above, also with ``landmarks`` [2, 68, 2] and ``identity`` [192].
        builds: name -> options of ``Model.build``.
    """
    judge, found = _Judge(), {name: [] for name in builds}
    for k in range(people):
        item = sets(k)
        portrait = Portrait(
            image=item['images'][1],
            camera=Camera.from_label(item['labels'][1]),
            mask=item['masks'][1].astype(np.float32) / 255,
            landmarks=item['landmarks'][1],
            expression=item['windows'][1, RADIUS, :64],
            shape=item['identity'][:NUM_SHAPE],
            basis='procedural',
            source=f'person {k}',
        )
        for name, options in builds.items():
            avatar = model.build([portrait], **options).avatar
            picture, truth = driven(model, avatar, item), item['images'][:1]
            (x0, y0, x1, y1), side = part_boxes(item['landmarks'][:1])[0, 0], truth.shape[1]
            mouth = np.s_[:, max(y0, 0) : min(max(y1, 1), side), max(x0, 0) : min(max(x1, 1), side)]
            own = {'mouth': float(psnr(to_unit(picture[mouth]), to_unit(truth[mouth]))[0])}
            found[name].append(judge(picture, item) | own)
    return {name: _means(rows) for name, rows in found.items()}


def driven(model: Model, avatar: Avatar, item: Mapping[str, np.ndarray]) -> np.ndarray:
    """The picture [1, H, W, 3] of an avatar in the pose and expression of the first frame."""
    return model.frames(avatar, item['windows'][:1], item['labels'][:1]).rgb


class _Judge:
    """Scores of a picture [1, H, W, 3] of an avatar that is driven by the first frame of a set."""

    def __init__(self):
        self.known = from_bank(default_bank(NETWORK_SIDE))

    def __call__(self, picture: np.ndarray, item: Mapping[str, np.ndarray]) -> dict[str, float]:
        found, truth = dict.fromkeys(SCORES, float('nan')), item['images'][:1]
        found['psnr'] = float(psnr(to_unit(picture), to_unit(truth))[0])
        pair = [resize(jnp.asarray(x), NETWORK_SIDE) for x in (picture, truth)]
        estimate, identity, units = self.known.coefficients, self.known.identity, self.known.units
        if estimate is not None:
            codes = [np.asarray(estimate.call(x, None)) for x in pair]
            found['aed'] = float(np.mean(expression_distance(*codes)))
            angles = [np.rad2deg(x[:, SLICES['angle']]) for x in codes]
            found['prmse'] = float(np.mean(pose_rmse(*angles)))
        if identity is not None and not identity.needs_landmarks:
            found['csim'] = float(np.mean(identity_similarity(*(identity.call(x, None) for x in pair))))
        if units is not None:
            found['aucon'] = float(np.mean(action_unit_agreement(*(np.asarray(units.call(x, None)) for x in pair))))
        if self.known.landmarks is not None and self.known.head is not None:
            frames = jnp.concatenate([pair[0], resize(jnp.asarray(item['images'][1:2]), NETWORK_SIDE)])
            marks = np.asarray(self.known.landmarks.call(frames)) / NETWORK_SIDE
            expression = item['windows'][:2, RADIUS, :64]
            meshes = neutral_vertices(self.known.head, marks, item['labels'][:2], expression)
            found['avd'] = float(np.mean(vertex_distance(meshes[:1], meshes[1:])))
        return found


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
