"""Regularisers of the volume's density and of the controller (OTAvatar training; EG3D's density regularisation).

``density`` is a function from points [B,N,3] to the decoder's raw density [B,N] or [B,N,1], before any softplus.
Points are uniform in [-1,1]^3 although the volume is [-0.5,0.5]^3 (box_warp 1); outside, plane features are zero.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from avatar_jax.types import PyTree

Density = Callable[[jax.Array], jax.Array]

NUM_POINTS = 2000
NUM_SLICES = 256  # the backward step of the monotonic term is box_warp / 256


def random_points(key: jax.Array, batch: int, count: int = NUM_POINTS) -> tuple[jax.Array, jax.Array]:
    """Points [B,N,3] uniform in [-1,1]^3 and normal offsets [B,N,3] for the total variation.

    ``key`` is one typed key, or keys [B] that make each sample's draws independent of the batch around it.
    """
    if key.shape == ():
        a, b = jax.random.split(key)
        return jax.random.uniform(a, (batch, count, 3), minval=-1, maxval=1), jax.random.normal(b, (batch, count, 3))
    if key.shape != (batch,):
        raise ValueError(f'random_points: keys {key.shape} for a batch of {batch}')
    points, offsets = jax.vmap(lambda k: random_points(k, 1, count))(key)
    return points[:, 0], offsets[:, 0]


def monotonic(density: Density, points: jax.Array, box_warp: float = 1.0) -> jax.Array:
    """Mean of relu(sigma(p) - sigma(p behind)), p behind = p - (0, 0, box_warp/256): density may only grow inwards."""
    behind = points + jnp.asarray([0.0, 0.0, -box_warp / NUM_SLICES], points.dtype)
    return jnp.mean(jax.nn.relu(density(points) - density(behind)))


def total_variation(
    density: Density, points: jax.Array, offsets: jax.Array, distance: float = 0.004, weight: float = 0.25
) -> jax.Array:
    """``weight * mean |sigma(p) - sigma(p + distance * n)|`` with normal offsets n [B,N,3]."""
    return weight * jnp.mean(jnp.abs(density(points) - density(points + distance * offsets)))


def alpha_norm(alpha: jax.Array, target: float = 10.0) -> jax.Array:
    """``relu(target - mean over batch and directions of the norm over rows)`` of magnitudes [B,L,K]."""
    norm = jnp.sqrt(jnp.sum(jnp.square(alpha), axis=1) + 1e-20)  # finite gradient at zero
    return jax.nn.relu(target - jnp.mean(norm))


def alpha_mutual(alpha: jax.Array, other: jax.Array, target: float = 10.0) -> jax.Array:
    """`alpha_norm` of the difference between two frames' magnitudes: it rewards motions that differ."""
    return alpha_norm(alpha - other, target)


def mean_abs_parameters(params: PyTree) -> jax.Array:
    """Mean |theta| over all numbers of a parameter tree."""
    leaves = jax.tree.leaves(params)
    return sum(jnp.sum(jnp.abs(x)) for x in leaves) / sum(x.size for x in leaves)
