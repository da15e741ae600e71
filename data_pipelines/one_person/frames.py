"""The video of one person as an avatar is trained on it: crops, cameras, what drives them, and which part is new.

Readers of the different layouts give a ``PersonVideo``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.images import read_image

SHORTEST = 5.0  # seconds that a personal avatar needs at least
TEST_SHARE = 0.2  # of a video that has no split of its own: the last part


@dataclass(frozen=True)
class FilePictures:
    """Pictures in files, read when asked for: ``pictures[i]`` is [H, W, 3] uint8."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], min_side=16).pixels


@dataclass(frozen=True)
class PersonVideo:
    """T frames of one person in order of time.

    Attributes:
        name: for messages.
        pictures: T aligned crops, [H, W, 3] uint8 each; all of one size.
        labels: [T, 25] cameras, OpenCV axes.
        times: [T] seconds.
        signals: what can drive, by driver: ``coefficients`` [T, P], ``sound`` [T, 16, C].
        train, test: frame numbers of the two parts, in order of time.
        basis: name of the coefficients. features: name of the sound features.
        masks: T head masks [H, W] uint8, or None.
        notes: what was done, one phrase each.
        sound: the file that its sound was read from, '' if there is none.
    """

    name: str
    pictures: Sequence[np.ndarray] | FilePictures
    labels: np.ndarray
    times: np.ndarray
    signals: Mapping[str, np.ndarray]
    train: np.ndarray
    test: np.ndarray
    basis: str = ''
    features: str = ''
    masks: Sequence[np.ndarray] | None = None
    notes: tuple[str, ...] = field(default=())
    sound: str = ''

    def __post_init__(self):
        total = len(self.pictures)
        for what, values in (('labels', self.labels), ('times', self.times), *self.signals.items()):
            if len(values) != total:
                raise UserError(f'{self.name}: has {total} pictures, but {len(values)} {what}; they must be as many')
            if not np.isfinite(values).all():
                raise UserError(f'{self.name}: {what} have NaN or infinite numbers; make them again')
        if self.labels.shape[1:] != (25,):
            raise UserError(f'{self.name}: camera labels have {self.labels.shape[1:]} numbers instead of 25')

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, frame: int, size: int) -> np.ndarray:
        """One crop as it is compared: [size, size, 3] float32 in [-1, 1] (bilinear with antialiasing)."""
        return np.asarray(resized(self.pictures[frame], size), np.float32) / 127.5 - 1

    def need(self, driver: str) -> None:
        """``UserError`` unless the video has the signal of a driver (pictures it always has)."""
        if driver != 'picture' and driver not in self.signals:
            hint = 'give a video with sound, or sound features' if driver == 'sound' else 'track the video first'
            raise UserError(f'{self.name}: has no {driver} to drive the avatar with; {hint}')

    def in_memory(self, size: int) -> PersonVideo:
        """The same with all crops read and resized once (196 KB per frame at 256 pixels)."""
        pictures = np.stack([np.asarray(resized(self.pictures[i], size)) for i in range(len(self))])
        return replace(self, pictures=pictures)


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture of bytes at another size, as Pillow's bilinear filter makes it."""
    from PIL import Image

    if picture.shape[:2] == (size, size):
        return picture
    if picture.shape[0] != picture.shape[1]:
        raise UserError(f'crop of {picture.shape[1]}x{picture.shape[0]} pixels: crops of a face must be square')
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))


def last_part(count: int, share: float = TEST_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) frame numbers: the last ``share`` of the video is left for testing."""
    if not 0 <= share < 1:
        raise UserError(f'test share {share}: must lie between 0 and 1')
    border = count - int(count * share)
    return np.arange(border), np.arange(border, count)


def check_length(name: str, times: np.ndarray, shortest: float = SHORTEST) -> None:
    """``UserError`` for a video that is too short for a personal avatar."""
    seconds = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    if seconds < shortest:
        raise UserError(
            f'{name}: shows the person for {seconds:.1f} s; a personal avatar needs at least {shortest:.0f} s, better '
            'minutes. Give a longer video, or make an avatar of one picture, by another method'
        )
