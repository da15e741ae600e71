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
import itertools

import numpy as np

INITIAL_DEPTH = -1e8  # of the integer z-buffer, where larger depth is nearer
_SLACK = 1e-7  # pixels


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


def rasterize(
    screen: np.ndarray,
    triangles: np.ndarray,
    height: int,
    width: int,
    *,
    perspective: bool = True,
    cull: np.ndarray | bool = False,
    min_depth: float = 1e-6,
) -> Fragments:
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
    hit, hit_face, hit_weights, hit_depth = visible(
        screen, triangles, height, width, perspective=perspective, cull=cull, min_depth=min_depth
    )
    face = np.full(height * width, -1, np.int32)
    weights = np.zeros((height * width, 3), np.float32)
    depth = np.zeros(height * width, np.float32)
    face[hit], weights[hit], depth[hit] = hit_face, hit_weights, hit_depth
    return Fragments(face.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width))


def visible(
    screen: np.ndarray,
    triangles: np.ndarray,
    height: int,
    width: int,
    *,
    perspective: bool = True,
    cull: np.ndarray | bool = False,
    min_depth: float = 1e-6,
):
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
    pixel, owner, nearness = _spans(
        a,
        b,
        c,
        na,
        nb,
        nc,
        leftmost[index],
        rightmost[index],
        top[index].astype(np.int32),
        bottom[index].astype(np.int32),
        width,
    )
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
    # The slack lets both neighbours of an edge claim a sample on it, so that rounding opens no gap between them.
    first = np.ceil(np.minimum(left, width + 1) - (0.5 + _SLACK))
    count = np.maximum(np.floor(right - (0.5 - _SLACK)) - first + 1, 0).astype(np.int32)
    span, column = _ranges(count)
    column += first.astype(np.int32)[span]
    owner = tri[span]
    nearness = na[owner] * (column + 0.5) + (nb[tri] * y + nc[tri])[span]
    return row[span] * width + column, owner, nearness


def _inside_strict(w0, w1, w2):
    return (w0 > 0) & (w1 > 0) & (w2 > 0)


def _inside_half_open(w0, w1, w2):
    return (w1 >= 0) & (w2 >= 0) & (w1 + w2 < 1)


INSIDE_RULES = {'strict': _inside_strict, 'half_open': _inside_half_open}
_MAX_CANDIDATES = 1 << 22  # pixel tests at a time, which bounds the memory


@dataclasses.dataclass(frozen=True)
class IntegerBuffer:
    """What ``zbuffer_integer`` drew.

    Attributes:
        image: [H, W, C] float32 interpolated attributes, the given background elsewhere.
        depth: [H, W] float32, larger is nearer, ``INITIAL_DEPTH`` where nothing is.
        face: [H, W] int32 winning triangle, -1 where nothing is.
    """

    image: np.ndarray
    depth: np.ndarray
    face: np.ndarray

    def to_uint8(self) -> np.ndarray:
        """[H, W, C] uint8: 255 times the value, truncated."""
        return np.clip(np.float32(255) * self.image, 0, 255).astype(np.uint8)


def zbuffer_integer(
    screen: np.ndarray,
    triangles: np.ndarray,
    attributes: np.ndarray,
    height: int,
    width: int,
    *,
    inside: str = 'strict',
    background: np.ndarray | float = 0.0,
) -> IntegerBuffer:
    """The z-buffer of the 3DDFA family: sample positions at integers, screen-space interpolation, no culling.

    Args:
        screen: [V, 3] (x right, y down, depth; larger depth is nearer), pixels.
        triangles: [F, 3]; attributes: [V, C].
        inside: 'strict' (all three weights > 0) or 'half_open' (weights of the second and third vertex >= 0 and their
            sum < 1), the two rules in use.
        background: value, or [H, W, C] image, that stays where no triangle falls.

    Returns:
        IntegerBuffer. Of equally near triangles the first one stays.
    """
    if inside not in INSIDE_RULES:
        raise ValueError(f'inside={inside!r}: unknown rule; one of {", ".join(INSIDE_RULES)}')
    rule = INSIDE_RULES[inside]
    corner = np.asarray(screen, np.float32)[triangles]  # [F, 3, 3]
    low = np.maximum(np.ceil(corner[..., :2].min(1)), 0).astype(np.int64)
    high = np.minimum(np.floor(corner[..., :2].max(1)), [width - 1, height - 1]).astype(np.int64)
    wide = np.maximum(high - low + 1, 0)
    counts = wide[:, 0] * wide[:, 1]
    p0, edge1, edge2 = corner[:, 0, :2], corner[:, 1, :2] - corner[:, 0, :2], corner[:, 2, :2] - corner[:, 0, :2]
    d00, d01, d11 = (edge2 * edge2).sum(1), (edge2 * edge1).sum(1), (edge1 * edge1).sum(1)
    determinant = d00 * d11 - d01 * d01
    inverse = np.where(determinant == 0, 0, 1 / np.where(determinant == 0, 1, determinant)).astype(np.float32)

    buffer = np.full(height * width, INITIAL_DEPTH, np.float32)
    face = np.full(height * width, -1, np.int32)
    weights = np.zeros((height * width, 3), np.float32)
    for block in _blocks(counts):
        owner, place = _ranges(counts[block])
        owner = owner + block.start
        x = low[owner, 0] + place % np.maximum(wide[owner, 0], 1)
        y = low[owner, 1] + place // np.maximum(wide[owner, 0], 1)
        offset = np.stack([x, y], 1).astype(np.float32) - p0[owner]
        d02, d12 = (edge2[owner] * offset).sum(1), (edge1[owner] * offset).sum(1)
        w2 = (d11[owner] * d02 - d01[owner] * d12) * inverse[owner]
        w1 = (d00[owner] * d12 - d01[owner] * d02) * inverse[owner]
        w0 = 1 - w1 - w2
        keep = np.flatnonzero(rule(w0, w1, w2))
        owner, pixel, w = owner[keep], (y * width + x)[keep], np.stack([w0, w1, w2], 1)[keep]
        depth = (w * corner[owner, :, 2]).sum(1)
        before = buffer.copy()
        np.maximum.at(buffer, pixel, depth)
        won = np.flatnonzero((depth == buffer[pixel]) & (depth > before[pixel]))[::-1]
        face[pixel[won]], weights[pixel[won]] = owner[won], w[won]
    attributes = np.asarray(attributes, np.float32)
    image = np.empty((height * width, attributes.shape[1]), np.float32)
    image[:] = background if np.ndim(background) == 0 else np.reshape(background, image.shape)
    hit = face >= 0
    image[hit] = interpolate_flat(attributes, np.asarray(triangles)[face[hit]], weights[hit])
    return IntegerBuffer(image.reshape(height, width, -1), buffer.reshape(height, width), face.reshape(height, width))


def _blocks(counts: np.ndarray) -> list[slice]:
    """Runs of triangles whose bounding boxes hold about ``_MAX_CANDIDATES`` pixels together."""
    group = np.cumsum(counts) // _MAX_CANDIDATES
    edges = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1, [len(counts)]])
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges) if b > a]


def normalised_coordinate_code(mean_shape: np.ndarray) -> np.ndarray:
    """NCC (Zhu et al.): the mean shape [V, 3] normalised to [0, 1] per axis; x, y, z are the channels r, g, b."""
    shape = np.asarray(mean_shape, np.float32)
    low, high = shape.min(0), shape.max(0)
    return (shape - low) / (high - low)


def area_weighted_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[V, 3] unit normals: the sum over the triangles of (p1 - p0) x (p2 - p0), normalised."""
    p = np.asarray(vertices, np.float64)[triangles]
    normal = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    out = np.stack([np.bincount(np.ravel(triangles), np.repeat(normal[:, d], 3), len(vertices)) for d in range(3)], 1)
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SeccConfig:
    """How a SECC map is drawn; HiDe-NeRF leaves these open. The default is the camera of the 3DMM regressor.

    Attributes:
        size: side of the map in pixels.
        focal, centre: of the 224-pixel camera, scaled to ``size``; camera_distance: decimetre.
        background: value where no triangle falls, before ``signed``.
        signed: map [0, 1] to [-1, 1], background included.
        sampling: 'centre' (pixel centres, perspective-correct) or 'integer' (``zbuffer_integer``, strict rule).
    """

    size: int = 256
    focal: float = 1015.0
    centre: float = 112.0
    camera_distance: float = 10.0
    background: float = 0.0
    signed: bool = False
    sampling: str = 'centre'


@dataclasses.dataclass(frozen=True)
class Secc:
    """A SECC map: image [S, S, 3], mask [S, S] bool, face [S, S] (-1 outside), depth [S, S] (camera z, 0 outside)."""

    image: np.ndarray
    mask: np.ndarray
    face: np.ndarray
    depth: np.ndarray


def secc(vertices: np.ndarray, code: np.ndarray, triangles: np.ndarray, config: SeccConfig | None = None) -> Secc:
    """Semantic expression code map: the code [V, 3] of every vertex, seen by a fixed camera.

    ``vertices`` [V, 3] are mean + identity + expression without pose for the pose-free map of HiDe-NeRF (eq. 3); the
    same with zero expression gives the canonical map, and posed vertices its pose-coupled variant. Decimetre, y up,
    z to the viewer.
    """
    config = config or SeccConfig()
    if config.sampling not in ('centre', 'integer'):
        raise ValueError(f'sampling={config.sampling!r}: use centre or integer')
    vertices = np.asarray(vertices, np.float64)
    z = config.camera_distance - vertices[:, 2]
    scale, size = config.size / 224, config.size
    u = scale * (config.focal * vertices[:, 0] / z + config.centre)
    v = size - scale * (config.focal * vertices[:, 1] / z + config.centre)
    if config.sampling == 'centre':
        drawn = rasterize(np.stack([u, v, z], 1), triangles, size, size)
        face, depth, mask = drawn.face, drawn.depth, drawn.covered
        image = np.full((size, size, code.shape[1]), config.background, np.float32)
        image[mask] = drawn.interpolate(np.asarray(code, np.float32), triangles)[mask]
    else:
        buffer = zbuffer_integer(np.stack([u, v, -z], 1), triangles, code, size, size, background=config.background)
        image, face = buffer.image, buffer.face
        mask = face >= 0
        depth = np.where(mask, -buffer.depth, 0).astype(np.float32)
    return Secc(2 * image - 1 if config.signed else image, mask, face, depth)
