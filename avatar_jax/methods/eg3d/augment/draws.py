"""Where the random numbers of the augmentations come from.

A transform asks for numbers by name, one set per sample. ``KeyDraws`` derives them from one key per sample, so that a
sample is augmented alike whatever batch or device it is in; ``PercentileDraws`` answers every question with the same
percentile, which makes the pipe deterministic for comparisons.
"""

from __future__ import annotations

import zlib
from typing import Protocol

import jax
import jax.numpy as jnp


class Draws(Protocol):
    """What a transform may ask for; every answer is [N, *shape]."""

    fixed: bool  # True: one percentile everywhere

    def uniform(self, name: str, *shape: int) -> jax.Array:
        """Uniform in [0, 1)."""

    def normal(self, name: str, *shape: int) -> jax.Array:
        """Standard normal."""

    def magnitude(self, name: str) -> jax.Array:
        """[N], absolute value of a standard normal."""

    def chosen(self, name: str, probability: jax.Array | float) -> jax.Array:
        """[N] bool: which samples the transform is applied to."""


class KeyDraws:
    """Draws from one typed key per sample [N]; a number depends on its key and its name alone."""

    fixed = False

    def __init__(self, keys: jax.Array):
        self._keys = keys

    def _draw(self, draw, name: str, shape: tuple[int, ...]) -> jax.Array:
        tag = zlib.crc32(name.encode())
        return jax.vmap(lambda k: draw(jax.random.fold_in(k, tag), shape))(self._keys)

    def uniform(self, name: str, *shape: int) -> jax.Array:
        """See ``Draws``."""
        return self._draw(jax.random.uniform, name, shape)

    def normal(self, name: str, *shape: int) -> jax.Array:
        """See ``Draws``."""
        return self._draw(jax.random.normal, name, shape)

    def magnitude(self, name: str) -> jax.Array:
        """See ``Draws``."""
        return jnp.abs(self.normal(name))

    def chosen(self, name: str, probability: jax.Array | float) -> jax.Array:
        """See ``Draws``."""
        return self.uniform(f'{name}/chosen') < probability


class PercentileDraws:
    """Every uniform is ``q``, every normal erfinv(2q - 1), everything is chosen: for N samples."""

    fixed = True

    def __init__(self, num: int, q: float):
        self._num, self._q = num, jnp.float32(q)

    def uniform(self, name: str, *shape: int) -> jax.Array:
        """See ``Draws``."""
        del name
        return jnp.full((self._num, *shape), self._q)

    def normal(self, name: str, *shape: int) -> jax.Array:
        """See ``Draws``. Without the factor sqrt(2) of a true quantile, as in the program that is compared with."""
        del name
        return jnp.full((self._num, *shape), jax.lax.erf_inv(2 * self._q - 1))

    def magnitude(self, name: str) -> jax.Array:
        """See ``Draws``."""
        del name
        return jnp.full((self._num,), jax.lax.erf_inv(self._q))

    def chosen(self, name: str, probability: jax.Array | float) -> jax.Array:
        """See ``Draws``."""
        del name, probability
        return jnp.ones((self._num,), bool)
