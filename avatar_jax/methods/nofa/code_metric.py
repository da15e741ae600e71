"""How much a difference of codes is seen: by this, and not by its length, an encoder learns codes that are known.

A generator of procedural heads keeps hundreds of traits in its codes, each with about as much room; most of them, such
as the shape of an ear, hardly change a picture, and one picture does not tell them. The mean squared error of codes
would be made of these. Near the mean code pictures are about linear in the code, so that the mean squared error of
pictures is a quadratic form of the difference of codes, which is measured once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.methods.nofa.config import ModelConfig
from avatar_jax.methods.nofa.model import canonical, network, w_avg
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.render.cameras import focal_to_intrinsics, look_at_pose, pack_label

YAWS = (-0.4, 0.0, 0.4)  # radians, of the cameras that look
FOCAL = 4.2647
FLOOR = 1e-3  # of the mean along the diagonal: what is not seen counts a little, too
AT_ONCE = 8


def code_metric(variables: Mapping[str, Any], config: ModelConfig, side: int = 32, step: float = 1.0) -> jax.Array:
    """The matrix M [D,D]: ``d^T M d`` is about the mean squared error of raw pictures, whose colours are in [-1,1] and
    whose codes (the same in all rows) differ by ``d``.

    Args:
        side: of the pictures. step: how far the code is moved along each of its axes.
    """
    return _metric(network(variables, 'generator'), w_avg(variables), config=config, side=side, step=step)


@partial(jax.jit, static_argnames=('config', 'side', 'step'))
def _metric(generator, mean, *, config, side, step):
    c, model = config.generator, TriPlaneGenerator(config.generator)
    width = mean.shape[-1]
    yaw = math.pi / 2 + jnp.asarray(YAWS)
    poses = look_at_pose(yaw, math.pi / 2, c.rendering.avg_camera_pivot, c.rendering.avg_camera_radius)
    labels = pack_label(poses, focal_to_intrinsics(FOCAL))

    def picture(code):
        rows = jnp.broadcast_to(code, (1, c.num_ws, width))
        planes, _ = canonical(generator, config, rows)
        planes = jnp.repeat(planes, len(YAWS), 0)
        return model.apply(generator, planes, labels, side, method='render').rgb.reshape(-1)

    moved = jax.lax.map(picture, mean + step * jnp.eye(width), batch_size=AT_ONCE)
    change = (moved - picture(mean)) / step
    seen = jnp.matmul(change, change.T) / change.shape[1]
    return seen + FLOOR * jnp.trace(seen) / width * jnp.eye(width)


def code_error(metric: jax.Array, difference: jax.Array) -> jax.Array:
    """Mean of ``d^T M d`` over differences [...,D]."""
    return jnp.mean(jnp.sum(jnp.matmul(difference, metric) * difference, -1))
