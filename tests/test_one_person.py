"""Videos of one person: released layouts, tracked folders, procedural talking videos, batches for training."""

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.sound import read_sound, write_wav
from avatar_jax.io.video import VideoReader
from avatar_jax.methods.hfagp.batches import training_batch, training_batches
from avatar_jax.methods.hfagp.cameras import flip_axes
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.track.output import FORMAT
from data_pipelines.heads.__main__ import build
from data_pipelines.one_person.__main__ import main
from data_pipelines.one_person.frames import PersonVideo, check_length, last_part
from data_pipelines.one_person.labels import smooth_in_time, smooth_labels
from data_pipelines.one_person.procedural import TalkOptions, read_talking, read_truth, write_talking_video
from data_pipelines.one_person.released import number_of, read_released
from data_pipelines.one_person.tracked import read_tracked
from data_pipelines.sources import BuiltFrames


def labels_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return label_from_pose(rng.normal(0, 0.1, (count, 3)), rng.normal(0, 0.1, (count, 3)), 'raw').astype(np.float32)


def picture(folder, name, value=0, size=32):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), value, np.uint8)
    pixels[: size // 2] += 20
    Image.fromarray(pixels).save(folder / name)


# ------------------------------------------------------------------------------------------------------------- labels


def test_smoothing_in_time():
    values = np.random.default_rng(0).normal(size=(9, 2))
    found = smooth_in_time(values, 1.0)
    kernel = np.exp(-0.5 * np.arange(-4, 5.0) ** 2)
    mirrored = np.concatenate([values[::-1], values, values[::-1]])
    for t in range(9):
        expected = (kernel / kernel.sum()) @ mirrored[9 + t - 4 : 9 + t + 5]
        np.testing.assert_allclose(found[t], expected, atol=1e-12)
    np.testing.assert_array_equal(smooth_in_time(values, 0), values)
    with pytest.raises(ValueError, match='negative'):
        smooth_in_time(values, -1)


def test_smooth_labels_stay_cameras():
    labels = labels_of(20)
    found = smooth_labels(labels)
    rotation = found[:, :16].reshape(-1, 4, 4)[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    np.testing.assert_array_equal(found[:, 16:], labels[:, 16:])
    assert np.abs(np.diff(found, axis=0)).mean() < 0.5 * np.abs(np.diff(labels, axis=0)).mean()
    steady = np.repeat(labels[:1], 5, 0)
    np.testing.assert_allclose(smooth_labels(steady), steady, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- released layouts


def nerface(folder, train=6, test=3, **changes):
    """A person in NerFACE's layout."""
    expressions = np.random.default_rng(1).normal(size=(train + test, 76))
    labels = labels_of(train + test)
    for part, start, stop in (('train', 0, train), ('test2', train, train + test)):
        crops = folder / part / 'cropped_images'
        for i in range(start, stop):
            picture(crops, f'f_{i:04d}.png', i)
        pairs = [[f'f_{i:04d}.png', labels[i].tolist()] for i in range(start, stop)]
        (crops / 'test.json').write_text(json.dumps({'labels': pairs}))
        frames = [
            {
                'file_path': f'./{part}/f_{i:04d}',
                'transform_matrix': np.eye(4).tolist(),
                'bbox': [0, 1, 0, 1],
                'expression': expressions[i].tolist(),
            }
            for i in range(start, stop)
        ]
        table = {'camera_angle_x': 0.5, 'intrinsics': [1, 1, 0.5, 0.5], 'frames': frames} | changes
        name = 'train' if part == 'train' else 'test'
        (folder / f'transforms_{name}.json').write_text(json.dumps(table))
    return labels, expressions


def test_nerface(tmp_path):
    labels, expressions = nerface(tmp_path / 'person')
    video = read_released(tmp_path / 'person')
    assert (list(video.train), list(video.test)) == (list(range(6)), [6, 7, 8])
    np.testing.assert_allclose(video.labels, labels, rtol=1e-6)
    np.testing.assert_allclose(video.signals['coefficients'], expressions, rtol=1e-6)
    assert video.pictures[7][-1, 0, 0] == 7 and video.basis == 'nerface' and not video.notes
    flipped = read_released(tmp_path / 'person', axes='opengl')
    np.testing.assert_allclose(flipped.labels, flip_axes(labels), rtol=1e-6)
    smooth = read_released(tmp_path / 'person', label_sigma=3.0)
    assert 1e-5 < np.abs(smooth.labels - labels).max() < 1
    with pytest.raises(UserError, match='has no sound to drive the avatar with'):
        video.need('sound')


def test_adnerf(tmp_path):
    folder = tmp_path / 'person'
    sound = np.random.default_rng(0).normal(size=(7, 16, 29)).astype(np.float32)
    labels = labels_of(9)
    for part, numbers in (('train', range(6)), ('test', range(6, 9))):
        for i in numbers:
            picture(folder / part / 'cropped_images', f'{i}.jpg', i)
        pairs = [[f'{i}.png', labels[i].tolist()] for i in numbers if i != 3]  # one crop has no camera
        (folder / part / 'cropped_images' / 'test.json').write_text(json.dumps({'labels': pairs}))
    frames = [{'img_id': i, 'aud_id': i + 1, 'transform_matrix': np.eye(4).tolist()} for i in range(9)]
    (folder / 'transforms_train.json').write_text(json.dumps({'focal_len': 1100, 'frames': frames}))
    with pytest.raises(UserError, match='aud.npy is missing'):
        read_released(folder)
    np.save(folder / 'aud.npy', sound.astype(np.float64))
    video = read_released(folder)
    assert len(video) == 8 and list(video.test) == [5, 6, 7] and 'left out' in video.notes[0]
    np.testing.assert_array_equal(video.signals['sound'], sound[[0, 1, 2, 4, 5, 6, 6, 6]])
    by_id = read_released(folder, sound_index='aud_id')
    np.testing.assert_array_equal(by_id.signals['sound'][:3], sound[[1, 2, 3]])
    np.testing.assert_allclose(video.times[:4], [0, 0.04, 0.08, 0.16])
    np.save(folder / 'aud.npy', sound[:, :8])
    with pytest.raises(UserError, match=r'aud.npy: has shape \[7, 8, 29\]'):
        read_released(folder)


def test_damaged_released_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match='made by tracking'):
        read_released(tmp_path)
    nerface(tmp_path / 'a', frames='none')
    with pytest.raises(UserError, match='no list of frames'):
        read_released(tmp_path / 'a')
    nerface(tmp_path / 'b', frames=[{'file_path': './train/f_0000', 'expression': [0.0] * 64}])
    with pytest.raises(UserError, match='has 64 numbers, NerFACE has 76'):
        read_released(tmp_path / 'b')
    nerface(tmp_path / 'c')
    (tmp_path / 'c/train/cropped_images/test.json').write_text('{"labels": [["f_0000.png", [1, 2]]]}')
    with pytest.raises(UserError, match='25 numbers'):
        read_released(tmp_path / 'c')
    (tmp_path / 'c/train/cropped_images/test.json').write_text('{')
    with pytest.raises(UserError, match=r'test.json: is damaged'):
        read_released(tmp_path / 'c')
    with pytest.raises(UserError, match='axes='):
        read_released(tmp_path / 'b', axes='blender')
    assert (number_of('f_0012'), number_of('7')) == (12, 7)
    with pytest.raises(UserError, match='has none'):
        number_of('front')


# ----------------------------------------------------------------------------------------------------- tracked folders


def tracked(folder, frames=60, fps=10.0, second=0, crops=True):
    """What ``avatar-jax track`` leaves: a shot, and after it another one of ``second`` frames."""
    total = frames + second
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    np.savez(
        folder / 'track.npz',
        format=np.array(FORMAT),
        basis=np.array('procedural'),
        time=np.arange(total) / fps,
        valid=np.ones(total, bool),
        found=np.ones(total, bool),
        segment=np.repeat([0, 1], [frames, second]),
        expression=rng.uniform(0, 1, (total, 64)),
        angle=rng.normal(0, 0.1, (total, 3)),
        translation=np.zeros((total, 3)),
    )
    for i in range(total if crops else 0):
        picture(folder / 'crops', f'{i:06d}.png', i)
        picture(folder / 'masks', f'{i:06d}.png', 0 if i % 2 else 235)
    return folder


def test_tracked_video(tmp_path):
    folder = tracked(tmp_path / 'a', second=20)
    write_wav(tmp_path / 'talk.wav', np.sin(np.arange(16000 * 4) / 5))
    video = read_tracked(folder, sound=tmp_path / 'talk.wav')
    assert len(video) == 60 and len(video.train) == 48 and list(video.test) == list(range(48, 60))
    assert video.notes[0] == 'the longest of 2 shots (cuts, or other people) is used: 60 of 80 frames'
    assert video.notes[1] == '20 frames lie beyond the end of the sound and are silent'
    assert video.signals['sound'].shape == (60, 16, 29) and video.features == 'mel' and video.basis == 'procedural'
    silent = read_tracked(folder, test_share=0.0)
    assert 'sound' not in silent.signals and len(silent.test) == 0
    white = read_tracked(folder, background='white')
    assert white.pictures[1][-1, 0, 0] == 255 and silent.pictures[1][-1, 0, 0] == 1


@pytest.mark.parametrize(
    ('make', 'text'),
    [
        ({'frames': 30}, 'shows the person for 2.9 s; a personal avatar needs at least 5 s'),
        ({'crops': False}, 'has no crop of frame 0'),
        ({'frames': 40, 'second': 45, 'fps': 20.0}, 'for 2.2 s'),
    ],
)
def test_unfit_tracks_are_refused(tmp_path, make, text):
    with pytest.raises(UserError, match=text):
        read_tracked(tracked(tmp_path / 'a', **make))


# ----------------------------------------------------------------------------------------------------- talking videos


@pytest.fixture(scope='module')
def talking(tmp_path_factory):
    options = TalkOptions(frames=60, fps=10.0, size=32, supersample=1)
    return write_talking_video(tmp_path_factory.mktemp('talk') / 'person_00', 3, 0, options), options


@pytest.mark.slow
def test_talking_video(talking):
    folder, options = talking
    video, truth = read_talking(folder), read_truth(folder)
    assert len(video) == 60 and video.picture(3, 16).shape == (16, 16, 3)
    film = list(VideoReader(folder / 'video.mp4'))
    assert len(film) == 60 and film[0].pixels.shape == (32, 32, 3)
    np.testing.assert_allclose([f.time for f in film], truth['times'], atol=1e-3)
    assert np.abs(film[20].pixels.astype(int) - video.pictures[20]).mean() < 6
    # Sound of the video and of the file are one.
    inside, beside = read_sound(folder / 'video.mp4').samples, read_sound(folder / 'sound.wav').samples
    size = min(len(inside), len(beside))
    assert np.corrcoef(inside[:size], beside[:size])[0, 1] > 0.9
    assert abs(len(beside) / 16000 - 6) < 1e-3
    assert truth['mouth'].max() > 3 * max(truth['mouth'].min(), 1e-3)
    assert video.signals['coefficients'].shape == (60, 64) and video.masks[0].shape[:2] == (32, 32)
    with pytest.raises(UserError, match='exists already'):
        write_talking_video(folder, 3, 0, options)
    (folder / 'truth.npz').rename(folder / 'kept.npz')
    (folder / 'truth.npz').write_bytes(b'PK\x03\x04')
    try:
        with pytest.raises(UserError, match='damaged'):
            read_talking(folder)
    finally:
        (folder / 'kept.npz').replace(folder / 'truth.npz')


def test_batches_are_a_function_of_seed_and_step(talking):
    video = read_talking(talking[0]).in_memory(32)
    config = ModelConfig.tiny('paper', 'picture', 'coefficients', 'sound')
    wide = config.settings.with_options({'encoder': {'coefficients': 64}, 'train': {'smooth_from': 3}})
    config = ModelConfig(config.generator, wide)
    narrow = ModelConfig(config.generator, config.settings.with_options({'encoder': {'coefficients': 7}}))
    for wrong, text in (
        (narrow, 'has 64 coefficients per frame, this avatar was trained with 7'),
        (dataclasses.replace(config, basis='bfm'), "of the basis 'procedural', the configuration's of 'bfm'"),
    ):
        with pytest.raises(UserError, match=text):
            next(training_batches(video, wrong, 1))
    with pytest.raises(UserError, match='gives deepspeech features'):
        next(training_batches(dataclasses.replace(video, features='deepspeech'), config, 1))
    whole = list(islice(training_batches(video, config, 1), 5))
    later = list(islice(training_batches(video, config, 1, start=2), 3))
    for a, b in zip(whole[2:], later, strict=True):
        assert set(a) == set(b)
        for k in a:
            np.testing.assert_array_equal(a[k], b[k])
    assert [('tuned' in b, b['sound'].ndim) for b in whole] == [(False, 3)] * 2 + [(True, 3)] + [(True, 4)] * 2
    assert whole[0]['pictures'].shape == (2, 32, 32, 3) and np.abs(whole[0]['pictures']).max() <= 1
    first = training_batch(video, np.array([0]), 32, ('sound',), neighbours=True)['sound']
    assert not first[0, :4].any()
    np.testing.assert_array_equal(first[0, 4:], video.signals['sound'][:4])
    last = training_batch(video, np.array([len(video.train) - 1]), 32, ('sound',), neighbours=True)['sound']
    assert not last[0, 5:].any()  # frames of the test part are not looked at


def test_videos_are_checked():
    good = {
        'name': 'a',
        'pictures': np.zeros((4, 8, 8, 3), np.uint8),
        'labels': labels_of(4),
        'times': np.arange(4.0),
        'signals': {'coefficients': np.zeros((4, 3))},
        'train': np.arange(4),
        'test': np.arange(0),
    }
    PersonVideo(**good)
    for changes, text in (
        ({'signals': {'coefficients': np.zeros((5, 3))}}, 'has 4 pictures, but 5 coefficients'),
        ({'signals': {'coefficients': np.full((4, 3), np.nan)}}, 'NaN'),
        ({'labels': np.zeros((4, 16))}, 'instead of 25'),
    ):
        with pytest.raises(UserError, match=text):
            PersonVideo(**(good | changes))
    with pytest.raises(UserError, match='test share'):
        last_part(10, 1.0)
    with pytest.raises(UserError, match='0.0 s'):
        check_length('a', np.zeros(1))


def test_command_and_options(tmp_path, capsys):
    args = ['--out', str(tmp_path / 'set'), '--frames', '6', '--fps', '6', '--size', '16']
    assert main(args) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'set' / 'person_00')
    with pytest.raises(UserError, match='for 0.8 s'):
        read_talking(tmp_path / 'set' / 'person_00')
    assert main(args) == 0  # what is there is kept
    assert main(['--out', str(tmp_path / 'x'), '--people', '0']) == 2
    assert main(['--out', str(tmp_path / 'x'), '--size', '4']) == 2
    assert 'error: ' in capsys.readouterr().err


@pytest.mark.slow
def test_heads_with_sound(tmp_path):
    folder = build('tiny', tmp_path, progress=False, audio=True, people=1)
    frames = BuiltFrames(folder, 'train')
    assert frames[0]['sound'].shape == (16, 29) and np.isfinite(frames[2]['sound']).all()
    name = str(frames.table.name[0])
    sound = read_sound(folder / 'sound' / f'{name}.wav')
    assert abs(sound.seconds - frames.table.num_frames[0] / frames.table.fps) < 1e-3
