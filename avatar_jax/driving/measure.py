"""The seam to tracking: from the frames of a video, a folder of pictures or one picture to coefficients and crops.

A *frame source* can be iterated (several times), gives ``VideoFrame`` objects and has ``fps``, ``num_frames`` (or None)
and ``path``; ``io.video.VideoReader`` is one, ``PictureFrames`` another. A *tracker* is called with a frame source and
gives a ``Measured``. ``default_tracker`` is the one that commands use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.video import VideoFrame
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.types import Motion

_UNEVEN = 0.5  # of the time between frames: more is resampled

OnPicture = Callable[[int, np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class Measured:
    """What a tracker found in N frames.

    Attributes:
        coefficients: [N, 257] in the layout of ``ops.coefficients``, numbers of ``basis``; zeros where not measured.
        labels: [N, 25] camera labels of the crops, raw (the head's pose, see ``faces.camera_labels``).
        landmarks: [N, 68, 2] pixels of the crop, y downwards.
        found: [N] bool, a face was found; other frames are interpolated or held.
        fps: frames per second.
        basis: name of the coefficient basis.
        parts: what was measured: of 'pose', 'expression', 'identity', 'texture', 'landmarks'.
        start: time of the first frame in the file, seconds.
        notes: what was done, one phrase each.
        segment: [N] number of the shot or person, or None for one throughout.
        matrices: [N, 2, 3] from pixels of the input to pixels of the crop (integers at pixel centres), or None.
        times: [N] seconds in the file, or None for evenly spaced frames.
    """

    coefficients: np.ndarray
    labels: np.ndarray
    landmarks: np.ndarray
    found: np.ndarray
    fps: float
    basis: str
    parts: tuple[str, ...]
    start: float = 0.0
    notes: tuple[str, ...] = field(default=())
    segment: np.ndarray | None = None
    matrices: np.ndarray | None = None
    times: np.ndarray | None = None

    def motion(self, source: str = '') -> Motion:
        """The movement alone, of all frames, at an even rate: where time stamps are uneven, interpolated between
        them.
        """
        c = np.asarray(self.coefficients, np.float32)
        rows = np.concatenate([c[:, SLICES[k]] for k in ('exp', 'angle', 'trans')], axis=1)
        if self.times is not None:
            rows = evenly(rows, np.asarray(self.times, np.float64), float(self.fps))
        return Motion(rows[:, :64], rows[:, 64:67], rows[:, 67:70], float(self.fps), self.basis, source)


def evenly(rows: np.ndarray, times: np.ndarray, fps: float) -> np.ndarray:
    """[N, K] rows at increasing ``times`` brought to ``fps`` rows per second; as they are where they are even
    already.
    """
    if len(rows) < 2 or np.abs(times - times[0] - np.arange(len(times)) / fps).max() < _UNEVEN / fps:
        return rows
    wanted = times[0] + np.arange(1 + int(np.floor((times[-1] - times[0]) * fps + 0.01))) / fps
    return np.stack([np.interp(wanted, times, column) for column in rows.T], axis=1).astype(rows.dtype)


class Tracker(Protocol):
    """Finds one face in the frames of a clip.

    Attributes:
        name: of the method and its version, stored with what it measured.
        basis: of its coefficients.
        parts: what it measures, see ``Measured``.
    """

    name: str
    basis: str
    parts: tuple[str, ...]

    def __call__(self, frames: Any, size: int, on_picture: OnPicture | None = None) -> Measured:
        """Tracks a clip.

        Args:
            frames: a frame source.
            size: side of the crops that ``landmarks`` refer to.
            on_picture: called with (number, crop [size,size,3] uint8, mask [size,size] uint8) for each frame in order.

        Raises:
            UserError: the frames cannot be read, or no face was found in any of them.
        """


class PictureFrames:
    """Picture files as the frames of a clip, in the given order.

    Args:
        paths: the files.
        fps: frames per second.
        path: what the clip is called in messages; the first file's folder by default.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], fps: float = 25.0, path: str | os.PathLike | None = None):
        if not paths:
            raise UserError(f'{path}: holds no pictures')
        self.paths = [Path(p) for p in paths]
        self.path = Path(path) if path is not None else self.paths[0] if len(paths) == 1 else self.paths[0].parent
        self.fps, self.num_frames = float(fps), len(self.paths)

    def __iter__(self) -> Iterator[VideoFrame]:
        from avatar_jax.io.images import read_image

        for i, path in enumerate(self.paths):
            yield VideoFrame(i, i / self.fps, read_image(path).pixels)


class Selected:
    """Some frames of another source: the numbers in ``indices`` (sorted), as a clip of ``fps`` frames per second."""

    def __init__(self, frames: Any, indices: np.ndarray, fps: float):
        self.frames, self.indices, self.fps = frames, np.asarray(indices), float(fps)
        self.path, self.num_frames = frames.path, len(self.indices)

    def __iter__(self) -> Iterator[VideoFrame]:
        wanted, position = self.indices, 0
        for frame in self.frames:
            while position < len(wanted) and wanted[position] == frame.index:
                yield VideoFrame(position, frame.time, frame.pixels)
                position += 1
            if position == len(wanted):
                return


def open_frames(path: str | os.PathLike) -> Any:
    """The frame source of a video or of one picture.

    Raises:
        UserError: the file is missing, damaged, or neither.
    """
    from avatar_jax.io import kinds
    from avatar_jax.io.animation import open_video
    from avatar_jax.io.inputs import input_file

    path = input_file(path)
    return PictureFrames([path]) if kinds.kind_of(path) == kinds.PICTURE else open_video(path)


def mean_face_landmarks(labels: np.ndarray, size: int) -> np.ndarray:
    """[N, 68, 2] pixels at which the mean face's landmarks appear to cameras ``labels`` [N, 25]."""
    from avatar_jax.procedural import ProceduralHead, to_world

    head = ProceduralHead()
    world = to_world(np.asarray(head.landmarks(np.zeros(80, np.float32), np.zeros(64, np.float32))))
    pose = np.asarray(labels, np.float64)[:, :16].reshape(-1, 4, 4)
    seen = np.einsum('nij,npi->npj', pose[:, :3, :3], world[None] - pose[:, None, :3, 3])
    focal, centre = np.asarray(labels)[:, None, [16]], np.asarray(labels)[:, None][..., [18, 21]]
    return ((seen[..., :2] / seen[..., 2:] * focal + centre) * size).astype(np.float32)


def default_tracker(face: str = 'size') -> Tracker:
    """The tracker that commands use, the project's own.

    Args:
        face: which of several, see ``face_tracker.FaceTracker``.
    """
    from avatar_jax.driving.face_tracker import FaceTracker

    return FaceTracker(face=face)
