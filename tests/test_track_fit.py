"""The clip fit: solvers against dense ones, known clips, gaps, outliers, crops and labels."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.eval.statistics import pearson
from avatar_jax.faces.alignment import align, aligned_to_eg3d, five_points
from avatar_jax.faces.base import MorphableModel
from avatar_jax.faces.camera_labels import label_from_pose, pose_from_label
from avatar_jax.faces.pose import head_to_world
from avatar_jax.procedural.samples import project
from avatar_jax.track import fit
from avatar_jax.track.camera import from_translation, seen, to_translation
from avatar_jax.track.clip import key_frames, track_clip
from avatar_jax.track.landmark_model import at_landmarks, load_head, procedural_expressions
from avatar_jax.track.observe import FileLandmarks
from avatar_jax.track.placing import crop_placement, project_clip, with_head_translation
from avatar_jax.track.track import TrackConfig
from tests.toy_head import ToyHead, toy_clip

SIZE = (640, 480)


@pytest.fixture(scope='module')
def head():
    return ToyHead()


@pytest.fixture(scope='module')
def landmark_model(head):
    return at_landmarks(head)


def frames(count, size=SIZE, times=None):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    times = np.arange(count) / 25 if times is None else times
    return [SimpleNamespace(index=i, time=float(t), pixels=picture) for i, t in enumerate(times)]


def tracked(landmark_model, points, times=None, **options):
    observed = FileLandmarks(points).observe(frames(len(points), times=times), 'clip')
    return track_clip(
        observed, landmark_model, TrackConfig(fit=fit.FitConfig(focal=1200 / 640), label_mode='raw', **options)
    )


def test_tabulated_landmarks(head, landmark_model):
    assert isinstance(head, MorphableModel) and landmark_model.basis == 'toy'
    rng = np.random.default_rng(0)
    identity, expression = rng.normal(size=5), rng.normal(size=6)
    np.testing.assert_allclose(
        landmark_model.points(jnp.asarray(identity), jnp.asarray(expression)),
        head.landmarks(identity, expression),
        atol=1e-5,
    )
    z = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    np.testing.assert_allclose(landmark_model.whiten(landmark_model.unwhiten(z)), z, atol=1e-4)


def test_models_that_are_not_linear_are_refused(head):
    class Bent(ToyHead):
        def landmarks(self, identity, expression):
            return super().landmarks(identity, np.asarray(expression) ** 2)

    with pytest.raises(UserError, match='not linear'):
        at_landmarks(Bent())


def test_head_models_by_name(tmp_path):
    assert load_head('procedural').basis == 'procedural'
    with pytest.raises(UserError, match='no such head model'):
        load_head(tmp_path / 'none.npz')
    np.savez(tmp_path / 'other.npz', a=np.zeros(3))
    with pytest.raises(UserError, match='is not a head model'):
        load_head(tmp_path / 'other.npz')


def test_usual_expressions_are_whitened():
    mean, spread = procedural_expressions()
    assert mean.shape == (64,) and np.isfinite(spread).all()
    covariance = spread.T @ spread
    assert np.linalg.eigvalsh(covariance).min() > 0 and 0 < np.sqrt(np.diag(covariance)).max() < 0.8


def test_block_tridiagonal_solver():
    rng = np.random.default_rng(0)
    t, d = 5, 4
    ties = rng.uniform(0.1, 1, (t - 1, d)).astype(np.float32)
    blocks = np.stack([(m := rng.normal(size=(d, d))) @ m.T + 3 * np.eye(d) for _ in range(t)]).astype(np.float32)
    right = rng.normal(size=(t, d)).astype(np.float32)
    dense = np.zeros((t * d, t * d))
    for i in range(t):
        dense[i * d : (i + 1) * d, i * d : (i + 1) * d] = blocks[i]
    for i in range(t - 1):
        a, b = slice(i * d, (i + 1) * d), slice((i + 1) * d, (i + 2) * d)
        dense[a, b] = dense[b, a] = -np.diag(ties[i])
    expected = np.linalg.solve(dense, right.ravel()).reshape(t, d)
    np.testing.assert_allclose(fit._tridiagonal(*map(jnp.asarray, (blocks, ties, right))), expected, atol=2e-5)
    np.testing.assert_allclose(fit._positive_inverse(jnp.asarray(blocks[0])), np.linalg.inv(blocks[0]), atol=2e-5)


def test_camera_round_trip():
    rng = np.random.default_rng(0)
    angle, translation = rng.normal(0, 0.3, (4, 3)), rng.normal(0, 0.5, (4, 3))
    pose = from_translation(angle, translation)
    for a, b in zip(to_translation(pose), (angle, translation), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    points = rng.normal(0, 0.5, (4, 7, 3))
    both = project_clip(points, pose, 900.0, np.array([320.0, 240.0]))
    one = seen(jnp.asarray(points[2]), jnp.asarray(pose[2]), 900.0, jnp.array([320.0, 240.0]))
    np.testing.assert_allclose(one, both[2], rtol=1e-4)


@pytest.fixture(scope='module')
def clip(head, landmark_model):
    points, expression, angle, translation, identity = toy_clip(head)
    return SimpleNamespace(
        points=points,
        expression=expression,
        angle=angle,
        translation=translation,
        identity=identity,
        track=tracked(landmark_model, points, crop='frame'),
    )


@pytest.mark.slow
def test_known_clip(clip, landmark_model):
    track = clip.track
    assert track.found.all() and track.valid.all() and track.crop_mode == 'frame' and track.basis == 'toy'
    angle, _ = to_translation(track.pose)
    assert np.rad2deg(np.abs(angle - clip.angle).mean()) < 0.5
    true = np.tensordot(clip.expression, np.asarray(landmark_model.expression), 1)
    found = np.tensordot(track.expression[:, :6], np.asarray(landmark_model.expression), 1)
    assert pearson((true - true.mean(0)).ravel(), (found - found.mean(0)).ravel()) > 0.97
    assert np.nanmean(track.residual) < 0.01
    assert track.expression.shape == (40, 64) and not track.expression[:, 6:].any()
    records = track.coefficients()
    assert records.shape == (40, 260) and np.isfinite(records).all()
    # Distances are known only up to the size of the head, which is nearly usual.
    assert abs(np.exp(track.pose[:, 5]).mean() / 10 - 1) < 0.1


def test_labels_show_the_head_in_the_crop(clip, landmark_model):
    """The fitted landmarks, seen by the label's camera, lie where they lie in the crop."""
    track = clip.track
    angle, translation = pose_from_label(track.labels)
    np.testing.assert_allclose(angle, track.angle, atol=1e-5)
    np.testing.assert_allclose(translation, track.translation, atol=1e-4)
    crop = np.einsum('tij,tnj->tni', track.matrices[..., :2], track.fitted) + track.matrices[:, None, :, 2] + 0.5
    for t in (0, 20, 39):
        points = np.asarray(landmark_model.points(jnp.asarray(track.identity[0]), jnp.asarray(track.expression[t, :6])))
        shown = project(head_to_world(points), track.labels[t], track.crop_size, track.crop_size)[:, :2]
        assert np.abs(shown - crop[t]).max() < 0.006 * track.crop_size
    eyes = five_points(crop).mean(0)[:2, 1] / track.crop_size
    np.testing.assert_allclose(eyes, 0.5 - 0.29 * 300 / 700, atol=0.02)


@pytest.mark.slow
def test_gaps_are_filled(clip, landmark_model):
    points = clip.points.copy()
    points[10:14] = points[36:] = np.nan
    track = tracked(landmark_model, points, crop='frame')
    assert track.missing() == [(10, 14), (36, 40)] and track.valid.all()
    angle, _ = to_translation(track.pose)
    assert np.rad2deg(np.abs(angle[10:14] - clip.angle[10:14]).max()) < 6  # a straight line through a curve
    np.testing.assert_allclose(angle[37:], np.broadcast_to(angle[36], (3, 3)), atol=0.01)
    assert np.isnan(track.residual[10:14]).all() and np.isfinite(track.landmarks).all()


@pytest.mark.slow
def test_outliers_lose_their_weight(clip, landmark_model):
    points = clip.points.copy()
    points[:, [5, 40, 50]] += [30.0, -20.0]
    track = tracked(landmark_model, points, crop='frame')
    angle, _ = to_translation(track.pose)
    assert np.rad2deg(np.abs(angle - clip.angle).mean()) < 1.5


@pytest.mark.slow
def test_one_frame_and_clip_crops(clip, landmark_model):
    one = tracked(landmark_model, clip.points[:1])
    assert one.num_frames == 1 and one.jitter == (0.0, 0.0)
    still = tracked(
        landmark_model, np.repeat(clip.points[:1], 12, 0) + np.random.default_rng(0).normal(0, 0.3, (12, 68, 2))
    )
    assert still.crop_mode == 'clip' and (still.matrices == still.matrices[0]).all()
    assert still.jitter[1] < 0.6 * still.jitter[0]
    rough = tracked(landmark_model, clip.points[:12] + np.random.default_rng(0).normal(0, 0.3, (12, 68, 2)), steady=0.0)
    assert rough.jitter[0] == rough.jitter[1]


def test_no_face_at_all(landmark_model):
    with pytest.raises(UserError, match='no face found in any frame'):
        tracked(landmark_model, np.full((3, 68, 2), np.nan))


def test_options_are_checked():
    for options, message in (
        ({'crop': 'round'}, 'use one of'),
        ({'size': 8}, 'at least 16'),
        ({'steady': -1}, 'negative'),
    ):
        with pytest.raises(UserError, match=message):
            TrackConfig(**options)


def test_crops_lie_where_the_alignment_puts_them():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (241, 320, 3), dtype=np.uint8)
    points = np.array([[140, 100], [182, 106], [160, 128], [143, 150], [176, 154]], float)
    aligned = align(picture, points, 1024, 300.0)
    expected = aligned_to_eg3d(aligned.landmarks)
    matrix, placement = crop_placement(points, (320, 241), 512)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], expected, atol=2e-3)
    np.testing.assert_allclose(placement, aligned.trans_params[2:], rtol=1e-6)
    half, _ = crop_placement(points, (320, 241), 256)
    np.testing.assert_allclose((points @ half[:, :2].T + half[:, 2] + 0.5) * 2 - 0.5, expected, atol=2e-3)


def test_key_frames_differ_and_are_measured():
    features = np.array([[0.0], [0.1], [5.0], [9.0], [0.05]])
    found = np.array([True, True, True, False, True])
    keys = key_frames(features, found, 3)
    assert 2 in keys and 3 not in keys and len(keys) == 3
    assert set(key_frames(features[:1], found[:1], 4)) == {0}


def test_head_translation_moves_labels(clip):
    moved = with_head_translation(clip.track)
    assert np.abs(moved.labels[0] - clip.track.labels[0]).max() < 1e-5
    assert np.abs(moved.labels[-1, [3, 7]] - clip.track.labels[-1, [3, 7]]).max() > 1e-3
    np.testing.assert_array_equal(moved.labels[:, [0, 1, 2, 4, 5, 6]], clip.track.labels[:, [0, 1, 2, 4, 5, 6]])


def test_labels_follow_the_mode(clip):
    label = label_from_pose(clip.track.angle, clip.track.translation, 'orig')
    assert np.allclose(np.linalg.norm(label[:, [3, 7, 11]], axis=1), 2.7, atol=1e-4)


def test_guesses_lose_what_the_prior_knows():
    """A guess that is the mean of prior and measurement gives the measurement back; a useless one gets no weight."""
    from avatar_jax.track.clip import unshrunk

    landmark_model = at_landmarks(ToyHead())
    measured, sigma = np.full((2, 6), 0.7), 0.5  # the prior is N(0, 1) in each number
    guess = measured / (1 + sigma**2)
    error = np.full(6, np.sqrt(sigma**2 / (1 + sigma**2)))
    error[5] = 0.99
    found, found_sigma = unshrunk(guess, error, landmark_model)
    np.testing.assert_allclose(found[:, :5], measured[:, :5], rtol=1e-6)
    np.testing.assert_allclose(found_sigma[:5], sigma, rtol=1e-6)
    assert np.isinf(found_sigma[5]) and np.isinf(unshrunk(guess, None, landmark_model)[1]).all()
