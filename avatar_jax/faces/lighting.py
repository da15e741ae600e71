"""Spherical-harmonic lighting in nine bands (Ramamoorthi and Hanrahan; the constants of Deep3DFaceRecon)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from avatar_jax.ops.arrays import Array, namespace

SH_A = (math.pi, 2 * math.pi / math.sqrt(3.0), 2 * math.pi / math.sqrt(8.0))
SH_C = (
    1 / math.sqrt(4 * math.pi),
    math.sqrt(3.0) / math.sqrt(4 * math.pi),
    3 * math.sqrt(5.0) / math.sqrt(12 * math.pi),
)
INITIAL_LIGHT = (0.8, 0, 0, 0, 0, 0, 0, 0, 0)  # added to the nine bands of every colour channel


def sh_basis(normals: Array) -> Array:
    """The nine basis functions at unit normals: [..., 3] -> [..., 9]."""
    xp = namespace(normals)
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    k0, k1, k2 = (a * c for a, c in zip(SH_A, SH_C, strict=True))
    bands = [
        k0 * xp.ones_like(x),
        -k1 * y,
        k1 * z,
        -k1 * x,
        k2 * x * y,
        -k2 * y * z,
        k2 * (0.5 / math.sqrt(3.0)) * (3 * z**2 - 1),
        -k2 * x * z,
        k2 * 0.5 * (x**2 - y**2),
    ]
    return xp.stack(bands, axis=-1)


def irradiance(normals: Array, gamma: Array, initial: Sequence[float] = INITIAL_LIGHT) -> Array:
    """Light per colour channel: normals [..., N, 3], gamma [..., 27] channel-major -> [..., N, 3]."""
    xp = namespace(normals, gamma)
    light = gamma.reshape(*gamma.shape[:-1], 3, 9) + np.asarray(initial, np.float32)
    return sh_basis(normals) @ xp.swapaxes(light, -1, -2)


def shade(albedo: Array, normals: Array, gamma: Array, initial: Sequence[float] = INITIAL_LIGHT) -> Array:
    """Colour of lit vertices: albedo [..., N, 3] times the irradiance at their normals (not clamped)."""
    return albedo * irradiance(normals, gamma, initial)
