"""Camera of a head from landmarks: FLAME's points are moved by Adam until they fall on the detected ones.

The camera is GPAvatar's (``methods.gpavatar.cameras``): x_cam = x_world R + T, x to the left, y up. Shape, expression
and jaw come from elsewhere and stay; only R (as six numbers) and T are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.flame import FLAME, rodrigues
from avatar_jax.faces.rotation_six import from_six, to_six
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer

# Of the 105 dense landmarks: the mouth, and the upper and lower eyelids.
MOUTH = np.delete(np.arange(65, 105), 25)
UPPER_LIDS, LOWER_LIDS = np.array([29, 30, 31, 45, 46, 47]), np.array([23, 24, 25, 39, 40, 41])
CONTOUR = 17
DRAFT_FOCAL = 5000 / 512  # focal length of the regressed pose
FIRST_FOCAL = 13.0
_FLIP = np.array([-1.0, -1.0, 1.0], np.float32)


@dataclass(frozen=True)
class FitConfig:
    """How a camera is fitted.

    Attributes:
        focal: focal length, in half image sides. size: side of the image in pixels. scale: world units per FLAME unit.
        steps: of Adam. translation_lr, rotation_lr: its learning rates.
        sparse, contour, dense, mouth, lids, expression: weights of the terms: 68 landmarks, the first 17 of them, 105
            landmarks, those of the mouth, openings of the eyelids, size of the expression (constant here).
    """

    focal: float = 12.0
    size: int = 512
    scale: float = 5.0
    steps: int = 250
    translation_lr: float = 0.05
    rotation_lr: float = 0.005
    sparse: float = 1000.0
    contour: float = 200.0
    dense: float = 7000.0
    mouth: float = 10000.0
    lids: float = 1000.0
    expression: float = 0.02


class Detected(NamedTuple):
    """Landmarks in pixels (y down): ``sparse`` [B,68,2] and ``dense`` [B,478,2], all MediaPipe points."""

    sparse: jax.Array
    dense: jax.Array


class Head(NamedTuple):
    """Coefficients: ``shape`` [B,100], ``expression`` [B,50], ``pose`` [B,6] whose global part (first three) is
    zero.
    """

    shape: jax.Array
    expression: jax.Array
    pose: jax.Array


def project(points: jax.Array, transform: jax.Array, focal: float, size: int) -> jax.Array:
    """Pixels [B,L,2] of world points [B,L,3] seen by cameras [B,3,4]."""
    high = jax.lax.Precision.HIGHEST
    camera = jnp.einsum('bli,bij->blj', points, transform[..., :3], precision=high) + transform[:, None, :, 3]
    return size / 2 * (1 - focal * camera[..., :2] / camera[..., 2:])


def landmarks_of(model: FLAME, head: Head, scale: float) -> tuple[jax.Array, jax.Array]:
    """World positions of the 68 and of the 105 landmarks."""
    vertices = model(head.shape, head.expression, head.pose).vertices
    return scale * model.landmarks2d(vertices, head.pose), scale * model.landmarks_mediapipe(vertices)


def first_camera(
    model: FLAME, shape: jax.Array, expression: jax.Array, pose: jax.Array, dense: jax.Array, config: FitConfig
) -> tuple[jax.Array, jax.Array, Head]:
    """Where the fit begins, from a regressed pose [B,6] with its global rotation.

    Returns:
        the camera [B,3,4] for the draft focal length and the world's standard scale, the one for ``config``, and the
        head without global rotation.
    """
    turn = rodrigues(jnp.stack([pose[:, 2], pose[:, 1] + np.pi, pose[:, 0]], -1))
    rotation = _FLIP[:, None] * turn * _FLIP
    head = Head(shape, expression, pose.at[:, :3].set(0.0))
    transform = jnp.concatenate([rotation, jnp.zeros((len(pose), 3, 1)).at[:, 2].set(DRAFT_FOCAL)], -1)
    seen = project(landmarks_of(model, head, 5.0)[1], transform, DRAFT_FOCAL, config.size)
    shift = (seen.mean(1) - dense.mean(1)) * 2 / 512
    draft = transform.at[:, :2, 3].set(shift)
    return draft, draft.at[:, :, 3].multiply(config.focal / FIRST_FOCAL * (config.scale / 5.0)), head


def terms(model: FLAME, head: Head, transform: jax.Array, found: Detected, config: FitConfig) -> dict[str, jax.Array]:
    """Weighted terms: means over people, points and axes of squared pixel distances, divided by the image's side."""
    sparse, dense = (project(x, transform, config.focal, config.size) for x in landmarks_of(model, head, config.scale))
    truth = found.dense[:, model.mediapipe_ids]

    def error(a, b):
        return jnp.mean((a - b) ** 2) / 512

    def opening(x):
        return x[:, UPPER_LIDS] - x[:, LOWER_LIDS]

    return {
        'sparse': config.sparse * error(sparse, found.sparse),
        'contour': config.contour * error(sparse[:, :CONTOUR], found.sparse[:, :CONTOUR]),
        'dense': config.dense * error(dense, truth),
        'mouth': config.mouth * error(dense[:, MOUTH], truth[:, MOUTH]),
        'lids': config.lids * error(opening(dense), opening(truth)),
        'expression': config.expression * jnp.sum(head.expression**2),
    }


def fit_camera(model: FLAME, head: Head, transform: jax.Array, found: Detected, config: FitConfig) -> jax.Array:
    """Fitted cameras [B,3,4] after ``config.steps`` steps from ``transform``.

    The people of one call are fitted together, as the means of the terms are taken over them.
    """

    def camera(parts):
        return jnp.concatenate([from_six(parts['rotation']), parts['translation'][..., None]], -1)

    def loss(parts):
        return sum(terms(model, head, camera(parts), found, config).values())

    tx = make_optimizer(OptimizerConfig('adam', 1.0))
    rates = {'rotation': config.rotation_lr, 'translation': config.translation_lr}
    parts = {'rotation': to_six(transform[..., :3]), 'translation': transform[..., 3]}

    def step(_, carry):
        parts, state = carry
        updates, state = tx.update(jax.grad(loss)(parts), state, parts)
        return {k: parts[k] + rates[k] * updates[k] for k in parts}, state

    return camera(jax.lax.fori_loop(0, config.steps, step, (parts, tx.init(parts)))[0])
