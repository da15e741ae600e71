"""Signals for HFA-GP from what people have: a motion, pictures, sound.

Each function gives one named signal [T, ...] of ``model.animate`` and checks it against what the avatar was trained
with. ``SIGNALS`` has them as every method declares its signals.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.driving.audio import SoundSignal, frame_times, sound_signal
from avatar_jax.driving.signals import Signal
from avatar_jax.errors import UserError
from avatar_jax.io.images import to_uint8
from avatar_jax.io.sound import Sound
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.methods.hfagp.encoders import sound_neighbours
from avatar_jax.methods.hfagp.model import check_driver, check_signal, check_sound_features, signal_shape
from avatar_jax.sound.features import mel_rows
from avatar_jax.sound.windows import windows_at
from avatar_jax.types import Motion

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def coefficient_signal(config: ModelConfig, motion: Motion, source: str = 'driver') -> dict[str, np.ndarray]:
    """``coefficients`` [T, P] of a motion: its expression numbers, nothing of the head's pose.

    Raises:
        UserError: another basis or another number of coefficients than the avatar was trained with.
    """
    if motion.basis and motion.basis != config.basis:
        raise UserError(
            f"{source}: coefficients belong to the basis '{motion.basis}', this avatar was trained with "
            f"'{config.basis}'; give a motion of that basis"
        )
    signal = np.asarray(motion.expression, np.float32)
    check_signal(config, 'coefficients', signal, source)
    return {'coefficients': signal}


def picture_signal(
    config: ModelConfig, pictures: Sequence[np.ndarray], source: str = 'driver'
) -> dict[str, np.ndarray]:
    """``picture`` [T, S, S, 3] in [-1, 1] of aligned crops [H, H, 3] (bytes), resized with Pillow's bilinear filter.

    The crops must be aligned as in training; those of another person are taken as well (the encoder has not seen such).
    """
    check_driver(config, 'picture')
    size = config.settings.encoder.picture_size
    out = [as_bytes(crop, size, source).astype(np.float32) / 127.5 - 1 for crop in pictures]
    signal = np.stack(out) if out else np.zeros((0, size, size, 3), np.float32)
    check_signal(config, 'picture', signal, source)
    return {'picture': signal}


def sound_windows(
    config: ModelConfig, path: str | os.PathLike, times: ArrayLike | None = None, *, fps: float = 25.0
) -> tuple[dict[str, np.ndarray], SoundSignal]:
    """``sound`` [T, 16, C] of a video, sound or feature file, and what ``driving.audio.sound_signal`` found.

    Args:
        times: [T] moments of the frames; None: frames at ``fps`` to the end of the sound.
    """
    check_driver(config, 'sound')
    found = sound_signal(path, times, fps=fps, features=config.settings.encoder.sound_features)
    check_signal(config, 'sound', found.windows, os.fspath(path))
    return {'sound': found.windows}, found


def as_bytes(picture: ArrayLike, size: int, source: str = 'driver') -> np.ndarray:
    """A square picture [H, H, 3] of bytes, or of numbers in [-1, 1], as bytes [size, size, 3] (bilinear, antialiased).

    Raises:
        UserError: it is no such picture, or has NaN.
    """
    from PIL import Image

    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3:
        raise UserError(f'{source}: crops must be square pictures of three colours, got {picture.shape}')
    try:
        picture = to_uint8(picture)
    except ValueError as error:
        raise UserError(f'{source}: {error}; check how it was made') from error
    if picture.shape[0] != size:
        picture = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))
    return picture


# ------------------------------------------------------------------------------------- as every method declares them


class PictureRows:
    """The signal ``picture`` [T, S, S, 3] of any sequence of pictures, made when frames are asked for: minutes of a
    video need no more memory than seconds.
    """

    def __init__(self, config: ModelConfig, pictures: Sequence[Any], source: str = 'driver'):
        check_driver(config, 'picture')
        if not len(pictures):
            raise UserError(f'{source}: has no frames of picture')
        self.pictures, self.source = pictures, source
        self.shape = (len(pictures), *signal_shape(config, 'picture'))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[index]
        rows = [as_bytes(self.pictures[int(i)], self.shape[1], self.source) for i in np.atleast_1d(numbers)]
        found = np.stack(rows).astype(np.float32) / 127.5 - 1
        return found if np.ndim(numbers) else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def signals_of(config: ModelConfig) -> tuple[str, ...]:
    """What drives a model in videos: the first of the drivers that it was trained with."""
    return config.settings.drivers[:1]


def ways_of(config: ModelConfig) -> dict[str, ModelConfig]:
    """Driver -> the configuration with it as the first of the drivers."""
    drivers = config.settings.drivers
    return {
        first: replace(config, settings=replace(config.settings, drivers=(first, *(d for d in drivers if d != first))))
        for first in drivers
    }


def smooths_sound(config: ModelConfig) -> bool:
    """Whether a model was trained to smooth sound in time."""
    train = config.settings.train
    return train.smooth_from is not None and train.iterations > train.smooth_from


def with_neighbours(config: ModelConfig, windows: np.ndarray) -> np.ndarray:
    """Sound windows [T, 16, C] as a model reads them: with their neighbours [T, 8, 16, C] if it smooths in time."""
    if not smooths_sound(config):
        return windows
    return np.asarray(sound_neighbours(windows, np.arange(len(windows))))


def _picture(parts: Mapping[str, Any], config: ModelConfig) -> PictureRows:
    return PictureRows(config, parts['pictures'])


def _coefficients(parts: Mapping[str, Any], config: ModelConfig) -> np.ndarray:
    return coefficient_signal(config, parts['motion'], 'motion')['coefficients']


def _sound(parts: Mapping[str, Any], config: ModelConfig) -> np.ndarray:
    sound, motion = parts['sound'], parts.get('motion')
    if isinstance(sound, Sound):
        times = frame_times(int(sound.seconds * 25.0 + 1e-6), 25.0)
        if motion is not None:
            times = frame_times(motion.num_frames, motion.fps)
        check_sound_features(
            config, 'mel' if np.any(sound.samples) else config.settings.encoder.sound_features, 'sound'
        )
        windows = windows_at(mel_rows(sound), times)
    else:
        start, times = float(sound.start), None
        if motion is not None:
            times = frame_times(motion.num_frames, motion.fps, start)
        windows = sound_windows(config, sound.path, times)[0]['sound']
    return with_neighbours(config, windows)


SIGNALS = {
    'picture': Signal(('pictures',), _picture),  # [T, S, S, 3] aligned crops
    'coefficients': Signal(('motion',), _coefficients),  # [T, P] expression, without the head's pose
    'sound': Signal(('sound',), _sound),  # [T, 16, C], or [T, 8, 16, C] of models that smooth in time
}
