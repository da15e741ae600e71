"""A tiny NOFA whose parts all do something, and made-up people."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from avatar_jax.methods.nofa.config import ModelConfig
from avatar_jax.methods.nofa.model import abstract
from avatar_jax.parallel import as_arrays
from tests.tiny_model import portrait as plain_portrait

NORMAL = ('weight', 'const', 'noise_const')


@lru_cache(maxsize=8)
def variables_of(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Variables as initialisation would draw them, on the host: nothing is compiled."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [p.key for p in path]
        last = ['dnet', str(config.settings.deformation.depth), 'weight']
        zero = names[-2:] == ['out', 'weight'] or names[-3:] == last
        if names[-1] in ('running_var', 'gain', 'std') or (names[-1] == 'bias' and 'affine' in names):
            return np.ones(leaf.shape, np.float32)
        if names[-1] not in NORMAL or zero or not leaf.shape:
            return np.zeros(leaf.shape, np.float32)
        if len(leaf.shape) == 1:  # batch norm, PReLU
            return np.full(leaf.shape, 0.25 if names[-2] == '2' else 1.0, np.float32)
        scale = 1.0 if names[1] == 'generator' or names[-2] == 'linear' else np.prod(leaf.shape[:-1]) ** -0.5
        return np.float32(scale * rng.normal(size=leaf.shape))

    return as_arrays(jax.tree_util.tree_map_with_path(draw, abstract(config)))


def awake(variables: dict[str, Any], config: ModelConfig, size: float = 0.1, seed: int = 1) -> dict[str, Any]:
    """The same with random numbers in the two layers that start at zero."""
    rng = np.random.default_rng(seed)
    last = str(config.settings.deformation.depth)

    def draw(path, leaf):
        names = [p.key for p in path]
        if names[0] == 'params' and (
            names[1:3] == ['compensation', 'out'] or names[1:4] == ['deformation', 'dnet', last]
        ):
            return np.float32(size * rng.normal(size=leaf.shape))
        return leaf

    return as_arrays(jax.tree_util.tree_map_with_path(draw, variables))


def portrait(index: int, size: int = 32):
    """A made-up person with identity coefficients, and a mouth inside the picture."""
    rng = np.random.default_rng([9, index])
    return plain_portrait(index, size).replace(
        shape=rng.normal(size=80).astype(np.float32), source=f'person {index}', basis='procedural'
    )


def batch(people: int, size: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch of pairs of frames: ``data_pipelines.pairs``' arrays with identity coefficients."""
    shots = [[portrait(seed + 10 * p + f, size) for f in range(2)] for p in range(people)]

    def stack(get):
        return np.stack([np.stack([np.asarray(get(s)) for s in row]) for row in shots]).astype(np.float32)

    return {
        'images': stack(lambda s: s.image),
        'landmarks': stack(lambda s: s.landmarks),
        'labels': stack(lambda s: s.camera.label),
        'expressions': stack(lambda s: s.expression),
        'shapes': stack(lambda s: s.shape),
    }
