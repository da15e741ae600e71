"""Interpolated look-ups in images, volumes and tri-planes, with fast gradients to the table and to the coordinates.

Everything here is one operation, `weighted_rows`: gather a few rows of a flat table and add them with weights. The
coordinates enter through the weights only, so their gradient is ordinary differentiation; the table's gradient is a
loop of scatters into one table (one table per corner is what makes plain differentiation slow on a CPU).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

PLANE_AXES = {
    # Which two coordinates (column, row) each of the three planes spans. The EG3D release looks up XZ twice, once
    # transposed, and never YZ; weights that were trained with it need 'legacy'.
    'legacy': ((0, 1), (0, 2), (2, 0)),
    'orthogonal': ((0, 1), (0, 2), (2, 1)),
    'ordered': ((0, 1), (0, 2), (1, 2)),  # XY, XZ, YZ: the first coordinate along columns, the second along rows
}

# Indices are neither beyond the end nor counted from it: a third less to trace for each look-up.
_WITHIN = {'mode': 'promise_in_bounds', 'wrap_negative_indices': False}


@jax.custom_vjp
def weighted_rows(
    table: Float[jax.Array, 'rows channels'], index: Int[jax.Array, 'k m'], weight: Float[jax.Array, 'k m']
) -> Float[jax.Array, 'm channels']:
    """``sum_k weight[k, m] * table[index[k, m]]``.

    Args:
        table: [R, C].
        index: [K, M] integers, all within [0, R) (not checked).
        weight: [K, M].

    Returns:
        [M, C]. Reverse-mode differentiable in ``table`` and ``weight``, to any order; no forward mode (`jax.jvp`).
    """
    rows = [_rows(table, i) * w[:, None] for i, w in zip(index, weight)]
    return sum(rows[1:], rows[0])


def _rows(table, index):
    return table.at[index].get(**_WITHIN)


def _weighted_rows_fwd(table, index, weight):
    return weighted_rows(table, index, weight), (table, index, weight)


def _weighted_rows_bwd(residuals, cotangent):
    table, index, weight = residuals

    def add(total, tap):
        rows, weights = tap
        return total.at[rows].add((weights[:, None] * cotangent).astype(table.dtype), **_WITHIN), None

    # One tap after the other, in place: all rows at once would write [K, M, C] to memory first, which takes several
    # times as long on a CPU, and written out without a loop, the table is copied for each.
    d_table, _ = jax.lax.scan(add, jnp.zeros_like(table), (index, weight))
    d_weight = jnp.stack([(_rows(table, i) * cotangent).sum(-1) for i in index])
    return d_table, None, d_weight.astype(weight.dtype)


weighted_rows.defvjp(_weighted_rows_fwd, _weighted_rows_bwd)


def pixel_position(coordinate: jax.Array, size: int, align_corners: bool) -> jax.Array:
    """Maps [-1, 1] to pixel indices: the outer pixels' centres (True) or the image's outer edges (False)."""
    if align_corners:
        return (coordinate + 1) * (0.5 * (size - 1))
    return ((coordinate + 1) * size - 1) * 0.5


def _axis_taps(coordinate, size, mode, padding, align_corners):
    """The one or two (index, weight) pairs of one axis; outside taps weigh nothing ('zeros') or do not occur."""
    position = pixel_position(coordinate, size, align_corners)
    if padding == 'border':
        position = jnp.clip(position, 0, size - 1)
    elif padding != 'zeros':
        raise ValueError(f"padding must be 'zeros' or 'border', got {padding!r}")
    if mode == 'nearest':
        taps = [(jnp.round(position), jnp.ones_like(position))]
    elif mode == 'bilinear':
        low = jnp.floor(jax.lax.stop_gradient(position))
        fraction = position - low
        taps = [(low, 1 - fraction), (low + 1, fraction)]
    else:
        raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
    result = []
    for index, weight in taps:
        inside = (index >= 0) & (index <= size - 1)  # false for NaN too: it then reads nothing
        index = jnp.where(inside, index, 0).astype(jnp.int32)
        result.append((index, jnp.where(inside, weight, 0)))
    return result


def _corners(coordinates, sizes, mode, padding, align_corners):
    """Flat indices and weights [K, ...] of all corners; ``coordinates`` and ``sizes`` run from the slowest axis on."""
    axes = [_axis_taps(c, s, mode, padding, align_corners) for c, s in zip(coordinates, sizes, strict=True)]
    indices, weights = [], []
    for taps in itertools.product(*axes):
        index, weight = 0, 1
        for (i, w), size in zip(taps, sizes):
            index, weight = index * size + i, weight * w
        indices.append(index)
        weights.append(weight)
    return jnp.stack(indices), jnp.stack(weights)


def _sample(data, coordinates, mode, padding, align_corners):
    """``data`` [N, *sizes, C] looked up at ``coordinates`` (slowest axis first), each [N, *points]."""
    batch, *sizes, channels = data.shape
    points = coordinates[0].shape
    index, weight = _corners([c.reshape(batch, -1) for c in coordinates], sizes, mode, padding, align_corners)
    cells = 1
    for size in sizes:
        cells *= size
    index = index + jnp.arange(batch, dtype=jnp.int32)[:, None] * cells
    corners = index.shape[0]
    out = weighted_rows(data.reshape(batch * cells, channels), index.reshape(corners, -1), weight.reshape(corners, -1))
    return out.reshape(*points, channels)


def grid_sample(
    image: Float[jax.Array, 'n h w c'],
    grid: Float[jax.Array, 'n *places 2'],
    mode: str = 'bilinear',
    padding: str = 'zeros',
    align_corners: bool = False,
) -> Float[jax.Array, 'n *places c']:
    """Looks up an image at given places.

    Args:
        image: [N, H, W, C].
        grid: [N, ..., 2]; component 0 is x (columns), 1 is y (rows); -1 and 1 are the image's edges
            (``align_corners=False``) or the centres of its outer pixels (True).
        mode: 'bilinear', or 'nearest' (halves go to the even pixel; no gradient to ``grid``).
        padding: 'zeros' (a tap outside the image contributes 0) or 'border' (places are moved into the image first).

    Returns:
        [N, ..., C].
    """
    if grid.shape[-1] != 2 or image.ndim != 4 or grid.shape[0] != image.shape[0]:
        raise ValueError(f'grid_sample: image {image.shape} and grid {grid.shape} do not go together')
    return _sample(image, (grid[..., 1], grid[..., 0]), mode, padding, align_corners)


def grid_sample_3d(
    volume: Float[jax.Array, 'n d h w c'],
    grid: Float[jax.Array, 'n *places 3'],
    mode: str = 'bilinear',
    padding: str = 'zeros',
    align_corners: bool = False,
) -> Float[jax.Array, 'n *places c']:
    """Trilinear look-up: ``volume`` [N, D, H, W, C] at ``grid`` [N, ..., 3] with components (x, y, z) for (W, H, D).

    Options as in `grid_sample`. Returns [N, ..., C].
    """
    if grid.shape[-1] != 3 or volume.ndim != 5 or grid.shape[0] != volume.shape[0]:
        raise ValueError(f'grid_sample_3d: volume {volume.shape} and grid {grid.shape} do not go together')
    return _sample(volume, (grid[..., 2], grid[..., 1], grid[..., 0]), mode, padding, align_corners)


def project_to_planes(points: Float[jax.Array, 'n m 3'], plane_axes: str = 'legacy') -> Float[jax.Array, 'n 3 m 2']:
    """The (column, row) coordinates of ``points`` [N, M, 3] on the three planes: [N, 3, M, 2]."""
    if plane_axes not in PLANE_AXES:
        raise ValueError(f'plane_axes must be one of {sorted(PLANE_AXES)}, got {plane_axes!r}')
    return jnp.stack([jnp.stack([points[..., u], points[..., v]], -1) for u, v in PLANE_AXES[plane_axes]], axis=1)


def plane_axes_of(matrices: np.ndarray) -> str:
    """The name in `PLANE_AXES` of a convention stored as three 3x3 matrices A, (u, v, .) = p^T A^-1 [3, 3, 3]."""
    inverse = np.linalg.inv(np.asarray(matrices, np.float64))[..., :2]
    for name, axes in PLANE_AXES.items():
        wanted = np.stack([np.eye(3)[list(pair)].T for pair in axes])
        if np.allclose(inverse, wanted):
            return name
    raise ValueError(f'these plane axes are neither of {sorted(PLANE_AXES)}: {np.asarray(matrices).tolist()}')


def _plane_corners(planes, points, box_warp, plane_axes):
    """Flat rows and weights [4, N, 3, M] of the tri-plane look-up."""
    batch, num_planes, height, width, _ = planes.shape
    if num_planes != 3 or points.shape[0] != batch or points.shape[-1] != 3:
        raise ValueError(f'tri-plane look-up: planes {planes.shape} and points {points.shape} do not go together')
    uv = project_to_planes(points * (2 / box_warp), plane_axes)
    index, weight = _corners((uv[..., 1], uv[..., 0]), (height, width), 'bilinear', 'zeros', False)
    offset = jnp.arange(batch * 3, dtype=jnp.int32).reshape(batch, 3, 1) * (height * width)
    return index + offset, weight


def sample_planes(
    planes: Float[jax.Array, 'n 3 h w c'],
    points: Float[jax.Array, 'n m 3'],
    box_warp: float = 1.0,
    plane_axes: str = 'legacy',
) -> Float[jax.Array, 'n 3 m c']:
    """Bilinear features of 3-D points on each of three planes (EG3D 3.1 and its release's plane order).

    Args:
        planes: [N, 3, H, W, C]; columns and rows span the coordinate pairs of `PLANE_AXES`.
        points: [N, M, 3] world coordinates; the planes cover [-box_warp/2, box_warp/2], beyond that features fade to 0.

    Returns:
        [N, 3, M, C].
    """
    index, weight = _plane_corners(planes, points, box_warp, plane_axes)
    channels = planes.shape[-1]
    out = weighted_rows(planes.reshape(-1, channels), index.reshape(4, -1), weight.reshape(4, -1))
    return out.reshape(*index.shape[1:], channels)


def sample_planes_mean(
    planes: Float[jax.Array, 'n 3 h w c'],
    points: Float[jax.Array, 'n m 3'],
    box_warp: float = 1.0,
    plane_axes: str = 'legacy',
) -> Float[jax.Array, 'n m c']:
    """The mean over the three planes of `sample_planes`, [N, M, C], without forming the three parts."""
    index, weight = _plane_corners(planes, points, box_warp, plane_axes)
    batch, _, count = index.shape[1:]
    rows = [x.swapaxes(1, 2).reshape(12, batch * count) for x in (index, weight * (1 / 3))]
    out = weighted_rows(planes.reshape(-1, planes.shape[-1]), *rows)
    return out.reshape(batch, count, planes.shape[-1])
