"""The heads data set, its sources and the pair pipeline, on a few tiny clips."""

import pickle

import numpy as np
import pytest
from absl import logging

from avatar_jax.errors import UserError
from avatar_jax.faces.pose import rotation_matrix, to_camera, transform
from avatar_jax.ops.coefficients import unpack
from avatar_jax.ops.windows import motion_windows
from avatar_jax.procedural import to_world
from data_pipelines.cameras import orbit_poses, pose_labels, rig_yaws, seen_from
from data_pipelines.clips import ClipOptions, evaluation_clips, make_clip
from data_pipelines.heads.__main__ import build, main
from data_pipelines.pairs import PairConfig, Pairs, pair_batches
from data_pipelines.sources import BuiltFrames, MemoryFrames, RenderedFrames
from data_pipelines.stream import Batches
from data_pipelines.tables import load_table

SMALL = ClipOptions(num_frames=4, num_cameras=3, multi_view_share=0.5, supersample=1)


@pytest.fixture(scope='module')
def rendered():
    return RenderedFrames.of_people(5, seed=3, resolution=16, options=SMALL, clips_per_person=2)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return build('tiny', tmp_path_factory.mktemp('tfds'), progress=False)


# --- cameras and clips ---------------------------------------------------------------------------------------------


def test_labels_put_head_points_where_the_coefficients_say():
    clip = make_clip(0, 'train', 1, 0, ClipOptions(num_frames=3, multi_view_share=1.0))
    points = np.random.default_rng(0).normal(0, 0.5, (20, 3))
    for camera in range(clip.num_cameras):
        c = unpack(clip.coefficients(camera))
        for t in range(3):
            seen = to_camera(transform(points, rotation_matrix(c.angle[t].astype(float)), c.trans[t].astype(float)))
            pose = clip.labels(camera)[t, :16].reshape(4, 4).astype(float)
            from_label = (to_world(points) - pose[:3, 3]) @ pose[:3, :3]
            np.testing.assert_allclose(from_label, 0.27 * seen * [1, -1, 1], atol=2e-6)


def test_rig_sees_one_head_from_several_sides():
    angle, shift = np.array([[0.1, 0.2, 0.05]]), np.array([[0.05, 0.02, 0.2]])
    same = seen_from(angle, shift, 0.0)
    np.testing.assert_allclose(same[0], angle, atol=1e-12)
    right = seen_from(np.zeros((1, 3)), np.zeros((1, 3)), 0.4)
    np.testing.assert_allclose(right[0], [[0, -0.4, 0]], atol=1e-12)  # a camera on the right sees the head turned left
    above = seen_from(np.zeros((1, 3)), np.zeros((1, 3)), 0.0, 0.3)
    np.testing.assert_allclose(above[0], [[0.3, 0, 0]], atol=1e-12)
    # Both cameras see the same rigid head: distances between its points and the rig's centre agree.
    p = np.random.default_rng(1).normal(size=(7, 3))
    turned, moved = seen_from(angle, shift, 0.5, -0.2)
    a = transform(p, rotation_matrix(angle[0]), shift[0])
    b = transform(p, rotation_matrix(turned[0]), moved[0])
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-12)
    assert rig_yaws(5, 0.6).tolist() == [0, 0.3, -0.3, 0.6, -0.6] and rig_yaws(1).tolist() == [0]


def test_orbit_is_closed_and_starts_in_front():
    angle, shift = orbit_poses(40)
    np.testing.assert_allclose(angle[0], 0, atol=1e-12)
    assert np.abs(np.diff(np.concatenate([angle, angle[:1]]), axis=0)).max() < 0.12 and not shift.any()
    assert pose_labels(angle, shift).shape == (40, 25)


def test_clips_repeat_and_people_differ_between_splits():
    a, b = make_clip(5, 'train', 2, 1, SMALL), make_clip(5, 'train', 2, 1, SMALL)
    for k in ('identity', 'expression', 'angle', 'translation', 'gamma', 'camera_yaws'):
        np.testing.assert_array_equal(getattr(a, k), getattr(b, k))
    same_person = make_clip(5, 'train', 2, 0, SMALL)
    np.testing.assert_array_equal(same_person.identity, a.identity)
    assert np.abs(same_person.expression - a.expression).max() > 0.1
    people = [make_clip(5, split, p, 0, SMALL).identity for split in ('train', 'val', 'test') for p in range(3)]
    distance = np.linalg.norm(np.subtract.outer(people, people).diagonal(axis1=1, axis2=3), axis=-1)
    assert distance[~np.eye(9, dtype=bool)].min() > 10
    with pytest.raises(UserError, match='unknown'):
        make_clip(0, 'all', 0)


def test_coefficients_and_windows_of_a_clip():
    clip = make_clip(1, 'val', 0, 0, ClipOptions(num_frames=30, multi_view_share=1.0))
    for camera in (0, 2):
        np.testing.assert_array_equal(motion_windows(clip.coefficients(camera)), clip.windows(camera))
        np.testing.assert_array_equal(clip.motion(camera).windows(), clip.windows(camera))
    c = unpack(clip.coefficients())
    np.testing.assert_array_equal(np.concatenate([c.id[0], c.tex[0]]), clip.identity[:160])


def test_evaluation_clips_are_held_out_and_reenact():
    clips = evaluation_clips(3, seed=4, num_frames=3, num_cameras=3)
    assert [c.num_cameras for c in clips] == [3, 3, 3] and len({c.identity.tobytes() for c in clips}) == 3
    assert not np.array_equal(evaluation_clips(1, seed=5)[0].identity, clips[0].identity)
    with pytest.raises(UserError, match='train'):
        evaluation_clips(1, split='train')
    a, b = clips[:2]
    np.testing.assert_array_equal(a.render_as(a, 1, resolution=16).rgb, a.render(1, resolution=16).rgb)
    mixed = a.render_as(b, 1, resolution=16).rgb
    assert np.abs(mixed - a.render(1, resolution=16).rgb).mean() > 0.01
    assert np.abs(mixed - b.render(1, resolution=16).rgb).mean() > 0.01


# --- the TFDS data set -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_built_records_are_the_rendered_clips(built):
    source = BuiltFrames(built, 'train')
    table = source.table
    assert len(source) == int((table.num_frames * table.num_cameras).sum()) and len(table.people) == 3
    assert set(table.num_cameras) == {1, 3}
    options = ClipOptions(num_frames=6, num_cameras=3, multi_view_share=0.5, supersample=1)
    k = int(np.argmax(table.num_cameras))
    clip = make_clip(0, 'train', int(table.person[k]), 0, options)
    assert clip.name == table.name[k]
    for camera, frame in ((0, 0), (2, 5)):
        row, head = source[table.record(k, camera, frame)], clip.render(frame, camera, 32)
        np.testing.assert_array_equal(row['image'], np.round(head.rgb * 255).astype(np.uint8))
        np.testing.assert_array_equal(row['mask'], np.round(head.mask * 255).astype(np.uint8))
        np.testing.assert_array_equal(row['label'], clip.labels(camera)[frame])
        np.testing.assert_array_equal(row['landmarks'], head.landmarks)
        np.testing.assert_array_equal(table.window(k, camera, frame), clip.windows(camera)[frame])


def test_full_records_through_tfds(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(built)
    assert builder.info.metadata['synthetic'] is True and builder.info.metadata['recipe']['resolution'] == 32
    records = builder.as_data_source(split='test')
    table = load_table(built, 'test')
    for i in (0, len(records) - 1):
        row = records[i]
        k = list(table.name).index(row['clip'].decode())
        assert table.record(k, int(row['camera']), int(row['frame'])) == i
        np.testing.assert_array_equal(unpack(row['coefficients']).exp, table.motion[i, :64])
        assert row['image'].shape == (32, 32, 3) and row['mask'].shape == (32, 32, 1) and row['fps'] == 25.0
        np.testing.assert_array_equal(row['identity'][:80], unpack(row['coefficients']).id)
    assert not set(load_table(built, 'train').name) & set(table.name)


@pytest.mark.slow
def test_building_is_deterministic_and_finds_what_is_there(built, tmp_path, capsys):
    assert build('tiny', built.parents[2], progress=False) == built  # already there
    again = build('tiny', tmp_path, progress=False, workers=2)
    for name in ('train', 'test'):
        a, b = BuiltFrames(built, name), BuiltFrames(again, name)
        for i in range(0, len(a), 5):
            for k, v in a[i].items():
                np.testing.assert_array_equal(v, b[i][k])
    assert main(['--config', '100', '--data-dir', str(tmp_path)]) == 2
    assert '100' in capsys.readouterr().err


def test_changed_numbers_get_a_name_of_their_own(tmp_path):
    folder = build('tiny', tmp_path, progress=False, people=1, frames=2, cameras=1)
    assert folder.parent.name.startswith('tiny-')
    assert load_table(folder, 'train').num_frames.tolist() == [2]
    with pytest.raises(UserError, match='at least 1'):
        build('tiny', tmp_path, progress=False, people=0)


def test_unusable_folders_are_named(tmp_path, built):
    with pytest.raises(UserError, match='no such file'):
        BuiltFrames(tmp_path)
    with pytest.raises(UserError, match='unknown'):
        BuiltFrames(built, 'dev')
    (tmp_path / 'clips-train.npz').write_bytes(b'PK\x03\x04broken')
    with pytest.raises(UserError, match='damaged'):
        BuiltFrames(tmp_path)
    (tmp_path / 'clips-train.npz').write_bytes((built / 'clips-train.npz').read_bytes())
    with pytest.raises(UserError, match='not a readable data set'):
        BuiltFrames(tmp_path)
    blocked = tmp_path / 'file'
    blocked.write_text('')
    with pytest.raises(UserError, match='cannot write'):
        build('tiny', blocked, progress=False)


def test_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    from data_pipelines.heads.heads import ProceduralHeads

    def full(self, **_):
        raise RuntimeError('Failed to finalize writing: write() failed: No space left on device')

    monkeypatch.setattr(ProceduralHeads, 'download_and_prepare', full)
    assert main(['--config', 'tiny', '--data-dir', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and 'No space left' in error


# --- pairs -----------------------------------------------------------------------------------------------------------


def take(source, config, count, **options):
    with pair_batches(source, config, **options) as stream:
        return [next(stream) for _ in range(count)]


def same(a, b):
    assert a.keys() == b.keys()
    for k, v in a.items():
        np.testing.assert_array_equal(v, b[k])


def test_batch_contents(rendered):
    batch = take(rendered, PairConfig(batch_size=3, seed=1), 1)[0]
    shapes = {
        'images': (3, 2, 16, 16, 3),
        'masks': (3, 2, 16, 16, 1),
        'windows': (3, 2, 27, 70),
        'labels': (3, 2, 25),
        'landmarks': (3, 2, 68, 2),
        'shapes': (3, 2, 80),
        'identity': (3, 192),
        'person': (3,),
        'clip': (3,),
        'frames': (3, 2),
        'cameras': (3, 2),
    }
    assert {k: v.shape for k, v in batch.items()} == shapes
    assert batch['images'].dtype == np.float32 and batch['images'].min() < -0.2 and batch['images'].max() <= 1
    assert batch['masks'].max() == 1
    for n in range(3):
        clip = rendered.clips[batch['clip'][n]]
        assert clip.person == batch['person'][n]
        np.testing.assert_array_equal(batch['identity'][n], clip.identity)
        np.testing.assert_array_equal(batch['shapes'][n], [clip.identity[:80]] * 2)
        for k in range(2):
            camera, frame = batch['cameras'][n, k], batch['frames'][n, k]
            np.testing.assert_array_equal(batch['labels'][n, k], clip.labels(camera)[frame])
            np.testing.assert_array_equal(batch['windows'][n, k], clip.windows(camera)[frame])
            rgb = np.round(clip.render(frame, camera, 16).rgb * 255)
            np.testing.assert_allclose((batch['images'][n, k] + 1) * 127.5, rgb, atol=1e-4)


def test_resume_by_step_is_exact_for_threads_and_processes(rendered):
    config = PairConfig(batch_size=2, seed=7)
    memory = MemoryFrames(rendered)
    whole = take(memory, config, 9)
    for a, b in zip(whole[6:], take(memory, config, 3, start_step=6), strict=True):
        same(a, b)
    fewer_threads = PairConfig(batch_size=2, seed=7, num_threads=0, prefetch=0)
    for a, b in zip(whole[:2], take(memory, fewer_threads, 2), strict=True):
        same(a, b)


def test_more_threads_than_elements_read_ahead(monkeypatch):
    """Grain warns of threads that have nothing to do."""
    warned = []
    monkeypatch.setattr(logging, 'warning', lambda *args: warned.append(args))
    with Batches(lambda k: {'k': np.int32(k)}, 16, num_threads=4, prefetch=8) as stream:
        np.testing.assert_array_equal(next(stream)['k'], range(16))
    assert not warned


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(built):
    source = BuiltFrames(built, 'train')
    plain = take(source, PairConfig(batch_size=2, seed=7), 2, start_step=3)
    for a, b in zip(plain, take(source, PairConfig(batch_size=2, seed=7, num_workers=1), 2, start_step=3), strict=True):
        same(a, b)


def test_processes_share_every_batch(rendered):
    memory = MemoryFrames(rendered)
    config = PairConfig(batch_size=4, seed=2)
    whole = take(memory, config, 4)
    parts = [take(memory, config, 4, process_index=i, process_count=2) for i in range(2)]
    for step, batch in enumerate(whole):
        for k, v in batch.items():
            np.testing.assert_array_equal(v, np.concatenate([parts[0][step][k], parts[1][step][k]]))


def test_epochs_are_complete_and_differently_ordered(rendered):
    pairs = Pairs(rendered, PairConfig(seed=0))
    order = [int(rendered.table.person[pairs.choice(i)[0]]) for i in range(20)]
    epochs = [order[k : k + 5] for k in range(0, 20, 5)]
    assert all(sorted(e) == [0, 1, 2, 3, 4] for e in epochs) and len({tuple(e) for e in epochs}) > 1
    reopened = pickle.loads(pickle.dumps(pairs))
    assert [reopened.choice(i) for i in range(6)] == [pairs.choice(i) for i in range(6)]


def test_sampling_options(rendered):
    def draws(**options):
        pairs = Pairs(rendered, PairConfig(seed=5, **options))
        return [pairs.choice(i) for i in range(1500)]

    table = rendered.table
    for sampling in ('expression', 'uniform'):
        chosen = draws(sampling=sampling)
        counts = np.zeros((len(table.name), 4))
        for clip, _, frames in chosen:
            for f in frames:
                counts[clip, f] += 1
        expected = np.stack(
            [table.frame_weights(k) if sampling == 'expression' else np.full(4, 0.25) for k in range(len(table.name))]
        )
        share = counts / counts.sum(1, keepdims=True)
        assert np.abs(share - expected).max() < 0.1
    multi = [c for k, c, _ in draws(cameras='any') if table.num_cameras[k] == 3]
    assert any(a != b for a, b in multi) and {x for c in multi for x in c} == {0, 1, 2}
    assert all(a == b for _, (a, b), _ in draws(cameras='same'))
    assert all(c == [0, 0] for _, c, _ in draws(cameras='front'))


def test_bad_options_are_named(rendered):
    with pytest.raises(UserError, match='sampling'):
        PairConfig(sampling='best')
    with pytest.raises(UserError, match='cameras'):
        PairConfig(cameras='back')
    with pytest.raises(UserError, match='does not divide'):
        pair_batches(rendered, PairConfig(batch_size=3), process_count=2)
    with pytest.raises(UserError, match='too few'):
        pair_batches(rendered, PairConfig(batch_size=6), process_count=6)
    with pytest.raises(UserError, match='no clips'):
        RenderedFrames([])
