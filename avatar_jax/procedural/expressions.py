"""The 64 expression components: names, and their displacement fields on the mesh.

Every component is a fixed displacement of the vertices (linear blend shapes), so the model can be fitted by gradients.
Values are nominally 0..1; ``jaw_left`` and the like are separate components; the gaze pair runs over -1..1.
"""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.curves import step
from avatar_jax.procedural.mesh import (
    EYE,
    MOUTH,
    SKIN,
    TEETH,
    TONGUE,
    head_mesh,
)
from avatar_jax.procedural.skin import lid_motion

_NAMES = """
jaw_open jaw_forward jaw_left jaw_right mouth_close mouth_funnel mouth_pucker mouth_left mouth_right smile_l smile_r
frown_l frown_r dimple_l dimple_r stretch_l stretch_r roll_lower roll_upper shrug_lower shrug_upper press_l press_r
lower_down_l lower_down_r upper_up_l upper_up_r brow_down_l brow_down_r brow_inner_up brow_outer_up_l brow_outer_up_r
cheek_puff cheek_squint_l cheek_squint_r sneer_l sneer_r blink_l blink_r squint_l squint_r wide_l wide_r gaze_x gaze_y
tongue_out viseme_aa viseme_eh viseme_ih viseme_oh viseme_ou viseme_mbp viseme_fv viseme_th viseme_l viseme_ch viseme_s
viseme_r nostril_flare chin_raise lip_corner_up lip_corner_down brow_furrow neck_tense
"""
EXPRESSION_NAMES = tuple(_NAMES.split())
EXPRESSION_DIM = len(EXPRESSION_NAMES)
INDEX = {name: i for i, name in enumerate(EXPRESSION_NAMES)}

# Lid heights over the eye line for the closed, wide and squinting eye (upper, lower).
LIDS_CLOSED, LIDS_WIDE, LIDS_SQUINT = (-0.016, -0.016), (0.106, -0.056), (0.036, -0.016)

# Speech shapes as combinations of the other components; a name without _l or _r stands for both sides.
_SPEECH = {
    'viseme_aa': {'jaw_open': 0.75, 'lower_down': 0.25, 'upper_up': 0.2},
    'viseme_eh': {'jaw_open': 0.40, 'stretch': 0.45, 'lower_down': 0.3, 'upper_up': 0.25},
    'viseme_ih': {'jaw_open': 0.20, 'stretch': 0.6, 'smile': 0.15, 'lower_down': 0.45, 'upper_up': 0.3},
    'viseme_oh': {'jaw_open': 0.50, 'mouth_funnel': 0.75, 'mouth_pucker': 0.25},
    'viseme_ou': {'jaw_open': 0.18, 'mouth_pucker': 0.85, 'mouth_funnel': 0.30},
    'viseme_mbp': {'press': 0.8, 'roll_lower': 0.5, 'roll_upper': 0.5},
    'viseme_fv': {'jaw_open': 0.10, 'roll_lower': 0.75, 'upper_up': 0.45, 'shrug_lower': 0.2},
    'viseme_th': {'jaw_open': 0.25, 'tongue_out': 0.45, 'lower_down': 0.25, 'upper_up': 0.2},
    'viseme_l': {'jaw_open': 0.32, 'tongue_out': 0.20, 'upper_up': 0.25, 'stretch': 0.2},
    'viseme_ch': {'jaw_open': 0.12, 'mouth_funnel': 0.80, 'lower_down': 0.3, 'upper_up': 0.3},
    'viseme_s': {'jaw_open': 0.06, 'stretch': 0.4, 'lower_down': 0.55, 'upper_up': 0.4},
    'viseme_r': {'jaw_open': 0.22, 'mouth_pucker': 0.45, 'mouth_funnel': 0.45, 'lower_down': 0.15},
}
VISEMES = {
    name: {
        part: weight for one, weight in mix.items() for part in ((one,) if one in INDEX else (f'{one}_l', f'{one}_r'))
    }
    for name, mix in _SPEECH.items()
}

JAW_ANGLE = 0.33  # radians at jaw_open = 1
JAW_AXIS = np.array([0.0, 0.02, -0.60])  # through both jaw joints
GAZE_TANGENT = np.tan(np.radians(24.0))


class _Fields:
    """Displacement fields over the vertices, written with the surface coordinates of the mean face."""

    def __init__(self):
        m = head_mesh()
        self.mesh = m
        self.p = m.positions.astype(np.float64)
        self.skin = m.part == SKIN
        self.x, self.y, self.z = self.p.T
        self.ax = np.abs(self.x)
        self.v = m.height
        self.side = m.side
        self.d = self.v - face.MOUTH_LINE
        front = np.cos(m.azimuth) > 0.1
        self.frontal = (self.skin & front & (m.follow < 0)).astype(float)
        self.left, self.right = step(0.05, -0.05, self.x), step(-0.05, 0.05, self.x)  # of the image, soft at the middle
        k = np.clip(1 - np.square(self.x / (face.MOUTH_HALF + 0.005)), 0, 1) ** 0.7
        self.across = k
        self.upper_lip = self.frontal * (self.side > 0) * (self.v < 0)
        self.lower_lip = self.frontal * (self.side < 0) * (self.v < 0)
        self.near_lips = np.exp(-np.square(self.d / 0.11)) * np.exp(-(np.square(self.x / 0.30) ** 2)) * self.frontal

    def half(self, side: str):
        return self.left if side == 'l' else self.right

    def blob(self, x, y, sx, sy):
        """Gaussian around (+-x, y), in the rest positions, on the front of the skin."""
        return self.frontal * np.exp(-np.square((self.ax - x) / sx) - np.square((self.v - y) / sy))

    def vector(self, weight, dx=0.0, dy=0.0, dz=0.0):
        """[V, 3] displacement; dx points away from the middle (use ``shift`` for the same direction everywhere)."""
        out = np.sign(self.x)
        return np.stack([weight * dx * out, weight * dy, weight * dz], -1)

    @staticmethod
    def shift(weight, dx=0.0, dy=0.0, dz=0.0):
        return weight[:, None] * np.array([dx, dy, dz])

    @functools.cached_property
    def jaw(self):
        """How far each vertex goes with the lower jaw: 0..1."""
        m = self.mesh
        azimuth = np.abs(m.azimuth)
        base = step(-0.10, -0.64, self.v) * step(1.75, 0.95, azimuth) * step(-1.12, -0.86, self.v)
        k = self.across
        at_slit = np.exp(-np.square(self.d / 0.16)) * k
        w = base + at_slit * np.where(self.side < 0, 1 - base, -base) * self.frontal
        w = np.where(self.skin, w, 0)
        w[self.mesh.part == TONGUE] = 0.95
        w[(self.mesh.part == TEETH) & (self.side < 0)] = 1
        return w

    def jaw_rotation(self):
        r = self.p - JAW_AXIS
        turn = np.stack([np.zeros(len(r)), -r[:, 2], r[:, 1]], -1) * JAW_ANGLE
        turn[:, 1] = np.minimum(turn[:, 1], 0)
        return self.jaw[:, None] * turn

    def lids(self, side: str, heights):
        m = self.mesh
        index = np.flatnonzero(
            (self.frontal > 0)
            & ((self.x < 0) if side == 'l' else (self.x > 0))
            & (np.abs(self.v - face.EYE_LINE) < 0.24)
        )
        out = np.zeros_like(self.p)
        args = m.azimuth[index], self.v[index], self.side[index]
        out[index] = lid_motion(*args, heights)
        if heights == LIDS_CLOSED:  # the two edges meet exactly, at the further forward of the two
            for upper, lower in zip(m.eye_slits[side][0], m.eye_slits[side][1], strict=True):
                z = max((self.p + out)[upper, 2], (self.p + out)[lower, 2])
                out[[upper, lower], 2] += z - (self.p + out)[[upper, lower], 2]
        return out

    def gaze(self, axis: int):
        m = self.mesh
        eye = m.part == EYE
        centre = np.stack([m.eye * face.EYE_X, np.full(len(self.p), face.EYE_Y), np.full(len(self.p), face.EYE_Z)], -1)
        r = self.p - centre
        out = np.zeros_like(self.p)
        out[:, axis] = r[:, 2]
        out[:, 2] = -r[:, axis]
        return out * (eye * GAZE_TANGENT)[:, None]


def _basic(f: _Fields) -> dict[str, np.ndarray]:
    c = {}
    m = face.MOUTH_LINE
    lips, k = f.near_lips, f.across
    up_l, lo_l = f.upper_lip * np.exp(-np.square(f.d / 0.10)), f.lower_lip * np.exp(-np.square(f.d / 0.12))
    c['jaw_open'] = f.jaw_rotation()
    c['jaw_forward'] = f.shift(f.jaw, dz=0.09)
    c['jaw_left'], c['jaw_right'] = f.shift(f.jaw, dx=-0.10), f.shift(f.jaw, dx=0.10)
    c['mouth_close'] = f.shift(lo_l * k, dy=0.10) + f.shift(up_l * k, dy=-0.03)
    squeeze = np.stack([-0.42 * f.x, 0 * f.x, 0 * f.x], -1)
    around = np.exp(-(np.square(np.hypot(f.x / 0.27, f.d / 0.17)) ** 1.5)) * f.frontal
    c['mouth_pucker'] = (
        squeeze * around[:, None]
        + f.shift(around, dz=0.095)
        + f.shift(up_l * k, dy=-0.008)
        + f.shift(lo_l * k, dy=0.008)
    )
    c['mouth_funnel'] = (
        0.72 * squeeze * around[:, None]
        + f.shift(around, dz=0.085)
        + f.shift(up_l * k**0.5, dy=0.055)
        + f.shift(lo_l * k**0.5, dy=-0.075)
    )
    c['mouth_left'], c['mouth_right'] = f.shift(around, dx=-0.09), f.shift(around, dx=0.09)
    for s in 'lr':
        h = f.half(s)
        corner = f.blob(0.26, m + 0.005, 0.125, 0.10) * h
        c[f'smile_{s}'] = (
            f.vector(corner, 0.085, 0.095, -0.06)
            + f.vector(f.blob(0.40, -0.08, 0.15, 0.13) * h, 0.020, 0.055, 0.050)
            + f.vector(f.blob(0.30, 0.14, 0.14, 0.07) * h, 0, 0.022, 0.012)
            + f.shift(lips * h, dy=0.012, dz=-0.012)
            + f.vector(f.blob(0.29, -0.25, 0.06, 0.12) * h, 0.01, 0.02, -0.022)
        )
        c[f'frown_{s}'] = f.vector(corner, 0.015, -0.085, -0.01) + f.vector(
            f.blob(0.27, -0.56, 0.10, 0.09) * h, 0, -0.02, 0.02
        )
        c[f'dimple_{s}'] = f.vector(corner, 0.065, 0.012, -0.065)
        c[f'stretch_{s}'] = f.vector(corner, 0.100, -0.012, -0.055) + f.vector(
            f.blob(0.30, -0.5, 0.14, 0.1) * h, 0.03, -0.01, 0
        )
        c[f'press_{s}'] = (
            f.shift(up_l * h * k, dy=-0.014, dz=-0.028)
            + f.shift(lo_l * k * h, dy=0.014, dz=-0.028)
            + f.vector(corner, 0.02, 0, -0.02)
        )
        c[f'lower_down_{s}'] = f.shift(lo_l * k**0.6 * h, dy=-0.075, dz=0.008)
        c[f'upper_up_{s}'] = f.shift(up_l * k**0.6 * h, dy=0.062, dz=0.012) + f.vector(
            f.blob(0.16, -0.17, 0.09, 0.07) * h, 0.004, 0.022, 0.01
        )
        c[f'brow_down_{s}'] = f.vector(f.blob(0.27, 0.475, 0.27, 0.10) * h, -0.015, -0.080, 0.020)
        c[f'brow_outer_up_{s}'] = f.vector(f.blob(0.45, 0.50, 0.19, 0.13) * h, 0, 0.100, -0.012)
        c[f'cheek_squint_{s}'] = f.vector(f.blob(0.36, 0.06, 0.18, 0.12) * h, 0, 0.055, 0.035) + 0.45 * f.lids(
            s, (0.063, -0.018)
        )
        c[f'sneer_{s}'] = (
            f.vector(f.blob(0.13, -0.11, 0.09, 0.09) * h, 0.008, 0.050, 0.008)
            + f.vector(f.blob(0.08, 0.22, 0.08, 0.10) * h, -0.01, 0.02, 0.014)
            + f.shift(up_l * k * h, dy=0.035)
        )
        c[f'blink_{s}'] = f.lids(s, LIDS_CLOSED) + f.vector(f.blob(0.31, 0.46, 0.2, 0.06) * h, 0, -0.012, 0)
        c[f'squint_{s}'] = f.lids(s, LIDS_SQUINT) + f.vector(f.blob(0.36, 0.14, 0.18, 0.07) * h, 0, 0.022, 0.015)
        c[f'wide_{s}'] = f.lids(s, LIDS_WIDE) + f.vector(f.blob(0.31, 0.48, 0.24, 0.09) * h, 0, 0.030, 0)
    c['roll_lower'] = f.shift(lo_l * k**0.5, dy=0.030, dz=-0.055)
    c['roll_upper'] = f.shift(up_l * k**0.5, dy=-0.024, dz=-0.050)
    c['shrug_lower'] = f.shift(f.lower_lip * np.exp(-np.square(f.d / 0.2)) * k**0.5, dy=0.035, dz=0.035)
    c['shrug_upper'] = f.shift(f.upper_lip * np.exp(-np.square(f.d / 0.16)) * k**0.5, dy=0.032, dz=0.030)
    c['brow_inner_up'] = f.shift(f.blob(0.10, 0.50, 0.19, 0.14), dy=0.105)
    c['cheek_puff'] = f.vector(f.blob(0.40, -0.28, 0.18, 0.17), 0.075, 0, 0.085)
    c['gaze_x'] = f.gaze(0)
    # The lids go with the eyes: down over them when they look down, up when they look up.
    c['gaze_y'] = 0.8 * f.gaze(1) + f.lids('l', (0.086, -0.032)) + f.lids('r', (0.086, -0.032))
    tongue = (f.mesh.part == TONGUE) * step(-0.05, 0.25, f.z)
    c['tongue_out'] = f.shift(tongue, dy=0.050, dz=0.20) + f.shift(
        (f.mesh.part == TONGUE).astype(float), dy=0.03, dz=0.06
    )
    c['nostril_flare'] = f.vector(f.blob(0.13, -0.125, 0.055, 0.055), 0.038, 0.010, 0.008)
    c['chin_raise'] = f.shift(f.blob(0.0, -0.66, 0.20, 0.13), dy=0.055, dz=0.012) + f.shift(
        lo_l * k, dy=0.020, dz=0.022
    )
    both = f.blob(0.26, m, 0.10, 0.09)
    c['lip_corner_up'], c['lip_corner_down'] = f.vector(both, 0.012, 0.060, -0.015), f.vector(both, 0.0, -0.060, -0.005)
    c['brow_furrow'] = f.vector(f.blob(0.16, 0.46, 0.14, 0.09), -0.045, -0.045, 0.018)
    azimuth = np.abs(f.mesh.azimuth)
    neck = f.skin * step(-0.86, -0.98, f.v) * step(-1.5, -1.2, f.v)
    c['neck_tense'] = f.vector(neck * np.exp(-np.square((azimuth - 0.55) / 0.28)), 0.02, 0, 0.060) + f.vector(
        neck * np.exp(-np.square(azimuth / 0.25)), 0, 0, -0.030
    )
    return c


@functools.lru_cache(maxsize=1)
def expression_basis() -> np.ndarray:
    """[64, V, 3] float32 displacements in decimetre."""
    f = _Fields()
    c = _basic(f)
    # A blink moves the lower slit edge onto the same curve as the upper: exact by construction of ``lids``.
    mesh = f.mesh
    copy = np.flatnonzero(mesh.follow >= 0)
    for field in c.values():
        source = field[mesh.follow[copy]] * mesh.follow_factor[copy, None]
        lips = mesh.part[copy] == MOUTH
        # Inside the mouth nothing comes forward of the teeth, whatever the lips do.
        source[lips, 2] = np.minimum(source[lips, 2], 0.02)
        field[copy] = source
    for name, mix in VISEMES.items():
        c[name] = sum(weight * c[part] for part, weight in mix.items())
    return np.stack([c[name] for name in EXPRESSION_NAMES]).astype(np.float32)


def _mirrored_name(name: str) -> str:
    if name.startswith('viseme'):  # the sounds l and r are no sides
        return name
    for one, other in (('_l', '_r'), ('_left', '_right')):
        for a, b in ((one, other), (other, one)):
            if name.endswith(a) and name[: -len(a)] + b in EXPRESSION_NAMES:
                return name[: -len(a)] + b
    return name


_MIRROR_EXPRESSION = np.array([EXPRESSION_NAMES.index(_mirrored_name(n)) for n in EXPRESSION_NAMES])
_GAZE_X = EXPRESSION_NAMES.index('gaze_x')


def mirror_expression(expression: np.ndarray) -> np.ndarray:
    """Procedural expression [..., 64] of the mirrored picture."""
    out = expression[..., _MIRROR_EXPRESSION].copy()
    out[..., _GAZE_X] *= -1
    return out
