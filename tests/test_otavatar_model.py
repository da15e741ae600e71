"""The model's two functions, build and animate, at a tiny size; many people at once; avatar files; commands."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax import parallel
from avatar_jax.driving import cameras as animation
from avatar_jax.errors import UserError
from avatar_jax.inversion.memory import bytes_of_view
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods import base
from avatar_jax.methods import model as models
from avatar_jax.methods.otavatar import finetune, invert, model
from avatar_jax.methods.otavatar.build import RAYS, configured
from avatar_jax.methods.otavatar.method import BuildOptions
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.types import Avatar, Camera, Motion
from tests.tiny_model import CONFIG, portrait, short, tiny_variables

# One short stage with super-resolution throughout: one compiled loop.
SHORT = short(w_steps=3, wplus_steps=0, sr_steps=3)
VARIABLES = tiny_variables()


def motion(frames, seed=0):
    rng = np.random.default_rng(seed)
    return Motion(
        rng.uniform(0, 1, (frames, 64)).astype(np.float32),
        rng.normal(0, 0.1, (frames, 3)).astype(np.float32),
        rng.normal(0, 0.1, (frames, 3)).astype(np.float32),
        25.0,
        'procedural',
        'made up',
    )


def some_avatar(seed=0):
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(CONFIG.generator.num_ws, CONFIG.generator.w_dim)).astype(np.float32)
    return Avatar(
        {'code': jnp.asarray(code), 'bias': jnp.asarray(rng.normal(0, 0.01, 18), jnp.float32)},
        camera=portrait(seed).camera,
        method='otavatar',
        config=CONFIG,
        basis='procedural',
        weights='abc',
        source=f'person {seed}',
    )


@pytest.mark.slow
def test_many_people_side_by_side_equal_one_person_alone():
    key, calls = jax.random.key(3), []
    portraits = [portrait(0), portrait(1).replace(mask=None)]
    found = invert.invert_people(
        VARIABLES, SHORT, portraits, key=key, weights='abc', on_step=lambda done, loss: calls.append((done, loss))
    )
    alone = jax.jit(lambda v, p, k: invert.invert_portrait(v, SHORT, p, None, k))(
        VARIABLES, portraits[1], jax.random.fold_in(key, 1)
    )
    for name in ('code', 'bias'):
        np.testing.assert_allclose(found[1].avatar.identity[name], alone.avatar.identity[name], atol=2e-5)
    np.testing.assert_allclose(found[1].stages[0].curve, alone.stages[0].curve, rtol=1e-4)
    np.testing.assert_allclose(found[1].psnr, alone.psnr, rtol=1e-4)
    assert calls[-1][0] == invert.num_steps(SHORT) == 3 and np.isfinite(calls[-1][1])
    code = np.asarray(found[0].avatar.identity['code'])
    assert np.abs(code - code[0]).max() < 1e-6 and np.abs(code).max() > 0.01, 'space W: one row for all, and it moved'
    assert np.abs(found[0].avatar.identity['bias']).max() > 1e-3
    assert found[0].avatar.weights == 'abc' and found[0].avatar.basis == 'procedural'

    report = invert.report(found[0])
    assert json.dumps(report) and report['stages'][0]['steps'] == 3
    assert set(report['terms']) >= {'raw/pixel', 'sr/pixel', 'raw/pyramid', 'sr/pyramid'}
    assert report['stages'][0]['loss'] == sorted(report['stages'][0]['loss'], reverse=True), 'the loss falls'
    assert np.isfinite(report['psnr']) and report['psnr_raw'] > 0

    # A tuned copy of the generator fits its person better and leaves the mapping network alone.
    tuned, curve = finetune.finetune_generator(VARIABLES, SHORT, portraits[0], found[0], steps=4)
    assert curve[-1] < curve[0] and float(tuned.psnr) > float(found[0].psnr)
    own, common = tuned.avatar.identity['generator'], VARIABLES['params']['generator']
    assert jax.tree.structure(own) == jax.tree.structure(common)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), own, common)
    assert all(jax.tree.leaves(same['backbone']['mapping'])) and not all(jax.tree.leaves(same['backbone']['synthesis']))
    with pytest.raises(ValueError, match='own generator'):
        invert.interpolate_avatars(tuned.avatar, found[1].avatar, 0.5)


@pytest.mark.slow
def test_frames_do_not_depend_on_how_they_are_grouped():
    avatar, m = some_avatar(), motion(5)
    labels = animation.camera_labels('track', CONFIG, avatar, m)
    assert labels.shape == (5, 25)
    tiny = models.Model(base.method('otavatar'), CONFIG, VARIABLES)
    together = tiny.frames(avatar, m, labels, chunk=5)
    assert together.rgb.shape == (5, 32, 32, 3) and together.raw.shape == (5, 16, 16, 3)
    assert float(np.abs(together.rgb).max()) <= 1
    parts = list(tiny.stream(avatar, m, labels, per_call=3, chunk=3))
    assert [len(p.rgb) for p in parts] == [3, 2]
    np.testing.assert_allclose(np.concatenate([p.rgb for p in parts]), together.rgb, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([p.depth for p in parts]), together.depth, atol=1e-3)
    assert np.abs(together.rgb[0] - together.rgb[1]).max() > 1e-3, 'motion shows'


def test_cameras():
    avatar, m = some_avatar(3), motion(4)
    fixed = animation.camera_labels('fixed', CONFIG, avatar, m)
    np.testing.assert_allclose(fixed, np.broadcast_to(avatar.camera.label, (4, 25)))
    orbit = animation.camera_labels('orbit', CONFIG, avatar, m)
    poses = orbit[:, :16].reshape(4, 4, 4)
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3], axis=-1), 2.7, rtol=1e-5)  # around the origin
    frontal = animation.camera_labels('fixed', CONFIG, avatar.replace(camera=None), m)
    still = m.replace(angle=0 * m.angle, translation=0 * m.translation)
    np.testing.assert_allclose(frontal, animation.camera_labels('track', CONFIG, avatar, still), atol=1e-6)
    with pytest.raises(UserError, match="camera 'drone'"):
        animation.camera_labels('drone', CONFIG, avatar, m)
    with pytest.raises(UserError, match="belong to the basis 'bfm'"):
        models.Model(base.method('otavatar'), CONFIG, {}).drive(m.replace(basis='bfm'))
    with pytest.raises(UserError, match='made with other weights'):
        models.check_weights(avatar, models.Model(base.method('otavatar'), CONFIG, {}, 'def'))


def test_avatar_files(tmp_path):
    avatar = some_avatar(1)
    models.save_avatar(tmp_path / 'a', avatar, {'seed': 1})
    back = models.load_avatar(tmp_path / 'a')
    for a, b in zip(jax.tree.leaves(avatar), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (back.method, back.config, back.basis, back.weights, back.source) == (
        'otavatar',
        CONFIG,
        'procedural',
        'abc',
        'person 1',
    )
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no avatar'):
        models.load_avatar(tmp_path / 'empty')
    with pytest.raises(UserError, match='holds no avatar .*; choose one of a in it'):
        models.load_avatar(tmp_path)
    path = tmp_path / 'a' / models.AVATAR_FILE
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match='damaged'):
        models.load_avatar(tmp_path / 'a')
    with pytest.raises(UserError, match="did you mean 'otavatar'"):
        base.method('otavatr')
    with pytest.raises(UserError, match='other weights'):
        models.check_weights(avatar, models.Model(base.method('otavatar'), CONFIG, {}, sha256='xyz'))


def test_interpolation_between_people():
    a, b = some_avatar(0), some_avatar(1)
    half = invert.interpolate_avatars(a, b, 0.25)
    np.testing.assert_allclose(half.identity['code'], 0.75 * a.identity['code'] + 0.25 * b.identity['code'], rtol=1e-6)
    with pytest.raises(ValueError, match='different weights'):
        invert.interpolate_avatars(a, b.replace(weights='z'), 0.5)


def test_portraits_of_equal_knowledge_are_stacked():
    people = invert.stack_portraits([portrait(k).replace(expression=None, landmarks=None) for k in (0, 1)])
    assert people.expression is None and people.landmarks is None and people.mask.shape == (2, 32, 32)
    windows = model.source_windows(people)
    assert windows.shape == (2, 27, 70) and float(jnp.abs(windows[..., :64]).max()) == 0
    own = model.source_windows(portrait(2))
    np.testing.assert_array_equal(own[0], own[26])
    assert isinstance(people.camera, Camera)


def test_model_files(tmp_path):
    path = tmp_path / 'tiny.safetensors'
    digest = model.save_model(path, VARIABLES, CONFIG, {'seed': 0})
    loaded = models.load_model(path)
    assert (loaded.method.name, loaded.config, loaded.sha256) == ('otavatar', CONFIG, digest)
    for a, b in zip(jax.tree.leaves(VARIABLES), jax.tree.leaves(loaded.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    wrong = {**VARIABLES, 'params': {'generator': VARIABLES['params']['generator']}}
    with pytest.raises(UserError, match='controller.*is missing'):
        model.save_model(path, wrong, CONFIG, {})
    with pytest.raises(UserError, match='not shipped'):
        models.load_model('no_such_weights')


@pytest.mark.slow
def test_commands_from_a_picture_to_a_video(tmp_path, capsys):
    """invert and animate through the command line: outputs, provenance, skipped pictures, mistakes."""
    from PIL import Image

    from avatar_jax.cli import main
    from avatar_jax.io.images import to_uint8
    from avatar_jax.io.motion import save_motion
    from avatar_jax.io.video import VideoReader

    weights = tmp_path / 'tiny.safetensors'
    model.save_model(weights, VARIABLES, SHORT, {'seed': 0})
    picture, broken = tmp_path / 'face.png', tmp_path / 'broken.png'
    Image.fromarray(to_uint8(portrait(0).image)).save(picture)
    broken.write_bytes(b'no picture')
    save_motion(tmp_path / 'm.npz', motion(3))
    out = tmp_path / 'people'
    status = main(
        [
            'invert',
            '--image',
            str(picture),
            str(broken),
            '--out',
            str(out),
            '--weights',
            str(weights),
            '--steps',
            '3',
            '--space',
            'w',
            '--aligned',
            '--motion',
            str(tmp_path / 'm.npz'),
        ]
    )
    assert status == 2, 'one picture was skipped'
    assert 'broken.png' in capsys.readouterr().err
    summary = json.loads((out / 'report.json').read_text())
    assert [a['name'] for a in summary['avatars']] == ['face'] and len(summary['skipped']) == 1
    report = json.loads((out / 'face' / 'report.json').read_text())
    assert report['provenance']['synthetic'] and report['networks']['perceptual'] and 'prior' in report['limit']
    assert set(report['losses']['computed']) >= {'raw/pyramid', 'sr/pyramid'}
    assert all(np.isfinite(v) for v in report['losses']['computed'].values())
    assert Image.open(out / 'face' / 'reconstruction.png').width == 4 * 32 + 3 * 4

    video = tmp_path / 'v.mp4'
    assert (
        main(
            [
                'animate',
                '--avatar',
                str(out / 'face'),
                '--motion',
                str(tmp_path / 'm.npz'),
                '--out',
                str(video),
                '--weights',
                str(weights),
                '--png',
                str(tmp_path / 'png'),
                '--camera',
                'orbit',
            ]
        )
        == 0
    )
    assert len(list(VideoReader(video))) == 3
    assert sorted(p.name for p in (tmp_path / 'png').iterdir()) == ['000000.png', '000001.png', '000002.png']
    capsys.readouterr()
    for arguments, said in (
        (['--motion', 'speech:x'], 'speech:SEED'),
        (['--motion', str(tmp_path / 'none.npz')], 'none.npz'),
        (['--motion', str(tmp_path / 'm.npz'), '--out', 'v.gif'], 'ends in .mp4'),
        (['--motion', str(tmp_path / 'm.npz'), '--frames', '0'], 'at least 1'),
    ):
        assert main(['animate', '--avatar', str(out / 'face'), '--weights', str(weights), *arguments]) == 2
        message = capsys.readouterr().err
        assert said in message and 'Traceback' not in message


def test_large_models_are_inverted_step_by_step_and_in_portions_of_rays():
    """What is shown after every step, and needs less memory, gives the same numbers."""
    large = model.ModelConfig.of(GeneratorConfig.ffhq512())
    assert configured(large, BuildOptions()).generator.rendering.ray_chunk == RAYS
    assert configured(CONFIG, BuildOptions()).generator.rendering.ray_chunk is None
    own = dataclasses.replace(large, generator=large.generator.replace(rendering={'ray_chunk': 64}))
    assert configured(own, BuildOptions()).generator.rendering.ray_chunk == 64


@pytest.mark.slow
def test_steps_that_are_shown_one_by_one_are_the_same(monkeypatch):
    calls, whole = [], invert.avatars_of(VARIABLES, SHORT, [portrait(0)], PerceptionBank())
    monkeypatch.setattr(invert, 'LARGE', 16)
    chunked = dataclasses.replace(SHORT, generator=SHORT.generator.replace(rendering={'ray_chunk': 64}))
    parts = invert.avatars_of(
        VARIABLES, chunked, [portrait(0)], PerceptionBank(), on_step=lambda done, loss: calls.append(done)
    )
    assert calls == [1, 2, 3]
    np.testing.assert_allclose(parts[0][0].identity['code'], whole[0][0].identity['code'], atol=2e-5)
    np.testing.assert_allclose(parts[0][1][0].curve, whole[0][1][0].curve, rtol=1e-4)


@pytest.mark.slow
def test_people_in_portions_equal_all_at_once():
    """Three people, two at a time: the third one's portion is filled up, and nobody notices."""
    people = [portrait(k) for k in range(3)]
    whole, parts = (invert.avatars_of(VARIABLES, SHORT, people, PerceptionBank(), portion=n) for n in (3, 2))
    assert len(parts) == 3
    for (a, stages), (b, others) in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.identity['code'], b.identity['code'], atol=2e-5)
        np.testing.assert_allclose(stages[0].curve, others[0].curve, rtol=1e-4)


def test_as_many_people_at_a_time_as_memory_is_enough_for(monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(parallel, 'device_memory', lambda device: 16 * 2**30)
    gib = 2.0**30
    assert parallel.portion_of(4, one, gib) == (4, 4)
    assert parallel.portion_of(16, one, 1.4 * gib) == (16, 4), '5 would fit, but four portions are needed anyway'
    assert parallel.portion_of(16, one * 2, 1.4 * gib) == (16, 4)
    assert parallel.portion_of(3, one, 100 * gib) == (3, 1), 'one is tried in any case'
    assert parallel.portion_of(7, one, gib, most=4) == (8, 4)
    monkeypatch.setattr(parallel, 'device_memory', lambda device: None)
    assert parallel.portion_of(1000, one, gib) == (1000, 1000)
    monkeypatch.undo()
    assert parallel.device_memory(one[0]) > gib
    published, shipped = (model.ModelConfig.of(g) for g in (GeneratorConfig.ffhq512(), GeneratorConfig.heads128()))
    known = [bytes_of_view(configured(c, BuildOptions()).generator) / 2**20 for c in (shipped, published)]
    np.testing.assert_allclose(known, [381, 1390], rtol=0.1)  # docs/scaling.md
    with pytest.raises(UserError, match='--portion'):
        configured(CONFIG, BuildOptions(portion=0))
