"""Which expression numbers moved the landmarks: the network's reading of the fit, on clips whose truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from avatar_jax.bundled import expression_net
from avatar_jax.bundled.face_net_figures import expression_figures
from avatar_jax.models.perception.expression_net import MARGIN, RATE
from avatar_jax.procedural import ProceduralHead, motion, sample_identity
from avatar_jax.track.camera import from_translation
from avatar_jax.track.clip import track_clip
from avatar_jax.track.landmark_model import at_landmarks
from avatar_jax.track.numbers import SIGMA, expected_numbers, read_numbers
from avatar_jax.track.observe import FileLandmarks
from avatar_jax.track.placing import project_clip
from avatar_jax.track.track import TrackConfig
from data_pipelines.fitted_clips import motions, simulated

SIDE = 512


@pytest.fixture(scope='module')
def landmark_model():
    return at_landmarks(ProceduralHead())


def spoken(landmark_model, seed, frames=100):
    """Landmarks [T,68,2] of a speaking person whom nothing was trained on, and the motion."""
    arrays, identity = motion.speech_arrays(seed, frames), sample_identity(seed, 'test')[:80]
    points = np.asarray(landmark_model.points(identity, 0 * arrays['expression'][0]), np.float64)
    points = points + np.tensordot(arrays['expression'], np.asarray(landmark_model.expression), 1)
    pose = from_translation(arrays['angle'], arrays['translation'])
    return project_clip(points, pose, 2.1 * SIDE, np.full(2, SIDE / 2)) - 0.5, arrays


def track(landmark_model, points):
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    frames = [SimpleNamespace(index=t, time=t / 25, pixels=picture) for t in range(len(points))]
    return track_clip(FileLandmarks(points).observe(frames, 'clip'), landmark_model, TrackConfig(label_mode='raw'))


@pytest.mark.slow
@pytest.mark.parametrize(('seed', 'noise'), [(504, 0.0), (507, 0.5)])
def test_rotation_and_expression_of_a_known_clip(landmark_model, seed, noise):
    points, true = spoken(landmark_model, seed)
    found = track(landmark_model, points + noise * np.random.default_rng(0).normal(size=points.shape))
    figures = expression_figures(found.expression, true['expression'], landmark_model)
    assert np.rad2deg(np.abs(found.angle - true['angle']).mean()) < 2.0
    assert figures['expression_correlation_numbers'] > 0.9, figures
    assert figures['expression_correlation_landmarks'] > 0.96, figures
    assert figures['expression_correlation_channels'] > 0.75, figures
    assert np.nanmean(found.residual) < 0.012


def test_landmarks_win_where_the_network_knows_nothing(landmark_model):
    """A face that moves as nobody speaks keeps the motion that the fit found."""
    rng = np.random.default_rng(0)
    fitted = 0.35 * np.repeat(rng.random((3, 64)), 10, 0)
    times, found = np.arange(30) / 25, np.ones(30, bool)
    guess, covariance = expected_numbers(fitted, np.zeros((30, 3)), times, found)
    moved = np.asarray(landmark_model.expression)
    assert np.linalg.eigvalsh(covariance).min() > 0
    numbers = read_numbers(fitted, np.zeros((30, 3)), times, found, landmark_model)
    far, near = (np.sqrt((np.tensordot(e - fitted, moved, 1) ** 2).sum(-1).mean()) for e in (guess, numbers))
    assert near < 1.5 * SIGMA and near < 0.3 * far


def test_windows_and_rates_do_not_show(landmark_model):
    """Long clips are read in pieces without seams; other frame rates and one frame are read as well."""
    true = motion.speech_arrays(505, 150)
    times, found = np.arange(150) / RATE, np.ones(150, bool)
    whole, _ = expected_numbers(true['expression'], true['angle'], times, found)
    usual = found.copy()
    # The mean of the clip enters; with it alike, an answer depends on a few frames only.
    part = slice(30, 30 + 64 + 2 * MARGIN)
    shift = true['expression'].mean(0) - true['expression'][part].mean(0)
    alike = np.concatenate(
        [true['expression'][part], np.repeat((true['expression'][part].mean(0) + 2 * shift)[None], 76, 0)]
    )
    angle = np.concatenate([true['angle'][part], np.zeros((76, 3))])
    alone, _ = expected_numbers(alike, angle, np.arange(152) / RATE, np.ones(152, bool))
    np.testing.assert_allclose(alone[MARGIN : 76 - MARGIN], whole[30 + MARGIN : 30 + 76 - MARGIN], atol=1e-4)
    double = np.arange(299) / (2 * RATE)
    fine = np.stack([np.interp(double, times, c) for c in np.concatenate([true['expression'], true['angle']], 1).T], 1)
    fast, _ = expected_numbers(fine[:, :64], fine[:, 64:], double, np.ones(299, bool))
    assert np.abs(fast[::2] - whole).mean() < 0.01
    one, _ = expected_numbers(true['expression'][:1], true['angle'][:1], times[:1], usual[:1])
    assert one.shape == (1, 64) and np.isfinite(one).all()


def test_fit_models_tell_response_and_errors():
    rng = np.random.default_rng(0)
    response = np.zeros((321, 64))
    response[128:192] = 0.5 * np.eye(64)  # half of the frame itself
    response[-1] = 0.1
    model = expression_net.FitModel(response, 0.05 * np.eye(64), 0.02 * np.eye(64), 0.8, 1.0)
    clips = []
    for _ in range(60):
        truth = rng.random((100, 64))
        clips.append(
            expression_net.FittedClip(expression_net.as_fitted(rng, truth, model), truth, np.zeros((100, 3)), 'a')
        )
    (found,) = expression_net.fit_models(clips)
    assert np.abs(found.response[128:192] - response[128:192]).max() < 0.03
    assert abs(found.memory - 0.8) < 0.08 and found.weight == 1
    assert 0.7 < np.trace(found.steady.T @ found.steady) / (64 * 0.05**2) < 1.8
    assert 0.7 < np.trace(found.wandering.T @ found.wandering) / (64 * 0.02**2) < 1.8


@pytest.mark.slow
def test_training_writes_weights_that_can_be_used(landmark_model, tmp_path):
    clip = expression_net.FittedClip(**simulated(0, landmark_model))
    assert clip.kind == 'exact smooth' and clip.fitted.shape == clip.truth.shape
    clips = [clip] * 5
    config = expression_net.ExpressionTrainConfig(steps=3, batch=4, real=2)
    report = expression_net.train(config, motions(3), clips, tmp_path, quiet=True)
    assert report['held_out'] and report['trained_on']['motions'] == 4
    true = motion.speech_arrays(1, 20)
    path = str(tmp_path / 'expression_net.safetensors')
    numbers = read_numbers(
        true['expression'], true['angle'], np.arange(20) / 25, np.ones(20, bool), landmark_model, path
    )
    assert numbers.shape == (20, 64) and np.isfinite(numbers).all()
    again = expression_net.batches(config, motions(3), clips, 2)
    first = expression_net.batches(config, motions(3), clips, 0)
    batches = [next(first) for _ in range(3)]
    np.testing.assert_array_equal(next(again)['fitted'], batches[2]['fitted'])
