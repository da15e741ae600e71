"""HFA-GP through the interface of all methods: training runs, avatars of videos, what drives them, bad input."""

import dataclasses

import jax
import numpy as np
import pytest

from avatar_jax.cli import main
from avatar_jax.driving.signals import make_drive
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.sound import Sound, write_wav
from avatar_jax.methods import base
from avatar_jax.methods.base import Source
from avatar_jax.methods.hfagp import build, model, prior
from avatar_jax.methods.hfagp.config import DRIVERS, ModelConfig
from avatar_jax.methods.hfagp.driving import PictureRows
from avatar_jax.methods.hfagp.method import METHOD, BuildOptions, table_run
from avatar_jax.methods.model import Model, choose_model, load_avatar, load_model, save_avatar
from avatar_jax.train.run import PersonConfig
from avatar_jax.types import Camera, Drive, Motion, Portrait
from launch.config_args import load_run
from tests.hfagp_tiny import generator_alone, with_blank_person
from tests.runs import copied_as_if_killed, shared_programs

SIZE, FRAMES, FPS = 32, 27, 5.0


def tiny(*drivers, coefficients=64, **options):
    config = ModelConfig.tiny('paper', *(drivers or ('coefficients',)))
    changes = {**options, 'encoder': {'coefficients': coefficients, **options.get('encoder', {})}}
    return dataclasses.replace(config, settings=config.settings.with_options(changes))


def portraits(count=FRAMES, coefficients=64, **changes):
    """Frames whose colour follows the first coefficient; changes of frame 3."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        expression = rng.uniform(0, 1, coefficients).astype(np.float32)
        image = np.full((SIZE, SIZE, 3), 0.1 * expression[0] + 0.5, np.float32)
        label = label_from_pose(rng.normal(0, 0.05, (1, 3)), np.zeros((1, 3)), 'raw').astype(np.float32)[0]
        found.append(Portrait(image, Camera.from_label(label), expression, basis='procedural'))
    if changes:
        found[3] = found[3].replace(**changes)
    return found


def video(frames=None, fps=FPS, **more):
    return Source(portraits() if frames is None else frames, 'video', 'talk', fps, **more)


def tiny_model(config=None, person=False):
    """A model with a generator alone, or with a person, too."""
    config = tiny() if config is None else config
    variables = with_blank_person(config) if person else generator_alone(config.generator)
    return Model(METHOD, config, variables, sha256='abc', path='tiny')


@pytest.fixture(scope='module')
def tone(tmp_path_factory):
    """A sound as long as the video."""
    path = tmp_path_factory.mktemp('sound') / 'tone.wav'
    times = np.arange(int(FRAMES / FPS * 16000)) / 16000
    write_wav(path, 0.3 * np.sin(2 * np.pi * 300 * times) * (np.sin(7 * times) > 0))
    return path


# --------------------------------------------------------------------------------------------------------- declarations


def test_the_method_is_declared():
    assert base.method('hfagp') is METHOD and METHOD.has_avatars and not METHOD.joins_portraits
    for driver in DRIVERS:
        assert METHOD.signals_of(tiny(driver)) == (driver,)
    assert METHOD.signals_of(tiny('sound', 'picture')) == ('sound',)
    table = METHOD.tables['hfagp4']
    assert set(table.variants) == {'k5', 'k10', 'k20', 'k50', 'not_orthogonal', 'no_second_stage'}
    for variant in table.variants:
        for size in table.sizes:
            _, config = load_run(*table_run(variant, size, 2, 20, 'pictures'))
            train = config.model.settings.train
            assert config.model.settings.drivers == ('picture',) and config.data.person == 2
            assert (train.iterations, train.tune_iter) == (20, 20 if variant == 'no_second_stage' else 2)
            assert config.model.settings.basis.orthogonal == (variant != 'not_orthogonal')
            assert config.model.settings.basis.size == (
                int(variant[1:]) if variant[0] == 'k' else config.model.settings.basis.size
            )


@pytest.mark.parametrize('variant', ['', 'release', 'full,sound', 'tracked,picture,sound', 'tiny,release,k5'])
def test_variants_of_the_config(variant):
    _, config = load_run(f'hfagp_heads:{variant}' if variant else 'hfagp_heads', [])
    assert config.model.settings.preset == ('release' if 'release' in variant else 'paper')
    assert config.data.source == ('tracked' if 'tracked' in variant else 'talking')
    with pytest.raises(UserError, match="variant 'k6'"):
        load_run('hfagp_heads:k6', [])


@pytest.mark.slow
def test_the_shipped_prior_is_taken():
    found = choose_model('hfagp', None)
    assert found.method is METHOD and found.config.settings.drivers == ('coefficients',)
    assert not prior.knows_a_person(found.variables) and found.sha256 == load_model('heads128').sha256
    with pytest.raises(UserError, match='holds a generator alone'):
        prior.with_person(found.variables, found.config, jax.random.key(0), True, 'heads128')


# -------------------------------------------------------------------------------------------------------- training runs


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PYTHONWARNINGS', 'ignore')
    spec = ['train', '--config', 'configs/hfagp_heads.py:tiny', f'--config.data.folder={tmp_path / "talk"}']
    with shared_programs():
        with copied_as_if_killed(tmp_path / 'whole', tmp_path / 'parts', 3):
            assert main([*spec, '--out', str(tmp_path / 'whole')]) == 0
        assert main([*spec, '--out', str(tmp_path / 'parts'), '--resume']) == 0
    whole, parts = (load_model(tmp_path / name / 'weights.safetensors') for name in ('whole', 'parts'))
    jax.tree.map(np.testing.assert_array_equal, whole.variables, parts.variables)
    scores = whole.provenance['scores']['coefficients']
    assert np.isfinite([scores['train']['psnr'], scores['unseen']['psnr']]).all()
    assert METHOD.tables['hfagp4'].protocol(whole, 1) == scores
    # Trained further, here for no step: the person in the weights.
    kept = whole.build(video(), further=True, steps=0)
    jax.tree.map(np.testing.assert_array_equal, kept.avatar.identity, dict(whole.variables['params']))
    assert kept.avatar.config.settings.train.iterations == 4
    # The run's folder is an avatar, too.
    avatar, film = load_avatar(tmp_path / 'whole'), tmp_path / 'v.mp4'
    assert avatar.weights == whole.sha256
    options = ['--weights', str(tmp_path / 'whole' / 'weights.safetensors'), '--out', str(film)]
    assert main(['animate', '--avatar', str(tmp_path / 'whole'), '--motion', 'speech:0:3', *options]) == 0
    assert film.stat().st_size > 100
    capsys.readouterr()
    # Another person in the same folder is not trained on by mistake.
    assert main([*spec, '--out', str(tmp_path / 'x'), '--config.data.person=1']) == 2
    assert 'is the video of person 0, but data.person is 1' in capsys.readouterr().err
    assert main([*spec, '--out', str(tmp_path / 'x'), '--config.model.settings.encoder.coefficients=76']) == 2
    assert 'has 64 coefficients per frame, this avatar was trained with 76' in capsys.readouterr().err


def test_options_of_the_data_that_are_not_read_are_refused():
    for options, text in (
        ({'source': 'film'}, "data.source: 'film'"),
        ({'folder': ''}, 'data.folder'),
        ({'axes': 'opengl'}, "data.axes: is not read with data.source='talking'"),
        ({'source': 'released', 'sound': 'a.wav'}, 'data.sound: is not read'),
    ):
        with pytest.raises(UserError, match=text):
            PersonConfig(**({'folder': 'x'} | options))


# -------------------------------------------------------------------------------------------------------------- avatars


# Of these configurations all builds below are, so that they share their programs.
RATES = {'optimizer': {'lr': 0.02}, 'generator_optimizer': {'lr': 0.005}}


@pytest.mark.slow
def test_an_avatar_of_a_video(tmp_path):
    owner, seen = tiny_model(tiny(train=RATES)), []
    before = jax.tree.map(np.array, owner.variables)
    options = {'steps': 12, 'frozen_steps': 6, 'basis_size': 4}
    assert owner.steps(**options) == 12
    built = owner.build(video(), on_step=lambda done, **numbers: seen.append(done), **options)
    assert (built.report['steps'], built.report['frozen_steps'], built.report['basis_size']) == (12, 6, 4)
    assert built.report['frames'] == {'train': 22, 'unseen': 5} and seen[-1] == 12
    losses = built.curves['loss']
    assert len(losses) == 12 and losses[-3:].mean() < 0.8 * losses[:3].mean()
    assert set(built.scores) >= {'psnr', 'train_psnr_coefficients', 'unseen_psnr_coefficients'}
    jax.tree.map(np.testing.assert_array_equal, owner.variables, before)  # the model stays what it was
    # The same again.
    again = owner.build(video(), **options)
    jax.tree.map(np.testing.assert_array_equal, again.avatar.identity, built.avatar.identity)
    # Driven with its own configuration, not the model's, from a file, too.
    save_avatar(tmp_path, built.avatar, {})
    avatar, rng = load_avatar(tmp_path), np.random.default_rng(1)
    assert avatar.config == built.avatar.config and owner.of(avatar).config.settings.basis.size == 4
    rows = rng.uniform(0, 1, (3, 70)).astype(np.float32)
    motion = Motion(rows[:, :64], rows[:, 64:67], rows[:, 67:], basis='procedural')
    labels = np.repeat(np.asarray(avatar.camera.label)[None], 3, 0)
    frames = owner.frames(avatar, motion, labels, per_call=2)
    given = owner.frames(avatar, Drive({'coefficients': motion.expression}), labels, per_call=2)
    np.testing.assert_array_equal(frames.rgb, given.rgb)
    assert frames.rgb.shape == (3, SIZE, SIZE, 3) and np.abs(frames.rgb[0] - frames.rgb[1]).max() > 0
    with pytest.raises(UserError, match="belong to the basis 'bfm'"):
        owner.frames(avatar, motion.replace(basis='bfm'), labels)
    with pytest.raises(UserError, match='65 coefficients per frame, this avatar was trained with 64'):
        owner.frames(avatar, motion.replace(expression=np.zeros((3, 65))), labels)


@pytest.mark.slow
def test_the_generator_is_fitted_around_the_codes_or_left_alone():
    owner, seen = tiny_model(tiny(train=RATES)), []
    size = {'basis_size': 4}
    options = {'steps': 2, 'tune': 'generator', 'fit_steps': 3, 'fit_stop': 90.0, 'locality': 0.1, **size}
    assert owner.steps(**options) == 5
    built = owner.build(video(), on_step=lambda done, **numbers: seen.append(done), **options)
    found = built.report['tuning']
    assert (built.report['frozen_steps'], found['steps'], found['stopped']) == (2, 3, False) and seen[-1] == 5
    assert {'mse', 'pyramid', 'locality', 'negative_psnr'} == set(found['terms']) and found['seconds'] > 0
    own, common = built.avatar.identity['generator'], owner.variables['params']['generator']
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), own, common)
    assert all(jax.tree.leaves(same['backbone']['mapping'])) and not all(jax.tree.leaves(same))
    # Basis and encoder are those of the training without a fit, whose generator stays what it was.
    alone = owner.build(video(), steps=2, tune='none', **size)
    assert alone.report['tuning'] is None and 'generator' not in alone.avatar.identity
    for part in ('basis', 'encoder'):
        jax.tree.map(np.testing.assert_array_equal, built.avatar.identity[part], alone.avatar.identity[part])


@pytest.mark.slow
def test_a_basis_may_start_at_what_an_encoder_sees(tmp_path):
    from avatar_jax.inversion import start
    from tests.test_start import nofa_file

    owner = tiny_model()
    generator = model.generator_of(owner.variables)
    file = nofa_file(tmp_path / 'encoder.safetensors', generator=generator)
    # A budget that is over when training begins: the networks are the fresh ones.
    built = owner.build(video(), budget='0.01s', unseen=0.0, start='encoder', encoder=file)
    encoder = start.load_encoder(file, owner.config.generator, generator)
    chosen = np.linspace(0, FRAMES - 1, build.ENCODED).round().astype(int)
    rows = jax.jit(start.encoded_rows)(encoder, np.stack([portraits()[i].image for i in chosen])).mean(0)
    assert built.report['start'] == 'encoder'
    np.testing.assert_allclose(built.avatar.identity['basis']['shared']['delta'], rows.reshape(-1), atol=0.02)


@pytest.mark.slow
def test_pictures_and_sound_drive_and_a_budget_ends(tone):
    small = {'picture_size': 16, 'picture_channels': (12, 8, 8)}
    owner = tiny_model(tiny('picture', loss={'size': 16}, encoder=small))
    # A budget that is over when training begins: the networks are the fresh ones.
    source = video()
    built = owner.build(source, drivers=('sound', 'picture'), sound=str(tone), budget='0.01s', unseen=0.0)
    assert built.report['steps'] == 0 and 'unseen_psnr_sound' not in built.scores
    assert built.avatar.config.settings.drivers == ('sound', 'picture') and 'generator' not in built.avatar.identity
    own = owner.of(built.avatar)
    labels = np.repeat(np.asarray(built.avatar.camera.label)[None], 4, 0)
    still = own.still(source.portraits[0], 4)
    assert still.signals['sound'].shape == (4, 16, 29) and not still.signals['sound'].any()
    assert owner.frames(built.avatar, still, labels).rgb.shape == (4, SIZE, SIZE, 3)
    pictures = PictureRows(own.config, [p.image for p in source.portraits])
    shown = owner.frames(built.avatar, Drive({'picture': pictures}), np.repeat(labels[:1], FRAMES, 0), per_call=4).rgb
    assert shown.shape == (FRAMES, SIZE, SIZE, 3) and np.abs(shown[0] - shown[1]).max() > 0


# ------------------------------------------------------------------------------------------------------------- signals


def test_signals(tone):
    motion = Motion(np.zeros((4, 64)), np.zeros((4, 3)), np.zeros((4, 3)), FPS, 'procedural')
    samples = Sound(np.sin(np.arange(32000) / 9).astype(np.float32), 16000)
    heard = make_drive(METHOD, tiny('sound'), {'sound': samples, 'motion': motion}, FPS)
    assert heard.signals['sound'].shape == (4, 16, 29) and heard.signals['sound'].any()
    assert len(make_drive(METHOD, tiny('sound'), {'sound': samples}).signals['sound']) == 50
    smooth = tiny('sound', train={'smooth_from': 1, 'iterations': 4})
    assert make_drive(METHOD, smooth, {'sound': samples}).signals['sound'].shape == (50, 8, 16, 29)
    deep = tiny('sound', encoder={'coefficients': 64, 'sound_features': 'deepspeech'})
    with pytest.raises(UserError, match='gives mel features, this avatar was trained with deepspeech'):
        make_drive(METHOD, deep, {'sound': samples})
    with pytest.raises(UserError, match="driven by the signal 'sound', which this driver cannot give"):
        make_drive(METHOD, tiny('sound'), {'motion': motion})
    rows = PictureRows(tiny('picture'), [np.full((64, 64, 3), v, np.uint8) for v in (0, 255)])
    assert len(rows) == 2 and rows[1].shape == (SIZE, SIZE, 3) and rows[np.array([1, 0])][0].min() == 1
    with pytest.raises(UserError, match='square'):
        PictureRows(tiny('picture'), [np.zeros((4, 5, 3), np.uint8)])[0]


# ------------------------------------------------------------------------------------------------------------ bad input


def nan(shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize(
    ('source', 'options', 'text'),
    [
        (lambda: video(portraits(15)), {}, 'shows the person for 3.0 s; a personal avatar needs at least 5 s'),
        (lambda: Source(portraits(1)), {}, 'HFA-GP makes an avatar of a video'),
        (video, {'drivers': ('sound',)}, "talk: has no sound to train the driver 'sound' with"),
        (video, {'drivers': ('sound',), 'sound': 'none.npy'}, 'none.npy: no such file'),
        (lambda: video(portraits(expression=None)), {}, 'has no expression coefficients of every frame'),
        (lambda: video(portraits(expression=nan(64))), {}, 'the expression of frame 3 has NaN'),
        (lambda: video(portraits(image=nan((SIZE, SIZE, 3)))), {}, 'frame 3: the picture has NaN'),
        (lambda: video(portraits(basis='bfm')), {}, 'coefficients of 2 bases'),
        (video, {'drivers': ('smell',)}, r"drivers: \('smell',\); use some of picture, coefficients, sound"),
        (video, {'steps': 0}, '--steps 0: must be at least 1'),
        (video, {'tune': 'none', 'frozen_steps': 2}, '--frozen-steps 2: with --tune there is no second stage'),
        (video, {'fit_steps': 2}, '--fit-steps 2: nothing is fitted'),
        (video, {'start': 'encoder'}, '--start encoder: which one'),
        (video, {'start': 'mean', 'further': True}, '--start mean: --further goes on from the person'),
        (video, {'budget': 'soon'}, '--budget soon: give a time like 90s, 20m or 2h'),
        (video, {'unseen': 1.0}, '--unseen 1.0: must lie between 0 and 0.9'),
        (video, {'basis_size': 0}, 'basis.size: 0'),
        (video, {'further': True, 'basis_size': 3}, '--further: tiny: .*bases'),
        (lambda: video(portraits(coefficients=76)), {'further': True}, '76 coefficients per frame, .* trained with 64'),
    ],
)
@pytest.mark.slow
def test_bad_input_gets_one_line(source, options, text):
    with pytest.raises(UserError, match=text) as error:
        tiny_model(person=options.get('further', False)).build(source(), **options)
    assert '\n' not in str(error.value)


def test_schedule():
    config = tiny()
    plan = build.Schedule.of(config, BuildOptions(steps=10))
    assert [plan.tunes(n, 0) for n in (4, 5)] == [False, True] and plan.ended(10, 0) and not plan.ended(9, 1e9)
    plan = build.Schedule.of(config, BuildOptions(budget='2m'))
    assert (plan.length, plan.progress(7, 30.5), plan.ended(10**6, 119), plan.ended(0, 120)) == (120, 30, False, True)
    assert not plan.tunes(10**6, 59) and plan.tunes(0, 60)
    for options in (BuildOptions(steps=10, tune='generator'), BuildOptions(budget='2m', tune='none')):
        plan = build.Schedule.of(config, options)
        assert not plan.tunes(9, 119.0), 'without a second stage'
