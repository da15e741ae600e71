"""The coefficient bases: names of their components, nominal ranges, and which part of the face a component moves.

Named components (procedural, ICT-FaceKit) belong to a region by name. The components of BFM and FLAME are statistical
and move the whole face; their regions are taken apart by vertices (``retarget.region_map``).
"""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural.expressions import EXPRESSION_NAMES

PROCEDURAL, BFM, FLAME, ICT = 'procedural', 'bfm2009-deep3d', 'flame-2020', 'ict-facekit-53'
BASES = (PROCEDURAL, BFM, FLAME, ICT)
WIDTH = 64  # numbers per frame in a motion, whatever the basis; the rest is zero

# In the order of the packaged model; ``fields.load_head_model`` checks it.
_ICT_NAMES = """
browDown_L browDown_R browInnerUp_L browInnerUp_R browOuterUp_L browOuterUp_R cheekPuff_L cheekPuff_R cheekSquint_L
cheekSquint_R eyeBlink_L eyeBlink_R eyeLookDown_L eyeLookDown_R eyeLookIn_L eyeLookIn_R eyeLookOut_L eyeLookOut_R
eyeLookUp_L eyeLookUp_R eyeSquint_L eyeSquint_R eyeWide_L eyeWide_R jawForward jawLeft jawOpen jawRight mouthClose
mouthDimple_L mouthDimple_R mouthFrown_L mouthFrown_R mouthFunnel mouthLeft mouthLowerDown_L mouthLowerDown_R
mouthPress_L mouthPress_R mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper
mouthSmile_L mouthSmile_R mouthStretch_L mouthStretch_R mouthUpperUp_L mouthUpperUp_R noseSneer_L noseSneer_R
"""
ICT_NAMES = tuple(_ICT_NAMES.split())

# FLAME in a motion: 50 expression components, then axis-angle vectors of the jaw and of the left and right eye.
FLAME_EXPRESSION, FLAME_JAW, FLAME_EYES = slice(0, 50), slice(50, 53), slice(53, 59)
FLAME_WIDTH = 59
# Beyond any tracker's result; statistical components count in standard deviations or close to it.
STATISTICAL_LIMIT = 10.0

_EYES = ('blink', 'squint', 'wide', 'gaze', 'eyeBlink', 'eyeLook', 'eyeSquint', 'eyeWide')
_BROWS = ('brow',)


def names(basis: str) -> tuple[str, ...]:
    """Names of the components of a basis; empty where components have none."""
    return {PROCEDURAL: EXPRESSION_NAMES, ICT: ICT_NAMES}.get(basis, ())


def width(basis: str) -> int:
    """How many of a motion's 64 expression numbers the basis uses."""
    return {ICT: len(ICT_NAMES), FLAME: FLAME_WIDTH}.get(basis, WIDTH)


def ranges(basis: str) -> np.ndarray:
    """[64, 2] nominal smallest and largest value of each component (zeros where the basis has none)."""
    out = np.zeros((WIDTH, 2), np.float32)
    used = width(basis)
    if not names(basis):
        out[:used] = (-STATISTICAL_LIMIT, STATISTICAL_LIMIT)
        if basis == FLAME:
            out[FLAME_JAW.start : FLAME_EYES.stop] = (-1.0, 1.0)  # radians
        return out
    out[:used, 1] = 1.0
    for i, name in enumerate(names(basis)):
        if name.startswith('gaze_'):
            out[i, 0] = -1.0
    return out


def one_sided(basis: str) -> np.ndarray:
    """[64] bool: components that go only one way from rest."""
    r = ranges(basis)
    return (r[:, 0] == 0) & (r[:, 1] > 0)


def region_of(name: str) -> str:
    """'eyes', 'brows' or 'mouth' (everything below: jaw, lips, cheeks, nose, tongue, neck) of a named component."""
    if name.startswith(_EYES):
        return 'eyes'
    return 'brows' if name.startswith(_BROWS) else 'mouth'


def region_channels(basis: str, region: str) -> np.ndarray | None:
    """[64] bool: the components of a region; None where the basis mixes regions in its components.

    ``expression`` is all of them. 'eyes' of FLAME includes the eye rotations and 'mouth' the jaw, but its expression
    components mix regions.
    """
    used = np.arange(WIDTH) < width(basis)
    if region == 'expression':
        return used
    if not names(basis):
        return None
    out = np.zeros(WIDTH, bool)
    out[: width(basis)] = [region_of(n) == region for n in names(basis)]
    return out
