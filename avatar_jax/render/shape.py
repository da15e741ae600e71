"""The surface inside a tri-plane volume: a grid of densities and, from it, a mesh (EG3D 15.2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from avatar_jax.errors import UserError

OUTSIDE = -1000.0  # density written into the border of an extracted volume


def shape_grid(resolution: int, side: float, rows: np.ndarray | None = None, layout: str = 'regular') -> np.ndarray:
    """Points of a cubic grid that spans [-side/2, side/2] per axis, in the order x slowest, z fastest.

    Args:
        resolution: N points per axis.
        rows: flat indices to compute; None computes all N^3.
        layout: 'regular', or 'release': EG3D's script divides indices without truncating, in float32, which shears the
            grid by up to one voxel and rounds indices above 2^24; for comparing shapes with the original ones.

    Returns:
        [M, 3] float32 (x, y, z).
    """
    rows = np.arange(resolution**3, dtype=np.int64) if rows is None else np.asarray(rows, np.int64)
    if layout == 'release':
        z = (rows % resolution).astype(np.float32)
        slow = rows.astype(np.float32) / np.float32(resolution)
        y = slow % np.float32(resolution)
        x = slow / np.float32(resolution) % np.float32(resolution)
    elif layout == 'regular':
        z, y, x = rows % resolution, rows // resolution % resolution, rows // resolution**2
    else:
        raise ValueError(f"layout must be 'regular' or 'release', got {layout!r}")
    voxel = np.float32(side / (resolution - 1))
    points = np.stack([x, y, z], -1).astype(np.float32)
    return points * voxel - np.float32(side / 2)


def density_volume(
    density: Callable[[np.ndarray], np.ndarray],
    resolution: int = 512,
    side: float = 1.0,
    *,
    chunk: int = 262144,
    layout: str = 'regular',
    border: float | None = 30 / 256,
) -> np.ndarray:
    """Raw densities on a grid, as the release stores them.

    Args:
        density: maps points [1, chunk, 3] to raw densities [1, chunk, 1]; it is always called with one chunk's shape,
            so that a jitted function compiles once (see `models.triplane.TriPlaneGenerator.sample_density`).
        resolution: N, points per axis; side: side of the cube, usually the model's ``box_warp``.
        layout: see `shape_grid`.
        border: share of N, per side, that is overwritten with -1000, so that surfaces close; None keeps everything.

    Returns:
        [N, N, N] float32 with axes (x, y, z); the x axis is flipped, as in the release.
    """
    total = resolution**3
    volume = np.empty(total, np.float32)
    for start in range(0, total, chunk):
        rows = np.arange(start, min(start + chunk, total))
        points = shape_grid(resolution, side, rows, layout)
        points = np.pad(points, ((0, chunk - len(rows)), (0, 0)))
        volume[rows] = np.asarray(density(points[None]))[0, : len(rows), 0]
    volume = volume.reshape(resolution, resolution, resolution)[::-1].copy()
    width = int(border * resolution) if border else 0
    if width:
        for axis in range(3):
            view = np.moveaxis(volume, axis, 0)
            view[:width] = OUTSIDE
            view[-width:] = OUTSIDE
    return volume


def extract_mesh(volume: np.ndarray, level: float = 10.0, side: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes over a density volume.

    Args:
        volume: [N, N, N] from `density_volume`.
        level: density of the surface.
        side: None keeps the release's vertices, in voxel units and axis order (z, y, x); a number gives world
            coordinates (x, y, z) in a cube of that side.

    Returns:
        vertices [V, 3] float32 and triangles [F, 3] int32.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise UserError("shape extraction: scikit-image is not installed; run 'pip install scikit-image'") from error
    if not volume.min() < level < volume.max():
        raise UserError(
            f'shape extraction: no surface, densities go from {volume.min():.3g} to {volume.max():.3g}; '
            f'choose a level between them (now {level:g})'
        )
    if side is None:
        vertices, triangles, _, _ = marching_cubes(np.ascontiguousarray(volume.transpose(2, 1, 0)), level)
        return vertices.astype(np.float32), triangles.astype(np.int32)
    vertices, triangles, _, _ = marching_cubes(np.ascontiguousarray(volume[::-1]), level)
    return (vertices * (side / (volume.shape[0] - 1)) - side / 2).astype(np.float32), triangles.astype(np.int32)
