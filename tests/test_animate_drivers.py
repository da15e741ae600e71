"""avatar-jax animate with every kind of driver, through the command line, on a tiny model."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from avatar_jax.cli import main
from avatar_jax.driving import drivers
from avatar_jax.driving.bases import BFM, PROCEDURAL
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.atomic import write_json
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.motion import save_motion
from avatar_jax.io.sound import has_sound
from avatar_jax.io.video import VideoFrame, VideoReader, write_video
from avatar_jax.methods.model import save_avatar
from avatar_jax.methods.otavatar import model
from avatar_jax.procedural.motion import speech_motion
from avatar_jax.track import measure as door
from avatar_jax.track.measure import MeasuredClip
from data_pipelines.clips import evaluation_clips
from tests.test_io_sound import film
from tests.test_otavatar_model import SHORT, VARIABLES, some_avatar


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with weights and an avatar."""
    folder = tmp_path_factory.mktemp('animate')
    model.save_model(folder / 'tiny.safetensors', VARIABLES, SHORT, {'seed': 0})
    _, _, digest, _ = model.load_model(folder / 'tiny.safetensors')
    save_avatar(folder / 'face', some_avatar().replace(weights=digest), {})
    return folder


@pytest.fixture
def animate(place, monkeypatch):
    monkeypatch.chdir(place)

    def run(*arguments, out='v.mp4'):
        return main(
            [
                'animate',
                '--avatar',
                'face',
                '--weights',
                'tiny.safetensors',
                '--out',
                out,
                '--per-call',
                '3',
                *map(str, arguments),
            ]
        )

    return run


class KnownTracker:
    """Gives made-up speech for every frame it is shown, and remembers how many those were."""

    name, basis, parts = 'known', PROCEDURAL, ('pose', 'expression', 'identity', 'landmarks')

    def __call__(self, frames, **options):
        self.seen = [f.index for f in frames]
        motion = speech_motion(5, len(self.seen))
        coefficients = np.zeros((len(self.seen), 257), np.float32)
        coefficients[:, 80:144], coefficients[:, 224:227] = motion.expression, motion.angle
        return MeasuredClip(
            frames.path,
            coefficients,
            np.zeros((len(self.seen), 25), np.float32),
            np.zeros((len(self.seen), 68, 2), np.float32),
            np.ones(len(self.seen), bool),
            float(frames.fps),
            self.basis,
            self.parts,
            notes=('tracked',),
        )


@pytest.fixture
def tracker(monkeypatch):
    known = KnownTracker()
    monkeypatch.setattr(door, 'default_tracker', lambda: known)
    return known


@pytest.mark.slow
def test_numbers(animate, place, capsys):
    assert animate('--slider', 'jaw_open=0.6', 'blink_l=1', 'yaw=20', '--frames', '3') == 0
    assert len(list(VideoReader(place / 'v.mp4'))) == 3
    capsys.readouterr()
    for option, said in (('jaw_opn=1', 'did you mean jaw_open'), ('jaw_open=7', 'runs from 0 to 1')):
        assert animate('--slider', option, out='no.mp4') == 2
        message = capsys.readouterr().err
        assert said in message and 'Traceback' not in message
    assert animate(out='no.mp4') == 2
    assert '--slider' in capsys.readouterr().err and not (place / 'no.mp4').exists()


def test_coefficients_and_motion_options(animate, place, capsys, monkeypatch):
    save_motion(place / 'm.npz', speech_motion(2, 3))
    assert (
        animate(
            '--motion', 'm.npz', '--relative', '--only', 'mouth', 'pose', '--amplify', '1.5', '--slider', 'blink_r=1'
        )
        == 0
    )
    assert 'taken as the neutral one' in capsys.readouterr().err
    np.savez(place / 'deep3d.npz', coeff=np.zeros((3, 257), np.float32))
    monkeypatch.setenv('AVATAR_ASSETS', str(place))
    assert animate('--motion', 'deep3d.npz', out='no.mp4') == 2
    message = capsys.readouterr().err
    assert f"basis '{BFM}': its head model is not here" in message and message.count('\n') == 1
    assert animate('--motion', 'm.npz', '--neutral', '9', '--relative', out='no.mp4') == 2
    assert '--neutral 9: the driver has the frames 0 to 2' in capsys.readouterr().err
    assert animate('--motion', 'm.npz', '--only', 'ears', out='no.mp4') == 2
    assert 'choose from' in capsys.readouterr().err


def test_video_with_sound(animate, place, capsys, tracker):
    film(place / 'drei Wörter.mp4', seconds=1)
    assert animate('--motion', 'drei Wörter.mp4', '--frames', '3') == 0
    assert tracker.seen == [0, 1, 2], 'no more frames are measured than are used'
    video = VideoReader(place / 'v.mp4')
    assert video.fps == 10 and len(list(video)) == 3 and has_sound(place / 'v.mp4')
    assert 'with sound' in capsys.readouterr().out
    assert animate('--motion', 'drei Wörter.mp4', '--frames', '3', '--sound', 'none') == 0
    assert not has_sound(place / 'v.mp4')
    save_motion(place / 'm.npz', speech_motion(2, 3))
    assert animate('--motion', 'm.npz', '--sound', 'drei Wörter.mp4') == 0 and has_sound(place / 'v.mp4')
    assert animate('--motion', 'm.npz', '--sound', 'm.npz', out='no.mp4') == 2
    capsys.readouterr()


def test_still(animate, place, tracker):
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(place / 'still.png')
    assert animate('--motion', 'still.png', '--frames', '3') == 0
    assert len(list(VideoReader(place / 'v.mp4'))) == 3 and tracker.seen == [0]


def test_tracked_folder(tmp_path, animate, place):
    source = film(tmp_path / 'a.mp4', seconds=1)
    folder = tmp_path / 'tracked'
    folder.mkdir()
    save_motion(folder / 'motion.npz', speech_motion(2, 3))
    with pytest.raises(UserError, match='without motion.npz'):
        drivers.open_driver(tmp_path)
    assert drivers.open_driver(folder).media is None
    np.savez(folder / 'track.npz', time=np.arange(10) / 10)
    report = {
        'file': str(source),
        'sha256': file_sha256(source),
        'motion_files': [{'file': 'motion.npz', 'frames': [4, 6]}],
    }
    write_json(folder / 'report.json', report)
    driver = drivers.open_driver(folder)
    assert driver.media == source and driver.start == 0.4 and driver.motion.num_frames == 3
    assert animate('--motion', folder) == 0 and has_sound(place / 'v.mp4')
    write_json(folder / 'report.json', report | {'sha256': 'another'})
    assert drivers.open_driver(folder).media is None, 'another file has taken its place'


def test_uneven_time_stamps_are_evened_out():
    times = np.array([2.0, 2.04, 2.08, 2.28, 2.32])  # a gap in the middle
    numbers = np.zeros((5, 257), np.float32)
    found = MeasuredClip('clip', numbers, None, None, np.ones(5, bool), 25.0, PROCEDURAL, ('pose',), times=times)
    assert found.start == 2.0
    with pytest.raises(UserError, match='has no pictures'):
        found.best()
    found.coefficients[:, 225] = times - 2
    motion = found.motion()
    assert motion.num_frames == 9
    np.testing.assert_allclose(motion.angle[:, 1], np.arange(9) / 25, atol=1e-6)
    steady = np.arange(5) / 25 + 0.001 * np.array([0, 1, -1, 1, 0])
    assert dataclasses.replace(found, times=steady).motion().num_frames == 5


def test_files_that_cannot_drive(animate, place, capsys):
    film(place / 'sound.m4a', picture=False, seconds=1)
    write_video(place / 'empty room.mp4', (np.full((64, 64, 3), 80, np.uint8) for _ in range(2)), 25)
    (place / 'text.mp4').write_text('hello')
    (place / 'text.jpg').write_text('hello')
    for name, said in (
        ('sound.m4a', 'no picture track'),
        ('empty room.mp4', 'no face found in any'),
        ('text.mp4', 'not a video'),
        ('text.jpg', 'not a picture'),
        ('nothing.mp4', 'no such file'),
    ):
        with pytest.raises(UserError, match=said) as caught:
            drivers.open_driver(place / name)
        assert name in str(caught.value) and '\n' not in str(caught.value)
    assert animate('--motion', 'text.mp4', out='no.mp4') == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith('avatar-jax: error: text.mp4: is not a video') and not (place / 'no.mp4').exists()


# --- the tracker behind it --------------------------------------------------------------------------------------------


class Faces:
    """Pictures of a procedural head that turns; one frame without it."""

    fps, path = 4.0, 'heads.mp4'  # a face that was lost is looked for five times a second

    def __init__(self, yaws, empty=()):
        self.clip = evaluation_clips(1, seed=3, num_frames=len(yaws))[0]
        self.clip.angle[:], self.clip.translation[:] = 0, 0
        self.clip.angle[:, 1] = yaws
        self.empty, self.num_frames = empty, len(yaws)

    def __iter__(self):
        for k in range(self.num_frames):
            rgb = np.full((200, 200, 3), 255, np.uint8)
            if k not in self.empty:
                rgb = np.rint(255 * np.clip(self.clip.render(k, resolution=200).rgb, 0, 1)).astype(np.uint8)
            yield VideoFrame(k, 1.0 + k / self.fps, rgb)


@pytest.mark.slow
def test_the_default_tracker():
    """Angles and crops of a procedural head, one frame of which does not show it."""
    frames = Faces([-0.2, 0.0, 0.2, 0.3], empty=(1,))
    tracker = door.default_tracker()
    found = tracker(frames, size=64, label_mode='raw')
    assert found.basis == tracker.basis == PROCEDURAL and found.parts == tracker.parts
    assert found.found.tolist() == [True, False, True, True] and found.start == 1.0
    assert any('no face in 1 of 4 frames' in note for note in found.notes)
    motion = found.motion('x')
    assert motion.num_frames == 4 and np.isfinite(motion.coefficients).all()
    np.testing.assert_allclose(np.diff(motion.angle[[0, 2, 3], 1]), [0.4, 0.1], atol=0.08)
    np.testing.assert_allclose(found.labels, label_from_pose(motion.angle, motion.translation, 'raw'), atol=1e-4)
    pictures = list(found)
    assert [p.index for p in pictures] == [0, 1, 2, 3] and pictures[0].image.shape == (64, 64, 3)
    assert [p.found for p in pictures] == [True, False, True, True]
    image, mask = pictures[2].image, pictures[2].mask
    assert image[:4, :4].min() > 240 and mask[32, 32] > 0.78, 'the head before white'
    eyes = found.landmarks[2, 36:48].mean(0)
    assert 20 < eyes[0] < 44 and 15 < eyes[1] < 40
    assert (pictures[2].landmarks == found.landmarks[2]).all() and found.best_frame() in (0, 2)


@pytest.mark.slow
def test_every_name_drives_and_is_written(animate, place, capsys):
    from tests.nasty_names import NASTY, writable

    speech = speech_motion(1, 3)
    kept = [n for n in NASTY.values() if writable(place, n)]
    for name in kept[::4] + [NASTY['colons'], NASTY['no utf-8'], NASTY['leading dash']]:
        folder = place / 'names' / name
        folder.mkdir(parents=True, exist_ok=True)
        save_motion(folder / f'{name}.npz', speech)
        film(folder / 'tone.mkv', seconds=1).rename(folder / f'{name}.mkv')
        given = f'names/{name}/{name}'
        assert animate('--motion', f'{given}.npz', '--sound', f'{given}.mkv', out=f'{given}.mp4') == 0, name
        assert len(list(VideoReader(f'{given}.mp4'))) == 3 and has_sound(f'{given}.mp4')
    bare = NASTY['colons']
    save_motion(place / f'{bare}.npz', speech)
    assert animate('--motion', f'{bare}.npz', out=f'{bare}.mp4') == 0 and (place / f'{bare}.mp4').is_file()


def test_places_that_cannot_be_written_are_said_before_anything_is_rendered(animate, place, monkeypatch, capsys):
    from avatar_jax.methods import video

    monkeypatch.setattr(video, 'read_request', lambda *a: pytest.fail('too late'))
    (place / 'file').write_text('x')
    (place / 'folder.mp4').mkdir(exist_ok=True)
    (place / 'kept.mp4').write_text('old')
    for out, said in [
        ('folder.mp4', 'a folder of that name is in the way'),
        ('file/v.mp4', 'a file of that name is in the way'),
        ('n' * 300 + '.mp4', 'too long'),
        ('/proc/v.mp4', 'could not be written'),
    ]:
        assert animate('--motion', 'speech:1', out=out) == 2
        error = capsys.readouterr().err
        assert said in error and error.count('\n') == 1, error
    assert animate('--motion', 'speech:1', '--png', 'file', out='kept.mp4') == 2
    assert 'file: could not be written' in capsys.readouterr().err
    assert (place / 'kept.mp4').read_text() == 'old' and not [p for p in place.iterdir() if p.name.endswith('.part')]
