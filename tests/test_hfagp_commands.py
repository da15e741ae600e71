"""HFA-GP by commands: an avatar of a video with sound, driven by pictures, coefficients, sound and sound features."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from avatar_jax.cli import main
from avatar_jax.driving.audio import FeatureFile
from avatar_jax.driving.drivers import ClipPictures
from avatar_jax.driving.reading import read_request
from avatar_jax.driving.request import Request
from avatar_jax.errors import UserError
from avatar_jax.eval import personal
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.motion import save_motion
from avatar_jax.io.sound import has_sound, write_wav
from avatar_jax.io.video import VideoReader
from avatar_jax.methods import reading
from avatar_jax.methods.hfagp import keeping, model
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.methods.model import load_avatar
from avatar_jax.procedural.motion import speech_motion
from avatar_jax.track import measure as door
from avatar_jax.track.measured import MeasuredClip, Shown
from avatar_jax.types import Avatar, Camera
from data_pipelines.one_person.procedural import TalkOptions, write_talking_video
from data_pipelines.test_videos import video_items
from tests.hfagp_tiny import with_blank_person
from tests.test_io_sound import film

SIDE, FPS = 32, 10.0


def measured(frames=60, path='talk.mp4', found=None, segment=None, colours=None, times=None):
    """A clip as the tracker gives it, whose frame n is of one colour, with made-up speech."""
    motion = speech_motion(5, frames)
    coefficients = np.zeros((frames, 257), np.float32)
    coefficients[:, 80:144], coefficients[:, 224:227] = motion.expression, motion.angle

    def pictures(wanted, on_frame):
        for n in range(frames) if wanted is None else wanted:
            colour = n if colours is None else colours[n]
            yield Shown(n, np.full((SIDE, SIDE, 3), colour, np.uint8), np.ones((SIDE, SIDE), np.float32))

    return MeasuredClip(
        path,
        coefficients,
        label_from_pose(motion.angle, np.zeros((frames, 3)), 'raw').astype(np.float32),
        np.zeros((frames, 68, 2), np.float32),
        np.ones(frames, bool) if found is None else found,
        FPS,
        'procedural',
        ('pose', 'expression', 'landmarks'),
        pictures,
        segment=segment,
        times=times,
        sha256='0' * 64,
    )


def test_pictures_of_a_driver():
    found = np.ones(8, bool)
    found[[2, 3]] = False
    clip = measured(8, found=found, times=np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.55, 0.6, 0.7]))
    pictures = ClipPictures(clip, np.arange(7) / 10)
    assert list(pictures.numbers) == [0, 1, 1, 4, 4, 5, 6] and len(pictures) == 7
    assert [int(pictures[i][0, 0, 0]) for i in (0, 1, 2, 6, 3)] == [0, 1, 1, 6, 4]
    assert list(ClipPictures(measured(1), np.arange(3) / 10).numbers) == [0, 0, 0]
    with pytest.raises(UserError, match='shows no face'):
        ClipPictures(measured(3, found=np.zeros(3, bool)), np.arange(3))


def test_a_clip_with_cuts_gives_its_longest_shot(tmp_path, monkeypatch):
    path, config = film(tmp_path / 'two.mp4', seconds=1), SimpleNamespace(img_resolution=SIDE, label_mode='raw')
    config.basis, found, segment = 'procedural', np.ones(10, bool), np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    found[4] = False
    monkeypatch.setattr(reading, 'background_of', lambda *_: 'white')
    monkeypatch.setattr(reading, 'measure', lambda *_, **__: measured(10, path, found, segment))
    source = reading.read_clip(path, config)
    assert list(source.portraits.numbers) == [3, 5, 6, 7, 8, 9] and source.portraits.best().index in (3, 5, 6, 7, 8, 9)
    np.testing.assert_allclose(source.times, [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert source.notes == ('the longest of 2 shots (cuts, or other people) is used: 6 of 10 frames',)
    assert source.sound == str(path)
    monkeypatch.setattr(reading, 'measure', lambda *_, **__: measured(10, path, found))
    assert reading.read_clip(path, config).notes == ('1 of 10 frames show no face and are left out',)


def test_a_sound_alone(tmp_path):
    write_wav(tmp_path / 'a.wav', np.zeros(16000 * 2))
    label = label_from_pose(np.array([[0.1, 0.2, 0.0]]), np.zeros((1, 3)), 'raw')[0]
    avatar = Avatar({}, camera=Camera.from_label(label))
    driving = read_request(Request(None, sound=str(tmp_path / 'a.wav')), 'procedural', avatar, None)
    assert driving.motion.num_frames == 50 and driving.heard is driving.track and driving.pictures is None
    np.testing.assert_allclose(driving.motion.angle[7], [0.1, 0.2, 0.0], atol=1e-5)
    for name, shape, count in (('windows', (30, 16, 29), 30), ('logits', (100, 29), 50)):
        np.save(tmp_path / f'{name}.npy', np.zeros(shape, np.float32))
        driving = read_request(Request(None, sound=str(tmp_path / f'{name}.npy')), 'procedural', avatar, None)
        assert driving.motion.num_frames == count and driving.track is None
        assert driving.heard == FeatureFile(tmp_path / f'{name}.npy')
    assert (
        read_request(Request(None, sound=str(tmp_path / 'a.wav'), frames=9), 'x', avatar, None).motion.num_frames == 9
    )
    np.save(tmp_path / 'one.npy', np.zeros(5, np.float32))
    for name, text in (('one.npy', 'sound features are windows'), ('none.npy', 'no such file')):
        with pytest.raises(UserError, match=text):
            read_request(Request(None, sound=str(tmp_path / name)), 'procedural', avatar, None)
    write_wav(tmp_path / 'short.wav', np.zeros(100))
    with pytest.raises(UserError, match='shorter than one frame'):
        read_request(Request(None, sound=str(tmp_path / 'short.wav')), 'procedural', avatar, None)


@pytest.mark.slow
def test_from_a_video_to_videos(tmp_path, monkeypatch, capsys):
    """Invert, interrupted as by kill -9 after its first state, and driven in all ways."""
    monkeypatch.chdir(tmp_path)
    config = ModelConfig.tiny('paper', 'picture', 'sound')
    small = {'encoder': {'coefficients': 64, 'picture_size': 16, 'picture_channels': (12, 8, 8)}, 'loss': {'size': 16}}
    config = dataclasses.replace(config, settings=config.settings.with_options(small))
    model.save_model('tiny.safetensors', with_blank_person(config), config, {})
    talk = film(tmp_path / 'talk.mp4', seconds=6)
    colours = np.random.default_rng(0).integers(0, 255, 60)
    monkeypatch.setattr(door, 'default_tracker', lambda: lambda *_, **__: measured(60, talk, colours=colours))
    command = ['invert', '--method', 'hfagp', '--weights', 'tiny.safetensors', '--image', 'talk.mp4', '--steps', '20']
    assert main([*command, '--out', 'whole']) == 0
    assert not (tmp_path / 'whole' / 'talk.training').exists()

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        patch.setattr(keeping, 'EVERY', 0.0)
        keep = keeping.Keeper.keep

        def killed(self, *given):
            keep(self, *given)
            raise Killed

        patch.setattr(keeping.Keeper, 'keep', killed)
        with pytest.raises(Killed):
            main([*command, '--out', 'parts'])
    assert (tmp_path / 'parts' / 'talk.training' / keeping.PREVIEW).is_file()
    capsys.readouterr()
    assert main([*command, '--out', 'parts']) == 0
    assert 'goes on after step 10' in capsys.readouterr().err
    whole, parts = (load_avatar(tmp_path / n / 'talk') for n in ('whole', 'parts'))
    jax.tree.map(np.testing.assert_array_equal, whole.identity, parts.identity)
    reports = [json.loads((tmp_path / n / 'talk' / 'report.json').read_text()) for n in ('whole', 'parts')]
    assert reports[0]['scores'] == reports[1]['scores'] and reports[0]['frozen_steps'] == reports[1]['frozen_steps']

    def animate(folder, *options):
        given = ['--avatar', folder, '--weights', 'tiny.safetensors', '--out', 'v.mp4', *options]
        status = main(['animate', *given])
        return status or len(list(VideoReader('v.mp4')))

    # By pictures: anybody's video, which also gives the sound; a motion has none.
    assert animate('whole/talk', '--motion', 'talk.mp4', '--frames', '3') == 3 and has_sound('v.mp4')
    save_motion('m.npz', speech_motion(2, 3))
    capsys.readouterr()
    assert animate('whole/talk', '--motion', 'm.npz') == 2
    assert 'it has no pictures); give a video or a picture' in capsys.readouterr().err
    assert animate('whole/talk', '--sound', 'talk.mp4') == 2
    assert '--motion: who drives the avatar?' in capsys.readouterr().err
    # An avatar that was trained with several is driven as one likes.
    assert animate('whole/talk', '--driver', 'sound', '--sound', 'talk.mp4', '--frames', '3') == 3
    assert animate('whole/talk', '--driver', 'coefficients', '--motion', 'm.npz') == 2
    assert (
        '--driver coefficients: this avatar was not trained with it; there are picture, sound'
        in capsys.readouterr().err
    )
    # By sound: alone, with a motion for the head, and not by features of another kind.
    # Its generator stays what it was; above it was tuned.
    assert main([*command[:-1], '2', '--frozen-steps', '2', '--drivers', 'sound', '--out', 'heard']) == 0
    assert animate('heard/talk', '--sound', 'talk.mp4', '--frames', '3') == 3 and has_sound('v.mp4')
    assert animate('heard/talk', '--motion', 'm.npz', '--sound', 'talk.mp4') == 3
    np.save('aud.npy', np.zeros((30, 16, 29), np.float32))
    capsys.readouterr()
    assert animate('heard/talk', '--sound', 'aud.npy') == 2
    assert 'gives deepspeech features, but this avatar reads mel' in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_on_unseen_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_talking_video('people/anna', 3, 0, TalkOptions(frames=70, fps=10.0, size=32, supersample=1))
    config = ModelConfig.tiny('paper', 'coefficients', 'sound')
    settings = config.settings.with_options({'encoder': {'coefficients': 64}})
    config = dataclasses.replace(config, settings=settings)
    model.save_model('tiny.safetensors', with_blank_person(config), config, {})
    command = ['evaluate', '--method', 'hfagp', '--weights', 'tiny.safetensors', '--out', 'e']
    options = ['--dataset', 'people', '--frames', '4', '--steps', '2', '--frozen-steps', '0']
    assert main([*command, *options]) == 0
    said = capsys.readouterr()
    assert 'no comparison with an avatar of one frame: img_resolution is 32' in said.err
    report = json.loads((tmp_path / 'e' / 'report.json').read_text())
    (person,) = report['identities']
    scores = person['scores']
    for way in ('coefficients', 'sound'):
        gain = scores[f'{way}.psnr_head'] - scores['mean_frame.psnr_head']
        assert scores[f'gain_{way}.psnr_head_over_mean_frame'] == pytest.approx(gain)
        assert -1 <= scores[f'{way}.mouth_correlation'] <= 1 and f'driven by their {way}' in said.out
        assert {f'{way}.{s}' for s in ('prmse', 'aucon', 'avd', 'aed')} <= scores.keys() | person['unavailable'].keys()
    assert len(person['frames']['truth.mouth_opening']) == 4 and (tmp_path / 'e' / 'identities' / 'anna.png').is_file()
    # The true pictures tell the opening that the mouth has.
    case = next(item.make() for item in video_items(tmp_path / 'people', 1, 0, 4, 9, tmp_path)[0])
    assert len(case.source.portraits) == 56 and len(case.motion.expression) == 14 and case.start == pytest.approx(5.6)
    assert personal.best_frame(case.source) in range(56)
    for option in (['--portraits', '2'], ['--steady', '3'], ['--frames', '1'], ['--dataset', str(tmp_path / 'e')]):
        assert main([*command[:-1], 'f', *options, *option]) == 2
        assert capsys.readouterr().err.count('\n') == 1


def test_another_training_is_not_gone_on_with(tmp_path):
    fresh = SimpleNamespace()
    state = {'a': np.zeros(3, np.float32)}
    curves = {name: np.zeros(2, np.float32) for name in keeping.CURVES}
    with keeping.Keeper(str(tmp_path / 'w'), {'steps': 5}) as keeper:
        assert keeper.restored(state).done == 0 and not keeper.due()
        keeper._store.save(2, {**keeping._stored(keeping.TrainingSoFar(state, 2, 7.5, 1)), 'curves': curves})
        with pytest.raises(UserError, match='training'), keeping.Keeper(str(tmp_path / 'w'), {'steps': 5}):
            pass
    with keeping.Keeper(str(tmp_path / 'w'), {'steps': 5}) as keeper:
        found = keeper.restored(state)
        assert (found.done, found.elapsed, found.tuned_from) == (2, 7.5, 1) and keeper.notes
    with keeping.Keeper(str(tmp_path / 'w'), {'steps': 6}) as keeper:
        assert 'another one; it begins anew' in keeper.notes[0] and keeper.restored(state).done == 0
    assert (tmp_path / 'w_1' / '2').is_dir(), 'nothing that was computed is lost'
    with keeping.Keeper('', {}) as keeper:
        assert keeper.restored(fresh).state is fresh and not keeper.due()
