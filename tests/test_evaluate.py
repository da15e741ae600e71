"""The evaluation run: per-identity results, resuming, failures, reports."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.eval import evaluation as launcher
from avatar_jax.eval import personal
from avatar_jax.eval.options import ProtocolConfig
from avatar_jax.eval.recorded import own_case
from avatar_jax.io.provenance import from_metadata
from avatar_jax.losses.networks import named_files
from avatar_jax.methods.base import Source
from avatar_jax.types import Frames, Motion
from data_pipelines import test_people as people
from launch.batch import part_of, share_of
from tests.recordings import recording_of
from tests.tiny_model import portrait

SIZE = 24


def tiny_case(number: int):
    """A clip of four random pictures, made without rendering."""
    r = np.random.default_rng(number)
    motion = Motion(r.random((4, 64)), r.random((4, 3)), r.random((4, 3)), basis='procedural')
    images = r.uniform(-1, 1, (4, SIZE, SIZE, 3)).astype(np.float32)
    landmarks = (r.random((4, 68, 2)) * SIZE).astype(np.float32)
    clip = recording_of(f'person-{number}', motion, np.zeros((4, 25)), images, np.ones((4, SIZE, SIZE)), landmarks)
    return own_case(clip, None)


class Recorder:
    """A method that counts what it is asked to build and shows the portrait for every frame."""

    def __init__(self, broken=(), stop_at=None):
        self.built, self.broken, self.stop_at = [], broken, stop_at

    def build(self, portrait, on_step):
        on_step(1)
        if portrait.source == self.stop_at:
            raise KeyboardInterrupt
        self.built.append(portrait.source)
        if portrait.source in self.broken:
            raise RuntimeError('this identity\ncannot be built')
        return portrait

    @staticmethod
    def animate(avatar, windows, labels):
        return Frames(rgb=np.repeat(avatar.image[None], len(windows), 0))

    @property
    def method(self):
        return launcher.Subject(
            'recorder', self.build, self.animate, weights='ab' * 32, networks={'perceptual': 'none'}
        )


def items(count=3):
    return [launcher.TestItem(f'person-{k}', lambda k=k: tiny_case(k)) for k in range(count)]


def test_report_of_a_run_with_a_failure(tmp_path):
    recorder = Recorder(broken=('person-1',))
    report = launcher.evaluate(tmp_path / 'out', recorder.method, items(), seed=5, settings={'people': 'random'})
    assert [r['name'] for r in report['identities']] == ['person-0', 'person-2']
    assert report['failed'] == [{'name': 'person-1', 'error': 'RuntimeError: this identity'}]
    assert report['mean']['source.psnr']['count'] == 0  # the portrait itself: infinite in both, so no finite mean
    driven = [r['scores']['driven.psnr_head'] for r in report['identities']]
    np.testing.assert_allclose(report['mean']['driven.psnr_head']['mean'], np.mean(driven), rtol=1e-6)
    assert report['unavailable']['driven.aed'] and report['networks']['perceptual loss'] == 'none'
    assert report['provenance']['weights'] == 'ab' * 32 and report['provenance']['seed'] == 5
    on_disk = json.loads((tmp_path / 'out/report.json').read_text())
    assert on_disk == report
    text = (tmp_path / 'out/report.txt').read_text()
    for part in ('person-0', 'person-1: RuntimeError', 'unavailable', 'Driven frames'):
        assert part in text, part
    failed = json.loads((tmp_path / 'out/identities/person-1.json').read_text())
    assert 'Traceback' in failed['traceback']


def test_contact_sheet_carries_provenance(tmp_path):
    from PIL import Image

    launcher.evaluate(tmp_path, Recorder().method, items(1))
    with Image.open(tmp_path / 'identities/person-0.png') as sheet:
        assert sheet.size == (3 * SIZE, 5 * SIZE)
        assert from_metadata(sheet.info).synthetic
    launcher.evaluate(tmp_path / 'plain', Recorder().method, items(1), sheets=False)
    assert not list((tmp_path / 'plain').rglob('*.png'))


def test_an_interrupted_run_continues(tmp_path):
    first = Recorder(stop_at='person-2')
    with pytest.raises(KeyboardInterrupt):
        launcher.evaluate(tmp_path / 'a', first.method, items())
    second = Recorder()
    report = launcher.evaluate(tmp_path / 'a', second.method, items())
    assert first.built == ['person-0', 'person-1'] and second.built == ['person-2']
    whole = launcher.evaluate(tmp_path / 'b', Recorder().method, items())
    assert report['mean'] == whole['mean']
    # A damaged result is made again, a failed identity is tried again.
    (tmp_path / 'a/identities/person-0.json').write_text('{"status": "do')
    third = Recorder(broken=('person-0',))
    assert launcher.evaluate(tmp_path / 'a', third.method, items())['failed']
    fourth = Recorder()
    assert launcher.evaluate(tmp_path / 'a', fourth.method, items())['mean'] == whole['mean']
    assert third.built == fourth.built == ['person-0']


def test_shares_of_several_machines_make_one_report(tmp_path):
    """Three shares of two people with one folder, the last one empty; then the report of all, for which nothing is
    built again.
    """
    whole = launcher.evaluate(tmp_path / 'whole', Recorder().method, items(2))
    for k in (3, 2, 1):
        mine, recorder = share_of(2, f'{k}/3'), Recorder()
        some = [items(2)[i] for i in mine]
        found = launcher.evaluate(tmp_path / 'out', recorder.method, some, part=part_of(f'{k}/3'))
        assert recorder.built == [item.name for item in some] == [r['name'] for r in found['identities']]
    assert not (tmp_path / 'out' / 'report.json').exists() and (tmp_path / 'out' / 'report_1_of_3.txt').exists()
    last = Recorder()
    together = launcher.evaluate(tmp_path / 'out', last.method, items(2))
    assert last.built == [] and together['mean'] == whole['mean'] and together['about'] == whole['about']


def test_a_folder_belongs_to_one_evaluation(tmp_path):
    launcher.evaluate(tmp_path, Recorder().method, items(1), seed=1)
    with pytest.raises(UserError, match='another evaluation .different: seed'):
        launcher.evaluate(tmp_path, Recorder().method, items(1), seed=2)
    (tmp_path / 'run.json').write_text('nothing')
    with pytest.raises(UserError, match='damaged'):
        launcher.evaluate(tmp_path, Recorder().method, items(1), seed=1)


def test_procedural_items_depend_on_the_seed():
    config = ProtocolConfig(frames=2, clip_frames=20, resolution=32)
    short, longer = (people.procedural_items(count, 1, config) for count in (2, 3))
    assert [i.name for i in longer[:2]] == [i.name for i in short]
    a, b = short[0].make(), longer[0].make()
    np.testing.assert_array_equal(a.portrait.image, b.portrait.image)
    np.testing.assert_array_equal(a.driven.truth, b.driven.truth)
    other = people.procedural_items(2, 2, config)[0].make()
    assert np.abs(a.portrait.image - other.portrait.image).mean() > 0.01
    with pytest.raises(UserError, match='identities'):
        people.procedural_items(0, 0, config)
    with pytest.raises(UserError, match='seed'):
        people.procedural_items(1, -1, config)


def test_clips_of_a_data_set():
    from data_pipelines.clips import ClipOptions
    from data_pipelines.sources import RenderedFrames

    options = ClipOptions(num_frames=4, multi_view_share=0)
    source = RenderedFrames.of_people(3, split='test', resolution=32, options=options)
    found = people.clip_items(source, 2, ProtocolConfig(resolution=32, frames=2))
    assert len(found) == 2 and found[0].name != found[1].name
    case = found[1].make()
    assert len(case.driven) == 2 and case.portrait.image.min() >= -1 and case.portrait.image.max() <= 1
    # Labels, masks and landmarks belong to the pictures: the nose tip lies on the head.
    x, y = case.source.landmarks[0, 30].astype(int)
    assert case.source.mask[0, y, x] > 0.9
    np.testing.assert_array_equal(case.source.labels[0], source[4]['label'])
    with pytest.raises(UserError, match='32 pixels, the avatars have 64'):
        people.clip_items(source, 2, ProtocolConfig(resolution=64))


def test_perception_option():
    assert named_files(['vgg19=a/b.npz'])['vgg19'].name == 'b.npz'
    for wrong in ('vgg19', '=a.npz', 'vgg19='):
        with pytest.raises(UserError, match='NAME=FILE'):
            named_files([wrong])


@pytest.mark.slow
def test_otavatar_from_a_weight_file(tmp_path, capsys):
    """The subcommand on a generator of a few thousand untrained parameters: one person, two frames."""
    import argparse

    import jax

    from avatar_jax.methods.otavatar import model
    from launch import evaluate as command

    config = model.ModelConfig.tiny('paper')
    weights = tmp_path / 'tiny.safetensors'
    model.save_model(weights, model.init(config, jax.random.key(0)), config, {'command': 'test'})
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)

    def run(*more):
        options = ['--out', str(tmp_path / 'out'), '--identities', '1', '--frames', '2', '--steps', '2']
        return command.run(parser.parse_args([*options, '--weights', str(weights), *more]))

    assert run() == 0
    printed = capsys.readouterr()
    assert 'PSNR in the head mask' in printed.out and 'test-000000-000' in printed.out
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert report['run']['weights'] == report['provenance']['weights'] != ''
    assert report['run']['method_settings']['options']['steps'] == 2
    assert {'perceptual loss', 'identity loss', 'coefficients', 'lpips'} <= set(report['networks'])
    assert run() == 0 and 'done already' in capsys.readouterr().err
    with pytest.raises(UserError, match='different: method_settings'):
        run('--steps', '3')
    for wrong in (['--identities', '0'], ['--steps', '0'], ['--perception', 'vgg19'], ['--split', 'train']):
        with pytest.raises(UserError):
            run(*wrong)


@pytest.mark.slow
def test_portraits_of_the_ablation_are_independent():
    """Tens of degrees and other expressions lie between them; another seed gives other people."""
    from avatar_jax.faces.camera_labels import pose_from_label
    from avatar_jax.faces.pose import rotation_matrix

    sets, turns, moved = people.portrait_sets(6, 2, 16), [], []
    for k in range(6):
        item = sets(k)
        assert item['images'].shape == (3, 16, 16, 3) and item['windows'].shape == (3, 27, 70)
        assert item['masks'].shape == (3, 16, 16) and item['masks'].max() == 255
        angle, _ = pose_from_label(item['labels'].astype(np.float64))
        rotations = np.asarray(rotation_matrix(angle))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            cosine = (np.trace(rotations[a] @ rotations[b].T) - 1) / 2
            turns.append(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))
            moved.append(np.abs(item['windows'][a, 13, :64] - item['windows'][b, 13, :64]).max())
    assert np.median(turns) > 20 and np.min(moved) > 0.05
    np.testing.assert_array_equal(sets(1)['images'], people.portrait_sets(6, 2, 16)(1)['images'])
    assert np.abs(sets(0)['images'] - people.portrait_sets(1, 2, 16, seed=1)(0)['images']).max() > 0.1
    with pytest.raises(IndexError):
        sets(6)


@pytest.mark.parametrize(
    ('changed', 'option'),
    [
        ({'kind': 'cross'}, '--protocol'),
        ({'rule': 'paper'}, '--portrait-frames'),
        ({'source_yaw': 9.0}, '--source-yaw'),
        ({'steady': 5}, '--steady'),
        ({'portraits': 2}, '--portraits'),
    ],
)
def test_what_says_nothing_about_people_of_videos_is_refused(changed, option):
    with pytest.raises(UserError, match=f'^{option}: says nothing about people who are learned from a video'):
        personal.check_protocol(ProtocolConfig(**changed), None)


def test_people_of_videos_are_measured_beside_an_avatar_of_one_frame(monkeypatch, tmp_path):
    seen, said = [], []

    def model(basis):
        config = SimpleNamespace(img_resolution=32, basis=basis, label_mode='raw')
        return SimpleNamespace(config=config, method=SimpleNamespace(title='Other'))

    def measure(case, own, options, bank, on_step, one, estimators):
        assert estimators == 'networks'
        work = Path(case.source.work)
        work.mkdir(parents=True)
        on_step(3, loss=0.5)
        seen.append((work, own, options, one))
        return 'scores'

    one = model('procedural')
    monkeypatch.setattr(personal, 'choose_model', lambda *names: one)
    monkeypatch.setattr(personal, 'measure_video', measure)
    case = dataclasses.make_dataclass('Case', ['name', 'source'])('anna', Source([portrait(0)]))
    steps = []
    for basis, compared in (('procedural', one), ('flame-2020', None)):
        own = model(basis)
        scores = personal.measuring(own, {'a': 1}, None, tmp_path, said.append, 'networks')(case, steps.append)
        assert scores == 'scores' and seen[-1] == (tmp_path / 'training' / 'anna', own, {'a': 1}, compared)
    assert steps == [3, 3] and not seen[0][0].exists(), 'nothing is left of the training'
    (why,) = said
    assert "basis is 'flame-2020', that of Other 'procedural'" in why
    personal.check_protocol(ProtocolConfig(frames=7), None)
    with pytest.raises(UserError, match='--measured'):
        personal.check_protocol(ProtocolConfig(), tmp_path)
