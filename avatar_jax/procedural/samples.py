"""Samples of a picture: projection, rays, normals, SH light, and scaling down; shared by all versions of the looks."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from avatar_jax.procedural.mesh import SKIN, head_mesh

# Ramamoorthi constants of the lighting equation.
_A0C0, _A1C1, _A2C2 = 0.88622693, 1.77245385, 2.42703239
INITIAL_LIGHT = 0.8  # added to band 0
BLOCK = 1 << 15  # samples that are shaded at a time: their arrays stay in the cache


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the samples of a picture show, before it is scaled down.

    Attributes:
        rgb: [S * S, 3] float32. cover: [S * S] 1 where something is. distance: [S * S] along the ray, 0 where nothing
        is. part: [S * S] int8, -1 where nothing is. vertices: [V, 3] of the head, decimetre.
    """

    rgb: np.ndarray
    cover: np.ndarray
    distance: np.ndarray
    part: np.ndarray
    vertices: np.ndarray


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


def length(vectors: np.ndarray) -> np.ndarray:
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
    return out / np.maximum(length(out), 1e-12)[:, None]


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


def rays(label: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For every sample: unit direction to the camera [S*S, 3] and the length of the ray per unit of camera z [S*S]."""
    pose, k = split_label(label)
    place = (np.arange(side) + 0.5) / side
    y = (place - k[1, 2]) / k[1, 1]
    x_column, x_row = (place - k[0, 2]) / k[0, 0], -k[0, 1] / k[0, 0] * y
    right, down, forward = pose[:3, :3].T
    out = (x_column[:, None] * right)[None] + (x_row[:, None] * right + y[:, None] * down + forward)[:, None]
    out = out.astype(np.float32).reshape(-1, 3)
    stretch = length(out)
    out *= (-1 / stretch)[:, None]
    return out, stretch


def shrink(samples: np.ndarray, resolution: int, supersample: int) -> np.ndarray:
    """Sums [S*S, ...] samples over blocks of ``supersample`` x ``supersample``: [R, R, ...]."""
    s = samples.reshape(resolution, supersample, resolution, supersample, *samples.shape[1:])
    rows = s[:, 0].copy()
    for k in range(1, supersample):
        rows += s[:, k]
    out = rows[:, :, 0].copy()
    for k in range(1, supersample):
        out += rows[:, :, k]
    return out


def skin_tone(albedo: np.ndarray) -> np.ndarray:
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
