"""The sound of a driving video, carried over into the written one: cut to its frames, a packet at a time.

Codecs that MP4 players understand are copied as they are; others are encoded as AAC. Cuts fall between packets (about
20 ms). Sound that is damaged ends early and is never a reason to lose the pictures.

Where sound drives a face it is read instead (``read_sound``): one channel on the clock of the file, which is also that
of the frames' time stamps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io import atomic, stamps
from avatar_jax.io.inputs import input_file, open_media, sound_track

if TYPE_CHECKING:
    from av.container import OutputContainer

COPIED = (
    'aac',
    'mp3',
    'mp3float',
    'ac3',
    'eac3',
    'opus',
    'alac',
)  # others (PCM, Vorbis, ...) are not played from MP4 everywhere
_PAUSE = 0.1  # seconds: longer gaps in encoded sound are filled with silence
_ENCODED_RATES = (48000, 44100, 32000, 24000, 22050, 16000)
_MENDED = 'time stamps of the sound go back or jump: what follows was moved along'


def has_sound(path: str | os.PathLike) -> bool:
    """Whether a file holds a sound track that can be opened; False for files that are no media at all."""
    import av

    try:
        with open_media(path) as container:
            return bool(container.streams.audio)
    except (av.error.FFmpegError, ValueError, OSError):
        return False


def _mender(path: Path) -> stamps.Mender:
    """Stamps that go back, or jump where the pictures' stamps do, move what follows. Pauses stay."""
    pictures, sound = stamps.scan(path)
    pauses = [j for j in sound.jumps if not any(a < j[1] and b > j[0] for a, b in pictures.jumps)]
    step = sound.step if np.isfinite(sound.step) else 0.02
    return stamps.Mender(step, tuple(j for j in sound.jumps if j not in pauses), least=0.0)


def _taken(tracks: Any, stream: Any) -> list[str]:
    """A note where a file has several sound tracks."""
    if len(tracks) < 2:
        return []
    return [f'sound track {list(tracks).index(stream) + 1} of {len(tracks)} taken (the default one, else the first)']


class SoundTrack:
    """The default sound track of a file, from ``start`` seconds on, for ``VideoWriter(sound=...)``.

    Args:
        path: a video or a sound file.
        start: time in the file, seconds, that belongs to the first written frame.

    Attributes:
        notes: what was done to the sound, one phrase each, for reports.

    Raises:
        UserError: the file is missing, damaged, or has no sound.
    """

    def __init__(self, path: str | os.PathLike, start: float = 0.0):
        import av

        self.path = input_file(path)
        self.start = Fraction(start).limit_denominator(1_000_000)
        self.notes: list[str] = []
        self._stack = contextlib.ExitStack()
        try:
            self._container = self._stack.enter_context(open_media(self.path))
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(f'{self.path}: is not a video or sound file that can be read, or is damaged') from error
        tracks = self._container.streams.audio
        if not tracks:
            self.close()
            raise UserError(f'{self.path}: has no sound track; leave the sound out or give another file')
        self._stream = sound_track(self._container)
        self.notes += _taken(tracks, self._stream)
        self._output: Any = None
        self._pending: Any = None
        self._packets: Iterator[Any] = iter(())

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def attach(self, container: OutputContainer) -> None:
        """Adds a sound stream to an output container, before anything is written to it."""
        codec = self._stream.codec_context
        if codec.name in COPIED:
            self._output = container.add_stream_from_template(self._stream)
            self._packets = self._copied()
        else:
            rate = next((r for r in _ENCODED_RATES if r <= codec.sample_rate), _ENCODED_RATES[-1])
            layout = 'mono' if codec.channels == 1 else 'stereo'
            self._output = container.add_stream('aac', rate=rate, layout=layout)
            self._packets = self._encoded(rate, layout)
            self.notes.append(f'{codec.name} sound encoded as AAC')

    def mux_until(self, container: OutputContainer, seconds: Fraction) -> None:
        """Writes the packets that begin before ``seconds`` of the output."""
        import av

        while True:
            if self._pending is None:
                self._pending = next(self._packets, None)
            packet = self._pending
            if packet is None or packet.pts * packet.time_base >= seconds:
                return
            packet.stream = self._output
            self._pending = None
            try:
                container.mux(packet)
            except (av.error.FFmpegError, ValueError):
                self._packets = iter(())
                self._damaged()

    def _damaged(self) -> None:
        self.notes.append('the sound is damaged and ends early')

    @functools.cached_property
    def _mend(self) -> stamps.Mender:
        return _mender(self.path)

    def _say_mended(self) -> None:
        if (self._mend.back or self._mend.jumped) and _MENDED not in self.notes:
            self.notes.append(_MENDED)

    def _copied(self) -> Iterator[Any]:
        """Packets moved to the output's time, which begins at ``start``."""
        import av

        base = self._stream.time_base
        offset, last = round(self.start / base), None
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is None or packet.size == 0:
                    continue
                packet.pts = round(self._mend(float(packet.pts * base)) / base) - offset
                self._say_mended()
                packet.pts = packet.dts = packet.pts if last is None else max(packet.pts, last + 1)
                last = packet.pts
                # A first packet that begins a little earlier would move all pictures: whole packets are left out.
                if packet.pts >= 0 or (offset == 0 and packet.pts > -round(Fraction(1, 10) / base)):
                    yield packet
        except (av.error.FFmpegError, ValueError):
            self._damaged()

    def _encoded(self, rate: int, layout: str) -> Iterator[Any]:
        import av

        resampler = av.AudioResampler(format='fltp', layout=layout, rate=rate)
        done = None  # samples of the output so far
        try:
            for frame in self._container.decode(self._stream):
                time = self._mend(frame.time) - float(self.start)
                self._say_mended()
                if time < 0:
                    continue
                if done is None:
                    done = max(0, round(time * rate))
                pause = round(time * rate) - done
                starts = range(0, pause, rate) if pause > _PAUSE * rate else ()
                silence = (self._silence(min(rate, pause - k), rate, layout) for k in starts)
                for piece in itertools.chain(silence, resampler.resample(frame)):
                    piece.pts, piece.time_base = done, Fraction(1, rate)
                    done += piece.samples
                    yield from self._output.encode(piece)
        except (av.error.FFmpegError, ValueError):
            self._damaged()
        yield from self._output.encode(None)

    @staticmethod
    def _silence(samples: int, rate: int, layout: str) -> Any:
        import av

        channels = 1 if layout == 'mono' else 2
        frame = av.AudioFrame.from_ndarray(np.zeros((channels, samples), np.float32), format='fltp', layout=layout)
        frame.sample_rate = rate
        return frame


def sound_of(path: str | os.PathLike, start: float = 0.0) -> SoundTrack | None:
    """The sound of a file, or None where it has none that can be read."""
    return SoundTrack(path, start) if has_sound(Path(path)) else None


# ------------------------------------------------------------------------------------------------------ as numbers

SPEECH_RATE = 16000  # samples per second, of speech features
_JUMP = 0.005  # seconds between a packet's time stamp and the samples so far that count as a gap or an overlap
_LONGEST = 4 * 3600  # seconds


@dataclasses.dataclass(frozen=True)
class Sound:
    """One channel of sound.

    Attributes:
        samples: [N] float32, nominally in [-1, 1]; the first belongs to time 0 of the file.
        rate: samples per second.
        notes: what was done, one phrase each, for reports.
    """

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.samples) / self.rate


def read_sound(path: str | os.PathLike, rate: int = SPEECH_RATE) -> Sound:
    """The sound of a video or sound file as one channel, on the file's clock.

    Samples stand where their time stamps put them, so that sample ``n`` is heard at ``n / rate`` seconds, when the
    frame with that ``VideoFrame.time`` is seen: a track that begins late is preceded by zeros, what lies before
    time 0 is dropped, gaps are filled with zeros. Stamps that go back or jump are mended as those of the frames are.
    Channels are averaged. Of several tracks the default one is read.

    Args:
        path: any file with sound that FFmpeg reads.
        rate: samples per second of the result; other rates are converted without delay.

    Raises:
        UserError: missing or damaged file, no sound in it, NaN or infinite samples, more than four hours.
    """
    import av

    path = input_file(path)
    notes: list[str] = []
    try:
        with open_media(path) as container:
            tracks = container.streams.audio
            if not tracks:
                raise UserError(f'{path}: has no sound track; give a file with sound')
            stream, mend = sound_track(container), _mender(path)
            notes += _taken(tracks, stream)
            source = stream.codec_context.sample_rate or stream.rate
            pieces: list[tuple[int, np.ndarray]] = []
            end = None  # where the samples so far end, in samples of the file's clock
            try:
                for frame in container.decode(stream):
                    values = _one_channel(frame)
                    source = frame.sample_rate or source
                    stamp = end if frame.time is None else round(mend(frame.time) * source)
                    start = stamp or 0 if end is None or abs((stamp or 0) - end) > _JUMP * source else end
                    end = start + len(values)
                    if end > _LONGEST * source:
                        raise UserError(f'{path}: the sound is longer than {_LONGEST // 3600} hours; cut it')
                    pieces.append((start, values))
            except (av.error.FFmpegError, ValueError) as error:
                if not pieces:
                    raise UserError(f'{path}: the sound is damaged; get the file again') from error
                notes.append('the sound is damaged and ends early')
            notes += [_MENDED] if mend.back or mend.jumped else []
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f'{path}: is not a video or sound file that can be read, or is damaged') from error
    if end is None or end <= 0:
        raise UserError(f'{path}: the sound track is empty; give a file with sound')
    samples = np.zeros(max(start + len(values) for start, values in pieces), np.float32)
    for start, values in pieces:
        values = values[max(0, -start) :]
        samples[max(0, start) : max(0, start) + len(values)] = values
    if not np.isfinite(samples).all():
        raise UserError(f'{path}: the sound has NaN or infinite samples; export it again')
    if source < rate:
        notes.append(f'sound of {source} Hz: has nothing above {source // 2} Hz')
    return Sound(resampled(samples, source, rate), rate, tuple(notes))


def _one_channel(frame: Any) -> np.ndarray:
    """[N] float32 of a decoded piece: mean of the channels, integers as parts of their range."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128).mean(0) / 128
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32).mean(0) / (np.iinfo(values.dtype).max + 1)
    return values.astype(np.float32).mean(0)


def resampled(samples: np.ndarray, source: int, rate: int) -> np.ndarray:
    """Samples [N] of ``source`` per second as [round(N * rate / source)] float32 of ``rate``, without delay."""
    if source == rate:
        return np.asarray(samples, np.float32)
    from scipy.signal import resample_poly

    ratio = Fraction(rate, source)
    found = resample_poly(np.asarray(samples, np.float32), ratio.numerator, ratio.denominator)
    length = round(len(samples) * ratio)
    return np.pad(found, (0, max(0, length - len(found))))[:length].astype(np.float32)


def write_wav(path: str | os.PathLike, samples: np.ndarray, rate: int = SPEECH_RATE) -> None:
    """Writes one channel, [N] in [-1, 1], as a WAV file of 16 bits; it appears complete or not at all.

    Raises:
        UserError: the place cannot be written to. ValueError: NaN or infinite samples, or not one channel.
    """
    import wave

    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f'write_wav: takes finite samples [N], got {samples.shape}')
    values = np.round(np.clip(samples, -1, 1) * 32767).astype('<i2')
    with atomic.atomic_path(Path(path)) as temporary, wave.open(os.fspath(temporary), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())
