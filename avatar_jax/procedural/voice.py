"""The sound that belongs to a procedural mouth: a small formant synthesiser driven by the same segments that move it.

What is said (``motion.speech_segments``) decides both: at every moment the shares of the mouth shapes are mixed once
into the picture's mouth and once into the sound's vocal tract (three formants), loudness of the voice, and hiss of the
consonants. So a wide mouth is loud with a high first formant, closed lips are silent but for a murmur, and pauses are
pauses. Moods, blinks and head movements are not heard.

Like the motion, sound is a pure function of its seeds, and a longer sound begins like a shorter one. Samples are
rounded to 16 bits, which hides last-bit differences between machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from avatar_jax.procedural import motion
from avatar_jax.procedural.streams import Stream

RATE = 16000  # samples per second
_CONTROL = 200  # steps per second at which the vocal tract is set
_SPAN = RATE // _CONTROL
_TOP = 7600.0  # Hz
_BANDWIDTHS = (70.0, 100.0, 140.0)  # Hz
_LEVEL = 0.2


class Tract(NamedTuple):
    """One mouth shape as it sounds.

    Attributes:
        formants: Hz. voice: loudness of the voice. hiss: loudness of noise in each of ``_BANDS``.
    """

    formants: tuple[float, float, float]
    voice: float
    hiss: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


_BANDS = ((600.0, 1800.0), (1800.0, 3200.0), (3200.0, 5000.0), (5000.0, 7600.0))  # Hz
_TAPS = 129

TRACTS: Mapping[str, Tract] = {
    'aa': Tract((760, 1220, 2550), 1.0),
    'eh': Tract((560, 1780, 2520), 0.9),
    'ih': Tract((330, 2200, 2950), 0.75),
    'oh': Tract((490, 880, 2450), 0.85),
    'ou': Tract((330, 780, 2250), 0.65),
    'mbp': Tract((250, 1050, 2200), 0.10),
    'fv': Tract((320, 1150, 2300), 0.10, (0.02, 0.05, 0.09, 0.12)),
    'th': Tract((350, 1450, 2500), 0.15, (0.01, 0.03, 0.07, 0.08)),
    'l': Tract((380, 1100, 2650), 0.50),
    'ch': Tract((300, 1800, 2500), 0.0, (0.03, 0.35, 0.30, 0.10)),
    's': Tract((300, 1700, 2600), 0.0, (0.0, 0.02, 0.20, 0.40)),
    'r': Tract((400, 1150, 1650), 0.50),
}
_SILENT = (500.0, 1500.0, 2500.0)  # formants that a pause drifts to


class Voice(NamedTuple):
    """Whose voice it is; ``voice_of(seed)`` draws one.

    Attributes:
        pitch: Hz. tract: factor on all formants (shorter tracts are higher). breath: noise in the voice. melody: how
            far the pitch moves, as a share of it.
    """

    pitch: float = 120.0
    tract: float = 1.0
    breath: float = 0.02
    melody: float = 0.10


def voice_of(seed: int) -> Voice:
    """The voice of a person."""
    rng = Stream('voice', seed)
    high = rng.random() < 0.5
    return Voice(
        pitch=rng.uniform(165.0, 230.0) if high else rng.uniform(90.0, 140.0),
        tract=rng.uniform(1.05, 1.2) if high else rng.uniform(0.92, 1.05),
        breath=rng.uniform(0.005, 0.04),
        melody=rng.uniform(0.06, 0.14),
    )


def shares(segments: motion.Segments, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each mouth shape there is at the moments ``t``.

    Returns:
        [T, 12] in the order of ``TRACTS``, the rest to 1 being the mouth at rest; and the same times how wide the mouth
        of each segment is made (1 for a full one).
    """
    names = list(TRACTS)
    kind = np.array([names.index(s) for s in segments.shapes])
    full = np.stack([motion.blend(motion.VISEME_TARGETS[n]) for n in names])[kind]
    width = (segments.targets * full).sum(1) / np.square(full).sum(1)
    out = np.zeros((2, len(t), len(names)))
    for first in range(0, len(t), _CONTROL):  # a second at a time: only near segments count
        here = t[first : first + _CONTROL]
        near = np.flatnonzero((segments.centres > here[0] - 1.5) & (segments.centres < here[-1] + 1.5))
        if not len(near):
            continue
        part = motion.Segments(
            [], segments.centres[near], segments.widths[near], segments.strengths[near], segments.targets[near], near
        )
        weights = motion.dominance(part, here)
        weights /= weights.sum(1, keepdims=True) + motion.REST_DOMINANCE
        which = np.zeros((len(near), len(names)))
        which[np.arange(len(near)), kind[near]] = 1
        out[0, first : first + _CONTROL] = weights @ which
        out[1, first : first + _CONTROL] = (weights * width[near]) @ which
    return out[0], out[1]


def speech_sound(
    seed: int, seconds: float, voice: Voice, style: motion.SpeechStyle | None = None, last: float | None = None
) -> np.ndarray:
    """The sound of the clip that ``motion.speech_arrays(seed, ...)`` moves.

    Args:
        seed, style: of the motion.
        seconds: length of the sound.
        voice: whose.
        last: moment of the clip's last frame, seconds; default ``seconds``.

    Returns:
        [round(seconds * 16000)] float32 in [-1, 1].
    """
    style = motion.speech_style(seed) if style is None else style
    total = round(seconds * RATE)
    steps = -(-total // _SPAN) + 1
    t = np.arange(steps) / _CONTROL
    segments = motion.segments_of_clip(seed, seconds if last is None else last, style)
    share, wide = shares(segments, t)
    tracts = list(TRACTS.values())
    loudness = wide @ np.array([x.voice for x in tracts])
    hiss = share @ np.array([x.hiss for x in tracts])
    formants = np.array([x.formants for x in tracts])
    weight = share.sum(1, keepdims=True)
    tract = (share @ formants + 0.02 * np.array(_SILENT)) / (weight + 0.02)
    openness = np.divide(wide.sum(1), weight[:, 0], out=np.ones(steps), where=weight[:, 0] > 1e-6)
    tract[:, 0] *= 0.75 + 0.25 * openness  # a wider jaw raises the first formant
    tract *= voice.tract
    pitch = _pitch(seed, t, segments.stressed, voice)
    out = np.zeros((steps - 1) * _SPAN)
    noise = _noise_bands(seed, len(out))
    fraction = np.arange(_SPAN) / _SPAN
    phase = 0.0
    for first in range(0, steps - 1, _CONTROL):
        knots = slice(first, min(first + _CONTROL, steps - 1) + 1)
        samples = slice(knots.start * _SPAN, (knots.stop - 1) * _SPAN)
        block = _voiced(phase, pitch[knots], tract[knots], fraction)
        sound = block.wave * _between(loudness[knots], fraction)
        for band in range(len(_BANDS)):
            sound += noise[band][samples] * _between(hiss[knots, band], fraction)
        sound += voice.breath * noise[1][samples] * _between(loudness[knots], fraction)
        out[samples] = sound
        phase = block.phase
    out = np.tanh(_LEVEL * out)[:total]
    return (np.round(out * 32767) / 32767).astype(np.float32)


class _Block(NamedTuple):
    wave: np.ndarray
    phase: float


def _between(knots: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Values [n + 1] at the control steps -> [n * span] in between, linear."""
    return (knots[:-1, None] + (knots[1:] - knots[:-1])[:, None] * fraction).reshape(-1)


def _pitch(seed: int, t: np.ndarray, stressed: np.ndarray, voice: Voice) -> np.ndarray:
    """[T] Hz: slow and fast melody, and a rise on stressed syllables."""
    rng = Stream('melody', seed)
    slow = motion.smooth_noise(rng.child('slow'), t, 0.9, 1)[:, 0]
    fast = motion.smooth_noise(rng.child('fast'), t, 0.2, 1)[:, 0]
    rise = np.zeros(len(t))
    for moment in stressed:
        near = slice(*np.searchsorted(t, [moment - 0.3, moment + 0.3]))
        rise[near] += np.exp(-np.square((t[near] - moment) / 0.09))
    return voice.pitch * np.clip(1 + voice.melody * (slow + 0.2 * fast + 1.2 * rise), 0.6, 1.8)


def _voiced(phase: float, pitch: np.ndarray, tract: np.ndarray, fraction: np.ndarray) -> _Block:
    """Harmonics of the pitch, each as loud as the formants let it pass, of one block of control steps."""
    cycles = phase + np.cumsum(_between(pitch, fraction)) / RATE
    angle = 2 * np.pi * cycles
    count = int(_TOP / pitch.min())
    number = np.arange(1, count + 1)[:, None]
    hz = number * pitch
    gain = np.ones_like(hz)
    for i, width in enumerate(_BANDWIDTHS):
        centre = tract[:, i]
        gain *= centre**2 / np.sqrt(np.square(hz**2 - centre**2) + np.square(width * hz))
    # The source falls with 1 / h^2, radiation at the lips lifts it by h.
    gain *= np.clip((_TOP - hz) / 400.0, 0, 1) / number
    wave = np.zeros(len(angle))
    before, now, twice = np.zeros(len(angle)), np.sin(angle), 2 * np.cos(angle)
    for h in range(count):
        wave += now * _between(gain[h], fraction)
        before, now = now, twice * now - before  # sin((h + 1) x) = 2 cos x sin(h x) - sin((h - 1) x)
    return _Block(wave, float(cycles[-1] % 1.0))


def _noise_bands(seed: int, length: int) -> list[np.ndarray]:
    """Noise [length] of standard deviation about one in each band."""
    white = Stream('hiss', seed).normal(size=length + _TAPS - 1)
    offset = np.arange(_TAPS) - _TAPS // 2
    out = []
    for low, high in _BANDS:
        taps = 2 * high / RATE * np.sinc(2 * high / RATE * offset) - 2 * low / RATE * np.sinc(2 * low / RATE * offset)
        taps *= np.hanning(_TAPS + 2)[1:-1]
        taps /= np.sqrt(np.square(taps).sum())
        # Second by second, so that a longer sound is computed like a shorter one.
        pieces = [np.convolve(white[i : i + RATE + _TAPS - 1], taps, 'valid') for i in range(0, length, RATE)]
        out.append(np.concatenate(pieces)[:length])
    return out
