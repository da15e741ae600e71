"""Scores of same-person reenactment with one and with several portraits, on sets of frames of one person each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from avatar_jax.eval.estimators import from_bank
from avatar_jax.eval.faces import expression_distance, identity_similarity, pose_rmse
from avatar_jax.losses.networks import default_bank
from avatar_jax.methods.model import Model
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.ops.resize import resize
from avatar_jax.types import Camera, Portrait

MOST = 4  # portraits
NETWORK_SIDE = 128  # pixels that the stand-ins for coefficients and identity were trained on
SCORES = ('psnr', 'aed', 'prmse', 'csim')


def portrait_scores(
    model: Model, sets: Callable[[int], Mapping[str, np.ndarray]], people: int, most: int = MOST
) -> dict[str, dict[str, float]]:
    """Scores with 1..most portraits: {'1': {'psnr': ..., 'aed': ..., 'prmse': ..., 'csim': ...}, ...}.

    PSNR (dB) of the whole picture; expression distance, error of the head's angles (degrees) and similarity of identity
    to the true picture, NaN where the package has no network that tells them.

    Args:
        model: of procedural heads; of a method that does not join portraits, only the first is used.
        sets: number of a person -> ``images`` [1 + most, H, W, 3], ``masks`` (uint8), ``windows``, ``labels``: one
            driver frame, and portraits of the same person in poses and expressions of their own.
    """
    most = most if model.method.joins_portraits else 1
    known = from_bank(default_bank(NETWORK_SIDE))
    estimate, identity = known.coefficients, known.identity
    found: dict[str, dict[str, list[float]]] = {str(n): {k: [] for k in SCORES} for n in range(1, most + 1)}
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
        truth = item['images'][:1]
        for n in range(1, most + 1):
            avatar = model.build(portraits[:n]).avatar
            picture = model.frames(avatar, item['windows'][:1], item['labels'][:1]).rgb
            scores = found[str(n)]
            scores['psnr'].append(float(psnr(to_unit(picture), to_unit(truth))[0]))
            pair = [resize(jnp.asarray(x), NETWORK_SIDE) for x in (picture, truth)]
            if estimate is not None:
                codes = [np.asarray(estimate.call(x, None)) for x in pair]
                scores['aed'].append(float(np.mean(expression_distance(*codes))))
                angles = [np.rad2deg(x[:, SLICES['angle']]) for x in codes]
                scores['prmse'].append(float(np.mean(pose_rmse(*angles))))
            if identity is not None and not identity.needs_landmarks:
                scores['csim'].append(float(np.mean(identity_similarity(*(identity.call(x, None) for x in pair)))))
    return {n: {k: float(np.mean(v)) if v else float('nan') for k, v in s.items()} for n, s in found.items()}
