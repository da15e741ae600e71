"""Colours of the head: a linear skin albedo on the vertices, and per-sample painting of what must be crisp.

Brows, lashes, lips, nostrils, irises, teeth, hair streaks and necklines are functions of canonical surface
coordinates, evaluated at every image sample, so they stay sharp at any resolution and move with the skin.
"""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.curves import Spline, bump, step
from avatar_jax.procedural.identity import TEXTURE_DIM, normals
from avatar_jax.procedural.mesh import CLOTH, EAR, EYE, HAIR, MOUTH, SKIN, TEETH, TONGUE, head_mesh
from avatar_jax.procedural.style import Style, decode_style, hem

SKIN_MEAN = np.array([0.760, 0.565, 0.460])
LIGHT_SKIN = np.array([0.088, 0.100, 0.102])  # one step of the first texture component


def _coordinates():
    m = head_mesh()
    x, y, z = m.positions.T.astype(np.float64)
    flesh = ((m.part == SKIN) | (m.part == EAR)).astype(float)
    return m, x, y, z, flesh


@functools.lru_cache(maxsize=1)
def _lip_mask() -> np.ndarray:
    m, *_ = _coordinates()
    x, v = m.canonical.T.astype(np.float64)
    return np.where((m.part == SKIN) & (np.cos(m.azimuth) > 0.3), lip_cover(x, v), 0)


def lip_cover(x, v):
    """How red the lips are at canonical (x, height): 0..1."""
    upper, lower = face.lip_heights(x)
    d = v - face.MOUTH_LINE
    inside = step(face.MOUTH_HALF + 0.012, face.MOUTH_HALF - 0.03, np.abs(x))
    return inside * step(upper + 0.004, upper - 0.012, d) * step(-lower - 0.006, -lower + 0.014, d)


@functools.lru_cache(maxsize=1)
def texture_basis() -> np.ndarray:
    """[80, V, 3] float32: change of the albedo per unit of each texture component."""
    m, x, y, z, flesh = _coordinates()
    ax = np.abs(x)
    front = flesh * (z > -0.5)

    def spot(cx, cy, sx, sy):
        return front * bump(ax, y, cx, cy, sx, sy)

    red, dark, blue = (
        np.array([0.018, -0.012, -0.010]),
        np.array([-0.022, -0.022, -0.020]),
        np.array([-0.014, -0.008, 0.0]),
    )
    c = [
        flesh[:, None] * LIGHT_SKIN,
        flesh[:, None] * np.array([0.014, -0.010, -0.008]),
        flesh[:, None] * np.array([0.006, 0.004, -0.016]),
        flesh[:, None] * np.array([0.012, 0.0, -0.010]),
    ]
    for weight, colour in (
        (spot(0.42, -0.03, 0.20, 0.17), red),
        (spot(0, -0.07, 0.15, 0.12), red),
        (spot(0, 0.70, 0.5, 0.25), -0.4 * dark),
        (spot(0.31, 0.29, 0.18, 0.14), 0.7 * dark),
        (spot(0.30, 0.17, 0.15, 0.06), dark + blue),
        (spot(0, -0.55, 0.5, 0.25), 1.3 * blue),
        (_lip_mask(), np.array([0.03, -0.020, -0.012])),
        (_lip_mask(), 1.2 * dark),
        (spot(0, -0.36, 0.32, 0.22), 0.5 * dark),
        (flesh * step(-0.75, -1.0, y), 0.6 * dark),
        ((m.part == EAR).astype(float), red),
        (spot(0.3, 0.48, 0.3, 0.1), 0.4 * dark),
        (spot(0.27, -0.22, 0.07, 0.12), 0.6 * dark),
        (spot(0.5, 0.1, 0.2, 0.25), -0.4 * dark),
        (spot(0, 0.1, 0.12, 0.25), -0.4 * dark),
        (spot(0, -0.70, 0.2, 0.12), 0.6 * red),
    ):
        c.append(weight[:, None] * colour)
    wave = normals((0x7E87, 1), 12 * (TEXTURE_DIM - len(c))).reshape(-1, 12)
    for k, w in enumerate(wave):
        frequency = 2.0 + 0.06 * k
        pattern = np.sin(frequency * (w[0] * x + w[1] * y + w[2] * z) + 3 * w[3]) * np.sin(
            frequency * (w[4] * x + w[5] * y + w[6] * z) + 3 * w[7]
        )
        colour = 0.0048 / (1 + 0.01 * k) * (np.array([1.0, 1.05, 1.0]) * w[8] + 0.5 * np.array([1, -0.5, -0.4]) * w[9])
        c.append((flesh * pattern)[:, None] * colour)
    return np.stack(c[:TEXTURE_DIM]).astype(np.float32)


def mean_albedo(style: np.ndarray) -> np.ndarray:
    """[V, 3] float32 mean albedo of every part for a style [32]: smooth parts only, details are painted per sample."""
    return _mean_albedo(np.ascontiguousarray(style, np.float32).tobytes())


@functools.lru_cache(maxsize=64)
def _mean_albedo(style: bytes) -> np.ndarray:
    s = decode_style(np.frombuffer(style, np.float32))
    m, x, y, z, _ = _coordinates()
    ax = np.abs(x)
    front = z > -0.5
    out = np.zeros((len(x), 3))
    out += SKIN_MEAN
    blush = front * (
        0.9 * bump(ax, y, 0.42, -0.03, 0.17, 0.14)
        + 0.8 * bump(ax, y, 0, -0.06, 0.11, 0.09)
        + 0.3 * bump(ax, y, 0, -0.70, 0.15, 0.1)
    ) + 0.7 * (m.part == EAR)
    out += blush[:, None] * np.array([0.035, -0.030, -0.030])
    lids = front * bump(ax, y, 0.31, 0.33, 0.16, 0.06)
    out += lids[:, None] * np.array([-0.03, -0.045, -0.035])
    for part, colour in (
        (MOUTH, (0.42, 0.10, 0.10)),
        (EYE, (0.90, 0.89, 0.87)),
        (TEETH, (0.90, 0.87, 0.79)),
        (TONGUE, (0.74, 0.33, 0.33)),
        (HAIR, s.hair_colour),
        (CLOTH, s.cloth),
    ):
        out[m.part == part] = colour
    return out.astype(np.float32)


@functools.lru_cache(maxsize=1)
def ambient() -> np.ndarray:
    """[V] float32 share of the ambient light that reaches the neutral surface (hollows of the face, under the chin)."""
    m, x, *_ = _coordinates()
    ax = np.abs(x)
    v = m.height
    skin = m.part == SKIN
    front = skin & (np.cos(m.azimuth) > 0.1)
    hollow = (
        0.26 * bump(ax, v, 0.20, 0.33, 0.07, 0.09)
        + 0.12 * bump(ax, v, 0.31, 0.36, 0.15, 0.05)
        + 0.10 * bump(ax, v, 0.31, 0.20, 0.14, 0.05)
        + 0.42 * bump(ax, v, 0.07, -0.20, 0.10, 0.040)
        + 0.16 * bump(ax, v, 0.185, -0.12, 0.035, 0.06)
        + 0.18 * bump(ax, v, 0.275, -0.385, 0.04, 0.035)
        + 0.22 * bump(ax, v, 0, -0.53, 0.13, 0.03)
        + 0.10 * bump(ax, v, 0.26, -0.24, 0.05, 0.10)
    )
    out = np.where(front, 1 - hollow, 1)
    under = (
        step(-0.74, -0.90, v) * (1 - 0.45 * step(-0.95, -1.3, v)) * (0.35 + 0.65 * step(1.7, 0.6, np.abs(m.azimuth)))
    )
    out = np.where(skin, out * (1 - 0.42 * under), out)
    behind = skin * np.exp(-np.square((np.abs(m.azimuth) - 1.75) / 0.35)) * step(-0.6, -0.1, v) * step(0.6, 0.3, v)
    out = out * (1 - 0.3 * behind)
    return np.where(skin & (m.follow < 0), out, m.occlusion).astype(np.float32)


# ---------------------------------------------------------------------------------------------- painting per sample
def paint(albedo, part, canonical, style: Style, skin_tone: np.ndarray) -> None:
    """Paints the details into ``albedo`` [N, 3] in place.

    ``part`` [N]; ``canonical`` [N, 3] (the two painting coordinates of the part, and |azimuth|); ``skin_tone`` [3].
    """
    u, v, _ = canonical.T
    _paint_face(albedo, part, canonical, style, True)
    _paint_hair(albedo, u, v, np.flatnonzero(part == HAIR), style)
    _paint_cloth(albedo, u, v, np.flatnonzero(part == CLOTH), style, skin_tone)


def paint_base(albedo, part, canonical, style: Style, skin_tone: np.ndarray) -> None:
    """As ``paint``, without what version 2 paints itself: beards, freckles, strands of hair."""
    u, v, _ = canonical.T
    _paint_face(albedo, part, canonical, style, False)
    _paint_cloth(albedo, u, v, np.flatnonzero(part == CLOTH), style, skin_tone)


def _paint_face(albedo, part, canonical, style: Style, all_details: bool) -> None:
    u, v, turn = canonical.T
    skin = part == SKIN
    _paint_scalp(albedo, turn, v, skin, style)
    if all_details:
        _paint_beard(albedo, u, turn, v, skin, style)
        _paint_freckles(albedo, u, v, skin, style)
    _paint_brows(albedo, u, v, skin, style)
    _paint_eyelids(albedo, u, v, skin, style)
    _paint_mouth_region(albedo, u, v, skin, style)
    _paint_eyes(albedo, u, v, np.flatnonzero(part == EYE), style)
    _paint_teeth(albedo, u, v, np.flatnonzero(part == TEETH))


def _mix(albedo, index, amount, colour):
    block = albedo[index]
    block += np.asarray(amount, np.float32)[:, None] * (np.asarray(colour, np.float32) - block)
    albedo[index] = block


def _paint_scalp(albedo, turn, v, skin, s: Style):
    """Roots of the hair under and around the shell, and the shade that the hair throws on the skin below it."""
    i = np.flatnonzero(skin & (v > -0.65) & ((v > 0) | (turn > 1.3)))
    table = np.linspace(0, np.pi, 128)
    d = v[i] - np.interp(turn[i], table, hem(s, table, roots=True))
    if s.cut == 'bald':
        _mix(albedo, i, 0.10 * step(-0.06, 0.12, d) * step(-0.6, 0.4, v[i]), s.hair_colour)
        return
    if s.cut != 'buzz':
        albedo[i] *= (1 - 0.22 * step(-0.15, -0.01, d))[:, None]
    _mix(albedo, i, 0.90 * step(-0.055, 0.035, d), s.hair_colour)


_BEARD_TOP = Spline(
    [0, 0.10, 0.18, 0.30, 0.50, 0.75, 1.0, 1.2, 1.32, 3.2],
    [-0.535, -0.54, -0.53, -0.44, -0.36, -0.27, -0.10, 0.10, 0.2, -2.0],
)


def beard_cover(x, y, turn, s: Style, soft: float = 1.0):
    """Where a beard grows at canonical (|x|, height) and |azimuth|: 0..1; ``soft`` widens its upper border."""
    top = _BEARD_TOP(turn)
    cover = step(0.03 * soft, -0.05 * soft, y - top) * step(-0.96, -0.84, y) * step(1.38, 1.28, turn)
    line = -0.262 + 0.04 * x - 0.35 * x * x
    lip = (
        step(0.245, 0.20, x)
        * step(line + 0.035, line - 0.005, y)
        * step(face.MOUTH_LINE + 0.02, face.MOUTH_LINE + 0.06, y)
    )
    beside = step(0.20, 0.235, x) * step(0.34, 0.29, x) * step(-0.25, -0.31, y) * step(-0.60, -0.52, y)
    goatee = step(0.06, 0.03, x) * step(-0.50, -0.52, y)
    cover = np.maximum(cover, goatee)
    if s.moustache or s.beard == 0:
        cover = np.maximum(cover, np.maximum(lip, beside))
    return cover


def _paint_beard(albedo, u, turn, v, skin, s: Style):
    strength = max(s.beard, 0.32 * s.stubble)
    if strength < 0.04:
        return
    i = np.flatnonzero(skin & (v < 0.2) & (v > -0.97) & (turn < 1.4))
    x, y = np.abs(u[i]), v[i]
    cover = beard_cover(x, y, turn[i], s)
    grain = 0.94 + 0.06 * np.sin(160 * x + 90 * y) * np.sin(130 * y - 70 * x)
    _mix(albedo, i, (min(strength * 0.95, 0.9) * grain * cover), s.hair_colour * 0.85)


def _paint_freckles(albedo, u, v, skin, s: Style):
    if s.freckles <= 0:
        return
    i = np.flatnonzero(skin & (np.abs(v - 0.03) < 0.25) & (np.abs(u) < 0.62))
    x, y = u[i], v[i]
    spots = np.sin(74 * x + 2.2 * np.sin(23 * y) + 9 * y) * np.sin(70 * y + 2.2 * np.sin(21 * x) - 8 * x)
    cover = step(0.35, 0.9, spots) * bump(np.abs(x), y, 0.26, 0.02, 0.30, 0.16)
    _mix(albedo, i, min(0.12 + 0.25 * s.freckles, 0.4) * cover, albedo[i] * np.array([0.66, 0.52, 0.45]))


def _paint_brows(albedo, u, v, skin, s: Style):
    i = np.flatnonzero(skin & (v > 0.36) & (v < 0.62) & (np.abs(u) < 0.70) & (np.abs(u) > 0.04))
    ax, y = np.abs(u[i]), v[i]
    t = np.clip((ax - 0.085) / 0.53, 0, 1)  # along the brow
    centre = (
        0.445
        + 0.060 * np.sin(np.pi * np.clip(t * 0.82 + 0.05, 0, 1))
        + s.brow_arch * np.sin(np.pi * t**1.3)
        - 0.055 * t**3
    )
    half = s.brow_thickness * (1 - 0.68 * t**1.7) * (0.82 + 0.18 * np.minimum(t * 8, 1))
    across = np.abs(y - centre) / half
    ends = step(0.070, 0.125, ax) * step(0.60, 0.50, ax)
    strands = 0.90 + 0.10 * np.sin(190 * ax - 140 * (y - centre)) * np.sin(67 * ax + 40 * y)
    _mix(albedo, i, (s.brow_strength * step(1.25, 0.45, across) * ends * strands), s.brow_colour)


def _paint_eyelids(albedo, u, v, skin, s: Style):
    i = np.flatnonzero(skin & (np.abs(v - face.EYE_LINE) < 0.13) & (np.abs(u) < 0.50) & (np.abs(u) > 0.14))
    ax, d = np.abs(u[i]), v[i] - face.EYE_LINE
    along = step(face.EYE_INNER - 0.015, face.EYE_INNER + 0.04, ax) * step(
        face.EYE_OUTER + 0.035, face.EYE_OUTER - 0.01, ax
    )
    if s.shadow > 0.1:
        tint = np.array([0.38, 0.24, 0.30])
        _mix(albedo, i, (0.55 * s.shadow * along * step(0.0, 0.01, d) * step(0.085, 0.03, d)), tint)
    crease = along * np.exp(-np.square((d - 0.050) / 0.011)) * 0.34
    _mix(albedo, i, crease, albedo[i] * 0.45)
    width = 0.010 + 0.012 * s.lashes * step(0.2, 0.42, ax)
    lash = along * np.where(
        d >= 0, step(width + 0.010, width * 0.45, d) * (0.62 + 0.3 * s.lashes), step(-0.015, -0.004, d) * 0.40
    )
    _mix(albedo, i, lash, np.array([0.07, 0.05, 0.045]))
    rim = np.flatnonzero(skin & (u > 2))  # canonical x beyond the face marks the thickness of the lids
    albedo[rim] *= np.where(v[rim, None] > 0, np.array([0.45, 0.36, 0.34]), np.array([0.92, 0.68, 0.64]))


def _paint_mouth_region(albedo, u, v, skin, s: Style):
    i = np.flatnonzero(skin & (v < -0.12) & (v > -0.52) & (np.abs(u) < 0.29))
    x, y = u[i], v[i]
    cover = lip_cover(x, y)
    natural = albedo[i] * np.array([0.90, 0.62, 0.62]) + np.array([0.02, 0, 0.005])
    stick = np.array([0.66, 0.12, 0.17]) * (1 - s.lip_hue) + np.array([0.72, 0.30, 0.36]) * s.lip_hue
    colour = natural + 0.75 * s.lip_tint * (stick - natural)
    _mix(albedo, i, (0.92 * cover), colour)
    seam = np.exp(-np.square((y - face.MOUTH_LINE) / 0.008)) * step(
        face.MOUTH_HALF + 0.02, face.MOUTH_HALF - 0.03, np.abs(x)
    )
    _mix(albedo, i, (0.72 * seam), np.array([0.20, 0.06, 0.06]))
    nostril = bump(np.abs(x), y, 0.062, -0.166, 0.034, 0.017)
    _mix(albedo, i, (0.85 * np.minimum(1.25 * nostril, 1)), np.array([0.12, 0.05, 0.045]))


def _paint_eyes(albedo, u, v, i, s: Style):
    if not len(i):
        return
    r = np.hypot(u[i], v[i])
    radius = 0.435
    block = albedo[i] * ((1 - 0.16 * step(0.4, 0.9, r)) * (1 - 0.22 * step(0.12, 0.50, v[i])))[:, None]
    fibres = 0.86 + 0.14 * np.sin(np.arctan2(v[i], u[i]) * 14)
    iris = s.iris * (fibres * (0.72 + 0.55 * step(0.15, 0.36, r)))[:, None]
    iris = iris * (1 - 0.62 * step(0.36, 0.44, r))[:, None]
    cover = step(radius + 0.025, radius - 0.025, r)[:, None]
    block += cover * (iris - block)
    block += step(0.205, 0.160, r)[:, None] * (np.array([0.02, 0.018, 0.018]) - block)
    albedo[i] = block


def _paint_teeth(albedo, u, v, i):
    if not len(i):
        return
    t, y = u[i], v[i]
    gap = np.exp(-np.square((np.mod(t / 0.30 + 0.5, 1) - 0.5) / 0.07)) * 0.38
    albedo[i] *= (1 - gap)[:, None]
    gum = np.where(y > -0.385, step(-0.332, -0.318, y - 0.008 * np.cos(t / 0.30 * 2 * np.pi)), step(-0.450, -0.464, y))
    _mix(albedo, i, gum, np.array([0.72, 0.34, 0.34]))


def _paint_hair(albedo, u, v, i, s: Style):
    if not len(i):
        return
    a, k = u[i], v[i]
    strands = (
        0.5 * np.sin(83 * a + 4 * np.sin(7 * k + 2 * a)) + 0.3 * np.sin(171 * a + 9 * k) + 0.35 * np.sin(23 * a + 6 * k)
    )
    gloss = 0.35 * np.exp(-np.square((k - 0.40 - 0.03 * np.sin(9 * a)) / 0.11))
    amount = 0.13 if s.cut != 'curly' else 0.22
    if s.cut == 'curly':
        strands = strands + np.sin(38 * a) * np.sin(42 * k)
    albedo[i] *= (1 + amount * strands + gloss)[:, None]


def _paint_cloth(albedo, u, v, i, s: Style, skin_tone):
    if not len(i):
        return
    turn, row = u[i], v[i]
    if s.stripes:
        _mix(albedo, i, 0.85 * step(-0.25, 0.25, np.sin(row * 9)), s.cloth2)
    if s.collar == 1:  # a V with skin in it
        d = row - (3.1 - 5.2 * turn)
        _mix(albedo, i, step(0.30, 0.22, d), s.cloth * 0.55)
        _mix(albedo, i, step(0.06, -0.04, d), skin_tone * 0.92)
    elif s.collar == 2:  # a white collar, open at the throat
        _mix(albedo, i, step(2.0, 1.9, row - 1.2 * step(0.9, 0.2, turn)), np.array([0.90, 0.90, 0.89]))
        _mix(albedo, i, step(0.04, -0.04, row - (2.4 - 9 * turn)), skin_tone * 0.88)
    else:
        _mix(albedo, i, 0.5 * step(0.9, 0.75, row) if s.collar == 0 else 0.45 * step(2.3, 2.2, row), s.cloth * 0.55)
