"""Terms that look at pixels only, and the rule for comparing images of different sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from avatar_jax.ops.resize import halve


def smooth_l1(prediction: jax.Array, target: jax.Array, beta: float = 1.0) -> jax.Array:
    """Mean of ``d^2 / (2 beta)`` for ``|d| < beta``, else ``|d| - beta / 2``."""
    distance = jnp.abs(prediction - target)
    return jnp.mean(jnp.where(distance < beta, 0.5 / beta * distance**2, distance - 0.5 * beta))


def pyramid_loss(prediction: jax.Array, target: jax.Array, scales: int) -> jax.Array:
    """Multi-scale image and edge distance; needs no network, and is not a perceptual metric.

    Sum over ``scales`` halvings of mean |difference| plus mean |difference of neighbouring-pixel differences|, along
    both axes. The edge part weighs detail that a plain L1 lets blur away.
    """
    difference, total = prediction - target, 0.0
    for scale in range(scales):
        if min(difference.shape[1:3]) < 2:
            raise ValueError(f'pyramid_loss: {scales} scales are too many for images {prediction.shape[1:3]}')
        difference = halve(difference) if scale else difference
        edges = [jnp.mean(jnp.abs(jnp.diff(difference, axis=axis))) for axis in (1, 2) if difference.shape[axis] > 1]
        total = total + jnp.mean(jnp.abs(difference)) + sum(edges)
    return total
