"""The bank of frozen networks: loading, refusing, reporting; and the training of the stand-ins."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.bundled import head_nets
from avatar_jax.bundled.head_nets import HeadTrainConfig
from avatar_jax.convert.layout import to_torch
from avatar_jax.errors import UserError
from avatar_jax.io.weights import save_weights
from avatar_jax.losses.perception import PerceptionBank, abstract_variables
from avatar_jax.methods.otavatar.losses import LossConfig, image_terms, prepare_targets
from avatar_jax.models.perception.head_nets import HeadNetsConfig
from avatar_jax.models.perception.layers import avg_pool_3x3, max_pool
from avatar_jax.models.perception.lpips import CHECKSUM_LIN0, TAP_CHANNELS

NETS = HeadNetsConfig(32, (4, 8), 16, 32, (4, 8), 16)


def fake_variables(name):
    """Variables of the right shapes, all 0.01."""
    return jax.tree.map(lambda s: np.full(s.shape, 0.01, np.float32), abstract_variables(name))


@pytest.fixture(scope='module')
def alexnet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'alexnet.npz'
    flat = to_torch(fake_variables('alexnet'))
    np.savez(path, **flat, **{'classifier.1.bias': np.zeros(3)})
    return path


def lin_file(path, total):
    flat = {f'lin{k}.model.1.weight': np.full((1, c, 1, 1), total / c) for k, c in enumerate(TAP_CHANNELS['alex'])}
    np.savez(path, **flat)
    return path


def test_empty_bank_says_what_it_lacks():
    bank = PerceptionBank()
    assert bank.perceptual_kind() == 'pyramid' and bank.identity_kind() == 'none'
    report = bank.report()
    assert 'no network' in report['perceptual'] and report['identity'].startswith('off')
    assert not any('VGG' in t or 'LPIPS' in t for t in report.values())
    for call in (
        lambda: bank.perceptual_kind('vgg19'),
        lambda: bank.identity_kind('arcface18'),
        lambda: bank.lpips('alex', jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64, 3))),
        lambda: bank.apply('inception', jnp.zeros((1, 299, 299, 3))),
    ):
        with pytest.raises(UserError, match='weights'):
            call()


def test_lpips_needs_trunk_and_the_right_channel_weights(tmp_path, alexnet_file):
    good = lin_file(tmp_path / 'lin.npz', CHECKSUM_LIN0['alex'])
    bank = PerceptionBank.load({'alexnet': alexnet_file})
    assert not bank.has('lpips_alex')
    bank = PerceptionBank.load({'lpips_alex': good}, bank)
    assert bank.has('lpips_alex') and 'lin.npz, sha256' in bank.report()['lpips_alex']
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)), jnp.float32)
    distance = jax.jit(lambda b, x, y: b.lpips('alex', x, y))(bank, image, image)
    assert distance.shape == (2,) and np.allclose(distance, 0, atol=1e-6)
    with pytest.raises(UserError, match=r'version 0\.1'):
        PerceptionBank.load({'lpips_alex': lin_file(tmp_path / 'old.npz', 2.56589)})
    with pytest.raises(UserError, match='lin0'):
        PerceptionBank.load({'lpips_vgg': alexnet_file})


@pytest.mark.parametrize(
    'content', ['text', 'empty', 'cut', 'wrong keys', 'wrong shape', 'unknown name', 'suffix', 'no file']
)
def test_bad_files_are_refused_in_one_line(tmp_path, alexnet_file, content):
    path, name = tmp_path / 'x.npz', 'alexnet'
    if content == 'text':
        path.write_text('not weights')
    elif content == 'empty':
        path.write_bytes(b'')
    elif content == 'cut':
        path.write_bytes(alexnet_file.read_bytes()[:5000])
    elif content == 'wrong keys':
        np.savez(path, a=np.zeros(3))
    elif content == 'wrong shape':
        flat = to_torch(fake_variables('alexnet'))
        np.savez(path, **flat | {'features.0.bias': np.zeros(65)})
    elif content == 'unknown name':
        path, name = alexnet_file, 'resnet'
    elif content == 'suffix':
        path = tmp_path / 'x.pth'
        path.write_bytes(b'x')
    with pytest.raises(UserError) as error:
        PerceptionBank.load({name: path})
    assert '\n' not in str(error.value)


def test_a_converted_network_loads_from_a_file_of_this_project(tmp_path):
    path = tmp_path / 'alexnet.safetensors'
    save_weights(path, fake_variables('alexnet'), method='perception/alexnet', config={}, provenance={})
    bank = PerceptionBank.load({'alexnet': path})
    assert bank.has('alexnet')
    with pytest.raises(UserError, match='perception/alexnet'):
        PerceptionBank.load({'vgg16': path})
    with pytest.raises(UserError, match='head networks'):
        PerceptionBank.load({'head_nets': path})


def test_pools_equal_the_definition():
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.stack([[padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in range(8)] for i in range(7)])
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), 3, 1, 1), expected.transpose(2, 0, 1, 3))
    expected = np.stack([[x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(3)] for i in range(3)])
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), 3, 2), expected.transpose(2, 0, 1, 3))
    corner = np.asarray(avg_pool_3x3(jnp.asarray(x)))[:, 0, 0]
    np.testing.assert_allclose(corner, x[:, :2, :2].mean((1, 2)), rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------- stand-ins


def toy_heads(people, pictures, seed):
    """Pictures whose upper half is the person and whose bars are the expression: no rendering needed."""
    rng = np.random.default_rng(seed)
    n = people * pictures
    person = np.repeat(np.arange(people), pictures).astype(np.int32)
    pattern = np.random.default_rng(99).uniform(0, 255, (200, 4, 8, 3))[person + 100 * seed]
    expression = np.zeros((n, 64), np.float32)
    expression[:, :4] = rng.uniform(0, 1, (n, 4))
    rgb = np.zeros((n, 32, 32, 3))
    rgb[:, :16] = pattern.repeat(4, 1).repeat(4, 2)
    for k in range(4):
        rgb[:, 16:, 8 * k : 8 * k + 8] = 255 * expression[:, k, None, None, None]
    landmarks = rng.uniform(10, 20, (n, 68, 2)).astype(np.float32)
    return {
        'rgb': rgb.astype(np.uint8),
        'person': person,
        'expression': expression,
        'angle': rng.normal(0, 0.2, (n, 3)).astype(np.float32),
        'translation': rng.normal(0, 0.1, (n, 3)).astype(np.float32),
        'landmarks': landmarks,
    }


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp('nets')
    config = HeadTrainConfig(nets=NETS, steps=100, batch=32, warmup=5)
    data, held_out = toy_heads(30, 4, 0), toy_heads(12, 4, 1)
    report = head_nets.train(config, data, held_out, out, quiet=True)
    return out, config, data, held_out, report


@pytest.mark.slow
def test_training_learns_and_reports_on_people_it_never_saw(trained):
    out, _, _, _, report = trained
    assert json.loads((out / 'report.json').read_text())['held_out'] == report['held_out']
    identity, coefficients = report['held_out']['identity'], report['held_out']['coefficients']
    assert identity['accuracy'] > 0.75 and identity['auc'] > 0.8
    assert identity['cosine_same'] > identity['cosine_different'] + 0.2
    assert coefficients['expression_correlation'] > 0.5
    assert identity['people'] == 12 and coefficients['pictures'] == 48


def test_stand_ins_load_and_are_named_as_such(trained):
    out, config, _, held_out, _ = trained
    bank = PerceptionBank.load({'head_nets': out / 'head_nets.safetensors'})
    assert bank.head_nets == config.nets
    assert bank.identity_kind() == 'head_identity' and bank.perceptual_kind() == 'pyramid'
    report = bank.report('head_features')
    for term in ('identity', 'perceptual', 'coefficients'):
        assert report[term].startswith('stand-in') and 'procedural heads' in report[term]
    image = jnp.asarray(held_out['rgb'][:3], jnp.float32) / 127.5 - 1
    options = LossConfig(perceptual_network='head_features', perceptual_scales_raw=1)

    @jax.jit
    def terms(bank, prediction):
        target = prepare_targets(bank, options, image, None, {'raw': 32})['raw']
        return image_terms(bank, options, prediction, target, 'raw')

    same, other = terms(bank, image), terms(bank, image[::-1])
    assert set(same) == {'raw/head_features', 'raw/identity'}
    assert all(abs(float(v)) < 1e-5 for v in same.values()) and all(float(v) > 1e-3 for v in other.values())
    estimate = bank.apply('head_coefficients', image)
    assert estimate.landmarks.shape == (3, 68, 2) and estimate.expression.shape == (3, 64)


@pytest.mark.slow
def test_an_interrupted_training_continues_to_the_same_numbers(trained, tmp_path):
    _, config, data, _, _ = trained
    step = head_nets.make_step(config)
    states = []
    for cuts in ((4,), (2, 4)):
        state, first = head_nets.init_state(config, data), 0
        for last in cuts:
            stream = head_nets.batches(config, data, first)
            for _ in range(first, last):
                state, _ = step(state, next(stream))
            state, first = jax.tree.map(np.asarray, state), last
        states.append(state)
    for a, b in zip(*(jax.tree.leaves(s) for s in states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_verification_accuracy_is_that_of_the_pairs():
    person = np.repeat(np.arange(6), 3)
    perfect = np.eye(6)[person]
    result = head_nets.verification(perfect, person)
    assert result['accuracy'] == 1.0 and result['auc'] == 1.0 and result['people'] == 6
    blind = np.ones((18, 4)) / 2
    assert head_nets.verification(blind, person)['accuracy'] == 0.5
    with pytest.raises(UserError, match='four people'):
        head_nets.verification(perfect[:6], person[:6])


def test_coefficient_errors_of_the_truth_are_zero():
    data = toy_heads(4, 3, 0)
    result = head_nets.coefficient_errors(head_nets.targets_of(data), data)
    assert result['expression_mae'] == 0 and result['landmarks_pixels'] == 0
    assert result['mouth_opening_correlation'] > 0.999 and result['expression_correlation'] > 0.999
