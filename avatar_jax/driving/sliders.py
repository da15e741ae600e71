"""Motions from numbers: ``jaw_open=0.6 blink_l=1 yaw=20``.

Names are the components of the procedural basis (and of ICT-FaceKit in its own basis), or their index in the avatar's
basis; ``yaw, pitch, roll`` are degrees and ``move_x, move_y, move_z`` decimetres.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from avatar_jax.driving.bases import PROCEDURAL, WIDTH, names, ranges, width
from avatar_jax.errors import UserError
from avatar_jax.types import Motion

ANGLES = {'pitch': 0, 'yaw': 1, 'roll': 2}
MOVES = {'move_x': 0, 'move_y': 1, 'move_z': 2}
MAX_DEGREES, MAX_MOVE = 90.0, 5.0


@dataclass(frozen=True)
class Sliders:
    """Values by place. ``expression`` belongs to ``basis``; pose is in radians and decimetres."""

    basis: str
    expression: dict[int, float]
    angle: dict[int, float]
    translation: dict[int, float]

    def motion(self, frames: int, fps: float = 25.0) -> Motion:
        """A motion that holds the values for some frames; everything else is at rest."""
        rest = Motion(
            np.zeros((frames, WIDTH), np.float32),
            np.zeros((frames, 3), np.float32),
            np.zeros((frames, 3), np.float32),
            fps,
            self.basis,
            'sliders',
        )
        return self.applied(rest)

    def applied(self, motion: Motion) -> Motion:
        """The motion with the named values put in place of its own, in every frame."""
        parts = [np.array(x, np.float32) for x in (motion.expression, motion.angle, motion.translation)]
        for array, values in zip(parts, (self.expression, self.angle, self.translation), strict=True):
            for place, value in values.items():
                array[:, place] = value
        return motion.replace(expression=parts[0], angle=parts[1], translation=parts[2])


def slider_basis(options: Iterable[str], basis: str) -> str:
    """The basis that slider names speak of: the avatar's own if it knows one of them (or only numbers are given)."""
    own = names(basis)
    spoken = [o.partition('=')[0] for o in options]
    words = [n for n in spoken if not n.isdigit() and n not in ANGLES and n not in MOVES]
    return PROCEDURAL if words and not all(w in own for w in words) else basis


def parse_sliders(options: Iterable[str], basis: str) -> Sliders:
    """Reads ``NAME=VALUE`` options.

    Raises:
        UserError: not of that form, unknown name (with a suggestion), a value out of range, or one name twice.
    """
    options = list(options)
    basis = slider_basis(options, basis)
    known, limits = names(basis), ranges(basis)
    out = Sliders(basis, {}, {}, {})
    for option in options:
        name, equals, text = option.partition('=')
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not equals or not name or not np.isfinite(value):
            raise UserError(f'--slider {option}: give NAME=VALUE, e.g. jaw_open=0.6')
        if name in ANGLES:
            values, place, low, high, scale = out.angle, ANGLES[name], -MAX_DEGREES, MAX_DEGREES, np.pi / 180
        elif name in MOVES:
            values, place, low, high, scale = out.translation, MOVES[name], -MAX_MOVE, MAX_MOVE, 1.0
        else:
            place = _place(option, name, known, basis)
            values, (low, high), scale = out.expression, limits[place], 1.0
        if not low <= value <= high:
            unit = ' degrees' if name in ANGLES else ' decimetres' if name in MOVES else ''
            raise UserError(f'--slider {option}: {name} runs from {low:g} to {high:g}{unit}')
        if place in values:
            raise UserError(f'--slider {option}: is given twice')
        values[place] = value * scale
    return out


def _place(option: str, name: str, known: tuple[str, ...], basis: str) -> int:
    if name in known:
        return known.index(name)
    if name.isdigit():
        if int(name) >= width(basis):
            raise UserError(f"--slider {option}: the basis '{basis}' has the components 0 to {width(basis) - 1}")
        return int(name)
    close = difflib.get_close_matches(name, (*known, *ANGLES, *MOVES), 1, 0.5)
    both = [k for k in known if k.removesuffix('_l').removesuffix('_r') == name]
    if len(both) == 2:
        hint = f'say {both[0]} and {both[1]}'
    elif close:
        hint = f'did you mean {close[0]}?'
    else:
        hint = f'there are {", ".join(known[:4])}, ..., {", ".join((*ANGLES, *MOVES))}; docs/motion_file.md lists them'
    raise UserError(f'--slider {option}: there is no {name!r}; {hint}')
