"""The 64 expression components: names, and their displacement fields on the mesh.

Every component is a fixed displacement of the vertices (linear blend shapes), so the model can be fitted by gradients.
Values are nominally 0..1; ``jaw_left`` and the like are separate components; the gaze pair runs over -1..1.
"""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.faces.procedural import surface as face
from avatar_jax.faces.procedural.curves import step
from avatar_jax.faces.procedural.mesh import (
    EYE,
    MOUTH,
    SKIN,
    TEETH,
    TONGUE,
    head_mesh,
    lid_motion,
)

EXPRESSION_NAMES = tuple("""
jaw_open jaw_forward jaw_left jaw_right mouth_close mouth_funnel mouth_pucker mouth_left mouth_right smile_l smile_r
frown_l frown_r dimple_l dimple_r stretch_l stretch_r roll_lower roll_upper shrug_lower shrug_upper press_l press_r
lower_down_l lower_down_r upper_up_l upper_up_r brow_down_l brow_down_r brow_inner_up brow_outer_up_l brow_outer_up_r
cheek_puff cheek_squint_l cheek_squint_r sneer_l sneer_r blink_l blink_r squint_l squint_r wide_l wide_r gaze_x gaze_y
tongue_out viseme_aa viseme_eh viseme_ih viseme_oh viseme_ou viseme_mbp viseme_fv viseme_th viseme_l viseme_ch viseme_s
viseme_r nostril_flare chin_raise lip_corner_up lip_corner_down brow_furrow neck_tense
""".split())
EXPRESSION_DIM = len(EXPRESSION_NAMES)
INDEX = {name: i for i, name in enumerate(EXPRESSION_NAMES)}

# Lid heights over the eye line for the closed, wide and squinting eye (upper, lower).
LIDS_CLOSED, LIDS_WIDE, LIDS_SQUINT = (-.016, -.016), (.106, -.056), (.036, -.016)

# Speech shapes as combinations of the other components.
VISEMES = {
    'viseme_aa': dict(jaw_open=.75, lower_down_l=.25, lower_down_r=.25, upper_up_l=.2, upper_up_r=.2),
    'viseme_eh': dict(jaw_open=.40, stretch_l=.45, stretch_r=.45, lower_down_l=.3, lower_down_r=.3, upper_up_l=.25,
                      upper_up_r=.25),
    'viseme_ih': dict(jaw_open=.20, stretch_l=.6, stretch_r=.6, smile_l=.15, smile_r=.15, lower_down_l=.45,
                      lower_down_r=.45, upper_up_l=.3, upper_up_r=.3),
    'viseme_oh': dict(jaw_open=.50, mouth_funnel=.75, mouth_pucker=.25),
    'viseme_ou': dict(jaw_open=.18, mouth_pucker=.85, mouth_funnel=.30),
    'viseme_mbp': dict(press_l=.8, press_r=.8, roll_lower=.5, roll_upper=.5),
    'viseme_fv': dict(jaw_open=.10, roll_lower=.75, upper_up_l=.45, upper_up_r=.45, shrug_lower=.2),
    'viseme_th': dict(jaw_open=.25, tongue_out=.45, lower_down_l=.25, lower_down_r=.25, upper_up_l=.2, upper_up_r=.2),
    'viseme_l': dict(jaw_open=.32, tongue_out=.20, upper_up_l=.25, upper_up_r=.25, stretch_l=.2, stretch_r=.2),
    'viseme_ch': dict(jaw_open=.12, mouth_funnel=.80, lower_down_l=.3, lower_down_r=.3, upper_up_l=.3, upper_up_r=.3),
    'viseme_s': dict(jaw_open=.06, stretch_l=.4, stretch_r=.4, lower_down_l=.55, lower_down_r=.55, upper_up_l=.4,
                     upper_up_r=.4),
    'viseme_r': dict(jaw_open=.22, mouth_pucker=.45, mouth_funnel=.45, lower_down_l=.15, lower_down_r=.15),
}

JAW_ANGLE = .33  # radians at jaw_open = 1
JAW_AXIS = np.array([0., .02, -.60])  # through both jaw joints
GAZE_TANGENT = np.tan(np.radians(24.))


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
        front = np.cos(m.azimuth) > .1
        self.frontal = (self.skin & front & (m.follow < 0)).astype(float)
        self.left, self.right = step(.05, -.05, self.x), step(-.05, .05, self.x)  # of the image, soft at the middle
        k = np.clip(1 - np.square(self.x / (face.MOUTH_HALF + .005)), 0, 1) ** .7
        self.across = k
        self.upper_lip = self.frontal * (self.side > 0) * (self.v < 0)
        self.lower_lip = self.frontal * (self.side < 0) * (self.v < 0)
        self.near_lips = np.exp(-np.square(self.d / .11)) * np.exp(-np.square(self.x / .30) ** 2) * self.frontal

    def half(self, side: str):
        return self.left if side == 'l' else self.right

    def blob(self, x, y, sx, sy):
        """Gaussian around (+-x, y), in the rest positions, on the front of the skin."""
        return self.frontal * np.exp(-np.square((self.ax - x) / sx) - np.square((self.v - y) / sy))

    def vector(self, weight, dx=0., dy=0., dz=0.):
        """[V, 3] displacement; dx points away from the middle (use ``shift`` for the same direction everywhere)."""
        out = np.sign(self.x)
        return np.stack([weight * dx * out, weight * dy, weight * dz], -1)

    @staticmethod
    def shift(weight, dx=0., dy=0., dz=0.):
        return weight[:, None] * np.array([dx, dy, dz])

    @functools.cached_property
    def jaw(self):
        """How far each vertex goes with the lower jaw: 0..1."""
        m = self.mesh
        azimuth = np.abs(m.azimuth)
        base = step(-.10, -.64, self.v) * step(1.75, .95, azimuth) * step(-1.12, -.86, self.v)
        k = self.across
        at_slit = np.exp(-np.square(self.d / .16)) * k
        w = base + at_slit * np.where(self.side < 0, 1 - base, -base) * self.frontal
        w = np.where(self.skin, w, 0)
        w[self.mesh.part == TONGUE] = .95
        w[(self.mesh.part == TEETH) & (self.side < 0)] = 1
        return w

    def jaw_rotation(self):
        r = self.p - JAW_AXIS
        turn = np.stack([np.zeros(len(r)), -r[:, 2], r[:, 1]], -1) * JAW_ANGLE
        turn[:, 1] = np.minimum(turn[:, 1], 0)
        return self.jaw[:, None] * turn

    def lids(self, side: str, heights):
        m = self.mesh
        index = np.flatnonzero((self.frontal > 0) & ((self.x < 0) if side == 'l' else (self.x > 0))
                               & (np.abs(self.v - face.EYE_LINE) < .24))
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
    up_l, lo_l = f.upper_lip * np.exp(-np.square(f.d / .10)), f.lower_lip * np.exp(-np.square(f.d / .12))
    c['jaw_open'] = f.jaw_rotation()
    c['jaw_forward'] = f.shift(f.jaw, dz=.09)
    c['jaw_left'], c['jaw_right'] = f.shift(f.jaw, dx=-.10), f.shift(f.jaw, dx=.10)
    c['mouth_close'] = f.shift(lo_l * k, dy=.10) + f.shift(up_l * k, dy=-.03)
    squeeze = np.stack([-.42 * f.x, 0 * f.x, 0 * f.x], -1)
    around = np.exp(-np.square(np.hypot(f.x / .27, f.d / .17)) ** 1.5) * f.frontal
    c['mouth_pucker'] = squeeze * around[:, None] + f.shift(around, dz=.095) \
        + f.shift(up_l * k, dy=-.008) + f.shift(lo_l * k, dy=.008)
    c['mouth_funnel'] = .72 * squeeze * around[:, None] + f.shift(around, dz=.085) + f.shift(up_l * k ** .5, dy=.055) \
        + f.shift(lo_l * k ** .5, dy=-.075)
    c['mouth_left'], c['mouth_right'] = f.shift(around, dx=-.09), f.shift(around, dx=.09)
    for s in 'lr':
        h = f.half(s)
        corner = f.blob(.26, m + .005, .125, .10) * h
        c[f'smile_{s}'] = f.vector(corner, .085, .095, -.06) + f.vector(f.blob(.40, -.08, .15, .13) * h, .020, .055, .050) \
            + f.vector(f.blob(.30, .14, .14, .07) * h, 0, .022, .012) + f.shift(lips * h, dy=.012, dz=-.012) \
            + f.vector(f.blob(.29, -.25, .06, .12) * h, .01, .02, -.022)
        c[f'frown_{s}'] = f.vector(corner, .015, -.085, -.01) + f.vector(f.blob(.27, -.56, .10, .09) * h, 0, -.02, .02)
        c[f'dimple_{s}'] = f.vector(corner, .065, .012, -.065)
        c[f'stretch_{s}'] = f.vector(corner, .100, -.012, -.055) + f.vector(f.blob(.30, -.5, .14, .1) * h, .03, -.01, 0)
        c[f'press_{s}'] = f.shift((up_l + 0 * k) * h * k, dy=-.014, dz=-.028) + f.shift(lo_l * k * h, dy=.014, dz=-.028) \
            + f.vector(corner, .02, 0, -.02)
        c[f'lower_down_{s}'] = f.shift(lo_l * k ** .6 * h, dy=-.075, dz=.008)
        c[f'upper_up_{s}'] = f.shift(up_l * k ** .6 * h, dy=.062, dz=.012) \
            + f.vector(f.blob(.16, -.17, .09, .07) * h, .004, .022, .01)
        c[f'brow_down_{s}'] = f.vector(f.blob(.27, .475, .27, .10) * h, -.015, -.080, .020)
        c[f'brow_outer_up_{s}'] = f.vector(f.blob(.45, .50, .19, .13) * h, 0, .100, -.012)
        c[f'cheek_squint_{s}'] = f.vector(f.blob(.36, .06, .18, .12) * h, 0, .055, .035) + .45 * f.lids(s, (.063, -.018))
        c[f'sneer_{s}'] = f.vector(f.blob(.13, -.11, .09, .09) * h, .008, .050, .008) \
            + f.vector(f.blob(.08, .22, .08, .10) * h, -.01, .02, .014) + f.shift(up_l * k * h, dy=.035)
        c[f'blink_{s}'] = f.lids(s, LIDS_CLOSED) + f.vector(f.blob(.31, .46, .2, .06) * h, 0, -.012, 0)
        c[f'squint_{s}'] = f.lids(s, LIDS_SQUINT) + f.vector(f.blob(.36, .14, .18, .07) * h, 0, .022, .015)
        c[f'wide_{s}'] = f.lids(s, LIDS_WIDE) + f.vector(f.blob(.31, .48, .24, .09) * h, 0, .030, 0)
    c['roll_lower'] = f.shift(lo_l * k ** .5, dy=.030, dz=-.055)
    c['roll_upper'] = f.shift(up_l * k ** .5, dy=-.024, dz=-.050)
    c['shrug_lower'] = f.shift(f.lower_lip * np.exp(-np.square(f.d / .2)) * k ** .5, dy=.035, dz=.035)
    c['shrug_upper'] = f.shift(f.upper_lip * np.exp(-np.square(f.d / .16)) * k ** .5, dy=.032, dz=.030)
    c['brow_inner_up'] = f.shift(f.blob(.10, .50, .19, .14), dy=.105)
    c['cheek_puff'] = f.vector(f.blob(.40, -.28, .18, .17), .075, 0, .085)
    c['gaze_x'] = f.gaze(0)
    # The lids go with the eyes: down over them when they look down, up when they look up.
    c['gaze_y'] = .8 * f.gaze(1) + f.lids('l', (.086, -.032)) + f.lids('r', (.086, -.032))
    tongue = (f.mesh.part == TONGUE) * step(-.05, .25, f.z)
    c['tongue_out'] = f.shift(tongue, dy=.050, dz=.20) + f.shift((f.mesh.part == TONGUE).astype(float), dy=.03, dz=.06)
    c['nostril_flare'] = f.vector(f.blob(.13, -.125, .055, .055), .038, .010, .008)
    c['chin_raise'] = f.shift(f.blob(.0, -.66, .20, .13), dy=.055, dz=.012) + f.shift(lo_l * k, dy=.020, dz=.022)
    both = f.blob(.26, m, .10, .09)
    c['lip_corner_up'], c['lip_corner_down'] = f.vector(both, .012, .060, -.015), f.vector(both, .0, -.060, -.005)
    c['brow_furrow'] = f.vector(f.blob(.16, .46, .14, .09), -.045, -.045, .018)
    azimuth = np.abs(f.mesh.azimuth)
    neck = f.skin * step(-.86, -.98, f.v) * step(-1.5, -1.2, f.v)
    c['neck_tense'] = f.vector(neck * np.exp(-np.square((azimuth - .55) / .28)), .02, 0, .060) \
        + f.vector(neck * np.exp(-np.square(azimuth / .25)), 0, 0, -.030)
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
        source[lips, 2] = np.minimum(source[lips, 2], .02)
        field[copy] = source
    for name, mix in VISEMES.items():
        c[name] = sum(weight * c[part] for part, weight in mix.items())
    return np.stack([c[name] for name in EXPRESSION_NAMES]).astype(np.float32)
