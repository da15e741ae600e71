"""Z-buffered triangle rasterisation inside compiled programs: the device's partner of ``render.rasterizer``.

The same rules (pixel centres, perspective-correct attributes, the nearest surface wins, ties go to the lowest
triangle), with shapes that do not depend on the mesh's position: the (triangle, pixel) pairs of all bounding boxes are
numbered and worked off in equal portions, as many as a picture needs. Any size of triangle is drawn exactly.

Nothing here has a gradient; HiDe-NeRF's codes need none.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.render.rasterizer import SeccConfig

_PORTION = 2  # pairs worked off at a time, per pixel of the picture


@flax.struct.dataclass
class Fragments:
    """The visible surface at every sample.

    Attributes:
        face: [H, W] int32 triangle, -1 where nothing is.
        barycentric: [H, W, 3] perspective-correct weights of its vertices, 0 where nothing is.
        depth: [H, W] the vertices' third coordinate, 0 where nothing is.
    """

    face: jax.Array
    barycentric: jax.Array
    depth: jax.Array

    @property
    def covered(self) -> jax.Array:
        """[H, W] bool: some triangle was hit."""
        return self.face >= 0

    def interpolate(self, attributes: jax.Array, triangles: jax.Array) -> jax.Array:
        """Per-vertex ``attributes`` [V, C] at every sample: [H, W, C], 0 where nothing is."""
        corners = jnp.asarray(triangles)[jnp.maximum(self.face, 0)]
        return (self.barycentric[..., None] * jnp.asarray(attributes)[corners]).sum(-2)


def rasterize(
    screen: jax.Array,
    triangles: jax.Array,
    height: int,
    width: int,
    *,
    perspective: bool = True,
    min_depth: float = 1e-6,
) -> Fragments:
    """Nearest surface at every pixel centre; see ``render.rasterizer.rasterize``, whose options these are.

    Neighbouring triangles decide about a sample on their common edge with the same rounding, so that no gap opens
    between them in float32.

    Args:
        screen: [V, 3] (u right, v down, depth; smaller is nearer), pixels.
        triangles: [F, 3] vertex ids. The boxes of all triangles together must hold fewer than 2^31 pixels.
    """
    screen = jax.lax.stop_gradient(jnp.asarray(screen, jnp.float32))
    triangles = jnp.asarray(triangles, jnp.int32)
    count, pixels = triangles.shape[0], height * width
    corners = screen[triangles]  # [F, 3, 3]
    low, high = corners[..., :2].min(1), corners[..., :2].max(1)
    size = jnp.asarray([width, height], jnp.float32)
    first = jnp.clip(jnp.ceil(low - 0.5), 0, size).astype(jnp.int32)
    last = jnp.clip(jnp.floor(high - 0.5), -1, size - 1).astype(jnp.int32)
    wide = jnp.maximum(last - first + 1, 0)
    seen = jnp.isfinite(corners).all((1, 2))
    if perspective:
        seen &= corners[..., 2].min(1) > min_depth
    boxes = jnp.where(seen, wide[:, 0] * wide[:, 1], 0)
    ends = jnp.cumsum(boxes)
    portion = _PORTION * pixels

    def some(state):
        number, nearest, face = state
        index = number * portion + jnp.arange(portion, dtype=jnp.int32)
        owner = jnp.minimum(jnp.searchsorted(ends, index, side='right'), count - 1).astype(jnp.int32)
        place = index - (ends[owner] - boxes[owner])
        across = jnp.maximum(wide[owner, 0], 1)
        row = place // across
        column = first[owner, 0] + place - row * across
        row = first[owner, 1] + row
        weights, inside = _weights(screen, triangles[owner], column + 0.5, row + 0.5)
        inside &= index < ends[-1]
        near = _nearness(weights, screen[triangles[owner], 2], perspective)
        # Worked out once: compared again below, it must not come out rounded otherwise.
        near = jax.lax.optimization_barrier(jnp.where(inside, near, -jnp.inf))
        pixel = jnp.where(inside, row * width + column, 0)
        best = nearest.at[pixel].max(near)
        won = inside & (near == best[pixel]) & (near > nearest[pixel])
        lowest = jnp.full(pixels, count, jnp.int32).at[pixel].min(jnp.where(won, owner, count))
        return number + 1, best, jnp.where(lowest < count, lowest, face)

    begin = (jnp.int32(0), jnp.full(pixels, -jnp.inf, jnp.float32), jnp.full(pixels, -1, jnp.int32))
    _, _, face = jax.lax.while_loop(lambda state: state[0] * portion < ends[-1], some, begin)

    row, column = jnp.divmod(jnp.arange(pixels, dtype=jnp.int32), width)
    ids = triangles[jnp.maximum(face, 0)]
    weights, _ = _weights(screen, ids, column + 0.5, row + 0.5)
    weights = jnp.maximum(weights, 0)
    depths = screen[ids, 2]
    if perspective:
        weights = weights / jnp.where(face[:, None] >= 0, depths, 1.0)
    total = weights.sum(-1, keepdims=True)
    weights = jnp.where(face[:, None] >= 0, weights / jnp.where(total > 0, total, 1.0), 0.0)
    depth = (weights * jnp.where(face[:, None] >= 0, depths, 0.0)).sum(-1)
    return Fragments(face.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width))


def _weights(screen: jax.Array, ids: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Barycentric weights [M, 3] of samples (x, y) [M] in triangles ``ids`` [M, 3], and whether they lie inside."""
    edges = []
    for k in range(3):
        a, b = ids[:, (k + 1) % 3], ids[:, (k + 2) % 3]
        # Both triangles of an edge compute it from the lower vertex to the higher one: the same number but for its
        # sign.
        p, q = screen[jnp.minimum(a, b)], screen[jnp.maximum(a, b)]
        cross = (p[:, 0] - x) * (q[:, 1] - y) - (q[:, 0] - x) * (p[:, 1] - y)
        edges.append(jnp.where(a < b, cross, -cross))
    weights = jnp.stack(edges, -1)
    area = weights.sum(-1, keepdims=True)
    weights = weights * jnp.where(area < 0, -1.0, 1.0)
    inside = (weights >= 0).all(-1) & (area[:, 0] != 0)
    return weights / jnp.where(area == 0, 1.0, jnp.abs(area)), inside


def _nearness(weights: jax.Array, depths: jax.Array, perspective: bool) -> jax.Array:
    """What is linear on the screen and larger when nearer: 1/depth, or -depth; [M]."""
    return (weights * (1 / depths if perspective else -depths)).sum(-1)


def secc(vertices: jax.Array, code: jax.Array, triangles: jax.Array, config: SeccConfig | None = None) -> jax.Array:
    """Semantic expression code maps (HiDe-NeRF, eq. 3), drawn on the device.

    Args:
        vertices: [..., V, 3] decimetres, y up, z to the viewer.
        code: [V, C] of every vertex, usually in [0, 1]. triangles: [F, 3].
        config: as for ``render.rasterizer.secc``; only ``sampling='centre'``.

    Returns:
        [..., S, S, C]; with ``signed`` 2 * code - 1, background included. No gradient.
    """
    config = config or SeccConfig()
    if config.sampling != 'centre':
        raise ValueError(f"sampling={config.sampling!r}: on the device only 'centre' is drawn")
    vertices = jax.lax.stop_gradient(jnp.asarray(vertices, jnp.float32))
    lead = vertices.shape[:-2]

    def one(points):
        drawn = rasterize(to_screen(points, config), triangles, config.size, config.size)
        image = jnp.where(drawn.covered[..., None], drawn.interpolate(code, triangles), config.background)
        return 2 * image - 1 if config.signed else image

    flat = vertices.reshape(math.prod(lead), *vertices.shape[-2:])
    return jax.vmap(one)(flat).reshape(*lead, config.size, config.size, code.shape[-1])


def to_screen(points: jax.Array, config: SeccConfig) -> jax.Array:
    """Head points [..., 3] in decimetres -> (u right, v down, depth) of the fixed camera, pixels."""
    depth = config.camera_distance - points[..., 2]
    scale = config.size / 224
    u = scale * (config.focal * points[..., 0] / depth + config.centre)
    v = config.size - scale * (config.focal * points[..., 1] / depth + config.centre)
    return jnp.stack([u, v, depth], -1)
