"""Fully opaque intervals: compiled compositing stays finite, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.render import marching


def test_opaque_samples_stay_finite_under_jit():
    densities = jnp.linspace(50.0, 1e5, 64).reshape(4, 16)
    depths = jnp.broadcast_to(jnp.linspace(2.3, 3.3, 16), (4, 16))

    @jax.jit
    def weights(d):
        return marching.interval_weights(d * 2 - d, depths)

    values = np.asarray(weights(densities))
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(
        values[:, 0], np.asarray(1 - jnp.exp(-(densities[:, 0] + densities[:, 1]) / 30)), rtol=0.1
    )
    gradient = jax.jit(jax.grad(lambda d: (weights(d) * jnp.arange(15.0)).sum()))(densities)
    assert np.isfinite(np.asarray(gradient)).all()
