"""Hair of version 2: strands along the direction of growth, grey hairs, outlines that end in single hairs."""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural.curves import step
from avatar_jax.procedural.looks.noise import LOCKS, STRANDS, hair_noise
from avatar_jax.procedural.looks.traits import Looks
from avatar_jax.procedural.mesh import BUN_COLUMNS, HAIR_COLUMNS, HAIR_RINGS
from avatar_jax.procedural.style import Style

_ACROSS = 2 * 512 / (2 * np.pi)  # strands per radian of azimuth


def strand_noise(canonical: np.ndarray, style: Style, looks: Looks) -> np.ndarray:
    """[N, 2] single strands and locks, 0..1, at the hair's coordinates [N, >=2] (azimuth, 0 root .. 1 tip)."""
    a, k = canonical[:, 0], canonical[:, 1]
    if style.cut == 'curly':
        a = a + 0.08 * np.sin(30 * k + 2.5 * np.sin(3 * a)) + 0.02 * np.sin(61 * k + 9 * a)
        k = k + 0.03 * np.sin(41 * a)
    else:
        a = a + looks.curl * 0.06 * np.sin(14 * k + 6 * np.sin(3 * a)) + 0.015 * np.sin(6 * k + 4 * a)
    return hair_noise(a * _ACROSS, 0.8 * k, looks.offset)


def hair_alpha(canonical: np.ndarray, noise: np.ndarray, looks: Looks) -> np.ndarray:
    """[N] bool: whether a sample of the hair's shell holds hair; single strands at the hem, less on a thin crown.

    ``canonical`` [N, 3] as in ``strand_noise``, then the decimetres that are left to the tips.
    """
    k, left = canonical[:, 1], canonical[:, 2]
    bun = k > 1.5
    strand = 0.65 * noise[:, STRANDS] + 0.35 * noise[:, LOCKS]
    cover = step(0.0, 0.05 + 0.08 * looks.frizz, left)
    if looks.thinning > 0:
        crown = step(0.62, 0.25, k)
        cover = cover * (1 - 0.75 * looks.thinning * crown)
    return bun | (strand < 0.15 + 1.0 * cover)


def fuzz_alpha(canonical: np.ndarray, noise: np.ndarray, looks: Looks) -> np.ndarray:
    """[N] bool: single hairs of the outer shell, that stand off."""
    strand = noise[:, STRANDS] * 0.75 + noise[:, LOCKS] * 0.25
    return strand > 0.82 - 0.2 * looks.frizz


def paint_hair(albedo, canonical, noise, style: Style, looks: Looks) -> None:
    """Colours samples of hair in place: ``albedo`` [N, 3], ``canonical`` [N, >=2], ``noise`` [N, 2]."""
    strand, lock = noise[:, STRANDS], noise[:, LOCKS]
    contrast = 0.35 + 0.75 * looks.strands
    tone = 1 + contrast * (0.55 * (strand - 0.5) + 0.65 * (lock - 0.5))
    k = canonical[:, 1]
    tone *= 0.80 + 0.30 * step(0.0, 0.5, k) * (k < 1.5) + 0.2 * (k > 1.5)
    albedo *= tone[:, None].astype(np.float32)
    # Lighter strands lean to the warm side; grey ones are nearly white.
    albedo *= 1 + (strand - 0.5)[:, None] * np.array([0.10, 0.02, -0.08], np.float32)
    if looks.grey > 0:
        grey = 0.35 * looks.grey + 0.65 * step(looks.grey + 0.2, looks.grey - 0.2, 0.8 * strand + 0.2 * lock)
        pale = (0.62 * tone)[:, None].astype(np.float32)
        albedo += (0.8 * grey)[:, None].astype(np.float32) * (pale - albedo)


def tangents(hair: np.ndarray) -> np.ndarray:
    """[Vh, 3] float32 unit directions of growth at the vertices of ``style.hair_geometry``: shell, then bun."""
    shell = hair[: HAIR_RINGS * HAIR_COLUMNS].reshape(HAIR_RINGS, HAIR_COLUMNS, 3)
    bun = hair[HAIR_RINGS * HAIR_COLUMNS :].reshape(-1, BUN_COLUMNS, 3)
    out = np.concatenate(
        [np.gradient(shell, axis=0).reshape(-1, 3), (np.roll(bun, -1, 1) - np.roll(bun, 1, 1)).reshape(-1, 3)]
    )
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def to_tip(hair: np.ndarray) -> np.ndarray:
    """[Vh] float32 how much of its strand, in decimetre, lies beyond each vertex (as ``tangents``); 1 in the bun."""
    shell = hair[: HAIR_RINGS * HAIR_COLUMNS].reshape(HAIR_RINGS, HAIR_COLUMNS, 3)
    piece = np.linalg.norm(np.diff(shell, axis=0), axis=-1)
    left = np.concatenate([np.cumsum(piece[::-1], 0)[::-1], np.zeros((1, HAIR_COLUMNS))])
    return np.concatenate([left.ravel(), np.ones(len(hair) - left.size)]).astype(np.float32)
