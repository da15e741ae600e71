"""The shape of a head that a picture shows, for the average vertex distance (AVD): a head model fitted to landmarks.

Camera and expression are known, so what is left of the 68 landmarks is the shape. Whoever makes the pictures, the same
landmark detector and the same fit look at them and at the portrait; the detector's noise makes a floor under the score.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.pose import head_to_world
from avatar_jax.render.cameras import unpack_label

if TYPE_CHECKING:
    from avatar_jax.faces.base import MorphableModel

NOISE = 0.01  # of the picture's side: deviation that a landmark is credited with; shapes have unit variance
_STEPS = 3


@partial(jax.jit, static_argnames='steps')
def _fit(mean, basis, landmarks, labels, moved, noise, steps):
    """Shape coefficients [T, K] by Gauss-Newton with a standard normal prior."""
    cam2world, intrinsics = unpack_label(labels)

    def one(marks, pose, lens, moved):
        def seen(shape):
            points = head_to_world(mean + jnp.tensordot(shape, basis, 1) + moved)
            camera = (points - pose[:3, 3]) @ pose[:3, :3]
            return (camera[:, :2] / camera[:, 2:]) @ lens[:2, :2].T + lens[:2, 2]

        def step(_, shape):
            jacobian = jax.jacfwd(seen)(shape).reshape(-1, shape.size) / noise
            miss = (marks - seen(shape)).reshape(-1) / noise
            system = jacobian.T @ jacobian + jnp.eye(shape.size)
            return shape + jnp.linalg.solve(system, jacobian.T @ miss - shape)

        return jax.lax.fori_loop(0, steps, step, jnp.zeros(basis.shape[0]))

    return jax.vmap(one)(landmarks, cam2world, intrinsics, moved)


def neutral_vertices(
    head: MorphableModel, landmarks: np.ndarray, labels: np.ndarray, expression: np.ndarray, noise: float = NOISE
) -> np.ndarray:
    """Vertices [T, V, 3] (decimetres) of the heads in T pictures, without expression or pose.

    Args:
        head: the head model, ``faces.base.MorphableModel``.
        landmarks: [T, 68, 2] as fractions of the picture's side, y down.
        labels: [T, 25] cameras. expression: [T, 64] coefficients of the head model, zeros beyond its own.
        noise: deviation of the landmarks, in the same unit.
    """
    zero, still = np.zeros(head.num_id, np.float32), np.zeros(head.num_exp, np.float32)
    mean = np.asarray(head.landmarks(zero, still))
    basis = np.asarray(head.landmarks(np.eye(head.num_id, dtype=np.float32), still)) - mean
    moved = np.asarray(head.landmarks(zero, np.asarray(expression, np.float32)[:, : head.num_exp])) - mean
    with jax.default_matmul_precision('highest'):
        shapes = _fit(mean, basis, jnp.asarray(landmarks), jnp.asarray(labels), moved, noise, _STEPS)
    return np.asarray(head.vertices(np.asarray(shapes), still))
