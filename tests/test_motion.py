"""Speech-like motion and random expressions: determinism, ranges, smoothness, coverage, windows."""

import numpy as np
import pytest

from avatar_jax.ops.windows import RADIUS
from avatar_jax.procedural import EXPRESSION_NAMES, motion
from avatar_jax.procedural.random_expressions import random_expressions, random_poses, windows_around
from avatar_jax.procedural.streams import Stream

GAZE = ['gaze_x', 'gaze_y']


def channel(expression, *names):
    return expression[..., [EXPRESSION_NAMES.index(n) for n in names]]


def in_range(expression):
    gaze = channel(expression, *GAZE)
    rest = np.delete(expression, [EXPRESSION_NAMES.index(n) for n in GAZE], axis=-1)
    return rest.min() >= 0 and rest.max() <= 1 and np.abs(gaze).max() <= 1


def test_stream_is_fixed_forever():
    # Written out once; a change here changes every data set.
    rng = Stream(7, 'word')
    assert rng.integers(0, 2**62) == 1212661691127304876
    np.testing.assert_allclose(
        [rng.random(), rng.normal(), rng.exponential(2.0)],
        [0.9996265400689044, 0.3336173354140149, 1.7345112725520266],
        rtol=1e-12,
    )


def test_stream_statistics():
    rng = Stream(1)
    assert abs(rng.random(20000).mean() - 0.5) < 0.01
    n = rng.normal(2.0, 3.0, 20000)
    assert abs(n.mean() - 2) < 0.1 and abs(n.std() - 3) < 0.1
    picks = rng.choice(3, 20000, p=[1.0, 2.0, 1.0])
    np.testing.assert_allclose(np.bincount(picks) / 20000, [0.25, 0.5, 0.25], atol=0.02)
    scalar = Stream(2)
    np.testing.assert_allclose([scalar.normal() for _ in range(5)], Stream(2).normal(size=5), rtol=1e-14)
    with pytest.raises(ValueError):
        Stream(-1)


def test_clip_repeats_and_longer_clips_begin_alike():
    longer, again, short = (motion.speech_arrays(11, n) for n in (120, 120, 50))
    for k in longer:
        np.testing.assert_array_equal(longer[k], again[k])
        np.testing.assert_array_equal(longer[k][:50], short[k])
    other = motion.speech_arrays(12, 50)
    assert np.abs(other['expression'] - short['expression']).max() > 0.3


def test_frame_rate_changes_sampling_not_movement():
    slow, fast = motion.speech_arrays(3, 75, fps=25.0), motion.speech_arrays(3, 150, fps=50.0)
    np.testing.assert_allclose(fast['angle'][::2], slow['angle'], atol=1e-4)
    mouth = [EXPRESSION_NAMES.index(n) for n in EXPRESSION_NAMES if n.startswith('viseme')]
    np.testing.assert_allclose(fast['expression'][::2][:, mouth], slow['expression'][:, mouth], atol=1e-4)


def test_clips_look_like_speech():
    blinks, open_close, yaws = [], [], []
    for seed in range(24):
        clip = motion.speech_arrays(seed, 250)
        e, angle, shift = clip['expression'], clip['angle'], clip['translation']
        assert e.dtype == angle.dtype == shift.dtype == np.float32
        assert in_range(e)
        assert np.abs(angle).max(0)[1] <= motion.MAX_YAW + 1e-6
        assert np.abs(shift[:, :2]).max() <= motion.MAX_SHIFT and np.abs(shift[:, 2]).max() <= motion.MAX_DOLLY
        assert np.abs(np.diff(angle, axis=0)).max() < np.deg2rad(6)  # per frame: no jumps of the head
        closed = channel(e, 'blink_l')[:, 0] >= 0.999
        blinks.append(np.count_nonzero(np.diff(closed.astype(int)) == 1))
        vowels = channel(e, 'viseme_aa', 'viseme_eh', 'viseme_oh').max(-1)
        closures = channel(e, 'viseme_mbp')[:, 0]
        open_close.append((vowels.max(), closures.max()))
        assert (channel(e, 'jaw_open')[closures > 0.9] < 0.15).all()  # lips meet
        yaws.append(np.rad2deg(np.abs(angle[:, 1]).max()))
    assert 1.5 < np.mean(blinks) < 7 and np.count_nonzero(blinks) >= 23  # in ten seconds
    assert np.mean([v > 0.6 for v, _ in open_close]) > 0.9 and np.mean([c > 0.8 for _, c in open_close]) > 0.9
    assert max(yaws) > 25 and min(yaws) < 12


def test_every_blink_closes_at_every_frame_rate():
    for fps in (10.0, 25.0, 60.0):
        clip = motion.speech_arrays(5, int(20 * fps), fps)['expression']
        lid = channel(clip, 'blink_l')[:, 0]
        above = np.flatnonzero(np.diff(np.concatenate([[0], lid > 0.5, [0]]).astype(int)))
        peaks = [lid[a:b].max() for a, b in zip(above[::2], above[1::2], strict=True) if a > 0 and b < len(lid)]
        assert len(peaks) >= 4 and min(peaks) == 1.0


def test_motion_object():
    m = motion.speech_motion(4, 30)
    assert m.basis == 'procedural' and m.fps == 25.0 and '4' in m.source
    assert m.windows().shape == (30, 27, 70)
    np.testing.assert_array_equal(m.windows()[10, RADIUS, :64], m.expression[10])


def test_random_expressions_cover():
    e = random_expressions(Stream(0), 4000)
    assert in_range(e)
    both = channel(e, 'blink_l', 'blink_r')
    assert 0.15 < (both.min(1) == 1).mean() < 0.3
    assert 0.03 < (np.abs(both[:, 0] - both[:, 1]) > 0.9).mean() < 0.1
    assert (channel(e, 'jaw_open') > 0.5).mean() > 0.12
    smile = channel(e, 'smile_l', 'smile_r')
    assert (smile.min(1) > 0.4).mean() > 0.04 and (np.abs(smile[:, 0] - smile[:, 1]) > 0.4).mean() > 0.06
    assert (np.abs(channel(e, *GAZE)) > 0.7).mean() > 0.15
    assert ((e > 0.3).mean(0) > 0.015).all()  # no channel is forgotten
    assert np.linalg.matrix_rank(np.cov(e.T), tol=1e-3) == 64  # no channel follows from the others


def test_random_poses_keep_their_limits():
    angle, shift = random_poses(Stream(0), 4000)
    assert np.rad2deg(np.abs(angle).max(0)).round().tolist() == [20, 45, 8]
    assert np.abs(shift).max(0).tolist() == [0.1, 0.1, 0.3]
    assert abs(np.rad2deg(angle[:, 1]).mean()) < 1.5


def test_windows_pass_through_the_frame_and_are_smooth():
    rng = Stream(3)
    e, (angle, shift) = random_expressions(rng, 300), random_poses(rng, 300)
    w = windows_around(rng, e, angle, shift)
    assert w.shape == (300, 27, 70)
    np.testing.assert_array_equal(w[:, RADIUS], np.concatenate([e, angle, shift], 1))
    assert in_range(w[..., :64])
    slow = [EXPRESSION_NAMES.index(n) for n in ('smile_l', 'brow_inner_up', 'brow_down_r')]
    assert np.abs(np.diff(w[..., slow], axis=1)).max() < 0.2
    assert np.abs(np.diff(w[..., 64:67], axis=1)).max() < np.deg2rad(8)
    mouth = np.abs(np.diff(w[..., :26], axis=1)).max((1, 2))
    assert mouth.max() < 0.75 and np.median(mouth) > 0.05
    # Closed eyes are open again in most windows, and open eyes stay open in the middle.
    closed = channel(e, 'blink_l', 'blink_r').min(1) == 1
    lids = channel(w, 'blink_l')[..., 0]
    assert (lids[closed].min(1) < 0.3).mean() > 0.5
    assert (lids[~closed].max(1) > 0.95).mean() > 0.15
