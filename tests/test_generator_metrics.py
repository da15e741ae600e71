"""Scores of generators: precision and recall, resumable feature sets, pose and depth, the command."""

import json

import jax
import numpy as np
import pytest

from avatar_jax.cli import main
from avatar_jax.configure import to_plain
from avatar_jax.errors import UserError
from avatar_jax.eval import generators
from avatar_jax.eval.distributions import precision_recall
from avatar_jax.eval.feature_sets import bytes_of, collect, spread
from avatar_jax.io.weights import save_weights
from avatar_jax.methods.eg3d import files
from avatar_jax.models.triplane import init_generator
from tests.test_train_eg3d import labels_of, tiny_run


def test_precision_and_recall_by_hand():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 3)), rng.normal(0.5, 1, size=(30, 3))

    def covered(points, centres, k=3):
        reach = [np.sort(np.linalg.norm(centres - c, axis=1))[k] for c in centres]
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, reach, strict=True)) for p in points]
        return np.mean(inside)

    assert precision_recall(real, fake, block=7) == pytest.approx((covered(fake, real), covered(real, fake)))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    with pytest.raises(ValueError, match='more than 3'):
        precision_recall(real[:3], fake)


def test_features_are_kept_in_parts_and_continued(tmp_path):
    asked = []

    def compute(first, count):
        asked.append((first, count))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return np.arange(first, first + count)[:, None] * np.ones(2)

    identity = {'weights': 'a', 'seed': 1}
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / 'f', identity, 10, compute, part=4)
    found = collect(tmp_path / 'f', identity, 10, compute, part=4)
    np.testing.assert_array_equal(found[:, 0], np.arange(10))
    assert asked == [(0, 4), (4, 4), (8, 2), (8, 2)]
    np.testing.assert_array_equal(collect(tmp_path / 'f', identity, 12, compute, part=4)[:, 0], np.arange(12))
    assert asked[4:] == [(8, 4)]  # the last part has grown
    (tmp_path / 'f' / 'features-00000000.npy').write_bytes(b'torn')
    np.testing.assert_array_equal(collect(tmp_path / 'f', identity, 6, compute, part=4)[:, 0], np.arange(6))
    with pytest.raises(UserError, match='another measurement .different: weights'):
        collect(tmp_path / 'f', {'weights': 'b', 'seed': 1}, 10, compute, part=4)


def test_rows_are_spread_and_bytes_are_cut_off():
    run = spread(lambda scale, x: {'y': x * scale})
    np.testing.assert_array_equal(run(np.float32(2), np.arange(5.0))['y'], 2 * np.arange(5.0))
    np.testing.assert_array_equal(run(np.float32(3), np.arange(3.0))['y'], 3 * np.arange(3.0))
    np.testing.assert_array_equal(bytes_of(np.asarray([-2.0, -1, 0, 0.999, 1, 2])), [0, 0, 128, 255, 255, 255])


def test_codes_belong_to_the_sample():
    z, row = generators.sample_codes(3, 0, 6, 5, 100)
    z2, row2 = generators.sample_codes(3, 4, 2, 5, 100)
    np.testing.assert_array_equal(z[4:], z2)
    np.testing.assert_array_equal(row[4:], row2)


def test_pose_and_depth_scores():
    from avatar_jax.faces.camera_labels import pose_from_label

    labels = labels_of(4)
    angles, _ = pose_from_label(labels.astype(np.float64))
    np.testing.assert_allclose(generators.pose_error(angles, labels), 0, atol=1e-4)
    turned = angles + np.asarray([0, np.deg2rad(5.0), 0])
    np.testing.assert_allclose(generators.pose_error(turned, labels), 5, atol=0.2)
    y, x = np.mgrid[0:8, 0:8] / 8
    truth = np.stack([2.7 + 0.1 * x, 2.6 + 0.1 * y])
    mask = np.ones_like(truth)
    found = generators.depth_scores(truth + 0.05, mask, truth, mask)
    assert found['depth_error'] == pytest.approx(0, abs=1e-9) and found['depth_offset'] == pytest.approx(0.05)
    assert found['depth_correlation'] == pytest.approx(1) and found['overlap'] == 1
    half = mask * (x < 0.5)
    assert generators.depth_scores(truth, half, truth, mask)['overlap'] == pytest.approx(0.5)


def test_the_truth_of_a_latent_has_depth_and_mask():
    from avatar_jax.eval.generator_scores import true_heads

    depth, mask = true_heads(np.zeros((1, 200), np.float32), labels_of(1), 16)
    assert depth.shape == mask.shape == (1, 16, 16) and mask.max() > 0.5
    assert 2 < np.median(depth[mask > 0.5]) < 3.3


@pytest.mark.slow
def test_the_command_scores_a_weight_file(tmp_path, capsys):
    config = tiny_run().generator
    variables = jax.tree.map(np.asarray, init_generator(config, jax.random.key(0)))
    path = tmp_path / files.WEIGHTS
    save_weights(path, variables, method='eg3d', config=to_plain(config), provenance={})
    command = [
        'metrics',
        '--weights',
        str(path),
        '--out',
        str(tmp_path / 'scores'),
        '--count',
        '6',
        '--real-count',
        '5',
        '--batch',
        '3',
        '--people',
        '2',
    ]
    assert main(command) == 0
    scores = json.loads((tmp_path / 'scores' / 'scores.json').read_text())
    assert scores['generated'] == 6 and scores['real'] == 5 and scores['network'].startswith('stand-in')
    assert 'fid' not in scores and scores['frechet_stand_in'] > 0 and 0 <= scores['precision'] <= 1
    assert -1 <= scores['identity']['same'] <= 1 and scores['pose']['degrees'] >= 0 and 'unavailable' in scores['depth']
    capsys.readouterr()
    assert main([*command[:-2], '--people', '0', '--inception', str(tmp_path / 'none.npz')]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
