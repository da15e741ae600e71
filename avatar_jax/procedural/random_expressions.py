"""Independent random expressions and poses with good coverage, each with a plausible 27-frame motion window.

Clips (``motion.speech_arrays``) visit the corners of the expression space rarely; a prior and a controller learn
faster when wide jaws, closed eyes, winks, one-sided smiles and far gazes are common. All functions work on a batch.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.ops.windows import RADIUS
from avatar_jax.procedural.expressions import EXPRESSION_NAMES
from avatar_jax.procedural.motion import (
    BLINK,
    CHANNEL,
    MOODS,
    VISEME_TARGETS,
    blend,
    clip_expression,
    smoothstep,
)
from avatar_jax.procedural.streams import Stream

_MOUTH = [
    CHANNEL[n]
    for n in EXPRESSION_NAMES
    if n.split('_')[0]
    in (
        'jaw',
        'mouth',
        'frown',
        'dimple',
        'stretch',
        'roll',
        'shrug',
        'press',
        'lower',
        'upper',
        'tongue',
        'viseme',
        'lip',
        'chin',
    )
]
_SLOW = [
    CHANNEL[n] for n in EXPRESSION_NAMES if n.split('_')[0] in ('smile', 'brow', 'cheek', 'sneer', 'neck', 'nostril')
]
_VISEMES = np.stack([blend(v) for v in VISEME_TARGETS.values()])
_MOODS = np.stack([blend(m) for m in MOODS.values()])
# Half of a mood: the other side at rest.
_MOODS_LEFT = _MOODS * [not n.endswith('_r') for n in EXPRESSION_NAMES]
_MOODS_RIGHT = _MOODS * [not n.endswith('_l') for n in EXPRESSION_NAMES]
_LIDS = [CHANNEL[n] for n in ('squint_l', 'squint_r', 'wide_l', 'wide_r')]


def random_expressions(rng: Stream, count: int) -> np.ndarray:
    """Independent expressions [count,64] float64 in the nominal ranges.

    Shares: a sixth have a resting mouth, a sixth a jaw at least half open, a fifth both eyes closed, one in sixteen
    a wink; smiles are one-sided in a third of the cases; gaze covers the whole range in two thirds.
    """
    out = np.zeros((count, len(EXPRESSION_NAMES)))
    _random_mouth(rng, out)
    _random_moods(rng, out)
    _random_brows(rng, out)
    # A sprinkle of every channel, so that none is a function of the others.
    out += (rng.random(out.shape) < 0.06) * rng.random(out.shape) * 0.8
    _random_eyes(rng, out)
    return clip_expression(out)


def _random_mouth(rng, out: np.ndarray) -> None:
    count = len(out)
    first, second = rng.integers(0, len(_VISEMES), (2, count))
    share = np.where(rng.random(count) < 0.5, 1.0, rng.random(count))[:, None]
    size = rng.uniform(0.3, 1.15, count)[:, None]
    spoken = (share * _VISEMES[first] + (1 - share) * _VISEMES[second]) * size
    sparse = np.zeros_like(out)
    pick = rng.random((count, len(_MOUTH))) < 2.5 / len(_MOUTH)
    sparse[:, _MOUTH] = pick * rng.random(pick.shape)
    wide = np.zeros_like(out)
    wide[:, CHANNEL['jaw_open']] = rng.uniform(0.5, 1.0, count)
    wide[:, CHANNEL['jaw_left']] = rng.uniform(0, 0.4, count) * (rng.random(count) < 0.2)
    wide[:, CHANNEL['jaw_right']] = rng.uniform(0, 0.4, count) * (rng.random(count) < 0.2)
    kind = rng.choice(4, count, p=[0.17, 0.47, 0.19, 0.17])[:, None]
    out += np.where(kind == 1, spoken, 0.0) + np.where(kind == 2, sparse, 0.0) + np.where(kind == 3, wide, 0.0)


def _random_moods(rng, out: np.ndarray) -> None:
    count = len(out)
    mood = rng.integers(0, len(MOODS), count)
    mood = np.where(rng.random(count) < 0.4, rng.integers(0, 2, count), mood)  # smiles are the most common
    one_sided = rng.choice(3, count, p=[0.66, 0.17, 0.17])[:, None]
    e = np.where(one_sided == 0, _MOODS[mood], np.where(one_sided == 1, _MOODS_LEFT[mood], _MOODS_RIGHT[mood]))
    strength = rng.uniform(0.15, 1.1, count) * (rng.random(count) < 0.5)
    e = e * strength[:, None]
    jaw = CHANNEL['jaw_open']
    e[:, jaw] *= out[:, jaw] < 0.3
    out += e


def _random_brows(rng, out: np.ndarray) -> None:
    count = len(out)
    for names, chance in (
        (('brow_inner_up', 'brow_outer_up_l', 'brow_outer_up_r'), 0.15),
        (('brow_down_l', 'brow_down_r', 'brow_furrow'), 0.15),
        (('brow_outer_up_l',), 0.06),
        (('brow_outer_up_r',), 0.06),
        (('brow_inner_up',), 0.10),
    ):
        amount = rng.uniform(0.2, 1.0, count) * (rng.random(count) < chance)
        for n in names:
            out[:, CHANNEL[n]] += amount * rng.uniform(0.7, 1.0, count)


def _random_eyes(rng, out: np.ndarray) -> None:
    count = len(out)
    kind = rng.choice(5, count, p=[0.54, 0.20, 0.16, 0.06, 0.04])  # open, closed, half open, wink, wide
    left, right = rng.random((2, count))
    half = rng.random(count)
    lids = np.zeros((count, 2))
    lids[kind == 1] = 1.0
    lids[kind == 2] = np.clip(half[:, None] + rng.normal(0, 0.05, (count, 2)), 0, 1)[kind == 2]
    wink = np.where(left > right, 1.0, 0.0)
    lids[kind == 3] = np.stack([wink, 1 - wink], 1)[kind == 3]
    out[:, BLINK] = lids
    wide = rng.uniform(0.4, 1.0, count) * (kind == 4)
    for k, side in enumerate(('l', 'r')):
        out[:, CHANNEL[f'wide_{side}']] = np.maximum(out[:, CHANNEL[f'wide_{side}']], wide) * (1 - lids[:, k])
        out[:, CHANNEL[f'squint_{side}']] *= 1 - lids[:, k]
    far = rng.random(count) < 0.66
    for name in ('gaze_x', 'gaze_y'):
        out[:, CHANNEL[name]] = np.where(far, rng.uniform(-1, 1, count), rng.normal(0, 0.12, count))


def random_poses(
    rng: Stream,
    count: int,
    yaw: float = np.deg2rad(45.0),
    pitch: float = np.deg2rad(20.0),
    roll: float = np.deg2rad(8.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Angles [count,3] (rad) and translations [count,3] (dm).

    Two thirds of the yaws and pitches are uniform within the limits, the others near the front, as in portraits;
    translations are a few centimetres sideways and +-3 % of the distance along the viewing axis.
    """
    front = rng.random(count) < 0.33
    angle = np.stack(
        [
            np.where(front, rng.normal(0, pitch / 4, count), rng.uniform(-pitch, pitch, count)),
            np.where(front, rng.normal(0, yaw / 4, count), rng.uniform(-yaw, yaw, count)),
            rng.normal(0, roll / 2, count),
        ],
        axis=1,
    )
    angle = np.clip(angle, [-pitch, -yaw, -roll], [pitch, yaw, roll])
    translation = np.clip(rng.normal(0, [0.035, 0.03, 0.12], (count, 3)), [-0.1, -0.1, -0.3], [0.1, 0.1, 0.3])
    return angle, translation


def windows_around(
    rng: Stream,
    expression: np.ndarray,
    angle: np.ndarray,
    translation: np.ndarray,
) -> np.ndarray:
    """Motion windows [N,27,70] whose middle frame is exactly the given expression [N,64], angle [N,3], translation.

    Each side has two key frames; mouths move to other random expressions, moods and brows change slowly, eyes jump,
    lids open and close with the timing of blinks, heads drift.
    """
    count = len(expression)
    t = np.arange(-RADIUS, RADIUS + 1)
    left, right = -rng.integers(4, 10, count), rng.integers(4, 10, count)
    times = np.stack([np.full(count, -RADIUS), left, np.zeros(count, int), right, np.full(count, RADIUS)], axis=1)
    keys = np.repeat(expression[:, None], 5, axis=1)
    others = random_expressions(rng, 4 * count).reshape(4, count, -1)
    for k, other in zip((0, 1, 3, 4), others, strict=True):
        amount = rng.uniform(0.0, 1.0, (count, 1)) * (rng.random((count, 1)) < 0.75)
        fast = amount * other + (1 - amount) * expression
        slow = 0.25 * amount * other + (1 - 0.25 * amount) * expression
        keys[:, k] = expression
        keys[:, k, _MOUTH] = fast[:, _MOUTH]
        keys[:, k, _SLOW] = slow[:, _SLOW]
        keys[:, k, _LIDS] = slow[:, _LIDS]
        jump = rng.random(count) < 0.5
        for name in ('gaze_x', 'gaze_y'):
            c = CHANNEL[name]
            keys[:, k, c] = np.where(jump, other[:, c], expression[:, c])
    # Piecewise interpolation between neighbouring keys: [N,27,4] weights of "how far into segment s".
    start, stop = times[:, None, :4], times[:, None, 1:]
    phase = (t[:, None] - start) / np.maximum(stop - start, 1)
    path = keys[:, :1] + np.einsum('nts,nsc->ntc', smoothstep(phase), np.diff(keys, axis=1))
    gaze = [CHANNEL['gaze_x'], CHANNEL['gaze_y']]
    saccade = smoothstep((phase - 0.5) * 4.0 + 0.5)
    path[:, :, gaze] = keys[:, :1, gaze] + np.einsum('nts,nsc->ntc', saccade, np.diff(keys[:, :, gaze], axis=1))
    path[:, :, BLINK] = _lid_paths(rng, t, expression[:, BLINK])
    drift, bend = rng.normal(0, 1, (2, count, 1, 3))
    u = (t / RADIUS)[:, None]
    path_angle = angle[:, None] + (drift * u + 0.4 * bend * u**2) * np.array([0.06, 0.10, 0.03])
    path_trans = translation[:, None] + rng.normal(0, 1, (count, 1, 3)) * u * np.array([0.02, 0.02, 0.06])
    window = np.concatenate([clip_expression(path), path_angle, path_trans], axis=2)
    window[:, RADIUS] = np.concatenate([expression, angle, translation], axis=1)
    return window


def _lid_paths(rng, t: np.ndarray, lids: np.ndarray) -> np.ndarray:
    """Lid closure [N,27,2] through ``lids`` [N,2] at t = 0: part of a blink, or held, or a blink nearby."""
    count = len(lids)
    amount = lids[:, None, :]
    before, after = rng.uniform(1.5, 4.0, (2, count, 1))
    hold_before, hold_after = rng.uniform(0.0, 2.0, (2, count, 1))
    fade = np.where(t < 0, (-t - hold_before) / before, (t - hold_after) / after)
    passing = amount * (1 - smoothstep(fade))[:, :, None]
    held = np.broadcast_to(amount, (count, len(t), 2))
    is_held = (rng.random((count, 1, 1)) < 0.3) | (np.abs(lids[:, None, :1] - lids[:, None, 1:]) > 0.3)
    path = np.where(is_held, held, passing)
    # An open eye may blink before or after, far enough away to leave the middle frame as it is.
    when = np.where(rng.random(count) < 0.5, -1, 1) * rng.uniform(6.0, 12.0, count)
    nearby = np.clip(1.25 - np.abs(t - when[:, None]) / 3.2, 0, 1)[:, :, None]
    nearby = nearby * (rng.random((count, 1, 1)) < 0.35) * (lids.max(axis=1) < 0.5)[:, None, None]
    return np.maximum(path, nearby)
