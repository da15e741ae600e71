"""Refinement on the pixels: light and albedo of a shot, then pose and expression of each frame.

The rasteriser says which points of the fitted head are seen, with the triangle and the weights of each. Where those
points fall in the picture is a differentiable function of pose and expression, and so is the colour that is read there;
what colour they should have follows from albedo and light. Light and albedo enter linearly: each is solved with the
other held. Visibility is taken from the fit before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.base import MorphableModel
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.faces.lighting import INITIAL_LIGHT, sh_basis, shade
from avatar_jax.faces.pose import rotation_matrix
from avatar_jax.render.rasterizer import area_weighted_normals, rasterize
from avatar_jax.track.camera import seen, to_translation
from avatar_jax.track.inputs import FrameSource
from avatar_jax.track.landmark_model import LandmarkModel
from avatar_jax.track.placing import crop_poses, project_clip
from avatar_jax.track.track import Track, TrackConfig

POINTS = 900  # surface points whose colours are compared
SIDE = 144  # of the square around the face on which it is done
SIGMA_COLOUR = 0.10  # of colours 0..1: what a smooth albedo leaves unexplained
_ROBUST = 2.0
_KEYS = 4  # frames from which light and albedo are solved
_KEEP = (0.5, np.array([0.03, 0.03, 0.03, 0.004, 0.004, 0.01]))  # how far whitened expressions and poses may be moved


@dataclasses.dataclass(frozen=True)
class Surface:
    """Visible points of a fitted head in one frame.

    Attributes:
        corners: [P,3] vertex ids. weights: [P,3]. normals: [P,3] in camera directions. colours: [P,3] seen, 0..1.
        image: [SIDE,SIDE,3] float32, 0..1, a little blurred. low: [2] its corner in the picture; scale: its pixels per
            pixel of the picture.
    """

    corners: np.ndarray
    weights: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    image: np.ndarray
    low: np.ndarray
    scale: float


def face_triangles(model: MorphableModel, vertices: np.ndarray) -> np.ndarray:
    """[F] bool: triangles of the face between the landmarks (no hair, neck or clothes); mouth and eyes are left out."""
    marks = np.asarray(model.landmark_ids)
    low, high = vertices[marks].min(0), vertices[marks].max(0)
    inside = ((vertices > low) & (vertices < high + [0, 0.1, 0.5])).all(1)
    triangles = np.asarray(model.triangles)
    centre = vertices[triangles].mean(1)[:, :2]
    keep = inside[triangles].all(1)
    for points in (slice(36, 42), slice(42, 48), slice(60, 68)):
        outline = vertices[marks[points]][:, :2]
        middle, reach = outline.mean(0), 1.15 * np.maximum(np.ptp(outline, axis=0) / 2, 0.03)
        keep &= (((centre - middle) / reach) ** 2).sum(1) > 1
    return keep


def surface(
    pixels: np.ndarray,
    vertices: np.ndarray,
    model: MorphableModel,
    pose: np.ndarray,
    focal: float,
    size: tuple[int, int],
    keep: np.ndarray,
    seed: int = 0,
) -> Surface | None:
    """The visible points of a head in a frame; None when too little of it is seen."""
    import cv2

    centre = np.array(size) / 2
    place = project_clip(vertices[None], pose[None], focal, centre)[0]
    marks = place[np.asarray(model.landmark_ids)]
    middle, reach = marks.mean(0), 0.75 * np.ptp(marks, axis=0).max()
    low, scale = middle - reach, SIDE / (2 * reach)
    matrix = np.array([[scale, 0, -scale * low[0] + (scale - 1) / 2], [0, scale, -scale * low[1] + (scale - 1) / 2]])
    if scale < 0.8:
        pixels = cv2.GaussianBlur(pixels, (0, 0), 0.5 / scale)
    image = cv2.warpAffine(pixels, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    image = cv2.GaussianBlur(image.astype(np.float32) / 255, (0, 0), 1.0)
    turned = vertices @ rotation_matrix(pose[:3].astype(np.float64))
    depth = np.exp(pose[5]) - turned[:, 2]
    screen = np.concatenate([(place - low) * scale, depth[:, None]], 1)
    triangles = np.asarray(model.triangles)
    fragments = rasterize(screen, triangles, SIDE, SIDE, cull=True)
    hit = fragments.covered & keep[np.maximum(fragments.face, 0)]
    rows, columns = np.nonzero(hit)
    inside = ((rows + 0.5) / scale + low[1] < size[1]) & ((columns + 0.5) / scale + low[0] < size[0])
    inside &= ((rows + 0.5) / scale + low[1] > 0) & ((columns + 0.5) / scale + low[0] > 0)
    rows, columns = rows[inside], columns[inside]
    if len(rows) < POINTS // 4:
        return None
    pick = np.random.default_rng(seed).choice(len(rows), POINTS, replace=len(rows) < POINTS)
    rows, columns = rows[pick], columns[pick]
    corners, weights = triangles[fragments.face[rows, columns]], fragments.barycentric[rows, columns]
    normals = area_weighted_normals(turned, triangles)
    normal = np.einsum('pk,pkd->pd', weights, normals[corners])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    return Surface(corners, weights, normal.astype(np.float32), image[rows, columns], image, low, scale)


def light_and_albedo(surfaces: list[Surface], model: MorphableModel, rounds: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """(gamma [27], texture [num_tex]) that explain the colours of the surfaces, by alternating least squares."""
    texture, gamma = np.zeros(model.num_tex, np.float32), np.zeros(27, np.float32)
    base = np.asarray(model.albedo(texture))
    shapes = (
        np.zeros((0, *base.shape))
        if not model.num_tex
        else np.stack([np.asarray(model.albedo(row)) - base for row in np.eye(model.num_tex, dtype=np.float32)])
    )
    at = [np.einsum('pk,pkd->pd', s.weights, base[s.corners]) for s in surfaces]
    mean = np.concatenate(at)
    moved = np.concatenate([np.einsum('pk,tpkd->tpd', s.weights, shapes[:, s.corners]) for s in surfaces], 1)
    bands = sh_basis(np.concatenate([s.normals for s in surfaces]))
    colours = np.concatenate([s.colours for s in surfaces]).astype(np.float64)
    weight = np.ones(len(colours))
    spread = np.array([0.5] + [0.2] * 3 + [0.08] * 5)  # of light
    for _ in range(rounds):
        albedo = np.clip(mean + np.tensordot(texture, moved, 1), 0.02, 1.5)
        light = np.zeros((3, 9))
        for c in range(3):
            rows = bands * albedo[:, c, None]
            target = colours[:, c] - rows @ np.array(INITIAL_LIGHT)
            w = weight / SIGMA_COLOUR**2
            light[c] = np.linalg.solve(
                (rows * w[:, None]).T @ rows + np.diag(1 / spread**2), (rows * w[:, None]).T @ target
            )
        gamma = light.reshape(27).astype(np.float32)
        shading = bands @ (light + np.array(INITIAL_LIGHT)).T
        if model.num_tex:
            rows = (moved * shading).transpose(1, 2, 0).reshape(-1, model.num_tex)
            target = (colours - mean * shading).reshape(-1)
            # Neighbouring points err alike: so many colours count as far fewer.
            w = np.repeat(weight, 3) / SIGMA_COLOUR**2 / 20
            texture = np.linalg.solve(
                (rows * w[:, None]).T @ rows + np.eye(model.num_tex), (rows * w[:, None]).T @ target
            )
        error = colours - np.clip(mean + np.tensordot(texture, moved, 1), 0.02, 1.5) * shading
        weight = 1 / (1 + (error**2).sum(1) / (_ROBUST * SIGMA_COLOUR) ** 2)
    return gamma, texture.astype(np.float32)


def _bilinear(image: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Colours [P,3] at pixel positions (integers at pixel centres), clamped to the image."""
    x, y = jnp.clip(x, 0, image.shape[1] - 1.001), jnp.clip(y, 0, image.shape[0] - 1.001)
    x0, y0 = jnp.floor(x).astype(int), jnp.floor(y).astype(int)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    top = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    bottom = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


@partial(jax.jit, static_argnames='iterations')
def _refine_frame(
    landmark_model: LandmarkModel,
    identity,
    local,
    focal,
    centre,
    points,
    sigma,
    base,
    moving,
    wanted,
    image,
    low,
    scale,
    iterations: int = 8,
):
    """Whitened expression and pose [E+6]; ``base`` [P,3] and ``moving`` [E,P,3] are the surface points."""
    start = local
    shape = landmark_model.mean + jnp.tensordot(identity, landmark_model.identity, 1)
    keep = jnp.concatenate([jnp.full(landmark_model.num_expression, _KEEP[0]), jnp.asarray(_KEEP[1])])
    known = jnp.isfinite(sigma) & (sigma > 0)

    def residuals(local):
        expression, pose = (
            landmark_model.unwhiten(local[: landmark_model.num_expression]),
            local[landmark_model.num_expression :],
        )
        marks = seen(shape + jnp.tensordot(expression, landmark_model.expression, 1), pose, focal, centre)
        error = jnp.where(known[:, None], (marks - points) / jnp.where(known, sigma, 1.0)[:, None], 0.0)
        error = error * jax.lax.rsqrt(1 + jax.lax.stop_gradient((error**2).sum(-1, keepdims=True)) / 9)
        place = (seen(base + jnp.tensordot(expression, moving, 1), pose, focal, centre) - low) * scale - 0.5
        colour = (_bilinear(image, place[:, 0], place[:, 1]) - wanted) / SIGMA_COLOUR
        colour = colour * jax.lax.rsqrt(1 + jax.lax.stop_gradient((colour**2).sum(-1, keepdims=True)) / _ROBUST**2)
        return jnp.concatenate([error.ravel(), colour.ravel() * (200 / POINTS) ** 0.5, (local - start) / keep])

    def step(carry, _):
        local, damping, best = carry
        r, jacobian = residuals(local), jax.jacfwd(residuals)(local)
        h = jacobian.T @ jacobian
        h = h + jnp.diag(damping * jnp.diagonal(h) + 1e-6)
        trial = local - jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(h), jacobian.T @ r)
        value = jnp.sum(residuals(trial) ** 2)
        good = value < best
        return (
            jnp.where(good, trial, local),
            jnp.where(good, damping * 0.3, damping * 6),
            jnp.where(good, value, best),
        ), None

    begin = (local, jnp.float32(1e-2), jnp.sum(residuals(local) ** 2))
    return jax.lax.scan(step, begin, None, iterations)[0][0]


def _full(values: np.ndarray, width: int) -> np.ndarray:
    out = np.zeros(width, np.float32)
    out[: min(width, len(values))] = values[:width]
    return out


def refine(
    track: Track,
    frames: FrameSource,
    model: MorphableModel,
    landmark_model: LandmarkModel,
    config: TrackConfig,
    on_frame: Callable[[], None] = lambda: None,
) -> Track:
    """The track with expression and pose refined on the pixels, and light and albedo of each shot.

    Args:
        frames: the input again; can be iterated twice.
    """
    e = landmark_model.num_expression
    expression, pose = np.array(track.expression), np.array(track.pose)
    gammas, textures = np.zeros((len(track.identity), 27), np.float32), np.zeros((len(track.identity), 80), np.float32)
    keys = _key_frames(track)
    keep, surfaces = {}, {s: [] for s in range(len(track.identity))}

    def head(i):
        return np.asarray(
            model.vertices(
                _full(track.identity[track.segment[i]], model.num_id), _full(track.expression[i], model.num_exp)
            )
        )

    def look(frame, i):
        s = track.segment[i]
        vertices = head(i)
        if s not in keep:
            keep[s] = face_triangles(model, vertices)
        return vertices, surface(frame.pixels, vertices, model, track.pose[i], track.focal[s], track.size, keep[s], i)

    for frame in frames:
        if frame.index in keys:
            found = look(frame, frame.index)[1]
            if found is not None:
                surfaces[int(track.segment[frame.index])].append(found)
    lit = {}
    for s, views in surfaces.items():
        if views:
            gamma, texture = light_and_albedo(views, model)
            gammas[s], textures[s, : len(texture)] = gamma, texture[:80]
            lit[s] = np.asarray(model.albedo(texture)), gamma
    for frame in frames:
        i = frame.index
        if i >= track.num_frames:
            break
        s = int(track.segment[i])
        if track.valid[i] and track.found[i] and s in lit:
            vertices, found = look(frame, i)
            if found is not None:
                z = np.asarray(landmark_model.whiten(jnp.asarray(track.expression[i, :e])))
                local = _one(landmark_model, track, i, z, found, vertices, model, lit[s])
                expression[i, :e], pose[i] = np.asarray(landmark_model.unwhiten(local[:e])), np.asarray(local[e:])
        on_frame()
    return _rebuilt(track, expression, pose, landmark_model, config, gammas, textures)


def _key_frames(track: Track) -> set[int]:
    """A few measured frames of each shot, spread over it."""
    keys: set[int] = set()
    for s in range(len(track.identity)):
        rows = np.flatnonzero((track.segment == s) & track.found & track.valid)
        if len(rows):
            keys |= {int(rows[k]) for k in np.unique(np.linspace(0, len(rows) - 1, _KEYS).astype(int))}
    return keys


def _one(landmark_model, track, i, z, found: Surface, vertices: np.ndarray, model, lit) -> jax.Array:
    """Refined local numbers [E+6] of one frame."""
    albedo, gamma = lit
    s, e = track.segment[i], landmark_model.num_expression
    here = np.einsum('pk,pkd->pd', found.weights, vertices[found.corners])
    used, index = np.unique(found.corners, return_inverse=True)
    moving = np.einsum('pk,epkd->epd', found.weights, _moving(model, e, used)[:, index.reshape(found.corners.shape)])
    base = here - np.tensordot(track.expression[i, :e], moving, 1)
    wanted = np.clip(shade(np.einsum('pk,pkd->pd', found.weights, albedo[found.corners]), found.normals, gamma), 0, 1)
    local = np.concatenate([z, track.pose[i]])
    arrays = (
        track.identity[s],
        local,
        track.focal[s],
        np.array(track.size) / 2,
        track.landmarks[i] + 0.5,
        track.sigma[i],
        base,
        moving,
        wanted,
        found.image,
        found.low,
        found.scale,
    )
    return _refine_frame(landmark_model, *(jnp.asarray(a, jnp.float32) for a in arrays))


def _moving(model: MorphableModel, count: int, vertices: np.ndarray) -> np.ndarray:
    """[E,N,3] displacement of some vertices by each expression number."""
    zero = np.zeros(model.num_id, np.float32)
    rest = np.asarray(model.vertices(zero, np.zeros(model.num_exp, np.float32)))[vertices]
    rows = np.eye(model.num_exp, dtype=np.float32)[:count]
    return np.stack([np.asarray(model.vertices(zero, row))[vertices] - rest for row in rows])


def _rebuilt(track: Track, expression, pose, landmark_model, config: TrackConfig, gammas, textures) -> Track:
    """The track with other expressions and poses: fitted landmarks, crop poses and labels follow."""
    e = landmark_model.num_expression
    shape = np.asarray(landmark_model.mean) + np.tensordot(track.identity, np.asarray(landmark_model.identity), 1)
    points = shape[track.segment] + np.tensordot(expression[:, :e], np.asarray(landmark_model.expression), 1)
    centre = np.array(track.size) / 2
    fitted = (
        np.concatenate(
            [
                project_clip(points[i : i + 1], pose[i : i + 1], track.focal[track.segment[i]], centre)
                for i in range(track.num_frames)
            ]
        )
        - 0.5
    )
    m = track.matrices
    in_crop = np.einsum('tij,tnj->tni', m[..., :2], fitted) + m[:, None, :, 2] + 0.5
    angle, translation = to_translation(crop_poses(points, in_crop, pose, config.size))
    angle, translation = (np.where(track.valid[:, None], v, 0).astype(np.float32) for v in (angle, translation))
    labels = label_from_pose(angle, translation, config.label_mode).astype(np.float32)
    return dataclasses.replace(
        track,
        expression=expression,
        pose=pose,
        fitted=fitted.astype(np.float32),
        angle=angle,
        translation=translation,
        labels=labels,
        gamma=gammas,
        texture=textures,
        notes=[*track.notes, 'refined on the pixels'],
    )
