"""Single-picture sources of adversarial training, and the TFDS builder for a user's own pictures."""

import dataclasses
import json

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import mirror_label
from avatar_jax.methods.eg3d.config import DataConfig
from data_pipelines.eg3d_images import Eg3dImages, image_batches, write_eg3d
from data_pipelines.eg3d_tfds.__main__ import build, main
from data_pipelines.image_sources import ArrayImages, Mirrored, RenderedImages, open_images
from tests.test_train_eg3d import labels_of


def pictures(count=4, size=16):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), label) for label in labels_of(count)]


def test_sources_agree_on_labels_without_decoding(tmp_path):
    rows = pictures()
    path = write_eg3d(tmp_path / 'set.zip', rows)
    for source in (
        Eg3dImages(path),
        Eg3dImages(path, mirror='images+labels'),
        ArrayImages.of(Eg3dImages(path)),
        Mirrored(ArrayImages(np.stack([r[0] for r in rows]), labels_of(4))),
    ):
        labels = source.all_labels()
        assert labels.shape == (len(source), 25)
        for i in range(len(source)):
            np.testing.assert_array_equal(source[i]['label'], labels[i])
    both = Mirrored(Eg3dImages(path))
    np.testing.assert_array_equal(both[5]['image'], rows[1][0][:, ::-1])
    np.testing.assert_allclose(both[5]['label'], mirror_label(rows[1][1]), atol=1e-7)
    assert Mirrored(Eg3dImages(path), labels=False)[5]['label'].tolist() == rows[1][1].tolist()
    assert both.fingerprint() != Eg3dImages(path).fingerprint()
    batch = next(iter(image_batches(both, 2, as_bytes=True)))
    assert batch['image'].dtype == np.uint8 and batch['label'].shape == (2, 25)


def test_drawn_heads_know_their_cameras():
    source = RenderedImages(3, 16)
    row = source[2]
    assert row['image'].shape == (16, 16, 3) and len(source) == 3
    np.testing.assert_array_equal(row['label'], source.all_labels()[2])
    assert source.fingerprint() == RenderedImages(3, 16).fingerprint() != RenderedImages(3, 16, seed=1).fingerprint()
    with pytest.raises(IndexError):
        source[3]


def test_what_is_wrong_with_the_data_is_one_line(tmp_path):
    path = write_eg3d(tmp_path / 'set.zip', pictures())
    good = DataConfig(source='eg3d', folder=str(path))
    assert len(open_images(dataclasses.replace(good, mirror='images+labels', max_size=2), 16)) == 4
    cases = {
        'pictures of 16 pixels, the generator makes 32': (good, 32),
        'data.mirror': (dataclasses.replace(good, mirror='yes'), 16),
        'no data set with a split': (DataConfig(source='built', folder=str(tmp_path)), 16),
        'not a configuration of fast heads': (DataConfig(source='fast_heads', folder=str(tmp_path)), 16),
    }
    for message, (data, size) in cases.items():
        with pytest.raises(UserError, match=message) as found:
            open_images(data, size)
        assert '\n' not in str(found.value)
    with pytest.raises(UserError, match='data.source'):
        DataConfig(source='folder')
    with pytest.raises(UserError, match='4 pictures are too few for 8 processes'):
        image_batches(open_images(good, 16), 8, process_count=8)


def test_a_users_folder_becomes_a_data_set(tmp_path, capsys):
    rows = pictures()
    folder = write_eg3d(tmp_path / 'mine', rows)
    found = build(folder, tmp_path / 'tfds', validation=1, progress=False)
    train = open_images(DataConfig(source='built', folder=str(found)), 16)
    held = open_images(DataConfig(source='built', folder=str(found), split='validation'), 16)
    assert (len(train), len(held)) == (3, 1)
    np.testing.assert_array_equal(train[0]['image'], rows[1][0])
    np.testing.assert_array_equal(train.all_labels(), labels_of(4)[1:])
    assert build(folder, tmp_path / 'tfds', validation=1, progress=False) == found

    def broken(change):
        table = json.loads((folder / 'dataset.json').read_text())
        change(table['labels'][2][1])
        (folder / 'dataset.json').write_text(json.dumps(table))
        status = main(['--path', str(folder), '--data-dir', str(tmp_path / 'other')])
        (folder / 'dataset.json').write_text(
            json.dumps(
                {
                    'labels': [
                        [n, [float(x) for x in label]]
                        for n, (_, label) in zip([e[0] for e in table['labels']], rows, strict=True)
                    ]
                }
            )
        )
        error = capsys.readouterr().err
        assert status == 2 and len(error.strip().splitlines()) == 1
        return error

    def left_handed(label):
        for i in (0, 4, 8):
            label[i] = -label[i]

    def far(label):
        for i in (3, 7, 11):
            label[i] *= 10

    assert 'has 24 numbers instead of 25' in broken(lambda label: label.pop())
    assert 'left-handed' in broken(left_handed) and 'img00000002' in broken(left_handed)
    assert 'implausible distance' in broken(far)
    assert not (tmp_path / 'other').exists()
