"""Inputs of the tracker: photographs, videos, folders of either, and folders of numbered frames."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.io import kinds
from avatar_jax.io.animation import open_video
from avatar_jax.io.images import MAX_SIDE, read_image
from avatar_jax.io.inputs import file_sha256, input_file
from avatar_jax.io.video import VideoFrame


@dataclasses.dataclass(frozen=True)
class Source:
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

    def open(self) -> Reader:
        """What the frames are read from; raises ``UserError`` for files that cannot be used."""
        return Reader(self)

    def sha256(self) -> str:
        """Of the file; of the first picture of a folder."""
        return file_sha256(self.path if self.kind != 'frames' else frame_files(self.path)[0])


class Reader:
    """Frames of a source; can be iterated several times.

    Attributes:
      fps: frames per second on average. count: frames that are expected, or None. notes: what is done to the pixels.
    """

    def __init__(self, source: Source):
        self.source, self._video, self.notes, self.count, self.fps = source, None, (), 1, source.fps
        if source.kind == 'video':
            self._video = open_video(source.path)
            self.notes, self.count, self.fps = self._video.notes, self._video.num_frames, float(self._video.fps)
        elif source.kind == 'frames':
            self.count = len(frame_files(source.path))
        else:
            input_file(source.path)

    def __iter__(self) -> Iterator[VideoFrame]:
        if self._video is not None:
            for frame in self._video:
                self.notes = self._video.notes  # complete after the last frame
                yield frame
        elif self.source.kind == 'photo':
            picture = read_image(self.source.path, max_side=MAX_SIDE)
            self.notes = picture.notes
            yield VideoFrame(0, 0.0, picture.pixels)
        else:
            size = None
            for i, path in enumerate(frame_files(self.source.path)):
                picture = read_image(path)
                if size is not None and picture.size != size:
                    raise UserError(
                        f'{path}: has {picture.size[0]}x{picture.size[1]} pixels, the frames before it '
                        f'{size[0]}x{size[1]}; frames of a clip are of one size'
                    )
                size = picture.size
                yield VideoFrame(i, i / self.fps, picture.pixels)


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names (numbers count as numbers)."""

    def order(path: Path):
        digits = ''.join(c for c in path.stem if c.isdigit())
        return (int(digits) if digits else -1, path.name)

    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in kinds.PICTURE_ENDINGS and not p.name.startswith('.')),
        key=order,
    )


def find_sources(inputs: Sequence[str | os.PathLike], sequence: bool = False, fps: float = 25.0) -> list[Source]:
    """Sources behind the command's arguments; folders give what is in them.

    A file's content tells whether it is a picture or a video (``io.kinds``). Names are made unique.

    Raises:
      UserError: nothing there, or an empty folder. (What is wrong with a single file is found when it is opened.)
    """
    found: list[tuple[Path, str]] = []
    for item in inputs:
        path = Path(item)
        if not os.path.isdir(path):  # unlike ``Path.is_dir``, an answer for names that are too long, too
            found.append((path, _kind(path)))
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
                if p.is_file()
                and not p.name.startswith('.')
                and p.suffix.lower() in kinds.PICTURE_ENDINGS + kinds.VIDEO_ENDINGS
            )
        except OSError as error:
            raise UserError(f'{path}: could not be read ({error.strerror or error}); check the path') from error
        if not files:
            raise UserError(f'{path}: holds no pictures and no videos')
        found += [(p, _kind(p)) for p in files]
    sources, names = [], set()
    for path, kind in found:
        stem, number = path.stem if kind != 'frames' else path.name, 2
        name = stem = stem or 'input'
        while name.casefold() in names:
            name, number = f'{stem}-{number}', number + 1
        names.add(name.casefold())
        sources.append(Source(path, name, kind, fps))
    return sources


def _kind(path: Path) -> str:
    return 'photo' if kinds.kind_of(path) == kinds.PICTURE else 'video'
