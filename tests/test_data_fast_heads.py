"""Shards of independent heads: determinism by index, resuming, mixture, clear errors."""

import json

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import pose_from_label
from avatar_jax.procedural import default_gamma, render_head
from avatar_jax.procedural.streams import Stream
from data_pipelines.fast_heads import (
    FIELDS,
    FastHeadsConfig,
    generate,
    load_shards,
    main,
    sample,
    sample_parameters,
)
from data_pipelines.lights import random_gamma

TINY = FastHeadsConfig(resolution=16, supersample=1)


def test_samples_depend_on_seed_split_and_index_alone(tmp_path):
    generate(TINY, tmp_path / 'a', 3, 5, shard=2, progress=False)
    generate(TINY, tmp_path / 'b', 4, 2, shard=7, progress=False)
    a, b = load_shards(tmp_path / 'a'), load_shards(tmp_path / 'b')
    assert a['index'].tolist() == [3, 4, 5, 6, 7] and b['index'].tolist() == [4, 5]
    for k in FIELDS:
        np.testing.assert_array_equal(a[k][1:3], b[k])
        assert a[k].dtype == np.dtype(FIELDS[k][1])
        shape = FIELDS[k][0].replace('r', '16')
        assert a[k].shape[1:] == tuple(int(n) for n in shape.split(',') if n)
    others = [sample_parameters(c, 4)['identity'] for c in (FastHeadsConfig(seed=1), FastHeadsConfig(split='test'))]
    assert all(np.linalg.norm(o - b['identity'][0]) > 5 for o in others)


@pytest.mark.slow
def test_workers_give_the_same_shards(tmp_path):
    one = generate(TINY, tmp_path / 'one', 0, 4, shard=2, progress=False)
    two = generate(TINY, tmp_path / 'two', 0, 4, shard=2, workers=2, progress=False)
    assert [p.name for p in one] == [p.name for p in two]
    a, b = load_shards(tmp_path / 'one'), load_shards(tmp_path / 'two')
    for k in FIELDS:
        np.testing.assert_array_equal(a[k], b[k])


def test_sample_is_the_picture_of_its_parameters():
    s = sample(TINY, 9)
    head = render_head(s['identity'], s['expression'], s['label'], s['gamma'], resolution=16, supersample=1)
    np.testing.assert_array_equal(s['rgb'], np.round(np.clip(head.rgb, 0, 1) * 255).astype(np.uint8))
    angle, shift = pose_from_label(s['label'])
    np.testing.assert_allclose(s['window'][13], np.concatenate([s['expression'], angle, shift]), atol=2e-5)
    inside = s['mask'] == 255
    assert inside.any() and (s['depth'][inside] > 2).all() and (s['depth'][inside] < 4).all()


def test_mixture_covers_poses_and_light():
    rows = [sample_parameters(TINY, i) for i in range(300)]
    angle = np.rad2deg(np.stack([r['window'][13, 64:67] for r in rows]))
    assert 38 < np.abs(angle[:, 1]).max() <= 45 and 15 < np.abs(angle[:, 0]).max() <= 20.01
    moving = np.stack([r['window'] for r in rows])
    assert (np.abs(np.diff(moving[..., :64], axis=1)).max((1, 2)) > 0.1).mean() > 0.9
    closed = np.stack([r['expression'] for r in rows])[:, 37:39].min(1) > 0.95
    assert 0.08 < closed.mean() < 0.35
    assert np.stack([r['gamma'] for r in rows]).std(0).max() > 0.02
    still = sample_parameters(FastHeadsConfig(light=0.0), 1)['gamma']
    np.testing.assert_allclose(still, default_gamma(), atol=2e-5)
    np.testing.assert_allclose(
        random_gamma(Stream(1), 0.5), (random_gamma(Stream(1)) + random_gamma(Stream(1), 0.0)) / 2, atol=1e-7
    )


def test_frames_per_identity_share_person_and_light():
    config = FastHeadsConfig(frames_per_identity=3, speech_share=0.0)
    rows = [sample_parameters(config, i) for i in range(6)]
    for k in ('identity', 'gamma'):
        assert all(np.array_equal(rows[0][k], r[k]) for r in rows[:3]) and not np.array_equal(rows[0][k], rows[3][k])
    assert not np.array_equal(rows[0]['expression'], rows[1]['expression'])


def test_resuming_makes_only_what_is_missing(tmp_path, capsys):
    paths = generate(TINY, tmp_path, 0, 4, shard=2, progress=False)
    before = [p.stat().st_mtime_ns for p in paths]
    paths[1].unlink()
    generate(TINY, tmp_path, 0, 4, shard=2)
    assert paths[0].stat().st_mtime_ns == before[0] and paths[1].exists()
    assert '1 of 2 shards are there already' in capsys.readouterr().out
    assert not list(tmp_path.glob('.*tmp'))


def test_other_recipes_and_damage_are_refused(tmp_path, capsys):
    [path] = generate(TINY, tmp_path, 0, 2, shard=2, progress=False)
    with pytest.raises(UserError, match='another configuration.*seed'):
        generate(FastHeadsConfig(seed=1, resolution=16, supersample=1), tmp_path, 0, 2, progress=False)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'head': [0] * len(config['head'])}))
    with pytest.raises(UserError, match='another version of the head'):
        generate(TINY, tmp_path, 0, 2, progress=False)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='colour'):
        load_shards(tmp_path, ('colour',))
    assert set(load_shards(tmp_path, ('rgb',), limit=1)) == {'rgb'}
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match='damaged shard'):
        load_shards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match='no shards'):
        load_shards(tmp_path)
    with pytest.raises(UserError, match='config.json'):
        load_shards(tmp_path / 'nowhere')
    assert main(['--out', str(tmp_path), '--count', '1', '--split', 'dev']) == 2
    assert main(['--out', str(tmp_path), '--count', '0']) == 2
    (tmp_path / 'file').write_text('')
    assert main(['--out', str(tmp_path / 'file'), '--count', '1']) == 2
    assert capsys.readouterr().err.count('error:') == 3
