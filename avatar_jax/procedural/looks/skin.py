"""Painting of version 2 on the skin, in the mouth and on the eyes: what comes on top of version 1's details."""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.appearance import beard_cover, lip_cover
from avatar_jax.procedural.curves import bump, step
from avatar_jax.procedural.expressions import INDEX
from avatar_jax.procedural.looks.noise import BRISTLES, MOTTLE, PORES, SPOTS, skin_noise
from avatar_jax.procedural.looks.traits import Looks
from avatar_jax.procedural.mesh import EAR, EYE, SKIN, TEETH, TONGUE
from avatar_jax.procedural.style import Style

WRINKLES = ('forehead', 'frown', 'crow_l', 'crow_r', 'fold_l', 'fold_r')


def wrinkle_strengths(expression: np.ndarray, looks: Looks) -> dict[str, float]:
    """How deep each of ``WRINKLES`` is, 0 to about 1.5: at rest by age, and by the expressions [64] that make it."""

    def value(*names):
        return [float(np.clip(expression[INDEX[n]], 0, 1)) for n in names]

    age = looks.age
    inner, outer_l, outer_r = value('brow_inner_up', 'brow_outer_up_l', 'brow_outer_up_r')
    [furrow], down = value('brow_furrow'), max(value('brow_down_l', 'brow_down_r'))
    out = {
        'forehead': 0.45 * age + 0.9 * max(inner, 0.5 * (outer_l + outer_r)),
        'frown': 0.3 * age + 0.9 * max(furrow, 0.7 * down),
    }
    for s in ('l', 'r'):
        smile, cheek, squint = value(f'smile_{s}', f'cheek_squint_{s}', f'squint_{s}')
        upper, sneer, dimple = value(f'upper_up_{s}', f'sneer_{s}', f'dimple_{s}')
        out[f'crow_{s}'] = 0.4 * age + 0.85 * max(0.8 * smile, cheek, 0.7 * squint)
        out[f'fold_{s}'] = 0.15 + 0.5 * age + 0.75 * max(smile, 0.6 * upper, 0.8 * sneer, 0.5 * dimple)
    return {k: looks.wrinkles * v for k, v in out.items()}


def _wrinkles(u, v, azimuth, mottle, deep: dict[str, float]) -> np.ndarray:
    """[N] relief of the wrinkles: below 0 in a line, above 0 beside it."""
    out = np.zeros(len(u), np.float32)

    def line(index, d, width, amount):
        out[index] -= amount * (np.exp(-np.square(d / width)) - 0.55 * np.exp(-np.square((d - 1.7 * width) / width)))

    i = np.flatnonzero((v > 0.56) & (v < 0.95) & (u < 0.62))
    x, y = u[i], v[i] - 0.02 * np.sin(5 * azimuth[i]) - 0.012 * mottle[i] * 0.5
    spacing = 0.082
    place = (y - 0.60 + 0.10 * x * x) / spacing
    inside = step(0.58, 0.64, v[i]) * step(0.93, 0.82, v[i]) * step(0.60, 0.40, x)
    line(i, (place - np.floor(place) - 0.5) * spacing, 0.011, deep['forehead'] * inside)
    i = np.flatnonzero((u < 0.16) & (v > 0.33) & (v < 0.62))
    x, y = u[i], v[i]
    inside = step(0.34, 0.40, y) * step(0.61, 0.54, y)
    line(i, x - 0.055 - 0.12 * np.square(y - 0.46), 0.011, deep['frown'] * inside)
    for sign, s in ((-1, 'l'), (1, 'r')):
        i = np.flatnonzero((azimuth * sign > 0) & (u > 0.44) & (u < 0.75) & (np.abs(v - face.EYE_LINE) < 0.22))
        x, y = u[i] - 0.43, v[i] - (face.EYE_LINE - 0.01)
        r, turn = np.hypot(x, y), np.arctan2(y, x + 1e-6)
        inside = step(0.035, 0.07, r) * step(0.22, 0.11, r) * step(0.95, 0.7, np.abs(turn))
        fan = turn / 0.36 + 0.5
        line(i, (fan - np.floor(fan) - 0.5) * 0.36 * np.maximum(r, 0.03), 0.008, deep[f'crow_{s}'] * inside)
        i = np.flatnonzero((azimuth * sign > 0) & (u > 0.1) & (u < 0.48) & (v > -0.56) & (v < -0.05))
        x, y = u[i], v[i]
        along = np.clip((-0.09 - y) / 0.38, 0, 1.3)
        inside = step(-0.06, -0.12, y) * step(-0.53, -0.42, y)
        line(i, x - (0.165 + 0.175 * along**0.8), 0.020, 0.9 * deep[f'fold_{s}'] * inside)
    return out


def paint_skin(albedo, part, canonical, azimuth, style: Style, looks: Looks, deep: dict[str, float]) -> np.ndarray:
    """Paints skin, lips, lids and beard into ``albedo`` [N, 3] in place.

    Args:
        part: [N]. canonical: [N, 3] as in ``appearance.paint``. azimuth: [N] with its sign. deep: the wrinkles.

    Returns:
        [N] how much each sample shines, 1 for ordinary skin.
    """
    shine = np.ones(len(part), np.float32)
    i = np.flatnonzero(((part == SKIN) | (part == EAR)) & (canonical[:, 0] < 5))  # not the rims of the lids
    if not len(i):
        return shine
    u, v, turn = np.abs(canonical[i, 0]), canonical[i, 1], canonical[i, 2]
    side = azimuth[i]
    noise = skin_noise(np.where(part[i] == EAR, 3 * canonical[i, 1], side), v, looks.offset)
    pores, mottle, spots, bristles = noise[:, PORES], noise[:, MOTTLE], noise[:, SPOTS], noise[:, BRISTLES]
    block = albedo[i]
    front = step(1.5, 1.2, turn) * (part[i] == SKIN)
    zone = 0.5 + 0.5 * (bump(u, v, 0, 0.0, 0.35, 0.35) + bump(u, v, 0, 0.75, 0.4, 0.2)).clip(0, 1)
    grain = (0.010 + 0.024 * looks.pores) * zone * pores + 0.024 * (0.3 + looks.mottle) * mottle
    block *= 1 + grain[:, None] * np.array([0.75, 1.05, 1.1], np.float32)
    red = bump(u, v, 0.38, -0.04, 0.24, 0.18) + bump(u, v, 0, -0.08, 0.13, 0.11) + 0.4 * bump(u, v, 0, -0.7, 0.2, 0.1)
    red *= 0.28 * looks.redness * front * (1 + 0.5 * mottle).clip(0.2, 2)
    red += 0.10 * looks.mottle * (mottle - 0.6).clip(0, 2)
    block *= 1 - red[:, None] * np.array([0.02, 0.30, 0.27], np.float32)
    if looks.freckles > 0:
        where = front * (0.25 + bump(u, v, 0.22, 0.05, 0.36, 0.22) + 0.3 * bump(u, v, 0.2, 0.7, 0.4, 0.2))
        cover = step(1.9 - 0.7 * looks.freckles, 2.6 - 0.7 * looks.freckles, spots + 0.3 * mottle) * where.clip(0, 1)
        block *= 1 - (0.75 * cover)[:, None] * np.array([0.25, 0.42, 0.48], np.float32)
    for azimuth0, height0, radius, dark in looks.moles.tolist():
        d = np.hypot(0.66 * (side - azimuth0), v - height0) + 0.002 * mottle
        near = np.flatnonzero(d < 2 * radius)
        cover = (dark * step(1.15 * radius, 0.7 * radius, d[near]) * front[near])[:, None]
        block[near] *= 1 - cover * np.array([0.62, 0.75, 0.78], np.float32)
    relief = _wrinkles(u, v, side, mottle, deep) * front
    block *= (1 + 0.34 * relief.clip(-1.6, 1))[:, None] * (
        1 + relief.clip(-1, 0)[:, None] * np.array([0.0, 0.06, 0.06], np.float32)
    )
    _make_up(block, u, v, front, mottle, looks)
    _whiskers(block, u, v, turn, mottle, bristles, style, looks)
    albedo[i] = block
    lips = lip_cover(canonical[i, 0], v) * front
    shine[i] = (0.35 + 1.5 * looks.gloss * zone) * (1 + 0.25 * pores).clip(0.3, 2) + 1.6 * looks.lip_gloss * lips
    return shine


def _make_up(block, u, v, front, mottle, looks: Looks) -> None:
    def mix(amount, colour):
        block[:] += np.asarray(amount, np.float32)[:, None] * (np.asarray(colour, np.float32) - block)

    d = v - face.EYE_LINE
    along = step(face.EYE_INNER - 0.03, face.EYE_INNER + 0.05, u) * step(0.52, 0.44, u) * front
    if looks.lid > 0:
        mix(0.7 * looks.lid * along * step(-0.005, 0.01, d) * step(0.15, 0.04, d), looks.lid_colour)
    if looks.liner > 0:
        mix(looks.liner * along * step(0.028, 0.012, np.abs(d - 0.05 * step(0.42, 0.5, u))), (0.03, 0.025, 0.03))
    if looks.blush > 0:
        block *= 1 - (0.4 * looks.blush * front * bump(u, v, 0.45, -0.02, 0.16, 0.12))[:, None] * [0.05, 0.42, 0.32]
    if looks.lip > 0:
        cover = looks.lip * lip_cover(u, v) * front
        mix(0.9 * cover, looks.lip_colour * (1 + 0.05 * np.mean(mottle)))


def _whiskers(block, u, v, turn, mottle, bristles, style: Style, looks: Looks) -> None:
    """Beards of single hairs that thin out at their borders, and shaven chins."""
    stubble = max(style.stubble, 0.12 * (style.recede > 0)) * (0.3 + 1.4 * looks.stubble)
    if max(style.beard, stubble) < 0.05:
        return
    i = np.flatnonzero((v < 0.2) & (v > -1.0) & (turn < 1.45))
    cover = beard_cover(u[i], v[i], turn[i], style, soft=2.2)
    cover = (cover + 0.30 * mottle[i] * cover * (1 - cover)).clip(0, 1)
    dense = np.maximum(style.beard * (0.75 + 0.25 * style.beard), 0.55 * min(stubble, 1)) * cover
    hairs = step(1 - 1.05 * dense - 0.12, 1 - 1.05 * dense + 0.12, bristles[i]) * step(0, 0.08, dense)
    shade = (0.55 + 0.3 * style.beard) * dense  # what lies between the hairs
    amount = np.maximum(hairs * (0.5 + 0.4 * min(style.beard + stubble, 1)), shade)
    colour = style.hair_colour.astype(np.float32) * (0.75 + 0.3 * (bristles[i, None] - 0.5))
    colour = colour + (looks.grey * (bristles[i, None] * 7 % 1 < looks.grey)) * (0.62 - colour)
    block[i] += amount[:, None].astype(np.float32) * (colour.astype(np.float32) - block[i])


def paint_moist(albedo, part, canonical, looks: Looks) -> None:
    """Veins and the pink corners of the eyes, the colour of the teeth and the rough top of the tongue."""
    u, v = canonical[:, 0], canonical[:, 1]
    i = np.flatnonzero(part == EYE)
    if len(i):
        r = np.hypot(u[i], v[i])
        vein = np.abs(np.sin(9 * np.arctan2(v[i], u[i]) + 3 * np.sin(14 * r + 20 * looks.offset[0])))
        white = step(0.45, 0.7, r)
        amount = white * (0.10 + 0.25 * step(0.16, 0.02, vein) * step(0.5, 0.9, r) + 0.22 * step(0.6, 0.95, r))
        albedo[i] *= 1 - amount[:, None] * np.array([0.10, 0.42, 0.42])
    i = np.flatnonzero(part == TEETH)
    if len(i):
        tooth = np.floor(u[i] / 0.30 + 0.5)
        tone = 0.94 + 0.06 * np.sin(5 * tooth + 30 * looks.offset[1]) - 0.10 * np.abs(u[i])
        albedo[i] *= tone[:, None] * (1 - looks.teeth * np.array([0.04, 0.10, 0.26]))
    i = np.flatnonzero(part == TONGUE)
    if len(i):
        rough = np.sin(60 * u[i] + 3 * np.sin(50 * v[i])) * np.sin(70 * v[i])
        groove = np.exp(-np.square(u[i] / 0.10))
        albedo[i] *= (1 + 0.08 * rough - 0.22 * groove)[:, None]
