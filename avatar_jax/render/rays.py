"""Camera rays, and where they meet the rendered box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Float


def sample_rays(
    cam2world: Float[jax.Array, 'n 4 4'], intrinsics: Float[jax.Array, 'n 3 3'], resolution: int
) -> tuple[Float[jax.Array, 'n pixels 3'], Float[jax.Array, 'n pixels 3']]:
    """One ray through every pixel centre of a square image.

    Args:
        cam2world: [N, 4, 4], OpenCV camera axes (x right, y down, z forward).
        intrinsics: [N, 3, 3] in units of the image size; skew, unequal focal lengths and any centre are allowed.
        resolution: R, pixels per side.

    Returns:
        origins and unit directions, [N, R*R, 3] in the world; pixel (row j, column i) is ray j*R + i.
    """
    cam2world, intrinsics = cam2world.astype(jnp.float32), intrinsics.astype(jnp.float32)
    centres = jnp.arange(resolution, dtype=jnp.float32) * (1 / resolution) + 0.5 / resolution
    y, x = (a.reshape(1, -1) for a in jnp.meshgrid(centres, centres, indexing='ij'))
    fx, fy, cx, cy, skew = (intrinsics[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2), (0, 1)))
    x_lift = (x - cx + cy * skew / fy - skew * y / fy) / fx
    y_lift = (y - cy) / fy
    in_camera = jnp.stack([x_lift, y_lift, jnp.ones_like(x_lift)], axis=-1)
    # Sums instead of a matrix product: ray geometry must not drop to an accelerator's reduced matmul precision.
    directions = (in_camera[:, :, None, :] * cam2world[:, None, :3, :3]).sum(-1)
    directions = directions / jnp.maximum(jnp.linalg.norm(directions, axis=-1, keepdims=True), 1e-12)
    origins = jnp.broadcast_to(cam2world[:, None, :3, 3], directions.shape)
    return origins, directions


def box_intersection(
    origins: Float[jax.Array, '*rays 3'], directions: Float[jax.Array, '*rays 3'], side: float
) -> tuple[Float[jax.Array, '*rays 1'], Float[jax.Array, '*rays 1']]:
    """Distances at which rays enter and leave the axis-aligned cube of this side around the origin.

    Args:
        origins, directions: [..., 3].

    Returns:
        near, far: [..., 1]. A ray that misses the cube has near -1 and far -2. No gradient flows back.
    """
    origins, directions = jax.lax.stop_gradient((origins, directions))
    inverse = 1 / directions
    a = (-side / 2 - origins) * inverse
    b = (side / 2 - origins) * inverse
    # A ray that runs exactly in a face has 0 * inf there: that axis does not limit it.
    a, b = jnp.where(jnp.isnan(a), -jnp.inf, a), jnp.where(jnp.isnan(b), jnp.inf, b)
    near = jnp.minimum(a, b).max(-1, keepdims=True)
    far = jnp.maximum(a, b).min(-1, keepdims=True)
    hit = near <= far
    return jnp.where(hit, near, -1.0), jnp.where(hit, far, -2.0)


def ray_limits(
    origins: Float[jax.Array, '*rays 3'], directions: Float[jax.Array, '*rays 3'], side: float
) -> tuple[Float[jax.Array, '*rays 1'], Float[jax.Array, '*rays 1']]:
    """Near and far distances [N, M, 1] per ray for ``ray_start = ray_end = 'auto'``.

    Rays that miss the box borrow the nearest entry for their near and the *farthest entry* (not exit) of the others
    for their far, as the release does; they meet nothing anyway. When every ray misses, all keep -1 and -2.
    """
    near, far = box_intersection(origins, directions, side)
    valid = far > near
    any_valid = valid.any()
    lowest = jnp.where(valid, near, jnp.inf).min()
    highest = jnp.where(valid, near, -jnp.inf).max()
    borrow = any_valid & ~valid
    return jnp.where(borrow, lowest, near), jnp.where(borrow, highest, far)
