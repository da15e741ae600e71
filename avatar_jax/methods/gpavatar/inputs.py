"""Pictures on their way in: value ranges, and the warp into the canonical frontal frame (the square [-1,1]^2 at z =
0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.gpavatar.cameras import to_screen
from avatar_jax.ops.grid_sample import grid_sample
from avatar_jax.ops.resize import resize

CORNERS = np.array([[-1, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]], np.float32)  # as they lie in a frontal picture


def shorter_side(images: jax.Array, size: int) -> jax.Array:
    """Resizes [...,H,W,C] (antialiased bilinear) so that the shorter side has ``size`` pixels; the longer is
    truncated.
    """
    height, width = images.shape[-3:-1]
    short = min(height, width)
    return resize(images, (int(size * height / short), int(size * width / short)), antialias=True)


def from_bytes(images: jax.Array, value_range: str = 'unit', divisor: int = 256) -> jax.Array:
    """Values 0..255 -> [0,1] ('unit', divided by 255 or 256) or [-1,1] ('symmetric': (x - 128) / 128)."""
    if value_range == 'symmetric':
        return (images - 128) / 128
    return images / divisor


def to_bytes(images: jax.Array) -> jax.Array:
    """[0,1] -> 0..255, not rounded."""
    return images * 255


def warp_coefficients(
    transforms: np.ndarray, focal: np.ndarray | float, size: int, corners: str = 'integer'
) -> np.ndarray:
    """Homographies [...,8] that map pixels of the canonical picture to pixels of the given ones; on the host.

    (x, y) -> ((a x + b y + c) / (g x + h y + 1), (d x + e y + f) / (g x + h y + 1)).

    Args:
        transforms: [...,3,4] cameras of the pictures. focal: [...].
        size: side of both pictures.
        corners: 'integer' truncates the corners to whole pixels, 'exact' does not.
    """
    seen = screen_corners(transforms, focal, size)
    if corners == 'integer':
        seen = seen.astype(np.int32)
    lead = seen.shape[:-2]
    end = size - 1
    start = np.array([[0, 0], [end, 0], [end, end], [0, end]], np.float64)
    flat = seen.reshape(-1, 4, 2).astype(np.float64)
    found = np.empty((len(flat), 8), np.float32)
    for k, goal in enumerate(flat):
        rows, right = [], []
        for (x, y), (u, v) in zip(start, goal, strict=True):
            rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
            right += [u, v]
        found[k] = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    return found.reshape(*lead, 8)


def screen_corners(transforms: np.ndarray, focal: np.ndarray | float, size: int) -> np.ndarray:
    """Where cameras see the corners of the canonical square: [...,4,2] pixels, float32."""
    transforms = np.asarray(transforms, np.float32)
    points = np.broadcast_to(CORNERS, (*transforms.shape[:-2], 4, 3))
    return to_screen(points, transforms, np.asarray(focal, np.float32), size).astype(np.float32)


def warp(images: jax.Array, coefficients: jax.Array, fill: float = 0.0, border: str = 'double') -> jax.Array:
    """Canonical pictures of [N,H,W,C] (square), with ``warp_coefficients`` [N,8]; what was not seen gets ``fill``.

    ``border``: pixels at the edge of what was seen fade to black by interpolation and then once more to the fill
    ('double', release), or to the fill alone ('single').
    """
    size = images.shape[1]
    x, y = jnp.meshgrid(jnp.arange(size) + 0.5, jnp.arange(size) + 0.5)
    a, b, c, d, e, f, g, h = (k[:, None, None] for k in coefficients.T)
    below = g * x + h * y + 1
    grid = jnp.stack([(a * x + b * y + c) / below, (d * x + e * y + f) / below], -1) / (size / 2) - 1
    full = jnp.concatenate([images, jnp.ones_like(images[..., :1])], -1)
    found = grid_sample(full, grid)
    pixels, mask = found[..., :-1], found[..., -1:]
    return (pixels * mask if border == 'double' else pixels) + (1 - mask) * fill
