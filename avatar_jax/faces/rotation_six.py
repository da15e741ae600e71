"""Rotations as six numbers, their first two rows: a form without jumps, for smoothing and optimisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def to_six(rotation: jax.Array) -> jax.Array:
    """Rotations [...,3,3] -> their first two rows [...,6]."""
    return rotation[..., :2, :].reshape(*rotation.shape[:-2], 6)


def from_six(numbers: jax.Array) -> jax.Array:
    """[...,6] -> rotations [...,3,3]: two rows made orthonormal, and their cross product."""

    def unit(x):
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    a, b = numbers[..., :3], numbers[..., 3:]
    first = unit(a)
    second = unit(b - jnp.sum(first * b, -1, keepdims=True) * first)
    return jnp.stack([first, second, jnp.cross(first, second)], -2)
