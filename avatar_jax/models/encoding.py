"""Positional encoding of coordinates (NeRF): a coordinate, and its sines and cosines at doubling frequencies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def positional_encoding(points: jax.Array, octaves: int) -> jax.Array:
    """``[p, sin(pi p), cos(pi p), sin(2 pi p), cos(2 pi p), ...]``: points [..., D] -> [..., D (1 + 2 octaves)].

    Each of the parts has all D coordinates; the highest frequency is 2^(octaves - 1) pi.
    """
    if octaves == 0:
        return points
    angles = points[..., None, :] * jnp.asarray(np.pi * 2.0 ** np.arange(octaves), points.dtype)[:, None]
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -2)  # [..., octaves, 2, D]
    return jnp.concatenate([points, waves.reshape(*points.shape[:-1], -1)], -1)


def encoded_size(dimensions: int, octaves: int) -> int:
    """Length of what ``positional_encoding`` returns."""
    return dimensions * (1 + 2 * octaves)
