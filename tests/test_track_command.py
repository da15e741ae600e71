"""``avatar-jax track`` from files to folders, on rendered clips whose truth is known."""

import json
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from avatar_jax import cli
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.faces.conventions import Conventions
from avatar_jax.io.motion import load_motion
from avatar_jax.io.video import VideoReader, write_video
from avatar_jax.procedural import motion, render_head, sample_identity
from avatar_jax.track.folder import is_track, read_track
from avatar_jax.track.measure import measure
from data_pipelines.cameras import pose_labels
from data_pipelines.fitted import fitted
from data_pipelines.pairs import PairConfig, Pairs
from data_pipelines.sets import SetConfig, Sets
from data_pipelines.sources import open_source

SIZE = 192
SHOWN = 10  # frames of each piece of the long clip


def rendered(seed, count, background, start=0):
    """Frames [count,SIZE,SIZE,3] uint8 of a speaking head before a plain background, and its landmarks, angles."""
    arrays = motion.speech_arrays(seed, start + count)
    identity = sample_identity(seed, 'test')
    frames, landmarks = [], []
    for t in range(start, start + count):
        label = pose_labels(arrays['angle'][t], arrays['translation'][t])
        head = render_head(
            identity, arrays['expression'][t], label, resolution=SIZE, supersample=1, background=background
        )
        frames.append(np.rint(255 * np.clip(head.rgb, 0, 1)).astype(np.uint8))
        landmarks.append(head.landmarks - 0.5)
    return np.stack(frames), np.stack(landmarks), arrays['angle'][start:]


@pytest.fixture(scope='module')
def person():
    return rendered(3, SHOWN, (0.4, 0.5, 0.6))


def run(*arguments):
    return cli.main(['track', *map(str, arguments)])


@pytest.fixture(scope='module')
def known(person, tmp_path_factory):
    """A clip with a file of landmarks, tracked."""
    folder = tmp_path_factory.mktemp('known')
    frames, landmarks, angles = person
    path = folder / 'my clip é 顔.mp4'
    write_video(path, frames, 25)
    np.save(folder / 'my clip é 顔.landmarks68.npy', landmarks)
    assert run(path, '--out', folder / 'out', '--size', 96, '--label-mode', 'raw') == 0
    return folder / 'out', landmarks, angles


@pytest.mark.slow
def test_everything_is_written(known):
    out, landmarks, angles = known
    folder = out / 'my clip é 顔'
    assert is_track(folder) and not is_track(out)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ['crops', 'masks', 'motion.npz', 'overlay.mp4', 'report.json', 'track.npz']
    arrays = read_track(folder)
    assert (
        arrays['found'].all() and arrays['labels'].shape == (SHOWN, 25) and arrays['coefficients'].shape == (SHOWN, 260)
    )
    assert np.abs(arrays['landmarks'] - landmarks).mean() < 1.0
    assert np.rad2deg(np.abs(arrays['angle'] - angles).mean()) < 2.0
    crops = sorted((folder / 'crops').glob('*.jpg'))
    assert len(crops) == SHOWN and Image.open(crops[0]).size == (96, 96)
    assert len(list((folder / 'masks').glob('*.png'))) == SHOWN
    overlay = VideoReader(folder / 'overlay.mp4')
    assert overlay.num_frames == SHOWN and overlay.fps == 25
    report = json.loads((folder / 'report.json').read_text())
    assert report['landmarks_from'].startswith('file') and report['missing'] == [] and report['faces_found'] == SHOWN
    assert report['quality']['grade'] in ('good', 'fair', 'poor')
    labels = json.loads((out / 'dataset.json').read_text())['labels']
    assert len(labels) == SHOWN and (out / labels[0][0]).is_file() and len(labels[0][1]) == 25


def test_the_crop_shows_what_the_landmarks_say(known, person):
    """The crop's pixels come from where the matrix says: colours at the landmarks agree with the frame's."""
    out, _, _ = known
    folder = out / 'my clip é 顔'
    arrays = read_track(folder)
    crop = np.asarray(Image.open(folder / 'crops' / '000000.jpg')).astype(int)
    places = np.rint(arrays['landmarks_crop'][0, [30, 33, 27, 8]]).astype(int)
    origin = np.rint(arrays['landmarks'][0, [30, 33, 27, 8]]).astype(int)
    found = np.stack([crop[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1)) for x, y in places])
    true = np.stack([person[0][0][y - 1 : y + 2, x - 1 : x + 2].mean((0, 1)) for x, y in origin])
    assert np.abs(found - true).max() < 35


def test_track_folder_drives_and_is_inverted(known):
    out, _, _ = known
    folder = out / 'my clip é 顔'
    driver = load_motion(folder, basis='procedural')
    assert driver.num_frames == SHOWN and driver.fps == 25
    clip = measure(folder, size=64, label_mode='orig')
    assert len(clip) == SHOWN and clip.fps == 25 and clip.motion().num_frames == SHOWN
    found = clip.best()
    arrays = read_track(folder)
    assert found.image.shape == (64, 64, 3) and found.mask.shape == (64, 64) and found.label.shape == (25,)
    truth = label_from_pose(arrays['angle'][found.index], arrays['translation'][found.index], 'orig')
    np.testing.assert_allclose(found.label, truth, atol=1e-6)
    made, own = found.portrait(), found.motion()
    np.testing.assert_allclose((made.landmarks + 0.5) * 96 / 64 - 0.5, arrays['landmarks_crop'][found.index], atol=1e-3)
    assert (made.expression == arrays['expression'][found.index]).all() and made.shape.shape == (80,)
    assert own.num_frames == 1 and own.basis == made.basis == 'procedural'
    assert any(note.startswith(f'frame {found.index} of {SHOWN}') for note in found.notes)
    json.dumps(found.report(), default=str)
    with pytest.raises(UserError, match='no face in frame 99'):
        clip.frame(99)
    dark, kept = (measure(folder, size=64, label_mode='raw', background=b).frame(0) for b in ('black', 'keep'))
    assert dark.image[2, 2].max() < 40 < kept.image[2, 2].min()
    with pytest.raises(UserError, match='was tracked already, so face says nothing'):
        measure(folder, size=64, label_mode='raw', face=2)
    assert len(list(clip)) == SHOWN


def test_folders_of_earlier_versions(known, tmp_path):
    """Without the entries that are new, the same is read."""
    import shutil

    out, _, _ = known
    folder = out / 'my clip é 顔'
    shutil.copytree(folder, tmp_path / 'old')
    arrays = {k: v for k, v in read_track(folder).items() if k not in ('fps', 'crop_size', 'label_mode')}
    np.savez(tmp_path / 'old' / 'track.npz', **arrays)
    new, old = (measure(f, size=64, label_mode='raw') for f in (folder, tmp_path / 'old'))
    np.testing.assert_allclose(old.landmarks, new.landmarks)
    assert old.fps == pytest.approx(new.fps) and (old.frame(1).image == new.frame(1).image).all()
    shutil.rmtree(tmp_path / 'old' / 'crops')
    with pytest.raises(UserError, match='has no crop of frame'):
        measure(tmp_path / 'old', size=64, label_mode='raw').best()


@pytest.mark.slow
def test_tracked_folders_are_a_source_for_training(known):
    folder = next(p for p in known[0].iterdir() if is_track(p))
    source, arrays = open_source(folder, 'train'), read_track(folder)
    assert len(source) == int(arrays['valid'].sum()) and source.has_masks
    assert source.conventions == Conventions(str(arrays['basis']), 'raw', 'keep', shape=80)
    row, number = source[1], int(np.flatnonzero(arrays['valid'])[1])
    np.testing.assert_allclose(
        row['label'], label_from_pose(arrays['angle'][number], arrays['translation'][number], 'raw'), atol=1e-6
    )
    np.testing.assert_array_equal(row['landmarks'], arrays['landmarks_crop'][number])
    np.testing.assert_array_equal(row['shape'], arrays['identity'][0][:80])
    np.testing.assert_allclose(source.table.motion[1, :64], arrays['expression'][number], rtol=1e-6)
    black, _ = fitted(source, Conventions(str(arrays['basis']), 'raw', 'black'), 'd')
    outside = row['mask'] == 0
    assert outside.any() and not black[1]['image'][outside].any()
    pair, pictures = Pairs(source, PairConfig())(0), Sets(source, SetConfig(frames=2))(0)
    for found in (pair, pictures):  # of the kinds that trainings read
        assert 'identity' not in found and found['landmarks'].shape == (2, 68, 2)
        np.testing.assert_array_equal(found['shapes'], [row['shape']] * 2)
    with pytest.raises(UserError, match='has no tracked folders for test'):
        open_source(folder, 'test')


def test_damaged_track_folders(tmp_path):
    (tmp_path / 'track.npz').write_bytes(b'PK\x03\x04 nonsense')
    with pytest.raises(UserError, match='is damaged'):
        read_track(tmp_path)
    np.savez(tmp_path / 'track.npz', a=1)
    with pytest.raises(UserError, match='not written by this version'):
        read_track(tmp_path)


@pytest.fixture(scope='module')
def eventful(person, tmp_path_factory):
    """A face that leaves and comes back, then a cut to somebody else; read by the network."""
    folder = tmp_path_factory.mktemp('eventful')
    frames, _, _ = person
    empty = np.full((6, SIZE, SIZE, 3), (102, 128, 153), np.uint8)
    other, _, _ = rendered(8, SHOWN, (0.1, 0.1, 0.1))
    path = folder / 'clip.mp4'
    write_video(path, np.concatenate([frames, empty, frames[::-1], other]), 25)
    assert run(path, '--out', folder / 'out', '--size', 64, '--no-masks') == 0
    return folder / 'out' / 'clip'


@pytest.mark.slow
def test_gaps_and_cuts_are_reported(eventful):
    report = json.loads((eventful / 'report.json').read_text())
    arrays = read_track(eventful)
    assert report['frames'] == 3 * SHOWN + 6 and arrays['found'].sum() >= 3 * SHOWN - 6
    assert not arrays['found'][SHOWN + 1 : SHOWN + 5].any()
    assert any(m['frames'][0] <= SHOWN + 1 and m['what'] in ('interpolated', 'held') for m in report['missing'])
    assert any('cut at frame' in note for note in report['notes'])
    assert len({*arrays['segment'][:SHOWN], *arrays['segment'][-SHOWN:]}) == 2
    assert len(report['motion_files']) == len(report['segments']) == arrays['segment'].max() + 1
    assert load_motion(eventful / 'motion_02.npz').num_frames >= SHOWN
    assert not (eventful / 'masks').exists()


def test_network_landmarks_are_near_the_truth(eventful, person):
    points, true = read_track(eventful)['landmarks'][:SHOWN], person[1]
    eyes = np.linalg.norm(true[:, 36:42].mean(1) - true[:, 42:48].mean(1), axis=-1).mean()
    assert np.linalg.norm(points - true, axis=-1).mean() / eyes < 0.12


def write_sound(path):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def png_of_900_megapixels():
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', 30000, 30000, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')
    )


@pytest.mark.slow
def test_bad_inputs_are_skipped_and_listed(person, tmp_path, capsys):
    frames, landmarks, _ = person
    Image.fromarray(frames[0]).save(tmp_path / 'good.png')
    np.savetxt(tmp_path / 'good.landmarks68.txt', landmarks[0])
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(tmp_path / 'noise.png')
    write_sound(tmp_path / 'sound.mp4')
    write_video(tmp_path / 'cut off.mp4', frames, 25)
    (tmp_path / 'cut off.mp4').write_bytes((tmp_path / 'cut off.mp4').read_bytes()[:3000])
    (tmp_path / 'empty.mov').write_bytes(b'')
    (tmp_path / 'huge.png').write_bytes(png_of_900_megapixels())
    write_video(tmp_path / 'один кадр.mp4', frames[:1], 25)
    np.save(tmp_path / 'один кадр.landmarks68.npy', landmarks[:1])
    assert run(tmp_path, tmp_path / 'missing.jpg', '--out', tmp_path / 'out', '--size', 64) == 2
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert [r['name'] for r in report['inputs']] == ['good', 'один кадр']
    reasons = {s['input'].rsplit('/', 1)[-1]: s['reason'] for s in report['skipped']}
    assert set(reasons) == {'noise.png', 'sound.mp4', 'cut off.mp4', 'empty.mov', 'missing.jpg', 'huge.png'}
    assert 'no face found' in reasons['noise.png'] and 'no picture track' in reasons['sound.mp4']
    assert 'empty' in reasons['empty.mov'] and 'no such file' in reasons['missing.jpg']
    assert 'too many pixels' in reasons['huge.png']
    err = capsys.readouterr().err
    assert '6 of 8 inputs were skipped' in err and 'Traceback' not in err
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['dataset.json', 'good', 'report.json', 'один кадр']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--size', '4'), '--size 4'),
        (('--smooth', '-1'), 'must not be negative'),
        (('--face', '0'), 'counted from 1'),
        (('--face', 'nobody.jpg'), 'a picture of the person'),
        (('--model', 'none.mat'), 'no such head model'),
        (('--mediapipe', 'none.task'), 'no such file'),
        (('--landmarks', 'a', 'b'), '2 files for 1 inputs'),
        (('--fps', '0'), '--fps 0.0: must be between'),
        (('--mediapipe', 'a', '--landmarks', 'b'), 'give one of them'),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    (tmp_path / 'a.png').write_bytes(b'x')
    assert run(tmp_path / 'a.png', '--out', tmp_path / 'out', *options) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_pixels_light_and_translation(person, tmp_path):
    """Refinement on the pixels keeps the pose, finds light, and its numbers reach the records."""
    frames, landmarks, angles = person
    Image.fromarray(frames[2]).save(tmp_path / 'a.png')
    np.savetxt(tmp_path / 'a.landmarks68.txt', landmarks[2])
    assert (
        run(tmp_path / 'a.png', '--out', tmp_path / 'out', '--size', 64, '--pixels', '--translation', '--no-masks') == 0
    )
    arrays = read_track(tmp_path / 'out' / 'a')
    assert np.rad2deg(np.abs(arrays['angle'][0] - angles[2]).max()) < 5
    assert (
        np.abs(arrays['coefficients'][0, 227:254]).max() > 0.01
        and np.abs(arrays['coefficients'][0, 144:224]).max() > 0.01
    )
    assert 'refined on the pixels' in json.loads((tmp_path / 'out' / 'a' / 'report.json').read_text())['notes']
