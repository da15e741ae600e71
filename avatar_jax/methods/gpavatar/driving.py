"""Driving sequences: smoothing against the jitter of trackers, and an orbiting camera."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from avatar_jax.faces.rotation_six import from_six, to_six

ALPHA = 0.9  # share of the new frame in the released program
ELEVATION = 5.0  # degrees of the orbit


def smooth(values: jax.Array, alpha: float = ALPHA) -> jax.Array:
    """Exponential smoothing of [T,...]: ``alpha * value + (1 - alpha) * previous result``, from the first frame on."""

    def step(previous, value):
        new = alpha * value + (1 - alpha) * previous
        return new, new

    return jax.lax.scan(step, values[0], values)[1]


def smooth_cameras(transforms: jax.Array, alpha: float = ALPHA) -> jax.Array:
    """The same for cameras [T,3,4]: translation, and rotation by its six numbers."""
    rotation = from_six(smooth(to_six(transforms[..., :3]), alpha))
    return jnp.concatenate([rotation, smooth(transforms[..., 3], alpha)[..., None]], -1)


def orbit(azimuth: jax.Array, distance: float, elevation: float = ELEVATION) -> jax.Array:
    """Cameras [...,3,4] on a circle, looking at the origin with +y up; azimuth and elevation in degrees, 0 is
    frontal.
    """
    a, e = jnp.deg2rad(jnp.asarray(azimuth)), jnp.deg2rad(elevation)
    place = distance * jnp.stack([jnp.cos(e) * jnp.sin(a), jnp.sin(e) * jnp.ones_like(a), jnp.cos(e) * jnp.cos(a)], -1)
    z = -place / jnp.linalg.norm(place, axis=-1, keepdims=True)
    x = jnp.cross(jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), z.shape), z)
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    rotation = jnp.stack([x, jnp.cross(z, x), z], -1)  # columns: the camera's axes
    shift = -jnp.einsum('...ij,...i->...j', rotation, place)
    return jnp.concatenate([rotation, shift[..., None]], -1)
