"""Procedural components and ICT-FaceKit's blendshapes, name by name: both are made after the same facial actions.

ICT-FaceKit says _L and Left for the person's left, which is the right side of the picture; the procedural basis says _l
and left for the left side of the picture. So ``blink_l`` is ``eyeBlink_R`` and ``jaw_left`` is ``jawRight``. Speech
shapes (``viseme_*``) go through the components that they are made of. ``tongue_out``, ``nostril_flare`` and
``neck_tense`` have no counterpart and are dropped.
"""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.driving.bases import ICT, ICT_NAMES, PROCEDURAL, WIDTH
from avatar_jax.procedural.expressions import EXPRESSION_NAMES, VISEMES

# Procedural name -> ICT name; a trailing * stands for both sides, crossed.
_SAME = {
    'jaw_open': 'jawOpen',
    'jaw_forward': 'jawForward',
    'jaw_left': 'jawRight',
    'jaw_right': 'jawLeft',
    'mouth_close': 'mouthClose',
    'mouth_funnel': 'mouthFunnel',
    'mouth_pucker': 'mouthPucker',
    'mouth_left': 'mouthRight',
    'mouth_right': 'mouthLeft',
    'roll_lower': 'mouthRollLower',
    'roll_upper': 'mouthRollUpper',
    'shrug_lower': 'mouthShrugLower',
    'shrug_upper': 'mouthShrugUpper',
    'smile*': 'mouthSmile',
    'frown*': 'mouthFrown',
    'dimple*': 'mouthDimple',
    'stretch*': 'mouthStretch',
    'press*': 'mouthPress',
    'lower_down*': 'mouthLowerDown',
    'upper_up*': 'mouthUpperUp',
    'brow_down*': 'browDown',
    'brow_outer_up*': 'browOuterUp',
    'cheek_squint*': 'cheekSquint',
    'sneer*': 'noseSneer',
    'blink*': 'eyeBlink',
    'squint*': 'eyeSquint',
    'wide*': 'eyeWide',
}
# Components of one model for which the other has one on each side.
_BOTH = {'brow_inner_up': 'browInnerUp', 'cheek_puff': 'cheekPuff'}
# Only from procedural to ICT: nearest shapes, with weights.
_NEAREST = {
    'chin_raise': (('mouthShrugLower', 0.7),),
    'lip_corner_up': (('mouthSmile_L', 0.5), ('mouthSmile_R', 0.5)),
    'lip_corner_down': (('mouthFrown_L', 0.6), ('mouthFrown_R', 0.6)),
    'brow_furrow': (('browDown_L', 0.5), ('browDown_R', 0.5)),
}
# Gaze to the right of the picture and up; the others are its negative parts.
_RIGHT, _LEFT = ('eyeLookOut_L', 'eyeLookIn_R'), ('eyeLookIn_L', 'eyeLookOut_R')
_UP, _DOWN = ('eyeLookUp_L', 'eyeLookUp_R'), ('eyeLookDown_L', 'eyeLookDown_R')


def pairs() -> list[tuple[str, str]]:
    """All one-to-one pairs (procedural name, ICT name)."""
    out = []
    for ours, theirs in _SAME.items():
        if ours.endswith('*'):
            out += [(f'{ours[:-1]}_l', f'{theirs}_R'), (f'{ours[:-1]}_r', f'{theirs}_L')]
        else:
            out.append((ours, theirs))
    return out


@functools.cache
def _matrices() -> tuple[np.ndarray, np.ndarray]:
    """[64, 64] procedural to ICT, and [64, 64] ICT to procedural; rows are the source's components."""
    p = {n: i for i, n in enumerate(EXPRESSION_NAMES)}
    t = {n: i for i, n in enumerate(ICT_NAMES)}
    there, back = np.zeros((WIDTH, WIDTH)), np.zeros((WIDTH, WIDTH))
    for ours, theirs in pairs():
        there[p[ours], t[theirs]] = back[t[theirs], p[ours]] = 1.0
    for ours, theirs in _BOTH.items():
        for side in 'LR':
            there[p[ours], t[f'{theirs}_{side}']] = 1.0
            back[t[f'{theirs}_{side}'], p[ours]] = 0.5
    for ours, mix in _NEAREST.items():
        for theirs, weight in mix:
            there[p[ours], t[theirs]] = weight
    for viseme, mix in VISEMES.items():
        there[p[viseme]] = sum(weight * there[p[part]] for part, weight in mix.items())
    return there, back


def translate(expression: np.ndarray, source: str, target: str) -> np.ndarray:
    """Expression rows [T, 64] of the procedural basis as ICT-FaceKit's, or the other way; values end up in 0..1.

    Raises:
        ValueError: other bases.
    """
    if {source, target} != {PROCEDURAL, ICT}:
        raise ValueError(f'there is no table from {source} to {target}')
    there, back = _matrices()
    values = np.asarray(expression, np.float64)
    p = {n: i for i, n in enumerate(EXPRESSION_NAMES)}
    t = {n: i for i, n in enumerate(ICT_NAMES)}
    if source == PROCEDURAL:
        out = values @ there
        for name, positive, negative in (('gaze_x', _RIGHT, _LEFT), ('gaze_y', _UP, _DOWN)):
            amount = values[:, p[name]]
            for look in positive:
                out[:, t[look]] = np.maximum(amount, 0)
            for look in negative:
                out[:, t[look]] = np.maximum(-amount, 0)
        return np.clip(out, 0, 1).astype(np.float32)
    out = np.clip(values @ back, 0, 1)
    for name, positive, negative in (('gaze_x', _RIGHT, _LEFT), ('gaze_y', _UP, _DOWN)):
        amount = sum(values[:, t[look]] for look in positive) - sum(values[:, t[look]] for look in negative)
        out[:, p[name]] = np.clip(amount / 2, -1, 1)
    return out.astype(np.float32)
