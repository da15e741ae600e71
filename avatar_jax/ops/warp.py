"""Two-dimensional similarity transforms and affine image warps.

Coordinates are ``(x, y)`` with integer pixel centres (the align_corners=True convention); a matrix [2,3] maps source
pixels to output pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from avatar_jax.ops.grid_sample import weighted_rows

if TYPE_CHECKING:
    from jaxtyping import Float


def similarity_transform(
    source: Float[jax.Array, '*batch n 2'], target: Float[jax.Array, '*batch n 2']
) -> Float[jax.Array, '*batch 2 3']:
    """Least-squares similarity (rotation, uniform scale, translation; no reflection) from source to target points.

    Args:
        source, target: [..., N, 2] with N >= 2 and source points that do not all coincide.

    Returns:
        [..., 2, 3] matrix M with ``target ~ M[:, :2] @ source + M[:, 2]``.
    """
    source, target = jnp.asarray(source), jnp.asarray(target)
    p_mean, q_mean = source.mean(-2, keepdims=True), target.mean(-2, keepdims=True)
    p, q = source - p_mean, target - q_mean
    # In complex numbers the optimum is a = sum(conj(p) q) / sum(|p|^2).
    norm = jnp.sum(p * p, axis=(-2, -1))
    real = jnp.sum(p * q, axis=(-2, -1)) / norm
    imag = jnp.sum(p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0], axis=-1) / norm
    linear = jnp.stack([jnp.stack([real, -imag], -1), jnp.stack([imag, real], -1)], -2)
    shift = q_mean[..., 0, :] - jnp.einsum('...ij,...j->...i', linear, p_mean[..., 0, :])
    return jnp.concatenate([linear, shift[..., None]], -1)


def invert_affine(matrix: Float[jax.Array, '*batch 2 3']) -> Float[jax.Array, '*batch 2 3']:
    """Inverse of affine matrices [..., 2, 3]."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    det = a * d - b * c
    linear = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2) / det[..., None, None]
    shift = -jnp.einsum('...ij,...j->...i', linear, matrix[..., 2])
    return jnp.concatenate([linear, shift[..., None]], -1)


def bilinear_at(
    images: Float[jax.Array, 'b h w c'], points: Float[jax.Array, 'b *places 2']
) -> Float[jax.Array, 'b *places c']:
    """Bilinear values of images [B,H,W,C] at pixel coordinates points [B,...,2], zeros outside -> [B,...,C]."""
    batch, height, width, channels = images.shape
    lead = points.shape[1:-1]
    points = points.reshape(batch, -1, 2)
    x, y = points[..., 0], points[..., 1]
    x0, y0 = jnp.floor(x), jnp.floor(y)
    fx, fy = x - x0, y - y0
    offset = (jnp.arange(batch, dtype=jnp.int32) * (height * width))[:, None]
    indices, weights = [], []
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            xi, yi = x0 + dx, y0 + dy
            inside = (xi >= 0) & (xi <= width - 1) & (yi >= 0) & (yi <= height - 1)
            cell = jnp.where(inside, yi * width + xi, 0).astype(jnp.int32)
            indices.append((offset + cell).reshape(-1))
            weights.append(jnp.where(inside, wx * wy, 0).reshape(-1))
    values = weighted_rows(images.reshape(-1, channels), jnp.stack(indices), jnp.stack(weights))
    return values.reshape(batch, *lead, channels)


def warp_affine(
    images: Float[jax.Array, 'b h w c'], matrix: Float[jax.Array, 'b 2 3'], size: int | tuple[int, int]
) -> Float[jax.Array, 'b h_out w_out c']:
    """Output pixel (u, v) reads images at ``matrix^-1 (u, v, 1)``, bilinear, zeros outside.

    Args:
        images: [B,H,W,C].
        matrix: [B,2,3], source pixels to output pixels. No gradient flows to it.
        size: output height and width.

    Returns:
        [B,size,size,C].
    """
    height, width = (size, size) if isinstance(size, int) else size
    inverse = invert_affine(jax.lax.stop_gradient(matrix))
    v, u = jnp.meshgrid(jnp.arange(height, dtype=images.dtype), jnp.arange(width, dtype=images.dtype), indexing='ij')
    grid = jnp.stack([u, v], -1)  # [h, w, 2]
    points = jnp.einsum('bij,hwj->bhwi', inverse[..., :2], grid) + inverse[:, None, None, :, 2]
    return bilinear_at(images, points)
