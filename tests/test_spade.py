"""SPADE: identity at zero modulation, no hidden statistics, images of a batch apart (NOFA's invariant 4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.models.spade import Spade, SpadeResBlock, instance_norm
from tests.comparison import close

X = jax.random.normal(jax.random.key(1), (2, 6, 5, 4))
IMAGE = jax.random.normal(jax.random.key(2), (2, 12, 10, 3))


@pytest.fixture(scope='module')
def layer():
    module = Spade(4, hidden=8)
    return module, module.init(jax.random.key(0), X, IMAGE)


def test_zero_modulation_is_the_identity(layer):
    module, variables = layer
    heads = {k: v if k == 'mlp_shared' else jax.tree.map(jnp.zeros_like, v) for k, v in variables['params'].items()}
    np.testing.assert_array_equal(module.apply({'params': heads}, X, IMAGE), X)
    y = Spade(4, hidden=8, norm='instance').apply({'params': heads}, X, IMAGE)
    close(y, instance_norm(X), atol=1e-6, what='instance norm alone')
    close(y.mean((1, 2)), np.zeros((2, 4)), atol=1e-6, what='mean')
    close(y.var((1, 2)), np.ones((2, 4)), atol=1e-4, what='variance')


def test_scaling_the_features_scales_their_part_alone(layer):
    module, variables = layer
    gamma, beta = module.apply(variables, IMAGE, X.shape[1:3], method='modulation')
    close(module.apply(variables, 3 * X, IMAGE) - 3 * X * (1 + gamma), beta, atol=1e-5, what='y(kx) - kx(1 + gamma)')
    assert float(jnp.abs(gamma).max()) > 0, 'first gamma is not exactly zero, so that it learns'


def test_an_image_does_not_see_its_neighbours(layer):
    module, variables = layer
    other = X.at[1].set(7.0), IMAGE.at[1].set(-1.0)
    close(module.apply(variables, *other)[0], module.apply(variables, X, IMAGE)[0], atol=1e-6, what='first image')


def test_wrong_options_and_maps_are_named():
    with pytest.raises(UserError, match='spade norm'):
        Spade(4, norm='batch')
    with pytest.raises(UserError, match='spade resize'):
        Spade(4, resize='cubic')
    with pytest.raises(ValueError, match='3 channels'):
        SpadeResBlock(4, 4, hidden=4).init(jax.random.key(0), X, IMAGE[..., :1])
