"""What version 2 adds to a person and to the light: traits, and how they are drawn.

The traits of a person depend on the identity alone and those of the light on the light coefficients alone, through
random streams of their own: whoever draws the same person gets the same glasses, whatever the frame, and version 1
stays as it is.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np

from avatar_jax.procedural.identity import split_identity
from avatar_jax.procedural.streams import Stream
from avatar_jax.procedural.style import CLOTH_COLOURS, decode_style

VERSIONS = (1, 2)
GLASSES_SHAPES = ('round', 'oval', 'rectangle', 'square', 'aviator', 'cat')
HAT_KINDS = ('beanie', 'cap', 'brim')
PATTERNS = ('plain', 'stripes', 'check', 'dots', 'melange', 'print')


@dataclass(frozen=True)
class Glasses:
    """One pair of glasses; lengths in decimetre.

    Attributes:
        shape: one of ``GLASSES_SHAPES``. colour: [3] of the frame. rim: half thickness of the rims.
        half_width, half_height: of a lens. tint: [3] share of the light that a lens lets through.
        reflection: strength of what the lenses mirror, 0..1. rimless_below: the rims have an upper half only.
    """

    shape: str
    colour: np.ndarray
    rim: float
    half_width: float
    half_height: float
    tint: np.ndarray
    reflection: float
    rimless_below: bool = False


@dataclass(frozen=True)
class Hat:
    """A hat: ``kind`` of ``HAT_KINDS``, two colours [3], heights (decimetre) of its edge in front and behind."""

    kind: str
    colour: np.ndarray
    colour2: np.ndarray
    front: float
    back: float


@dataclass(frozen=True)
class Looks:
    """The traits of a person; about 0..1 unless said.

    Attributes:
        age: strengthens wrinkles at rest. wrinkles: factor on all of them. pores, mottle, redness, gloss: of the skin.
        freckles: 0 none. moles: [M, 4] (azimuth, height, radius in decimetre, darkness).
        stubble: density of shaven hair; only where the style has some. liner, blush, lid: make-up; lid_colour [3],
        lip_colour [3], lip_gloss.
        grey: share of grey hairs. thinning: of the hair on the crown. strands: contrast between strands. frizz: how far
        single hairs stand off. curl: waves of the strands.
        pattern: of the clothes, one of ``PATTERNS``. pattern_scale, colour3 [3].
        teeth: yellowness. offset: [2] where this person lies in the noise.
        glasses, hat: or None.
    """

    age: float = 0.3
    wrinkles: float = 0.7
    pores: float = 0.5
    mottle: float = 0.5
    redness: float = 0.0
    gloss: float = 0.5
    freckles: float = 0.0
    moles: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4)))
    stubble: float = 0.5
    liner: float = 0.0
    blush: float = 0.0
    lid: float = 0.0
    lid_colour: np.ndarray = dataclasses.field(default_factory=lambda: np.array([0.4, 0.3, 0.3]))
    lip: float = 0.0
    lip_colour: np.ndarray = dataclasses.field(default_factory=lambda: np.array([0.6, 0.2, 0.25]))
    lip_gloss: float = 0.2
    grey: float = 0.0
    thinning: float = 0.0
    strands: float = 0.6
    frizz: float = 0.3
    curl: float = 0.2
    pattern: str = 'plain'
    pattern_scale: float = 0.5
    colour3: np.ndarray = dataclasses.field(default_factory=lambda: np.array([0.8, 0.8, 0.8]))
    teeth: float = 0.3
    offset: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))
    glasses: Glasses | None = None
    hat: Hat | None = None


@dataclass(frozen=True)
class KeyLight:
    """Light that comes from one direction, beside the light coefficients.

    Attributes:
        direction: [3] unit, towards the light, head axes. colour: [3] times its strength.
        ambient: [3] factor on the light of the coefficients. fill_direction [3], fill [3]: a weak second light without
        a shadow. softness: of the shadow's edge, decimetre.
    """

    direction: np.ndarray
    colour: np.ndarray
    ambient: np.ndarray
    fill_direction: np.ndarray
    fill: np.ndarray
    softness: float


def _colour(draw: Stream, palette) -> np.ndarray:
    low, high = palette[int(draw.integers(0, len(palette)))][-2:]
    t = draw.random()
    return np.asarray(low) * (1 - t) + np.asarray(high) * t


_FRAMES = (
    ((0.02, 0.02, 0.02), (0.08, 0.07, 0.07)),
    ((0.02, 0.02, 0.02), (0.10, 0.09, 0.09)),
    ((0.22, 0.11, 0.05), (0.42, 0.24, 0.12)),
    ((0.55, 0.43, 0.20), (0.78, 0.64, 0.36)),
    ((0.45, 0.45, 0.47), (0.72, 0.72, 0.74)),
    ((0.45, 0.06, 0.08), (0.70, 0.15, 0.16)),
    ((0.08, 0.12, 0.32), (0.20, 0.30, 0.60)),
    ((0.75, 0.74, 0.70), (0.92, 0.90, 0.87)),
)
_SIZES = {  # half width, half height of a lens
    'round': (0.235, 0.225),
    'oval': (0.250, 0.175),
    'rectangle': (0.265, 0.155),
    'square': (0.255, 0.195),
    'aviator': (0.275, 0.215),
    'cat': (0.265, 0.170),
}


def _glasses(draw: Stream) -> Glasses:
    shape = GLASSES_SHAPES[int(draw.integers(0, len(GLASSES_SHAPES)))]
    width, height = _SIZES[shape]
    size = draw.uniform(0.92, 1.14)
    sun = draw.random() < 0.16
    thin = draw.random() < 0.45
    rim = draw.uniform(0.006, 0.011) if thin else draw.uniform(0.013, 0.025)
    if sun:
        passed = draw.uniform(0.06, 0.3) * (1 + draw.normal(0, 0.25, 3))
    else:
        passed = draw.uniform(0.93, 0.99) * (1 + draw.normal(0, 0.012, 3))
    return Glasses(
        shape,
        _colour(draw, _FRAMES),
        rim,
        width * size,
        height * size * draw.uniform(0.9, 1.12) * (1.1 if sun else 1.0),
        np.clip(passed, 0.03, 1.0),
        draw.uniform(0.1, 1.0) ** 1.5,
        bool(draw.random() < 0.18),
    )


def _hat(draw: Stream) -> Hat:
    kind = HAT_KINDS[draw.choice(3, p=(0.45, 0.4, 0.15))]
    front = draw.uniform(0.62, 0.82)
    back = {'beanie': -0.15, 'cap': 0.15, 'brim': 0.2}[kind] + draw.uniform(-0.1, 0.1)
    return Hat(kind, _colour(draw, CLOTH_COLOURS), _colour(draw, CLOTH_COLOURS), front, back)


def draw_looks(identity: np.ndarray) -> Looks:
    """The traits of a person [192]; the same for the same numbers."""
    identity = np.ascontiguousarray(identity, np.float32)
    draw = Stream('looks', 2, zlib.crc32(identity.tobytes()))
    style = decode_style(split_identity(identity).style)
    painted = style.lashes > 0.7  # those whom version 1 gives make-up as well
    skin, hair, wear = draw.child('skin'), draw.child('hair'), draw.child('wear')
    age = skin.random()
    count = int(skin.integers(0, 6))
    moles = np.stack(
        [
            skin.uniform(-1.25, 1.25, count),
            skin.uniform(-0.75, 0.85, count),
            skin.uniform(0.005, 0.014, count),
            skin.uniform(0.3, 0.8, count),
        ],
        1,
    )
    glasses = _glasses(wear) if wear.random() < 0.34 else None
    hat = _hat(wear) if wear.random() < 0.13 and style.cut != 'bun' else None
    hue = skin.random(3)
    return Looks(
        age=age,
        wrinkles=skin.uniform(0.4, 1.2),
        pores=skin.random(),
        mottle=skin.random(),
        redness=skin.random() ** 2,
        gloss=skin.random(),
        freckles=max(skin.random() - 0.7, 0) / 0.3,
        moles=moles,
        stubble=skin.random(),
        liner=skin.random() * painted * (skin.random() < 0.6),
        blush=skin.random() * painted * (skin.random() < 0.5),
        lid=skin.random() * painted * (skin.random() < 0.4),
        lid_colour=0.15 + 0.45 * hue * np.array([1.0, 0.8, 1.0]),
        lip=skin.random() * painted * (skin.random() < 0.6),
        lip_colour=np.array([0.35 + 0.4 * hue[0], 0.06 + 0.25 * hue[1], 0.10 + 0.28 * hue[2]]),
        lip_gloss=skin.random(),
        grey=max(age - 0.45, 0) * 1.8 * hair.random(),
        thinning=hair.random() ** 2 * age * (style.recede > 0),
        strands=hair.uniform(0.35, 1.0),
        frizz=hair.random() ** 1.5,
        curl=hair.random() ** 2 if style.cut != 'curly' else 0.5 + 0.5 * hair.random(),
        pattern=PATTERNS[wear.choice(len(PATTERNS), p=(0.3, 0.12, 0.14, 0.1, 0.2, 0.14))],
        pattern_scale=wear.random(),
        colour3=_colour(wear, CLOTH_COLOURS),
        teeth=skin.random(),
        offset=skin.random(2),
        glasses=glasses,
        hat=hat,
    )


def draw_key_light(gamma: np.ndarray) -> KeyLight:
    """The key light that goes with light coefficients [27]: from about where they are brightest."""
    gamma = np.ascontiguousarray(gamma, np.float32)
    draw = Stream('looks', 2, 'light', zlib.crc32(gamma.tobytes()))
    band = gamma.reshape(3, 9)[:, 1:4].mean(0).astype(np.float64)
    direction = np.array([-band[2], -band[0], band[1]]) * 3 + draw.normal(0, [0.45, 0.25, 0.1], 3) + [0, 0.25, 0.45]
    direction /= np.linalg.norm(direction)
    hard = draw.random()  # 0: a cloudy day, 1: a lamp in a dark room
    warmth, tint = draw.normal(0, 0.09), draw.normal(0, 0.03)
    colour = np.array([1 + warmth, 1 + tint, 1 - warmth])
    exposure = draw.uniform(0.88, 1.15)
    side = -np.sign(direction[0]) or 1.0
    fill_direction = np.array([side * draw.uniform(0.5, 1.0), draw.uniform(-0.3, 0.6), draw.uniform(-0.5, 0.5)])
    fill_tint = 1 + draw.normal(0, 0.35, 3) * (draw.random() < 0.4)
    return KeyLight(
        direction,
        exposure * (0.15 + 0.62 * hard) * colour,
        exposure * (0.95 - 0.42 * hard) * (1 + (colour - 1) * -0.6),
        fill_direction / np.linalg.norm(fill_direction),
        exposure * draw.uniform(0.0, 0.28) * np.clip(fill_tint, 0.2, 2.0),
        draw.uniform(0.015, 0.12),
    )
