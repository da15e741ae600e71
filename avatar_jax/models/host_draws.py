"""Random numbers for fresh parameters, drawn on the host: compiling hundreds of draws takes longer than a test should.

A key that is being traced (``jax.eval_shape``, ``jit``) is used with JAX's own generator; the numbers then differ.
"""

from __future__ import annotations

import jax
import numpy as np

from avatar_jax.parallel import as_arrays


def _generator(key: jax.Array) -> np.random.Generator | None:
    if isinstance(key, jax.core.Tracer):
        return None
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def split(key: jax.Array, count: int) -> list[jax.Array]:
    """The keys of ``jax.random.split``, without a program for each place among them."""
    keys = jax.random.split(key, count)
    if isinstance(key, jax.core.Tracer):
        return list(keys)
    kind = jax.random.key_impl(key)
    return [jax.random.wrap_key_data(data, impl=kind) for data in np.asarray(jax.random.key_data(keys))]


def normal(key: jax.Array, shape: tuple[int, ...], deviation: float = 1.0) -> jax.Array:
    """N(0, deviation^2), float32."""
    rng = _generator(key)
    if rng is None:
        return deviation * jax.random.normal(key, shape)
    return as_arrays((deviation * rng.standard_normal(shape)).astype(np.float32))


def uniform(key: jax.Array, shape: tuple[int, ...], limit: float = 1.0) -> jax.Array:
    """U(-limit, limit), float32."""
    rng = _generator(key)
    if rng is None:
        return jax.random.uniform(key, shape, minval=-limit, maxval=limit)
    return as_arrays(rng.uniform(-limit, limit, shape).astype(np.float32))
