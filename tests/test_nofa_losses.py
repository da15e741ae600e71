"""NOFA's terms: boxes of mouths, zero and gradients where the paper wants them, teachers (invariants 6, 9, 10)."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.nofa import losses, release
from avatar_jax.methods.nofa.config import LossConfig, Weights
from avatar_jax.methods.nofa.model import Views, Volume
from avatar_jax.methods.nofa.teacher import Teacher, box_mask
from avatar_jax.models import gfpgan
from avatar_jax.models.gfpgan import GFPGANConfig
from tests.comparison import close
from tests.nofa_tiny import portrait

LOSS = LossConfig(pyramid_scales=2, mouth_size=8)
BANK = PerceptionBank()
IMAGES = jnp.stack([jnp.asarray(portrait(i).image) for i in range(2)])
LANDMARKS = jnp.stack([jnp.asarray(portrait(i).landmarks) for i in range(2)])


def views_of(image):
    return Views(raw=image[:, ::2, ::2], depth=image[..., :1], opacity=image[..., :1], image=image)


@partial(jax.jit, static_argnames=('loss', 'weights'))
def terms_of(image, target, landmarks, restored=None, offsets=None, *, loss=LOSS, weights=Weights(1, 1, 1, 0, 1, 0)):  # noqa: B008
    prepared = losses.prepare_targets(BANK, loss, weights, target, landmarks, 16)
    return losses.objective_terms(BANK, loss, weights, views_of(image), prepared, offsets=offsets, restored=restored)


def test_boxes_are_squares_around_the_mouth():
    landmarks = np.zeros((1, 68, 2), np.float32)
    landmarks[0, 48:] = [[10, 20]] * 10 + [[19, 23]] * 10
    box = losses.mouth_boxes(jnp.asarray(landmarks), 64)
    close(box, [[15 - 6.3, 22 - 6.3, 15 + 6.3, 22 + 6.3]], atol=1e-5, what='1.4 times 9 pixels around the middle')
    box = losses.mouth_boxes(jnp.asarray(landmarks), 18)
    close(box, [[8.7, 15.7, 18, 18]], atol=1e-5, what='cut to the picture')
    mask = box_mask(jnp.asarray([[1.0, 2.0, 3.0, 5.0]]), 6)[0, ..., 0]
    assert mask.sum() == 6
    assert mask[2:5, 1:3].all()


def test_equal_pictures_have_no_loss():
    zero = jnp.zeros((2, 6, 16))
    found = terms_of(IMAGES, IMAGES, LANDMARKS, IMAGES, zero)
    assert set(found) == {'reconstruction', 'mouth', 'teeth', 'latent'}
    for name, value in found.items():
        assert float(value) == 0, name
    found = terms_of(IMAGES + 0.1, IMAGES, LANDMARKS, IMAGES, zero + 0.5)
    close(found['reconstruction'], 0.01 + 2 * 0.1, rtol=1e-4, what='error and pyramid of two scales')
    close(found['latent'], 0.5 * 96**0.5, rtol=1e-5, what='norm of all entries')


def test_terms_are_off_where_their_weight_is_zero():
    found = terms_of(IMAGES + 0.1, IMAGES, None, weights=Weights(2.0, 0, 0, 0.1, 0, 0.01))
    assert set(found) == {'reconstruction'}, 'no identity network and no volume are given'
    close(found['reconstruction'], 2 * (0.01 + 0.2), rtol=1e-4, what='weight')
    loss = dataclasses.replace(LOSS, raw=0.5, perceptual=0.0)
    found = terms_of(IMAGES + 0.1, IMAGES, None, weights=Weights(1.0, identity=0.0), loss=loss)
    close(found['reconstruction'], 0.01, rtol=1e-4, what='without perceptual part')
    assert set(found) == {'reconstruction', 'raw'}


def test_the_volume_should_be_a_share_of_the_canonical_one():
    canonical = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 5))
    assert float(losses.depth_term(canonical, 0.1 * canonical)) < 1e-14
    away = jax.random.normal(jax.random.key(1), canonical.shape)
    to_canonical, to_added = jax.grad(losses.depth_term, argnums=(0, 1))(canonical, away)
    assert not np.asarray(to_canonical).any()
    close(to_added, 2 * (away - 0.1 * canonical) / away.size, rtol=1e-4, atol=1e-9, what='gradient')
    volume = Volume(jnp.zeros((2, 6, 16)), canonical, away)
    prepared = losses.prepare_targets(BANK, LOSS, Weights(1.0), IMAGES, None, 16)
    found = losses.objective_terms(
        BANK, LOSS, Weights(1.0, identity=0, depth=0.01), views_of(IMAGES), prepared, volume=volume
    )
    close(found['depth'], 0.01 * losses.depth_term(canonical, away), rtol=1e-5, what='weighted')


def test_no_gradient_goes_through_the_teacher():
    def loss(image, restored):
        return terms_of(image, IMAGES, LANDMARKS, restored, weights=Weights(0, 0, 1, 0, 0, 0))['teeth']

    value, (to_image, to_restored) = jax.value_and_grad(loss, (0, 1))(IMAGES + 0.2, IMAGES)
    assert float(value) > 0
    assert not np.asarray(to_restored).any()
    assert float(jnp.abs(to_image).max()) > 0

    def without_teacher(image):
        return terms_of(image, IMAGES, LANDMARKS, weights=Weights(0, 0, 1, 0, 0, 0))['teeth']

    value, grad = jax.value_and_grad(without_teacher)(0.5 * IMAGES)
    assert float(value) == 0
    assert not np.asarray(grad).any()
    np.testing.assert_array_equal(Teacher()(0.5 * IMAGES, IMAGES, LANDMARKS, LOSS), 0.5 * IMAGES)


def test_a_mouth_outside_has_no_part_and_is_named():
    outside = LANDMARKS.at[1].add(1000.0)
    weights = Weights(0, 1, 0, 0, 0, 0)
    both, one = (terms_of(IMAGES + 0.3, IMAGES, x, weights=weights)['mouth'] for x in (LANDMARKS, outside))
    close(one, both / 2, rtol=1e-4, what='the other mouth alone')
    with pytest.raises(UserError, match='b.png: its mouth is outside'):
        losses.check_mouths(np.asarray(outside), 32, ['a.png', 'b.png'])
    with pytest.raises(UserError, match='landmarks: missing'):
        losses.check_mouths(None, 32)
    with pytest.raises(UserError, match='68 points'):
        losses.check_mouths(np.zeros((2, 5, 2)), 32)
    with pytest.raises(UserError, match='landmarks: missing'):
        losses.prepare_targets(BANK, LOSS, weights, IMAGES, None, 16)


def test_missing_networks_are_named():
    with pytest.raises(UserError, match=r"loss.perceptual_network: 'lpips_alex' needs"):
        losses.perceptual_kind(LossConfig(perceptual_network='lpips_alex'), BANK)
    with pytest.raises(UserError, match=r"loss.identity_network: 'irse50' needs"):
        losses.identity_kind(LossConfig(identity_network='irse50'), BANK)
    words = losses.networks(LOSS, BANK)
    assert 'pyramid' in words['perceptual']
    assert 'off' in words['identity']
    with pytest.raises(UserError, match='loss.perceptual_network'):
        LossConfig(perceptual_network='vgg19')


# ----------------------------------------------------------------------------------------------------------- teachers

NET = GFPGANConfig(16, 6, 2, 1 / 128)


def small_gfpgan():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * (np.prod(s.shape[:-1]) or 1) ** -0.5, jnp.float32),
        gfpgan.abstract_gfpgan(NET),
    )
    sides = [2 ** ((j + 5) // 2) for j in range(5)]
    maps = {f'noise{j}': np.zeros((1, r, r, 1), np.float32) for j, r in enumerate(sides)}
    return {'params': params, 'noise': {'stylegan_decoder': {'noises': maps}}}


@pytest.mark.slow
def test_a_restored_face_is_put_back_in_its_place(monkeypatch):
    variables = small_gfpgan()
    teacher = Teacher.create('gfpgan', True, variables, NET)
    # Landmarks whose five points are the template, turned and moved.
    size = 32
    points = gfpgan.TEMPLATE * (20 / 512) + 5
    landmarks = np.array(LANDMARKS[:1])
    for k, p in zip(((36, 39), (42, 45), (30,), (48,), (54,)), points, strict=True):
        landmarks[0, list(k)] = p
    landmarks[0, 48:] = points[3:].mean(0)
    landmarks[0, 48], landmarks[0, 54] = points[3], points[4]
    box = losses.mouth_boxes(jnp.asarray(landmarks), size, LOSS.mouth_enlarge)
    inside = np.asarray(box_mask(box, size))[0, ..., 0] > 0
    image = jnp.clip(IMAGES[:1], -1, 1)
    call = jax.jit(
        lambda variables, image, landmarks: teacher.replace(variables=variables)(image, image, landmarks, LOSS)
    )
    restored = call(teacher.variables, image, jnp.asarray(landmarks))
    assert restored.shape == image.shape
    change = np.abs(np.asarray(restored - image))[0].max(-1)
    assert change[~inside].max() == 0, 'outside the mouth nothing changes'
    assert change[inside].mean() > 0.05

    # A network that changes nothing gives the picture back: warped to the template and back, it is a little smoother.
    monkeypatch.setattr(gfpgan.GFPGAN, 'apply', lambda self, variables, x, noise: x, raising=False)
    big = GFPGANConfig(64, 6, 2, 1 / 128)
    y, x = np.mgrid[0:size, 0:size] / size
    smooth = jnp.asarray(np.stack([np.sin(2 * x), np.cos(2 * y), x * y], -1)[None], jnp.float32)
    same = gfpgan.restore(variables, big, smooth, jnp.asarray(points)[None])
    close(same, smooth, atol=0.03, what='there and back')


def test_the_averaged_network_of_a_file_is_taken():
    flat = release.gfpgan_state_dict(small_gfpgan())
    both = {f'params.{k}': 0 * v for k, v in flat.items()} | {f'params_ema.{k}': v for k, v in flat.items()}
    variables, config = release.gfpgan_variables(both)
    assert config == NET
    np.testing.assert_array_equal(variables['params']['final_linear']['weight'], flat['final_linear.weight'].T)
    with pytest.raises(UserError, match='GFPGANv1.4.pth'):
        release.gfpgan_variables({'params.conv.weight': np.zeros(3, np.float32)})
    broken = {k: v for k, v in flat.items() if k != 'final_conv.bias'}
    with pytest.raises(UserError, match='1 entries do not fit.*final_conv/bias'):
        release.gfpgan_variables(broken)


def test_teachers_that_cannot_be_are_refused():
    with pytest.raises(UserError, match='needs its weights'):
        Teacher.create('gfpgan')
    with pytest.raises(UserError, match='train.teacher'):
        Teacher.create('codeformer')
    variables = small_gfpgan()
    with pytest.raises(UserError, match='pictures of 16, these have 32'):
        Teacher.create('gfpgan', False, variables, NET)(IMAGES, IMAGES, LANDMARKS, LOSS)
    with pytest.raises(UserError, match='landmarks: missing'):
        Teacher.create('gfpgan', True, variables, NET)(IMAGES, IMAGES, None, LOSS)
    with pytest.raises(UserError, match='16x16x3, not of 32x32x3'):
        Teacher('truth')(IMAGES, IMAGES[:, ::2, ::2], LANDMARKS, LOSS)
