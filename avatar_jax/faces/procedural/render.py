"""Pictures of the procedural head: projection, rasterisation, painting, SH lighting, anti-aliasing."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from avatar_jax.faces.procedural.appearance import ambient, mean_albedo, paint, texture_basis
from avatar_jax.faces.procedural.expressions import EXPRESSION_DIM
from avatar_jax.faces.procedural.identity import IDENTITY_DIM, TEXTURE_DIM, split_identity
from avatar_jax.faces.procedural.mesh import EYE, head_mesh
from avatar_jax.faces.procedural.model import head_vertices, to_world
from avatar_jax.faces.procedural.style import decode_style
from avatar_jax.render.rasterizer import interpolate_flat, rasterize

# Ramamoorthi constants of the lighting equation.
_A0C0, _A1C1, _A2C2 = 0.88622693, 1.77245385, 2.42703239
INITIAL_LIGHT = 0.8  # added to band 0


def default_gamma() -> np.ndarray:
    """[27] gentle light from above and the image left, a little warm."""
    gamma = np.zeros((3, 9), np.float32)
    gamma[:, 0] = (.065, .055, .045)
    gamma[:, 1] = -.085
    gamma[:, 2] = .115
    gamma[:, 3] = (.060, .055, .050)
    gamma[:, 6] = .010
    return gamma.reshape(-1)


def sh_light(normals: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Light on unit normals [N, 3] from gamma [27] (channel-major): [N, 3]; the nine-band formula of the face model."""
    x, y, z = normals[:, 0], normals[:, 1], normals[:, 2]
    bands = np.empty((len(normals), 9), np.float32)
    bands[:, 0] = _A0C0
    bands[:, 1] = -_A1C1 * y
    bands[:, 2] = _A1C1 * z
    bands[:, 3] = -_A1C1 * x
    bands[:, 4] = _A2C2 * x * y
    bands[:, 5] = -_A2C2 * y * z
    bands[:, 6] = _A2C2 / (2 * np.sqrt(3)) * (3 * z * z - 1)
    bands[:, 7] = -_A2C2 * x * z
    bands[:, 8] = _A2C2 / 2 * (x * x - y * y)
    weights = np.asarray(gamma, np.float32).reshape(3, 9).copy()
    weights[:, 0] += INITIAL_LIGHT
    return bands @ weights.T


@functools.lru_cache(maxsize=1)
def _adjacency():
    m = head_mesh()
    corner = m.triangles.ravel()
    order = np.argsort(corner, kind='stable')
    used, start = np.unique(corner[order], return_index=True)
    return (order // 3).astype(np.int32), start, used


def vertex_normals(vertices: np.ndarray) -> np.ndarray:
    """[V, 3] float32 area-weighted unit normals of the head mesh."""
    m = head_mesh()
    t = m.triangles
    p = vertices[t[:, 0]]
    face_normal = np.cross(vertices[t[:, 1]] - p, vertices[t[:, 2]] - p)
    faces, start, used = _adjacency()
    out = np.zeros_like(vertices)
    out[used] = np.add.reduceat(face_normal[faces], start, axis=0)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


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


def render_head(identity: np.ndarray, expression: np.ndarray, camera_label: np.ndarray, gamma: np.ndarray | None = None,
                resolution: int = 128, supersample: int = 2, background=(1., 1., 1.)) -> HeadImage:
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
        raise ValueError(f'identity {identity.shape} and expression {expression.shape}: expected '
                         f'({IDENTITY_DIM},) and ({EXPRESSION_DIM},)')
    gamma = default_gamma() if gamma is None else np.asarray(gamma, np.float32)
    mesh = head_mesh()
    shape, texture, style_numbers = split_identity(identity)
    style = decode_style(style_numbers)
    vertices = head_vertices(shape, expression, style_numbers)
    side = resolution * supersample
    screen = project(to_world(vertices), camera_label, side, side)
    fragments = rasterize(screen, mesh.triangles, side, side, cull=~mesh.two_sided)
    hit = np.flatnonzero(fragments.face.ravel() >= 0)
    faces = fragments.face.ravel()[hit]
    weights = fragments.barycentric.reshape(-1, 3)[hit]

    albedo = mean_albedo(style_numbers) + (texture @ texture_basis().reshape(TEXTURE_DIM, -1)).reshape(-1, 3)
    normals = vertex_normals(vertices)
    attributes = np.concatenate([normals, albedo, mesh.canonical, ambient()[:, None]], 1).astype(np.float32)
    samples = interpolate_flat(attributes, mesh.triangles[faces], weights)
    part = mesh.face_part[faces]
    pose, k = split_label(camera_label)
    column, row = hit % side, hit // side
    ray_y = ((row + .5) / side - k[1, 2]) / k[1, 1]
    ray_x = ((column + .5) / side - k[0, 2] - k[0, 1] * ray_y) / k[0, 0]
    rays = np.stack([ray_x, ray_y, np.ones_like(ray_x)], 1).astype(np.float32)
    stretch = np.linalg.norm(rays, axis=1)

    normal = samples[:, :3]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    view = -(rays @ pose[:3, :3].T.astype(np.float32)) / stretch[:, None]
    two_sided = np.flatnonzero(mesh.two_sided[faces])
    away = two_sided[(normal[two_sided] * view[two_sided]).sum(1) < 0]
    normal[away] *= -1
    colour = np.clip(samples[:, 3:6], .01, 1)
    paint(colour, part, samples[:, 6:8], style)
    light = np.maximum(sh_light(normal, gamma), 0) * samples[:, 8:9]
    colour *= light
    _catch_light(colour, part, normal, view, gamma)
    np.clip(colour, 0, 1, out=colour)

    rgb = np.empty((side * side, 3), np.float32)
    rgb[:] = np.asarray(background, np.float32)
    rgb[hit] = colour
    cover = np.zeros(side * side, np.float32)
    cover[hit] = 1
    distance = np.zeros(side * side, np.float32)
    distance[hit] = fragments.depth.ravel()[hit] * stretch
    parts = np.full(side * side, -1, np.int8)
    parts[hit] = part
    blocks = (resolution, supersample, resolution, supersample)
    mask = cover.reshape(blocks).mean((1, 3))
    depth = distance.reshape(blocks).sum((1, 3)) / np.maximum(cover.reshape(blocks).sum((1, 3)), 1)
    marks = project(to_world(vertices[mesh.landmark_ids]), camera_label, resolution, resolution)[:, :2]
    return HeadImage(rgb.reshape(*blocks, 3).mean((1, 3)), mask, depth.astype(np.float32), marks.astype(np.float32),
                     parts.reshape(side, side)[supersample // 2::supersample, supersample // 2::supersample], vertices)


def _catch_light(colour, part, normal, view, gamma):
    """Adds the reflection of the main light on the wet eyes."""
    i = np.flatnonzero(part == EYE)
    if not len(i):
        return
    band = np.asarray(gamma, np.float32).reshape(3, 9)[:, 1:4].mean(0)
    light = np.array([-band[2], -band[0], band[1]]) + np.array([0., .02, .05])
    light /= max(np.linalg.norm(light), 1e-6)
    half = view[i] + light.astype(np.float32)
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-6)
    shine = np.clip((normal[i] * half).sum(1), 0, 1) ** 220
    colour[i] += (.85 * shine)[:, None]
