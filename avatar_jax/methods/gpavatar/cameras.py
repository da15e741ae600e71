"""GPAvatar's cameras, and the ways between them and this project's labels.

A camera is ``transform`` [3,4] = [R|T] with x_cam = x_world R + T for row vectors, axes +x left, +y up, +z into the
scene, and a focal length in units of half the image: ndc = focal * (x/z, y/z), pixel = N/2 * (1 - ndc), so that pixel
coordinate 0 is the image's left or top edge. The world is a cube [-1,1]^3 around the head, y up, the face to +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.camera_labels import make_label, pose_matrix, split_label
from avatar_jax.ops.arrays import Array, namespace
from avatar_jax.procedural.model import WORLD_OFFSET, WORLD_SCALE

# OpenCV camera axes (x right, y down) to these (x left, y up), applied to matrix columns.
_AXES = np.array([-1.0, -1.0, 1.0], np.float32)


@dataclass(frozen=True)
class WorldConfig:
    """Where the head stands in the cube.

    Attributes:
        scale: cube units per unit of the labels' world. center: the point of the labels' world in the cube's middle.
        decimetre_scale, decimetre_offset: head coordinates in decimetres to the labels' world.
    """

    scale: float = 2.5
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    decimetre_scale: float = WORLD_SCALE
    decimetre_offset: tuple[float, float, float] = WORLD_OFFSET

    def points(self, decimetres: Array) -> Array:
        """Head points [..., 3] in decimetres -> cube units."""
        xp = namespace(decimetres)
        offset = xp.asarray(self.decimetre_offset, dtype=np.float32) - xp.asarray(self.center, dtype=np.float32)
        return (decimetres * np.float32(self.decimetre_scale) + offset) * np.float32(self.scale)


def camera_of_label(label: Array, world: WorldConfig) -> tuple[Array, Array]:
    """Label [...,25] -> transform [...,3,4], focal [...]. Labels with unequal focal lengths or a shifted centre lose
    that.
    """
    xp = namespace(label)
    pose, intrinsics = split_label(label)
    rotation = pose[..., :3, :3] * _AXES
    place = (pose[..., :3, 3] - xp.asarray(world.center, dtype=np.float32)) * np.float32(world.scale)
    shift = -(place[..., None, :] @ rotation)[..., 0, :]
    return xp.concatenate([rotation, shift[..., None]], -1), intrinsics[..., 0, 0] + intrinsics[..., 1, 1]


def label_of_camera(transform: np.ndarray, focal: float, world: WorldConfig) -> np.ndarray:
    """The inverse: transform [...,3,4] and a focal length -> label [...,25]."""
    rotation, shift = transform[..., :3], transform[..., 3]
    place = -(rotation @ shift[..., None])[..., 0] / world.scale + np.asarray(world.center)
    half = focal / 2
    intrinsics = np.array([[half, 0, 0.5], [0, half, 0.5], [0, 0, 1]])
    return make_label(pose_matrix(rotation * _AXES, place), intrinsics)


def to_screen(
    points: Array, transform: Array, focal: Array, size: int, principal: tuple[float, float] = (0.0, 0.0)
) -> Array:
    """Pixels [...,P,2] of world points [...,P,3] in a square image."""
    xp = namespace(points, transform)
    camera = points @ transform[..., :3] + transform[..., None, :, 3]
    focal = xp.asarray(focal)[..., None, None]
    ndc = focal * camera[..., :2] / camera[..., 2:] + xp.asarray(principal, dtype=points.dtype)
    return size / 2 * (1 - ndc)


def pixel_directions(height: int, width: int, focal: Array) -> jax.Array:
    """Camera-space directions [...,height*width,3], row by row, for focal lengths [...] (or [...,2]: x and y apart).

    The outer pixels' rays pass exactly through the image's edges (not through pixel centres half a pixel inside).
    """
    focal = jnp.asarray(focal, jnp.float32)
    x, y = jnp.meshgrid(jnp.linspace(1, -1, width), jnp.linspace(1, -1, height))
    grid = jnp.stack([x.reshape(-1), y.reshape(-1)], -1)
    both = focal[..., None, :] if focal.ndim and focal.shape[-1] == 2 else focal[..., None, None]
    plane = grid / both
    return jnp.concatenate([plane, jnp.ones_like(plane[..., :1])], -1)


def rays(transform: jax.Array, focal: Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Origins and unit directions [B,height*width,3] of cameras [B,3,4]; focal [], [B] or [B,2]."""
    camera = pixel_directions(height, width, focal)
    return rays_along(transform, jnp.broadcast_to(camera, (transform.shape[0], *camera.shape[-2:])))


def rays_through(transform: jax.Array, focal: Array, places: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Origins and unit directions [B,M,3] through places [B,M,2] of a picture (x, y from 0 at its left and upper edge
    to 1).

    They agree with the rays of a rendering of ``size`` pixels a side, whose outer pixels' rays pass through the edges
    (``pixel_directions``): the middle of one of its pixels gets exactly the ray of that pixel.
    """
    ndc = 1 - 2 * (places * size - 0.5) / (size - 1)
    plane = ndc / jnp.broadcast_to(jnp.asarray(focal, jnp.float32), transform.shape[:1])[:, None, None]
    return rays_along(transform, jnp.concatenate([plane, jnp.ones_like(plane[..., :1])], -1))


def rays_along(transform: jax.Array, camera: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Origins and unit directions [B,M,3] in the world for directions [B,M,3] of any length as cameras [B,3,4] see
    them.
    """
    high = jax.lax.Precision.HIGHEST
    rotation, shift = transform[..., :3], transform[..., 3]
    directions = jnp.einsum('bij,brj->bri', rotation, camera, precision=high)
    directions = directions / jnp.maximum(jnp.linalg.norm(directions, axis=-1, keepdims=True), 1e-12)
    origins = -jnp.einsum('bij,bj->bi', rotation, shift, precision=high)
    return jnp.broadcast_to(origins[:, None], directions.shape), directions


def cube_hits(origins: jax.Array, directions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where rays [...,3] enter and leave the cube [-1,1]^3: near [...], far [...], whether they meet it.

    A ray that misses it, or has it behind, gets -1 for both.
    """
    inverse = 1 / directions
    a, b = (-1 - origins) * inverse, (1 - origins) * inverse
    near = jnp.max(jnp.minimum(a, b), -1)
    far = jnp.min(jnp.maximum(a, b), -1)
    hit = (near <= far) & (far > 0)
    near = jnp.maximum(near, 0.0)
    return jnp.where(hit, near, -1.0), jnp.where(hit, far, -1.0), hit
