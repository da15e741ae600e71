"""From what a user asks for (``Request``) to a motion and its sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from avatar_jax.driving.drivers import Driver, open_driver
from avatar_jax.driving.plan import apply_plan
from avatar_jax.driving.request import Request
from avatar_jax.driving.retarget import retarget
from avatar_jax.driving.sliders import Sliders, parse_sliders
from avatar_jax.errors import UserError
from avatar_jax.io.sound import SoundTrack, sound_of
from avatar_jax.io.video import frame_rate
from avatar_jax.types import Avatar, Motion

SPEECH_FRAMES = 100
STILL_FRAMES = 25


def read_request(
    request: Request, basis: str, avatar: Avatar, open_clip: Callable[[str], Motion]
) -> tuple[Motion, SoundTrack | None, tuple[str, ...]]:
    """The motion in the avatar's basis, its sound track or None, and what was done.

    Args:
        open_clip: reads ``FOLDER:SPLIT:CLIP``.
    """
    sliders = parse_sliders(request.sliders, basis) if request.sliders else None
    sound, notes = None, ()
    if request.motion is None:
        motion = sliders.motion(request.frames or STILL_FRAMES)
        if sliders.basis != basis:
            motion = retarget(motion, basis)
    else:
        driver = driver_of(request, open_clip)
        motion = driver.motion
        if motion.num_frames == 1:
            motion = held(motion, request.frames or STILL_FRAMES)
        elif request.frames is not None:
            motion = motion.frames(0, request.frames)
        motion, notes = apply_plan(motion, request.plan, basis, avatar)
        notes = (*driver.notes, *notes)
        if sliders is not None:
            motion = slid(motion, sliders)
        if driver.media is not None and request.sound is None:
            sound = sound_of(driver.media, driver.start)
    if request.sound not in (None, 'none'):
        sound = SoundTrack(request.sound)
    return motion, sound, notes


def driver_of(request: Request, open_clip: Callable[[str], Motion]) -> Driver:
    """The driver behind ``Request.motion``."""
    spec = request.motion
    fps = None if request.fps is None else float(frame_rate(request.fps))
    if not Path(spec).exists():
        if spec.startswith('speech:'):
            return Driver(made_up_speech(spec))
        if spec.count(':') >= 2:
            return Driver(open_clip(spec))
    return open_driver(spec, fps=fps, frames=request.frames, face=request.face)


def held(motion: Motion, frames: int) -> Motion:
    """The first frame of a motion, ``frames`` times."""
    parts = {
        k: np.repeat(np.asarray(getattr(motion, k))[:1], frames, 0) for k in ('expression', 'angle', 'translation')
    }
    return motion.replace(**parts)


def slid(motion: Motion, sliders: Sliders) -> Motion:
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
