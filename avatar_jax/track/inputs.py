"""Inputs of the tracker as frames: photographs, videos, folders of either, and folders of numbered frames.

Frames can be iterated several times, give ``io.video.VideoFrame`` objects, and have ``path``, ``fps``, ``num_frames``
(or None) and ``notes``: ``io.video.VideoReader``, ``PictureFrames``, and ``Selected`` ones of either.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io import kinds
from avatar_jax.io.animation import open_video
from avatar_jax.io.images import MAX_SIDE, read_image
from avatar_jax.io.inputs import file_sha256, input_file
from avatar_jax.io.video import VideoFrame

if TYPE_CHECKING:
    from fractions import Fraction

PICTURES, VIDEOS = kinds.PICTURE_ENDINGS, kinds.VIDEO_ENDINGS


class FrameSource(Protocol):
    """Frames of one input, which can be gone through several times.

    Attributes:
        path: what they are called in messages. fps: frames per second. num_frames: their number, or None.
        notes: what is done to them, one phrase each; complete after reading.
    """

    path: Path
    fps: float | Fraction
    num_frames: int | None
    notes: Sequence[str]

    def __iter__(self) -> Iterator[VideoFrame]:
        """From the first to the last."""


@dataclasses.dataclass(frozen=True)
class StillFrame(VideoFrame):
    """A picture file as a frame.

    Attributes:
        alpha: [H, W] uint8 opacity, or None. notes: what was done to the file's pixels.
    """

    alpha: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class PictureFrames:
    """Picture files as the frames of a clip, in the given order.

    Args:
        paths: the files, all of one size.
        fps: frames per second.
        path: what the clip is called in messages; the first file's folder by default.

    Attributes:
        notes: what is done to the pixels of a single picture; known after it was read.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], fps: float = 25.0, path: str | os.PathLike | None = None):
        if not paths:
            raise UserError(f'{path}: holds no pictures')
        self.paths = [Path(p) for p in paths]
        self.path = Path(path) if path is not None else self.paths[0] if len(paths) == 1 else self.paths[0].parent
        self.fps, self.num_frames, self.notes = float(fps), len(self.paths), ()

    def __iter__(self) -> Iterator[StillFrame]:
        size = None
        for i, path in enumerate(self.paths):
            picture = read_image(path, max_side=MAX_SIDE) if self.num_frames == 1 else read_image(path)
            if size is not None and picture.size != size:
                raise UserError(
                    f'{path}: has {picture.size[0]}x{picture.size[1]} pixels, the frames before it '
                    f'{size[0]}x{size[1]}; frames of a clip are of one size'
                )
            size = picture.size
            if self.num_frames == 1:
                self.notes = picture.notes
            yield StillFrame(i, i / self.fps, picture.pixels, picture.alpha, picture.notes)


class Selected:
    """Some frames of others: the numbers in ``indices`` (sorted), as a clip of ``fps`` frames per second."""

    def __init__(self, frames: FrameSource, indices: np.ndarray, fps: float | None = None):
        self.frames, self.indices = frames, np.asarray(indices)
        self.fps = float(frames.fps if fps is None else fps)
        self.path, self.num_frames = frames.path, len(self.indices)

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the other frames."""
        return tuple(getattr(self.frames, 'notes', ()))

    def __iter__(self) -> Iterator[VideoFrame]:
        wanted, position = self.indices, 0
        if not len(wanted):
            return
        for frame in self.frames:
            while position < len(wanted) and wanted[position] == frame.index:
                yield dataclasses.replace(frame, index=position)
                position += 1
            if position == len(wanted):
                return


def is_photograph(frames: FrameSource) -> bool:
    """Whether frames are one picture file."""
    return isinstance(frames, PictureFrames) and frames.num_frames == 1


@dataclasses.dataclass(frozen=True)
class Input:
    """One thing to track.

    Attributes:
        path: the file or folder. name: of its output folder.
        kind: 'photo', 'video' or 'frames' (a folder of pictures in the order of their names).
        fps: of 'frames'.
    """

    path: Path
    name: str
    kind: str
    fps: float = 25.0

    @property
    def moving(self) -> bool:
        """More than one frame is expected."""
        return self.kind != 'photo'

    def open(self) -> FrameSource:
        """The frames; raises ``UserError`` for files that cannot be used."""
        if self.kind == 'video':
            return open_video(self.path)
        if self.kind == 'frames':
            return PictureFrames(frame_files(self.path), self.fps, self.path)
        return PictureFrames([input_file(self.path)], self.fps)

    def sha256(self) -> str:
        """Of the file; of the first picture of a folder."""
        return file_sha256(self.path if self.kind != 'frames' else frame_files(self.path)[0])


def open_frames(path: str | os.PathLike) -> FrameSource:
    """The frames of a video or of a picture.

    Raises:
        UserError: the file is missing, damaged, or neither.
    """
    path = input_file(path)
    return Input(path, path.stem, kind_of(path)).open()


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names (numbers count as numbers)."""

    def order(path: Path):
        digits = ''.join(c for c in path.stem if c.isdigit())
        return (int(digits) if digits else -1, path.name)

    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith('.')), key=order
    )


def find_inputs(inputs: Sequence[str | os.PathLike], sequence: bool = False, fps: float = 25.0) -> list[Input]:
    """Sources behind the command's arguments; folders give what is in them.

    A file's content tells whether it is a picture or a video (``io.kinds``). Names are made unique.

    Raises:
        UserError: nothing there, or an empty folder. (What is wrong with a single file is found when it is opened.)
    """
    found: list[tuple[Path, str]] = []
    for item in inputs:
        path = Path(item)
        if not os.path.isdir(path):  # unlike ``Path.is_dir``, an answer for names that are too long, too
            found.append((path, kind_of(path)))
            continue
        if sequence:
            if not frame_files(path):
                raise UserError(f'{path}: holds no pictures; --sequence takes folders of frames')
            found.append((path, 'frames'))
            continue
        try:
            files = sorted(
                p
                for p in path.iterdir()
                if p.is_file() and not p.name.startswith('.') and p.suffix.lower() in PICTURES + VIDEOS
            )
        except OSError as error:
            raise UserError(f'{path}: could not be read ({error.strerror or error}); check the path') from error
        if not files:
            raise UserError(f'{path}: holds no pictures and no videos')
        found += [(p, kind_of(p)) for p in files]
    sources, names = [], set()
    for path, kind in found:
        stem, number = path.stem if kind != 'frames' else path.name, 2
        name = stem = stem or 'input'
        while name.casefold() in names:
            name, number = f'{stem}-{number}', number + 1
        names.add(name.casefold())
        sources.append(Input(path, name, kind, fps))
    return sources


def kind_of(path: Path) -> str:
    """'photo' or 'video', by what is inside."""
    return 'photo' if kinds.kind_of(path) == kinds.PICTURE else 'video'
