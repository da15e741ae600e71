"""The sound of a driving video, carried over into the written one: cut to its frames, a packet at a time.

Codecs that MP4 players understand are copied as they are; others are encoded as AAC. Cuts fall between packets (about
20 ms). Sound that is damaged ends early and is never a reason to lose the pictures.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.io.inputs import input_file, open_media

COPIED = (
    'aac',
    'mp3',
    'mp3float',
    'ac3',
    'eac3',
    'opus',
    'alac',
)  # others (PCM, Vorbis, ...) are not played from MP4 everywhere
_ENCODED_RATES = (48000, 44100, 32000, 24000, 22050, 16000)


def has_sound(path: str | os.PathLike) -> bool:
    """Whether a file holds a sound track that can be opened; False for files that are no media at all."""
    import av

    try:
        with open_media(path) as container:
            return bool(container.streams.audio)
    except (av.error.FFmpegError, ValueError, OSError):
        return False


class SoundTrack:
    """The first sound track of a file, from ``start`` seconds on, for ``VideoWriter(sound=...)``.

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
        self._stream = tracks[0]
        if len(tracks) > 1:
            self.notes.append(f'the first of {len(tracks)} sound tracks')
        self._output: Any = None
        self._pending: Any = None
        self._packets: Iterator[Any] = iter(())

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def attach(self, container: Any) -> None:
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

    def mux_until(self, container: Any, seconds: Fraction) -> None:
        """Writes the packets that begin before ``seconds`` of the output."""
        while True:
            if self._pending is None:
                self._pending = next(self._packets, None)
            packet = self._pending
            if packet is None or packet.pts * packet.time_base >= seconds:
                return
            packet.stream = self._output
            container.mux(packet)
            self._pending = None

    def _damaged(self) -> None:
        self.notes.append('the sound is damaged and ends early')

    def _copied(self) -> Iterator[Any]:
        """Packets moved to the output's time, which begins at ``start``."""
        import av

        base = self._stream.time_base
        offset = round(self.start / base)
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is None or packet.size == 0:
                    continue
                packet.pts -= offset
                packet.dts = packet.pts if packet.dts is None else packet.dts - offset
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
                if frame.time is not None and frame.time < self.start:
                    continue
                if done is None:
                    done = max(0, round(((frame.time or 0) - float(self.start)) * rate))
                for piece in resampler.resample(frame):
                    piece.pts, piece.time_base = done, Fraction(1, rate)
                    done += piece.samples
                    yield from self._output.encode(piece)
        except (av.error.FFmpegError, ValueError):
            self._damaged()
        yield from self._output.encode(None)


def sound_of(path: str | os.PathLike, start: float = 0.0) -> SoundTrack | None:
    """The sound of a file, or None where it has none that can be read."""
    return SoundTrack(path, start) if has_sound(Path(path)) else None
