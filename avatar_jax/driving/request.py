"""What a user asks to drive an avatar with, as a motion and its sound: a file, made-up speech, a clip, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avatar_jax.driving.audio import FeatureFile, seconds_of_sound
from avatar_jax.driving.drivers import ClipPictures, Driver, open_driver
from avatar_jax.driving.plan import Plan, apply_plan, source_pose
from avatar_jax.driving.retarget import retarget
from avatar_jax.driving.sliders import parse_sliders
from avatar_jax.errors import UserError
from avatar_jax.io.sound import SoundTrack, sound_of
from avatar_jax.types import Avatar, Motion

SPEECH_FRAMES = 100
STILL_FRAMES = 25


class Driving(NamedTuple):
    """What drives an avatar.

    Attributes:
        motion: in the avatar's basis. notes: what was done, one phrase each.
        track: the sound of the written video, or None. pictures: the driver's aligned crops, one for each frame of the
            motion, or None.
        heard: what drives an avatar that listens: ``track``, or a file of sound features; or None.
    """

    motion: Motion
    track: SoundTrack | None
    notes: tuple[str, ...]
    pictures: Sequence[np.ndarray] | None
    heard: SoundTrack | FeatureFile | None

    @property
    def parts(self) -> dict[str, Any]:
        """As ``driving.signals.make_drive`` wants them."""
        return {'motion': self.motion, 'sound': self.heard, 'pictures': self.pictures}


@dataclass(frozen=True)
class Request:
    """Who drives, and how.

    Attributes:
        motion: a file, ``speech:SEED[:FRAMES]``, ``FOLDER:SPLIT:CLIP`` of a data set; None: the sliders alone.
        sliders: ``NAME=VALUE`` texts. plan: what is taken from the driver, and how.
        face: which face of a driving video or picture. fps: of coefficient files that do not say it.
        frames: length: the first frames of a driver; for sliders alone or a picture, how long it is held.
        sound: file of the sound track, or of sound features (``.npy``), 'none', or None for that of a driving video.
            Without a motion its length is the video's; the face rests, and only an avatar that listens moves.
    """

    motion: str | None
    sliders: tuple[str, ...] = ()
    plan: Plan = field(default_factory=Plan)
    face: str = 'size'
    fps: float | None = None
    frames: int | None = None
    sound: str | None = None

    def __post_init__(self):
        if self.motion is None and not self.sliders and self.sound in (None, 'none'):
            raise UserError('--motion: who drives the avatar? give --motion FILE, or numbers with --slider')

    def read(
        self,
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
        sliders = parse_sliders(self.sliders, basis) if self.sliders else None
        track, pictures, notes = None, None, ()
        if self.motion is None:
            motion = self._still(basis, avatar) if sliders is None else sliders.motion(self.frames or STILL_FRAMES)
            if motion.basis != basis:
                motion = retarget(motion, basis)
        else:
            driver = self._driver(open_clip, crops)
            motion = driver.motion
            if motion.num_frames == 1:
                motion = held(motion, self.frames or STILL_FRAMES)
            elif self.frames is not None:
                motion = motion.frames(0, self.frames)
            motion, notes = apply_plan(motion, self.plan, basis, avatar)
            notes = (*driver.notes, *notes)
            if sliders is not None:
                motion = slid(motion, sliders)
            if driver.media is not None and self.sound != 'none':
                features = self.sound is not None and FeatureFile.is_one(self.sound)
                track = sound_of(driver.media, driver.start) if self.sound is None or features else None
            if driver.clip is not None and driver.clip.pictures is not None:
                pictures = ClipPictures(driver.clip, driver.start + np.arange(motion.num_frames) / motion.fps)
        heard = track
        if self.sound not in (None, 'none'):
            if FeatureFile.is_one(self.sound):
                heard = FeatureFile(Path(self.sound))
            else:
                heard = track = SoundTrack(self.sound)
        return Driving(motion, track, notes, pictures, heard)

    def _still(self, basis: str, avatar: Avatar) -> Motion:
        """A face at rest as long as the sound, in the pose of the portrait."""
        fps = 25.0 if self.fps is None else float(self.fps)
        count = int(seconds_of_sound(self.sound) * fps + 1e-6)
        count = count if self.frames is None else min(count, self.frames)
        if count < 1:
            raise UserError(f'{self.sound}: is shorter than one frame; give a longer sound')
        pose = (np.repeat(np.asarray(part, np.float32)[None], count, 0) for part in source_pose(avatar))
        return Motion(np.zeros((count, 64), np.float32), *pose, fps, basis, str(self.sound))

    def _driver(self, open_clip: Callable[[str], Motion], crops: Mapping[str, Any] | None) -> Driver:
        from avatar_jax.io.video import frame_rate

        spec = self.motion
        fps = None if self.fps is None else float(frame_rate(self.fps))
        if not Path(spec).exists():
            if spec.startswith('speech:'):
                return Driver(made_up_speech(spec))
            if spec.count(':') >= 2:
                return Driver(open_clip(spec))
        return open_driver(spec, fps=fps, frames=self.frames, face=self.face, **(crops or {}))


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
