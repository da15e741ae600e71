"""Animations (GIF, PNG, WebP, AVIF of several pictures) as videos, and one function that opens any video."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.io import kinds
from avatar_jax.io.images import DAMAGED, MAX_SIDE, coded_colours, decoded, first_line
from avatar_jax.io.inputs import input_file
from avatar_jax.io.stamps import snapped
from avatar_jax.io.video import VideoFrame, VideoReader, frame_rate

_NO_TIME = 0.1  # seconds for pictures that say none, as browsers show them


class AnimationReader:
    """Reads an animation picture by picture; can be iterated several times. Attributes as ``VideoReader``'s.

    Raises:
        UserError: the file is missing, damaged or no animation.
    """

    def __init__(self, path: str | os.PathLike, *, max_side: int = MAX_SIDE):
        self.path, self._max_side = input_file(path), max_side
        self.metadata: dict[str, str] = {}
        self._times = [0.0]
        with self._image() as image:
            self._colours = coded_colours(image, image.fp)
            self.num_frames = getattr(image, 'n_frames', 1)
            for number in range(self.num_frames):
                self._seek(image, number)
                self._times.append(self._times[-1] + (image.info.get('duration') or 1000 * _NO_TIME) / 1000)
            self._seek(image, 0)
            first = self._decoded(image, 0)
        self.duration = self._times.pop()
        rate = self.num_frames / self.duration
        self.fps = frame_rate(snapped(rate) or Fraction(rate).limit_denominator(1001))
        self.size, self.notes = first.size, (f'animation of {self.num_frames} pictures', *first.notes)

    def _image(self) -> Any:
        from PIL import Image, UnidentifiedImageError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                return Image.open(self.path)
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f'{self.path}: is not an animation that can be read ({first_line(error)})') from error

    def _seek(self, image: Any, number: int) -> None:
        with self._damage(number):
            image.seek(number)
            image.load()  # some formats know only then how long a picture is shown

    def _decoded(self, image: Any, number: int) -> Any:
        with self._damage(number):
            one = image.copy()
            one.info |= self._colours
            return decoded(one, self.path, self._max_side, 1)

    @contextlib.contextmanager
    def _damage(self, number: int) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            raise UserError(
                f'{self.path}: the animation is damaged after picture {number} ({first_line(error)}); get it again'
            ) from error

    def __iter__(self) -> Iterator[VideoFrame]:
        with self._image() as image:
            for number, time in enumerate(self._times):
                self._seek(image, number)
                yield VideoFrame(number, time, self._decoded(image, number).pixels)


def open_video(path: str | os.PathLike, **options: Any) -> VideoReader | AnimationReader:
    """A reader of any video or animation.

    Raises:
        UserError: the file is missing, damaged, a single picture, or of a kind that cannot be read.
    """
    found = kinds.format_of(input_file(path))
    if found is not None and found.kind == kinds.VIDEO:
        return AnimationReader(path, **options)
    return VideoReader(path, **options)
