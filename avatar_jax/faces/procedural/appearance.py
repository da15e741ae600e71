"""Colours of the head: a linear skin albedo on the vertices, and per-sample painting of what must be crisp.

Brows, lashes, lips, nostrils, irises, teeth, hair streaks and necklines are functions of canonical surface
coordinates, evaluated at every image sample, so they stay sharp at any resolution and move with the skin.
"""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.faces.procedural import surface as face
from avatar_jax.faces.procedural.curves import Spline, bump, step
from avatar_jax.faces.procedural.identity import TEXTURE_DIM, normals
from avatar_jax.faces.procedural.mesh import CLOTH, EAR, EYE, HAIR, MOUTH, SKIN, TEETH, TONGUE, head_mesh
from avatar_jax.faces.procedural.style import Style, decode_style, hem

SKIN_MEAN = np.array([.760, .565, .460])
LIGHT_SKIN = np.array([.088, .100, .102])  # one step of the first texture component


def _coordinates():
    m = head_mesh()
    x, y, z = m.positions.T.astype(np.float64)
    flesh = ((m.part == SKIN) | (m.part == EAR)).astype(float)
    return m, x, y, z, flesh


@functools.lru_cache(maxsize=1)
def _lip_mask() -> np.ndarray:
    m, *_ = _coordinates()
    x, v = m.canonical.T.astype(np.float64)
    return np.where((m.part == SKIN) & (np.cos(m.azimuth) > .3), lip_cover(x, v), 0)


def lip_cover(x, v):
    """How red the lips are at canonical (x, height): 0..1."""
    upper, lower = face.lip_heights(x)
    d = v - face.MOUTH_LINE
    inside = step(face.MOUTH_HALF + .012, face.MOUTH_HALF - .03, np.abs(x))
    return inside * step(upper + .004, upper - .012, d) * step(-lower - .006, -lower + .014, d)


@functools.lru_cache(maxsize=1)
def texture_basis() -> np.ndarray:
    """[80, V, 3] float32: change of the albedo per unit of each texture component."""
    m, x, y, z, flesh = _coordinates()
    ax = np.abs(x)
    front = flesh * (z > -.5)

    def spot(cx, cy, sx, sy):
        return front * bump(ax, y, cx, cy, sx, sy)

    red, dark, blue = np.array([.018, -.012, -.010]), np.array([-.022, -.022, -.020]), np.array([-.014, -.008, .0])
    c = [flesh[:, None] * LIGHT_SKIN, flesh[:, None] * np.array([.014, -.010, -.008]),
         flesh[:, None] * np.array([.006, .004, -.016]), flesh[:, None] * np.array([.012, .0, -.010])]
    for weight, colour in (
            (spot(.42, -.03, .20, .17), red), (spot(0, -.07, .15, .12), red), (spot(0, .70, .5, .25), -.4 * dark),
            (spot(.31, .29, .18, .14), .7 * dark), (spot(.30, .17, .15, .06), dark + blue),
            (spot(0, -.55, .5, .25), 1.3 * blue), (_lip_mask(), np.array([.03, -.020, -.012])),
            (_lip_mask(), 1.2 * dark), (spot(0, -.36, .32, .22), .5 * dark),
            (flesh * step(-.75, -1.0, y), .6 * dark), ((m.part == EAR).astype(float), red),
            (spot(.3, .48, .3, .1), .4 * dark), (spot(.27, -.22, .07, .12), .6 * dark),
            (spot(.5, .1, .2, .25), -.4 * dark), (spot(0, .1, .12, .25), -.4 * dark), (spot(0, -.70, .2, .12), .6 * red)):
        c.append(weight[:, None] * colour)
    wave = normals((0x7E87, 1), 12 * (TEXTURE_DIM - len(c))).reshape(-1, 12)
    for k, w in enumerate(wave):
        frequency = 2. + .06 * k
        pattern = np.sin(frequency * (w[0] * x + w[1] * y + w[2] * z) + 3 * w[3]) \
            * np.sin(frequency * (w[4] * x + w[5] * y + w[6] * z) + 3 * w[7])
        colour = .0048 / (1 + .01 * k) * (np.array([1., 1.05, 1.0]) * w[8] + .5 * np.array([1, -.5, -.4]) * w[9])
        c.append((flesh * pattern)[:, None] * colour)
    return np.stack(c[:TEXTURE_DIM]).astype(np.float32)


def mean_albedo(style: np.ndarray) -> np.ndarray:
    """[V, 3] float32 mean albedo of every part for a style [32]: smooth parts only, details are painted per sample."""
    return _mean_albedo(np.ascontiguousarray(style, np.float32).tobytes())


@functools.lru_cache(maxsize=64)
def _mean_albedo(style: bytes) -> np.ndarray:
    s = decode_style(np.frombuffer(style, np.float32))
    m, x, y, z, flesh = _coordinates()
    ax = np.abs(x)
    front = z > -.5
    out = np.zeros((len(x), 3))
    out += SKIN_MEAN
    blush = front * (.9 * bump(ax, y, .42, -.03, .17, .14) + .8 * bump(ax, y, 0, -.06, .11, .09)
                     + .3 * bump(ax, y, 0, -.70, .15, .1)) + .7 * (m.part == EAR)
    out += blush[:, None] * np.array([.035, -.030, -.030])
    lids = front * bump(ax, y, .31, .33, .16, .06)
    out += lids[:, None] * np.array([-.03, -.045, -.035])
    for part, colour in ((MOUTH, (.42, .10, .10)), (EYE, (.90, .89, .87)), (TEETH, (.90, .87, .79)),
                         (TONGUE, (.74, .33, .33)), (HAIR, s.hair_colour), (CLOTH, s.cloth)):
        out[m.part == part] = colour
    return out.astype(np.float32)


@functools.lru_cache(maxsize=1)
def ambient() -> np.ndarray:
    """[V] float32 share of the ambient light that reaches the neutral surface (hollows of the face, under the chin)."""
    m, x, y, z, _ = _coordinates()
    ax = np.abs(x)
    v = m.height
    skin = m.part == SKIN
    front = skin & (np.cos(m.azimuth) > .1)
    hollow = .26 * bump(ax, v, .20, .33, .07, .09) + .12 * bump(ax, v, .31, .36, .15, .05) + .10 * bump(ax, v, .31, .20, .14, .05) \
        + .42 * bump(ax, v, .07, -.20, .10, .040) + .16 * bump(ax, v, .185, -.12, .035, .06) \
        + .18 * bump(ax, v, .275, -.385, .04, .035) + .22 * bump(ax, v, 0, -.53, .13, .03) + .10 * bump(ax, v, .26, -.24, .05, .10)
    out = np.where(front, 1 - hollow, 1)
    under = step(-.74, -.90, v) * (1 - .45 * step(-.95, -1.3, v)) * (.35 + .65 * step(1.7, .6, np.abs(m.azimuth)))
    out = np.where(skin, out * (1 - .42 * under), out)
    behind = skin * np.exp(-np.square((np.abs(m.azimuth) - 1.75) / .35)) * step(-.6, -.1, v) * step(.6, .3, v)
    out = out * (1 - .3 * behind)
    return np.where(skin & (m.follow < 0), out, m.occlusion).astype(np.float32)


# ---------------------------------------------------------------------------------------------- painting per sample
def paint(albedo, part, canonical, style: Style, skin_tone: np.ndarray) -> None:
    """Paints the details into ``albedo`` [N, 3] in place.

    ``part`` [N]; ``canonical`` [N, 3] (the two painting coordinates of the part, and |azimuth|); ``skin_tone`` [3].
    """
    u, v, turn = canonical.T
    skin = part == SKIN
    _paint_scalp(albedo, turn, v, skin, style)
    _paint_beard(albedo, u, turn, v, skin, style)
    _paint_freckles(albedo, u, v, skin, style)
    _paint_brows(albedo, u, v, skin, style)
    _paint_eyelids(albedo, u, v, skin, style)
    _paint_mouth_region(albedo, u, v, skin, style)
    _paint_eyes(albedo, u, v, np.flatnonzero(part == EYE), style)
    _paint_teeth(albedo, u, v, np.flatnonzero(part == TEETH))
    _paint_hair(albedo, u, v, np.flatnonzero(part == HAIR), style)
    _paint_cloth(albedo, u, v, np.flatnonzero(part == CLOTH), style, skin_tone)


def _mix(albedo, index, amount, colour):
    block = albedo[index]
    block += np.asarray(amount, np.float32)[:, None] * (np.asarray(colour, np.float32) - block)
    albedo[index] = block


def _paint_scalp(albedo, turn, v, skin, s: Style):
    """Roots of the hair under and around the shell, and the shade that the hair throws on the skin below it."""
    i = np.flatnonzero(skin & (v > -.65) & ((v > 0) | (turn > 1.3)))
    table = np.linspace(0, np.pi, 128)
    d = v[i] - np.interp(turn[i], table, hem(s, table, roots=True))
    if s.cut == 'bald':
        _mix(albedo, i, .10 * step(-.06, .12, d) * step(-.6, .4, v[i]), s.hair_colour)
        return
    if s.cut != 'buzz':
        albedo[i] *= (1 - .22 * step(-.15, -.01, d))[:, None]
    _mix(albedo, i, .90 * step(-.055, .035, d), s.hair_colour)


_BEARD_TOP = Spline([0, .10, .18, .30, .50, .75, 1.0, 1.2, 1.32, 3.2],
                    [-.535, -.54, -.53, -.44, -.36, -.27, -.10, .10, .2, -2.])


def _paint_beard(albedo, u, turn, v, skin, s: Style):
    strength = max(s.beard, .32 * s.stubble)
    if strength < .04:
        return
    i = np.flatnonzero(skin & (v < .2) & (v > -.97) & (turn < 1.4))
    x, y, t = np.abs(u[i]), v[i], turn[i]
    top = _BEARD_TOP(t)
    cover = step(.03, -.05, y - top) * step(-.96, -.84, y) * step(1.38, 1.28, t)
    line = -.262 + .04 * x - .35 * x * x
    lip = step(.245, .20, x) * step(line + .035, line - .005, y) * step(face.MOUTH_LINE + .02, face.MOUTH_LINE + .06, y)
    beside = step(.20, .235, x) * step(.34, .29, x) * step(-.25, -.31, y) * step(-.60, -.52, y)
    goatee = step(.06, .03, x) * step(-.50, -.52, y)
    cover = np.maximum(cover, goatee)
    if s.moustache or s.beard == 0:
        cover = np.maximum(cover, np.maximum(lip, beside))
    grain = .94 + .06 * np.sin(160 * x + 90 * y) * np.sin(130 * y - 70 * x)
    _mix(albedo, i, (min(strength * .95, .9) * grain * cover), s.hair_colour * .85)


def _paint_freckles(albedo, u, v, skin, s: Style):
    if s.freckles <= 0:
        return
    i = np.flatnonzero(skin & (np.abs(v - .03) < .25) & (np.abs(u) < .62))
    x, y = u[i], v[i]
    spots = np.sin(74 * x + 2.2 * np.sin(23 * y) + 9 * y) * np.sin(70 * y + 2.2 * np.sin(21 * x) - 8 * x)
    cover = step(.35, .9, spots) * bump(np.abs(x), y, .26, .02, .30, .16)
    _mix(albedo, i, min(.12 + .25 * s.freckles, .4) * cover, albedo[i] * np.array([.66, .52, .45]))


def _paint_brows(albedo, u, v, skin, s: Style):
    i = np.flatnonzero(skin & (v > .36) & (v < .62) & (np.abs(u) < .70) & (np.abs(u) > .04))
    ax, y = np.abs(u[i]), v[i]
    t = np.clip((ax - .085) / .53, 0, 1)  # along the brow
    centre = .445 + .060 * np.sin(np.pi * np.clip(t * .82 + .05, 0, 1)) + s.brow_arch * np.sin(np.pi * t ** 1.3) - .055 * t ** 3
    half = s.brow_thickness * (1 - .68 * t ** 1.7) * (.82 + .18 * np.minimum(t * 8, 1))
    across = np.abs(y - centre) / half
    ends = step(.070, .125, ax) * step(.60, .50, ax)
    strands = .90 + .10 * np.sin(190 * ax - 140 * (y - centre)) * np.sin(67 * ax + 40 * y)
    _mix(albedo, i, (s.brow_strength * step(1.25, .45, across) * ends * strands), s.brow_colour)


def _paint_eyelids(albedo, u, v, skin, s: Style):
    i = np.flatnonzero(skin & (np.abs(v - face.EYE_LINE) < .13) & (np.abs(u) < .50) & (np.abs(u) > .14))
    ax, d = np.abs(u[i]), v[i] - face.EYE_LINE
    along = step(face.EYE_INNER - .015, face.EYE_INNER + .04, ax) * step(face.EYE_OUTER + .035, face.EYE_OUTER - .01, ax)
    if s.shadow > .1:
        tint = np.array([.38, .24, .30])
        _mix(albedo, i, (.55 * s.shadow * along * step(.0, .01, d) * step(.085, .03, d)), tint)
    crease = along * np.exp(-np.square((d - .050) / .011)) * .34
    _mix(albedo, i, crease, albedo[i] * .45)
    width = .010 + .012 * s.lashes * step(.2, .42, ax)
    lash = along * np.where(d >= 0, step(width + .010, width * .45, d) * (.62 + .3 * s.lashes), step(-.015, -.004, d) * .40)
    _mix(albedo, i, lash, np.array([.07, .05, .045]))
    rim = np.flatnonzero(skin & (u > 2))  # canonical x beyond the face marks the thickness of the lids
    albedo[rim] *= np.where(v[rim, None] > 0, np.array([.45, .36, .34]), np.array([.92, .68, .64]))


def _paint_mouth_region(albedo, u, v, skin, s: Style):
    i = np.flatnonzero(skin & (v < -.12) & (v > -.52) & (np.abs(u) < .29))
    x, y = u[i], v[i]
    cover = lip_cover(x, y)
    natural = albedo[i] * np.array([.90, .62, .62]) + np.array([.02, 0, .005])
    stick = np.array([.66, .12, .17]) * (1 - s.lip_hue) + np.array([.72, .30, .36]) * s.lip_hue
    colour = natural + .75 * s.lip_tint * (stick - natural)
    _mix(albedo, i, (.92 * cover), colour)
    seam = np.exp(-np.square((y - face.MOUTH_LINE) / .008)) * step(face.MOUTH_HALF + .02, face.MOUTH_HALF - .03, np.abs(x))
    _mix(albedo, i, (.72 * seam), np.array([.20, .06, .06]))
    nostril = bump(np.abs(x), y, .062, -.166, .034, .017)
    _mix(albedo, i, (.85 * np.minimum(1.25 * nostril, 1)), np.array([.12, .05, .045]))


def _paint_eyes(albedo, u, v, i, s: Style):
    if not len(i):
        return
    r = np.hypot(u[i], v[i])
    radius = .435
    block = albedo[i] * ((1 - .16 * step(.4, .9, r)) * (1 - .22 * step(.12, .50, v[i])))[:, None]
    fibres = .86 + .14 * np.sin(np.arctan2(v[i], u[i]) * 14)
    iris = s.iris * (fibres * (.72 + .55 * step(.15, .36, r)))[:, None]
    iris = iris * (1 - .62 * step(.36, .44, r))[:, None]
    cover = step(radius + .025, radius - .025, r)[:, None]
    block += cover * (iris - block)
    block += step(.205, .160, r)[:, None] * (np.array([.02, .018, .018]) - block)
    albedo[i] = block


def _paint_teeth(albedo, u, v, i):
    if not len(i):
        return
    t, y = u[i], v[i]
    gap = np.exp(-np.square((np.mod(t / .30 + .5, 1) - .5) / .07)) * .38
    albedo[i] *= (1 - gap)[:, None]
    gum = np.where(y > -.385, step(-.332, -.318, y - .008 * np.cos(t / .30 * 2 * np.pi)), step(-.450, -.464, y))
    _mix(albedo, i, gum, np.array([.72, .34, .34]))


def _paint_hair(albedo, u, v, i, s: Style):
    if not len(i):
        return
    a, k = u[i], v[i]
    strands = .5 * np.sin(83 * a + 4 * np.sin(7 * k + 2 * a)) + .3 * np.sin(171 * a + 9 * k) + .35 * np.sin(23 * a + 6 * k)
    gloss = .35 * np.exp(-np.square((k - .40 - .03 * np.sin(9 * a)) / .11))
    amount = .13 if s.cut != 'curly' else .22
    if s.cut == 'curly':
        strands = strands + np.sin(38 * a) * np.sin(42 * k)
    albedo[i] *= (1 + amount * strands + gloss)[:, None]


def _paint_cloth(albedo, u, v, i, s: Style, skin_tone):
    if not len(i):
        return
    turn, row = u[i], v[i]
    if s.stripes:
        _mix(albedo, i, .85 * step(-.25, .25, np.sin(row * 9)), s.cloth2)
    if s.collar == 1:  # a V with skin in it
        d = row - (3.1 - 5.2 * turn)
        _mix(albedo, i, step(.30, .22, d), s.cloth * .55)
        _mix(albedo, i, step(.06, -.04, d), skin_tone * .92)
    elif s.collar == 2:  # a white collar, open at the throat
        _mix(albedo, i, step(2.0, 1.9, row - 1.2 * step(.9, .2, turn)), np.array([.90, .90, .89]))
        _mix(albedo, i, step(.04, -.04, row - (2.4 - 9 * turn)), skin_tone * .88)
    else:
        _mix(albedo, i, .5 * step(.9, .75, row) if s.collar == 0 else .45 * step(2.3, 2.2, row), s.cloth * .55)
