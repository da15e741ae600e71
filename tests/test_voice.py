"""The sound of procedural speech: in time with the mouth, the same every time, different from person to person."""

import dataclasses

import numpy as np
import pytest

from avatar_jax.io.sound import Sound
from avatar_jax.procedural import ProceduralHead, motion, voice
from avatar_jax.sound.features import mel_rows
from avatar_jax.sound.windows import windows_at
from data_pipelines.clips import ClipOptions, make_clip
from data_pipelines.one_person.procedural import TalkOptions, mouth_opening, talking_clip


def opening(clip):
    head = ProceduralHead(clip.identity[160:])
    shape = np.broadcast_to(clip.identity[:80], (clip.num_frames, 80))
    return mouth_opening(head.landmarks(shape, clip.expression))


def test_sound_repeats_and_a_longer_one_begins_alike():
    voice_a = voice.voice_of(3)
    long, short = (voice.speech_sound(7, seconds, voice_a) for seconds in (4.0, 1.5))
    assert long.shape == (64000,) and long.dtype == np.float32 and 0.05 < np.abs(long).max() <= 1
    np.testing.assert_array_equal(long[: len(short)], short)
    np.testing.assert_array_equal(long, voice.speech_sound(7, 4.0, voice_a))
    assert np.abs(long - voice.speech_sound(8, 4.0, voice_a)).max() > 0.05
    assert voice_a != voice.voice_of(4)
    np.testing.assert_array_equal(np.round(long * 32767), (long * 32767).astype(np.float64).round())


def test_pauses_are_silent_and_closed_lips_nearly():
    style = motion.speech_style(11)._replace(articulation=1.0)
    segments = motion.segments_of_clip(11, 20.0, style)
    sound = voice.speech_sound(11, 20.0, voice.Voice(breath=0.0), style)
    share, _ = voice.shares(segments, np.arange(2000) / 100)
    assert share.min() >= 0 and share.sum(1).max() <= 1
    level = np.sqrt(np.square(sound.reshape(2000, 160)).mean(1))
    lips = share[:, list(voice.TRACTS).index('mbp')]
    vowels = share[:, [list(voice.TRACTS).index(v) for v in motion.VOWELS]].sum(1)
    loud = level[vowels > 0.85].mean()
    assert level[share.sum(1) < 0.02].max() < 0.05 * loud
    assert (lips > 0.8).sum() > 20 and level[lips > 0.8].mean() < 0.4 * loud


def test_formants_are_where_the_mouth_shape_puts_them():
    """A vowel that is held: spectral peaks of the synthesised harmonics lie at its formants."""
    for name in ('aa', 'ih', 'ou'):
        wanted = voice.TRACTS[name].formants
        tract = np.tile(np.asarray(wanted, float), (201, 1))
        block = voice._voiced(0.0, np.full(201, 50.0), tract, np.arange(80) / 80)
        spectrum = np.abs(np.fft.rfft(block.wave * np.hanning(len(block.wave))))
        hz = np.arange(len(spectrum)) * voice.RATE / len(block.wave)
        for formant in wanted[:2]:
            near = (hz > formant - 140) & (hz < formant + 140)
            assert abs(hz[near][spectrum[near].argmax()] - formant) < 60, (name, formant)


def test_shares_by_chunks_are_those_of_all_at_once():
    segments = motion.segments_of_clip(5, 6.0, motion.speech_style(5))
    t = np.arange(0, 6, 1 / 40)
    weights = motion.dominance(segments, t)
    weights /= weights.sum(1, keepdims=True) + motion.REST_DOMINANCE
    share, _ = voice.shares(segments, t)
    for i, name in enumerate(voice.TRACTS):
        mine = np.array([s == name for s in segments.shapes])
        np.testing.assert_allclose(share[:, i], weights[:, mine].sum(1), atol=1e-9)


def test_clips_speak_with_their_own_voice():
    options = ClipOptions(num_frames=25, num_cameras=1)
    a, again, other = make_clip(0, 'test', 3, 0, options), make_clip(0, 'test', 3, 0, options), make_clip(0, 'test', 4)
    np.testing.assert_array_equal(a.sound(), again.sound())
    assert len(a.sound()) == 16000 and a.voice_seed != other.voice_seed
    assert make_clip(0, 'test', 3, 1, options).voice_seed == a.voice_seed
    assert dataclasses.replace(a, speech_seed=a.speech_seed + 1).sound().shape == a.sound().shape


@pytest.mark.slow
def test_sound_tells_the_mouth_of_unseen_speech():
    """Least squares from the sound windows of one minute to the mouth's opening, on the 15 seconds that follow."""
    clip = talking_clip(0, 1, TalkOptions(frames=1875))
    rows = mel_rows(Sound(clip.sound(), voice.RATE))
    x = np.c_[windows_at(rows, clip.times).reshape(1875, -1), np.ones(1875)]
    y = opening(clip)
    seen, new = slice(0, 1500), slice(1500, None)
    weights = np.linalg.solve(x[seen].T @ x[seen] + 100 * np.eye(x.shape[1]), x[seen].T @ y[seen])
    assert np.corrcoef(x[new] @ weights, y[new])[0, 1] > 0.85
    # And in time: sound moved by a fifth of a second tells less.
    moved = np.c_[windows_at(rows, clip.times + 0.2).reshape(1875, -1)[:, 29 * 7 : 29 * 10], np.ones(1875)]
    here = np.c_[windows_at(rows, clip.times).reshape(1875, -1)[:, 29 * 7 : 29 * 10], np.ones(1875)]
    score = []
    for z in (here, moved):
        weights = np.linalg.solve(z[seen].T @ z[seen] + np.eye(z.shape[1]), z[seen].T @ y[seen])
        score.append(np.corrcoef(z[new] @ weights, y[new])[0, 1])
    assert score[0] > score[1] + 0.2
