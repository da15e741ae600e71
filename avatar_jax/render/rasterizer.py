"""Z-buffered triangle rasterisation in plain NumPy, vectorised over triangles, and the SECC maps drawn with it.

Two rasterisers live here.

* ``rasterize`` is the accurate one: pixel (row i, column j) is sampled at (u, v) = (j + 0.5, i + 0.5), depth and
  attributes are perspective-correct, the nearest surface wins. Triangles are turned into (triangle, row) spans, and the
  spans into pixels, so that the work is proportional to the covered area and no Python loop runs over triangles.
* ``zbuffer_integer`` is the z-buffer with integer sample positions of the 3DDFA family (Zhu et al.), with which the
  normalised coordinate code (NCC) is drawn: screen-space interpolation and a strict inside test.

``secc`` draws the semantic expression code map of HiDe-NeRF (its eq. 3) with either of them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

INITIAL_DEPTH = -1e8  # of the integer z-buffer, where larger depth is nearer


@dataclasses.dataclass(frozen=True)
class Fragments:
    """The visible surface at every sample: arrays over [H, W].

    Attributes:
      face: triangle index, int32, -1 where nothing is.
      barycentric: [H, W, 3] weights of the triangle's three vertices (perspective-correct), 0 where nothing is.
      depth: the depth of the vertices' third coordinate, 0 where nothing is.
    """

    face: np.ndarray
    barycentric: np.ndarray
    depth: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """[H, W] bool: some triangle was hit."""
        return self.face >= 0

    def interpolate(self, attributes: np.ndarray, triangles: np.ndarray) -> np.ndarray:
        """Per-vertex ``attributes`` [V, C] at every sample: [H, W, C], 0 where nothing is."""
        hit = self.face >= 0
        out = np.zeros(self.face.shape + attributes.shape[1:], np.result_type(attributes, np.float32))
        out[hit] = interpolate_flat(attributes, triangles[self.face[hit]], self.barycentric[hit])
        return out


def interpolate_flat(attributes: np.ndarray, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``sum_k weights[n, k] * attributes[corners[n, k]]``: [N, C] from corners [N, 3] and weights [N, 3]."""
    out = weights[:, 0, None] * attributes[corners[:, 0]]
    out += weights[:, 1, None] * attributes[corners[:, 1]]
    out += weights[:, 2, None] * attributes[corners[:, 2]]
    return out


def _ranges(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [n]: (owner of each element, position inside its owner), both of length sum(counts)."""
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner), dtype=np.int32) - first[owner].astype(np.int32)


def rasterize(screen: np.ndarray, triangles: np.ndarray, height: int, width: int, *, perspective: bool = True,
              cull: np.ndarray | bool = False, min_depth: float = 1e-6) -> Fragments:
    """Nearest surface at every pixel centre.

    Args:
      screen: [V, 3] (u right, v down, depth; smaller depth is nearer), pixels.
      triangles: [F, 3] vertex indices.
      height, width: image size.
      perspective: depth is a distance along the optical axis and 1/depth is interpolated linearly (attributes become
        perspective-correct); else depth and attributes are linear in the image.
      cull: drop triangles that turn their back, i.e. whose vertices appear in clockwise order; a bool or one bool per
        triangle.
      min_depth: in the perspective case triangles with a vertex nearer than this are dropped whole.

    Returns:
      Fragments; of equally near triangles the one with the lowest index wins.
    """
    hit, hit_face, hit_weights, hit_depth = visible(screen, triangles, height, width, perspective=perspective,
                                                    cull=cull, min_depth=min_depth)
    face = np.full(height * width, -1, np.int32)
    weights = np.zeros((height * width, 3), np.float32)
    depth = np.zeros(height * width, np.float32)
    face[hit], weights[hit], depth[hit] = hit_face, hit_weights, hit_depth
    return Fragments(face.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width))


def visible(screen: np.ndarray, triangles: np.ndarray, height: int, width: int, *, perspective: bool = True,
            cull: np.ndarray | bool = False, min_depth: float = 1e-6):
    """As ``rasterize``, but only the covered samples.

    Returns:
      (flat pixel index [N] ascending, triangle [N] int32, barycentric [N, 3] float32, depth [N] float32).
    """
    # Corner by corner, as contiguous [F] arrays: reductions over a last axis of three are slow.
    screen = np.ascontiguousarray(np.asarray(screen, np.float64).T)
    corner = np.ascontiguousarray(np.asarray(triangles).T)
    u, v, depth = (screen[d][corner] for d in range(3))  # each [3, F]
    area = (u[1] - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (v[1] - v[0])
    keep = (area != 0) & ~(np.asarray(cull) & (area > 0))
    if perspective:
        keep &= np.minimum(np.minimum(depth[0], depth[1]), depth[2]) > min_depth
    top = np.ceil(np.minimum(np.minimum(v[0], v[1]), v[2]) - 0.5).clip(0, height)
    bottom = np.floor(np.maximum(np.maximum(v[0], v[1]), v[2]) - 0.5).clip(-1, height - 1)
    leftmost, rightmost = np.minimum(np.minimum(u[0], u[1]), u[2]), np.maximum(np.maximum(u[0], u[1]), u[2])
    keep &= (bottom >= top) & (rightmost >= 0.5) & (leftmost <= width - 0.5)
    index = np.flatnonzero(keep)
    u, v, depth, area = u[:, index], v[:, index], depth[:, index], area[index]
    # Barycentric weight k at (x, y) is a_k x + b_k y + c_k.
    u1, v1, u2, v2 = u[[1, 2, 0]], v[[1, 2, 0]], u[[2, 0, 1]], v[[2, 0, 1]]
    a, b, c = (v1 - v2) / area, (u2 - u1) / area, (u1 * v2 - u2 * v1) / area
    # What is linear on the screen and larger when nearer: 1/depth, or -depth.
    near = 1 / depth if perspective else -depth
    na, nb, nc = (sum(t[k] * near[k] for k in range(3)) for t in (a, b, c))
    pixel, owner, nearness = _spans(a, b, c, na, nb, nc, leftmost[index], rightmost[index],
                                    top[index].astype(np.int32), bottom[index].astype(np.int32), width)
    buffer = np.full(height * width, -np.inf)
    np.maximum.at(buffer, pixel, nearness)
    won = np.flatnonzero(nearness == buffer[pixel])[::-1]  # backwards: the lowest triangle is written last
    winner = np.full(height * width, -1, np.int32)
    winner[pixel[won]] = owner[won]
    hit = np.flatnonzero(winner >= 0)
    winner = winner[hit]
    row = (hit.astype(np.int32) // np.int32(width)).astype(np.int32)
    x, y = hit.astype(np.int32) - row * np.int32(width) + 0.5, row + 0.5
    second = a[1][winner] * x + b[1][winner] * y + c[1][winner]
    third = a[2][winner] * x + b[2][winner] * y + c[2][winner]
    w = [np.maximum(t, 0) for t in (1 - second - third, second, third)]
    if perspective:
        w = [t * near[k][winner] for k, t in enumerate(w)]
    total = w[0] + w[1] + w[2]
    weights = np.empty((len(hit), 3), np.float32)
    for k in range(3):
        np.divide(w[k], total, out=weights[:, k], casting='same_kind')
    nearest = buffer[hit]
    return hit, index[winner].astype(np.int32), weights, (1 / nearest if perspective else -nearest).astype(np.float32)


def _spans(a, b, c, na, nb, nc, leftmost, rightmost, top, bottom, width):
    """(pixel index, triangle, nearness) of every sample inside every triangle, triangle by triangle."""
    tri, row = _ranges(bottom - top + 1)
    row += top[tri]
    y = row + 0.5
    left, right = np.maximum(leftmost, 0.5)[tri], np.minimum(rightmost, width - 0.5)[tri]
    for k in range(3):  # a x + (b y + c) >= 0 bounds x from the left or from the right, by the sign of a
        slope, offset = a[k][tri], b[k][tri] * y + c[k][tri]
        with np.errstate(divide='ignore', invalid='ignore'):
            cross = -offset / slope
        np.maximum(left, np.where(slope > 0, cross, np.where((slope == 0) & (offset < 0), np.inf, left)), out=left)
        np.minimum(right, np.where(slope < 0, cross, right), out=right)
    first = np.ceil(np.minimum(left, width + 1) - 0.5)
    count = np.maximum(np.floor(right - 0.5) - first + 1, 0).astype(np.int32)
    span, column = _ranges(count)
    column += first.astype(np.int32)[span]
    owner = tri[span]
    nearness = na[owner] * (column + 0.5) + (nb[tri] * y + nc[tri])[span]
    return row[span] * width + column, owner, nearness
