"""Portraits, motions and cameras as a model wants them: what ``import avatar_jax`` offers for files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.driving.cameras import camera_labels
from avatar_jax.driving.reading import read_request
from avatar_jax.driving.request import Request
from avatar_jax.driving.retarget import retarget
from avatar_jax.errors import UserError
from avatar_jax.faces.conventions import background_of
from avatar_jax.io import kinds
from avatar_jax.io.kinds import need_picture
from avatar_jax.io.sound import has_sound
from avatar_jax.methods.base import Source
from avatar_jax.track.measure import Measured, MeasuredClip, is_track, measure, tracked_media
from avatar_jax.types import Avatar, Config, Motion, Portrait

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model


def read_portraits(files: Sequence[str | os.PathLike], model: Model, **options: Any) -> list[Portrait]:
    """Photographs, aligned crops or folders of ``avatar-jax track``, measured and cut as a model's data were.

    Args:
        files: one for each portrait.
        model: whose picture size and camera labels are used.
        options: of ``track.measure.measure``: ``aligned``, ``face``, ``landmarks``, and ``background``: 'weights'
            (default: that of the model's data), 'white', 'black' or 'keep'.

    Raises:
        UserError: a file cannot be used; no face, or several, in a picture.
    """
    options.setdefault('background', 'weights')
    return [portrait_of(measured_as(file, model.config, **options), model.config)[0] for file in files]


def measured_as(file: str | os.PathLike, config: Config, *, background: str = 'weights', **options: Any) -> Measured:
    """What is measured on a picture, or on the best frame of a clip, for weights of this configuration.

    Args:
        config: of a model: its picture size, camera labels, and what is behind heads (``background='weights'``).
        options: of ``track.measure.measure``.
    """
    if not os.path.isdir(file):
        need_picture(file)
    behind = background_of(config, background)
    return measure(file, size=config.img_resolution, label_mode=config.label_mode, background=behind, **options).best()


def portrait_of(measured: Measured, config: Config) -> tuple[Portrait, tuple[str, ...]]:
    """A measured picture as a ``Portrait`` in the model's basis, and what could not be brought there.

    Expressions are moved over as a driver's are; shapes mean nothing in another basis and are left out.
    """
    portrait, basis = measured.portrait(), config.basis
    if not portrait.basis or portrait.basis == basis:
        return portrait, ()
    bare = portrait.replace(expression=None, shape=None, basis=basis)
    if portrait.expression is None:
        return bare, ()
    try:
        return bare.replace(expression=retarget(measured.motion(), basis).expression[0]), ()
    except UserError as error:
        return bare, (f'its expression is taken as neutral: it was measured in {portrait.basis!r}; {error}',)


def expression_source(measured: Measured, portrait: Portrait, own: Motion | None = None) -> str:
    """Where a portrait's expression is from, for reports. ``own``: the motion that was given for it."""
    if own is not None:
        return 'from the motion file'
    if portrait.expression is None:
        return 'neutral (not measured)'
    return f'measured ({measured.basis})' + ('' if measured.basis == portrait.basis else f', moved to {portrait.basis}')


class ClipPortraits:
    """The frames of a measured clip in which a face was found, as portraits; read again each time they are asked for.

    Of a clip with cuts or several people it is the longest shot, of one person. Iterating reads the clip once, in
    bounded memory; single frames are read by themselves.

    Attributes:
        numbers: of the frames. shots: how many there are in the clip.
    """

    def __init__(self, clip: MeasuredClip, config: Config):
        self.clip, self.config = clip, config
        usable = np.asarray(clip.found) if clip.valid is None else np.asarray(clip.found) & np.asarray(clip.valid)
        shots = np.zeros(len(usable), int) if clip.segment is None else np.asarray(clip.segment)
        names, counts = np.unique(shots[usable], return_counts=True)
        self.shots = len(names)
        self.numbers = np.flatnonzero(usable & (shots == names[counts.argmax()] if len(names) else False))

    def best(self) -> Measured:
        """The frame that would make the best single portrait."""
        mine = np.isin(np.arange(len(self.clip)), self.numbers)
        return replace(self.clip, found=mine).best()

    @property
    def times(self) -> np.ndarray:
        """[T] moments of the frames in the file, seconds."""
        if self.clip.times is None:
            return self.numbers / float(self.clip.fps)
        return np.asarray(self.clip.times, np.float64)[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Portrait:
        return portrait_of(self.clip.frame(int(self.numbers[index])), self.config)[0]

    def __iter__(self) -> Iterator[Portrait]:
        for measured in self.clip.frames([int(n) for n in self.numbers]):
            yield portrait_of(measured, self.config)[0]


def is_clip(file: str | os.PathLike) -> bool:
    """Whether a file is a video or an animation, or a folder that ``avatar-jax track`` wrote of one."""
    if os.path.isdir(file):
        return is_track(file) and tracked_media(file)[0] is not None
    return os.path.isfile(file) and kinds.kind_of(file) == kinds.VIDEO


def read_clip(file: str | os.PathLike, config: Config, *, background: str = 'weights', **options: Any) -> Source:
    """A video, or a folder that ``avatar-jax track`` wrote of one, as the ``Source`` of a personal avatar.

    Raises:
        UserError: it cannot be used, shows no face, or is a single picture.
    """
    behind = background_of(config, background)
    clip = measure(file, size=config.img_resolution, label_mode=config.label_mode, background=behind, **options)
    portraits = ClipPortraits(clip, config)
    if len(portraits) < 2:
        raise UserError(f'{file}: a face was found in {len(portraits)} frames; give a video of one person')
    media = tracked_media(file)[0] if os.path.isdir(file) else Path(file)
    sound = '' if media is None or not has_sound(media) else str(media)
    notes, times = [], portraits.times
    if portraits.shots > 1:
        notes.append(
            f'the longest of {portraits.shots} shots (cuts, or other people) is used: {len(portraits)} of {len(clip)} '
            'frames'
        )
    elif len(portraits) < len(clip):
        notes.append(f'{len(clip) - len(portraits)} of {len(clip)} frames show no face and are left out')
    return Source(
        portraits, 'video', Path(file).stem, float(clip.fps), sound, float(times[0]), times=times, notes=tuple(notes)
    )


def read_motion(driver: str | os.PathLike, model: Model, avatar: Avatar | None = None, **options: Any) -> Motion:
    """What drives an avatar, in the model's basis.

    Args:
        driver: a motion file, coefficients of another program, a video, a picture, or ``speech:SEED[:FRAMES]``.
        avatar: whose pose relative motions start from.
        options: of ``driving.request.Request``: ``sliders``, ``plan``, ``face``, ``fps``, ``frames``.
    """

    def no_clips(spec: str) -> Motion:
        raise UserError(f'{spec}: no such file')

    avatar = Avatar({}) if avatar is None else avatar
    return read_request(Request(os.fspath(driver), **options), model.config.basis, avatar, no_clips).motion


def cameras(model: Model, motion: Motion, kind: str = 'track', avatar: Avatar | None = None) -> np.ndarray:
    """Camera labels [T,25] for a motion: 'track' follows the head, 'orbit' circles around it, 'fixed' stands still."""
    return camera_labels(kind, model.config, Avatar({}) if avatar is None else avatar, motion)
