"""Identity: 80 shape, 80 texture and 32 style numbers, all N(0, 1), and what they mean for shape.

``sample_identity`` draws them from a counter-based generator (Philox) keyed by the split and the seed, through an
explicit Box-Muller transform, so the same seed gives the same person on any machine and NumPy version.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.procedural import surface as face
from avatar_jax.procedural.curves import step
from avatar_jax.procedural.mesh import EAR, EYE, HAIR, MOUTH, SKIN, head_mesh
from avatar_jax.procedural.skin import lid_motion

SHAPE_DIM, TEXTURE_DIM, STYLE_DIM = 80, 80, 32
IDENTITY_DIM = SHAPE_DIM + TEXTURE_DIM + STYLE_DIM
SPLITS = ('train', 'val', 'test')


class Identity(NamedTuple):
    """The three blocks of an identity vector."""

    shape: np.ndarray
    texture: np.ndarray
    style: np.ndarray


def split_identity(identity) -> Identity:
    """Splits [..., 192] into shape [..., 80], texture [..., 80], style [..., 32]; NumPy or JAX."""
    if identity.shape[-1] != IDENTITY_DIM:
        raise ValueError(f'an identity has {IDENTITY_DIM} numbers, not {identity.shape[-1]}')
    return Identity(identity[..., :80], identity[..., 80:160], identity[..., 160:])


def normals(key: tuple[int, ...], count: int) -> np.ndarray:
    """``count`` N(0, 1) numbers, float64, that depend on ``key`` alone (Philox counter, Box-Muller)."""
    raw = np.random.Philox(np.random.SeedSequence(key)).random_raw(2 * ((count + 1) // 2))
    u = (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-u[::2]))
    angle = 2 * np.pi * u[1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()[:count]


def sample_identity(seed: int, split: str = 'train') -> np.ndarray:
    """A person: [192] float32 ~ N(0, I). The splits never share a person.

    Raises:
        UserError: unknown split or negative seed.
    """
    if split not in SPLITS:
        raise UserError(f'split {split!r}: unknown; use one of {", ".join(SPLITS)}')
    if seed < 0:
        raise UserError(f'seed {seed}: must not be negative')
    return normals((0x4EAD, SPLITS.index(split), seed), IDENTITY_DIM).astype(np.float32)


class _Shape:
    """Displacement fields of the neutral head, evaluated where rigid things (eyes) stay rigid."""

    def __init__(self):
        m = head_mesh()
        self.mesh = m
        p = m.positions.astype(np.float64).copy()
        self.rest = p.copy()
        centre = np.stack([np.sign(p[:, 0]) * face.EYE_X, np.full(len(p), face.EYE_Y), np.full(len(p), face.EYE_Z)], -1)
        rho = np.hypot(np.abs(p[:, 0]) - face.EYE_X, p[:, 1] - face.EYE_Y)
        on_face = (m.part == SKIN) & (np.cos(m.azimuth) > 0.2)
        near = np.where(on_face, step(0.34, 0.17, rho), 0)
        near[(m.part == EYE) | (m.eye != 0)] = 1
        self.near_eye, self.centre = near, centre
        p = p + near[:, None] * (centre + np.array([0, 0, 0.14]) - p)
        # Hair and ears go with the skull under them; the clothes only with the neck.
        ear = m.part == EAR
        p[ear] = np.stack([np.sign(p[ear, 0]) * 0.70, p[ear, 1] * 0.3 + 0.08, np.full(ear.sum(), -0.6)], -1)
        self.p = p
        self.x, self.y, self.z = p.T
        self.ax = np.abs(self.x)
        self.sx = np.sign(self.rest[:, 0])
        self.body = step(-1.0, -0.75, self.rest[:, 1])  # 0 on the clothes and the lower neck
        self.body = np.where(m.part == HAIR, 1, self.body)

    def blob(self, x, y, z, s, sz=None):
        sx, sy = s if isinstance(s, tuple) else (s, s)
        sz = sz or max(sx, sy) * 1.6
        return (
            np.exp(-np.square((self.ax - x) / sx) - np.square((self.y - y) / sy) - np.square((self.z - z) / sz))
            * self.body
        )

    def move(self, weight, dx=0.0, dy=0.0, dz=0.0):
        return np.stack([weight * dx * self.sx * np.minimum(self.ax / 0.05, 1), weight * dy, weight * dz], -1)

    def same(self, weight, dx=0.0, dy=0.0, dz=0.0):
        return weight[:, None] * np.array([dx, dy, dz])

    def lids(self, upper, lower):
        m = self.mesh
        index = np.flatnonzero(
            (m.part == SKIN) & (m.follow < 0) & (np.cos(m.azimuth) > 0.1) & (np.abs(m.height - face.EYE_LINE) < 0.24)
        )
        out = np.zeros_like(self.p)
        args = m.azimuth[index], m.height[index], m.side[index]
        out[index] = lid_motion(*args, (upper, lower))
        rim = np.flatnonzero(m.eye * (m.part == SKIN))
        out[rim] = out[m.follow[rim]]
        return out


def _shape_components(f: _Shape) -> list[np.ndarray]:
    p, b, mv = f.p, f.blob, f.move
    body = f.body
    one = body
    y, z = f.y, f.z
    skull, jaw = step(0.2, 0.7, y) * body, step(-0.05, -0.5, y) * body
    r = f.rest - f.centre
    near = f.near_eye
    c = []
    # The head as a whole.
    c.append(np.stack([0.050 * p[:, 0] * body, 0 * y, 0 * y], -1))  # wide or narrow
    c.append(np.stack([0 * y, 0.045 * (y + 0.05) * body, 0 * y], -1))  # long or short
    c.append(np.stack([0.055 * p[:, 0] * jaw, 0 * y, 0 * y], -1))  # jaw width
    c.append(mv(jaw * step(-0.45, -0.80, y), 0, -0.055, 0.01))  # chin length
    c.append(np.stack([0.05 * p[:, 0] * skull, 0.05 * (y - 0.3) * skull, 0 * y], -1))  # skull against face
    c.append(mv(b(0, -0.70, 0.28, (0.22, 0.18)), 0, 0, 0.055))  # chin forward
    c.append(mv(b(0.16, -0.73, 0.2, (0.10, 0.14)), 0.050, 0.0, 0.015))  # square or pointed chin
    c.append(mv(b(0.54, -0.42, -0.25, (0.20, 0.24), 0.40), 0.034, -0.010, 0.012))  # jaw angle
    c.append(mv(b(0.46, 0.03, 0.10, (0.16, 0.13), 0.3), 0.030, 0.0, 0.042))  # cheek bones
    c.append(mv(b(0.43, -0.20, 0.05, (0.24, 0.26), 0.45), 0.034, 0, 0.030))  # full cheeks
    c.append(mv(b(0, 0.75, 0.22, (0.5, 0.25), 0.5), 0, 0, 0.050))  # forehead forward
    c.append(mv(b(0.30, 0.46, 0.25, (0.30, 0.09), 0.4), 0, -0.010, 0.036))  # brow ridge
    c.append(mv(b(0.68, 0.45, -0.2, (0.15, 0.25), 0.5), 0.040, 0, 0.01))  # temples
    c.append(mv(step(0.5, 1.2, y) * body, 0, 0.055, 0))  # high crown
    # Nose.
    c.append(mv(b(0, -0.11, 0.45, (0.16, 0.12), 0.35), 0, -0.042, 0))  # length
    c.append(mv(b(0, -0.06, 0.5, (0.13, 0.12), 0.25), 0, 0, 0.060))  # projection
    c.append(mv(b(0.13, -0.12, 0.40, (0.08, 0.08), 0.2), 0.040, 0, 0))  # width of the wings
    c.append(mv(b(0, 0.12, 0.43, (0.09, 0.09), 0.3), 0, 0, 0.040))  # bridge: hump or saddle
    c.append(mv(b(0.06, 0.12, 0.4, (0.07, 0.18), 0.3), 0.022, 0, 0))  # bridge width
    c.append(mv(b(0, -0.05, 0.55, (0.10, 0.07), 0.2), 0, 0.042, 0))  # tip up or down
    c.append(mv(b(0.05, -0.05, 0.52, (0.07, 0.07), 0.2), 0.026, 0, 0.006))  # tip breadth
    c.append(mv(b(0, 0.29, 0.33, (0.09, 0.09), 0.3), 0, 0, 0.034))  # root
    # Eyes.
    c.append(mv(b(0.30, 0.29, 0.15, (0.22, 0.20), 0.4), 0.028, 0, 0))  # distance
    c.append(mv(b(0.30, 0.29, 0.15, (0.26, 0.18), 0.4), 0, 0.028, 0))  # height
    c.append(r * (0.075 * near)[:, None])  # size
    c.append(f.lids(0.074, -0.046))  # open
    tilt = np.stack([-r[:, 1], r[:, 0], 0 * y], -1) * (near * np.sign(f.centre[:, 0]) * 0.090)[:, None]
    c.append(tilt)  # tilt of the axis
    c.append(mv(b(0.30, 0.29, 0.15, (0.22, 0.18), 0.4), 0, 0, -0.030))  # deep set
    c.append(mv(b(0.31, 0.37, 0.22, (0.22, 0.05), 0.3), 0, -0.022, 0.018))  # upper lid fold
    c.append(mv(b(0.31, 0.17, 0.2, (0.18, 0.05), 0.3), 0, -0.005, 0.011))  # bags
    # Brows.
    c.append(mv(b(0.32, 0.48, 0.22, (0.32, 0.10), 0.4), 0, 0.034, 0))  # height
    c.append(mv(b(0.12, 0.46, 0.32, (0.12, 0.10), 0.3), 0, 0.028, 0))  # inner ends
    c.append(mv(b(0.55, 0.48, 0.0, (0.14, 0.12), 0.4), 0, 0.030, 0))  # outer ends
    # Mouth.
    c.append(mv(b(0.25, -0.38, 0.23, (0.15, 0.13), 0.3), 0.036, 0, -0.008))  # width
    c.append(mv(b(0, -0.33, 0.38, (0.22, 0.045), 0.3), 0, 0.022, 0.012))  # upper lip
    c.append(mv(b(0, -0.46, 0.36, (0.20, 0.055), 0.3), 0, -0.024, 0.014))  # lower lip
    c.append(mv(b(0, -0.39, 0.36, (0.28, 0.14), 0.35), 0, 0, 0.034))  # both forward
    c.append(mv(b(0, -0.39, 0.36, (0.32, 0.16), 0.35), 0, 0.030, 0))  # height of the mouth
    c.append(mv(b(0.25, -0.38, 0.22, (0.07, 0.06), 0.2), 0, 0.020, 0))  # corners
    c.append(mv(b(0, -0.24, 0.33, (0.12, 0.06), 0.2), 0, 0, -0.016))  # philtrum
    c.append(mv(b(0, -0.55, 0.27, (0.20, 0.06), 0.2), 0, 0, -0.022))  # fold over the chin
    c.append(mv(b(0.26, -0.25, 0.22, (0.06, 0.14), 0.2), 0, 0, -0.016))  # fold beside the nose
    # Back, neck, ears.
    c.append(mv(step(-0.5, -1.4, z) * body, 0, 0, -0.10))  # long skull
    neck = step(-0.55, -0.95, f.rest[:, 1]) * (head_mesh().part == SKIN)
    c.append(np.stack([0.075 * f.rest[:, 0] * neck, 0 * y, 0.06 * (f.rest[:, 2] + 0.57) * neck], -1))  # thick neck
    under = np.exp(
        -np.square((f.rest[:, 1] + 0.84) / 0.10)
        - np.square(f.rest[:, 0] / 0.35)
        - np.square((f.rest[:, 2] - 0.0) / 0.22)
    )
    c.append(np.stack([0 * y, -0.055 * under, 0.01 * under], -1))  # under the chin
    ear = (head_mesh().part == EAR).astype(float)
    base = np.array([0.70, 0.11, -0.55])
    q = f.rest - np.stack([np.sign(f.rest[:, 0]) * base[0], 0 * y + base[1], 0 * y + base[2]], -1)
    c.append(q * (ear * 0.13)[:, None])  # big ears
    c.append(
        np.stack([np.sign(f.rest[:, 0]) * -q[:, 2] * ear * 0.22 * (q[:, 2] < 0), 0 * y, 0 * y], -1)
    )  # standing off
    c.append(np.stack([0 * y, 0.05 * ear, 0 * y], -1))  # high ears
    c.append(mv(b(0.22, -0.60, 0.2, (0.18, 0.14), 0.3), 0.014, 0, 0.018))  # jowls
    c.append(mv(b(0.62, 0.12, -0.25, (0.12, 0.2), 0.3), 0.030, 0, 0.0))  # cheek arches
    # Asymmetries: the same direction on both sides, so left and right differ.
    c.append(f.same(b(0, -0.05, 0.5, (0.14, 0.16), 0.35), 0.016))
    c.append(f.same(jaw * b(0, -0.65, 0.2, (0.5, 0.3), 0.6), 0.022))
    c.append(f.same(b(0, -0.39, 0.35, (0.30, 0.12), 0.3), 0.014))
    c.append(np.stack([0 * y, 0.010 * f.sx * b(0.25, -0.38, 0.25, (0.14, 0.12), 0.3), 0 * y], -1))
    c.append(np.stack([0 * y, 0.010 * f.sx * b(0.30, 0.29, 0.15, (0.22, 0.18), 0.4), 0 * y], -1))
    c.append(np.stack([0 * y, 0.014 * f.sx * b(0.32, 0.48, 0.2, (0.3, 0.12), 0.4), 0 * y], -1))
    c.append(np.stack([0 * y, 0.016 * ear * f.sx, 0 * y], -1))
    c.append(f.same(b(0, 0.15, 0.4, (0.08, 0.15), 0.3), 0.010))
    # The rest: smooth waves over the whole head, finer and weaker one after the other.
    wave = normals((0x5A9E, 1), 8 * (SHAPE_DIM - len(c))).reshape(-1, 8)
    radial = np.stack([f.x, (f.y - 0.2) * 0.4, f.z + 0.55], -1)
    radial /= np.maximum(np.linalg.norm(radial, axis=1, keepdims=True), 0.2)
    for k, w in enumerate(wave):
        size = 1.6 + 0.05 * k
        phase = size * (w[0] * f.ax * 1.2 + w[1] * f.y + w[2] * f.z) + w[3]
        calm = 1 - 0.8 * near
        amount = 0.0085 / (1 + 0.05 * k) * np.sin(phase) * one * calm
        c.append(radial * amount[:, None])
    return c[:SHAPE_DIM]


@functools.lru_cache(maxsize=1)
def shape_basis() -> np.ndarray:
    """[80, V, 3] float32 displacements in decimetre per unit."""
    f = _Shape()
    components = _shape_components(f)
    out = np.stack(components)
    # What lies in the mouth goes with the lips it hangs on; each rim with its lid.
    m = f.mesh
    copy = np.flatnonzero((m.follow >= 0) & (m.part == MOUTH))
    out[:, copy] = out[:, m.follow[copy]]
    rim = np.flatnonzero((m.follow >= 0) & (m.part == SKIN))
    out[:, rim] = out[:, m.follow[rim]]
    return (0.85 * out).astype(np.float32)
