"""Batches from the video of one person: a function of (seed, step) alone, wherever the video comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.methods.hfagp.encoders import sound_neighbours
from avatar_jax.methods.hfagp.model import check_signal, check_sound_features
from avatar_jax.methods.hfagp.train import frame_numbers, smooths, with_stage


class PersonFrames(Protocol):
    """T frames of one person in order of time.

    Attributes:
        name: for messages.
        labels: [T, 25] cameras, OpenCV axes.
        signals: what can drive, by driver: ``coefficients`` [T, P], ``sound`` [T, 16, C].
        train, test: frame numbers of the two parts, in order of time.
        basis: name of the coefficients. features: name of the sound features.
    """

    name: str
    labels: np.ndarray
    signals: Mapping[str, np.ndarray]
    train: np.ndarray
    test: np.ndarray
    basis: str
    features: str

    def picture(self, frame: int, size: int) -> np.ndarray:
        """One crop as it is compared: [size, size, 3] float32 in [-1, 1]."""

    def need(self, driver: str) -> None:
        """``UserError`` unless the video has the signal of a driver (pictures it always has)."""


def training_batch(
    video: PersonFrames, frames: np.ndarray, size: int, drivers: Sequence[str], neighbours: bool = False
) -> dict[str, np.ndarray]:
    """A batch of frames of the training part.

    Args:
        frames: [B] places in ``video.train``.
        size: side of the pictures.
        drivers: whose signals are put in; the picture encoder sees the pictures themselves.
        neighbours: sound with each frame's neighbours among the training frames [B, 8, 16, C], zeros outside.
    """
    numbers = video.train[frames]
    out = {
        'pictures': np.stack([video.picture(int(i), size) for i in numbers]),
        'labels': np.asarray(video.labels[numbers], np.float32),
    }
    for driver in drivers:
        video.need(driver)
        if driver == 'picture':
            continue
        values = np.asarray(video.signals[driver], np.float32)
        if driver == 'sound' and neighbours:
            out[driver] = np.asarray(sound_neighbours(values[video.train], np.asarray(frames)))
        else:
            out[driver] = values[numbers]
    return out


def check_video(config: ModelConfig, video: PersonFrames) -> None:
    """``UserError`` unless a video has every signal that a configuration trains with, of the right kind and length."""
    for driver in config.settings.drivers:
        video.need(driver)
        if driver == 'sound':
            check_sound_features(config, video.features, video.name)
        if driver == 'coefficients' and video.basis != config.basis:
            raise UserError(
                f"{video.name}: its coefficients are of the basis '{video.basis}', the configuration's of "
                f"'{config.basis}'; set model.basis alike"
            )
        if driver != 'picture':
            check_signal(config, driver, video.signals[driver], video.name)


def training_batches(
    video: PersonFrames, config: ModelConfig, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the updates from ``start`` on, with their stage (``train.with_stage``); endless."""
    check_video(config, video)
    settings, done = config.settings, start
    while True:
        frames = frame_numbers(settings.train, seed, done, len(video.train))
        batch = training_batch(video, frames, settings.loss.size, settings.drivers, smooths(settings.train, done))
        yield with_stage(settings.train, batch, done)
        done += 1
