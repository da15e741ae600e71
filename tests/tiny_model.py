"""A tiny OTAvatar and made-up people, without compiling anything."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from avatar_jax.faces.camera_labels import canonical_label, yaw_label
from avatar_jax.methods.otavatar.model import ModelConfig, abstract
from avatar_jax.parallel import as_arrays
from avatar_jax.types import Camera, Portrait

CONFIG = ModelConfig.tiny('release')


def short(**steps: int) -> ModelConfig:
    """``CONFIG`` with an inversion of these numbers of steps (``w_steps``, ``wplus_steps``, ``sr_steps``)."""
    options = {f'inversion__{name}': count for name, count in steps.items()}
    return dataclasses.replace(CONFIG, settings=CONFIG.settings.replace(**options, loss__local=0.0))


@functools.cache
def tiny_variables() -> dict:
    """Variables of ``CONFIG``; not to be changed."""
    return random_variables(CONFIG)


def random_variables(config: ModelConfig, seed: int = 0) -> dict:
    """Variables as initialisation would draw them (weights normal, biases and averages zero, style biases one)."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [p.key for p in path]
        if names[-1] == 'bias':
            return np.full(leaf.shape, float('affine' in names), np.float32)
        if names[-1] in ('w_avg', 'noise_strength'):
            return np.zeros(leaf.shape, np.float32)
        small = 0.1 if names[1] == 'controller' and 'direction' not in names else 1.0
        return np.float32(small * rng.normal(size=leaf.shape))

    return as_arrays(jax.tree_util.tree_map_with_path(draw, abstract(config)))


def portrait(index: int, size: int = 32) -> Portrait:
    """A smooth picture with landmarks, coefficients, a mask and a camera that depend on ``index``."""
    rng = np.random.default_rng([7, index])
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.stack([np.sin(3 * x + index), np.cos(2 * y - index), 2 * x * y - 0.5], -1).astype(np.float32)
    landmarks = np.clip(rng.normal(size / 2, size / 6, (68, 2)), 2, size - 2).astype(np.float32)
    label = np.asarray(yaw_label(canonical_label(), 0.1 * index), np.float32)
    return Portrait(
        image=image,
        camera=Camera.from_label(label),
        landmarks=landmarks,
        expression=rng.uniform(0, 1, 64).astype(np.float32),
        angle=np.zeros(3, np.float32),
        translation=np.zeros(3, np.float32),
        mask=np.ones((size, size), np.float32),
    )


def batch(people: int, frames: int = 2, size: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of clips as ``data_pipelines.pairs`` gives it."""
    rng = np.random.default_rng([8, seed])
    shots = [[portrait(seed + 10 * p + f, size) for f in range(frames)] for p in range(people)]

    def stack(get):
        return np.stack([np.stack([np.asarray(get(s)) for s in row]) for row in shots]).astype(np.float32)

    return {
        'images': stack(lambda s: s.image),
        'landmarks': stack(lambda s: s.landmarks),
        'labels': stack(lambda s: s.camera.label),
        'windows': rng.uniform(0, 0.3, (people, frames, 27, 70)).astype(np.float32),
    }
