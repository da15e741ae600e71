"""EG3D folders and zips: reading, mirroring, checks, batches, writing."""

import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import canonical_label, mirror_label
from avatar_jax.procedural import render_head, sample_identity
from data_pipelines.cameras import pose_labels
from data_pipelines.eg3d_images import Eg3dImages, check_labels, image_batches, main, write_eg3d

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
LABELS = pose_labels(RNG.normal(0, 0.2, (7, 3)), RNG.normal(0, 0.1, (7, 3)))


@pytest.fixture(params=['set', 'set.zip'])
def written(request, tmp_path):
    return write_eg3d(tmp_path / request.param, zip(IMAGES, LABELS, strict=True))


def spoil(folder, change):
    path = folder / 'dataset.json'
    table = json.loads(path.read_text())
    path.write_text(json.dumps(change(table)))


def test_what_is_written_is_read_back(written):
    reader = Eg3dImages(written)
    assert len(reader) == 7 and reader.resolution == 8 and reader.names[0] == '00000/img00000000.png'
    for i in range(7):
        np.testing.assert_array_equal(reader[i]['image'], IMAGES[i])
        np.testing.assert_array_equal(reader[i]['label'], LABELS[i])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))[3]['image'], IMAGES[3])
    with pytest.raises(IndexError):
        reader[7]
    if written.suffix == '.zip':
        with zipfile.ZipFile(written) as z:
            assert all(e.compress_type == zipfile.ZIP_STORED for e in z.infolist())


def test_mirroring(written):
    right = Eg3dImages(written, mirror='images+labels')
    assert len(right) == 14
    np.testing.assert_array_equal(right[9]['image'], IMAGES[2][:, ::-1])
    np.testing.assert_array_equal(right[9]['label'], mirror_label(LABELS[2]))
    np.testing.assert_array_equal(Eg3dImages(written, mirror='images')[9]['label'], LABELS[2])
    with pytest.raises(UserError, match='mirror'):
        Eg3dImages(written, mirror='yes')


def test_mirrored_label_is_the_camera_of_the_mirrored_picture():
    # A head without left or right: the mirrored picture is what the mirrored camera sees.
    identity, neutral = np.zeros(192, np.float32), np.zeros(64, np.float32)
    light = np.zeros(27, np.float32)
    label = pose_labels([0.1, 0.4, 0.05], [0.05, 0.0, 0.1])
    seen = render_head(identity, neutral, label, light, resolution=48)
    mirrored = render_head(identity, neutral, mirror_label(label), light, resolution=48)
    overlap = np.minimum(seen.mask[:, ::-1], mirrored.mask).sum() / np.maximum(seen.mask[:, ::-1], mirrored.mask).sum()
    wrong = np.minimum(seen.mask, mirrored.mask).sum() / np.maximum(seen.mask, mirrored.mask).sum()
    assert overlap > 0.97 and wrong < overlap - 0.05
    assert sample_identity(0).shape == identity.shape


def test_max_size_keeps_a_sorted_random_part(written):
    part = Eg3dImages(written, max_size=4, seed=3)
    assert len(part) == 4 and part.names == sorted(part.names)
    assert part.names == Eg3dImages(written, max_size=4, seed=3).names
    assert any(part.names != Eg3dImages(written, max_size=4, seed=s).names for s in range(4, 8))


def test_batches_cover_epochs_resume_and_share(written):
    reader = Eg3dImages(written)

    def take(count, **options):
        with image_batches(reader, 2, seed=1, **options) as stream:
            return [next(stream) for _ in range(count)]

    whole = take(7)
    assert whole[0]['image'].shape == (2, 8, 8, 3) and whole[0]['label'].shape == (2, 25)
    seen = np.round((np.concatenate([b['image'] for b in whole]) + 1) * 127.5).astype(np.uint8)
    for epoch in (seen[:7], seen[7:]):
        assert sorted(e.tobytes() for e in epoch) == sorted(i.tobytes() for i in IMAGES)
    assert not np.array_equal(seen[:7], seen[7:])
    np.testing.assert_array_equal(take(2, start_step=4)[1]['label'], whole[5]['label'])
    np.testing.assert_array_equal(take(3, process_index=1, process_count=2)[2]['label'], whole[2]['label'][1:])
    with pytest.raises(UserError, match='too few'):
        image_batches(reader, 16, process_count=8)
    with pytest.raises(UserError, match='does not divide'):
        image_batches(reader, 3, process_count=2)


def faulty(name):
    label = canonical_label()
    if name == 'nan':
        label[3] = np.nan
    elif name == 'transposed':
        label[:16] = label[:16].reshape(4, 4).T.ravel()
    elif name == 'left-handed':
        label[[0, 4, 8]] *= -1
    elif name == 'orthonormal':
        label[:16].reshape(4, 4)[:3, :3] *= 1.1
    elif name == 'distance':
        label[[3, 7, 11]] *= 0.01
    elif name == 'OpenCV, not OpenGL':
        label[:16].reshape(4, 4)[:3, 1:3] *= -1
    elif name == 'pixels':
        label[16:] = [2985.29, 0, 512, 0, 2985.29, 512, 0, 0, 1]
    elif name == 'last row is not 0 0 1':
        label[24] = 2
    elif name == 'not positive':
        label[16] = -label[16]
    return label


@pytest.mark.parametrize(
    'fault',
    [
        'nan',
        'transposed',
        'left-handed',
        'orthonormal',
        'distance',
        'OpenCV, not OpenGL',
        'pixels',
        'last row is not 0 0 1',
        'not positive',
    ],
)
def test_label_faults_are_named(fault, tmp_path):
    labels = LABELS.copy()
    labels[4] = faulty(fault)
    with pytest.raises(UserError, match='(?i)' + fault) as e:
        write_eg3d(tmp_path / 'set', zip(IMAGES, labels, strict=True))
    assert 'img00000004' in str(e.value) and '1 of 7' in str(e.value)
    assert not list(tmp_path.iterdir())  # nothing that looks complete


def test_good_labels_pass():
    check_labels(np.stack([canonical_label(), *LABELS]), [str(i) for i in range(8)])


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        Eg3dImages(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='no pictures'):
        Eg3dImages(tmp_path)
    folder = write_eg3d(tmp_path / 'set', zip(IMAGES, LABELS, strict=True))
    with pytest.raises(UserError, match='exists'):
        write_eg3d(folder, [])
    with pytest.raises(UserError, match='no pictures were given'):
        write_eg3d(tmp_path / 'empty', [])
    with pytest.raises(UserError, match='picture 1'):
        write_eg3d(tmp_path / 'sizes', [(IMAGES[0], LABELS[0]), (IMAGES[1][:4, :4], LABELS[1])])
    with pytest.raises(UserError, match='12 numbers'):
        write_eg3d(tmp_path / 'short', [(IMAGES[0], LABELS[0, :12])])
    Image.fromarray(IMAGES[0][:4]).save(folder / '00000/img00000002.png')
    with pytest.raises(UserError, match='8 x 4'):
        Eg3dImages(folder)[2]
    (folder / '00000/img00000003.png').write_bytes(b'not a picture')
    with pytest.raises(UserError, match='00003.png: is not a picture that can be read'):
        Eg3dImages(folder)[3]


def test_wrong_tables_are_named(tmp_path):
    def attempt(change, message):
        folder = write_eg3d(tmp_path / message.replace(' ', ''), zip(IMAGES, LABELS, strict=True))
        spoil(folder, change)
        with pytest.raises(UserError, match=message):
            Eg3dImages(folder)
        assert (Eg3dImages(folder, use_labels=False)[0]['label'] == 0).all()

    attempt(lambda t: {'labels': None}, 'is null')
    attempt(lambda t: {'labels': t['labels'][1:]}, 'no label for')
    attempt(lambda t: {'labels': [[n, v[:24]] for n, v in t['labels']]}, '24 numbers')
    attempt(lambda t: {'labels': [n for n, _ in t['labels']]}, 'entry')
    attempt(lambda t: t['labels'], 'not of the form')
    folder = write_eg3d(tmp_path / 'none', zip(IMAGES, LABELS, strict=True))
    (folder / 'dataset.json').unlink()
    with pytest.raises(UserError, match='missing'):
        Eg3dImages(folder)


def test_check_command(written, capsys):
    assert main([str(written)]) == 0
    assert '7 pictures of 8 x 8' in capsys.readouterr().out
    if written.is_dir():
        (written / '00000/img00000006.png').write_bytes(b'')
        assert main([str(written)]) == 2
        assert 'img00000006' in capsys.readouterr().err
