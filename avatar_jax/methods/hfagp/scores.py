"""How well a trained model shows the frames of its video: scores, and a picture to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.images import to_uint8
from avatar_jax.methods.hfagp import model as models
from avatar_jax.methods.hfagp.batches import PersonFrames
from avatar_jax.methods.hfagp.config import ModelConfig, TrainConfig
from avatar_jax.methods.hfagp.driving import smooths_sound
from avatar_jax.methods.hfagp.encoders import sound_neighbours
from avatar_jax.methods.hfagp.losses import supervised
from avatar_jax.ops.image_metrics import psnr, ssim, to_unit

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model

MOST = 64  # frames that are measured
AT_ONCE = 4


def spread(numbers: np.ndarray, most: int = MOST) -> np.ndarray:
    """At most so many of the numbers, evenly spread."""
    if len(numbers) <= most:
        return np.asarray(numbers)
    return np.asarray(numbers)[np.linspace(0, len(numbers) - 1, most).round().astype(int)]


def signal_at(config: ModelConfig, video: PersonFrames, driver: str, numbers: np.ndarray) -> np.ndarray:
    """A driver's signals [N, ...] of some frames, as the model reads them."""
    if driver == 'picture':
        return np.stack([video.picture(int(i), config.settings.encoder.picture_size) for i in numbers])
    values = np.asarray(video.signals[driver], np.float32)
    if driver == 'sound' and smooths_sound(config):
        return np.asarray(sound_neighbours(values, np.asarray(numbers)))
    return values[numbers]


def _looking(config: ModelConfig) -> ModelConfig:
    """The configuration without how it is trained: models that differ in that alone are shown by one program."""
    return replace(config, settings=replace(config.settings, train=TrainConfig()))


@partial(jax.jit, static_argnames='config')
def _vectors(variables, *, config):
    return models.per_video(variables, config)


@partial(jax.jit, static_argnames=('config', 'driver'))
def _shown(variables, vectors, signal, labels, *, config, driver):
    out = models.frame(variables, config, {}, vectors, {driver: signal}, labels)
    return supervised(out.rgb, config.settings.loss.size)


@jax.jit
def _compared(shown, target):
    a, b = to_unit(shown), to_unit(target)
    return psnr(a, b), ssim(a, b)


def pictures_of(
    variables: Mapping[str, Any], config: ModelConfig, video: PersonFrames, driver: str, numbers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(generated, true) pictures [N, S, S, 3] of some frames, a few at a time, deterministic."""
    numbers = np.asarray(numbers)
    vectors, found, true = _vectors(variables, config=_looking(config)), [], []
    for first in range(0, len(numbers), AT_ONCE):
        part = numbers[first : first + AT_ONCE]
        filled = np.resize(part, AT_ONCE)  # one shape, one compilation
        signal = signal_at(config, video, driver, filled)
        shown = _shown(variables, vectors, signal, video.labels[filled], config=_looking(config), driver=driver)
        found.append(np.asarray(shown)[: len(part)])
        true.append(np.stack([video.picture(int(i), config.settings.loss.size) for i in part]))
    return np.concatenate(found), np.concatenate(true)


def measure(
    variables: Mapping[str, Any], config: ModelConfig, video: PersonFrames, driver: str, numbers: np.ndarray
) -> dict[str, float]:
    """Mean ``psnr`` (dB) and ``ssim`` of up to 64 of the frames, driven by their own signals; {} for no frames."""
    numbers = spread(numbers)
    if not len(numbers):
        return {}
    shown, true = pictures_of(variables, config, video, driver, numbers)
    values = [_compared(shown[i : i + 1], true[i : i + 1]) for i in range(len(numbers))]
    return {name: float(np.mean([v[k][0] for v in values])) for k, name in enumerate(('psnr', 'ssim'))}


def sheet(
    variables: Mapping[str, Any], config: ModelConfig, video: PersonFrames, count: int
) -> tuple[np.ndarray, dict[str, float]]:
    """A picture with a row for each of ``count`` frames (unseen ones, if there are), and ``sample/psnr_DRIVER``.

    Columns: the frame; what each driver makes of it.
    """
    numbers = spread(video.test if len(video.test) else video.train, count)
    columns, scores = [], {}
    for driver in config.settings.drivers:
        shown, true = pictures_of(variables, config, video, driver, numbers)
        columns += [shown] if columns else [true, shown]
        scores[f'sample/psnr_{driver}'] = float(np.mean(_compared(shown, true)[0]))
    return np.concatenate([np.concatenate([to_uint8(p) for p in c], 0) for c in columns], 1), scores


def of_training(model: Model, people: int) -> dict[str, dict[str, float]]:
    """The scores of the first driver that a training kept in its weight file, for tables: of 'train' and 'unseen'.

    Raises:
        UserError: the file has none: its video had no part that training did not see.
    """
    del people
    found = (model.provenance or {}).get('scores', {}).get(model.config.settings.drivers[0], {})
    if not found.get('unseen'):
        raise UserError(f'{model.path}: has no scores of unseen frames; train with data.test_share above 0')
    return found
