"""Speech-like motion made from a seed: mouth shapes with co-articulation, blinks, brows, moods, gaze, head pose.

A clip is a pure function of (seed, frame rate): the first frames of a longer clip are those of a shorter one. Every
component (speech, blinks, ...) draws from its own random stream in order of time, so that changing one leaves the
others alone. Results are rounded to multiples of 2**-16, far below what is visible, so that differences in the last
bit between mathematical libraries do not reach the data.

Units as in the 257-number coefficient vector: expression weights nominally 0..1 (gaze -1..1, see
``EXPRESSION_NAMES``), angles in radians (pitch, yaw, roll; positive pitch looks down, positive yaw turns the nose to
the right of the image), translation in decimetres.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from avatar_jax.procedural.expressions import EXPRESSION_NAMES
from avatar_jax.procedural.streams import Stream

CHANNEL: Mapping[str, int] = {name: i for i, name in enumerate(EXPRESSION_NAMES)}
GAZE = (CHANNEL['gaze_x'], CHANNEL['gaze_y'])
BLINK = (CHANNEL['blink_l'], CHANNEL['blink_r'])

MAX_YAW = np.deg2rad(35.0)  # of speech clips
MAX_PITCH = np.deg2rad(18.0)
MAX_ROLL = np.deg2rad(12.0)
MAX_SHIFT = 0.12  # dm, sideways and up: the head stays inside the 700-pixel EG3D crop
MAX_DOLLY = 0.5  # dm along the viewing axis, of 10 dm distance

# The expression of each mouth shape at full size: its own channel, and a little of others so that none is redundant.
VISEME_TARGETS: Mapping[str, Mapping[str, float]] = {
    'aa': {'viseme_aa': 0.95, 'jaw_open': 0.10},
    'eh': {'viseme_eh': 0.9, 'jaw_open': 0.05},
    'ih': {'viseme_ih': 0.9, 'jaw_open': 0.02},
    'oh': {'viseme_oh': 0.9, 'jaw_open': 0.08},
    'ou': {'viseme_ou': 0.95, 'mouth_pucker': 0.08},
    'mbp': {'viseme_mbp': 1.0, 'press_l': 0.05, 'press_r': 0.05},
    'fv': {'viseme_fv': 0.95},
    'th': {'viseme_th': 0.85, 'tongue_out': 0.05},
    'l': {'viseme_l': 0.85, 'jaw_open': 0.03},
    'ch': {'viseme_ch': 0.9},
    's': {'viseme_s': 0.9},
    'r': {'viseme_r': 0.85},
}
VOWELS = ('aa', 'eh', 'ih', 'oh', 'ou')
CONSONANTS = ('mbp', 'fv', 'th', 'l', 'ch', 's', 'r')
_VOWEL_SHARE = (0.27, 0.22, 0.21, 0.17, 0.13)
_CONSONANT_SHARE = (0.22, 0.12, 0.09, 0.17, 0.10, 0.20, 0.10)

# Moods: expression weights at full strength (left, right pairs are given once and made asymmetric).
MOODS: Mapping[str, Mapping[str, float]] = {
    'smile': {'smile': 0.9, 'cheek_squint': 0.5, 'squint': 0.2, 'lip_corner_up': 0.3, 'dimple': 0.2},
    'grin': {'smile': 1.0, 'upper_up': 0.3, 'lower_down': 0.3, 'cheek_squint': 0.6, 'brow_outer_up': 0.2},
    'sad': {'brow_inner_up': 0.8, 'frown': 0.7, 'lip_corner_down': 0.5, 'shrug_lower': 0.2, 'brow_furrow': 0.2},
    'angry': {'brow_down': 0.9, 'brow_furrow': 0.7, 'squint': 0.4, 'press': 0.3, 'nostril_flare': 0.5},
    'surprise': {'brow_inner_up': 0.7, 'brow_outer_up': 0.8, 'wide': 0.8, 'jaw_open': 0.25},
    'exclaim': {'jaw_open': 0.7, 'brow_outer_up': 0.5, 'wide': 0.3, 'lower_down': 0.2},
    'disgust': {'sneer': 0.8, 'upper_up': 0.4, 'squint': 0.4, 'brow_down': 0.4},
    'doubt': {'brow_outer_up_l': 0.8, 'brow_down_r': 0.5, 'mouth_left': 0.4, 'smile_l': 0.2},
    'wry': {'smile_r': 0.8, 'cheek_squint_r': 0.5, 'mouth_right': 0.3, 'brow_outer_up_r': 0.4},
    'puff': {'cheek_puff': 0.7, 'mouth_close': 0.2, 'brow_inner_up': 0.2},
    'pensive': {'mouth_pucker': 0.4, 'brow_down': 0.3, 'shrug_upper': 0.2, 'chin_raise': 0.3},
}
_MOOD_SHARE = (0.22, 0.12, 0.10, 0.10, 0.11, 0.06, 0.06, 0.08, 0.07, 0.03, 0.05)


class SpeechStyle(NamedTuple):
    """How lively a clip is; ``speech_style(seed)`` draws one. All are plain multipliers or radians."""

    articulation: float = 1.0  # size of mouth movements
    syllable: float = 0.18  # seconds per syllable
    mood: float = 0.7  # strength of moods
    brow: float = 0.6  # strength of brow accents
    blink_interval: float = 2.8  # mean seconds between blinks
    gaze: float = 0.35  # spread of gaze targets
    yaw_offset: float = 0.0  # rad, mean direction of the head
    yaw: float = 0.12  # rad, spread of slow head turns
    pitch: float = 0.06
    roll: float = 0.05


def settle(x: np.ndarray) -> np.ndarray:
    """Round to multiples of 2**-16 and to float32, which hides last-bit differences between machines."""
    return (np.round(np.asarray(x, np.float64) * 65536.0) / 65536.0).astype(np.float32)


def blend(targets: Mapping[str, float], rng: Stream | None = None, asymmetry: float = 0.0) -> np.ndarray:
    """Expression [64] from named weights; a name without ``_l``/``_r`` that exists in a pair sets both sides."""
    out = np.zeros(len(EXPRESSION_NAMES))
    for name, value in targets.items():
        if name in CHANNEL:
            out[CHANNEL[name]] += value
            continue
        tilt = 0.0 if rng is None else rng.uniform(-asymmetry, asymmetry)
        out[CHANNEL[name + '_l']] += value * (1 + tilt)
        out[CHANNEL[name + '_r']] += value * (1 - tilt)
    return out


_TARGETS = {name: blend(weights) for name, weights in VISEME_TARGETS.items()}


def clip_expression(expression: np.ndarray) -> np.ndarray:
    """Clip to the nominal ranges: 0..1, gaze -1..1. Shape [..., 64]."""
    out = np.clip(expression, 0.0, 1.0)
    for g in GAZE:
        out[..., g] = np.clip(expression[..., g], -1.0, 1.0)
    return out


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, with zero slope at both ends."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def speech_style(seed: int) -> SpeechStyle:
    """A person's way of speaking; a third of the clips turn the head far (up to +-35 degrees)."""
    rng = Stream('style', seed)
    turning = rng.random() < 0.35
    yaw_offset = rng.normal(0.0, 0.12) if not turning else rng.uniform(-0.35, 0.35)
    return SpeechStyle(
        articulation=rng.uniform(0.75, 1.2),
        syllable=rng.uniform(0.14, 0.23),
        mood=rng.uniform(0.4, 1.0),
        brow=rng.uniform(0.3, 0.9),
        blink_interval=rng.uniform(1.8, 4.0),
        gaze=rng.uniform(0.2, 0.5),
        yaw_offset=float(np.clip(yaw_offset, -0.35, 0.35)),
        yaw=rng.uniform(0.25, 0.5) if turning else rng.uniform(0.04, 0.15),
        pitch=rng.uniform(0.03, 0.10),
        roll=rng.uniform(0.02, 0.07),
    )


def speech_arrays(seed: int, num_frames: int, fps: float = 25.0, style: SpeechStyle | None = None) -> dict:
    """One clip as numpy arrays.

    Args:
        seed: any non-negative integer; clips of different seeds are independent.
        num_frames: length T >= 1.
        fps: frames per second; the movement in seconds does not depend on it.
        style: how lively the speaker is; drawn from the seed when absent.
    Returns:
        dict of float32: ``expression`` [T,64], ``angle`` [T,3] rad, ``translation`` [T,3] dm.
    """
    if num_frames < 1 or fps <= 0:
        raise ValueError(f'need num_frames >= 1 and fps > 0, got {num_frames} and {fps}')
    style = speech_style(seed) if style is None else style
    t = np.arange(num_frames) / fps
    segments = segments_of_clip(seed, t[-1], style)
    expression = _speech(segments, t) + _moods(Stream('mood', seed), t, style)
    brow, nod = _brow_accents(Stream('brow', seed), t, segments.stressed, style)
    expression += brow
    expression += 0.03 * np.abs(smooth_noise(Stream('idle', seed), t, 0.7, len(EXPRESSION_NAMES)))
    angle, translation = _head(Stream('head', seed), t, nod, style)
    gaze, jumps = _gaze(Stream('gaze', seed), t, angle, style)
    for k, g in enumerate(GAZE):
        expression[:, g] = gaze[:, k]
    lids = _blinks(Stream('blink', seed), t, fps, jumps, style)
    expression[:, BLINK] = np.maximum(np.minimum(expression[:, BLINK], 0.2), lids)
    for name in ('wide_l', 'wide_r'):
        expression[:, CHANNEL[name]] *= 1.0 - lids.max(axis=1)
    # Closed lips win over a jaw that a mood holds open.
    closed = expression[:, CHANNEL['viseme_mbp']].clip(0, 1)
    for name in ('jaw_open', 'upper_up_l', 'upper_up_r', 'lower_down_l', 'lower_down_r', 'tongue_out'):
        expression[:, CHANNEL[name]] *= 1.0 - closed
    return {
        'expression': settle(clip_expression(expression)),
        'angle': settle(angle),
        'translation': settle(translation),
    }


def speech_motion(seed: int, num_frames: int, fps: float = 25.0, style: SpeechStyle | None = None):
    """One clip as an ``avatar_jax.types.Motion`` in the basis ``procedural``; arguments as ``speech_arrays``."""
    from avatar_jax.types import Motion

    arrays = speech_arrays(seed, num_frames, fps, style)
    return Motion(**arrays, fps=float(fps), basis='procedural', source=f'procedural speech, seed {seed}')


def smooth_noise(rng: Stream, t: np.ndarray, period: float, channels: int) -> np.ndarray:
    """Smooth random curves [T, channels], about standard normal, one knot per ``period`` seconds (cubic B-spline)."""
    knots = rng.normal(size=(int(t[-1] / period) + 4, channels))
    x = t / period
    i = x.astype(int)
    u = (x - i)[:, None]
    w = [(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]
    return 1.5 * sum(w[k] / 6.0 * knots[i + k] for k in range(4))  # 1.5 restores the variance that smoothing takes


class Segments(NamedTuple):
    """What is said, segment by segment (consonant, vowel, consonant, ...), in order of time.

    Attributes:
        shapes: [K] names of mouth shapes (``VISEME_TARGETS``).
        centres, widths: [K] seconds: where a segment dominates, and how far its influence reaches.
        strengths: [K] how much it dominates its neighbours.
        targets: [K,64] the mouth that it aims at.
        stressed: [S] moments of stressed syllables, seconds.
    """

    shapes: list[str]
    centres: np.ndarray
    widths: np.ndarray
    strengths: np.ndarray
    targets: np.ndarray
    stressed: np.ndarray


REST_DOMINANCE = 0.12  # of the mouth at rest


def speech_segments(rng, end: float, style: SpeechStyle) -> Segments:
    """The segments that begin before ``end`` seconds, drawn from a stream; a longer text begins like a shorter one."""
    shapes, centres, widths, strengths, targets, stressed = [], [], [], [], [], []
    now = rng.uniform(0.0, 0.5)
    while now < end:
        loud = rng.uniform(0.7, 1.1) * style.articulation
        for _ in range(rng.integers(3, 15)):
            length = style.syllable * rng.uniform(0.75, 1.35)
            stress = rng.random() < 0.25
            consonant = CONSONANTS[rng.choice(len(CONSONANTS), p=_CONSONANT_SHARE)]
            vowel = VOWELS[rng.choice(len(VOWELS), p=_VOWEL_SHARE)]
            size = loud * rng.uniform(0.7, 1.05) * (1.2 if stress else 1.0)
            closing = consonant in ('mbp', 'fv')
            shapes += [consonant, vowel]
            centres += [now + 0.2 * length, now + 0.65 * length]
            widths += [0.22 * length, 0.36 * length]
            strengths += [6.0 if closing else 1.3, 1.6]
            targets += [_TARGETS[consonant] * (1.0 if closing else min(size, 1.1)), _TARGETS[vowel] * size]
            if stress:
                stressed.append(now + 0.5 * length)
            now += length
        now += rng.uniform(0.15, 1.1)
    arrays = (np.asarray(x) for x in (centres, widths, strengths, targets, stressed))
    return Segments(shapes, *arrays)


def dominance(segments: Segments, t: np.ndarray) -> np.ndarray:
    """[T, K] how much each segment shapes the mouth at the moments ``t`` (not normalised)."""
    away = np.abs(t[:, None] - segments.centres) / segments.widths
    return segments.strengths * np.exp(-(away**1.7))


def segments_of_clip(seed: int, last: float, style: SpeechStyle) -> Segments:
    """The segments behind ``speech_arrays`` of this seed, for a clip whose last frame is at ``last`` seconds."""
    return speech_segments(Stream('speech', seed), last + 1.5, style)  # those after the end still shape the last frames


def _speech(segments: Segments, t: np.ndarray) -> np.ndarray:
    """Mouth channels [T,64].

    Co-articulation after Cohen and Massaro: each segment has a target and a dominance that decays with the distance
    in time; the mouth is the dominance-weighted mean of the targets, and a constant weak dominance holds it at rest.
    """
    weights = dominance(segments, t)
    return weights @ segments.targets / (weights.sum(axis=1, keepdims=True) + REST_DOMINANCE)


def _bumps(t: np.ndarray, start, rise, hold, fall) -> np.ndarray:
    """Trapezoids with smooth flanks [T, K]: 0, up during ``rise``, 1 during ``hold``, down during ``fall``."""
    x = t[:, None] - np.asarray(start)
    up = smoothstep(x / np.asarray(rise))
    down = smoothstep((x - np.asarray(rise) - np.asarray(hold)) / np.asarray(fall))
    return up * (1.0 - down)


def _moods(rng, t: np.ndarray, style: SpeechStyle) -> np.ndarray:
    names = list(MOODS)
    out = np.zeros((len(t), len(EXPRESSION_NAMES)))
    now = rng.uniform(-1.0, 1.5)
    while now < t[-1]:
        mood = names[rng.choice(len(names), p=_MOOD_SHARE)]
        rise, hold, fall = rng.uniform(0.25, 0.7), rng.uniform(0.4, 2.5), rng.uniform(0.3, 0.9)
        weights = blend(MOODS[mood], rng, asymmetry=0.35) * style.mood * rng.uniform(0.5, 1.1)
        out += _bumps(t, [now], rise, hold, fall) * weights
        now += rise + hold + fall + rng.exponential(1.2)
    return out


def _brow_accents(rng, t: np.ndarray, stressed: np.ndarray, style: SpeechStyle) -> tuple[np.ndarray, np.ndarray]:
    """Brow movements on some stressed syllables [T,64] and the nods that go with them [T] (rad)."""
    out = np.zeros((len(t), len(EXPRESSION_NAMES)))
    nod = np.zeros(len(t))
    for s in stressed:
        kind, size = rng.random(), style.brow * rng.uniform(0.5, 1.2)
        rise, hold, fall = rng.uniform(0.1, 0.2), rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.4)
        depth = rng.uniform(-0.02, 0.06)
        names = (
            {'brow_inner_up': size, 'brow_outer_up': 0.8 * size}
            if kind < 0.45
            else {'brow_down': 0.8 * size, 'brow_furrow': 0.5 * size}
        )
        shape = _bumps(t, [s - rise], rise, hold, fall)
        if kind < 0.6:
            out += shape * blend(names, rng, asymmetry=0.3)
        nod += shape[:, 0] * depth
    return out, nod


def _head(rng, t: np.ndarray, nod: np.ndarray, style: SpeechStyle) -> tuple[np.ndarray, np.ndarray]:
    slow = smooth_noise(rng.child('slow'), t, 1.1, 3)
    fast = smooth_noise(rng.child('fast'), t, 0.35, 3)
    shift = smooth_noise(rng.child('shift'), t, 1.6, 3)
    spread = np.array([style.pitch, style.yaw, style.roll])
    angle = slow * spread + fast * 0.008
    angle[:, 0] += nod + 0.03
    angle[:, 1] += style.yaw_offset
    angle[:, 2] += 0.15 * angle[:, 1]  # heads tip a little when they turn
    limit = np.array([MAX_PITCH, MAX_YAW, MAX_ROLL])
    angle = limit * np.tanh(angle / limit)
    reach = np.array([MAX_SHIFT, MAX_SHIFT, MAX_DOLLY])
    translation = reach * np.tanh(shift * np.array([0.04, 0.03, 0.12]) / reach)
    return angle, translation


def _gaze(rng, t: np.ndarray, angle: np.ndarray, style: SpeechStyle) -> tuple[np.ndarray, np.ndarray]:
    """Gaze [T,2] by saccades between fixations, and the times of large jumps."""
    out = np.zeros((len(t), 2))
    jumps = []
    now, here = 0.0, rng.normal(0.0, 0.3 * style.gaze, 2)
    out[:] = here
    while now < t[-1]:
        now += 0.2 + rng.exponential(0.9)
        away = rng.random() < 0.35
        target = rng.normal(0.0, style.gaze, 2) * (1.0 if away else 0.25)
        move = smoothstep((t - now) / 0.07)[:, None]
        out += move * (target - here)
        if np.abs(target - here).max() > 0.4 and rng.random() < 0.5:
            jumps.append(now)
        here = target
    # The eyes stay on the listener while the head turns.
    out[:, 0] -= 0.8 * angle[:, 1]
    return np.clip(out, -1.0, 1.0), np.asarray(jumps)


def _blinks(rng, t: np.ndarray, fps: float, jumps: np.ndarray, style: SpeechStyle) -> np.ndarray:
    """Lid closure [T,2] (left, right), each blink fully closed for at least one frame."""
    starts, holds = [], []
    now = rng.uniform(0.2, style.blink_interval)
    while now < t[-1]:
        long = rng.random() < 0.06
        hold = rng.uniform(0.3, 0.8) if long else rng.uniform(0.03, 0.07)
        starts.append(now)
        holds.append(hold)
        if not long and rng.random() < 0.12:  # a double blink
            starts.append(now + 0.30)
            holds.append(0.04)
        now += hold + 0.6 + sum(rng.exponential(max(style.blink_interval - 0.6, 0.1) / 2) for _ in range(2))
    for j in jumps:
        starts.append(float(j) - 0.04)
        holds.append(0.04)
    if not starts:
        return np.zeros((len(t), 2))
    # A frame must fall into the closed part: hold at least one frame period.
    hold = np.maximum(np.asarray(holds), 1.02 / fps)
    closure = _bumps(t, starts, 0.09, hold, 0.15).max(axis=1)
    return np.stack([closure, closure], axis=1)
