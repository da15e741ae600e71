"""Speech features by row, 50 rows a second: log-mel energies of our own, and DeepSpeech's input (MFCC with context).

``mel_rows`` needs nothing but the sound and gives rows of the same size as DeepSpeech's logits (29 numbers), so that an
avatar can be trained where nobody has the DeepSpeech graph. Silence is 0, as rows beyond the ends of the sound are.

``mfcc`` and ``deepspeech_input`` are what AD-NeRF feeds to DeepSpeech 0.1.0: whoever has that graph runs it on
``deepspeech_input`` and hands the logits to ``sound.windows``.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.sound import SPEECH_RATE, Sound

FEATURES = ('mel', 'deepspeech')
ROW_RATE = 50  # rows per second
MEL_BANDS = 29
MEL_RANGE = (80.0, 7600.0)  # Hz
DYNAMIC_RANGE = 60.0  # dB below the clip's loud parts that count as silence
_MEL_WINDOW, _FFT = 0.032, 512  # seconds, samples at 16 kHz

MFCC_SIZE, MFCC_WINDOW, MFCC_STEP = 26, 0.025, 0.01
MFCC_CONTEXT = 9  # rows before and after
_PRE_EMPHASIS, _LIFTER = 0.97, 22


def _check(sound: Sound) -> None:
    if sound.rate != SPEECH_RATE:
        raise ValueError(f'speech features are made at {SPEECH_RATE} samples per second, got {sound.rate}')
    if not len(sound.samples):
        raise UserError('sound: is empty; give a file with sound')
    if not np.isfinite(sound.samples).all():
        raise UserError('sound: has NaN or infinite samples; export it again')


def mel_from_hz(hz: np.ndarray | float) -> np.ndarray:
    """Mel scale, ``2595 log10(1 + f / 700)``."""
    return 2595 * np.log10(1 + np.asarray(hz, np.float64) / 700)


def hz_from_mel(mel: np.ndarray | float) -> np.ndarray:
    """The inverse of ``mel_from_hz``."""
    return 700 * (10 ** (np.asarray(mel, np.float64) / 2595) - 1)


def mel_filters(bands: int, low: float, high: float, fft: int = _FFT, rate: int = SPEECH_RATE) -> np.ndarray:
    """[bands, fft // 2 + 1] triangles evenly spaced on the mel scale, of height one."""
    edges = hz_from_mel(np.linspace(mel_from_hz(low), mel_from_hz(high), bands + 2))[:, None]
    hz = np.arange(fft // 2 + 1) * rate / fft
    rise = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rise, fall), 0, None)


def mel_rows(sound: Sound) -> np.ndarray:
    """Log-mel energies, [ceil(50 * seconds), 29] float32 in [0, 1].

    Row r looks at 32 ms around time r / 50 (Hann window). Energies of 29 bands from 80 to 7600 Hz are taken in decibels
    relative to the clip's loud parts (the 95th percentile of the loudest bands of its rows that are not silent), cut
    off 60 dB below, and scaled so that the loud parts are 1 and silence is 0. A louder or softer recording of the same
    speech gives the same rows.
    """
    _check(sound)
    size = round(_MEL_WINDOW * SPEECH_RATE)
    step = SPEECH_RATE // ROW_RATE
    count = -(-len(sound.samples) // step)
    padded = np.pad(np.asarray(sound.samples, np.float64), (size // 2, size))
    filters, window = mel_filters(MEL_BANDS, *MEL_RANGE).T, np.hanning(size + 1)[:-1]
    energy = np.empty((count, MEL_BANDS))
    for first in range(0, count, 1000):  # a clip of hours stays small in memory
        index = np.arange(first, min(first + 1000, count))[:, None] * step + np.arange(size)
        energy[first : first + 1000] = np.abs(np.fft.rfft(padded[index] * window, _FFT)) ** 2 @ filters
    peaks = energy.max(1)
    if peaks.max() <= 1e-10:  # digital silence
        return np.zeros((count, MEL_BANDS), np.float32)
    # Only rows within 40 dB of the loudest: pauses do not make a clip loud.
    loud = float(np.percentile(peaks[peaks > 1e-4 * peaks.max()], 95))
    decibels = 10 * np.log10(np.maximum(energy / loud, 10 ** (-DYNAMIC_RANGE / 10)))
    return np.clip(1 + decibels / DYNAMIC_RANGE, 0, 1.2).astype(np.float32)


def mfcc(sound: Sound) -> np.ndarray:
    """Mel-frequency cepstral coefficients, [T, 26] float64, 100 rows a second, as DeepSpeech 0.1.0 wants them.

    Pre-emphasis 0.97; frames of 25 ms every 10 ms without a window function, the last one filled with zeros; power
    spectrum of 512 points; 26 triangles from 0 to 8000 Hz whose corners lie on whole bins; logarithm; orthonormal
    DCT-II; liftering with 22; the first coefficient is replaced by the logarithm of the frame's energy. Samples
    are taken as 16-bit integers.
    """
    from scipy.fft import dct

    _check(sound)
    wave = np.round(np.clip(np.asarray(sound.samples, np.float64), -1, 1) * 32767)
    wave = np.append(wave[0], wave[1:] - _PRE_EMPHASIS * wave[:-1])
    size, step = round(MFCC_WINDOW * SPEECH_RATE), round(MFCC_STEP * SPEECH_RATE)
    count = 1 if len(wave) <= size else 1 + -(-(len(wave) - size) // step)
    padded = np.pad(wave, (0, max(0, (count - 1) * step + size - len(wave))))
    frames = padded[np.arange(count)[:, None] * step + np.arange(size)]
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2 / _FFT
    smallest = np.finfo(np.float64).eps
    total = power.sum(1)
    energy = power @ _binned_filters().T
    energy = np.where(energy == 0, smallest, energy)
    found = dct(np.log(energy), type=2, axis=1, norm='ortho')[:, :MFCC_SIZE]
    found *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(MFCC_SIZE) / _LIFTER)
    found[:, 0] = np.log(np.where(total == 0, smallest, total))
    return found


def _binned_filters() -> np.ndarray:
    """[26, 257] triangles of the MFCC, with corners rounded down to bins of 512 points."""
    mel = np.linspace(mel_from_hz(0.0), mel_from_hz(SPEECH_RATE / 2), MFCC_SIZE + 2)
    corner = np.floor((_FFT + 1) * hz_from_mel(mel) / SPEECH_RATE)
    out = np.zeros((MFCC_SIZE, _FFT // 2 + 1))
    for j in range(MFCC_SIZE):
        left, top, right = (int(c) for c in corner[j : j + 3])
        out[j, left:top] = (np.arange(left, top) - left) / (top - left)
        out[j, top:right] = (right - np.arange(top, right)) / (right - top)
    return out


def deepspeech_input(sound: Sound) -> np.ndarray:
    """What DeepSpeech 0.1.0 reads, [T, 494] float32, 50 rows a second.

    Every second row of ``mfcc`` with nine rows before and after it (zeros outside), flattened (19 * 26), the whole clip
    brought to mean 0 and standard deviation 1.
    """
    rows = mfcc(sound)[::2]
    padded = np.pad(rows, ((MFCC_CONTEXT, MFCC_CONTEXT), (0, 0)))
    index = np.arange(len(rows))[:, None] + np.arange(2 * MFCC_CONTEXT + 1)
    found = padded[index].reshape(len(rows), -1)
    return ((found - found.mean()) / found.std()).astype(np.float32)
