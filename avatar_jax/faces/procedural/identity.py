"""Identity: 80 shape, 80 texture and 32 style numbers, all N(0, 1), and what they mean for shape.

``sample_identity`` draws them from a counter-based generator (Philox) keyed by the split and the seed, through an
explicit Box-Muller transform, so the same seed gives the same person on any machine and NumPy version.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.procedural import surface as face
from avatar_jax.faces.procedural.curves import step
from avatar_jax.faces.procedural.mesh import EAR, EYE, HAIR, MOUTH, SKIN, head_mesh, lid_motion

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
    u = (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0 ** -53
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
        on_face = (m.part == SKIN) & (np.cos(m.azimuth) > .2)
        near = np.where(on_face, step(.34, .17, rho), 0)
        near[(m.part == EYE) | (m.eye != 0)] = 1
        self.near_eye, self.centre = near, centre
        p = p + near[:, None] * (centre + np.array([0, 0, .14]) - p)
        # Hair and ears go with the skull under them; the clothes only with the neck.
        ear = m.part == EAR
        p[ear] = np.stack([np.sign(p[ear, 0]) * .70, p[ear, 1] * .3 + .08, np.full(ear.sum(), -.6)], -1)
        self.p = p
        self.x, self.y, self.z = p.T
        self.ax = np.abs(self.x)
        self.sx = np.sign(self.rest[:, 0])
        self.body = step(-1.0, -.75, self.rest[:, 1])  # 0 on the clothes and the lower neck
        self.body = np.where(m.part == HAIR, 1, self.body)

    def blob(self, x, y, z, s, sz=None):
        sx, sy = s if isinstance(s, tuple) else (s, s)
        sz = sz or max(sx, sy) * 1.6
        return np.exp(-np.square((self.ax - x) / sx) - np.square((self.y - y) / sy) - np.square((self.z - z) / sz)) * self.body

    def move(self, weight, dx=0., dy=0., dz=0.):
        return np.stack([weight * dx * self.sx * np.minimum(self.ax / .05, 1), weight * dy, weight * dz], -1)

    def same(self, weight, dx=0., dy=0., dz=0.):
        return weight[:, None] * np.array([dx, dy, dz])

    def lids(self, upper, lower):
        m = self.mesh
        index = np.flatnonzero((m.part == SKIN) & (m.follow < 0) & (np.cos(m.azimuth) > .1)
                               & (np.abs(m.height - face.EYE_LINE) < .24))
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
    skull, jaw = step(.2, .7, y) * body, step(-.05, -.5, y) * body
    side = step(.1, .5, f.ax)
    r = f.rest - f.centre
    near = f.near_eye
    c = []
    # The head as a whole.
    c.append(np.stack([.050 * p[:, 0] * body, 0 * y, 0 * y], -1))                      # wide or narrow
    c.append(np.stack([0 * y, .045 * (y + .05) * body, 0 * y], -1))                    # long or short
    c.append(np.stack([.055 * p[:, 0] * jaw, 0 * y, 0 * y], -1))               # jaw width
    c.append(mv(jaw * step(-.45, -.80, y), 0, -.055, .01))                             # chin length
    c.append(np.stack([.05 * p[:, 0] * skull, .05 * (y - .3) * skull, 0 * y], -1))     # skull against face
    c.append(mv(b(0, -.70, .28, (.22, .18)), 0, 0, .055))                              # chin forward
    c.append(mv(b(.16, -.73, .2, (.10, .14)), .050, .0, .015))                         # square or pointed chin
    c.append(mv(b(.54, -.42, -.25, (.20, .24), .40), .034, -.010, .012))                # jaw angle
    c.append(mv(b(.46, .03, .10, (.16, .13), .3), .030, .0, .042))                     # cheek bones
    c.append(mv(b(.43, -.20, .05, (.24, .26), .45), .034, 0, .030))                    # full cheeks
    c.append(mv(b(0, .75, .22, (.5, .25), .5), 0, 0, .050))                            # forehead forward
    c.append(mv(b(.30, .46, .25, (.30, .09), .4), 0, -.010, .036))                     # brow ridge
    c.append(mv(b(.68, .45, -.2, (.15, .25), .5), .040, 0, .01))                       # temples
    c.append(mv(step(.5, 1.2, y) * body, 0, .055, 0))                                  # high crown
    # Nose.
    c.append(mv(b(0, -.11, .45, (.16, .12), .35), 0, -.042, 0))                        # length
    c.append(mv(b(0, -.06, .5, (.13, .12), .25), 0, 0, .060))                          # projection
    c.append(mv(b(.13, -.12, .40, (.08, .08), .2), .040, 0, 0))                        # width of the wings
    c.append(mv(b(0, .12, .43, (.09, .09), .3), 0, 0, .040))                           # bridge: hump or saddle
    c.append(mv(b(.06, .12, .4, (.07, .18), .3), .022, 0, 0))                          # bridge width
    c.append(mv(b(0, -.05, .55, (.10, .07), .2), 0, .042, 0))                          # tip up or down
    c.append(mv(b(.05, -.05, .52, (.07, .07), .2), .026, 0, .006))                     # tip breadth
    c.append(mv(b(0, .29, .33, (.09, .09), .3), 0, 0, .034))                           # root
    # Eyes.
    c.append(mv(b(.30, .29, .15, (.22, .20), .4), .028, 0, 0))                         # distance
    c.append(mv(b(.30, .29, .15, (.26, .18), .4), 0, .028, 0))                         # height
    c.append(r * (.075 * near)[:, None])                                               # size
    c.append(f.lids(.074, -.046))                                                      # open
    tilt = np.stack([-r[:, 1], r[:, 0], 0 * y], -1) * (near * np.sign(f.centre[:, 0]) * .090)[:, None]
    c.append(tilt)                                                                     # tilt of the axis
    c.append(mv(b(.30, .29, .15, (.22, .18), .4), 0, 0, -.030))                        # deep set
    c.append(mv(b(.31, .37, .22, (.22, .05), .3), 0, -.022, .018))                     # upper lid fold
    c.append(mv(b(.31, .17, .2, (.18, .05), .3), 0, -.005, .011))                      # bags
    # Brows.
    c.append(mv(b(.32, .48, .22, (.32, .10), .4), 0, .034, 0))                         # height
    c.append(mv(b(.12, .46, .32, (.12, .10), .3), 0, .028, 0))                         # inner ends
    c.append(mv(b(.55, .48, .0, (.14, .12), .4), 0, .030, 0))                          # outer ends
    # Mouth.
    c.append(mv(b(.25, -.38, .23, (.15, .13), .3), .036, 0, -.008))                    # width
    c.append(mv(b(0, -.33, .38, (.22, .045), .3), 0, .022, .012))                      # upper lip
    c.append(mv(b(0, -.46, .36, (.20, .055), .3), 0, -.024, .014))                     # lower lip
    c.append(mv(b(0, -.39, .36, (.28, .14), .35), 0, 0, .034))                         # both forward
    c.append(mv(b(0, -.39, .36, (.32, .16), .35), 0, .030, 0))                         # height of the mouth
    c.append(mv(b(.25, -.38, .22, (.07, .06), .2), 0, .020, 0))                        # corners
    c.append(mv(b(0, -.24, .33, (.12, .06), .2), 0, 0, -.016))                         # philtrum
    c.append(mv(b(0, -.55, .27, (.20, .06), .2), 0, 0, -.022))                         # fold over the chin
    c.append(mv(b(.26, -.25, .22, (.06, .14), .2), 0, 0, -.016))                       # fold beside the nose
    # Back, neck, ears.
    c.append(mv(step(-.5, -1.4, z) * body, 0, 0, -.10))                                # long skull
    neck = step(-.55, -.95, f.rest[:, 1]) * (head_mesh().part == SKIN)
    c.append(np.stack([.075 * f.rest[:, 0] * neck, 0 * y, .06 * (f.rest[:, 2] + .57) * neck], -1))  # thick neck
    under = np.exp(-np.square((f.rest[:, 1] + .84) / .10) - np.square(f.rest[:, 0] / .35) - np.square((f.rest[:, 2] - .0) / .22))
    c.append(np.stack([0 * y, -.055 * under, .01 * under], -1))                        # under the chin
    ear = (head_mesh().part == EAR).astype(float)
    base = np.array([.70, .11, -.55])
    q = f.rest - np.stack([np.sign(f.rest[:, 0]) * base[0], 0 * y + base[1], 0 * y + base[2]], -1)
    c.append(q * (ear * .13)[:, None])                                                 # big ears
    c.append(np.stack([np.sign(f.rest[:, 0]) * -q[:, 2] * ear * .22 * (q[:, 2] < 0), 0 * y, 0 * y], -1))  # standing off
    c.append(np.stack([0 * y, .05 * ear, 0 * y], -1))                                  # high ears
    c.append(mv(b(.22, -.60, .2, (.18, .14), .3), .014, 0, .018))                       # jowls
    c.append(mv(b(.62, .12, -.25, (.12, .2), .3), .030, 0, .0))                        # cheek arches
    # Asymmetries: the same direction on both sides, so left and right differ.
    c.append(f.same(b(0, -.05, .5, (.14, .16), .35), .016))
    c.append(f.same(jaw * b(0, -.65, .2, (.5, .3), .6), .022))
    c.append(f.same(b(0, -.39, .35, (.30, .12), .3), .014))
    c.append(np.stack([0 * y, .010 * f.sx * b(.25, -.38, .25, (.14, .12), .3), 0 * y], -1))
    c.append(np.stack([0 * y, .010 * f.sx * b(.30, .29, .15, (.22, .18), .4), 0 * y], -1))
    c.append(np.stack([0 * y, .014 * f.sx * b(.32, .48, .2, (.3, .12), .4), 0 * y], -1))
    c.append(np.stack([0 * y, .016 * ear * f.sx, 0 * y], -1))
    c.append(f.same(b(0, .15, .4, (.08, .15), .3), .010))
    # The rest: smooth waves over the whole head, finer and weaker one after the other.
    wave = normals((0x5A9E, 1), 8 * (SHAPE_DIM - len(c))).reshape(-1, 8)
    radial = np.stack([f.x, (f.y - .2) * .4, f.z + .55], -1)
    radial /= np.maximum(np.linalg.norm(radial, axis=1, keepdims=True), .2)
    for k, w in enumerate(wave):
        size = 1.6 + .05 * k
        phase = size * (w[0] * f.ax * 1.2 + w[1] * f.y + w[2] * f.z) + w[3]
        calm = 1 - .8 * near
        amount = .0085 / (1 + .05 * k) * np.sin(phase) * one * calm
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
    return (.85 * out).astype(np.float32)
