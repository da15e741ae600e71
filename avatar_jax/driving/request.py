"""What a user asks to drive an avatar with, as a motion and its sound: a file, made-up speech, a clip, or numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.driving.drivers import Driver, open_driver
from avatar_jax.driving.plan import Plan, apply_plan
from avatar_jax.driving.retarget import retarget
from avatar_jax.driving.sliders import parse_sliders
from avatar_jax.errors import UserError
from avatar_jax.io.sound import SoundTrack, sound_of
from avatar_jax.types import Avatar, Motion

SPEECH_FRAMES = 100
STILL_FRAMES = 25


@dataclass(frozen=True)
class Request:
    """Who drives, and how.

    Attributes:
        motion: a file, ``speech:SEED[:FRAMES]``, ``FOLDER:SPLIT:CLIP`` of a data set; None: the sliders alone.
        sliders: ``NAME=VALUE`` texts. plan: what is taken from the driver, and how.
        face: which face of a driving video or picture. fps: of coefficient files that do not say it.
        frames: length: the first frames of a driver; for sliders alone or a picture, how long it is held.
        sound: file of the sound track, 'none', or None for that of a driving video.
    """

    motion: str | None
    sliders: tuple[str, ...] = ()
    plan: Plan = field(default_factory=Plan)
    face: str = 'size'
    fps: float | None = None
    frames: int | None = None
    sound: str | None = None

    def __post_init__(self):
        if self.motion is None and not self.sliders:
            raise UserError('--motion: who drives the avatar? give --motion FILE, or numbers with --slider')

    def read(
        self, basis: str, avatar: Avatar, open_clip: Callable[[str], Motion]
    ) -> tuple[Motion, SoundTrack | None, tuple[str, ...]]:
        """The motion in the avatar's basis, its sound track or None, and what was done.

        Args:
            open_clip: reads ``FOLDER:SPLIT:CLIP``.
        """
        sliders = parse_sliders(self.sliders, basis) if self.sliders else None
        sound, notes = None, ()
        if self.motion is None:
            motion = sliders.motion(self.frames or STILL_FRAMES)
            if sliders.basis != basis:
                motion = retarget(motion, basis)
        else:
            driver = self._driver(open_clip)
            motion = driver.motion
            if motion.num_frames == 1:
                motion = held(motion, self.frames or STILL_FRAMES)
            elif self.frames is not None:
                motion = motion.frames(0, self.frames)
            motion, notes = apply_plan(motion, self.plan, basis, avatar)
            notes = (*driver.notes, *notes)
            if sliders is not None:
                motion = slid(motion, sliders)
            if driver.media is not None and self.sound is None:
                sound = sound_of(driver.media, driver.start)
        if self.sound not in (None, 'none'):
            sound = SoundTrack(self.sound)
        return motion, sound, notes

    def _driver(self, open_clip: Callable[[str], Motion]) -> Driver:
        from avatar_jax.io.video import frame_rate

        spec = self.motion
        fps = None if self.fps is None else float(frame_rate(self.fps))
        if not Path(spec).exists():
            if spec.startswith('speech:'):
                return Driver(made_up_speech(spec))
            if spec.count(':') >= 2:
                return Driver(open_clip(spec))
        return open_driver(spec, fps=fps, frames=self.frames, face=self.face)


def held(motion: Motion, frames: int) -> Motion:
    """The first frame of a motion, ``frames`` times."""
    parts = {
        k: np.repeat(np.asarray(getattr(motion, k))[:1], frames, 0) for k in ('expression', 'angle', 'translation')
    }
    return motion.replace(**parts)


def slid(motion: Motion, sliders: Any) -> Motion:
    """A motion with slider values in place of its own; names of another basis are moved over as a whole expression."""
    if sliders.basis == motion.basis:
        return sliders.applied(motion)
    moved = retarget(sliders.motion(1), motion.basis)
    changed = sliders.applied(motion.replace(basis=sliders.basis))  # pose alone is read from this one
    expression = np.asarray(motion.expression) + np.asarray(moved.expression)
    return motion.replace(expression=expression, angle=changed.angle, translation=changed.translation)


def made_up_speech(spec: str) -> Motion:
    """The motion of ``speech:SEED[:FRAMES]``."""
    from avatar_jax.procedural.motion import speech_motion

    try:
        seed, *rest = (int(x) for x in spec.split(':')[1:])
        frames = rest[0] if rest else SPEECH_FRAMES
        if len(rest) > 1 or seed < 0 or frames < 1:
            raise ValueError
    except ValueError:
        raise UserError(f'--motion {spec}: give speech:SEED or speech:SEED:FRAMES') from None
    return speech_motion(seed, frames)
