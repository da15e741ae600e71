"""The one way from pixels to numbers: ``measure`` takes a photograph, a video, or a folder of ``avatar-jax track``.

clip = measure('anna.jpg', size=512, label_mode='raw')
portrait = clip.portrait()                  # of the best frame, with everything that was measured
for measured in measure('anna.mp4', size=512, label_mode='raw'):
    ...                                     # frame by frame, in bounded memory
motion = measure('anna.mp4', size=256, label_mode='raw').motion()
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import MODES
from avatar_jax.io.landmarks import SideFile, side_file
from avatar_jax.track.aligned import NETWORK, measure_aligned
from avatar_jax.track.choose import Chooser
from avatar_jax.track.crops import BACKGROUNDS, check_background
from avatar_jax.track.folder import is_track, measured_folder, tracked_media
from avatar_jax.track.inputs import PICTURES, VIDEOS, FrameSource, PictureFrames, Selected, is_photograph, open_frames
from avatar_jax.track.measured import Measured, MeasuredClip
from avatar_jax.track.tracker import Measures, Tracker

__all__ = [
    'BACKGROUNDS',
    'PICTURES',
    'VIDEOS',
    'Measured',
    'MeasuredClip',
    'Measures',
    'PictureFrames',
    'Selected',
    'Tracker',
    'default_tracker',
    'is_track',
    'measure',
    'open_frames',
    'track_beside',
    'tracked_media',
]


@functools.cache
def default_tracker() -> Tracker:
    """The tracker that is used where none is given: the project's own, with the procedural head model."""
    return Tracker()


def measure(
    path: str | os.PathLike | FrameSource,
    *,
    size: int,
    label_mode: str,
    background: str = 'white',
    aligned: bool = False,
    landmarks: str | os.PathLike | None = None,
    face: str | int | Chooser | None = None,
    frames: int | None = None,
    masked: bool = True,
    tracker: Measures | None = None,
) -> MeasuredClip:
    """Aligns and measures one person's face in a photograph or in all frames of a clip.

    Args:
        path: a picture, a video, a folder that ``avatar-jax track`` wrote, or frames (``track.inputs``).
        size: side of the aligned pictures in pixels.
        label_mode: how the camera labels are normalised (``faces.camera_labels.MODES``): the weights that will read
            them know it (``label_mode`` of their configuration).
        background: 'white' or 'black' behind the person, or 'keep' (black beyond the edges of the photograph).
        aligned: the picture is an aligned crop already (square): it is only resized, and its camera is that of five
            points; see ``track.aligned``.
        landmarks: file with 5, 68, 98 or 478 points of every frame; 'network' takes no file; None looks for one beside
            the picture or video, then takes the network.
        face: which of several faces: 'size' (the largest), a number (1 is the largest), or a picture of the person;
            None takes the largest of a photograph if it is clearly that, of a video in any case.
        frames: only so many from the first one on.
        masked: give the mask of the person also where the background is kept; without it the mask covers the picture.
        tracker: networks, head model and options; None takes ``default_tracker()``.

    Raises:
        UserError: unknown options; the file is missing or damaged, or shows no face; several faces of one size and no
            ``face``, no such face; landmarks that are not of this picture.
    """
    if label_mode not in MODES:
        raise UserError(f"label mode '{label_mode}': choose one of {', '.join(MODES)}")
    if size < 16:
        raise UserError(f'size {size}: the crop needs at least 16 pixels')
    if frames is not None and frames < 1:
        raise UserError(f'frames {frames}: must be at least 1')
    check_background(background)
    if isinstance(face, str) and face.isdigit():
        face = int(face)
    named = isinstance(path, (str, os.PathLike))
    if named and Path(path).is_dir():
        return _folder(path, size, label_mode, background, aligned, landmarks, face, frames)
    if aligned:
        if not named:
            raise UserError(f'{path.path}: aligned pictures are given as files')
        options = {'size': size, 'label_mode': label_mode, 'background': background}
        make = default_tracker if tracker is None else lambda: tracker
        return measure_aligned(path, **options, face=face, landmarks=landmarks, tracker=make)
    source = open_frames(path) if named else path
    beside = side_file(path) if landmarks is None and named else SideFile()
    if frames is not None and not is_photograph(source):
        source = Selected(source, np.arange(frames))
    options = {
        'size': size,
        'label_mode': label_mode,
        'background': background,
        'face': face,
        'masked': masked,
    }
    file = None if landmarks == NETWORK else landmarks
    return track_beside(default_tracker() if tracker is None else tracker, source, beside, file, **options)


def track_beside(
    tracker: Measures, source: FrameSource, beside: SideFile, landmarks: str | os.PathLike | None = None, **options: Any
) -> MeasuredClip:
    """What a tracker measures with the landmark file beside a picture or video, without it where it was only guessed
    and does not fit; the clip's ``warnings`` say what was ignored.

    Args:
        source: frames. landmarks: a file that was named; the one beside does not count then.
        options: of the tracker.
    """
    if landmarks is not None or beside.path is None:
        clip = tracker(source, landmarks=landmarks, **options)
    else:
        try:
            clip = tracker(source, landmarks=beside.path, **options)
            if beside.guessed and not np.any(clip.found):
                raise UserError('its points do not lie on the picture')
        except UserError as error:
            if not beside.guessed:
                raise
            reason = str(error).removeprefix(f'{beside.path}: ').removeprefix(f'{source.path}: ')
            beside = beside.ignored(reason)
            clip = tracker(source, landmarks=None, **options)
    return dataclasses.replace(clip, warnings=(*clip.warnings, *beside.notes)) if beside.notes else clip


def _folder(
    path: Any, size: int, label_mode: str, background: str, aligned: bool, landmarks: Any, face: Any, frames: Any
) -> MeasuredClip:
    if not is_track(path):
        raise UserError(
            f'{path}: is a folder, and not one that avatar-jax track wrote; give a picture, a video, or such a folder'
        )
    given = {'aligned': aligned, 'landmarks': landmarks, 'face': face, 'frames': frames}
    for name, value in given.items():
        if value not in (None, False):
            raise UserError(f'{path}: was tracked already, so {name} says nothing about it; leave it out')
    return measured_folder(path, size=size, label_mode=label_mode, background=background)
