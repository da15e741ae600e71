"""The video of a ``Source`` as a training reads it: crops in a temporary file, cameras and signals in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from avatar_jax.driving.audio import frame_times, sound_signal
from avatar_jax.errors import UserError
from avatar_jax.methods.base import Source
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.methods.hfagp.driving import as_bytes

SHORTEST = 5.0  # seconds that a personal avatar needs at least


@dataclass(frozen=True)
class SourceVideo:
    """T frames of one person (``batches.PersonFrames``).

    Attributes:
        pictures: [T, S, S, 3] uint8. notes: sentences on what was done to the sound.
        other attributes: see ``batches.PersonFrames``.
    """

    name: str
    pictures: np.ndarray
    labels: np.ndarray
    signals: Mapping[str, np.ndarray]
    train: np.ndarray
    test: np.ndarray
    basis: str = ''
    features: str = ''
    notes: tuple[str, ...] = ()

    def picture(self, frame: int, size: int) -> np.ndarray:
        """One crop [size, size, 3] float32 in [-1, 1]."""
        return as_bytes(self.pictures[frame], size, self.name).astype(np.float32) / 127.5 - 1

    def need(self, driver: str) -> None:
        """``UserError`` unless there is a driver's signal."""
        if driver != 'picture' and driver not in self.signals:
            what = 'sound' if driver == 'sound' else 'expression coefficients of every frame'
            raise UserError(f'{self.name}: has no {what} to train the driver {driver!r} with; give other --drivers')


@contextmanager
def source_video(source: Source, drivers: tuple[str, ...], size: int, unseen: float) -> Iterator[SourceVideo]:
    """The video of a source, which is read once from beginning to end; its crops are on disk until the block ends.

    Args:
        drivers: whose signals are made. size: of the crops. unseen: share at the end that is not trained on.

    Raises:
        UserError: shorter than five seconds, NaN, no expression or sound though a driver needs it, damaged sound.
    """
    count, name = len(source.portraits), source.name
    seconds = count / source.fps
    if seconds < SHORTEST:
        raise UserError(
            f'{name}: shows the person for {seconds:.1f} s; a personal avatar needs at least {SHORTEST:.0f} s, better '
            'minutes. Give a longer video, or make an avatar of one picture with another --method'
        )
    signals: dict[str, np.ndarray] = {}
    features, basis, notes = '', '', source.notes
    if 'sound' in drivers and source.sound:
        times = frame_times(count, source.fps, source.start) if source.times is None else np.asarray(source.times)
        heard = sound_signal(source.sound, times)
        signals['sound'], features, notes = heard.windows, heard.features, (*notes, *heard.notes)
    with tempfile.TemporaryFile(prefix='avatar_jax_') as file:
        pictures = np.memmap(file, np.uint8, 'w+', shape=(count, size, size, 3))
        labels, rows, bases = np.empty((count, 25), np.float32), [], set()
        for i, portrait in enumerate(source.portraits):
            pictures[i] = as_bytes(portrait.image, size, f'{name}: frame {i}')
            labels[i] = np.asarray(portrait.camera.label)
            if portrait.expression is not None:
                rows.append(np.asarray(portrait.expression, np.float32))
                bases.add(portrait.basis)
        for what, values in (('camera', labels), ('expression', np.stack(rows) if rows else labels)):
            wrong = np.flatnonzero(~np.isfinite(values).all(1))
            if len(wrong):
                raise UserError(f'{name}: the {what} of frame {wrong[0]} has NaN or infinite numbers; track it again')
        if len(rows) == count:
            if len(bases) > 1:
                raise UserError(f'{name}: its frames have coefficients of {len(bases)} bases; track it again with one')
            signals['coefficients'], basis = np.stack(rows), bases.pop()
        border = count - int(count * unseen)
        yield SourceVideo(
            name, pictures, labels, signals, np.arange(border), np.arange(border, count), basis, features, notes
        )
        del pictures


def fitted(config: ModelConfig, video: SourceVideo, fresh: bool) -> ModelConfig:
    """The configuration with encoders for what the video has: number and basis of coefficients, kind of sound features.

    Args:
        fresh: whether the encoders are new; others stay as they are.
    """
    if not fresh:
        return config
    encoder = config.settings.encoder
    if 'coefficients' in config.settings.drivers and 'coefficients' in video.signals:
        encoder = replace(encoder, coefficients=video.signals['coefficients'].shape[1])
        config = replace(config, basis=video.basis or config.basis)
    if 'sound' in config.settings.drivers and 'sound' in video.signals:
        encoder = replace(encoder, sound_features=video.features, sound_channels=int(video.signals['sound'].shape[2]))
    return replace(config, settings=replace(config.settings, encoder=encoder))
