"""Where the random numbers of the augmentations come from.

A transform asks for numbers by name, one set per sample. ``KeyDraws`` derives them from one key per sample, so that a
sample is augmented alike whatever batch or device it is in; ``PercentileDraws`` answers every question with the same
percentile, which makes the pipe deterministic for comparisons.
"""

from __future__ import annotations

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


# One block of numbers per sample, drawn at once: many small draws take XLA longer to compile than all the transforms.
_UNIFORMS = ('xflip', 'rotate90', 'xint', 'rotate', 'rotate_after', 'lumaflip', 'hue', 'cutout/centre')
_NORMALS = (
    'scale',
    'aniso',
    'xfrac',
    'brightness',
    'contrast',
    'saturation',
    'imgfilter0',
    'imgfilter1',
    'imgfilter2',
    'imgfilter3',
    'noise',
)
_CHOSEN = tuple(dict.fromkeys(n for n in (*_UNIFORMS, *_NORMALS, 'cutout') if '/' not in n))
_WIDTH = 2  # numbers per name, the most that a transform asks for


class KeyDraws:
    """Draws from one typed key per sample [N]; a number depends on its key and its name alone."""

    fixed = False

    def __init__(self, keys: jax.Array):
        self._keys = keys
        uniforms = len(_UNIFORMS) * _WIDTH + len(_CHOSEN)
        self._uniform = self._draw(jax.random.uniform, 0, (uniforms,))
        self._normal = self._draw(jax.random.normal, 1, (len(_NORMALS) * _WIDTH,))

    def _draw(self, draw, number: int, shape: tuple[int, ...]) -> jax.Array:
        return jax.vmap(lambda k: draw(jax.random.fold_in(k, number), shape))(self._keys)

    @staticmethod
    def _slot(block: jax.Array, index: int, shape: tuple[int, ...]) -> jax.Array:
        start = index * _WIDTH
        return block[:, start : start + shape[0]] if shape else block[:, start]

    def uniform(self, name: str, *shape: int) -> jax.Array:
        """See ``Draws``."""
        return self._slot(self._uniform, _UNIFORMS.index(name), shape)

    def normal(self, name: str, *shape: int) -> jax.Array:
        """See ``Draws``."""
        if name == 'noise/pixels':
            return self._draw(jax.random.normal, 2, shape)
        return self._slot(self._normal, _NORMALS.index(name), shape)

    def magnitude(self, name: str) -> jax.Array:
        """See ``Draws``."""
        return jnp.abs(self.normal(name))

    def chosen(self, name: str, probability: jax.Array | float) -> jax.Array:
        """See ``Draws``."""
        return self._uniform[:, len(_UNIFORMS) * _WIDTH + _CHOSEN.index(name)] < probability


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
