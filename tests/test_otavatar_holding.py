"""What a tuned generator must not lose: shape in views from the sides, and the mirror image of a turned portrait."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import canonical_label, yaw_label
from avatar_jax.methods.otavatar.holding import HoldConfig, held_of, hold_terms, mirrored_motion, turned
from avatar_jax.methods.otavatar.model import ModelConfig
from tests.tiny_model import portrait, random_variables


@pytest.mark.slow
def test_terms_see_shape_and_mirror_image():
    config = ModelConfig.tiny('release')
    generator = {k: v['generator'] for k, v in random_variables(config).items() if 'generator' in v}
    rng = np.random.default_rng(0)
    ws = jnp.asarray(rng.normal(size=(1, config.generator.num_ws, config.generator.w_dim)), jnp.float32)
    label = jnp.asarray(yaw_label(canonical_label(), np.float32(0.4)), jnp.float32)
    size = config.generator.neural_rendering_resolution
    raw = jnp.asarray(rng.uniform(-1, 1, (1, size, size, 3)), jnp.float32)

    @jax.jit
    def values(variables, label, raw):
        held = held_of(generator, config.generator, ws, ws, label, raw, HoldConfig())
        return hold_terms(variables, config.generator, held, HoldConfig())

    same = values(generator, label, raw)
    assert float(same['hold/shape']) < 1e-6 and float(same['hold/mirror']) > 0.01
    other = values(jax.tree.map(lambda v: v * 1.1, generator), label, raw)
    assert float(other['hold/shape']) > 1e-4
    frontal = values(generator, jnp.asarray(canonical_label(), jnp.float32), raw)
    assert float(frontal['hold/mirror']) < 0.02 * float(
        same['hold/mirror']
    )  # the mirror image of a frontal portrait tells nothing new
    off = HoldConfig().times(0.0)
    held = held_of(generator, config.generator, ws, ws, label, raw, off)
    assert hold_terms(generator, config.generator, held, off) == {}
    np.testing.assert_allclose(turned(label), 2 * np.rad2deg(0.4), atol=0.1)


def test_the_mirror_image_of_a_motion():
    plain = dataclasses.replace(portrait(1), basis='procedural', angle=np.array([0.1, 0.2, 0.3], np.float32))
    once = mirrored_motion(plain)
    np.testing.assert_allclose(once.angle, [0.1, -0.2, -0.3])
    assert np.abs(once.expression - plain.expression).max() > 0.1
    twice = mirrored_motion(once)
    np.testing.assert_allclose(twice.expression, plain.expression)
    np.testing.assert_allclose(twice.angle, plain.angle)
    other = mirrored_motion(dataclasses.replace(plain, basis='ict-facekit-53', translation=None))
    np.testing.assert_array_equal(other.expression, plain.expression)
    assert other.translation is None


def test_weights_are_checked():
    with pytest.raises(UserError, match=r'hold\.yaw: 0\.0'):
        HoldConfig(yaw=0.0)
    assert HoldConfig().times(2).shape == 2 * HoldConfig().shape
