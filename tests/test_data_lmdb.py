"""Data that were processed for OTAvatar and GPAvatar, in their own files, as sources for training and evaluation."""

import dataclasses
import io
import json
import pickle

import lmdb
import numpy as np
import pytest
from PIL import Image

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.driving.bases import BFM, FLAME
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import labels_from_conditions
from avatar_jax.faces.pose import rotation_matrix
from avatar_jax.methods.gpavatar.cameras import WorldConfig, camera_of_label, label_of_camera
from avatar_jax.methods.gpavatar.config import ModelConfig
from avatar_jax.methods.gpavatar.train import RunConfig, with_host_arrays
from avatar_jax.train.logging import read_jsonl
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from data_pipelines.gpavatar_lmdb import GPAvatarClips, GPAvatarFrames
from data_pipelines.otavatar_lmdb import OTAvatarFrames
from data_pipelines.pairs import PairConfig, pair_batches
from data_pipelines.sets import SetConfig, Sets
from data_pipelines.sources import open_source
from tests.runs import train

CLIPS = {'RD_Radio1#000': 4, 'RD_Radio1#001': 3, 'WDA_A': 5}


def jpeg(level, side=16):
    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(out, 'JPEG', quality=95)
    return out.getvalue()


def otavatar(root, change=None):
    """An LMDB as OTAvatar's preparation writes it; ``change`` edits the entries."""
    rng = np.random.default_rng(0)
    entries = {'length': b'%07d' % len(CLIPS)}
    for clip, n in CLIPS.items():
        entries[f'{clip}-length'] = b'%07d' % n
        for k in range(n):
            entries[f'{clip}-{k:07d}'] = jpeg(10 * k + n)
        condition = rng.normal(0, 0.1, (n, 7))
        condition[:, 5], condition[:, 6] = -4.5, 1100
        entries[f'{clip}-coeff_3dmm'] = rng.normal(0, 0.3, (n, 260)).astype(np.float32).tobytes()
        entries[f'{clip}-condition'] = condition.astype(np.float32).tobytes()
        entries[f'{clip}-keypoint'] = rng.uniform(0, 16, (n, 68, 2)).astype(np.float32).tobytes()
        entries[f'{clip}-id'] = np.zeros(100, np.float32).tobytes()
    if change:
        change(entries)
    with lmdb.open(str(root / '16'), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    (root / 'train_list.txt').write_text('RD_Radio1#000\nRD_Radio1#001\n')
    (root / 'test_list.txt').write_text('WDA_A\n')
    return entries


def test_otavatar_clips(tmp_path):
    (tmp_path / '16').mkdir()
    entries = otavatar(tmp_path)
    source = OTAvatarFrames(tmp_path, 'train')
    table = source.table
    assert table.name.tolist() == ['RD_Radio1#000', 'RD_Radio1#001'] and len(table.people) == 1
    assert table.num_frames.tolist() == [4, 3] and table.basis == BFM and len(source) == 7
    records = np.frombuffer(entries['RD_Radio1#001-coeff_3dmm'], np.float32).reshape(3, 260)
    np.testing.assert_array_equal(
        table.motion[4:], np.concatenate([records[:, 80:144], records[:, 224:227], records[:, 254:257]], 1)
    )
    item = source[5]
    assert item['image'].mean() == pytest.approx(13, abs=2) and item['image'].shape == (16, 16, 3)
    condition = np.frombuffer(entries['RD_Radio1#001-condition'], np.float32).reshape(3, 7)
    np.testing.assert_array_equal(item['label'], labels_from_conditions(condition)[1])
    np.testing.assert_array_equal(
        item['landmarks'], np.frombuffer(entries['RD_Radio1#001-keypoint'], np.float32).reshape(3, 68, 2)[1]
    )
    np.testing.assert_array_equal(item['identity'][:80], records[1, :80])
    motion = source.motion('RD_Radio1#001')
    np.testing.assert_array_equal(motion.expression, records[:, 80:144])
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[5]['image'], item['image'])
    with pair_batches(source, PairConfig(batch_size=2)) as batches:
        batch = next(batches)
    assert batch['images'].shape == (2, 2, 16, 16, 3) and batch['windows'].shape == (2, 2, 27, 70)
    assert len(OTAvatarFrames(tmp_path, 'test', 16)) == 5
    with pytest.raises(UserError, match='has no clip'):
        source.motion('WDA_A')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda e: e.pop('RD_Radio1#001-keypoint'), "no entry 'RD_Radio1#001-keypoint'"),
        (
            lambda e: e.update({'RD_Radio1#000-coeff_3dmm': bytes(4 * 260)}),
            'coeff_3dmm has 260 numbers, expected 4 x 260',
        ),
        (lambda e: e.update({'RD_Radio1#000-condition': bytes(4 * 13)}), 'condition has 13 numbers for 4 frames'),
        (lambda e: e.update({'RD_Radio1#000-length': b'many'}), 'not a number of frames'),
        (
            lambda e: e.update({'RD_Radio1#000-keypoint': np.full((4, 68, 2), np.nan, np.float32).tobytes()}),
            'not finite',
        ),
    ],
)
def test_damaged_otavatar_data(tmp_path, change, message):
    (tmp_path / '16').mkdir()
    otavatar(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        OTAvatarFrames(tmp_path, 'train')
    assert '\n' not in str(caught.value)


def test_otavatar_folders_and_pictures(tmp_path):
    (tmp_path / '16').mkdir()
    otavatar(tmp_path, lambda e: e.update({'RD_Radio1#000-0000001': b'no picture'}))
    with pytest.raises(UserError, match='RD_Radio1#000-0000001: is not a picture that can be read'):
        OTAvatarFrames(tmp_path, 'train')[1]
    with pytest.raises(UserError, match="split 'val': unknown"):
        OTAvatarFrames(tmp_path, 'val')
    with pytest.raises(UserError, match='has no 512/data.mdb; there are 16'):
        OTAvatarFrames(tmp_path, 'train', 512)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='has no LMDB environment'):
        OTAvatarFrames(tmp_path / 'empty')
    with pytest.raises(UserError, match='no such folder'):
        OTAvatarFrames(tmp_path / 'none')
    (tmp_path / 'test_list.txt').write_text('\n')
    with pytest.raises(UserError, match='names no clips'):
        OTAvatarFrames(tmp_path, 'test')
    (tmp_path / 'bad' / '16').mkdir(parents=True)
    (tmp_path / 'bad' / '16' / 'data.mdb').write_bytes(b'hello' * 1000)
    (tmp_path / 'bad' / 'train_list.txt').write_text('a\n')
    with pytest.raises(UserError, match='not a readable LMDB environment'):
        OTAvatarFrames(tmp_path / 'bad')


# --- GPAvatar ---------------------------------------------------------------------------------------------------------


def record(rng, yaw=0.0):
    # Row-vector world-to-camera rotation with PyTorch3D's axes: frontal is diag(-1, 1, -1).
    rotation = rotation_matrix(np.array([0.0, yaw, 0.0])) @ np.diag([-1.0, 1.0, -1.0])
    return {
        'bbox': rng.uniform(0, 1, 4),
        'kps': rng.uniform(0, 1, (5, 2)),
        'mica_shape': rng.normal(size=100).astype(np.float32),
        'emoca_expression': rng.normal(size=50).astype(np.float32),
        'emoca_pose': np.float32([0, 0, 0, 0.2, 0, 0]),
        'transform_matrix': np.concatenate([rotation, [[0], [0], [12]]], 1).astype(np.float32),
    }


def gpavatar(root, change=None):
    rng = np.random.default_rng(1)
    names = [f'img_{video:06d}_{k}' for video in (7, 12) for k in (0, 2, 10, 11, 30)]
    records = {n: record(rng, 0.1 * k) for k, n in enumerate(names)}
    content = {'records': records, 'meta_info': {'train': names[:5][::-1], 'val': [], 'test': names[5:]}}
    if change:
        change(content)
    with (
        lmdb.open(str(root / 'img_lmdb'), map_size=1 << 22) as environment,
        environment.begin(write=True) as transaction,
    ):
        for k, n in enumerate(names):
            transaction.put(n.encode(), jpeg(10 + 10 * k))
    (root / 'dataset.pkl').write_bytes(pickle.dumps(content))
    (root / 'camera.json').write_text(
        json.dumps({'flame_scale': 5.0, 'focal_length': 12.0, 'principal_point': [0.0, 0.0]})
    )
    return records


def test_gpavatar_clips_are_a_source_for_training(tmp_path):
    (tmp_path / 'img_lmdb').mkdir()
    records = gpavatar(tmp_path)
    source = open_source(tmp_path, 'train')
    assert isinstance(source, GPAvatarClips) and source.table.basis == FLAME and len(source) == 5
    assert (source.conventions.background, source.conventions.shape, source.has_masks) == ('black', 100, False)
    item, stored = source[2], records['img_000007_10']
    np.testing.assert_allclose(
        item['label'], label_of_camera(stored['transform_matrix'], 12.0, WorldConfig()), atol=1e-6
    )
    transform, focal = camera_of_label(item['label'], WorldConfig())
    np.testing.assert_allclose(transform, stored['transform_matrix'], atol=1e-5)
    assert focal == pytest.approx(12)
    np.testing.assert_array_equal(item['shape'], stored['mica_shape'])
    np.testing.assert_allclose(source.table.motion[2, :50], stored['emoca_expression'], rtol=1e-6)
    assert source.table.motion[2, 50] == pytest.approx(0.2), 'the jaw'

    # The points are those of the driver's own shape, the boxes the data's.
    row = Sets(source, SetConfig(1, 3, 0))(0)
    batch = with_host_arrays(released(), {k: np.asarray(v)[None] for k, v in row.items()})
    np.testing.assert_array_equal(batch['shapes'][0], row['shapes'][0])
    np.testing.assert_array_equal(batch['boxes'][0], row['boxes'][:1])
    with pytest.raises(UserError, match='no landmarks and masks to choose rays by'):
        with_host_arrays(released(), {k: np.asarray(v)[None] for k, v in row.items()}, rays=True)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]['image'], item['image'])
    (tmp_path / 'camera.json').write_text('{"flame_scale": 5, "focal_length": 12, "principal_point": [0.1, 0]}')
    with pytest.raises(UserError, match='principal point'):
        open_source(tmp_path, 'train')


def released(**changes):
    """A tiny model of the released kind: FLAME's coefficients, black background; its field needs no FLAME file."""
    tiny = ModelConfig.tiny(
        field__kind='expression', background=0.0, train__batch_size=1, train__iterations=2, **changes
    )
    return dataclasses.replace(tiny, basis=FLAME, shape='own', img_resolution=16)


@pytest.mark.slow
def test_gpavatar_trains_on_its_clips(tmp_path):
    (tmp_path / 'vfhq' / 'img_lmdb').mkdir(parents=True)
    gpavatar(tmp_path / 'vfhq')
    config = RunConfig(
        model=released(loss__box=0.5),
        data=ClipsConfig('built', str(tmp_path / 'vfhq'), num_threads=0),
        output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=2, tensorboard=False),
        parallel='single',
    )
    train(config, tmp_path / 'run')
    log = read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
    assert [r['step'] for r in log] == [1, 2] and all(np.isfinite(r['loss']) and 'box' in ' '.join(r) for r in log)
    with pytest.raises(UserError, match=r"background is 'black', that of the weights 'white'"):
        train(dataclasses.replace(config, model=config.model.with_method(background=1.0)), tmp_path / 'other')


@pytest.mark.parametrize('variant', ['', 'release', 'tracked', 'mean', 'release,few_points'])
def test_the_configuration_of_the_paper(variant):
    from launch.config_args import load_run

    _, config = load_run(f'gpavatar_vfhq:{variant}' if variant else 'gpavatar_vfhq')
    assert from_plain(RunConfig, to_plain(config)) == config
    train, paper = config.model.settings.train, 'release' not in variant
    assert (train.iterations, train.batch_size) == ((150_000, 8) if paper else (200_000, 4))
    assert config.model.conventions.background == 'black' and config.model.img_resolution == 512
    assert config.model.settings.loss.network == 'alexnet' and train.sources == 2 and train.optimizer.lr == 1e-4


def test_gpavatar_frames(tmp_path):
    (tmp_path / 'img_lmdb').mkdir()
    records = gpavatar(tmp_path)
    source = GPAvatarFrames(tmp_path, 'train')
    assert len(source) == 5 and list(source.videos) == ['000007'] and source.camera['focal_length'] == 12
    assert [source[i]['number'] for i in range(5)] == [0, 2, 10, 11, 30], 'in the order of the frames'
    item = source[2]
    assert item['frame'] == 'img_000007_10' and item['image'].mean() == pytest.approx(30, abs=2)
    for ours, theirs in (
        ('shape', 'mica_shape'),
        ('expression', 'emoca_expression'),
        ('transform', 'transform_matrix'),
    ):
        np.testing.assert_array_equal(item[ours], records['img_000007_10'][theirs])
    motion = source.motion('000007')
    assert motion.basis == FLAME and motion.num_frames == 5
    np.testing.assert_allclose(motion.angle[:, 1], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    np.testing.assert_allclose(motion.expression[:, 50], 0.2)
    assert not motion.expression[:, 53:].any()
    assert source.sources('000007', 2) == [0, 4] and source.sources('000007', 4) == [0, 1, 3, 4]
    test = GPAvatarFrames(tmp_path, 'test')
    assert len(test.targets('000012')) == 4, 'frames numbered 0 are no targets of the test'
    # The quick form gives the same and is made anew when the pickle changes.
    assert (tmp_path / 'dataset.records.npz').is_file()
    again = GPAvatarFrames(tmp_path, 'train')
    np.testing.assert_array_equal(again[2]['expression'], item['expression'])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again))[2]['image'], item['image'])
    with pytest.raises(UserError, match="split 'val' is empty"):
        GPAvatarFrames(tmp_path, 'val')
    with pytest.raises(UserError, match='evaluation takes 1 to 4'):
        source.sources('000007', 5)


class Trap:
    """Runs something when it is unpickled in the usual way."""

    def __reduce__(self):
        return open, ('/tmp/avatar_jax_trap', 'w')


def name_badly(content):
    content['records']['frame'] = record(np.random.default_rng(0))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['records'].update(x=Trap()), 'nothing in it was run'),
        (lambda c: c.pop('meta_info'), "has no 'records' and 'meta_info'"),
        (lambda c: c['records']['img_000007_2'].pop('emoca_pose'), 'img_000007_2 has no emoca_pose of 6 numbers'),
        (lambda c: c['records']['img_000007_2'].update(mica_shape=np.zeros(300)), 'mica_shape of 100'),
        (lambda c: c['records']['img_000007_2'].update(bbox=np.full(4, np.nan)), 'bbox has values that are not finite'),
        (lambda c: c['meta_info']['train'].append('img_1_1'), "train lists 'img_1_1', which has no record"),
        (name_badly, "'frame' is not named PREFIX_VIDEO_NUMBER"),
    ],
)
def test_gpavatar_data_that_are_refused(tmp_path, change, message):
    (tmp_path / 'img_lmdb').mkdir()
    gpavatar(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        GPAvatarFrames(tmp_path, 'train')
    assert 'dataset.pkl' in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'dataset.records.npz').exists()


def test_gpavatar_folders(tmp_path):
    with pytest.raises(UserError, match='dataset.pkl: no such file'):
        GPAvatarFrames(tmp_path)
    (tmp_path / 'img_lmdb').mkdir()
    gpavatar(tmp_path)
    (tmp_path / 'camera.json').write_text('{}')
    with pytest.raises(UserError, match='camera.json: not of the form'):
        GPAvatarFrames(tmp_path)
    (tmp_path / 'camera.json').unlink()
    (tmp_path / 'img_lmdb' / 'data.mdb').unlink()
    with pytest.raises(UserError, match='holds no LMDB environment'):
        GPAvatarFrames(tmp_path)
    with pytest.raises(UserError, match='unknown; use one of train'):
        GPAvatarFrames(tmp_path, 'all')
