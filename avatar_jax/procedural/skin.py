"""Coordinates of the skin: the grid of rows and columns, the lids along the slits of the eyes, neutral points."""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.curves import step

# Azimuths of the inner and outer corner of the eye, and of the corner of the mouth.
A1 = float(np.arcsin(face.EYE_INNER / face.EYE_SECTION))
A2 = float(np.arcsin(face.EYE_OUTER / face.EYE_SECTION))
A3 = float(np.arcsin(face.MOUTH_HALF / face.MOUTH_SECTION))

ROWS = np.array(
    [1.2485, 1.225, 1.17, 1.09, 1.0, 0.90, 0.80, 0.71, 0.63, 0.565, 0.515, 0.475, 0.44]
    + [face.EYE_LINE + d for d in (0.115, 0.088, 0.066, 0.047, 0.030, 0.014, 0, -0.014, -0.032, -0.055, -0.085)]
    + [0.165, 0.12, 0.075, 0.03, -0.01, -0.045, -0.075, -0.105, -0.13, -0.155, -0.18, -0.21, -0.245]
    + [
        face.MOUTH_LINE + d
        for d in (0.104, 0.082, 0.060, 0.040, 0.020, 0.007, 0, -0.007, -0.022, -0.044, -0.068, -0.092, -0.115)
    ]
    + [-0.53, -0.575, -0.625, -0.68, -0.735, -0.80, -0.86, -0.92, -0.98, -1.06, -1.18, -1.35, -1.60]
)
EYE_ROW = int(np.argmin(np.abs(ROWS - face.EYE_LINE)))
MOUTH_ROW = int(np.argmin(np.abs(ROWS - face.MOUTH_LINE)))


def _columns() -> np.ndarray:
    half = np.concatenate(
        [
            np.linspace(0, A1, 6)[:-1],
            np.linspace(A1, A3, 5)[:-1],
            np.linspace(A3, A2, 5)[:-1],
            np.linspace(A2, 1.05, 5)[:-1],
            np.linspace(1.05, 1.75, 6)[:-1],
            np.linspace(1.75, np.pi, 7),
        ]
    )
    return np.concatenate([-half[1:-1][::-1], half])


COLUMNS = _columns()  # the last one is at pi and joins the first


def eye_arc(x):
    """(position from the inner 0 to the outer corner 1, arc) along the eye slit at |x|; the arc is 0 outside."""
    p = np.clip((np.abs(x) - face.EYE_INNER) / (face.EYE_OUTER - face.EYE_INNER), 0, 1)
    return p, np.sin(np.pi * p**0.92) ** 0.8 * (p > 0) * (p < 1)


def lid_shift(x, height, side, upper: float, lower: float):
    """How far (in height) the skin near the eyes moves when the slit's edges stand at ``upper`` and ``lower``."""
    _, arc = eye_arc(x)
    d = height - face.EYE_LINE
    above = np.clip(1 - np.abs(d) / 0.20, 0, 1) ** 1.5
    below = np.clip(1 - np.abs(d) / 0.17, 0, 1) ** 1.5
    return arc * np.where(side > 0, upper * above, lower * below)


def mouth_line(x):
    """Rise of the line between the lips over MOUTH_LINE at x (a flat M)."""
    ax = np.abs(x)
    return 0.010 * np.exp(-np.square((ax - 0.07) / 0.05)) - 0.004 * np.exp(-np.square(ax / 0.03))


def skin_points(azimuth, height, side, upper_lid: float | None = None, lower_lid: float | None = None):
    """Neutral skin at surface coordinates, with the lids standing at the given heights over the eye line."""
    upper_lid = LIDS_NEUTRAL[0] if upper_lid is None else upper_lid
    lower_lid = LIDS_NEUTRAL[1] if lower_lid is None else lower_lid
    base = face.EYE_SECTION * np.sin(azimuth)
    frontal = np.cos(azimuth) > 0.2
    shifted = height + np.where(frontal, lid_shift(base, height, side, upper_lid, lower_lid), 0)
    # A slight rise of the outer corners, and the bow of the lips.
    shifted = shifted + np.where(
        frontal,
        0.012
        * (np.abs(base) - 0.31)
        / 0.13
        * np.exp(-np.square((height - face.EYE_LINE) / 0.12) - np.square((np.abs(base) - 0.31) / 0.2)),
        0,
    )
    points = face.surface(azimuth, shifted)
    x = face.MOUTH_SECTION * np.sin(azimuth)
    inside = step(face.MOUTH_HALF + 0.02, face.MOUTH_HALF - 0.06, np.abs(x)) * frontal
    points[..., 1] += mouth_line(x) * inside * np.exp(-np.square((height - face.MOUTH_LINE) / 0.05))
    return points


LIDS_NEUTRAL = (0.066, -0.042)  # heights of the edges of the upper and lower lid over the eye line


def lid_motion(azimuth, height, side, lids: tuple[float, float]):
    """Displacement [N, 3] of the skin around the eyes when the lids go from neutral to the heights ``lids``.

    On the lids z follows the sphere on which they glide, also where the skin stands off it: such displacements may be
    added up without an eyeball showing through, because the sphere is convex.
    """
    old, new = skin_points(azimuth, height, side, *LIDS_NEUTRAL), skin_points(azimuth, height, side, *lids)
    out = new - old

    def sphere(p):
        rho2 = np.square(np.abs(old[:, 0]) - face.EYE_X) + np.square(p[:, 1] - face.EYE_Y)
        return np.sqrt(np.maximum(face.LID_RADIUS**2 - rho2, 0.004))

    rho = np.hypot(np.abs(old[:, 0]) - face.EYE_X, old[:, 1] - face.EYE_Y)
    on_lid = step(0.175, 0.145, rho)
    out[:, 2] += on_lid * (sphere(new) - sphere(old) - out[:, 2])
    return out
