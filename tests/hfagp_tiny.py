"""Variables of tiny HFA-GPs for tests that train a fresh person: the generator is drawn, the rest is zeros."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.methods.hfagp.model import abstract
from avatar_jax.models.triplane import GeneratorConfig, init_generator


@functools.cache
def generator_alone(config: GeneratorConfig) -> dict[str, Any]:
    """As the file of a prior gives it; not to be changed."""
    return {c: {'generator': tree} for c, tree in init_generator(config, jax.random.key(0)).items()}


def with_blank_person(config: ModelConfig) -> dict[str, Any]:
    """With a basis and encoders of zeros, as networks take seconds to draw."""
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract(config)['params'])
    own = generator_alone(config.generator)
    return {**own, 'params': {**blank, **own['params']}}
