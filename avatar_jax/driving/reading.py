"""From what a user asks for (``Request``) to a motion and its sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avatar_jax.driving.audio import FeatureFile, seconds_of_sound
from avatar_jax.driving.drivers import ClipPictures, Driver, open_driver
from avatar_jax.driving.plan import apply_plan, source_pose
from avatar_jax.driving.request import Request
from avatar_jax.driving.retarget import retarget
from avatar_jax.driving.sliders import Sliders, parse_sliders
from avatar_jax.errors import UserError
from avatar_jax.io.sound import SoundTrack, sound_of
from avatar_jax.io.video import frame_rate
from avatar_jax.types import Avatar, Motion

SPEECH_FRAMES = 100
STILL_FRAMES = 25


class Driving(NamedTuple):
    """What drives an avatar.

    Attributes:
        motion: in the avatar's basis.
        track: the sound of the written video, or None. notes: what was done, one phrase each.
        pictures: the driver's aligned crops, one for each frame of the motion, or None.
        heard: what drives an avatar that listens: ``track``, or a file of sound features; or None.
    """

    motion: Motion
    track: SoundTrack | None
    notes: tuple[str, ...]
    pictures: ClipPictures | None
    heard: SoundTrack | FeatureFile | None

    @property
    def parts(self) -> dict[str, Any]:
        """As ``driving.signals.make_drive`` wants them."""
        return {'motion': self.motion, 'sound': self.heard, 'pictures': self.pictures}


def read_request(
    request: Request,
    basis: str,
    avatar: Avatar,
    open_clip: Callable[[str], Motion],
    crops: Mapping[str, Any] | None = None,
) -> Driving:
    """The motion in the avatar's basis, with sound and pictures.

    Args:
        open_clip: reads ``FOLDER:SPLIT:CLIP``.
        crops: ``size`` and ``background`` of the pictures, see ``open_driver``.
    """
    sliders = parse_sliders(request.sliders, basis) if request.sliders else None
    track, pictures, notes = None, None, ()
    if request.motion is None:
        still = STILL_FRAMES if request.frames is None else request.frames
        motion = at_rest(request, basis, avatar) if sliders is None else sliders.motion(still)
        if motion.basis != basis:
            motion = retarget(motion, basis)
    else:
        driver = driver_of(request, open_clip, crops)
        motion = driver.motion
        if motion.num_frames == 1:
            motion = held(motion, request.frames or STILL_FRAMES)
        elif request.frames is not None:
            motion = motion.frames(0, request.frames)
        motion, notes = apply_plan(motion, request.plan, basis, avatar)
        notes = (*driver.notes, *notes)
        if sliders is not None:
            motion = slid(motion, sliders)
        own = request.sound is None or FeatureFile.is_one(request.sound)
        if driver.media is not None and own:
            track = sound_of(driver.media, driver.start)
        if driver.clip is not None and driver.clip.pictures is not None:
            pictures = ClipPictures(driver.clip, driver.start + np.arange(motion.num_frames) / motion.fps)
    heard = track
    if request.sound not in (None, 'none'):
        if FeatureFile.is_one(request.sound):
            heard = FeatureFile(Path(request.sound))
        else:
            heard = track = SoundTrack(request.sound)
    return Driving(motion, track, notes, pictures, heard)


def at_rest(request: Request, basis: str, avatar: Avatar) -> Motion:
    """A face at rest as long as the sound, in the pose of the portrait."""
    fps = 25.0 if request.fps is None else float(request.fps)
    count = int(seconds_of_sound(request.sound) * fps + 1e-6)
    count = count if request.frames is None else min(count, request.frames)
    if count < 1:
        raise UserError(f'{request.sound}: is shorter than one frame; give a longer sound')
    pose = (np.repeat(np.asarray(part, np.float32)[None], count, 0) for part in source_pose(avatar))
    return Motion(np.zeros((count, 64), np.float32), *pose, fps, basis, str(request.sound))


def driver_of(request: Request, open_clip: Callable[[str], Motion], crops: Mapping[str, Any] | None = None) -> Driver:
    """The driver behind ``Request.motion``."""
    spec = request.motion
    fps = None if request.fps is None else float(frame_rate(request.fps))
    if not Path(spec).exists():
        if spec.startswith('speech:'):
            return Driver(made_up_speech(spec))
        if spec.count(':') >= 2:
            return Driver(open_clip(spec))
    return open_driver(spec, fps=fps, frames=request.frames, face=request.face, **(crops or {}))


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
