"""The sound of a driving video goes along: copied or encoded, cut to the frames, in time, and never fatal."""

from fractions import Fraction

import av
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io.sound import SPEECH_RATE, SoundTrack, has_sound, read_sound, sound_of
from avatar_jax.io.video import VideoReader, write_video

RATE = 44100


def film(path, codec='aac', seconds=3, fps=10, picture=True):
    """A video whose tone begins at one second."""
    with av.open(str(path), 'w') as file:
        stream = None
        if picture:
            stream = file.add_stream('libx264', rate=fps)
            stream.width = stream.height = 32
            stream.pix_fmt = 'yuv420p'
        sound = file.add_stream(codec, rate=RATE, layout='mono')
        for k in range(seconds * fps if picture else 0):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * k % 255, np.uint8), format='rgb24')
            frame.pts, frame.time_base = k, Fraction(1, fps)
            file.mux(stream.encode(frame))
        if picture:
            file.mux(stream.encode())
        time = np.arange(seconds * RATE) / RATE
        wave = (0.5 * np.sin(2 * np.pi * 440 * time) * (time >= 1)).astype(np.float32)
        resampler = av.AudioResampler(format=sound.codec_context.format.name, layout='mono', rate=RATE)
        for start in range(0, len(wave), 1024):
            piece = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format='fltp', layout='mono')
            piece.sample_rate, piece.pts, piece.time_base = RATE, start, Fraction(1, RATE)
            for part in resampler.resample(piece):
                file.mux(sound.encode(part))
        file.mux(sound.encode())
    return path


def heard(path):
    """(codec, time at which the tone begins, end of the sound, start of the pictures), seconds."""
    with av.open(str(path)) as file:
        stream, parts, first = file.streams.audio[0], [], None
        for frame in file.decode(stream):
            first = frame.time if first is None else first
            values = frame.to_ndarray().astype(float)
            parts.append(values.reshape(-1) if frame.format.is_packed else values[0])
        wave = np.concatenate(parts)
        onset = np.flatnonzero(np.abs(wave) > 0.05 * np.abs(wave).max())[0]
        video = file.streams.video[0]
        return (
            stream.codec_context.name,
            first + onset / stream.rate,
            first + len(wave) / stream.rate,
            float(video.start_time * video.time_base),
        )


def frames(count):
    return (np.full((32, 32, 3), k, np.uint8) for k in range(count))


@pytest.mark.parametrize(
    ('name', 'codec', 'note'),
    [('a.mp4', 'aac', ''), ('a.mkv', 'pcm_s16le', 'encoded as AAC'), ('Ton ä b.mp4', 'libmp3lame', '')],
)
@pytest.mark.parametrize('start', [0.0, 0.5])
def test_sound_is_kept_in_time_and_cut(tmp_path, name, codec, note, start):
    source = film(tmp_path / name, codec)
    track = sound_of(source, start)
    write_video(tmp_path / 'out.mp4', frames(20), 10, sound=track)
    kind, onset, end, pictures = heard(tmp_path / 'out.mp4')
    assert pictures == 0 and onset == pytest.approx(1 - start, abs=0.03)
    assert 1.95 < end < 2.06, 'two seconds of pictures, two of sound'
    assert kind.startswith('mp3' if 'mp3' in codec else 'aac')
    assert (note in track.notes[0]) if note else not track.notes
    assert len(list(VideoReader(tmp_path / 'out.mp4'))) == 20


def test_short_damaged_and_missing_sound(tmp_path):
    source = film(tmp_path / 'a.mp4', seconds=1)
    write_video(tmp_path / 'long.mp4', frames(30), 10, sound=sound_of(source))  # pictures go on after the sound
    assert len(list(VideoReader(tmp_path / 'long.mp4'))) == 30
    whole = film(tmp_path / 'whole.mkv', 'aac').read_bytes()
    (tmp_path / 'cut.mkv').write_bytes(whole[: len(whole) // 2])
    write_video(tmp_path / 'half.mp4', frames(30), 10, sound=sound_of(tmp_path / 'cut.mkv'))
    assert len(list(VideoReader(tmp_path / 'half.mp4'))) == 30
    write_video(tmp_path / 'silent.mp4', frames(2), 10)
    assert not has_sound(tmp_path / 'silent.mp4') and sound_of(tmp_path / 'silent.mp4') is None
    with pytest.raises(UserError, match=r'silent.mp4: has no sound track'):
        SoundTrack(tmp_path / 'silent.mp4')
    (tmp_path / 'text.mp4').write_text('hello')
    assert not has_sound(tmp_path / 'text.mp4')
    with pytest.raises(UserError, match='text.mp4: is not a video or sound file'):
        SoundTrack(tmp_path / 'text.mp4')
    with pytest.raises(UserError, match='no such file'):
        SoundTrack(tmp_path / 'none.mp4')


def test_a_failed_video_closes_the_sound(tmp_path):
    track = sound_of(film(tmp_path / 'a.mp4', seconds=1))

    def broken():
        yield np.zeros((32, 32, 3), np.uint8)
        raise RuntimeError('stop')

    with pytest.raises(RuntimeError):
        write_video(tmp_path / 'out.mp4', broken(), 10, sound=track)
    assert not (tmp_path / 'out.mp4').exists()


@pytest.mark.parametrize('default', [0, 1, None])
def test_of_several_sound_tracks_the_default_one_is_taken(tmp_path, default):
    path, tones = tmp_path / 'a.mkv', (440, 1760)
    with av.open(str(path), 'w') as file:
        tracks = [file.add_stream('aac', rate=RATE, layout='mono') for _ in tones]
        for k, track in enumerate(tracks):
            track.disposition = av.stream.Disposition.default if k == default else av.stream.Disposition(0)
        for track, tone in zip(tracks, tones, strict=True):
            wave = (0.5 * np.sin(2 * np.pi * tone * np.arange(2 * RATE) / RATE)).astype(np.float32)
            for start in range(0, len(wave), 1024):
                piece = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format='fltp', layout='mono')
                piece.sample_rate, piece.pts, piece.time_base = RATE, start, Fraction(1, RATE)
                file.mux(track.encode(piece))
            file.mux(track.encode())
    with av.open(str(path)) as file:
        marked = [bool(s.disposition & av.stream.Disposition.default) for s in file.streams.audio]
    assert marked == [default == 0, default == 1]
    track = SoundTrack(path)
    write_video(tmp_path / 'out.mp4', frames(10), 10, sound=track)
    with av.open(str(tmp_path / 'out.mp4')) as file:
        wave = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(wave[RATE // 4 : RATE // 2]))
    heard_tone = spectrum.argmax() * RATE / (RATE // 2 - RATE // 4)
    assert heard_tone == pytest.approx(tones[default or 0], rel=0.02)
    driving = read_sound(path)
    spectrum = np.abs(np.fft.rfft(driving.samples[:SPEECH_RATE]))
    assert spectrum.argmax() == pytest.approx(tones[default or 0], rel=0.02)
    for notes in (track.notes, driving.notes):
        assert f'sound track {(default or 0) + 1} of 2' in notes[0]
