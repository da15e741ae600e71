"""The mean head as a surface S(azimuth, height): half-ellipse sections along the height plus facial relief.

Frame: decimetre, x to the image right, y up, z to the viewer; the standard landmarks of the Deep3DFaceRecon frame fit.
``azimuth`` a is 0 at the middle of the face and pi at the back; ``height`` v equals y on the mid line of the face above
the chin, and runs on under the chin and down the neck below it.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.faces.procedural.curves import Spline, bell, bump, smooth_max, step

CROWN = 1.25
EYE_X, EYE_Y, EYE_Z, EYE_RADIUS, LID_RADIUS = 0.311, 0.288, 0.015, 0.150, 0.170
EYE_INNER, EYE_OUTER = 0.180, 0.442  # |x| of the corners of the eye
EYE_LINE, MOUTH_LINE = 0.290, -0.382  # heights of the slits
MOUTH_HALF = 0.252
EYE_SECTION, MOUTH_SECTION = .722, .606  # half widths of the sections through the eyes and the mouth

_V = [.50, .29, .10, -.10, -.25, -.38, -.55, -.70, -.80, -.88, -.96, -1.05, -1.20, -1.40, -1.70]
_WIDTH = Spline(_V, [.722, .722, .706, .676, .642, .606, .556, .502, .455, .428, .405, .400, .410, .46, .60])
_FRONT = Spline(_V, [.355, .305, .270, .268, .280, .292, .262, .272, .225, .08, -.10, -.17, -.19, -.17, -.12])
_CENTRE = Spline(_V, [-.55, -.54, -.52, -.51, -.50, -.50, -.49, -.49, -.50, -.52, -.54, -.56, -.57, -.59, -.62])
_BACK = Spline(_V, [-1.56, -1.53, -1.45, -1.32, -1.20, -1.12, -1.05, -1.00, -.99, -.985, -.985, -.99, -1.01, -1.06, -1.2])
_DROP = Spline([CROWN, -.70, -.80, -.88, -.96, -1.05, -1.20, -1.40, -1.70],
               [0, 0, .015, .055, .11, .14, .16, .16, .16])
_JAW_RISE = Spline([CROWN, -.20, -.38, -.55, -.70, -.80, -.88, -.96, -1.05, -1.20, -1.70],
                   [0, 0, .05, .15, .27, .36, .31, .20, .08, .0, 0])


def sections(v):
    """(half width, front z, centre z, back z) of the horizontal section at height v, without relief."""
    upper = np.clip((v - .5) / (CROWN - .5), 0, 1)
    round_side = np.sqrt(np.maximum(1 - upper ** 2.5, 0))
    round_front = np.sqrt(np.maximum(1 - upper ** 2.7, 0))
    width = np.where(v > .5, .722 * round_side, _WIDTH(v))
    front = np.where(v > .5, -.55 + .905 * round_front, _FRONT(v))
    centre = _CENTRE(v)
    back = np.where(v > .5, -.55 - 1.01 * round_side, _BACK(v))
    return width, front, centre, back


def _profile_nose(v):
    return _NOSE_HEIGHT(v), _NOSE_HALF(v)


_NOSE_HEIGHT = Spline([.46, .36, .29, .20, .10, .02, -.046, -.09, -.125, -.155, -.185, -.23],
                      [0, .010, .035, .105, .180, .240, .288, .272, .205, .110, .035, 0])
_NOSE_HALF = Spline([.46, .36, .29, .20, .10, .02, -.05, -.11, -.17, -.23],
                    [.10, .085, .072, .080, .088, .098, .105, .105, .10, .1])


def lip_heights(x):
    """(upper, lower) thickness of the red of the lips at |x|, in units of height v."""
    t = np.clip(1 - np.square(x / (MOUTH_HALF + .012)), 0, 1)
    upper = .082 * t ** .75 * (1 - .16 * bell(x, .035)) + .004
    lower = .100 * t ** .62 + .003
    return upper, lower


def _relief(x, v):
    """What the face stands out in z above the sections at (x, v)."""
    ax = np.abs(x)
    height, half = _profile_nose(v)
    nose = height * np.exp(-np.abs(ax / half) ** 2.2)
    wings = .105 * bump(ax, v, .118, -.118, .060, .055) - .02 * bump(ax, v, .175, -.10, .04, .06)
    nostril = -.045 * bump(ax, v, .062, -.168, .030, .022)
    socket = -.125 * bump(ax, v, .300, .285, .165, .120) - .035 * bump(ax, v, .165, .30, .06, .07)
    brow = .035 * bump(ax, v, .30, .455, .24, .075) + .012 * bump(ax, v, 0, .44, .13, .08)
    cheek = .030 * bump(ax, v, .44, .04, .17, .14) + .02 * bump(ax, v, .26, -.02, .14, .12)
    fold = -.018 * bump(ax, v, .25 , -.22, .05, .09)
    muzzle = .055 * bump(ax, v, 0, -.36, .21, .17)
    d = v - MOUTH_LINE
    upper, lower = lip_heights(ax)
    inside = step(MOUTH_HALF + .03, MOUTH_HALF - .08, ax)
    up = np.clip(d / (upper + .004), 0, 2)
    down = np.clip(-d / (lower + .004), 0, 2)
    # Each lip: steep at the line between them, fullest at a third of its height, running out past its border.
    lips = inside * np.where(d >= 0, .052 * np.exp(-np.square((up - .50) / .62)),
                             .058 * np.exp(-np.square((down - .48) / .60)))
    seam = -.034 * inside * bell(d, .014)
    philtrum = -.010 * bump(ax, v, 0, -.24, .025, .06) + .006 * bump(ax, v, .045, -.25, .02, .05)
    chin_crease = -.030 * bump(ax, v, 0, -.545, .16, .045)
    chin = .045 * bump(ax, v, 0, -.69, .15, .095)
    corner = -.022 * bump(ax, v, .275, -.385, .035, .04)
    return nose + wings + nostril + socket + brow + cheek + fold + muzzle + lips + seam + philtrum + chin_crease \
        + chin + corner


def lid_height(x, y):
    """z of the sphere on which the eyelids glide, at (x, y); far behind outside its disc."""
    rho2 = np.square(np.abs(x) - EYE_X) + np.square(y - EYE_Y)
    inside = LID_RADIUS ** 2 - rho2
    return np.where(inside > 0, EYE_Z + np.sqrt(np.maximum(inside, 0)), EYE_Z - 4 * np.maximum(-inside, 0) ** .5)


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
        frontal = step(.15, .45, cos)
        out = .028 * bump(np.abs(azimuth), height, .95, .10, .28, .15) \
            - .030 * bump(np.abs(azimuth), height, 1.10, .48, .25, .20) \
            - .028 * bump(np.abs(azimuth), height, .95, -.28, .25, .18)
        x = x + out * sin
        z = z + out * cos + frontal * _relief(x, height)
        z = np.where(cos > .2, smooth_max(z, lid_height(x, y), .022), z)
    return np.stack([x, y, z], -1)
