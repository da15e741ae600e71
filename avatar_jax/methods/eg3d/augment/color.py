"""Colour augmentations: one homogeneous 4x4 matrix per sample, applied to every RGB triple of channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.eg3d.augment.draws import Draws

_GRAY = np.asarray([1, 1, 1, 0], np.float32) / np.sqrt(np.float32(3))  # direction of the luma axis
_ALONG = np.outer(_GRAY, _GRAY)
# Cross product with the luma axis, as a matrix.
_CROSS = np.asarray([[0, -1, 1, 0], [1, 0, -1, 0], [-1, 1, 0, 0], [0, 0, 0, 0]], np.float32) / np.sqrt(np.float32(3))
_EYE = np.eye(4, dtype=np.float32)
_RGB = np.diag(np.asarray([1, 1, 1, 0], np.float32))


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def color_matrix(config, p: jax.Array, draws: Draws, count: int) -> jax.Array | None:
    """Draws the colour maps of ``count`` samples [N, 4, 4]; None when nothing is switched on.

    ``config``: ``AugmentConfig``; ``p``: overall probability, multiplied with each transform's strength.
    """
    matrix = jnp.broadcast_to(_EYE, (count, 4, 4))
    used = False

    def keep(name, strength, value, neutral):
        return jnp.where(draws.chosen(name, strength * p), value, neutral)[:, None, None]

    if config.brightness > 0:
        b = keep('brightness', config.brightness, draws.normal('brightness') * config.brightness_std, 0.0)
        shift = np.zeros((4, 4), np.float32)
        shift[:3, 3] = 1
        matrix, used = _multiply(_EYE + b * shift, matrix), True
    if config.contrast > 0:
        c = keep('contrast', config.contrast, jnp.exp2(draws.normal('contrast') * config.contrast_std), 1.0)
        matrix, used = _multiply(_EYE + (c - 1) * _RGB, matrix), True
    if config.lumaflip > 0:
        i = keep('lumaflip', config.lumaflip, jnp.floor(2 * draws.uniform('lumaflip')), 0.0)
        matrix, used = _multiply(_EYE - 2 * _ALONG * i, matrix), True
    if config.hue > 0:
        angle = (2 * draws.uniform('hue') - 1) * (jnp.pi * config.hue_max)
        angle = keep('hue', config.hue, angle, 0.0)
        turn = _ALONG + jnp.cos(angle) * (_RGB - _ALONG) + jnp.sin(angle) * _CROSS + (_EYE - _RGB)
        matrix, used = _multiply(turn, matrix), True
    if config.saturation > 0:
        s = keep('saturation', config.saturation, jnp.exp2(draws.normal('saturation') * config.saturation_std), 1.0)
        matrix, used = _multiply(_ALONG + (_EYE - _ALONG) * s, matrix), True
    return matrix if used else None


def recolor(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Applies matrices [N, 4, 4] to images [N, H, W, 3k], the same one to all k triples of channels."""
    channels = images.shape[-1]
    if channels % 3:
        raise ValueError(f'colour augmentation takes RGB triples, got {channels} channels')
    x = images.reshape(*images.shape[:3], channels // 3, 3)
    y = jnp.einsum('nij,nhwkj->nhwki', matrix[:, :3, :3], x, precision=jax.lax.Precision.HIGHEST)
    return (y + matrix[:, None, None, None, :3, 3]).reshape(images.shape)
