"""Time comes from the frames: wrong headers, stamps that go back, repeat or jump; sound that goes along with them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avatar_jax.io.sound import SoundTrack, read_sound
from avatar_jax.io.stamps import Mender, Stamps, snapped, true_rate
from avatar_jax.io.video import VideoReader, write_video
from avatar_jax.track.smooth import even_rate as evenly

CASES = Path(__file__).parents[1] / '../shared/cases'
MS = Fraction(1, 1000)


def film(path, times, codec='libx264', claimed=25, sound=None, base=MS):
    """A video whose k-th frame is shown at ``times[k]`` seconds; ``sound``: (from, to) seconds of a tone."""
    with av.open(str(path), 'w') as file:
        stream = file.add_stream(codec, rate=claimed, options={'bf': '0'} if codec == 'libx264' else {})
        stream.width = stream.height = 32
        stream.pix_fmt, stream.codec_context.time_base = 'yuv420p', base
        track = file.add_stream('aac', rate=16000, layout='mono') if sound else None
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * k % 255, np.uint8), format='rgb24')
            frame.pts, frame.time_base = round(time / base), base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        for start in range(round(sound[0] * 16000), round(sound[1] * 16000), 1024) if sound else ():
            wave = 0.3 * np.sin(np.arange(start, start + 1024) / 20, dtype=np.float32)
            piece = av.AudioFrame.from_ndarray(wave[None], format='fltp', layout='mono')
            piece.sample_rate, piece.pts, piece.time_base = 16000, start, Fraction(1, 16000)
            file.mux(track.encode(piece))
        if sound:
            file.mux(track.encode())
    return path


def read(path):
    reader = VideoReader(path)
    times = np.array([f.time for f in reader])
    return reader, times, len(evenly(np.zeros((len(times), 2)), times, float(reader.fps)))


@pytest.mark.parametrize(('name', 'codec'), [('a.webm', 'libvpx'), ('a.mkv', 'libx264'), ('a.flv', 'flv')])
def test_a_header_of_1000_frames_per_second_is_not_believed(tmp_path, name, codec):
    uneven = np.cumsum(36.1 + 8 * np.sin(np.arange(61) * 1.7)) / 1000
    claimed = 1000 if codec != 'flv' else 200
    reader, times, rows = read(film(tmp_path / name, uneven, codec, claimed))
    if abs(float(reader.fps) - 27.7) > 0.2 or len(times) != 61 or abs(rows - 61) > 1:
        pytest.fail(f'{reader.fps}, {len(times)} frames, {rows} rows')
    assert times[-1] - times[0] == pytest.approx(uneven[-1] - uneven[0], abs=0.003)
    assert reader.num_frames == 61


def test_wrong_headers_are_said_and_common_rates_are_exact(tmp_path):
    reader, _, rows = read(film(tmp_path / 'a.mkv', np.arange(40) / 25, claimed=1000))
    assert reader.fps == 25 and rows == 40
    assert any('1000 frames per second' in n and '25' in n for n in reader.notes)
    reader, _, rows = read(film(tmp_path / 'b.mkv', np.arange(40) * 1001 / 30000, claimed=10))
    assert reader.fps == Fraction(30000, 1001) and rows == 40
    reader, _, rows = read(film(tmp_path / 'c.mp4', np.arange(40) / 25))
    assert reader.fps == 25 and rows == 40 and reader.notes == ()


def test_fragmented_mp4_has_its_round_rate(tmp_path):
    with av.open(str(tmp_path / 'a.mp4'), 'w', options={'movflags': 'frag_keyframe+empty_moov'}) as file:
        stream = file.add_stream('libx264', rate=25, options={'g': '10'})
        stream.width = stream.height = 32
        stream.pix_fmt = 'yuv420p'
        for k in range(35):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), k, np.uint8), format='rgb24')
            frame.pts, frame.time_base = k, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    reader, times, rows = read(tmp_path / 'a.mp4')
    assert reader.fps == 25 and rows == len(times) == 35


def test_joined_streams_are_mended_and_keep_their_sound(tmp_path):
    for k in range(2):
        film(tmp_path / f'{k}.ts', np.arange(25) / 25, sound=(0, 1), base=Fraction(1, 25))
    joined = tmp_path / 'joined.ts'
    joined.write_bytes((tmp_path / '0.ts').read_bytes() + (tmp_path / '1.ts').read_bytes())
    reader, times, rows = read(joined)
    assert len(times) == 50 and rows == 50 and reader.fps == 25
    assert np.allclose(np.diff(times), 0.04, atol=1e-3)
    assert any('do not rise' in n and 'mended' in n for n in reader.notes)
    track = SoundTrack(joined, times[0])
    write_video(tmp_path / 'out.mp4', (np.full((32, 32, 3), k, np.uint8) for k in range(50)), 25, sound=track)
    assert len(list(VideoReader(tmp_path / 'out.mp4'))) == 50
    with av.open(str(tmp_path / 'out.mp4')) as file:
        heard = [f.time for f in file.decode(audio=0)]
    assert 1.8 < heard[-1] < 2.1 and min(np.diff(heard)) > 0
    driving = read_sound(joined)  # on the mended clock of the frames
    assert times[-1] + 0.04 - driving.seconds == pytest.approx(0, abs=0.15)
    for notes in (track.notes, driving.notes):
        assert any('go back' in n for n in notes)


def test_jumps_are_mended_but_pauses_with_sound_are_kept(tmp_path):
    stamps = np.concatenate([np.arange(25), 25000 + np.arange(25)]) / 25
    reader, times, rows = read(film(tmp_path / 'a.mkv', stamps))
    assert rows == len(times) == 50 and any('jumps' in n for n in reader.notes)
    pause = np.concatenate([np.arange(25), 100 + np.arange(25)]) / 25
    reader, times, rows = read(film(tmp_path / 'b.mkv', pause, sound=(0, 5)))
    assert times[-1] - times[0] == pytest.approx(pause[-1], abs=0.01) and len(times) == 50
    assert rows == pytest.approx(1 + pause[-1] * float(reader.fps), abs=1.01)
    assert not any('jump' in n for n in reader.notes)


def test_mender_on_all_kinds_of_stamps():
    mend = Mender(0.04)
    given = [5.0, 5.04, 5.04, 5.12, None, 5.20, 0.0, 0.04, 700.0, 700.04]
    times = [mend(t) for t in given]
    assert np.allclose(np.diff(times), 0.04) and times[0] == 5.0
    assert (mend.back, mend.missing, mend.jumped) == (2, 1, 1)
    rng = np.random.default_rng(0)
    for _ in range(50):
        wild = rng.choice([0.0, 1e-6, 0.03, 0.04, 2.0, -3.0, 1e5], 200).cumsum()
        mend = Mender(0.04)
        out = np.array([mend(None if rng.random() < 0.1 else t) for t in wild])
        assert (np.diff(out) > 0).all() and np.diff(out).max() <= 1.0 + 1e-9


def test_rates_from_stamps():
    even = Stamps(np.arange(50) / 25, 0.04)
    assert true_rate(Fraction(25), even, lambda: 25.0) == (25, '')
    assert true_rate(None, even, lambda: 25.0)[0] == 25
    # Two packets for each frame (fields): the decoder knows better.
    fields = Stamps(np.arange(100) / 50, 0.02)
    assert true_rate(Fraction(25), fields, lambda: 25.0) == (25, '')
    assert snapped(24.82) == 25 and snapped(27.7) is None and snapped(29.96) == Fraction(30000, 1001)


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
@pytest.mark.parametrize(('name', 'rate'), [('webm_says_1000fps.webm', None), ('stamps_go_back.ts', 25)])
def test_shared_cases(name, rate):
    reader, times, rows = read(CASES / name)
    assert abs(rows - len(times)) <= 1 and reader.notes
    assert rate is None or reader.fps == rate
    assert 20 < reader.fps < 31 and times[-1] - times[0] == pytest.approx(
        (len(times) - 1) / float(reader.fps), rel=0.02
    )
