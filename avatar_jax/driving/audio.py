"""The signal ``sound`` of a video or sound file: windows of speech features, one per frame, in time with the frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.sound import read_sound
from avatar_jax.sound.features import FEATURES, mel_rows
from avatar_jax.sound.windows import features_seconds, load_sound_features, windows_at

_NUMPY = ('.npy', '.npz')
_SLACK = 0.1  # seconds that a sound may end before its frames without a word


@dataclass(frozen=True)
class SoundSignal:
    """What sound says about each frame.

    Attributes:
        windows: [T, 16, C] float32.
        features: name of the features, one of ``sound.features.FEATURES``; an avatar reads those it was trained with.
        covered: how many of the frames, from the first on, lie within the sound; the others are silent.
        notes: what was done, one phrase each.
    """

    windows: np.ndarray
    features: str
    covered: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureFile:
    """A file of sound features in the place of a sound (``io.sound.SoundTrack``) that drives an avatar.

    Attributes:
        path: ``.npy`` or ``.npz``, see ``sound.windows.load_sound_features``.
        start: moment of the first frame, seconds from the start of the sound.
    """

    path: Path
    start: float = 0.0

    @staticmethod
    def is_one(path: str | os.PathLike) -> bool:
        """Whether a file name is one of sound features."""
        return Path(path).suffix.lower() in _NUMPY


def seconds_of_sound(path: str | os.PathLike) -> float:
    """How long a sound file is, or the sound of a feature file."""
    return features_seconds(path) if FeatureFile.is_one(path) else read_sound(path).seconds


def frame_times(frames: int, fps: float, start: float = 0.0) -> np.ndarray:
    """[T] moments of frames, seconds."""
    return start + np.arange(frames) / float(fps)


def sound_signal(
    path: str | os.PathLike, times: np.ndarray | None = None, *, fps: float = 25.0, features: str | None = None
) -> SoundSignal:
    """The sound windows of frames.

    Args:
        path: a video or sound file (features ``mel`` are made from it), or DeepSpeech features in ``.npy`` or ``.npz``.
        times: [T] moments of the frames on the clock of the file (``VideoFrame.time``); None: frames at ``fps`` from 0
            to the end of the sound (of files with sound only).
        features: what is wanted; None takes what the file gives.

    Raises:
        UserError: no sound, damaged file, other features than wanted, a sound of less than a frame.
    """
    path = Path(path)
    if features is not None and features not in FEATURES:
        raise UserError(f'sound features {features!r}: use one of {", ".join(FEATURES)}')
    found = 'deepspeech' if path.suffix.lower() in _NUMPY else 'mel'
    if features not in (None, found):
        hint = (
            'give DeepSpeech logits or windows (.npy)'
            if features == 'deepspeech'
            else 'give the video or the sound itself'
        )
        raise UserError(f'{path}: gives {found} features, but this avatar reads {features}; {hint}')
    if found == 'deepspeech':
        if times is None:
            raise UserError(f'{path}: sound features do not say how long they last; give the number of frames')
        windows = load_sound_features(path, times)
        return SoundSignal(windows, found, len(windows))
    sound = read_sound(path)
    if times is None:
        times = frame_times(int(sound.seconds * float(fps) + 1e-6), fps)
    if not len(times):
        raise UserError(f'{path}: the sound is shorter than one frame; give a longer one')
    covered = int(np.searchsorted(np.asarray(times), sound.seconds))
    notes = sound.notes
    if covered < len(times) and times[-1] - sound.seconds > _SLACK:
        notes = (
            *notes,
            f'the sound ends {times[-1] - sound.seconds:.1f} s before the pictures; the rest is taken as silent',
        )
    return SoundSignal(windows_at(mel_rows(sound), times), found, covered, notes)
