"""The option ``looks`` and the camera effects in the data pipelines: kept apart, reproducible, off where not asked."""

import numpy as np
import pytest

from avatar_jax.configure import current_names
from avatar_jax.errors import UserError
from avatar_jax.procedural.streams import Stream
from avatar_jax.train.checkpoints import config_difference
from avatar_jax.train.run import ClipsConfig, PicturesConfig
from data_pipelines import streams
from data_pipelines.camera_effects import CameraFrames, CameraImages, camera_effects
from data_pipelines.clips import ClipOptions, evaluation_clips
from data_pipelines.fast_heads import FastHeadsConfig, generate, load_shards, sample
from data_pipelines.fingerprint import head_fingerprint, same_head
from data_pipelines.image_sources import RenderedImages, open_images
from data_pipelines.sources import RenderedFrames

OLD, NEW = (FastHeadsConfig(resolution=16, supersample=1, looks=k) for k in (1, 2))


def test_versions_of_the_looks_share_the_truth():
    a, b = sample(OLD, 5), sample(NEW, 5)
    for k in ('identity', 'expression', 'window', 'label', 'gamma', 'landmarks'):
        np.testing.assert_array_equal(a[k], b[k])
    assert np.abs(a['rgb'].astype(int) - b['rgb']).mean() > 2
    assert (a['mask'] // 128 == b['mask'] // 128).mean() > 0.85


def test_pictures_of_two_versions_are_never_mixed(tmp_path):
    generate(NEW, tmp_path, 0, 1, progress=False)
    assert len(load_shards(tmp_path, ('rgb',))['rgb']) == 1
    with pytest.raises(UserError, match='different: looks'):
        generate(OLD, tmp_path, 0, 1, progress=False)
    assert same_head(list(head_fingerprint(2)), 2) and not same_head(list(head_fingerprint(2)), 1)
    assert RenderedImages(2, 16).fingerprint() != RenderedImages(2, 16, looks=2).fingerprint()
    with pytest.raises(UserError, match='looks'):
        FastHeadsConfig(looks=3)


def test_version_1_is_not_named_in_recipes():
    """So that what was made before there was another version stays valid."""
    assert 'looks' not in FastHeadsConfig().recipe() and 'looks=2' in FastHeadsConfig(looks=2).recipe()
    assert 'looks' not in ClipOptions().recipe() and ClipOptions(looks=2).recipe()['looks'] == 2
    stored = {'source': 'rendered', 'people': 3}
    now = current_names(ClipsConfig, stored, complete=True)
    assert (now['looks'], now['camera'], now['camera_seed']) == (1, 0.0, 0)
    assert current_names(ClipsConfig, stored) == stored
    assert config_difference(now, {**stored, 'looks': 2, 'camera': 0.0, 'camera_seed': 0}) is not None


def test_a_built_set_of_version_2_has_a_name_of_its_own(tmp_path):
    from data_pipelines.heads.__main__ import build
    from data_pipelines.sources import BuiltFrames

    few = {'people': 1, 'frames': 1, 'cameras': 1, 'progress': False}
    old, new = (build('tiny', tmp_path, looks=k, **few) for k in (None, 2))
    assert old != new and build('tiny', tmp_path, looks=1, **few) == old
    a, b = (BuiltFrames(folder)[0] for folder in (old, new))
    np.testing.assert_array_equal(a['landmarks'], b['landmarks'])
    assert np.abs(a['image'].astype(int) - b['image']).mean() > 2


def test_options_of_a_training():
    old, new = (streams.clips(ClipsConfig(people=1, frames=2, looks=k), 16, _weights()) for k in (1, 2))
    seen = streams.clips(ClipsConfig(people=1, frames=2, looks=2, camera=1.0), 16, _weights())
    assert np.abs(old[0]['image'].astype(int) - new[0]['image']).mean() > 1
    assert np.any(seen[0]['image'] != new[0]['image'])
    for k in ('mask', 'label', 'landmarks', 'identity'):
        np.testing.assert_array_equal(seen[0][k], new[0][k])
    with pytest.raises(UserError, match='data.looks'):
        ClipsConfig('built', 'somewhere', looks=2)
    pictures = [open_images(PicturesConfig(count=2, camera=c, camera_seed=s), 16) for c, s in ((0, 0), (1, 0), (1, 1))]
    assert len({p.fingerprint() for p in pictures}) == 3
    assert len({p[1]['image'].tobytes() for p in pictures}) == 3


def _weights():
    from avatar_jax.faces.conventions import Conventions
    from avatar_jax.ops.coefficients import NUM_ID

    return Conventions('procedural', shape=NUM_ID)


def test_evaluation_clips_in_both_versions():
    old, new = (evaluation_clips(1, num_frames=1, looks=k)[0] for k in (1, 2))
    np.testing.assert_array_equal(old.expression, new.expression)
    a, b = (clip.render(0, resolution=16) for clip in (old, new))
    np.testing.assert_array_equal(a.landmarks, b.landmarks)
    assert np.abs(a.rgb - b.rgb).mean() > 0.01


def test_camera_effects():
    image = np.full((32, 32, 3), 120, np.uint8)
    image[8:24, 8:24] = (200, 150, 120)
    np.testing.assert_array_equal(camera_effects(image, Stream(1), 0.0), image)
    np.testing.assert_array_equal(camera_effects(image, Stream(1)), camera_effects(image, Stream(1)))
    many = np.stack([camera_effects(image, Stream(k)) for k in range(24)]).astype(float)
    assert many.dtype == float and many.shape == (24, 32, 32, 3)
    flat = many[:, :6, :6]
    assert 5 < flat.mean((1, 2, 3)).std() < 40  # exposure
    assert (flat[..., 0] - flat[..., 2]).mean((1, 2)).std() > 4  # white balance
    edges = np.abs(np.diff(many[:, 16, 5:11].mean(-1), axis=1)).max(1) / (many[:, 16, 16] - many[:, 16, 2]).mean(-1)
    assert edges.min() < 0.75 and edges.max() > 0.9  # some are blurred
    half = np.stack([camera_effects(image, Stream(k), 0.3) for k in range(24)]).astype(float)
    assert np.abs(half - image).mean() < 0.6 * np.abs(many - image).mean()


def test_camera_effects_leave_the_background():
    source = RenderedFrames.of_people(1, resolution=32, options=ClipOptions(num_frames=2))
    seen = CameraFrames(source, 1.0, 3)
    row, clean = seen[1], source[1]
    np.testing.assert_array_equal(row['image'][clean['mask'] == 0], clean['image'][clean['mask'] == 0])
    assert np.abs(row['image'].astype(int) - clean['image'])[clean['mask'] == 255].mean() > 1
    np.testing.assert_array_equal(row['image'], CameraFrames(source, 1.0, 3)[1]['image'])
    assert len(seen) == len(source) and seen.conventions == source.conventions
    images = RenderedImages(2, 16)
    assert CameraImages(images, 1.0).fingerprint() != images.fingerprint()
    np.testing.assert_array_equal(CameraImages(images, 1.0).all_labels(), images.all_labels())
