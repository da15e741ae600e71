"""One function for everything that can drive an avatar from a file: motion files, coefficients, videos and stills."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from avatar_jax.driving.coefficient_files import ENDINGS, load_coefficients
from avatar_jax.errors import UserError
from avatar_jax.io.inputs import file_sha256, input_file
from avatar_jax.io.motion import load_motion
from avatar_jax.track.measure import Measures, measure, tracked_media
from avatar_jax.types import Motion

_CROP = 256  # side of the crops that a driver is measured on


@dataclass(frozen=True)
class Driver:
    """A motion and where it came from.

    Attributes:
        motion: the movement, in its own basis.
        media: the video whose sound belongs to it, or None.
        start: time of its first frame in the media, seconds.
        notes: what was done, one phrase each.
    """

    motion: Motion
    media: Path | None = None
    start: float = 0.0
    notes: tuple[str, ...] = ()


def open_driver(
    path: str | os.PathLike,
    *,
    fps: float | None = None,
    frames: int | None = None,
    face: str = 'size',
    tracker: Measures | None = None,
) -> Driver:
    """Reads or measures what drives an avatar.

    Args:
        path: a motion file, coefficients (``.mat``, ``.npz``, ``.npy``), a folder that ``avatar-jax track`` wrote, a
            video or a picture.
        fps: frame rate of coefficients that do not say it; None takes the file's.
        frames: measure only the first ones of a video.
        face: which of several faces in a video or picture, see ``track.measure.measure``.
        tracker: for videos and pictures; None takes the default one.

    Raises:
        UserError: the file cannot be used, or no face was found.
    """
    if Path(path).is_dir():
        return _tracked_folder(Path(path))
    path = input_file(path)
    if path.suffix.lower() in ENDINGS:
        return Driver(load_coefficients(path, fps))
    clip = measure(path, size=_CROP, label_mode='raw', face=face, frames=frames, tracker=tracker)
    motion = clip.motion(clip.sha256 or file_sha256(path))
    single = motion.num_frames == 1
    return Driver(motion, None if single else path, clip.start, clip.notes)


def _tracked_folder(folder: Path) -> Driver:
    """The longest shot of a tracked clip, with the sound of its video if that is still where it was."""
    if not (folder / 'motion.npz').is_file():
        raise UserError(
            f'{folder}: is a folder without motion.npz; give a file, or a folder that avatar-jax track wrote'
        )
    media, start = tracked_media(folder)
    return Driver(load_motion(folder / 'motion.npz'), media=media, start=start)
