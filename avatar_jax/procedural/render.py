"""Pictures of the procedural head: projection, rasterisation, painting, SH lighting, anti-aliasing."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from avatar_jax.procedural.appearance import ambient, mean_albedo, paint, texture_basis
from avatar_jax.procedural.expressions import EXPRESSION_DIM
from avatar_jax.procedural.identity import IDENTITY_DIM, TEXTURE_DIM, split_identity
from avatar_jax.procedural.mesh import EYE, SKIN, head_mesh
from avatar_jax.procedural.model import head_vertices, to_world
from avatar_jax.procedural.style import decode_style
from avatar_jax.render.rasterizer import interpolate_flat, visible

# Ramamoorthi constants of the lighting equation.
_A0C0, _A1C1, _A2C2 = 0.88622693, 1.77245385, 2.42703239
INITIAL_LIGHT = 0.8  # added to band 0
_BLOCK = 1 << 15  # samples that are shaded at a time: their arrays stay in the cache


def default_gamma() -> np.ndarray:
    """[27] gentle light from above and the image left, a little warm."""
    gamma = np.zeros((3, 9), np.float32)
    gamma[:, 0] = (0.065, 0.055, 0.045)
    gamma[:, 1] = -0.085
    gamma[:, 2] = 0.115
    gamma[:, 3] = (0.060, 0.055, 0.050)
    gamma[:, 6] = 0.010
    return gamma.reshape(-1)


def sh_light(normals: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Light on unit normals [N, 3] from gamma [27] (channel-major): [N, 3]; the nine-band formula of the face model."""
    x, y, z = np.ascontiguousarray(normals.T)
    bands = np.empty((9, len(normals)), np.float32)
    bands[0] = _A0C0
    np.multiply(y, -_A1C1, out=bands[1])
    np.multiply(z, _A1C1, out=bands[2])
    np.multiply(x, -_A1C1, out=bands[3])
    np.multiply(_A2C2 * x, y, out=bands[4])
    np.multiply(-_A2C2 * y, z, out=bands[5])
    bands[6] = _A2C2 / (2 * np.sqrt(3)) * (3 * z * z - 1)
    np.multiply(-_A2C2 * x, z, out=bands[7])
    bands[8] = _A2C2 / 2 * (x * x - y * y)
    weights = np.asarray(gamma, np.float32).reshape(3, 9).copy()
    weights[:, 0] += INITIAL_LIGHT
    return (weights @ bands).T


@functools.lru_cache(maxsize=1)
def _adjacency():
    m = head_mesh()
    corner = m.triangles.ravel()
    order = np.argsort(corner, kind='stable')
    used, start = np.unique(corner[order], return_index=True)
    return (order // 3).astype(np.int32), start, used


def _length(vectors: np.ndarray) -> np.ndarray:
    """[N] lengths of [N, 3]."""
    return np.sqrt(np.einsum('nd,nd->n', vectors, vectors))


def vertex_normals(vertices: np.ndarray) -> np.ndarray:
    """[V, 3] float32 area-weighted unit normals of the head mesh."""
    m = head_mesh()
    t = m.triangles
    p, q, r = (vertices[t[:, k]].T for k in range(3))
    (ax, ay, az), (bx, by, bz) = q - p, r - p
    face_normal = np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], 1)
    faces, start, used = _adjacency()
    out = np.zeros_like(vertices)
    out[used] = np.add.reduceat(face_normal[faces], start, axis=0)
    return out / np.maximum(_length(out), 1e-12)[:, None]


def split_label(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """EG3D camera label [25] to (camera-to-world [4, 4], normalised intrinsics [3, 3])."""
    label = np.asarray(label, np.float64)
    if label.shape != (25,):
        raise ValueError(f'camera label: expected 25 numbers, got shape {label.shape}')
    return label[:16].reshape(4, 4), label[16:].reshape(3, 3)


def project(world: np.ndarray, label: np.ndarray, height: int, width: int) -> np.ndarray:
    """World points [N, 3] to (u right, v down, camera z): [N, 3]; u and v in pixels, pixel (i, j) centred at +0.5."""
    pose, k = split_label(label)
    camera = (world - pose[:3, 3]) @ pose[:3, :3]
    x, y, z = camera.T
    u = (k[0, 0] * x + k[0, 1] * y) / z + k[0, 2]
    v = k[1, 1] * y / z + k[1, 2]
    return np.stack([u * width, v * height, z], 1)


@dataclasses.dataclass(frozen=True)
class HeadImage:
    """One picture of a head.

    Attributes:
        rgb: [H, W, 3] float32, 0..1.
        mask: [H, W] float32, how much of each pixel the head (with hair and clothes) covers, 0..1.
        depth: [H, W] float32 distance from the camera along the ray, EG3D units; 0 where nothing is.
        landmarks: [68, 2] float32 (u right, v down) pixels; the centre of the first pixel is at 0.5.
        part: [H, W] int8 part of the nearest sample (``mesh.PART_NAMES``), -1 where nothing is.
        vertices: [V, 3] float32 decimetre.
    """

    rgb: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    landmarks: np.ndarray
    part: np.ndarray
    vertices: np.ndarray


def render_head(
    identity: np.ndarray,
    expression: np.ndarray,
    camera_label: np.ndarray,
    gamma: np.ndarray | None = None,
    resolution: int = 128,
    supersample: int = 2,
    background=(1.0, 1.0, 1.0),
) -> HeadImage:
    """Draws a head.

    Args:
        identity: [192] (``sample_identity``).
        expression: [64] (``EXPRESSION_NAMES``).
        camera_label: [25] EG3D label: camera-to-world (OpenCV axes) and normalised intrinsics.
        gamma: [27] SH lighting, ``default_gamma()`` if None. The light stands still with respect to the head.
        resolution: side of the image in pixels.
        supersample: samples per pixel along each axis.
        background: colour, RGB 0..1.

    Returns:
        HeadImage.
    """
    identity, expression = np.asarray(identity, np.float32), np.asarray(expression, np.float32)
    if identity.shape != (IDENTITY_DIM,) or expression.shape != (EXPRESSION_DIM,):
        raise ValueError(
            f'identity {identity.shape} and expression {expression.shape}: expected '
            f'({IDENTITY_DIM},) and ({EXPRESSION_DIM},)'
        )
    gamma = default_gamma() if gamma is None else np.asarray(gamma, np.float32)
    mesh = head_mesh()
    shape, texture, style_numbers = split_identity(identity)
    style = decode_style(style_numbers)
    vertices = head_vertices(shape, expression, style_numbers)
    side = resolution * supersample
    screen = project(to_world(vertices), camera_label, side, side)
    hits, face, weight, depth_z = visible(screen, mesh.triangles, side, side, cull=~mesh.two_sided)
    albedo = mean_albedo(style_numbers) + (texture @ texture_basis().reshape(TEXTURE_DIM, -1)).reshape(-1, 3)
    attributes = np.concatenate(
        [vertex_normals(vertices), albedo, mesh.canonical, np.abs(mesh.azimuth)[:, None], ambient()[:, None]], 1
    ).astype(np.float32)
    towards, stretch = _rays(camera_label, side)
    rgb = np.empty((side * side, 3), np.float32)
    rgb[:] = np.asarray(background, np.float32)
    cover = np.zeros(side * side, np.float32)
    distance = np.zeros(side * side, np.float32)
    parts = np.full(side * side, -1, np.int8)
    for first in range(0, len(hits), _BLOCK):
        block = slice(first, first + _BLOCK)
        hit, faces = hits[block], face[block]
        part = mesh.face_part[faces]
        samples = interpolate_flat(attributes, mesh.triangles[faces], weight[block])
        view = towards[hit]
        normal = samples[:, :3]
        normal /= np.maximum(_length(normal), 1e-6)[:, None]
        two_sided = np.flatnonzero(mesh.two_sided[faces])
        away = two_sided[np.einsum('nd,nd->n', normal[two_sided], view[two_sided]) < 0]
        normal[away] *= -1
        colour = np.clip(samples[:, 3:6], 0.01, 1)
        paint(colour, part, samples[:, 6:9], style, _skin_tone(albedo))
        colour *= np.maximum(sh_light(normal, gamma), 0) * samples[:, 9:10]
        _shine(colour, part, normal, view, gamma)
        rgb[hit] = np.clip(colour, 0, 1)
        cover[hit], distance[hit], parts[hit] = 1, depth_z[block] * stretch[hit], part
    n = _shrink(cover, resolution, supersample)
    depth = _shrink(distance, resolution, supersample) / np.maximum(n, 1)
    mask = n / supersample**2
    rgb = _shrink(rgb, resolution, supersample) / supersample**2
    marks = project(to_world(vertices[mesh.landmark_ids]), camera_label, resolution, resolution)[:, :2]
    return HeadImage(
        rgb,
        mask,
        depth.astype(np.float32),
        marks.astype(np.float32),
        parts.reshape(side, side)[supersample // 2 :: supersample, supersample // 2 :: supersample],
        vertices,
    )


def _rays(label: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For every sample: unit direction to the camera [S*S, 3] and the length of the ray per unit of camera z [S*S]."""
    pose, k = split_label(label)
    place = (np.arange(side) + 0.5) / side
    y = (place - k[1, 2]) / k[1, 1]
    x_column, x_row = (place - k[0, 2]) / k[0, 0], -k[0, 1] / k[0, 0] * y
    right, down, forward = pose[:3, :3].T
    rays = (x_column[:, None] * right)[None] + (x_row[:, None] * right + y[:, None] * down + forward)[:, None]
    rays = rays.astype(np.float32).reshape(-1, 3)
    stretch = _length(rays)
    rays *= (-1 / stretch)[:, None]
    return rays, stretch


def _shrink(samples: np.ndarray, resolution: int, supersample: int) -> np.ndarray:
    """Sums [S*S, ...] samples over blocks of ``supersample`` x ``supersample``: [R, R, ...]."""
    s = samples.reshape(resolution, supersample, resolution, supersample, *samples.shape[1:])
    rows = s[:, 0].copy()
    for k in range(1, supersample):
        rows += s[:, k]
    out = rows[:, :, 0].copy()
    for k in range(1, supersample):
        out += rows[:, :, k]
    return out


def _skin_tone(albedo: np.ndarray) -> np.ndarray:
    """[3] colour of the lowest skin in front, for what the clothes leave open."""
    return albedo[_throat()]


@functools.lru_cache(maxsize=1)
def _throat() -> int:
    p = head_mesh().positions
    return int(
        np.argmin(
            np.square(p[:, 0]) + np.square(p[:, 1] + 1.0) + np.square(p[:, 2] + 0.17) + 10 * (head_mesh().part != SKIN)
        )
    )


def _shine(colour, part, normal, view, gamma):
    """Adds the reflection of the main light: sharp on the wet eyes, teeth and tongue, faint and wide on skin."""
    band = np.asarray(gamma, np.float32).reshape(3, 9)[:, 1:4].mean(0)
    light = np.array([-band[2], -band[0], band[1]]) + np.array([0.0, 0.02, 0.05])
    light /= max(np.linalg.norm(light), 1e-6)
    half = view + light.astype(np.float32)
    dot = np.einsum('nd,nd->n', normal, half) / np.maximum(_length(half), 1e-6)
    dot = np.clip(dot, 0, 1)
    power = dot * dot
    power *= power
    power *= power
    power *= power  # 16
    colour += (_GLOSS[part] * power)[:, None]
    i = np.flatnonzero(part == EYE)
    colour[i] += (0.85 * dot[i] ** 220)[:, None]


_GLOSS = np.array([0.050, 0.05, 0.0, 0.10, 0.12, 0.03, 0.03, 0.0], np.float32)
