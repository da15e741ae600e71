"""What the 32 style numbers mean (hair, irises, brows, lips, beard, clothes), and the geometry of the hair."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.curves import Spline, step
from avatar_jax.procedural.mesh import (
    BUN_COLUMNS,
    BUN_RINGS,
    HAIR,
    HAIR_COLUMNS,
    HAIR_RINGS,
    hair_azimuths,
    head_mesh,
)
from avatar_jax.procedural.skin import COLUMNS, ROWS

# (cut, share of the people). Neighbours along the selecting number look alike.
CUTS = (
    ('bald', 0.05),
    ('buzz', 0.11),
    ('short', 0.24),
    ('quiff', 0.15),
    ('curly', 0.10),
    ('bun', 0.09),
    ('bob', 0.12),
    ('long', 0.13),
)

# (share, dark, light): hair colours between two ends.
HAIR_COLOURS = (
    (0.26, (0.055, 0.045, 0.045), (0.11, 0.085, 0.07)),
    (0.26, (0.15, 0.095, 0.06), (0.27, 0.17, 0.10)),
    (0.16, (0.33, 0.22, 0.13), (0.45, 0.32, 0.20)),
    (0.16, (0.60, 0.46, 0.27), (0.80, 0.67, 0.44)),
    (0.08, (0.45, 0.17, 0.07), (0.62, 0.28, 0.12)),
    (0.08, (0.50, 0.50, 0.50), (0.80, 0.79, 0.77)),
)
IRIS_COLOURS = (
    (0.42, (0.20, 0.11, 0.05), (0.34, 0.19, 0.09)),
    (0.18, (0.34, 0.26, 0.11), (0.45, 0.36, 0.17)),
    (0.24, (0.24, 0.38, 0.55), (0.42, 0.58, 0.74)),
    (0.16, (0.25, 0.40, 0.26), (0.42, 0.53, 0.34)),
)
CLOTH_COLOURS = (
    (0.14, (0.10, 0.11, 0.14), (0.22, 0.23, 0.27)),
    (0.14, (0.12, 0.18, 0.38), (0.25, 0.38, 0.66)),
    (0.12, (0.48, 0.10, 0.12), (0.75, 0.20, 0.18)),
    (0.12, (0.12, 0.33, 0.22), (0.30, 0.55, 0.36)),
    (0.12, (0.72, 0.72, 0.70), (0.88, 0.87, 0.83)),
    (0.12, (0.62, 0.45, 0.16), (0.90, 0.70, 0.28)),
    (0.12, (0.36, 0.18, 0.42), (0.60, 0.38, 0.66)),
    (0.12, (0.15, 0.42, 0.46), (0.38, 0.66, 0.68)),
)


def uniform(z: float) -> float:
    """N(0, 1) to (0, 1) by its distribution function."""
    return 0.5 * (1 + math.erf(float(z) / math.sqrt(2)))


def _choose(z: float, shares) -> tuple[int, float]:
    """(entry, position inside its share 0..1) of the entry that the quantile of ``z`` falls into."""
    u, total = uniform(z) * sum(shares), 0.0
    for i, share in enumerate(shares):
        if u < total + share or i == len(shares) - 1:
            return i, min(max((u - total) / share, 0.0), 1.0)
        total += share
    raise AssertionError


def _palette(z_entry: float, z_mix: float, palette) -> np.ndarray:
    i, _ = _choose(z_entry, [p[0] for p in palette])
    t = uniform(z_mix)
    return np.asarray(palette[i][1]) * (1 - t) + np.asarray(palette[i][2]) * t


def _style_of_cuts() -> dict[str, np.ndarray]:
    """For every cut a style [32] that has it, all other numbers 0."""
    out, below = {}, 0.0
    for cut, share in CUTS:
        style = np.zeros(32, np.float32)
        style[0] = statistics.NormalDist().inv_cdf(below + share / 2)
        out[cut], below = style, below + share
    return out


STYLE_OF_CUT = _style_of_cuts()


@dataclasses.dataclass(frozen=True)
class Style:
    """Readable form of the style numbers; colours are RGB 0..1, the rest about 0..1 unless said."""

    cut: str
    hair_colour: np.ndarray
    volume: float  # 0.6..1.5
    hairline: float  # decimetre up (+) or down
    recede: float  # temples receding, 0..1
    fringe: float  # 0 none .. 1 down to the brows
    length: float  # of long hair, 0..1
    wave: float
    part: float  # -1 image left .. 1 image right
    iris: np.ndarray
    brow_colour: np.ndarray
    brow_thickness: float  # decimetre
    brow_strength: float
    brow_arch: float  # decimetre
    lip_tint: float  # 0 natural .. 1 lipstick
    lip_hue: float
    beard: float  # 0 none .. 1 full
    moustache: float
    stubble: float
    cloth: np.ndarray
    cloth2: np.ndarray
    collar: int  # 0 crew, 1 V, 2 shirt collar, 3 high
    stripes: float
    freckles: float
    lashes: float
    shadow: float  # eye shadow


def decode_style(style: np.ndarray) -> Style:
    """[32] N(0, 1) numbers to a ``Style``."""
    s = np.asarray(style, np.float64).tolist()
    cut = CUTS[_choose(s[0], [c[1] for c in CUTS])[0]][0]
    hair = _palette(s[4], s[5], HAIR_COLOURS)
    brow = hair * 0.62 + 0.010 if hair.mean() > 0.2 else hair * 0.9
    bearded = cut in ('bald', 'buzz', 'short', 'quiff', 'curly')
    beard_on = bearded and s[18] > 0.35
    return Style(
        cut=cut,
        hair_colour=hair,
        volume=0.65 + 0.8 * uniform(s[1]),
        hairline=0.055 * np.clip(s[2], -1.6, 1.6),
        recede=uniform(s[24] - 0.6) if bearded else 0.0,
        fringe=uniform(1.6 * s[3] - 0.6) if cut in ('short', 'bob', 'long', 'quiff') else 0.0,
        length=uniform(s[20]),
        wave=uniform(s[21]),
        part=float(np.clip(s[23], -1.2, 1.2)),
        iris=_palette(s[6], s[7], IRIS_COLOURS),
        brow_colour=brow,
        brow_thickness=0.030 + 0.026 * uniform(s[9]),
        brow_strength=0.55 + 0.42 * uniform(s[10]),
        brow_arch=0.022 * float(np.clip(s[11], -1.8, 1.8)),
        lip_tint=uniform(2 * s[12] - 1.2) if not bearded else 0.12 * uniform(s[12]),
        lip_hue=uniform(s[13]),
        beard=uniform(s[19]) * 0.5 + 0.5 if beard_on else 0.0,
        moustache=1.0 if beard_on and s[26] > -0.8 else 0.0,
        stubble=uniform(s[27]) * 0.5 if bearded else 0.0,
        cloth=_palette(s[14], s[15], CLOTH_COLOURS),
        cloth2=_palette(s[16], s[29], CLOTH_COLOURS),
        collar=_choose(s[17], (0.3, 0.25, 0.25, 0.2))[0],
        stripes=1.0 if s[28] > 0.9 else 0.0,
        freckles=max(float(s[30]) - 0.6, 0.0),
        lashes=0.55 + 0.45 * (uniform(s[22]) if not bearded else 0.2),
        shadow=uniform(1.5 * s[25] - 1.0) if not bearded else 0.0,
    )


_DEG = np.array([0, 22, 38, 50, 59, 67, 75, 83, 100, 112, 128, 150, 180.0])
_HEMS = {
    'short': [0.93, 0.93, 0.90, 0.80, 0.62, 0.36, 0.10, 0.36, 0.43, 0.10, -0.22, -0.50, -0.54],
    'long': [0.95, 0.93, 0.86, 0.62, 0.10, -0.55, -1.05, -1.20, -1.25, -1.28, -1.30, -1.32, -1.34],
    'bob': [0.95, 0.93, 0.86, 0.62, 0.12, -0.38, -0.60, -0.66, -0.68, -0.69, -0.70, -0.70, -0.70],
    'bun': [0.93, 0.92, 0.89, 0.80, 0.62, 0.40, 0.27, 0.36, 0.40, 0.05, -0.25, -0.48, -0.52],
}


def hem(style: Style, azimuth, roots: bool = False) -> np.ndarray:
    """Height at which the hair ends, at each azimuth; with ``roots`` that of the skin from which it grows."""
    deg = np.degrees(np.abs(azimuth))
    kind = style.cut if style.cut in _HEMS and not roots else 'short'
    h = Spline(_DEG, _HEMS[kind])(deg)
    front = step(62, 45, deg)
    h = h + front * style.hairline
    h = h + 0.13 * style.recede * np.exp(-np.square((deg - 34) / 14.0))
    if style.cut == 'long' and not roots:
        h = np.where(deg > 50, h + (h < 0) * (0.30 - 0.42 * style.length) * step(0, -1, h), h)
    if roots:
        return h
    fringe_edge = 0.56 + 0.05 * np.sin(3.5 * azimuth + style.part)
    return h + (np.minimum(fringe_edge, h) - h) * style.fringe * step(50, 36, deg)


@functools.lru_cache(maxsize=1)
def skin_grid() -> np.ndarray:
    """[rows, columns] vertex ids of the skin grid."""
    return np.arange(len(ROWS) * len(COLUMNS)).reshape(len(ROWS), len(COLUMNS))


def hair_geometry(style: Style) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the hair lies on the neutral mean head.

    Returns:
        (positions [Vh, 3], indices [Vh, 4], weights [Vh, 4]): the shell then the bun; the skin vertices whose identity
        displacement each hair vertex follows.
    """
    a = hair_azimuths()
    n = HAIR_COLUMNS
    assert len(a) == n
    s = np.linspace(0, 1, HAIR_RINGS)[:, None]
    edge = hem(style, a)[None]
    arc = s**1.75 if style.cut not in ('long', 'bob') else np.minimum(s / 0.80, 1) ** 1.75 * 0.62 + 0.38 * s
    low = np.minimum(edge, 0.45)
    high = np.maximum(edge, 0.45)
    if style.cut in ('long', 'bob'):  # the rings of the head first, then those of the hanging part
        split = 9 / (HAIR_RINGS - 1)
        t = np.clip(s / split, 0, 1)
        height = np.where(
            s <= split,
            face.CROWN - (face.CROWN - high) * t**1.8,
            high - (high - low) * np.clip((s - split) / (1 - split), 0, 1),
        )
        height = np.where(edge > 0.45, face.CROWN - (face.CROWN - edge) * s**1.75, height)
    else:
        height = face.CROWN - (face.CROWN - edge) * arc
    azimuth = np.broadcast_to(a[None], height.shape)
    deg = np.degrees(np.abs(azimuth))
    hang = 1.0 if style.cut in ('long', 'bob') else 0.0
    anchor = np.maximum(height, 0.30) if hang else height
    base = face.surface(azimuth, anchor, relief=False)
    fall = np.maximum(anchor - height, 0)
    base[..., 1] -= fall
    if hang:  # falls straight, a little inwards at the end
        inward = 1 - 0.10 * step(0.5, 1.6, fall) + 0.05 * np.sin(np.pi * np.clip(fall / 1.2, 0, 1))
        base[..., 0] *= inward
        base[..., 2] = -0.55 + (base[..., 2] + 0.55) * (1 - 0.12 * np.clip(fall, 0, 1.5))
    out = np.stack(
        [
            base[..., 0] / 0.52,
            np.where(base[..., 1] > 0.25, (base[..., 1] - 0.25) / 0.9, 0),
            (base[..., 2] + 0.55) / 0.95,
        ],
        -1,
    )
    out /= np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-6)
    top = step(0.35, 1.05, base[..., 1])
    frontness = step(80, 25, deg)
    from_hem = np.clip((height - edge) / 0.16, 0, 1)
    rise = np.sqrt(from_hem * (2 - from_hem))
    v = style.volume
    ripple = np.sin(9 * azimuth + 4 * s) * np.sin(13 * s + 2 * azimuth) * style.wave
    if style.cut == 'bald':
        thick = np.full(height.shape, -0.06)
    elif style.cut == 'buzz':
        thick = -0.012 + 0.030 * rise
    elif style.cut == 'short':
        thick = -0.012 + rise * (0.045 + v * 0.075 * top * (1 + 0.2 * style.part * np.sin(azimuth)) + 0.006 * ripple)
    elif style.cut == 'quiff':
        thick = -0.012 + rise * (
            0.030 + v * (0.085 + 0.11 * frontness) * top * (1 + 0.35 * style.part * np.sin(azimuth)) + 0.006 * ripple
        )
    elif style.cut == 'curly':
        thick = -0.012 + rise * (
            0.10 + v * 0.15 * (0.55 + 0.45 * top) + 0.035 * np.sin(11 * azimuth + 5 * s) * np.sin(15 * s + 1.5)
        )
    elif style.cut == 'bun':
        thick = -0.012 + rise * (0.030 + 0.03 * top)
    else:
        side_volume = 0.085 + 0.06 * v + 0.03 * style.wave * np.sin(8 * fall + 3 * azimuth) * np.clip(fall * 2, 0, 1)
        thick = -0.012 + np.where(edge < 0.45, np.maximum(rise, step(0.2, 0.8, s)), rise) * (
            side_volume * step(30, 65, deg) + (0.05 + 0.055 * v * top) * step(75, 30, deg)
        )
        thick = thick + 0.02 * style.part * np.sin(azimuth) * top
    if style.fringe > 0 and style.cut != 'bald':
        thick = np.maximum(
            thick,
            (0.030 + 0.045 * style.fringe)
            * step(52, 40, deg)
            * step(0, 0.25, style.fringe)
            * step(1.0, 0.85, height)
            * np.clip((height - edge) / 0.03, 0.5, 1),
        )
    shell = base + out * thick[..., None]
    row_position, rows = anchor, ROWS
    index, weight = grid_weights(row_position.ravel(), azimuth.ravel(), rows)
    m = BUN_COLUMNS
    t = 2 * np.pi * np.arange(m) / m
    polar = np.linspace(0.02, np.pi - 0.02, BUN_RINGS)[:, None]
    radius = {'bun': 0.24 + 0.06 * v}.get(style.cut, 0.02)
    centre = (
        np.array([0, 0.80 + 0.28 * (style.length - 0.5), -1.66]) if style.cut == 'bun' else np.array([0, 0.8, -1.0])
    )
    bun = centre + radius * np.stack([np.sin(polar) * np.cos(t), np.cos(polar) + 0 * t, -np.sin(polar) * np.sin(t)], -1)
    bun_index, bun_weight = grid_weights(np.full(m * BUN_RINGS, 0.8), np.full(m * BUN_RINGS, np.pi), rows)
    return (
        np.concatenate([shell.reshape(-1, 3), bun.reshape(-1, 3)]).astype(np.float32),
        np.concatenate([index, bun_index]),
        np.concatenate([weight, bun_weight]).astype(np.float32),
    )


def grid_weights(height: np.ndarray, azimuth: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear positions on the skin grid: vertex ids [N, 4] and weights [N, 4]."""
    height = np.clip(height, rows[-1], rows[0])
    r = np.clip(np.searchsorted(-rows, -height, side='right') - 1, 0, len(rows) - 2)
    fr = (rows[r] - height) / (rows[r] - rows[r + 1])
    columns = np.concatenate([[-np.pi], COLUMNS])
    c = np.clip(np.searchsorted(columns, azimuth, side='right') - 1, 0, len(columns) - 2)
    fc = (azimuth - columns[c]) / (columns[c + 1] - columns[c])
    left, right = (c - 1) % len(COLUMNS), c
    grid = skin_grid()
    index = np.stack([grid[r, left], grid[r, right], grid[r + 1, left], grid[r + 1, right]], 1)
    weight = np.stack([(1 - fr) * (1 - fc), (1 - fr) * fc, fr * (1 - fc), fr * fc], 1)
    return index, weight


def ear_tuck(style: Style, positions: np.ndarray) -> np.ndarray:
    """Positions [N, 3] of ear vertices, laid against the head where long hair covers them."""
    if style.cut not in ('long', 'bob'):
        return positions
    out = positions.copy()
    out[:, 0] = np.sign(out[:, 0]) * (0.66 + 0.25 * (np.abs(out[:, 0]) - 0.69))
    return out


def hair_vertices() -> np.ndarray:
    """Vertex ids of the hair, in the order of ``hair_geometry``."""
    return head_mesh().of(HAIR)
