"""The mean head as a surface S(azimuth, height): half-ellipse sections along the height plus facial relief.

Frame: decimetre, x to the image right, y up, z to the viewer; the standard landmarks of the Deep3DFaceRecon frame fit.
``azimuth`` a is 0 at the middle of the face and pi at the back; ``height`` v equals y on the mid line of the face above
the chin, and runs on under the chin and down the neck below it.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural.curves import Spline, bell, bump, smooth_max, step

CROWN = 1.25
EYE_X, EYE_Y, EYE_Z, EYE_RADIUS, LID_RADIUS = 0.311, 0.288, 0.015, 0.150, 0.170
EYE_INNER, EYE_OUTER = 0.180, 0.442  # |x| of the corners of the eye
EYE_LINE, MOUTH_LINE = 0.290, -0.382  # heights of the slits
MOUTH_HALF = 0.252
EYE_SECTION, MOUTH_SECTION = 0.722, 0.606  # half widths of the sections through the eyes and the mouth

_V = [0.50, 0.29, 0.10, -0.10, -0.25, -0.38, -0.55, -0.70, -0.80, -0.88, -0.96, -1.05, -1.20, -1.40, -1.70]
_WIDTH = Spline(
    _V, [0.722, 0.722, 0.706, 0.676, 0.642, 0.606, 0.556, 0.502, 0.455, 0.428, 0.405, 0.400, 0.410, 0.46, 0.60]
)
_FRONT = Spline(
    _V, [0.355, 0.305, 0.270, 0.268, 0.280, 0.292, 0.262, 0.272, 0.225, 0.08, -0.10, -0.17, -0.19, -0.17, -0.12]
)
_CENTRE = Spline(
    _V, [-0.55, -0.54, -0.52, -0.51, -0.50, -0.50, -0.49, -0.49, -0.50, -0.52, -0.54, -0.56, -0.57, -0.59, -0.62]
)
_BACK = Spline(
    _V, [-1.56, -1.53, -1.45, -1.32, -1.20, -1.12, -1.05, -1.00, -0.99, -0.985, -0.985, -0.99, -1.01, -1.06, -1.2]
)
_DROP = Spline(
    [CROWN, -0.70, -0.80, -0.88, -0.96, -1.05, -1.20, -1.40, -1.70], [0, 0, 0.015, 0.055, 0.11, 0.14, 0.16, 0.16, 0.16]
)
_JAW_RISE = Spline(
    [CROWN, -0.20, -0.38, -0.55, -0.70, -0.80, -0.88, -0.96, -1.05, -1.20, -1.70],
    [0, 0, 0.05, 0.15, 0.27, 0.36, 0.31, 0.20, 0.08, 0.0, 0],
)


def sections(v):
    """(half width, front z, centre z, back z) of the horizontal section at height v, without relief."""
    upper = np.clip((v - 0.5) / (CROWN - 0.5), 0, 1)
    round_side = np.sqrt(np.maximum(1 - upper**2.5, 0))
    round_front = np.sqrt(np.maximum(1 - upper**2.7, 0))
    width = np.where(v > 0.5, 0.722 * round_side, _WIDTH(v))
    front = np.where(v > 0.5, -0.55 + 0.905 * round_front, _FRONT(v))
    centre = _CENTRE(v)
    back = np.where(v > 0.5, -0.55 - 1.01 * round_side, _BACK(v))
    return width, front, centre, back


def _profile_nose(v):
    return _NOSE_HEIGHT(v), _NOSE_HALF(v)


_NOSE_HEIGHT = Spline(
    [0.46, 0.36, 0.29, 0.20, 0.10, 0.02, -0.046, -0.09, -0.125, -0.155, -0.185, -0.23],
    [0, 0.010, 0.035, 0.105, 0.180, 0.240, 0.288, 0.272, 0.205, 0.110, 0.035, 0],
)
_NOSE_HALF = Spline(
    [0.46, 0.36, 0.29, 0.20, 0.10, 0.02, -0.05, -0.11, -0.17, -0.23],
    [0.10, 0.085, 0.072, 0.080, 0.088, 0.098, 0.105, 0.105, 0.10, 0.1],
)


def lip_heights(x):
    """(upper, lower) thickness of the red of the lips at |x|, in units of height v."""
    t = np.clip(1 - np.square(x / (MOUTH_HALF + 0.012)), 0, 1)
    upper = 0.082 * t**0.75 * (1 - 0.16 * bell(x, 0.035)) + 0.004
    lower = 0.100 * t**0.62 + 0.003
    return upper, lower


def _relief(x, v):
    """What the face stands out in z above the sections at (x, v)."""
    ax = np.abs(x)
    height, half = _profile_nose(v)
    nose = height * np.exp(-(np.abs(ax / half) ** 2.2))
    wings = 0.105 * bump(ax, v, 0.118, -0.118, 0.060, 0.055) - 0.02 * bump(ax, v, 0.175, -0.10, 0.04, 0.06)
    nostril = -0.045 * bump(ax, v, 0.062, -0.168, 0.030, 0.022)
    socket = -0.125 * bump(ax, v, 0.300, 0.285, 0.165, 0.120) - 0.035 * bump(ax, v, 0.165, 0.30, 0.06, 0.07)
    brow = 0.035 * bump(ax, v, 0.30, 0.455, 0.24, 0.075) + 0.012 * bump(ax, v, 0, 0.44, 0.13, 0.08)
    cheek = 0.030 * bump(ax, v, 0.44, 0.04, 0.17, 0.14) + 0.02 * bump(ax, v, 0.26, -0.02, 0.14, 0.12)
    fold = -0.018 * bump(ax, v, 0.25, -0.22, 0.05, 0.09)
    muzzle = 0.055 * bump(ax, v, 0, -0.36, 0.21, 0.17)
    d = v - MOUTH_LINE
    upper, lower = lip_heights(ax)
    inside = step(MOUTH_HALF + 0.03, MOUTH_HALF - 0.08, ax)
    up = np.clip(d / (upper + 0.004), 0, 2)
    down = np.clip(-d / (lower + 0.004), 0, 2)
    # Each lip: steep at the line between them, fullest at a third of its height, running out past its border.
    lips = inside * np.where(
        d >= 0, 0.052 * np.exp(-np.square((up - 0.50) / 0.62)), 0.058 * np.exp(-np.square((down - 0.48) / 0.60))
    )
    seam = -0.034 * inside * bell(d, 0.014)
    philtrum = -0.010 * bump(ax, v, 0, -0.24, 0.025, 0.06) + 0.006 * bump(ax, v, 0.045, -0.25, 0.02, 0.05)
    chin_crease = -0.030 * bump(ax, v, 0, -0.545, 0.16, 0.045)
    chin = 0.045 * bump(ax, v, 0, -0.69, 0.15, 0.095)
    corner = -0.022 * bump(ax, v, 0.275, -0.385, 0.035, 0.04)
    return (
        nose
        + wings
        + nostril
        + socket
        + brow
        + cheek
        + fold
        + muzzle
        + lips
        + seam
        + philtrum
        + chin_crease
        + chin
        + corner
    )


def lid_height(x, y):
    """z of the sphere on which the eyelids glide, at (x, y); far behind outside its disc."""
    rho2 = np.square(np.abs(x) - EYE_X) + np.square(y - EYE_Y)
    inside = LID_RADIUS**2 - rho2
    return np.where(inside > 0, EYE_Z + np.sqrt(np.maximum(inside, 0)), EYE_Z - 4 * np.maximum(-inside, 0) ** 0.5)


def surface(azimuth, height, relief: bool = True):
    """Points of the mean head: [..., 3] for azimuth (radians, any sign) and height v (broadcast together)."""
    azimuth, height = np.broadcast_arrays(np.asarray(azimuth, float), np.asarray(height, float))
    width, front, centre, back = sections(height)
    sin, cos = np.sin(azimuth), np.cos(azimuth)
    x = width * sin
    z = centre + np.where(cos > 0, front - centre, centre - back) * cos
    side = step(np.radians(5), np.radians(83), np.abs(azimuth))
    y = height + _DROP(height) + _JAW_RISE(height) * side
    if relief:
        frontal = step(0.15, 0.45, cos)
        out = (
            0.028 * bump(np.abs(azimuth), height, 0.95, 0.10, 0.28, 0.15)
            - 0.030 * bump(np.abs(azimuth), height, 1.10, 0.48, 0.25, 0.20)
            - 0.028 * bump(np.abs(azimuth), height, 0.95, -0.28, 0.25, 0.18)
        )
        x = x + out * sin
        z = z + out * cos + frontal * _relief(x, height)
        z = np.where(cos > 0.2, smooth_max(z, lid_height(x, y), 0.022), z)
    return np.stack([x, y, z], -1)
