"""From a driver to the signals that a method reads: each signal says what it needs and how it is made.

A driver is a motion, a video with pictures, a sound, or several of these. A method names its signals; a driver that
cannot give one of them is refused with the kinds of drivers that can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.ops.windows import RADIUS
from avatar_jax.types import Array, Config, Drive, Motion, Portrait

# What a driver may have -> the drivers that have it.


GIVEN_BY = {
    'motion': 'a motion file, coefficients, a video, a picture, speech:SEED or --slider',
    'pictures': 'a video or a picture',
    'sound': 'a video with sound, or a sound file',
}


@dataclass(frozen=True)
class Signal:
    """One named array of a ``Drive``.

    Attributes:
        needs: what it is made of, names of ``GIVEN_BY``.
        make: (parts, model configuration) -> [T, ...]; ``parts`` has what is needed, by name. ``parts['motion']`` is a
            ``Motion`` in the model's basis, ``parts['pictures']`` [T, H, W, 3] in [-1, 1] (any sequence with
            ``__getitem__`` and ``__len__``), ``parts['sound']`` an ``io.sound.SoundTrack``, or the samples of an
            ``io.sound.Sound``. Where there is a motion, it says how many frames there are, even if it is not needed.
    """

    needs: tuple[str, ...]
    make: Callable[[Mapping[str, Any], Any], Any]


class Driven(Protocol):
    """What is asked of a method: its title, the signals that only it has, and those that drive a model of it."""

    title: str
    own_signals: Mapping[str, Signal] | Callable[[], Mapping[str, Signal]]

    def signals_of(self, config: Config) -> tuple[str, ...]:
        """Names of signals."""


def sliding_windows(rows: np.ndarray) -> np.ndarray:
    """[T, C] -> [T, 27, C]: each frame with its 13 neighbours on both sides, ends repeated; a view, not a copy."""
    padded = np.pad(np.asarray(rows, np.float32), ((RADIUS, RADIUS), (0, 0)), mode='edge')
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, 2 * RADIUS + 1, axis=0), -1, 1)


def _expression(parts: Mapping[str, Any], config: Config) -> np.ndarray:
    return np.asarray(parts['motion'].expression, np.float32)


def _pose(parts: Mapping[str, Any], config: Config) -> np.ndarray:
    return np.asarray(parts['motion'].coefficients, np.float32)[:, -6:]


def _windows(parts: Mapping[str, Any], config: Config) -> np.ndarray:
    return sliding_windows(np.asarray(parts['motion'].coefficients))


SIGNALS = {
    'expression': Signal(('motion',), _expression),  # [T, 64] coefficients in the model's basis
    'pose': Signal(('motion',), _pose),  # [T, 6]: angle (radians), translation (decimetres)
    'windows': Signal(('motion',), _windows),  # [T, 27, 70]: expression, angle, translation of 27 frames
}


def known_signals(method: Driven) -> dict[str, Signal]:
    """The signals that a method may name: those of all, and its own."""
    own = method.own_signals() if callable(method.own_signals) else method.own_signals
    return {**SIGNALS, **own}


def needed_parts(method: Driven, config: Config) -> set[str]:
    """What a driver must have for a model of this configuration: names of ``GIVEN_BY``."""
    known = known_signals(method)
    return {part for name in method.signals_of(config) for part in known[name].needs}


def make_drive(method: Driven, config: Config, parts: Mapping[str, Any], fps: float = 25.0, source: str = '') -> Drive:
    """The signals that a method reads, and only those.

    Args:
        method: ``methods.base.Method``. config: its model's configuration.
        parts: what the driver has, see ``Signal.make``.

    Raises:
        UserError: the driver has not what a signal needs, or its coefficients are of another basis.
    """
    known, names, signals = known_signals(method), method.signals_of(config), {}
    for name in names:
        signal = known[name]
        if missing := [n for n in signal.needs if parts.get(n) is None]:
            raise UserError(
                f"--motion: {method.title} is driven by the signal '{name}', which this driver cannot give (it has no "
                f'{missing[0]}); give {GIVEN_BY.get(missing[0], missing[0])}'
            )
        signals[name] = signal.make(parts, config)
    motion = parts.get('motion')
    if motion is not None and any('motion' in known[n].needs for n in names) and motion.basis != config.basis:
        raise UserError(
            f"motion: its coefficients belong to the basis '{motion.basis}', the avatar is driven by '{config.basis}'; "
            f"give a motion tracked with '{config.basis}'"
        )
    return Drive(signals, fps, source)


def drive_of(method: Driven, config: Config, motion: Motion) -> Drive:
    """The signals of a motion alone."""
    return make_drive(method, config, {'motion': motion}, motion.fps, motion.source)


def drive_of_rows(
    method: Driven, config: Config, rows: Array, fps: float = 25.0, others: Mapping[str, Any] | None = None
) -> Drive:
    """The signals of frames that stand alone: rows [T, 70] of expression, angle, translation, or windows [T, 27, 70] of
    which each is a frame's own. ``others``: what the driver has besides a motion.
    """
    rows = np.asarray(rows, np.float32)
    own = np.repeat(rows[:, None], 2 * RADIUS + 1, 1) if rows.ndim == 2 else rows
    middle = own[:, RADIUS]
    motion = Motion(middle[:, :64], middle[:, 64:67], middle[:, 67:70], fps, config.basis)
    made = make_drive(method, config, {'motion': motion, **(others or {})}, fps)
    return made.replace(signals=made.signals | ({'windows': own} if 'windows' in made.signals else {}))


def still_parts(portrait: Portrait, count: int, fps: float = 25.0) -> dict[str, Any]:
    """What a portrait can drive with besides its coefficients: its picture, ``count`` times, and silence as long."""
    from avatar_jax.io.sound import SPEECH_RATE, Sound

    picture, silence = np.asarray(portrait.image), np.zeros(int(np.ceil(count / fps * SPEECH_RATE)), np.float32)
    return {'pictures': [picture] * count, 'sound': Sound(silence, SPEECH_RATE)}


def still_rows(portrait: Portrait) -> np.ndarray:
    """[1, 70]: a portrait's own expression, angle and translation; zero where they were not measured."""
    row = [
        np.zeros(n, np.float32) if v is None else np.asarray(v, np.float32)
        for v, n in ((portrait.expression, 64), (portrait.angle, 3), (portrait.translation, 3))
    ]
    return np.concatenate(row)[None]
