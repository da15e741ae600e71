"""Networks that the user gives: each works under its own name or is refused, and what cannot be computed is said."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from avatar_jax.errors import UserError
from avatar_jax.eval import estimators
from avatar_jax.eval.cases import TrueViews
from avatar_jax.eval.protocols import CaseResult, _through_networks
from avatar_jax.faces.recon import METHOD as RECON
from avatar_jax.faces.recon import ReconConfig, ReconNet
from avatar_jax.io.weights import save_weights
from avatar_jax.losses import perception
from avatar_jax.losses.identity import FACE_NETWORKS, aligned_colour, aligned_dlib, aligned_gray, face_matrix
from avatar_jax.losses.networks import refuse_unused
from avatar_jax.losses.perception import NetworkKind, PerceptionBank
from avatar_jax.methods.base import Source, method
from avatar_jax.methods.gpavatar.build import similarities
from avatar_jax.methods.otavatar import build, invert
from avatar_jax.methods.otavatar.losses import LossConfig, image_terms, left_out, looks_through, prepare_targets
from avatar_jax.methods.otavatar.model import ModelConfig
from avatar_jax.models.perception.arcface import to_gray
from avatar_jax.ops.coefficients import SLICES
from tests.tiny_model import portrait


class Mean(nn.Module):
    """Stands for a recognition network: three numbers of a face."""

    channels: int

    @nn.compact
    def __call__(self, x):
        weight = self.param('weight', nn.initializers.ones, (self.channels, 3))
        return x[:, 20:100:7, 20:100:7].mean((1, 2)) @ weight + jnp.array([1.0, 0.5, 0.2])


@pytest.fixture
def bank(monkeypatch):
    """A bank with every recognition network, each a tiny one of the right input."""
    found = PerceptionBank()
    for name, seen in FACE_NETWORKS.items():
        channels = 1 if seen.cut is aligned_gray else 3
        side = 128 if channels == 1 else 150 if seen.cut is aligned_dlib else 112
        kind = NetworkKind(lambda c=channels: Mean(c), (side, side, channels), 'tiny')
        monkeypatch.setitem(perception.NETWORKS, name, kind)
        found = found.with_network(name, {'params': {'weight': np.eye(channels, 3)}}, f'{name}.npz')
    return found


def only(bank, *names):
    return dataclasses.replace(bank, weights={k: v for k, v in bank.weights.items() if k in names})


@pytest.mark.slow
def test_every_recognition_network_is_an_identity_loss_under_its_own_name(bank):
    image = jnp.asarray(portrait(0).image)[None]
    marks = jnp.asarray(portrait(0).landmarks)[None]
    config = LossConfig(pyramid=0.0, local=0.0)

    def term(bank, prediction):
        target = prepare_targets(bank, config, image, marks, {'raw': 32})['raw']
        return image_terms(bank, config, prediction, target, 'raw')['raw/identity']

    for name, seen in FACE_NETWORKS.items():
        held = only(bank, name)
        assert held.identity_kind() == name and looks_through(held, config) == (name,)
        assert held.report()['identity'] == f'{seen.title} ({name}.npz)'
        same, gradient = jax.value_and_grad(lambda x, held=held: term(held, x))(image)
        assert abs(float(same)) < 1e-6
        assert float(term(held, -image)) > 1e-3 and np.isfinite(gradient).all()
        assert estimators.from_bank(held).report()['identity'].startswith(seen.title)


@pytest.mark.slow
def test_colour_faces_are_cut_as_gray_ones_are():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(-1, 1, (1, 64, 64, 3)), jnp.float32)
    matrix = face_matrix(jnp.asarray(portrait(1, 64).landmarks)[None])
    gray, colour = aligned_gray(image, matrix), aligned_colour(image, matrix)
    assert gray.shape == (1, 128, 128, 1) and colour.shape == (1, 112, 112, 3)
    inside = aligned_gray(jnp.ones_like(image), matrix)[:, :112, :112] > 0.999
    np.testing.assert_allclose(jnp.where(inside, to_gray(colour) - gray[:, :112, :112], 0), 0, atol=2e-4)
    far = aligned_colour(image, matrix.at[:, :, 2].add(1e4))
    np.testing.assert_array_equal(far, -1)


def test_terms_that_cannot_be_computed_are_named(bank):
    assert left_out(bank, LossConfig(), True) == {}
    found = left_out(bank, LossConfig(), False)
    assert set(found) == {'local', 'identity'} and 'ArcFace-18 needs 68 landmarks' in found['identity']
    assert left_out(bank, LossConfig(local=0.0, identity=0.0), False) == {}
    assert left_out(bank, LossConfig(local=0.0, identity_network='none'), False) == {}
    assert left_out(PerceptionBank(), LossConfig(), True) == {'identity': 'no face recognition network was given'}


def test_a_report_lists_what_was_computed_and_what_was_not(monkeypatch, bank):
    config = ModelConfig.tiny('release')

    def inverted(*args, **kwargs):
        terms = {'raw/pyramid': jnp.float32(1.5)}
        zero = jnp.float32(0)
        stage = types.SimpleNamespace(curve=np.zeros(3))
        return [invert.Inversion(None, [stage], zero, zero, terms, zero, zero, zero)]

    monkeypatch.setattr(invert, 'invert_people', inverted)
    monkeypatch.setattr(invert, 'report', lambda found: {})
    model = types.SimpleNamespace(config=config, variables={}, sha256='', provenance={})
    options = method('otavatar').build_options()
    made = portrait(0).replace(landmarks=None, source='a.png')
    (built,) = build.build_many(
        model, [Source([made])], options, bank=bank, key=None, on_step=lambda done, **numbers: None
    )
    assert built.report['losses']['computed'] == {'raw/pyramid': 1.5}
    assert set(built.report['losses']['left_out']) == {'local', 'identity'}
    assert built.report['networks']['identity'].startswith('off: ArcFace-18 needs')
    assert len(built.notes) == 2 and all(note.startswith('a.png: the ') for note in built.notes)


def test_a_network_that_nothing_uses_is_refused(bank):
    used = looks_through(bank, LossConfig())
    assert used == ('arcface18',)
    refuse_unused(['arcface18=a.npz'], used, 'it')
    refuse_unused(['head_nets=a.safetensors'], ('head_identity',), 'it')
    for name in ('iresnet50', 'alexnet', RECON, 'head_nets'):
        with pytest.raises(UserError, match=rf'--perception {name}: it looks through arcface18; leave {name} out'):
            refuse_unused([f'{name}=a.npz'], used, 'it')
    assert method('gpavatar').used_networks(None, bank) == ('arcface18',)
    assert method('otavatar').used_networks(ModelConfig.tiny(), bank) == ('arcface18',)
    assert method('eg3d').used_networks(None, bank) == ()
    assert estimators.looks_through(bank, 'irse50') == ('irse50',)
    with pytest.raises(UserError, match="'iresnet18' needs the weights"):
        estimators.from_bank(only(bank, 'ir50'), 'iresnet18')


def test_portraits_that_cannot_be_compared_are_named(bank):
    pair = [portrait(0), portrait(1)]
    found, why = similarities(only(bank, 'iresnet50'), pair)
    assert found['network'] == 'insightface iResNet-50 (iresnet50.npz)' and not why and len(found['values']) == 1
    found, why = similarities(bank, [pair[0], pair[1].replace(landmarks=None)])
    assert found is None and 'needs 68 landmarks' in why and 'were not compared' in why
    assert similarities(bank, pair[:1]) == (None, '')
    assert 'not checked' in similarities(PerceptionBank(), pair)[1]


def test_portraits_keep_what_is_known_of_them_in_company():
    people = [portrait(0), portrait(1).replace(landmarks=None), portrait(2), portrait(3).replace(mask=None)]
    assert invert.alike(people) == [[0, 2], [1], [3]]


@pytest.mark.slow
def test_deep3d_measures_expression_and_pose(tmp_path):
    config = ReconConfig(4, (2, 2, 2, 2), (1, 1, 1, 1))
    net = ReconNet(config)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.tree.map(lambda x: np.asarray(x) + 0.01 * np.arange(x.size).reshape(x.shape) % 0.3, variables)
    file = tmp_path / 'recon.safetensors'
    save_weights(file, variables, method=RECON, config=dataclasses.asdict(config), provenance={})
    found = estimators.from_bank(PerceptionBank.load({RECON: file}))
    assert found.coefficients.name.startswith('Deep3DFaceRecon (recon.safetensors')
    assert estimators.looks_through(PerceptionBank.load({RECON: file})) == (RECON,)
    people = [portrait(i, 64) for i in range(2)]
    images, marks = jnp.stack([jnp.asarray(p.image) for p in people]), np.stack([p.landmarks for p in people])
    vector = np.asarray(found.coefficients.call(images, marks))
    assert vector.shape == (2, 257) and np.abs(vector[:, SLICES['exp']]).max() > 0
    seen = estimators.regressor_input(images, marks)
    np.testing.assert_allclose(vector, net.apply(variables, seen), rtol=1e-5, atol=1e-5)

    def measured(marks):
        views = TrueViews(np.zeros((2, 27, 70)), np.zeros((2, 25)), np.asarray(images), None, marks)
        case, result = types.SimpleNamespace(source=views, cross=False, portrait=people[0]), CaseResult()
        _through_networks(result, 'driven', np.asarray(images), views, case, found)
        return result

    assert measured(marks).scores['driven.aed'] == 0
    assert 'driven.aed' not in measured(None).scores
    assert 'needs landmarks of the data' in measured(None).unavailable['driven.aed']
