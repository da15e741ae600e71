"""What a method is: a toy of a stranger's package goes through every command, and nothing else names a method."""

import ast
import dataclasses
import json
import sys
import weakref
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from avatar_jax.cli import main
from avatar_jax.errors import UserError
from avatar_jax.io.video import write_video
from avatar_jax.methods import base
from avatar_jax.methods.model import choose_model, load_avatar, load_model
from avatar_jax.train import runner
from tests import toy_method
from tests.runs import copied_as_if_killed, shared_programs
from tests.test_track_measure import head

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """The toy's package, installed: its weights, and two pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp('toy')
    about = folder / 'toy_avatar-0.1.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: toy-avatar\nVersion: 0.1\n')
    (about / 'entry_points.txt').write_text('[avatar_jax.methods]\ntoy = tests.toy_method:METHOD\n')
    sys.path.insert(0, str(folder))
    base.forget()
    variables = {'params': {'gain': np.float32([0.5, 0.4, 0.3])}}
    toy_method.save(folder / 'toy.safetensors', variables, toy_method.ModelConfig(), {'command': 'test'})
    for name, grey in (('a', 60), ('b', 120)):
        Image.fromarray(np.full((32, 32, 3), grey, np.uint8)).save(folder / f'{name}.png')
    yield folder
    sys.path.remove(str(folder))
    base.forget()


@pytest.fixture
def run(toy, monkeypatch, capsys):
    """Runs a command in the toy's folder: (status, stdout, stderr)."""
    monkeypatch.chdir(ROOT)

    def command(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return command


def test_the_toy_is_short():
    assert len((ROOT / 'tests' / 'toy_method.py').read_text().splitlines()) <= 200


def test_the_toy_is_found(toy):
    assert base.names()[-1] == 'toy' and base.method('toy') is toy_method.METHOD
    assert choose_model(None, toy / 'toy.safetensors').method.name == 'toy'
    with pytest.raises(UserError, match="'toi': not known; did you mean 'toy'"):
        base.method('toi')
    with pytest.raises(UserError, match='--method toy: no weights for it are in the package'):
        choose_model('toy', None)


def test_a_broken_package_disturbs_nobody(toy):
    about = toy / 'broken-0.1.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n')
    (about / 'entry_points.txt').write_text('[avatar_jax.methods]\nbroken = no_such_module:METHOD\n')
    base.forget()
    try:
        assert 'toy' in [m.name for m in base.methods()] and 'broken' in base.names()
        with pytest.raises(UserError, match='no_such_module:METHOD cannot be used'):
            base.method('broken')
    finally:
        for file in about.iterdir():
            file.unlink()
        about.rmdir()
        base.forget()


def test_invert_and_animate(run, toy, tmp_path):
    weights = ('--weights', toy / 'toy.safetensors', '--aligned', '--background', 'keep')
    one = run('invert', '--image', toy / 'a.png', '--out', tmp_path / 'one', '--darker', '0.25', *weights)
    assert one[0] == 0 and 'it is only a colour' in one[2], one
    color = np.asarray(load_avatar(tmp_path / 'one' / 'a').identity['color'])
    np.testing.assert_allclose(color, 60 / 127.5 - 1 - 0.25, atol=1e-5)
    several = run('invert', '--image', toy / 'a.png', toy / 'b.png', '--out', tmp_path / 'two', *weights)
    assert several[0] == 0 and 'of 2 portraits' in several[1]
    report = json.loads((tmp_path / 'two' / 'a' / 'report.json').read_text())
    assert report['pictures'] == 2 and report['method'] == 'toy'
    summary = json.loads((tmp_path / 'two' / 'report.json').read_text())
    assert summary['avatars'][0]['portraits'] == 2 and summary['options'] == {'darker': 0.0}
    film = ('--avatar', tmp_path / 'two' / 'a', '--weights', toy / 'toy.safetensors', '--out', tmp_path / 'v.mp4')
    assert run('animate', '--motion', 'speech:0:5', '--per-call', 2, *film)[0] == 0
    assert (tmp_path / 'v.mp4').stat().st_size > 100
    speed = ('bench', '--video', tmp_path / 'two' / 'a', '--weights', toy / 'toy.safetensors', '--frames', 40)
    status, out, err = run(*speed, '--out', tmp_path / 'speed.json')
    assert status == 0 and out.startswith('video of 40 frames: '), err
    found = json.loads((tmp_path / 'speed.json').read_text())
    assert found['frames_per_s'] == pytest.approx(32 / found['seconds']), 'the first call, of 8, is not counted'
    assert 0 <= found['waiting_s'] <= found['seconds'] and found['peak_rss_bytes'] >= found['early_rss_bytes'] > 0
    for wrong in (['--train'], ['--stages', 'frame']):
        assert f'{wrong[0]}: does not go with --video' in run(*speed, *wrong)[2]
    assert '--motion: goes with --video' in run('bench', '--motion', 'speech:0')[2]
    assert run('animate', '--motion', 'speech:0:3', '--towards', tmp_path / 'one' / 'a', *film)[0] == 0
    status, _, err = run('animate', '--motion', 'speech:0:3', '--amount', 0.5, *film)
    assert status == 2 and '--amount 0.5: goes with --towards' in err
    status, _, err = run('invert', '--image', toy / 'a.png', '--out', tmp_path / 'x', '--steps', 3, *weights)
    assert status == 2 and '--steps: Toy has no such option; leave it out (it has --darker)' in err
    status, _, err = run('invert', '--image', toy / 'a.png', '--out', tmp_path / 'x', '--darker', 'much', *weights)
    assert status == 2 and '--darker much: give a number' in err


def test_invert_holds_one_group_of_a_long_list(run, toy, tmp_path, monkeypatch):
    """Of seven pictures, three side by side, never more than three are in memory: read, measured or built. One cannot
    be read, one is refused by the method: the others go on.
    """
    from avatar_jax.methods import model
    from avatar_jax.methods.pictures import Pictures

    def build_many(model, sources, *rest, **tools):
        if any(source.name == '5' for source in sources):
            raise UserError('5.png: too bright')
        return [toy_method.build(model, source, *rest, **tools) for source in sources]

    alone = dataclasses.replace(toy_method.METHOD, sources=('portrait',), build_many=build_many)
    chosen = dataclasses.replace(load_model(toy / 'toy.safetensors'), method=alone)
    monkeypatch.setattr(model, 'choose_model', lambda *_: chosen)
    read, held, most = Pictures.read, [], []

    def counted(self, i, *args, **options):
        found = read(self, i, *args, **options)
        held.append([weakref.ref(found), weakref.ref(found.measured), weakref.ref(found.source)])
        most.append(max(sum(r() is not None for r in refs) for refs in zip(*held, strict=True)))
        return found

    monkeypatch.setattr(Pictures, 'read', counted)
    files = [tmp_path / f'{k}.png' for k in range(7)]
    for k, file in enumerate(files):
        file.write_bytes(b'no picture' if k == 4 else (toy / 'a.png').read_bytes())
    how = ('--aligned', '--background', 'keep', '--group', 3, '--out', tmp_path / 'out')
    status, out, err = run('invert', '--image', *files, *how)
    assert status == 2 and '2 of 7 inputs were skipped' in err and '5.png: too bright' in err, err
    assert out.count('dB to the portrait') == 5 and most == [1, 2, 3, 1, 2, 3]
    assert [r['name'] for r in json.loads((tmp_path / 'out' / 'report.json').read_text())['avatars']] == list('01236')


@pytest.mark.slow
def test_invert_a_video(run, toy, tmp_path):
    """Two frames of a head with landmarks beside them: one avatar of all frames, read one after the other."""
    pixels, landmarks, _, _ = head()
    write_video(tmp_path / 'talk.mp4', [pixels] * 2, 10)
    np.save(tmp_path / 'talk.landmarks68.npy', np.stack([landmarks] * 2))
    options = ('--weights', toy / 'toy.safetensors', '--background', 'keep', '--out', tmp_path / 'out')
    status, _, err = run('invert', '--image', tmp_path / 'talk.mp4', *options)
    assert status == 0, err
    report = json.loads((tmp_path / 'out' / 'talk' / 'report.json').read_text())
    assert report['pictures'] == 2 and len(report['portraits']) == 1
    assert load_avatar(tmp_path / 'out' / 'talk').identity['color'].shape == (3,)


@pytest.mark.slow
def test_evaluate(run, toy, tmp_path):
    options = ('--identities', 1, '--frames', 2, '--portraits', 2, '--darker', 0.1)
    status, out, err = run('evaluate', '--weights', toy / 'toy.safetensors', '--out', tmp_path, *options)
    assert status == 0 and 'Toy on people that it never saw' in out, err
    assert json.loads((tmp_path / 'report.json').read_text())['run']['method_settings']['options'] == {'darker': 0.1}


def test_bench(run, tmp_path):
    status, out, err = run('bench', '--method', 'toy', '--repeats', 1, '--out', tmp_path / 'b.json')
    assert status == 0 and out.startswith('frame') and 'a toy is quick' in out, err
    status, out, err = run('bench', '--train', '--config', 'tests/toy_config.py', '--repeats', 1)
    assert status == 0 and 'Toy on 1 device(s)' in out, err
    status, _, err = run('bench', '--method', 'toy', '--preset', 'huge')
    assert status == 2 and '--preset huge: toy has small, large' in err
    status, out, err = run('bench', '--method', 'toy', '--memory', '--batch-sizes', 1, 9, '--out', tmp_path / 'm.json')
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == ['small'] * 2 + ['large'] * 2, err
    found = json.loads((tmp_path / 'm.json').read_text())['results']
    pictures = [r['peak_bytes'] - r['argument_bytes'] for r in found]  # of 16 and 64 pixels a side, three floats each
    assert all(p >= 12 * n * s**2 for p, n, s in zip(pictures, (1, 9, 1, 9), (16, 16, 64, 64), strict=True))
    assert pictures[3] < 2 * 12 * 9 * 64**2
    status, out, err = run('bench', '--train', '--memory', '--config', 'tests/toy_config.py')
    assert status == 0 and '; memory 0 MiB' in out and 's/step' not in out, err
    status, _, err = run('bench', '--method', 'toy', '--memory', '--profile')
    assert status == 2 and '--profile: does not go with --memory' in err


def test_train_and_resume(run, tmp_path):
    spec = ('--config', 'tests/toy_config.py')
    assert run('train', *spec, '--out', tmp_path / 'whole')[0] == 0
    assert run('train', *spec, '--out', tmp_path / 'parts', '--config.steps=2')[0] == 0
    assert run('train', *spec, '--out', tmp_path / 'parts', '--resume')[0] == 0
    gains = [
        load_model(tmp_path / name / 'weights.safetensors').variables['params']['gain'] for name in ('whole', 'parts')
    ]
    np.testing.assert_array_equal(*gains)
    status, _, err = run('train', *spec, '--out', tmp_path / 'x', '--config.data.poeple=3')
    assert status == 2 and "data has no option 'poeple'; did you mean 'people'?" in err


def test_runs_that_other_tests_interrupt(run, tmp_path):
    """``tests.runs``: a copy of a run as a kill would leave it, which goes on with the programs of the first."""
    spec, whole, parts = ('--config', 'tests/toy_config.py'), tmp_path / 'whole', tmp_path / 'parts'
    with shared_programs():
        with copied_as_if_killed(whole, parts, 2):
            assert run('train', *spec, '--out', whole)[0] == 0
        saved = [sorted(int(p.name) for p in (f / 'checkpoints').iterdir() if p.name.isdigit()) for f in (whole, parts)]
        assert saved[1][-1] == 2 < saved[0][-1] and not (parts / 'weights.safetensors').exists()
        with mock.patch.object(runner, 'parallelise', side_effect=AssertionError):
            assert run('train', *spec, '--out', parts, '--resume')[0] == 0
    gains = [load_model(f / 'weights.safetensors').variables['params']['gain'] for f in (whole, parts)]
    np.testing.assert_array_equal(*gains)
    with (
        pytest.raises(AssertionError, match='did not come to this step'),
        copied_as_if_killed(whole, tmp_path / 'x', 9),
    ):
        pass


def test_convert(run, tmp_path):
    np.savez(tmp_path / 'gain.npz', gain=np.float32([1, 2, 3]))
    status, out, err = run('convert', tmp_path / 'gain.npz', '--to', tmp_path / 'here')
    assert status == 0 and 'toy.safetensors: toy' in out, err
    model = load_model(tmp_path / 'here' / 'toy.safetensors')
    np.testing.assert_array_equal(model.variables['params']['gain'], [1, 2, 3])
    assert run('convert', model.path, '--export', 'safetensors', '--to', tmp_path / 'back')[0] == 0
    status, out, err = run('assets', 'toy', '--folder', tmp_path / 'here')
    assert status == 0 and 'imported' in out, err


def test_ablate(run, tmp_path):
    how = ('ablate', '--table', 'toy1', '--seeds', 1, '--out', tmp_path)
    for k, there in ((2, 1), (1, 2)):
        status, out, err = run(*how, '--share', f'{k}/2')
        assert status == 0 and '1 of 2 trainings are done' in out, err
        assert len(list(tmp_path.glob('*/scores.json'))) == there and not (tmp_path / 'report.json').exists()
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob('*/*')}
    status, out, err = run(*how)
    assert status == 0 and 'fast better than slow: ERROR as in the paper' in out, err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob('*/*')} == stamps, 'nothing is trained again'
    status, _, err = run(*how, '--share', '3/2')
    assert status == 2 and '--share 3/2: give K/N' in err


def test_frames_do_not_depend_on_the_devices(toy):
    """As on one device, on as many as are forced; here one, in tests/test_devices.py several."""
    model = load_model(toy / 'toy.safetensors')
    rows, labels = np.random.default_rng(0).uniform(0, 1, (5, 70)).astype(np.float32), np.zeros((5, 25), np.float32)
    avatar = toy_method.Avatar({'color': jax.numpy.zeros(3)}, method='toy')
    whole = model.frames(avatar, rows, labels, per_call=5)
    parts = model.frames(avatar, rows, labels, per_call=2, chunk=2)
    np.testing.assert_allclose(whole.rgb, parts.rgb, atol=1e-6)
    white = avatar.replace(identity={'color': jax.numpy.ones(3)})
    mixed = model.frames(avatar, 0 * rows, labels, per_call=2, towards=(white, np.linspace(0, 1, 5)))
    np.testing.assert_allclose(mixed.rgb[:, 0, 0, 0], np.linspace(0, 1, 5), atol=1e-6)
    expected = rows[:, :1] * np.float32([0.5, 0.4, 0.3])
    np.testing.assert_allclose(whole.rgb[:, 0, 0], expected, atol=1e-6)


# What makes the weights that ship with a method has to know it.
MAKES_WEIGHTS = ('avatar_jax/bundled/prior.py', 'avatar_jax/bundled/prior_training.py', 'launch/train_prior.py')
# Texts that are a method's name and mean something else: a data format, or how its pictures and cameras are made.
FORMATS = {
    ('avatar_jax/train/run.py', 'eg3d'),
    *(('avatar_jax/faces/conventions.py', name) for name in ('eg3d', 'gpavatar', 'otavatar')),  # crops, camera labels
    ('avatar_jax/faces/camera_labels.py', 'otavatar'),
    ('data_pipelines/otavatar_lmdb.py', 'otavatar'),
    ('data_pipelines/image_sources.py', 'eg3d'),
    ('data_pipelines/tracked/layouts.py', 'EG3D'),
}


def named_by(path):
    """(line, text) where a file's code names a method: by importing it or its configs, or by a text that is its name,
    its title, its weights' or a config's, or that tells a person to use it (``--method NAME``, ``configs/NAME``), also
    in --help. Citing a paper, or a data format that is called after one, is no such thing.
    """
    methods = [m for m in base.methods() if m.name != 'toy']
    texts = {t for m in methods for t in (m.name, m.title, m.weights) if t}
    modules = tuple(f'avatar_jax.methods.{m.name}' for m in methods) + ('configs.',)
    for node in ast.walk(ast.parse(path.read_text())):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.startswith(modules)]
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            found = [name for name in names if name.startswith(modules)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            value = node.value
            advice = [text for m in methods for text in (f'configs/{m.name}', f'--method {m.name}') if text in value]
            found = [value] if value in texts or value.startswith(modules) else advice
        for text in found:
            yield node.lineno, text


@pytest.mark.parametrize('folder', ['avatar_jax', 'launch', 'data_pipelines'])
def test_no_other_file_names_a_method(folder):
    found = []
    for path in sorted((ROOT / folder).rglob('*.py')):
        if (ROOT / 'avatar_jax' / 'methods') not in path.parents:
            name = str(path.relative_to(ROOT))
            if name in MAKES_WEIGHTS:
                assert list(named_by(path)), f'{name} need not be an exception any more'
                continue
            found += [f'{name}:{line}: {text[:60]}' for line, text in named_by(path) if (name, text) not in FORMATS]
    assert not found, '\n'.join(found)


def test_a_method_that_is_named_is_found(tmp_path):
    source = """'''Runs.

    python -m launch.this --config configs/nofa_heads.py
'''
from avatar_jax.methods.nofa import model
raise UserError(f'{name}: too short; give --method otavatar')
about = 'as in OTAvatar, section 3; or --method NAME'
"""
    (tmp_path / 'this.py').write_text(source)
    found = [text for _, text in named_by(tmp_path / 'this.py')]
    assert sorted(found) == ['--method otavatar', 'avatar_jax.methods.nofa.model', 'configs/nofa']


def test_methods_tell_whether_building_draws_anything():
    """By which ``invert --jitter`` says where it changes nothing."""
    from avatar_jax.methods.gpavatar.config import ModelConfig as GPAvatar
    from avatar_jax.methods.nofa.config import ModelConfig as NOFA

    def draws(name, config, **options):
        owner = base.method(name)
        return owner.draws(config, owner.options(options))

    assert not draws('hidenerf', None)
    assert draws('gpavatar', GPAvatar.full()) and not draws('gpavatar', GPAvatar.heads())
    plain = {'tune': 'none', 'pivot': 'encoder'}
    for more, drawn in ({}, False), ({'pivot': 'search'}, True), ({'tune': 'compensation'}, True):
        assert draws('nofa', NOFA.tiny(), **plain | more) == drawn, more
    assert base.method('otavatar').draws is None and base.method('hfagp').draws is None  # always
