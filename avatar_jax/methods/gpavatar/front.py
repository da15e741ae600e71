"""Portraits on the front of the mean head: canonical pictures in which eyes and mouth stand where they belong.

The released warp looks at a portrait through the plane z = 0, so that a feature in front of it moves with the head's
direction: at 45 degrees an eye by a quarter of the picture. Here every pixel (x, y) of the canonical picture stands for
the place (x, y, z(x, y)) on the front of the neutral mean head, and takes the colour that the portrait has there. What
the portrait does not show, because it faces away or something is before it, is taken from the other side of the face.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.gpavatar.cameras import to_screen
from avatar_jax.ops.grid_sample import grid_sample

TURNED = 0.3  # cosine between normal and direction of view below which a place is seen less well
BEHIND = 0.12  # cube units: so far behind something else a place is hidden
SMOOTH = 1 / 64  # of the picture's side: details of the mean head that are not everybody's
COARSE = 4  # pixels of the canonical picture a side that are hidden together
FINEST = 128  # pixels a side at which the surface is sought; it is smooth beyond that


def front_surface(vertices: np.ndarray, triangles: np.ndarray, size: int) -> np.ndarray:
    """[S,S] float32: z of the foremost place of a mesh over every pixel of the square [-1,1]^2, row 0 at y = 1.

    Beside the mesh it goes on smoothly.

    Args:
        vertices: [P,3] in cube units. triangles: [F,3].
        size: S.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    wanted, size = size, min(size, FINEST)
    corners = np.asarray(vertices)[triangles]
    extent = np.ptp(corners[..., :2], axis=1).max(-1) * size / 2
    steps = 2 ** np.ceil(np.log2(np.maximum(4 * extent, 4))).astype(
        int
    )  # places on a triangle: a quarter of a pixel apart
    top = np.full((size, size), -np.inf)
    for count in np.unique(steps):
        index = np.array([(i, j, count - i - j) for i in range(count + 1) for j in range(count + 1 - i)])
        places = np.einsum('nk,tkc->tnc', index / count, corners[steps == count]).reshape(-1, 3)
        column, row = (np.floor((1 + s * places[:, a]) / 2 * size).astype(int) for a, s in ((0, 1), (1, -1)))
        inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        np.maximum.at(top, (row[inside], column[inside]), places[inside, 2])
    known = np.isfinite(top)
    if not known.any():
        raise ValueError('front_surface: no vertex lies in the square [-1,1]^2')
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled = top[tuple(nearest)]
    narrow, wide = (gaussian_filter(filled, width * size, mode='nearest') for width in (SMOOTH, 4 * SMOOTH))
    share = gaussian_filter(known.astype(float), SMOOTH * size, mode='nearest')
    found = (share * narrow + (1 - share) * wide).astype(np.float32)
    return found if wanted == size else np.asarray(jax.image.resize(found, (wanted, wanted), 'bilinear'))


def cameras_of(transforms: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """Cameras [...,3,4] and focal lengths [...] as ``on_front`` takes them: [...,13]."""
    transforms = np.asarray(transforms, np.float32)
    flat = transforms.reshape(*transforms.shape[:-2], 12)
    return np.concatenate([flat, np.broadcast_to(np.asarray(focal, np.float32), flat.shape[:-1])[..., None]], -1)


def on_front(images: jax.Array, cameras: jax.Array, surface: jax.Array) -> jax.Array:
    """Canonical pictures [N,S,S,4] of portraits [N,S,S,3]: colours, and how well each place is seen, within 0..1.

    Args:
        images: with any values. cameras: [N,13] of ``cameras_of``. surface: [S,S] of ``front_surface``.
    """
    size = surface.shape[0]
    transforms, focal = cameras[:, :12].reshape(-1, 3, 4), cameras[:, 12]
    axis = (jnp.arange(size) + 0.5) / (size / 2) - 1
    x, y = jnp.meshgrid(axis, -axis)
    places = jnp.stack([x, y, surface], -1)
    at = to_screen(places.reshape(1, -1, 3), transforms, focal, size).reshape(-1, size, size, 2)
    within = jnp.all((at > 0) & (at < size), -1)
    seen = _facing(places, transforms) * _before(places, transforms, at) * within
    colours = grid_sample(images, at / (size / 2) - 1, padding='border')
    other = (1 - seen) * seen[:, :, ::-1]
    own = jnp.maximum(seen, 1e-3)
    mixed = own[..., None] * colours + other[..., None] * colours[:, :, ::-1]
    return jnp.concatenate([mixed / (own + other)[..., None], seen[..., None]], -1)


def _facing(places: jax.Array, transforms: jax.Array) -> jax.Array:
    """[N,S,S] 1 where the surface is turned to the camera, falling to 0 where it turns away."""
    surface, size = places[..., 2], places.shape[0]
    slope_x = jnp.gradient(surface, axis=1) * (size / 2)
    slope_y = -jnp.gradient(surface, axis=0) * (size / 2)
    normal = jnp.stack([-slope_x, -slope_y, jnp.ones_like(surface)], -1)
    centre = -jnp.einsum('nij,nj->ni', transforms[..., :3], transforms[..., 3], precision=jax.lax.Precision.HIGHEST)
    view = centre[:, None, None] - places
    cosine = jnp.sum(normal * view, -1) / (jnp.linalg.norm(normal, axis=-1) * jnp.linalg.norm(view, axis=-1))
    share = jnp.clip(cosine / TURNED, 0, 1)
    return share * share * (3 - 2 * share)


def _before(places: jax.Array, transforms: jax.Array, at: jax.Array) -> jax.Array:
    """[N,S,S] 0 where another part of the surface is before a place. Decided for cells of ``COARSE`` pixels."""
    size = places.shape[0]
    if size < 4 * COARSE:
        return jnp.ones(at.shape[:-1])
    cells = size // COARSE
    depth = (places @ transforms[:, None, :, 2, None])[..., 0] + transforms[:, 2, 3][:, None, None]
    depth, at = (
        depth[:, COARSE // 2 :: COARSE, COARSE // 2 :: COARSE],
        at[:, COARSE // 2 :: COARSE, COARSE // 2 :: COARSE],
    )
    cell = jnp.clip(jnp.floor(at / size * cells).astype(jnp.int32), 0, cells - 1)
    flat = (cell[..., 1] * cells + cell[..., 0]).reshape(len(at), -1)
    front = jax.vmap(lambda d, i: jnp.full(cells * cells, jnp.inf).at[i].min(d))(depth.reshape(len(at), -1), flat)
    free = depth - jnp.take_along_axis(front, flat, 1).reshape(depth.shape) < BEHIND
    return jax.image.resize(free.astype(jnp.float32), (len(at), size, size), 'bilinear')
