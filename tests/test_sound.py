"""Sound as a driver: read on the file's clock, made into features, and in time with the frames at any rate."""

import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from avatar_jax.driving.audio import frame_times, sound_signal
from avatar_jax.errors import UserError
from avatar_jax.io.sound import SoundTrack, read_sound, resampled, write_wav
from avatar_jax.io.video import VideoReader, write_video
from avatar_jax.sound.features import MEL_BANDS, Sound, deepspeech_input, mel_filters, mel_rows, mfcc
from avatar_jax.sound.windows import HALF, load_sound_features, windows_at, windows_of_rows

RATE = 16000


def noise_burst(length=320, seed=0):
    return 0.7 * np.random.default_rng(seed).normal(size=length).clip(-1, 1) * np.hanning(length)


def click_track(times, seconds, rate=RATE):
    """Short bursts of noise centred on ``times``."""
    out = np.zeros(round(seconds * rate))
    burst = noise_burst(rate // 50)
    for t in times:
        first = round(t * rate) - len(burst) // 2
        out[first : first + len(burst)] += burst
    return out


def tone(seconds=1.0, hz=440.0, rate=RATE):
    return 0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize('fps', ['24000/1001', '25', '30000/1001', '60000/1001'])
def test_clicks_meet_their_frames(tmp_path, fps):
    """A video that flashes where its sound clicks: windows of the flashing frames are loud in the middle, no others."""
    rate, count = Fraction(fps), 90
    flashes = [20, 47, 71]
    write_wav(tmp_path / 'clicks.wav', click_track([float(f / rate) for f in flashes], float(count / rate)), RATE)
    frames = [np.full((16, 16, 3), 250 if k in flashes else 5, np.uint8) for k in range(count)]
    write_video(tmp_path / 'film.mp4', frames, rate, sound=SoundTrack(tmp_path / 'clicks.wav'))
    shown = list(VideoReader(tmp_path / 'film.mp4'))
    seen = [f.index for f in shown if f.pixels.mean() > 100]
    assert seen == flashes
    signal = sound_signal(tmp_path / 'film.mp4', np.array([f.time for f in shown]))
    assert signal.windows.shape == (count, 16, MEL_BANDS) and signal.features == 'mel'
    assert signal.covered >= count - 1
    # Rows are 20 ms apart, frames 17 to 42: the middle row is loudest in the frame of the click itself.
    loud = signal.windows.mean(-1)
    for f in flashes:
        around = loud[f - 5 : f + 6, HALF]
        assert around.argmax() == 5, f'frame {f}: heard in frame {f - 5 + around.argmax()}'
        assert loud[f].argmax() == HALF
        # The energy around the frame is centred on it, to less than half a row (AAC spreads a click a little).
        energy = loud[f, HALF - 2 : HALF + 3]
        assert abs((energy * np.arange(-2, 3)).sum() / energy.sum()) * 20 < 8
    quiet = [k for k in range(count) if min(abs(k - f) for f in flashes) * 1000 / float(rate) > 60]
    assert loud[quiet, HALF].max() < 0.3 * loud[flashes, HALF].min()


def test_sound_is_read_on_the_clock_of_the_file(tmp_path):
    """Another codec, rate and channel count; and a track that begins late."""
    stereo = np.stack([click_track([0.5], 1.0, 44100)] * 2) * [[1.5], [0.5]]
    for name, codec, offset in (('a.m4a', 'aac', 0.0), ('b.mkv', 'pcm_s16le', 0.25), ('c.flac', 'flac', 0.0)):
        with av.open(str(tmp_path / name), 'w') as file:
            stream = file.add_stream(codec, rate=44100, layout='stereo')
            convert = av.AudioResampler(format=stream.codec_context.format.name, layout='stereo', rate=44100)
            for start in range(0, stereo.shape[1], 1024):
                part = np.ascontiguousarray(stereo[:, start : start + 1024], np.float32)
                piece = av.AudioFrame.from_ndarray(part, format='fltp', layout='stereo')
                piece.sample_rate, piece.time_base = 44100, Fraction(1, 44100)
                piece.pts = start + round(offset * 44100)
                for p in convert.resample(piece):
                    file.mux(stream.encode(p))
            file.mux(stream.encode())
        sound = read_sound(tmp_path / name)
        assert sound.rate == RATE and sound.samples.dtype == np.float32
        energy = sound.samples.astype(float) ** 2
        centre = (energy * np.arange(len(energy))).sum() / energy.sum() / RATE
        assert abs(centre - 0.5 - offset) < 0.003, (name, centre)


def test_resampling_keeps_the_time_and_the_tone():
    for source in (8000, 22050, 44100, 48000):
        wave_in = tone(1.0, 440, source)
        found = resampled(wave_in, source, RATE)
        assert len(found) == RATE
        inner = slice(1000, -1000)
        np.testing.assert_allclose(found[inner], tone(1.0)[inner], atol=5e-3)
    np.testing.assert_array_equal(resampled(tone(), RATE, RATE), tone().astype(np.float32))


def test_wav_round_trip(tmp_path):
    samples = tone(0.3)
    write_wav(tmp_path / 'a.wav', samples)
    np.testing.assert_allclose(read_sound(tmp_path / 'a.wav').samples, samples, atol=2 / 32767)
    with pytest.raises(ValueError, match='finite'):
        write_wav(tmp_path / 'b.wav', np.array([0.0, np.nan]))
    assert not (tmp_path / 'b.wav').exists()


def test_bad_sound_is_said_in_one_line(tmp_path):
    write_video(tmp_path / 'silent.mp4', [np.zeros((16, 16, 3), np.uint8)] * 3, 25)
    with pytest.raises(UserError, match=r'silent.mp4: has no sound track'):
        sound_signal(tmp_path / 'silent.mp4', frame_times(3, 25))
    (tmp_path / 'text.wav').write_text('hello, this is not sound')
    with pytest.raises(UserError, match=r'text.wav: is not a video or sound file'):
        read_sound(tmp_path / 'text.wav')
    with pytest.raises(UserError, match='no such file'):
        read_sound(tmp_path / 'none.wav')
    with av.open(str(tmp_path / 'nan.wav'), 'w') as file:
        stream = file.add_stream('pcm_f32le', rate=RATE, layout='mono')
        piece = av.AudioFrame.from_ndarray(np.full((1, 512), np.nan, np.float32), format='flt', layout='mono')
        piece.sample_rate, piece.pts = RATE, 0
        file.mux(stream.encode(piece))
        file.mux(stream.encode())
    with pytest.raises(UserError, match=r'nan.wav: the sound has NaN or infinite samples'):
        read_sound(tmp_path / 'nan.wav')
    with wave.open(str(tmp_path / 'empty.wav'), 'wb') as file:
        file.setparams((1, 2, RATE, 0, 'NONE', ''))
    with pytest.raises(UserError, match=r'empty.wav: .*(empty|damaged)'):
        read_sound(tmp_path / 'empty.wav')


def test_low_rates_and_short_sounds_are_used_and_told(tmp_path):
    write_wav(tmp_path / 'phone.wav', tone(1.0, 440, 8000), 8000)
    signal = sound_signal(tmp_path / 'phone.wav', frame_times(50, 25))
    assert 'sound of 8000 Hz: has nothing above 4000 Hz' in signal.notes
    assert signal.covered == 25 and any('ends 1.0 s before the pictures' in n for n in signal.notes)
    assert signal.windows[10].max() > 0.5 and not signal.windows[40].any()
    assert sound_signal(tmp_path / 'phone.wav', fps=30000 / 1001).windows.shape == (29, 16, MEL_BANDS)
    with pytest.raises(UserError, match='gives mel features, but this avatar reads deepspeech'):
        sound_signal(tmp_path / 'phone.wav', frame_times(5, 25), features='deepspeech')
    with pytest.raises(UserError, match="sound features 'fft'"):
        sound_signal(tmp_path / 'phone.wav', features='fft')


def test_mel_rows():
    rows = mel_rows(Sound(tone(1.0, 1000.0).astype(np.float32), RATE))
    assert rows.shape == (50, MEL_BANDS) and rows.dtype == np.float32
    centres = mel_filters(MEL_BANDS, 80, 7600).argmax(1) * RATE / 512
    assert abs(centres[rows[25].argmax()] - 1000) < 80
    louder = mel_rows(Sound(2 * tone(1.0, 1000.0).astype(np.float32), RATE))
    np.testing.assert_allclose(rows, louder, atol=1e-5)
    assert not mel_rows(Sound(np.zeros(8000, np.float32), RATE)).any()
    with pytest.raises(UserError, match='empty'):
        mel_rows(Sound(np.zeros(0, np.float32), RATE))


def test_mfcc_by_its_definition():
    """One row, computed literally."""
    rng = np.random.default_rng(0)
    samples = (0.2 * rng.normal(size=1200)).clip(-1, 1).astype(np.float32)
    rows = mfcc(Sound(samples, RATE))
    assert rows.shape == (6, 26)
    x = np.round(samples.astype(np.float64) * 32767)
    x[1:] = x[1:] - 0.97 * np.round(samples[:-1].astype(np.float64) * 32767)
    spectrum = [
        abs(sum(x[160 + n] * np.exp(-2j * np.pi * n * b / 512) for n in range(400))) ** 2 / 512 for b in range(257)
    ]
    np.testing.assert_allclose(rows[1, 0], np.log(np.sum(spectrum)), rtol=1e-9)
    mel = [2595 * np.log10(1 + 8000 / 700) * k / 27 for k in range(28)]
    bins = [int(513 * 700 * (10 ** (m / 2595) - 1) / 16000) for m in mel]
    energies = []
    for j in range(26):
        low, top, high = bins[j : j + 3]
        up = sum(spectrum[b] * (b - low) / (top - low) for b in range(low, top))
        energies.append(np.log(up + sum(spectrum[b] * (high - b) / (high - top) for b in range(top, high))))
    for i in (1, 7, 25):
        value = np.sqrt(2 / 26) * sum(e * np.cos(np.pi * i * (2 * n + 1) / 52) for n, e in enumerate(energies))
        np.testing.assert_allclose(rows[1, i], value * (1 + 11 * np.sin(np.pi * i / 22)), rtol=1e-7)
    context = deepspeech_input(Sound(samples, RATE))
    assert context.shape == (3, 494)
    assert abs(context.mean()) < 1e-5 and abs(context.std() - 1) < 1e-5
    flat = np.pad(rows[::2], ((9, 9), (0, 0)))[1:20].reshape(-1)
    np.testing.assert_allclose(np.corrcoef(context[1], flat)[0, 1], 1, atol=1e-6)


def test_windows_at_any_time():
    rows = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    whole = windows_of_rows(rows)
    assert whole.shape == (20, 16, 3)
    np.testing.assert_array_equal(whole[0, 8:], rows[:8])
    assert not whole[0, :8].any() and not whole[-1, 8 + 2 :].any()
    between = windows_at(rows, np.array([0.21]))  # half-way between rows 10 and 11
    np.testing.assert_allclose(between[0, 8], (rows[10] + rows[11]) / 2, atol=1e-6)
    assert not windows_at(rows, np.array([-5.0, 99.0])).any()


def test_feature_files(tmp_path):
    rng = np.random.default_rng(2)
    windows = rng.normal(size=(10, 16, 29)).astype(np.float32)
    np.save(tmp_path / 'aud.npy', windows.astype(np.float64))
    times = frame_times(10, 25)
    signal = sound_signal(tmp_path / 'aud.npy', times)
    assert signal.features == 'deepspeech'
    np.testing.assert_array_equal(signal.windows, windows)
    at30 = load_sound_features(tmp_path / 'aud.npy', frame_times(10, 30))
    np.testing.assert_array_equal(at30[6], windows[5])
    logits = rng.normal(size=(24, 29)).astype(np.float32)
    np.save(tmp_path / 'logits.npy', logits)
    assert load_sound_features(tmp_path / 'logits.npy', times, seconds=0.52).shape == (10, 16, 29)
    np.testing.assert_array_equal(load_sound_features(tmp_path / 'logits.npy', times)[0, 8:], logits[:8])
    for name, value, message in (
        ('window', np.zeros((10, 8, 29)), r'has shape \[10, 8, 29\]; sound features are windows \[N, 16, 29\]'),
        ('nan', np.full((10, 16, 29), np.nan), 'NaN or infinite'),
        ('short', np.zeros((3, 16, 29)), 'ends after 0.1 s'),
        ('text', np.array(['a']), 'no numbers'),
    ):
        np.save(tmp_path / f'{name}.npy', value)
        with pytest.raises(UserError, match=message):
            load_sound_features(tmp_path / f'{name}.npy', frame_times(60, 25))
    for name, data in (('broken.npy', b'\x93NUMPY\x01'), ('broken.npz', b'PK\x03\x04')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match='cannot be read'):
            load_sound_features(tmp_path / name, times)
