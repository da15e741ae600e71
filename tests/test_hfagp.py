"""HFA-GP's configuration, basis, encoders, rendering and checkpoint names."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import split_label
from avatar_jax.io.sound import write_wav
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.hfagp import basis, cameras, driving, losses, model, release
from avatar_jax.methods.hfagp.config import (
    ABLATIONS,
    DRIVERS,
    PRESET_DIFFERENCES,
    SHARED_CHOICES,
    BasisConfig,
    EncoderConfig,
    HFAGPConfig,
    LossConfig,
    ModelConfig,
)
from avatar_jax.methods.hfagp.encoders import ATTENDED, PictureEncoder, SoundEncoder, sound_neighbours
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.types import Avatar, Motion
from tests.parity import golden


def option(config, path):
    for name in path.split('.'):
        config = getattr(config, name)
    return config


def leaves(config, prefix=''):
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        nested = dataclasses.is_dataclass(value) and not hasattr(value, 'weight_decay')  # an optimizer is one option
        yield from leaves(value, f'{prefix}{f.name}.') if nested else [f'{prefix}{f.name}']


# ------------------------------------------------------------------------------------------------------------ options


def test_presets_differ_exactly_where_they_say():
    paper, published = HFAGPConfig.paper('sound'), HFAGPConfig.release('sound')
    different = {p for p in leaves(paper) if option(paper, p) != option(published, p)}
    assert different == {p for paths in PRESET_DIFFERENCES.values() for p in paths} | {'preset'}
    models = ModelConfig(settings=paper), ModelConfig(settings=published)
    for path in (p for paths in SHARED_CHOICES.values() for p in paths):
        path = path if path == 'label_mode' else f'settings.{path}'
        assert option(models[0], path) == option(models[1], path), path
    assert [HFAGPConfig.release(d).train.batch_size for d in DRIVERS] == [2, 1, 1]


def test_configurations_are_stored_and_changed():
    for config in (ModelConfig.full(), ModelConfig.heads('release', *DRIVERS), ModelConfig.tiny('paper', 'sound')):
        assert ModelConfig.from_dict(config.to_dict()) == config
    assert from_plain(HFAGPConfig, to_plain(HFAGPConfig.release('sound'))) == HFAGPConfig.release('sound')
    assert HFAGPConfig.paper().with_options({'basis': {'size': 7}}).basis.size == 7
    for name in ABLATIONS:
        config = HFAGPConfig.paper().ablation(name)
        assert (config == HFAGPConfig.paper()) == (name == 'k50')
    assert HFAGPConfig.paper().ablation('no_second_stage').train.tune_iter == 200_000
    full = ModelConfig.full()
    assert ModelConfig.of(GeneratorConfig.heads128()).settings.loss.size == 128
    assert (full.settings.loss.size, full.settings.encoder.picture_size) == (256, 256)


@pytest.mark.parametrize(
    ('make', 'text'),
    [
        (lambda: HFAGPConfig.paper('voice'), "drivers: ('voice',); use some of picture, coefficients, sound"),
        (lambda: HFAGPConfig(drivers=()), 'drivers: (); use some of'),
        (lambda: BasisConfig(0), 'basis.size: 0'),
        (lambda: BasisConfig(start='zero'), "basis.start: 'zero'"),
        (lambda: BasisConfig(start='average', offset=False), 'set basis.offset to true'),
        (lambda: EncoderConfig(picture_size=100), 'encoder.picture_size: 100'),
        (lambda: EncoderConfig(picture_channels=(1, 2)), 'need 7'),
        (lambda: EncoderConfig(sound_code=16), 'encoder.sound_code: 16'),
        (lambda: EncoderConfig(sound_features='fft'), "encoder.sound_features: 'fft'"),
        (lambda: EncoderConfig(sound_first='none'), "encoder.sound_first: 'none'"),
        (lambda: LossConfig(network='vgg'), "loss.network: 'vgg'"),
        (lambda: LossConfig(size=8), 'loss.size: 8'),
        (lambda: ModelConfig(GeneratorConfig.tiny()), 'settings.loss.size: 256; pictures have only 32 pixels'),
        (lambda: ModelConfig.tiny('fast'), "preset: 'fast'"),
        (lambda: HFAGPConfig.paper().ablation('k6'), "ablation 'k6'"),
        (lambda: HFAGPConfig.paper().with_options({'basis': {'sise': 5}}), "did you mean 'size'"),
        (
            lambda: dataclasses.replace(
                ModelConfig.tiny(), settings=ModelConfig.tiny().settings.with_options({'basis': {'size': 97}})
            ),
            'a code has only 96 numbers',
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(make, text):
    with pytest.raises(UserError) as error:
        make()
    assert text in str(error.value) and '\n' not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- basis


@pytest.mark.parametrize(('k', 'size'), [(1, 5), (6, 6), (12, 40), (50, 700)])
def test_signs_are_those_of_lapack(k, size):
    rng = np.random.default_rng([k, size])
    signs = jax.jit(basis.lapack_signs)
    for _ in range(5):
        q = np.linalg.qr(rng.normal(size=(size, k)).astype(np.float32))[0]
        turned = q * rng.choice([-1, 1], k).astype(np.float32)
        np.testing.assert_array_equal(turned * np.asarray(signs(jnp.asarray(turned))), q)


def test_basis_is_orthonormal_and_in_order():
    rng = np.random.default_rng(0)
    bases = jnp.asarray(rng.normal(size=(8, 96)), jnp.float32)
    q, r = jax.jit(basis.factorise)(bases)
    np.testing.assert_allclose(q.T @ q, np.eye(8), atol=2e-6)
    np.testing.assert_allclose(q @ r, bases.T, atol=1e-5)
    assert (np.tril(r, -1) == 0).all()
    # Later rows do not change earlier columns, and the length of a row changes none.
    other = bases.at[5:].set(jnp.asarray(rng.normal(size=(3, 96)), jnp.float32)) * jnp.arange(1, 9)[:, None]
    np.testing.assert_allclose(basis.directions(other)[:, :5], q[:, :5], atol=2e-6)
    # Weights keep their length in W+.
    alpha = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    codes = basis.combine(alpha, q, None, 6)
    assert codes.shape == (3, 6, 16)
    np.testing.assert_allclose(jnp.linalg.norm(codes.reshape(3, -1), axis=1), jnp.linalg.norm(alpha, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(basis.directions(bases, orthogonal=False), bases.T)
    with pytest.raises(UserError, match='cannot be orthogonal in 4 dimensions'):
        basis.factorise(jnp.ones((5, 4)))


def test_gradient_through_the_factorisation():
    rng = np.random.default_rng(1)
    bases, weight = rng.normal(size=(4, 20)), rng.normal(size=(20, 4)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(basis.directions(b) * weight)))(jnp.asarray(bases, jnp.float32))

    def value(b):
        return float((np.linalg.qr(b.T)[0] * weight).sum())

    for direction in rng.normal(size=(3, 4, 20)):
        slope = (value(bases + 1e-6 * direction) - value(bases - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-4, atol=1e-4)
    # Making a row longer changes nothing, so the gradient has no part along it... of the first row at least; the others
    # are orthogonal to what they add.
    np.testing.assert_allclose((np.asarray(gradient) * bases).sum(1), 0, atol=1e-5)


def test_a_device_with_other_signs_is_noticed(monkeypatch):
    bases = jnp.asarray(np.random.default_rng(2).normal(size=(6, 30)), jnp.float32)
    expected, note = basis.checked_directions(bases)
    assert not note
    jax.clear_caches()
    monkeypatch.setattr(basis, 'lapack_signs', lambda q: jnp.asarray([1, -1, 1, 1, 1, 1], q.dtype))
    found, note = basis.checked_directions(bases)
    assert 'on the host' in note
    np.testing.assert_allclose(found, expected, atol=1e-6)
    monkeypatch.undo()
    jax.clear_caches()
    assert basis.checked_directions(bases, orthogonal=False)[1] == ''


# ----------------------------------------------------------------------------------------------------------- encoders


@pytest.mark.slow
def test_published_sizes():
    """The numbers of parameters that the published networks have."""

    def count(tree):
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))

    picture = jax.eval_shape(PictureEncoder().init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
    assert count(picture) + 12 * 16 == 22_712_114  # with the twelve blur kernels that are buffers there
    sound = jax.eval_shape(
        lambda: SoundEncoder().init(jax.random.key(0), jnp.zeros((1, ATTENDED, 16, 29)), method='both')
    )['params']
    assert count(sound['net']) == 32_800
    full = ModelConfig.full('release', 'coefficients')
    assert count(model.abstract(full)['params']['encoder']['coefficients']) == 1_378_354
    assert model.abstract(full)['params']['basis']['shared']['bases'].shape == (50, 7168)


def test_neighbours_of_a_frame():
    windows = np.random.default_rng(0).normal(size=(5, 16, 29)).astype(np.float32)
    near = np.asarray(sound_neighbours(windows, jnp.arange(5)))
    for i in range(5):
        for j in range(ATTENDED):
            frame = i - 4 + j
            np.testing.assert_array_equal(near[i, j], windows[frame] if 0 <= frame < 5 else 0)


@pytest.mark.slow
def test_smoothing_of_a_steady_sound_changes_nothing():
    module = SoundEncoder(4, 8, 32)
    window = jnp.asarray(np.random.default_rng(3).normal(size=(2, 16, 29)), jnp.float32)
    many = jnp.repeat(window[:, None], ATTENDED, 1)
    variables = jax.jit(partial(module.init, method='both'))(jax.random.key(0), many)
    one, smooth = jax.jit(lambda v: (module.apply(v, window), module.apply(v, many, True)))(variables)
    np.testing.assert_allclose(one, smooth, atol=1e-5)
    assert np.abs(one[0] - one[1]).max() > 1e-3


@pytest.mark.slow
def test_first_values_let_the_sound_through():
    """PyTorch's hardly do, and then the mouth does not follow the sound in a training of minutes."""
    windows = jnp.asarray(np.random.default_rng(4).uniform(size=(16, 16, 29)), jnp.float32)
    share = {}
    for first in ('pytorch', 'he'):
        module = SoundEncoder(8, 16, 32, first)
        weights = jax.jit(lambda module=module: module.init_with_output(jax.random.key(0), windows)[0])()
        share[first] = float(weights.std(0).mean() / jnp.abs(weights.mean(0)).mean())
    assert share['pytorch'] < 0.05 and share['he'] > 0.2, share


def test_wrong_signals_are_refused_in_one_line():
    config = ModelConfig.tiny('paper', 'coefficients', 'sound')
    check = partial(model.check_signal, config)
    check('coefficients', np.zeros((3, 7)))
    for driver, signal, text in (
        ('picture', np.zeros((1, 32, 32, 3)), 'was trained for coefficients, sound'),
        ('coefficients', np.zeros((3, 76)), 'has 76 coefficients per frame, this avatar was trained with 7'),
        ('sound', np.zeros((3, 8, 29)), 'windows of 8 rows of 29'),
        ('coefficients', np.zeros((0, 7)), 'no frames'),
        ('coefficients', np.full((2, 7), np.nan), 'NaN or infinite'),
    ):
        with pytest.raises(UserError, match=text):
            check(driver, signal)
    model.check_sound_features(config, 'mel')
    with pytest.raises(UserError, match='gives deepspeech features, this avatar was trained with mel'):
        model.check_sound_features(config, 'deepspeech')


# --------------------------------------------------------------------------------------------------- loss and cameras


def test_the_stand_in_says_its_name():
    config, bank = LossConfig(size=32), PerceptionBank()
    target, image = jnp.zeros((1, 32, 32, 3)), jnp.full((1, 64, 64, 3), 0.5)
    total, parts = jax.jit(lambda a, b: losses.terms(config, losses.distance_of(config, bank), a, b))(target, image)
    assert set(parts) == {'mse', 'pyramid'} and 'in the place of LPIPS' in losses.report(config, bank)
    np.testing.assert_allclose(parts['mse'], 0.25)
    np.testing.assert_allclose(total, parts['mse'] + 0.2 * parts['pyramid'], rtol=1e-5)
    off = dataclasses.replace(config, network='none')
    assert set(losses.terms(off, losses.distance_of(off, None), target, image)[1]) == {'mse'}
    assert losses.report(dataclasses.replace(config, pyramid=0.0), None) == 'off'
    with pytest.raises(UserError, match='needs the weights of alexnet and of lpips_alex'):
        losses.distance_of(dataclasses.replace(config, network='lpips'), bank)


def test_orbit_looks_at_the_head():
    labels = cameras.orbit_labels(8, 8)
    pose, intrinsics = (np.asarray(x) for x in split_label(labels))
    np.testing.assert_allclose(np.linalg.norm(pose[:, :3, 3], axis=1), 2.7, rtol=1e-6)
    np.testing.assert_allclose(pose[:, :3, 2], -pose[:, :3, 3] / 2.7, atol=1e-6)  # z looks at the origin
    np.testing.assert_allclose(np.linalg.det(pose[:, :3, :3]), 1, atol=1e-6)
    np.testing.assert_allclose(intrinsics[0], [[4.2647, 0, 0.5], [0, 4.2647, 0.5], [0, 0, 1]])
    front = cameras.front_label()
    np.testing.assert_allclose(front[:16].reshape(4, 4)[:3, 3], [0, 0, 2.7], atol=1e-6)
    np.testing.assert_allclose(front[:16].reshape(4, 4)[:3, :3], np.diag([1, -1, -1]), atol=1e-6)
    kept = front.copy()
    assert not np.array_equal(cameras.flip_axes(front), front)
    np.testing.assert_array_equal(front, kept)  # labels are never changed in place


# ---------------------------------------------------------------------------------------------------------- rendering


@pytest.fixture(scope='module')
def tiny():
    """A model of all drivers with one of its avatars, and signals of five frames."""
    config = ModelConfig.tiny('paper', *DRIVERS)
    rng = np.random.default_rng(0)

    def draw(path, leaf):  # without compiling the initialisation
        names = [p.key for p in path]
        plain = 'net' in names or 'attention' in names
        return jnp.asarray((0.15 if plain else 1.0) * rng.normal(size=leaf.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, model.abstract(config))
    signals = {d: rng.normal(size=(5, *model.signal_shape(config, d))).astype(np.float32) for d in DRIVERS}
    return config, variables, Avatar(model.identity_of(variables)), signals, cameras.orbit_labels(5, 5)


@pytest.mark.slow
def test_animation_by_every_driver(tiny):
    config, variables, avatar, signals, labels = tiny
    run = jax.jit(model.animate, static_argnames=('config', 'chunk', 'smooth', 'sr'))
    sound = {'sound': signals['sound']}
    frames = run(variables, config, avatar, sound, labels, chunk=5)
    assert frames.rgb.shape == (5, 32, 32, 3) and frames.raw.shape == (5, 16, 16, 3)
    assert np.isfinite(frames.rgb).all() and np.abs(frames.rgb).max() <= 1
    vectors = jax.jit(model.prepare, static_argnums=1)(variables, config, avatar.identity)
    again = run(variables, config, avatar, sound, labels, chunk=2, vectors=vectors)
    np.testing.assert_allclose(again.rgb, frames.rgb, atol=1e-3)  # chunks and the kept factorisation change nothing
    np.testing.assert_allclose(again.depth, frames.depth, atol=1e-2)
    still = run(variables, config, avatar, {'sound': signals['sound'][::-1]}, labels, chunk=5)
    assert np.abs(still.rgb - frames.rgb).max() > 1e-3  # it is the signal that moves the face
    # An avatar's own basis is what counts, not the model's.
    turned = {'shared': {**avatar.identity['basis']['shared'], 'delta': jnp.ones(96)}}
    changed = run(variables, config, Avatar({**avatar.identity, 'basis': turned}), sound, labels, chunk=5)
    assert np.abs(changed.rgb - frames.rgb).max() > 1e-3
    for driver in ('picture', 'coefficients'):
        raw = run(variables, config, avatar, {driver: signals[driver]}, labels, chunk=5, sr=False)
        assert raw.rgb.shape == (5, 16, 16, 3) and np.isfinite(raw.rgb).all()
        np.testing.assert_array_equal(raw.rgb, raw.raw)
    smooth = run(variables, config, avatar, sound, labels, chunk=5, sr=False, smooth=True)
    assert np.abs(smooth.raw - frames.raw).max() > 1e-4


def test_animation_refuses_what_does_not_fit(tiny):
    config, variables, avatar, signals, labels = tiny
    with pytest.raises(ValueError, match='one driver'):
        model.animate(variables, config, avatar, signals, labels)
    with pytest.raises(UserError, match='7'):
        model.animate(variables, config, avatar, {'coefficients': np.zeros((5, 76))}, labels)
    with pytest.raises(UserError, match='smoothing in time is for sound'):
        model.animate(variables, config, avatar, {'coefficients': signals['coefficients']}, labels, smooth=True)
    with pytest.raises(ValueError, match='need labels'):
        model.animate(variables, config, avatar, {'sound': signals['sound']}, labels[:4])


def test_codes_and_previews(tiny):
    config, variables, _, signals, _ = tiny
    params, k = variables['params'], config.settings.basis.size

    @jax.jit
    def run(params):
        weights = model.weights_of(params, config, 'coefficients', signals['coefficients'])
        return (
            weights,
            model.codes_of(params, config, 'coefficients', weights),
            *(model.preview_codes(params, config, d) for d in ('picture', 'sound')),
        )

    weights, codes, ten, five = run(params)
    delta = params['basis']['shared']['delta']
    length = jnp.linalg.norm(codes.reshape(5, -1) - delta, axis=1)
    np.testing.assert_allclose(length, jnp.linalg.norm(weights, axis=1), rtol=1e-4, atol=1e-4)
    for preview, size in ((ten, 10), (five, 5)):
        moved = (preview - delta.reshape(preview.shape[1:])).reshape(k, -1)
        np.testing.assert_allclose(moved @ moved.T, size**2 * np.eye(k), atol=1e-3)
    softmax = dataclasses.replace(config, settings=config.settings.with_options({'encoder': {'softmax': True}}))
    share = model.weights_of(params, softmax, 'coefficients', signals['coefficients'])
    np.testing.assert_allclose(share.sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_bases_of_their_own_and_starts():
    config = ModelConfig.tiny('paper', *DRIVERS)
    own = dataclasses.replace(config, settings=config.settings.with_options({'basis': {'shared': False}}))
    tree = model.abstract(own)['params']['basis']
    assert set(tree) == set(DRIVERS) and model.basis_name(own, 'sound') == 'sound'
    plain = dataclasses.replace(config, settings=config.settings.with_options({'basis': {'offset': False}}))
    assert set(model.abstract(plain)['params']['basis']['shared']) == {'bases'}
    average = dataclasses.replace(config, settings=config.settings.with_options({'basis': {'start': 'average'}}))
    code = jnp.arange(16.0)
    delta = basis.init_basis(jax.random.key(0), 6, 6, 16)
    np.testing.assert_allclose(delta['delta'], delta['bases'].mean(0), atol=1e-6)
    found = model.init_personal(average, jax.random.key(1), code)
    np.testing.assert_array_equal(found['basis']['shared']['delta'].reshape(-1, 16)[3], code)


def test_weight_file_round_trip(tiny, tmp_path):
    config, variables, *_ = tiny
    digest = model.save_model(tmp_path / 'a.safetensors', variables, config, {'seed': 0})
    found, again, sha256, provenance = model.load_model(tmp_path / 'a.safetensors')
    assert (again, sha256, provenance['seed']) == (config, digest, 0)
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, variables))
    larger = dataclasses.replace(config, settings=config.settings.with_options({'basis': {'size': 8}}))
    with pytest.raises(UserError, match='bases'):
        model.save_model(tmp_path / 'b.safetensors', variables, larger, {})


# --------------------------------------------------------------------------------------------------- checkpoint names


@pytest.mark.slow
def test_names_of_the_published_checkpoints():
    """Every key that the released checkpoints are known to have, at full size."""
    expected = {
        'bases': (50, 7168),
        'delta': (7168,),
        'encoder.net_app.convs.0.0.weight': (64, 3, 1, 1),
        'encoder.net_app.convs.0.1.bias': (1, 64, 1, 1),
        'encoder.net_app.convs.7.weight': (512, 512, 4, 4),
        'encoder.fc.4.weight': (50, 512),
        'encoder.fc.4.bias': (50,),
    }
    sizes = [(64, 128), (128, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    for i, (a, b) in enumerate(sizes, 1):
        place = f'encoder.net_app.convs.{i}'
        expected |= {
            f'{place}.conv1.0.weight': (a, a, 3, 3),
            f'{place}.conv1.1.bias': (1, a, 1, 1),
            f'{place}.conv2.0.kernel': (4, 4),
            f'{place}.conv2.1.weight': (b, a, 3, 3),
            f'{place}.conv2.2.bias': (1, b, 1, 1),
            f'{place}.skip.0.kernel': (4, 4),
            f'{place}.skip.1.weight': (b, a, 1, 1),
        }
    expected |= {f'encoder.fc.{i}.weight': (512, 512) for i in range(4)}
    expected |= {f'encoder.fc.{i}.bias': (512,) for i in range(4)}

    def personal(driver):
        config = ModelConfig.full('release', driver)
        if driver == 'sound':
            config = dataclasses.replace(config, settings=HFAGPConfig.release('sound'))
        shapes = model.abstract(config)
        zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
        return config, release.state_dicts(zeros, config)

    _, sections = personal('picture')
    own = {k: v.shape for k, v in sections['gen'].items() if not k.startswith('generator.')}
    assert own == expected
    generator = {k.removeprefix('generator.'): v.shape for k, v in sections['gen'].items() if 'generator.' in k}
    assert len(generator) == 176  # of EG3D's FFHQ generator of 512 pixels
    if (table := golden.root() / 'eg3d' / 'state_dict_ffhq512.json').is_file():
        assert generator == {key: tuple(shape) for key, shape, *_ in json.loads(table.read_text())['G']}
    linear = {f'weights_3dmm.fc.{i}.weight': (512, 512) for i in range(1, 6)}
    linear |= {f'weights_3dmm.fc.{i}.bias': (512,) for i in range(6)}
    linear |= {'weights_3dmm.fc.6.weight': (50, 512), 'weights_3dmm.fc.6.bias': (50,)}
    linear |= {'bases': (50, 7168), 'delta': (7168,)}
    for driver, inputs in (('coefficients', 76), ('sound', 64)):
        _, sections = personal(driver)
        own = {k: v.shape for k, v in sections['gen'].items() if not k.startswith('generator.')}
        assert own == linear | {'weights_3dmm.fc.0.weight': (512, inputs)}
    assert {k: v.shape for k, v in sections['AudNet'].items() if k.endswith('weight')} == {
        'encoder_conv.0.weight': (32, 29, 3),
        'encoder_conv.2.weight': (32, 32, 3),
        'encoder_conv.4.weight': (64, 32, 3),
        'encoder_conv.6.weight': (64, 64, 3),
        'encoder_fc1.0.weight': (64, 64),
        'encoder_fc1.2.weight': (64, 64),
    }
    assert [sections['AudAttNet'][f'attentionConvNet.{i}.weight'].shape for i in (0, 2, 4, 6, 8)] == [
        (16, 32, 3),
        (8, 16, 3),
        (4, 8, 3),
        (2, 4, 3),
        (1, 2, 3),
    ]
    assert sections['AudAttNet']['attentionNet.0.weight'].shape == (8, 8)


@pytest.mark.parametrize('driver', DRIVERS)
@pytest.mark.slow
def test_checkpoints_come_in_and_go_out(driver):
    config = ModelConfig.tiny('release', driver)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), model.abstract(config))
    sections = release.state_dicts(variables, config)
    assert release.driver_of(sections) == driver
    whole = {f'{name}.{key}': value for name, flat in sections.items() for key, value in flat.items()}
    again = release.sections_of(whole | {'g_optim/state/0/step': np.zeros(1), 'args': np.zeros(1)})
    assert {n: set(f) for n, f in again.items()} == {n: set(f) for n, f in sections.items()}
    with pytest.raises(UserError, match='d_optim'):
        release.sections_of(whole | {'d_optim.x': np.zeros(1)})
    sections = again
    found = release.config_of(sections, config.generator)
    e, own = found.settings.encoder, config.settings.encoder
    assert (found.settings.basis.size, e.width) == (config.settings.basis.size, own.width)
    assert (e.picture_channels, e.picture_size) == (own.picture_channels, own.picture_size) or driver != 'picture'
    again, unused = release.variables_of(sections, found)
    assert not unused
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    # A second person's basis is left out unless it is asked for.
    sections['gen'] |= {'bases_2': sections['gen']['bases'] + 1, 'delta_2': sections['gen']['delta'] + 1}
    first, unused = release.variables_of(sections, found)
    assert unused == ['gen:bases_2', 'gen:delta_2']
    second, _ = release.variables_of(sections, found, person=2)
    np.testing.assert_array_equal(
        second['params']['basis']['shared']['bases'], first['params']['basis']['shared']['bases'] + 1
    )
    # Another k, a missing entry, an unknown one.
    other = dataclasses.replace(found, settings=found.settings.with_options({'basis': {'size': 5}}))
    with pytest.raises(UserError, match='bases'):
        release.variables_of(sections, other)
    sections['gen']['encoder.more'] = sections['gen'].pop('delta')
    with pytest.raises(UserError, match='1 entries are missing and 1 unknown'):
        release.variables_of(sections, found)
    with pytest.raises(UserError, match='not one of HFA-GP'):
        release.driver_of({'gen': {'x': np.zeros(1)}})


# --------------------------------------------------------------------------------------------------------- the drivers


def test_signals_of_motions_pictures_and_sounds(tmp_path):
    config = ModelConfig.tiny('paper', *DRIVERS)
    motion = Motion(np.zeros((4, 7)), np.zeros((4, 3)), np.zeros((4, 3)), basis='procedural')
    assert driving.coefficient_signal(config, motion)['coefficients'].shape == (4, 7)
    with pytest.raises(UserError, match="trained with 'procedural'"):
        driving.coefficient_signal(config, motion.replace(basis='bfm'))
    with pytest.raises(UserError, match='has 64 coefficients'):
        driving.coefficient_signal(config, motion.replace(expression=np.zeros((4, 64))), 'talk.npz')
    crops = [np.full((64, 64, 3), v, np.uint8) for v in (0, 255)]
    found = driving.picture_signal(config, crops)['picture']
    assert found.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [-1, 1])
    for bad, text in (([], 'no frames of picture'), ([np.zeros((4, 5, 3), np.uint8)], 'square')):
        with pytest.raises(UserError, match=text):
            driving.picture_signal(config, bad)
    write_wav(tmp_path / 'a.wav', np.sin(np.arange(16000) / 3))
    signal, heard = driving.sound_windows(config, tmp_path / 'a.wav')
    assert signal['sound'].shape == (25, 16, 29) and heard.features == 'mel'
    np.save(tmp_path / 'aud.npy', np.zeros((25, 16, 29)))
    with pytest.raises(UserError, match='gives deepspeech features, but this avatar reads mel'):
        driving.sound_windows(config, tmp_path / 'aud.npy', np.arange(5) / 25)
    with pytest.raises(UserError, match='was trained for coefficients'):
        driving.sound_windows(ModelConfig.tiny('paper', 'coefficients'), tmp_path / 'a.wav')
