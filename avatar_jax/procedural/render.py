"""Pictures of the procedural head: rasterisation, painting, lighting, anti-aliasing, in any version of the looks."""

from __future__ import annotations

import dataclasses

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.procedural.appearance import ambient, mean_albedo, paint, texture_basis
from avatar_jax.procedural.expressions import EXPRESSION_DIM
from avatar_jax.procedural.identity import IDENTITY_DIM, TEXTURE_DIM, split_identity
from avatar_jax.procedural.looks.draw import draw_samples
from avatar_jax.procedural.looks.traits import VERSIONS, KeyLight, Looks, draw_key_light, draw_looks
from avatar_jax.procedural.mesh import EYE, head_mesh
from avatar_jax.procedural.model import head_vertices, to_world
from avatar_jax.procedural.samples import (
    BLOCK,
    Samples,
    default_gamma,
    length,
    project,
    rays,
    sh_light,
    shrink,
    skin_tone,
    vertex_normals,
)
from avatar_jax.procedural.style import decode_style
from avatar_jax.render.rasterizer import interpolate_flat, visible


@dataclasses.dataclass(frozen=True)
class HeadImage:
    """One picture of a head.

    Attributes:
        rgb: [H, W, 3] float32, 0..1.
        mask: [H, W] float32, how much of each pixel the head (with hair, clothes, glasses and hat) covers, 0..1.
        depth: [H, W] float32 distance from the camera along the ray, EG3D units; 0 where nothing is. Clear lenses
            count only where nothing is behind them, dark ones everywhere.
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
    looks: int | Looks = 1,
    key_light: KeyLight | None = None,
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
        looks: version of the looks: 1, or 2 with the traits that belong to the identity; or traits of version 2.
        key_light: of version 2; None: the one that belongs to ``gamma``.

    Returns:
        HeadImage.

    Raises:
        UserError: unknown version of the looks.
    """
    identity, expression = np.asarray(identity, np.float32), np.asarray(expression, np.float32)
    if identity.shape != (IDENTITY_DIM,) or expression.shape != (EXPRESSION_DIM,):
        raise ValueError(
            f'identity {identity.shape} and expression {expression.shape}: expected '
            f'({IDENTITY_DIM},) and ({EXPRESSION_DIM},)'
        )
    gamma = default_gamma() if gamma is None else np.asarray(gamma, np.float32)
    side = resolution * supersample
    if not isinstance(looks, Looks):
        check_looks(looks)
    if isinstance(looks, int) and looks == 1:
        samples = _draw_plain(identity, expression, camera_label, gamma, side, background)
    else:
        traits = looks if isinstance(looks, Looks) else draw_looks(identity)
        light = draw_key_light(gamma) if key_light is None else key_light
        samples = draw_samples(identity, expression, camera_label, gamma, side, background, traits, light)
    n = shrink(samples.cover, resolution, supersample)
    depth = shrink(samples.distance, resolution, supersample) / np.maximum(n, 1)
    mask = n / supersample**2
    rgb = shrink(samples.rgb, resolution, supersample) / supersample**2
    vertices = samples.vertices
    marks = project(to_world(vertices[head_mesh().landmark_ids]), camera_label, resolution, resolution)[:, :2]
    return HeadImage(
        rgb,
        mask,
        depth.astype(np.float32),
        marks.astype(np.float32),
        samples.part.reshape(side, side)[supersample // 2 :: supersample, supersample // 2 :: supersample],
        vertices,
    )


def check_looks(version: int, name: str = 'looks') -> None:
    """Raises UserError if there is no such version of the looks; ``name``: of the option."""
    if version not in VERSIONS:
        raise UserError(f'{name} {version!r}: unknown version; use one of {", ".join(map(str, VERSIONS))}')


def _draw_plain(identity, expression, camera_label, gamma, side: int, background) -> Samples:
    """The samples of version 1."""
    mesh = head_mesh()
    shape, texture, style_numbers = split_identity(identity)
    style = decode_style(style_numbers)
    vertices = head_vertices(shape, expression, style_numbers)
    screen = project(to_world(vertices), camera_label, side, side)
    hits, face, weight, depth_z = visible(screen, mesh.triangles, side, side, cull=~mesh.two_sided)
    albedo = mean_albedo(style_numbers) + (texture @ texture_basis().reshape(TEXTURE_DIM, -1)).reshape(-1, 3)
    attributes = np.concatenate(
        [vertex_normals(vertices), albedo, mesh.canonical, np.abs(mesh.azimuth)[:, None], ambient()[:, None]], 1
    ).astype(np.float32)
    towards, stretch = rays(camera_label, side)
    rgb = np.empty((side * side, 3), np.float32)
    rgb[:] = np.asarray(background, np.float32)
    cover = np.zeros(side * side, np.float32)
    distance = np.zeros(side * side, np.float32)
    parts = np.full(side * side, -1, np.int8)
    for first in range(0, len(hits), BLOCK):
        block = slice(first, first + BLOCK)
        hit, faces = hits[block], face[block]
        part = mesh.face_part[faces]
        samples = interpolate_flat(attributes, mesh.triangles[faces], weight[block])
        view = towards[hit]
        normal = samples[:, :3]
        normal /= np.maximum(length(normal), 1e-6)[:, None]
        two_sided = np.flatnonzero(mesh.two_sided[faces])
        away = two_sided[np.einsum('nd,nd->n', normal[two_sided], view[two_sided]) < 0]
        normal[away] *= -1
        colour = np.clip(samples[:, 3:6], 0.01, 1)
        paint(colour, part, samples[:, 6:9], style, skin_tone(albedo))
        colour *= np.maximum(sh_light(normal, gamma), 0) * samples[:, 9:10]
        _shine(colour, part, normal, view, gamma)
        rgb[hit] = np.clip(colour, 0, 1)
        cover[hit], distance[hit], parts[hit] = 1, depth_z[block] * stretch[hit], part
    return Samples(rgb, cover, distance, parts, vertices)


def _shine(colour, part, normal, view, gamma):
    """Adds the reflection of the main light: sharp on the wet eyes, teeth and tongue, faint and wide on skin."""
    band = np.asarray(gamma, np.float32).reshape(3, 9)[:, 1:4].mean(0)
    light = np.array([-band[2], -band[0], band[1]]) + np.array([0.0, 0.02, 0.05])
    light /= max(np.linalg.norm(light), 1e-6)
    half = view + light.astype(np.float32)
    dot = np.einsum('nd,nd->n', normal, half) / np.maximum(length(half), 1e-6)
    dot = np.clip(dot, 0, 1)
    power = dot * dot
    power *= power
    power *= power
    power *= power  # 16
    colour += (_GLOSS[part] * power)[:, None]
    i = np.flatnonzero(part == EYE)
    colour[i] += (0.85 * dot[i] ** 220)[:, None]


_GLOSS = np.array([0.050, 0.05, 0.0, 0.10, 0.12, 0.03, 0.03, 0.0], np.float32)
