"""What labels and pictures mean: weights and data are compared, brought together where that is exact, else refused."""

import dataclasses
import types

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose, split_label
from avatar_jax.faces.conventions import Conventions, background_of, differences, of_model, over
from avatar_jax.methods.gpavatar.build import _mean_head
from avatar_jax.methods.gpavatar.config import FLAME_BASIS
from avatar_jax.methods.gpavatar.config import ModelConfig as GPAvatarModel
from avatar_jax.methods.gpavatar.train import with_host_arrays
from avatar_jax.methods.otavatar.model import ModelConfig as OTAvatarModel
from avatar_jax.train.run import ClipsConfig
from data_pipelines import streams
from data_pipelines.fitted import fitted
from data_pipelines.sets import SetConfig, Sets
from data_pipelines.sources import RenderedFrames
from tests.tiny_model import portrait


class Frames:
    """Four frames of a data set with these conventions."""

    def __init__(self, conventions, has_masks=True):
        rng = np.random.default_rng(0)
        self.conventions, self.has_masks, self.table = conventions, has_masks, types.SimpleNamespace()
        self.angle, self.trans = rng.normal(0, 0.2, (2, 4, 3)).astype(np.float32)
        self.picture = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.float32)
        self.alpha = rng.uniform(0, 1, (4, 8, 8, 1)).astype(np.float32)

    def __len__(self):
        return 4

    def composed(self, record, value):
        alpha = np.rint(255 * self.alpha[record]) / 255
        return alpha * self.picture[record] + (1 - alpha) * value

    def __getitem__(self, record):
        value = {'white': 255, 'black': 0, 'keep': 128}[self.conventions.background]
        label = label_from_pose(self.angle[record], self.trans[record], self.conventions.labels)
        image = np.rint(self.composed(record, value)).astype(np.uint8)
        mask = np.rint(255 * self.alpha[record, ..., 0]).astype(np.uint8)
        return {'image': image, 'mask': mask, 'label': np.asarray(label, np.float32)}


RAW = Conventions('procedural', 'raw', 'white', shape=80)


def test_raw_labels_become_those_of_the_weights():
    source = Frames(RAW)
    assert fitted(source, RAW, 'd') == (source, [])
    for mode in ('orig', 'cor', 'simplify', 'hdtf'):
        found, notes = fitted(source, dataclasses.replace(RAW, labels=mode, shape=0), 'd')
        assert any("labels: 'raw' in the data" in note for note in notes)
        for k in range(4):
            np.testing.assert_allclose(
                found[k]['label'], label_from_pose(source.angle[k], source.trans[k], mode), atol=2e-6
            )
    found, _ = fitted(source, dataclasses.replace(RAW, labels='orig'), 'd')
    assert dataclasses.replace(RAW, labels='orig').radius == 2.7 and RAW.radius is None
    np.testing.assert_allclose(np.linalg.norm(split_label(found[0]['label'])[0][:3, 3]), 2.7, rtol=1e-5)


@pytest.mark.parametrize(('old', 'new'), [('white', 'black'), ('black', 'white')])
def test_the_background_is_exchanged_by_the_masks(old, new):
    source = Frames(dataclasses.replace(RAW, background=old))
    found, notes = fitted(source, dataclasses.replace(RAW, background=new), 'd')
    assert len(notes) == 1 and found.conventions.background == new
    for k in range(4):
        expected = source.composed(k, {'white': 255, 'black': 0}[new])
        assert np.abs(found[k]['image'].astype(np.float32) - expected).max() <= 1


@pytest.mark.parametrize(
    ('weights', 'data', 'text'),
    [
        ({'labels': 'raw'}, {'labels': 'orig'}, "camera labels are made as 'orig', those of the weights as 'raw'"),
        ({'labels': 'raw'}, {'labels': 'hdtf'}, "as 'hdtf'"),
        ({'labels': 'cor'}, {'labels': 'orig'}, "as 'orig', those of the weights as 'cor'"),
        ({'basis': 'flame-2020'}, {}, "basis 'procedural', the weights read 'flame-2020'"),
        ({'background': 'black'}, {'masks': False}, "background is 'white', that of the weights 'black'"),
        ({'shape': 100}, {}, '80 shape coefficients, the weights need 100'),
        ({'shape': 80}, {'shape': 0}, 'no shape coefficients'),
    ],
)
def test_what_cannot_be_brought_together_is_refused(weights, data, text):
    masks = data.pop('masks', True)
    source = Frames(dataclasses.replace(RAW, **data), masks)
    with pytest.raises(UserError, match=text) as error:
        fitted(source, dataclasses.replace(RAW, **weights), 'the data')
    assert str(error.value).startswith('the data: ') and '\n' not in str(error.value)


def test_released_clips_fit_the_paper_s_configuration():
    """Both keep a distance of about 2.7: a note. The crop differs too."""
    lmdb = Conventions('bfm2009-deep3d', 'hdtf', 'white', 'clip', 80)
    config = dataclasses.replace(OTAvatarModel.tiny(), basis='bfm2009-deep3d', label_mode='orig')
    wrong, notes = differences(config.conventions, lmdb)
    assert wrong == [] and len(notes) == 2 and "as 'hdtf'" in notes[0] and 'one face box' in notes[1]
    assert differences(dataclasses.replace(config, label_mode='hdtf').conventions, lmdb) == ([], [])
    wrong, _ = differences(dataclasses.replace(config, label_mode='raw').conventions, lmdb)
    assert len(wrong) == 1


def test_the_background_is_asked_of_the_weights():
    assert background_of(OTAvatarModel.tiny()) == 'white'
    released = GPAvatarModel.full()
    assert background_of(released) == 'black' and background_of(released, 'keep') == 'keep'
    assert of_model(released) == Conventions(FLAME_BASIS, 'raw', 'black', 'frame', 100)
    assert background_of(GPAvatarModel.tiny()) == 'white'
    with pytest.raises(UserError, match='choose weights, white, black or keep'):
        background_of(released, 'grey')
    mask = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    head = np.clip(np.asarray(portrait(0).image), -1, 1)
    white = portrait(0).replace(image=mask[..., None] * head + (1 - mask[..., None]), mask=mask)
    np.testing.assert_allclose(over(white, 'black').image, mask[..., None] * head - (1 - mask[..., None]), atol=1e-6)
    assert over(white, 'white') is white and over(white, 'keep') is white


def test_own_shape_is_eighty_numbers_and_never_silently_the_mean():
    source = RenderedFrames.of_people(1, 0, 'train', 1, 16, None)
    row = Sets(source, SetConfig(1, 3, 0))(0)
    assert row['shapes'].shape == (3, 80)
    np.testing.assert_array_equal(row['shapes'][0], row['identity'][:80])
    batch = {k: np.asarray(v)[None] for k, v in row.items()}
    own = dataclasses.replace(GPAvatarModel.tiny(), shape='own')
    np.testing.assert_allclose(with_host_arrays(own, batch)['shapes'][0], row['identity'][:80], rtol=1e-6)
    assert not with_host_arrays(GPAvatarModel.tiny(), batch)['shapes'].any()
    with pytest.raises(UserError, match="needs data with shape coefficients; .*model.shape='mean'"):
        with_host_arrays(own, {k: v for k, v in batch.items() if k != 'shapes'})
    (note,) = _mean_head(own, [portrait(0)])
    assert "the mean head's were taken" in note
    assert _mean_head(own, [portrait(0).replace(shape=np.zeros(80, np.float32))]) == []
    assert _mean_head(GPAvatarModel.tiny(), [portrait(0)]) == []


def test_streams_compare_the_data_with_the_model():
    data, notes = ClipsConfig(people=1, frames=4, resolution=16), []
    source = streams.clips(data, 16, OTAvatarModel.tiny().conventions, notes)
    assert notes == [] and source.conventions.labels == 'raw'
    source = streams.clips(data, 16, dataclasses.replace(OTAvatarModel.tiny(), label_mode='orig').conventions, notes)
    assert len(notes) == 1 and notes[0].startswith("data: labels: 'raw' in the data")
    with pytest.raises(UserError, match="the weights read 'bfm2009-deep3d'"):
        streams.clips(data, 16, dataclasses.replace(OTAvatarModel.tiny(), basis='bfm2009-deep3d').conventions)
