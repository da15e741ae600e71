"""Parts of the tracker: filters, landmark layouts and files, head translation, the network's crops, sources."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from avatar_jax.errors import UserError
from avatar_jax.faces import translation
from avatar_jax.faces.camera_labels import canonical_label, split_label
from avatar_jax.io.landmarks import find_landmarks, read_landmark_frames, read_landmarks
from avatar_jax.ops.landmark_layouts import FROM_98, FROM_478, five_as_68, to_68
from avatar_jax.track import smooth
from avatar_jax.track.inputs import PictureFrames, Selected, find_inputs, is_photograph, open_frames
from avatar_jax.track.network import Reading
from avatar_jax.track.observe import FileLandmarks, increasing
from tests.comparison import close
from tests.parity.golden import golden_files, load

# ------------------------------------------------------------------------------------------------------------------
# time


def test_filter_takes_jitter_and_keeps_motion():
    times = np.arange(100) / 25
    rng = np.random.default_rng(0)
    path = np.stack([300 + 60 * np.sin(2 * times), 200 + 0 * times], 1)[:, None] + np.zeros((1, 5, 1))
    noisy = path + rng.normal(0, 1.0, path.shape)
    calm = smooth.steady(noisy, times, 1.0, spread=60.0)
    before, after = (smooth.jitter(p, times, 60.0) for p in (noisy, calm))
    assert after < 0.6 * before
    assert np.abs(calm - path).mean() < np.abs(noisy - path).mean()
    stronger = smooth.steady(noisy, times, 3.0, spread=60.0)
    assert smooth.jitter(stronger, times, 60.0) < after
    np.testing.assert_array_equal(smooth.steady(noisy, times, 0.0, spread=60.0), noisy)
    assert smooth.jitter(path[:2], times[:2], 60.0) == 0


def test_filter_follows_time_stamps():
    """A straight line stays one at any time stamps, and what is far apart in time is hardly mixed."""
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 50))
    still = np.full((50, 1), 3.0)
    np.testing.assert_allclose(smooth.steady(still, times, 1.0, 1.0), still)
    step = np.where(np.arange(50) < 25, 0.0, 1.0)[:, None]
    far = smooth.steady(step, np.arange(50) * 10.0, 1.0, 1.0)
    assert np.abs(far - step).max() < 0.01


def test_gaps_runs_and_time_stamps():
    values = np.array([0.0, 9.0, 9.0, 3.0, 9.0])
    known = np.array([True, False, False, True, False])
    filled = smooth.fill_gaps(values, known, np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(filled, [0, 1, 2, 3, 3])
    assert smooth.runs(~known) == [(1, 3), (4, 5)] and smooth.runs(np.zeros(3, bool)) == []
    assert (np.diff(increasing(np.array([0.0, 0.04, 0.04, 0.02, 0.2]))) > 0).all()


def test_motion_gets_an_even_rate():
    times = np.array([0.0, 0.04, 0.12, 0.16])
    values = times[:, None] * 10
    out = smooth.even_rate(values, times, 25.0)
    np.testing.assert_allclose(out[:, 0], [0, 0.4, 0.8, 1.2, 1.6], atol=1e-6)
    regular = np.arange(4)[:, None].astype(float)
    np.testing.assert_array_equal(smooth.even_rate(regular, np.arange(4) / 25, 25.0), regular)
    trembling = np.arange(5) / 25 + 0.001 * np.array([0, 1, -1, 1, 0])
    assert len(smooth.even_rate(np.zeros((5, 2)), trembling, 25.0)) == 5
    assert len(smooth.even_rate(np.zeros((1, 2)), np.zeros(1), 25.0)) == 1


# -------------------------------------------------------------------------------------------------------------
# landmarks


def test_layouts():
    assert len(FROM_98) == len(FROM_478) == 68 and len(set(FROM_98)) == len(set(FROM_478)) == 68
    points = np.arange(98 * 2).reshape(98, 2)
    assert to_68(points).shape == (68, 2) and (to_68(points)[60] == points[88]).all()
    assert to_68(np.zeros((3, 478, 2))).shape == (3, 68, 2)
    with pytest.raises(ValueError, match='cannot be turned'):
        to_68(np.zeros((21, 2)))
    five = np.array([[10, 10], [30, 10], [20, 20], [14, 30], [26, 30]], float)
    full, known = five_as_68(five)
    np.testing.assert_allclose((full[36] + full[39]) / 2, five[0])
    np.testing.assert_allclose(full[[30, 48, 54]], five[2:])
    assert known.sum() == 7


@pytest.mark.parametrize('count', [5, 68, 98, 478])
def test_landmark_files(tmp_path, count):
    points = np.random.default_rng(0).uniform(0, 100, (count, 2)).astype(np.float32)
    np.savetxt(tmp_path / 'a.landmarks.txt', points)
    np.save(tmp_path / 'b.npy', points)
    (tmp_path / 'c.json').write_text(json.dumps({'landmarks': points.tolist()}))
    (tmp_path / 'd.json').write_text(json.dumps(np.concatenate([points, points[:, :1]], 1).tolist()))
    for name in ('a.landmarks.txt', 'b.npy', 'c.json', 'd.json'):
        np.testing.assert_allclose(read_landmark_frames(tmp_path / name), points[None], rtol=1e-5)
        assert read_landmarks(tmp_path / name).shape == ((5, 2) if count == 5 else (68, 2))
    assert find_landmarks(tmp_path / 'a.jpg') == tmp_path / 'a.landmarks.txt'


def test_landmark_files_of_clips(tmp_path):
    points = np.random.default_rng(0).uniform(0, 100, (4, 68, 2)).astype(np.float32)
    np.save(tmp_path / 'a.npy', points)
    np.savetxt(tmp_path / 'b.txt', points.reshape(4, -1))
    frames = points.tolist()
    frames[1] = None
    (tmp_path / 'c.json').write_text(json.dumps(frames))
    np.testing.assert_allclose(read_landmark_frames(tmp_path / 'a.npy'), points)
    np.testing.assert_allclose(read_landmark_frames(tmp_path / 'b.txt'), points, rtol=1e-5)
    assert np.isnan(read_landmark_frames(tmp_path / 'c.json')[1]).all()
    with pytest.raises(UserError, match='holds 4 frames'):
        read_landmarks(tmp_path / 'a.npy')


@pytest.mark.parametrize(
    'content', ['{}', '[1, 2', '[[1, 2], [3]]', '{"landmarks": "a"}', '[[1, 2], [3, 4]]', 'null', '7']
)
def test_bad_landmark_files(tmp_path, content):
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(UserError, match='a.json'):
        read_landmark_frames(tmp_path / 'a.json')


def test_landmarks_outside_the_frame_are_no_face():
    points = np.random.default_rng(0).uniform(10, 90, (3, 68, 2))
    points[1] += 500
    points[2] = 7.0
    frame = SimpleNamespace(time=0.0, pixels=np.zeros((100, 100, 3), np.uint8))
    observed = FileLandmarks(points).observe([frame] * 3, 'clip')
    assert observed.found.tolist() == [True, False, False] and observed.size == (100, 100)
    with pytest.raises(UserError, match='of 3 frames, the input has 2'):
        FileLandmarks(points).observe([frame] * 2, 'clip')


def test_readings_that_are_faces():
    """Sure, the same in the mirror, and exact: one of these alone is not enough."""
    points = np.random.default_rng(0).uniform(10, 90, (68, 2))
    size = Reading(points, np.zeros(68)).size
    sigma = np.full(68, 0.05 * size)
    assert Reading(points, sigma, present=0.9, spread=0.05 * size).is_face
    assert not Reading(points, sigma, present=0.4, spread=0.05 * size).is_face
    assert not Reading(points, sigma, present=0.9, spread=0.15 * size).is_face
    assert not Reading(points, 2 * sigma, present=0.9, spread=0.05 * size).is_face
    assert not Reading(np.zeros((68, 2)), sigma, present=0.9).is_face


def test_five_points_are_completed_by_the_network():
    """The file's five stay where they are, the network gives the rest; what it reads elsewhere is another face."""
    from avatar_jax.faces.alignment import five_points

    rng = np.random.default_rng(0)
    truth = rng.normal(0, 25, (68, 2)) + 100
    truth[36:42], truth[42:48], truth[48:] = [80, 90], [120, 90], [100, 125]
    truth[30], truth[48], truth[54] = [100, 108], [85, 125], [115, 125]
    read = truth + 1.5

    def network(points, present=1.0):
        return SimpleNamespace(from_box=lambda pixels, face: Reading(points + 0.5, np.full(68, 3.0), present=present))

    frame = SimpleNamespace(time=0.0, pixels=np.zeros((200, 200, 3), np.uint8))
    five = five_points(truth)[None]
    found = FileLandmarks(five, network(read)).observe([frame], 'clip')
    np.testing.assert_allclose(five_points(found.points[0] - 0.5), five[0], atol=1e-4)
    np.testing.assert_allclose(found.points[0, 17:27] - 0.5, read[17:27], atol=1e-4)
    assert np.isfinite(found.sigma).all() and (found.sigma[0, [30, 48]] < 3).all() and (found.sigma[0, :17] == 3).all()
    for other in (network(read + 40), network(read, 0.1)):
        alone = FileLandmarks(five, other).observe([frame], 'clip')
        assert np.isinf(alone.sigma[0, 0]) and 'in 0 of 1 frames' in alone.notes[0]
    whole = FileLandmarks(truth[None], network(read)).observe([frame], 'clip')
    np.testing.assert_allclose(whole.points[0] - 0.5, truth, atol=1e-4)  # 68 points need no help
    assert whole.notes == []


# ------------------------------------------------------------------------------------------------------ head
# translation


@pytest.mark.parametrize(
    'path', [p for p in golden_files('blocks') if p.stem.startswith('nofa_maths')], ids=lambda p: p.stem
)
def test_head_translation_reference(path):
    golden = load(path)
    config = golden.config
    pivot = tuple(config['pivot'])
    for xp in (np, jnp):
        source, driving, pose = (xp.asarray(golden.inp[k]) for k in ('kp_src', 'kp_drv', 'c2w'))
        offset = translation.pixel_offset(driving, source, config['crop_side_px'])
        close(translation.pivot_depth(pose, pivot), golden.out['depth'], atol=1e-5)
        close(
            translation.translate_pose(pose, offset, config['f_norm'], pivot=pivot),
            golden.out['c2w_corrected'],
            atol=1e-5,
        )


@pytest.mark.parametrize('zoom', [None, 1.3])
def test_the_pivot_moves_by_the_offset(zoom):
    label = canonical_label()
    label[[3, 7]] = 0.2, -0.1
    offset = np.array([0.07, -0.04], np.float32)
    zoomed = None if zoom is None else np.float32(zoom)

    def place(label):
        pose, camera = split_label(label)
        x, y, z = pose[:3, :3].T @ (np.array([0, 0, 0.2]) - pose[:3, 3])
        return np.array([camera[0, 0] * x / z, camera[1, 1] * y / z]), z

    (before, depth), (after, new_depth) = place(label), place(translation.translate_label(label, offset, zoomed))
    np.testing.assert_allclose(after - before * (zoom or 1), offset, atol=1e-5)
    np.testing.assert_allclose(new_depth, depth / (zoom or 1), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# network


def test_crop_is_upright_and_centred():
    from avatar_jax.models.perception.face_net import CROP_SIDE, crop_matrix
    from avatar_jax.track.detect import rotation
    from tests.toy_head import ToyHead

    face = ToyHead().landmarks(np.zeros(5), np.zeros(6))[:, :2] * [100, -100] + [300, 200]
    turned = face @ rotation(25, np.zeros(2))[:, :2].T
    upright, other = (p @ (m := crop_matrix(p))[:, :2].T + m[:, 2] for p in (face, turned))
    np.testing.assert_allclose(upright, other, atol=1e-6)
    assert abs(upright[:, 0].mean() - CROP_SIDE / 2) < 1 and (upright > 10).all() and (upright < 118).all()
    assert np.isfinite(crop_matrix(np.zeros((68, 2)))).all()


@pytest.fixture(scope='module')
def few_heads(tmp_path_factory):
    from data_pipelines.face_crops import FaceCropsConfig, generate, load_shards

    folder = tmp_path_factory.mktemp('faces')
    config = FaceCropsConfig(resolution=96)
    generate(config, folder, 0, 6, shard=3, progress=False)
    data = load_shards(folder)
    generate(config, folder, 0, 6, shard=3, progress=False)  # nothing left to do
    with pytest.raises(UserError, match='another configuration'):
        generate(FaceCropsConfig(resolution=64), folder, 0, 6)
    return data


def test_examples_keep_their_landmarks(few_heads):
    """The crop, the mask and the landmarks of an example belong together: landmarks lie on the head."""
    from avatar_jax.bundled.face_augment import example, example_or_empty
    from avatar_jax.ops.landmark_layouts import MIRROR
    from avatar_jax.procedural.expressions import mirror_expression

    assert few_heads['rgb'].shape == (6, 96, 96, 3)
    inside = []
    for i in range(6):
        one, same = (example(np.random.default_rng([1, i]), few_heads, i) for _ in range(2))
        assert all((one[k] == same[k]).all() for k in one)
        places = np.clip((one['landmarks'] * 128).astype(int), 0, 127)
        shown = ((one['landmarks'] > 0) & (one['landmarks'] < 1)).all(1)
        inside += (one['mask'][places[:, 1], places[:, 0]] > 0)[shown].tolist()
        assert one['rgb'].shape == (128, 128, 3) and one['rgb'].dtype == np.uint8
        empty = example_or_empty(np.random.default_rng([2, i]), few_heads, i, empty=1.0)
        assert empty['present'] == 0 and empty['rgb'].shape == one['rgb'].shape
    assert np.mean(inside) > 0.97
    assert (MIRROR[MIRROR] == np.arange(68)).all()
    expression = few_heads['expression'][0]
    np.testing.assert_array_equal(mirror_expression(mirror_expression(expression)), expression)


@pytest.mark.slow
def test_training_learns_and_is_repeatable(few_heads, tmp_path):
    from avatar_jax.bundled.face_net import FaceTrainConfig, batches, train
    from avatar_jax.io.weights import load_weights
    from avatar_jax.models.perception.face_net import FACE_NET_METHOD, FaceNetConfig

    net = FaceNetConfig(side=64, widths=(8, 8, 8, 8), blocks=(0, 1, 0, 0), neck=(8, 8), hidden=16)
    config = FaceTrainConfig(net=net, steps=3, batch=4, warmup=1)
    first, again = (next(batches(config, few_heads, 1)) for _ in range(2))
    assert all((first[k] == again[k]).all() for k in first)
    report = train(config, few_heads, few_heads, tmp_path / 'run', quiet=True)
    assert np.isfinite(report['held_out']['landmarks_of_eye_distance'])
    weights = load_weights(tmp_path / 'run' / 'face_net.safetensors', method=FACE_NET_METHOD)
    assert set(weights.variables) == {'params', 'batch_stats', 'calibration'}
    assert weights.variables['calibration']['expression'].shape == (64,)


def test_votes_are_means_of_cells():
    from avatar_jax.models.perception.face_net import FaceNet

    votes = jnp.zeros((1, 4, 4, 3 * 68)).at[0, 1, 2, 5].set(1000.0)
    found = jax.jit(FaceNet._mean_vote)(votes)
    np.testing.assert_allclose(found[0, 5], [2.5 / 4, 1.5 / 4], atol=1e-6)
    np.testing.assert_allclose(found[0, 6], [0.5, 0.5], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------
# sources


def test_sources(tmp_path):
    folder = tmp_path / 'my pictures é 顔'
    folder.mkdir()
    for name in ('frame10.png', 'frame9.png', 'notes.txt'):
        Image.new('RGB', (40, 40)).save(folder / name, format='PNG')
    (folder / 'a.mp4').write_bytes(b'x')
    found = find_inputs([folder, folder / 'frame9.png', tmp_path / 'odd.name'])
    assert [(s.name, s.kind) for s in found] == [
        ('a', 'video'),
        ('frame10', 'photo'),
        ('frame9', 'photo'),
        ('frame9-2', 'photo'),
        ('odd', 'photo'),
    ]
    Image.new('RGB', (40, 40)).save(folder / 'still.gif')
    Image.new('RGB', (40, 40)).save(folder / 'moving.gif', save_all=True, append_images=[Image.new('RGB', (40, 40), 9)])
    assert [s.kind for s in find_inputs([folder / 'still.gif', folder / 'moving.gif'])] == ['photo', 'video']
    (folder / 'still.gif').unlink()
    (folder / 'moving.gif').unlink()
    clip = find_inputs([folder], sequence=True, fps=10.0)[0]
    frames = list(clip.open())
    assert clip.kind == 'frames' and [f.time for f in frames] == [0.0, 0.1] and len(clip.sha256()) == 64
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no pictures'):
        find_inputs([tmp_path / 'empty'])


def test_frames_of_pictures(tmp_path):
    for k in range(5):
        Image.fromarray(np.full((40, 40, 3), 40 * k, np.uint8)).save(tmp_path / f'{k}.png')
    frames = PictureFrames(sorted(tmp_path.iterdir()), 30.0)
    assert [int(f.pixels[0, 0, 0]) for f in frames] == [0, 40, 80, 120, 160] and frames.num_frames == 5
    some = Selected(frames, np.array([1, 1, 4]), 10.0)
    assert [(f.index, int(f.pixels[0, 0, 0])) for f in some] == [(0, 40), (1, 40), (2, 160)] and some.fps == 10
    assert list(Selected(frames, np.array([], int))) == [] and Selected(frames, np.array([0])).fps == 30
    assert open_frames(tmp_path / '0.png').num_frames == 1 and is_photograph(open_frames(tmp_path / '0.png'))
    assert not is_photograph(frames)
    with pytest.raises(UserError, match='holds no pictures'):
        PictureFrames([])
    Image.new('RGB', (50, 40)).save(tmp_path / '5.png')
    with pytest.raises(UserError, match='frames of a clip are of one size'):
        list(PictureFrames(sorted(tmp_path.iterdir())))
    clear = np.full((40, 40, 4), 255, np.uint8)
    clear[:20, :, 3] = 0
    Image.fromarray(clear).save(tmp_path / '6.png')
    (frame,) = open_frames(tmp_path / '6.png')
    assert frame.alpha[0, 0] == 0 and frame.alpha[-1, 0] == 255 and 'transparent' in frame.notes[0]


# ---------------------------------------------------------------------------------------------------------------
# choosing


def test_choosing_a_face(tmp_path):
    from avatar_jax.track.choose import Chooser
    from avatar_jax.track.detect import Face

    eyes = np.zeros((2, 2))
    faces = [Face((0, 0, 90, 90), 0, 5, None), Face((100, 0, 80, 80), 0, 5, eyes), Face((300, 0, 70, 70), 0, 5, eyes)]
    picture = np.zeros((100, 400, 3), np.uint8)
    face, said = Chooser('size')(picture, faces)  # the largest has no eyes: a pattern
    assert face is faces[1] and '2 faces' in said and 'by little' in said and '(140, 40)' in said
    assert Chooser('2')(picture, faces)[0] is faces[2]
    assert Chooser(3)(picture, faces) == (None, 'there is no face 3, only 1: 80 px at (140, 40), 2: 70 px at (335, 35)')
    assert Chooser('size')(picture, faces[:1]) == (faces[0], '') and Chooser('size')(picture, []) == (None, '')
    with pytest.raises(UserError, match='2 faces of similar size .* choose one with --face'):
        Chooser(None)(picture, faces)
    assert Chooser(None)(picture, [faces[1], Face((0, 0, 30, 30), 0, 5, eyes)])[0] is faces[1]
    for rule, message in (('0', 'counted from 1'), ('big', 'a picture of the person')):
        with pytest.raises(UserError, match=message):
            Chooser(rule)


def test_the_person_of_a_picture_is_chosen():
    """By likeness: of two heads side by side, the one whose other picture was given."""
    from avatar_jax.procedural import render_head, sample_identity
    from avatar_jax.track.choose import Chooser, embedding
    from data_pipelines.cameras import pose_labels

    def head(seed, yaw):
        image = render_head(
            sample_identity(seed, 'test'),
            np.zeros(64, np.float32),
            pose_labels([0, yaw, 0], [0, 0, 0]),
            resolution=128,
            supersample=1,
        )
        return np.rint(255 * np.clip(image.rgb, 0, 1)).astype(np.uint8), image.landmarks

    (first, marks), (second, others) = head(3, 0.1), head(8, 0.1)
    wanted, wanted_marks = head(8, -0.15)
    picture, places = np.concatenate([first, second], 1), [marks, others + [128, 0]]
    reader = SimpleNamespace(from_box=lambda pixels, face: SimpleNamespace(points=face))
    choose = Chooser('size', reader)
    choose._wanted = embedding(wanted, wanted_marks)
    likeness = [float(choose._wanted @ embedding(picture, p)) for p in places]
    assert likeness[1] > likeness[0]
