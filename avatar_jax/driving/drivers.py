"""One function for everything that can drive an avatar from a file: motion files, coefficients, videos and stills."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.driving.coefficient_files import ENDINGS, load_coefficients
from avatar_jax.errors import UserError
from avatar_jax.io.inputs import file_sha256, input_file
from avatar_jax.io.motion import load_motion
from avatar_jax.track.measure import MeasuredClip, Measures, measure, tracked_media
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
        clip: what was measured on its pictures, if it has any.
    """

    motion: Motion
    media: Path | None = None
    start: float = 0.0
    notes: tuple[str, ...] = ()
    clip: MeasuredClip | None = None


class ClipPictures:
    """Aligned crops [S,S,3] uint8 of a measured clip at the moments of a motion, read when they are asked for.

    Where no face was found, the nearest frame with one stands in. Frames that are asked for in order are read once.

    Args:
        clip: with pictures. moments: [T] seconds in the file, increasing.
    """

    def __init__(self, clip: MeasuredClip, moments: np.ndarray):
        usable = np.asarray(clip.found) if clip.valid is None else np.asarray(clip.found) & np.asarray(clip.valid)
        numbers = np.flatnonzero(usable)
        if not len(numbers):
            raise UserError(f'{clip.path}: shows no face in any frame; give another driver')
        times = np.arange(clip.num_frames) / clip.fps if clip.times is None else np.asarray(clip.times, np.float64)
        times = times[numbers]
        right = np.clip(np.searchsorted(times, moments), 1, max(1, len(times) - 1))
        left, right = right - 1, np.minimum(right, len(times) - 1)
        nearer = np.abs(times[left] - moments) <= np.abs(times[right] - moments)
        self.clip, self.numbers = clip, numbers[np.where(nearer, left, right)]
        self._frames: Iterator[Any] = iter(())
        self._held: Any = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        wanted = int(self.numbers[index])
        if self._held is None or wanted < self._held.index:
            self._frames = self.clip.frames([int(n) for n in np.unique(self.numbers[self.numbers >= wanted])])
            self._held = None
        while self._held is None or self._held.index != wanted:
            self._held = next(self._frames)
        return self._held.image


def open_driver(
    path: str | os.PathLike,
    *,
    fps: float | None = None,
    frames: int | None = None,
    face: str = 'size',
    tracker: Measures | None = None,
    size: int = _CROP,
    background: str = 'white',
) -> Driver:
    """Reads or measures what drives an avatar.

    Args:
        path: a motion file, coefficients (``.mat``, ``.npz``, ``.npy``), a folder that ``avatar-jax track`` wrote, a
            video or a picture.
        fps: frame rate of coefficients that do not say it; None takes the file's.
        frames: measure only the first ones of a video.
        face: which of several faces in a video or picture, see ``track.measure.measure``.
        tracker: for videos and pictures; None takes the default one.
        size, background: of the aligned crops in ``Driver.clip``, see ``track.measure.measure``.

    Raises:
        UserError: the file cannot be used, or no face was found.
    """
    if Path(path).is_dir():
        return _tracked_folder(Path(path), size, background)
    path = input_file(path)
    if path.suffix.lower() in ENDINGS:
        return Driver(load_coefficients(path, fps))
    options = {'size': size, 'label_mode': 'raw', 'background': background}
    clip = measure(path, **options, face=face, frames=frames, tracker=tracker)
    motion = clip.motion(clip.sha256 or file_sha256(path))
    single = motion.num_frames == 1
    return Driver(motion, None if single else path, clip.start, clip.notes, clip)


def _tracked_folder(folder: Path, size: int, background: str) -> Driver:
    """The longest shot of a tracked clip, with the sound of its video if that is still where it was."""
    if not (folder / 'motion.npz').is_file():
        raise UserError(
            f'{folder}: is a folder without motion.npz; give a file, or a folder that avatar-jax track wrote'
        )
    media, start = tracked_media(folder)
    clip = None
    with contextlib.suppress(UserError):  # of the pictures: the motion is enough for most
        clip = measure(folder, size=size, label_mode='raw', background=background)
    return Driver(load_motion(folder / 'motion.npz'), media=media, start=start, clip=clip)
