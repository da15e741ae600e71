"""The source camera's coordinates, and the camera-to-world transform of features (paper eq. 1, reference section 3.3).

Features that a network computes from a picture lie in the picture's axes. ``s(p)`` says where a point of the world is
in them: centred at the head, s_x to the picture's right, s_y down, s_z away from the camera, [-1, 1] being the plane
extent B. A source is looked up through one affine map from the world to [-1, 1]^3 (``look_up_map``), whatever the mode:

* 'exact': the map is s itself, so the field is the camera-frame tri-plane in turned coordinates;
* 'plane_warp' (eq. 1 to the letter): planes are resampled to world planes, which ignores how far a point is from them,
  and the map is that of the world's axes;
* 'none' (ablation): the camera-frame planes are taken for world planes, as if every picture were frontal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.ops.grid_sample import PLANE_AXES, grid_sample
from avatar_jax.render.cameras import FFHQ_FOCAL, mirror_pose, pack_label, unpack_label

TRANSFORMS = ('exact', 'plane_warp', 'none')
AXES = 'ordered'  # planes xy, xz, yz
_FRONTAL = np.float32([1, -1, -1])  # world axes in those of a frontal camera
_AWAY = np.float32([0, 0, 0, 1])  # the last row of a projection in which depth does not count
NEAREST = 1e-3  # depth; what is nearer or behind the camera is out of the picture
REFERENCE_EXTENT = 2.7 / FFHQ_FOCAL  # window at the head of a camera 2.7 away


def head_depth(cam2world: jax.Array, pivot: tuple[float, float, float]) -> jax.Array:
    """Depth [...] of the head's centre before cameras [..., 4, 4]; negative: the head is behind the camera."""
    return (cam2world[..., :3, 2] * (jnp.asarray(pivot) - cam2world[..., :3, 3])).sum(-1)


def plane_extent(
    cam2world: jax.Array, intrinsics: jax.Array, pivot: tuple[float, float, float], extent: float | None = None
) -> jax.Array:
    """Side B [...] of what the planes cover: d / f, the picture's window at the head, unless ``extent`` is given."""
    if extent is not None:
        return jnp.full(cam2world.shape[:-2], extent, jnp.float32)
    return head_depth(cam2world, pivot) / intrinsics[..., 0, 0]


def source_map(cam2world: jax.Array, extent: jax.Array, pivot: tuple[float, float, float]) -> jax.Array:
    """[..., 3, 4] affine map s(p) = (2/B) (R^T (p - t) - d e_z) of cameras [..., 4, 4] with extents B [...]."""
    turn, place = cam2world[..., :3, :3], cam2world[..., :3, 3]
    scale = (2 / extent)[..., None, None]
    rows = turn.swapaxes(-1, -2)
    # Sums instead of matrix products: geometry must not drop to an accelerator's reduced precision.
    shift = -(rows * place[..., None, :]).sum(-1)
    shift = shift - head_depth(cam2world, pivot)[..., None] * jnp.asarray([0.0, 0, 1])
    return scale * jnp.concatenate([rows, shift[..., None]], -1)


def world_map(extent: jax.Array, pivot: tuple[float, float, float], signs=(1.0, 1.0, 1.0)) -> jax.Array:
    """[..., 3, 4] map (2/B) diag(signs) (p - pivot) for extents B [...]."""
    signs, pivot = jnp.asarray(signs, jnp.float32), jnp.asarray(pivot, jnp.float32)
    fixed = jnp.concatenate([jnp.diag(signs), -(signs * pivot)[:, None]], -1)
    return (2 / extent)[..., None, None] * fixed


def apply_map(affine: jax.Array, points: jax.Array) -> jax.Array:
    """Points [N, ..., 3] through maps [N, 3, 4]."""
    lead = (affine.shape[0],) + (1,) * (points.ndim - 2)
    affine = affine.reshape(*lead, 3, 4)
    # Column by column: XLA 0.10 compiles the sum over a sliced axis wrongly for more than 10,922 points on a CPU.
    return sum(affine[..., k] * points[..., k, None] for k in range(3)) + affine[..., 3]


def look_up_map(
    cam2world: jax.Array,
    intrinsics: jax.Array,
    transform: str,
    pivot: tuple[float, float, float],
    extent: float | None = None,
) -> jax.Array:
    """[N, 3, 4] map from the world to the planes of sources seen by cameras [N, 4, 4], [N, 3, 3], by mode.

    With 'none' nothing depends on the camera: without ``extent`` the window of a camera 2.7 away counts.
    """
    if transform == 'none':
        fixed = REFERENCE_EXTENT if extent is None else extent
        return world_map(jnp.full(cam2world.shape[:-2], fixed, jnp.float32), pivot, _FRONTAL)
    size = plane_extent(cam2world, intrinsics, pivot, extent)
    return source_map(cam2world, size, pivot) if transform == 'exact' else world_map(size, pivot)


def picture_map(cam2world: jax.Array, intrinsics: jax.Array, transform: str, affine: jax.Array) -> jax.Array:
    """[N, 3, 4] projection from the world to the source pictures of cameras [N, 4, 4], [N, 3, 3]: see ``project``.

    With 'none' that of the planes' own axes, ``affine`` [N, 3, 4], since nothing may depend on the camera.
    """
    if transform == 'none':
        return jnp.concatenate([affine[..., :2, :], jnp.broadcast_to(_AWAY, affine[..., :1, :].shape)], -2)
    turn, place = cam2world[..., :3, :3], cam2world[..., :3, 3]
    rows = turn.swapaxes(-1, -2)
    world2cam = jnp.concatenate([rows, -(rows * place[..., None, :]).sum(-1)[..., None]], -1)
    edges = 2 * intrinsics - jnp.asarray([0.0, 0, 1])  # pictures from 0 to 1 become [-1, 1]
    return sum(edges[..., k, None] * world2cam[..., k, None, :] for k in range(3))


def project(view: jax.Array, points: jax.Array) -> jax.Array:
    """Places [N, ..., 2] in pictures, [-1, 1] from edge to edge, of points [N, ..., 3] through ``picture_map``."""
    found = apply_map(view, points)
    return found[..., :2] / jnp.maximum(found[..., 2:], NEAREST)


def warp_planes(
    planes: jax.Array, affine: jax.Array, extent: jax.Array, pivot: tuple[float, float, float]
) -> jax.Array:
    """Camera-frame planes as world planes, texel by texel (mode 'plane_warp'); linear in the planes.

    Texel (a, b) of world plane k is the place pivot + B/2 (a e_k1 + b e_k2); it gets what plane k of the camera has at
    that place's coordinates s. Not its own inverse, and not to be applied twice.

    Args:
        planes: [N, 3, h, h, C]. affine: [N, 3, 4] of ``source_map``. extent: [N], B.
    """
    size = planes.shape[2]
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2 / size) - 1
    b, a = jnp.meshgrid(centres, centres, indexing='ij')
    warped = []
    for k, (first, second) in enumerate(PLANE_AXES[AXES]):
        unit = jnp.zeros((size, size, 3)).at[..., first].set(a).at[..., second].set(b)
        points = jnp.asarray(pivot) + (extent / 2)[:, None, None, None] * unit
        places = apply_map(affine, points)[..., jnp.asarray([first, second])]
        warped.append(grid_sample(planes[:, k], places))
    return jnp.stack(warped, 1)


def mirror(labels: jax.Array) -> jax.Array:
    """Labels [...,25] of horizontally flipped pictures: the world mirrored at x = 0, the principal point too."""
    cam2world, intrinsics = unpack_label(labels)
    flipped = intrinsics.at[..., 0, 2].set(1 - intrinsics[..., 0, 2]).at[..., 0, 1].multiply(-1)
    return pack_label(mirror_pose(cam2world), flipped)


def view_angle(cam2world: np.ndarray, pivot: tuple[float, float, float]) -> float:
    """Degrees between the head's front (+z of the world) and the direction to a camera [4, 4]; 180 is behind."""
    away = np.asarray(cam2world, np.float64)[:3, 3] - np.asarray(pivot)
    return float(np.degrees(np.arccos(np.clip(away[2] / max(np.linalg.norm(away), 1e-9), -1, 1))))
