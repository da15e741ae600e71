"""The weight files inside the package load, fit today's code, and make heads that follow their codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.methods.otavatar import model
from avatar_jax.weights import shipped, shipped_names
from launch.perception import default_bank


def test_names_and_size():
    assert {'heads128', 'head_nets', 'face_net', 'expression_net'} <= set(shipped_names())
    assert sum(shipped(name).stat().st_size for name in shipped_names()) < 15e6


def test_stand_ins_load_and_say_so():
    bank = default_bank(128)
    assert bank.has('head_identity') and bank.has('head_coefficients')
    assert 'procedural heads' in dict(bank.sources)['head_identity']


@pytest.fixture(scope='module')
def shipped_model():
    return model.load_model(shipped('heads128'))


def test_random_codes_make_different_heads_on_white(shipped_model):
    from data_pipelines.clips import evaluation_clips

    variables, config, digest, provenance = shipped_model
    assert len(digest) == 64 and provenance['command']
    generator = model.TriPlaneGenerator(config.generator)
    label = jnp.asarray(evaluation_clips(1, 0, num_frames=27)[0].labels()[:1]).repeat(3, 0)
    latents = jax.random.normal(jax.random.key(0), (3, config.generator.z_dim))

    @jax.jit
    def heads(weights, z):
        w = generator.apply(weights, z, label, method='mapping')
        return generator.apply(weights, w, label, method='synthesis')

    out = heads(model.network(variables, 'generator'), latents)
    image, opacity = np.asarray(out['image']), np.asarray(out['opacity'])
    assert np.isfinite(image).all() and image.shape == (3, 128, 128, 3)
    middle = slice(24, 40)
    assert opacity[:, middle, middle].mean() > 0.9 and opacity[:, :6, :6].mean() < 0.2
    assert np.abs(image[0] - image[1]).mean() > 0.02
