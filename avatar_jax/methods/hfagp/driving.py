"""Signals for HFA-GP from what people have: a motion, pictures, sound.

Each function gives one named signal [T, ...] of ``model.animate`` and checks it against what the avatar was trained
with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from avatar_jax.driving.audio import SoundSignal, sound_signal
from avatar_jax.errors import UserError
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.methods.hfagp.model import check_driver, check_signal
from avatar_jax.types import Motion


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
    from PIL import Image

    check_driver(config, 'picture')
    size, out = config.method.encoder.picture_size, []
    for crop in pictures:
        crop = np.asarray(crop)
        if crop.ndim != 3 or crop.shape[0] != crop.shape[1] or crop.dtype != np.uint8:
            raise UserError(f'{source}: crops must be square pictures of bytes, got {crop.shape} {crop.dtype}')
        if crop.shape[0] != size:
            crop = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR))
        out.append(crop.astype(np.float32) / 127.5 - 1)
    signal = np.stack(out) if out else np.zeros((0, size, size, 3), np.float32)
    check_signal(config, 'picture', signal, source)
    return {'picture': signal}


def sound_windows(
    config: ModelConfig, path: str | os.PathLike, times: Any = None, *, fps: float = 25.0
) -> tuple[dict[str, np.ndarray], SoundSignal]:
    """``sound`` [T, 16, C] of a video, sound or feature file, and what ``driving.audio.sound_signal`` found.

    Args:
        times: [T] moments of the frames; None: frames at ``fps`` to the end of the sound.
    """
    check_driver(config, 'sound')
    found = sound_signal(path, times, fps=fps, features=config.method.encoder.sound_features)
    check_signal(config, 'sound', found.windows, os.fspath(path))
    return {'sound': found.windows}, found
