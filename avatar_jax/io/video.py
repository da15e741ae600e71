"""Videos in and out with PyAV (FFmpeg inside the wheel), frame by frame at bounded memory.

Written: MP4, H.264 (libx264, yuv420p, BT.709), playable everywhere, with provenance in the metadata, complete or
absent. Read: whatever FFmpeg decodes, as upright, whole 8-bit sRGB frames of one size with square pixels, and times
that rise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io import atomic, colour, kinds, stamps
from avatar_jax.io.images import MAX_SIDE, to_uint8
from avatar_jax.io.inputs import input_file, open_media, picture_tracks
from avatar_jax.io.interlaced import NOTE as INTERLACED
from avatar_jax.io.interlaced import Deinterlacer, interlaced
from avatar_jax.io.names import media_url
from avatar_jax.io.provenance import Provenance
from avatar_jax.io.upright import boxed, fitted, turn_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from avatar_jax.io.sound import SoundTrack

_BT709 = 1  # ITU-T H.273 code for primaries, transfer and matrix alike
_LIMITED_RANGE = 1


def frame_rate(fps: float | str | Fraction) -> Fraction:
    """A frame rate as an exact ratio: 25 -> 25, '30000/1001' and 29.97 -> 30000/1001.

    Raises:
        UserError: not a number between 1/1000 and 1000.
    """
    try:
        rate = Fraction(str(fps)) if isinstance(fps, str) else Fraction(fps)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise UserError(f'frame rate {fps!r}: is not a number; give e.g. 25 or 30000/1001') from error
    if not Fraction(1, 1000) <= rate <= 1000:
        raise UserError(f'frame rate {fps!r}: must lie between 0.001 and 1000 frames per second')
    nearest = round(rate)
    ntsc = Fraction(nearest * 1000, 1001)  # 23.976, 29.97, 59.94 are meant as n*1000/1001
    if rate != nearest and nearest and abs(rate - ntsc) < Fraction(1, 100):
        return ntsc
    return rate.limit_denominator(1001)


class VideoWriter:
    """Writes an MP4 file, frame by frame; it appears under its name when the ``with`` block ends without an error.

    with VideoWriter('out.mp4', fps=25) as video:
        for frame in frames:          # [H, W, 3] uint8, or float in [-1, 1]
            video.write(frame)

    The size is that of the first frame. H.264 in yuv420p needs even sizes: an odd last row or column is doubled.

    Args:
        path: the file (``.mp4``); missing folders are made.
        fps: frames per second: a number, a ``Fraction`` or text such as '30000/1001'.
        crf: quality, 0 (lossless) to 51; 18 is visually close to the original.
        preset: x264 effort, ``ultrafast`` to ``veryslow``.
        provenance: written into the metadata.
        sound: a sound track (``io.sound.SoundTrack``) that goes along, cut to the frames; it is closed at the end.

    Raises:
        UserError: bad rate, quality or name; the place cannot be written to.
        ValueError: frames of different sizes, not pictures, not finite, or none at all.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float | str | Fraction,
        *,
        crf: int = 18,
        preset: str = 'medium',
        provenance: Provenance | None = None,
        sound: SoundTrack | None = None,
    ):
        self.path = Path(path)
        self.sound = sound
        self.rate = frame_rate(fps)
        if self.path.suffix.lower() not in ('.mp4', '.m4v'):
            raise UserError(f'{self.path}: videos are written as MP4; choose a name that ends in .mp4')
        if not 0 <= crf <= 51:
            raise UserError(f'video quality (crf) {crf}: must lie between 0 (lossless) and 51')
        self._options = {'crf': str(crf), 'preset': preset}
        self._provenance = provenance
        self._container = self._stream = None
        self.num_frames = 0
        self._shape: tuple[int, ...] | None = None

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._temporary = self._stack.enter_context(atomic.atomic_path(self.path))
        return self

    def __exit__(self, *error: object) -> bool:
        try:
            if error[0] is None:
                self._finish()
            else:
                self._abandon()
        except BaseException:
            self._abandon()
            self._stack.__exit__(*sys.exc_info())  # removes the temporary file; explains a full disk
            raise
        finally:
            if self.sound is not None:
                self.sound.close()
        return self._stack.__exit__(*error)

    def write(self, frame: ArrayLike) -> None:
        """Appends one frame: [H, W, 3] uint8, or float in [-1, 1]."""
        import av
        from av.video.reformatter import ColorRange, Colorspace

        pixels = to_uint8(frame)
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.size == 0:
            raise ValueError(f'a video frame is [H, W, 3], got {pixels.shape}')
        if self._shape is None:
            self._shape = pixels.shape
            self._open(pixels.shape[1] + pixels.shape[1] % 2, pixels.shape[0] + pixels.shape[0] % 2)
        elif pixels.shape != self._shape:
            raise ValueError(f'frame {self.num_frames} is {pixels.shape}, the first one was {self._shape}')
        if pixels.shape[0] % 2 or pixels.shape[1] % 2:
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode='edge')
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format='rgb24')
        picture = picture.reformat(format='yuv420p', dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        picture.pts, picture.time_base = self.num_frames, 1 / self.rate
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1
        if self.sound is not None:
            self.sound.mux_until(self._container, self.num_frames / self.rate)

    def _open(self, width: int, height: int) -> None:
        import av

        options = {'movflags': 'use_metadata_tags+faststart'}  # our own metadata key; index at the start of the file
        self._container = av.open(media_url(self._temporary), 'w', format='mp4', options=options)
        if self._provenance:
            self._container.metadata.update(self._provenance.video_metadata())
        stream = self._container.add_stream('libx264', rate=self.rate, options=self._options)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        self._stream = stream
        if self.sound is not None:
            self.sound.attach(self._container)

    def _finish(self) -> None:
        if self._container is None:
            raise ValueError(f'{self.path}: no frame was written')
        self._container.mux(self._stream.encode())
        self._container.close()
        self._container = None
        self._check()

    def _check(self) -> None:
        """A full disk is not always reported by the muxer: the file must open again with all its frames."""
        import av

        try:
            with av.open(media_url(self._temporary)) as container:
                found = container.streams.video[0].frames
        except (OSError, ValueError, IndexError):
            found = 0
        if found != self.num_frames:
            raise UserError(f'{self.path}: the video could not be completed; check the space on the disk')

    def _abandon(self) -> None:
        if self._container is not None:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._container.close()
            self._container = None


def write_video(path: str | os.PathLike, frames: Iterable[Any], fps: float | str | Fraction, **options: Any) -> int:
    """Writes ``frames`` (any iterable, read one at a time) as an MP4; returns their number. See ``VideoWriter``."""
    with VideoWriter(path, fps, **options) as video:
        for frame in frames:
            video.write(frame)
        return video.num_frames


@dataclasses.dataclass(frozen=True)
class VideoFrame:
    """One decoded frame: its number from 0, its time in seconds, its pixels [H, W, 3] uint8."""

    index: int
    time: float
    pixels: np.ndarray


class VideoReader:
    """Reads a video file frame by frame; can be iterated several times.

    Time comes from the stamps of the packets, which are read once, not from the header: a wrong rate is corrected,
    stamps that do not rise or jump by seconds are mended at the usual step (``io.stamps``).

    Attributes:
        path: the file.
        fps: average frame rate, a ``Fraction``.
        size: (width, height) of the frames that are given out: upright, square pixels, at most ``max_side``.
        duration: seconds, or None when the file does not say.
        num_frames: how many frames are to be expected, or None; the true number is known after reading.
        metadata: the container's text entries.
        notes: what is done to the frames, one phrase each, for reports; complete after reading.

    Raises:
        UserError: the file is missing, damaged, not a video, or has no picture track.
    """

    def __init__(self, path: str | os.PathLike, *, max_side: int = MAX_SIDE):
        self.path = input_file(path)
        known = kinds.format_of(self.path)
        if known is not None and known.kind == kinds.PICTURE:
            kinds.check_readable(self.path, known)
            raise UserError(f'{self.path}: is not a video but a picture ({known.name}); give a video')
        self._max_side = max_side
        with self._container() as (container, stream):
            self.metadata = dict(container.metadata)
            if stream.duration:
                self.duration = float(stream.duration * stream.time_base)
            else:
                self.duration = container.duration / 1e6 if container.duration else None
            header = stream.average_rate or stream.guessed_rate or stream.base_rate
            decoded = self._decode(container, stream)
            first = next(decoded, None)
            if first is None:
                raise UserError(f'{self.path}: holds no pictures; get the file again')
            notes, frames = self._plan(first, stream), stream.frames
            self._interlaced = ''
            with contextlib.suppress(UserError):  # damage is met, and told, when it is read
                self._interlaced = interlaced(itertools.chain([first], decoded))
            notes += (INTERLACED,) if self._interlaced else ()
        self._stamps, _ = stamps.scan(self.path)
        self.num_frames = frames or len(self._stamps.times) or None
        rate, note = stamps.true_rate(header, self._stamps, self._decoded_rate)
        self.fps = frame_rate(rate) if rate else Fraction(25)
        self._planned: tuple[str, ...] = (*notes, note) if note else notes
        self._met: tuple[str, ...] = ()  # what the last reading met

    @property
    def notes(self) -> tuple[str, ...]:
        """What is done to the frames, one phrase each."""
        return self._planned + self._met

    @contextlib.contextmanager
    def _container(self) -> Iterator[tuple[Any, Any]]:
        import av

        try:
            container = open_media(self.path)
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(
                f'{self.path}: is not a video that can be read, or is damaged ({_reason(error)}); get it again '
                'or convert it to MP4'
            ) from error
        with container:
            if kinds.is_still_format(container.format.name):
                raise UserError(f'{self.path}: is not a video but a picture or a text; give a video')
            tracks = picture_tracks(container)
            if not tracks:
                raise UserError(f'{self.path}: has no picture track (sound only?); give a video')
            tracks[0].thread_type = 'AUTO'
            yield container, tracks[0]

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        import av

        number = 0
        try:
            for frame in container.decode(stream):
                yield frame
                number += 1
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(
                f'{self.path}: the video is damaged after frame {number} ({_reason(error)}); get it again, or '
                'cut it before that frame'
            ) from error

    def _decoded_rate(self, most: int = 250) -> float:
        """Average rate of the first decoded frames; NaN where it cannot be told."""
        with self._container() as (container, stream), contextlib.suppress(UserError):
            times = []
            for frame in itertools.islice(self._decode(container, stream), most):
                times.append(frame.time)
        steps = np.diff([t for t in times if t is not None])
        steps = steps[(steps >= 0) & (steps < stamps.jump_limit(self._stamps.step))]
        return len(steps) / steps.sum() if steps.sum() > 0 else float('nan')

    def _plan(self, frame: Any, stream: Any) -> tuple[str, ...]:
        """Decides size and orientation from the first frame."""
        notes = []
        width, height = self._square(frame, stream)
        if width != frame.width:
            notes.append(f'pixel aspect {stream.sample_aspect_ratio} made square')
        if max(width, height) > self._max_side:
            scale = self._max_side / max(width, height)
            notes.append(f'reduced from {width}x{height} pixels')
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
        tags = colour.tags_of(frame, stream.codec_context)
        if helps := colour.unshowable(tags, frame, stream.codec_context):
            raise UserError(f'{self.path}: {helps}')
        self._turn = turn_of(frame)
        self._first_size = frame.width, frame.height
        self.size = self._turn.size(width, height)
        return (
            *notes,
            *filter(None, [self._turn.note]),
            *colour.notes(tags, frame),
        )

    @staticmethod
    def _square(frame: Any, stream: Any) -> tuple[int, int]:
        """(width, height) of a frame with square pixels."""
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return max(1, round(frame.width * aspect)) if aspect > 0 else frame.width, frame.height

    def __iter__(self) -> Iterator[VideoFrame]:
        mend, met, self._met = stamps.Mender(float(1 / self.fps), self._stamps.jumps), {}, ()
        with self._container() as (container, stream):
            frames = self._decode(container, stream)
            pairs = Deinterlacer(self._interlaced == 'combed')(frames) if self._interlaced else ((f, f) for f in frames)
            for index, (decoded, whole) in enumerate(pairs):
                pixels = self._shown(decoded, whole, stream, index, met)
                time = mend(decoded.time)
                self._met = (*met.values(), *mend.notes())
                yield VideoFrame(index, time, pixels)

    def _shown(self, decoded: Any, whole: Any, stream: Any, index: int, met: dict[str, str]) -> np.ndarray:
        """Upright pixels of ``self.size``; what is unusual about a frame is noted once in ``met``."""
        turn = turn_of(decoded, self._turn)
        size = (decoded.width, decoded.height)
        shown = self.size
        if size != self._first_size or turn != self._turn:
            shown = fitted(turn.size(*self._square(decoded, stream)), self.size)
        if size != self._first_size:
            first = 'x'.join(map(str, self._first_size))
            text = f'the size changes from {first} to {size[0]}x{size[1]} at frame {index}: fitted in, aspect kept'
            met.setdefault('size', text)
        elif turn != self._turn:
            met.setdefault('turn', f'the orientation changes at frame {index}: followed, aspect kept')
        tags = colour.tags_of(decoded, stream.codec_context)
        pixels = turn.apply(colour.to_srgb(whole, *turn.size(*shown), tags))
        return np.ascontiguousarray(boxed(pixels, self.size))


def _reason(error: BaseException) -> str:
    return getattr(error, 'strerror', None) or str(error).splitlines()[0][:120] or type(error).__name__
