"""Pictures that are aligned crops already: taken as they are, with the camera that five points of the mean face give.

Avatars made so far rest on these numbers, so five points come from a landmark file beside the picture, else from the
cascade's eyes and the colours of lips and nostrils (``track.five_points``), and nothing else is measured. Given
``landmarks='network'``, a picture is measured like any photograph, only not moved: 68 landmarks, expression, shape, and
a camera that is several times as accurate (docs/tracking.md).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import five_points
from avatar_jax.faces.camera_labels import label_from_pose, unknown_label
from avatar_jax.io.images import Picture, read_image
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.kinds import need_picture
from avatar_jax.io.landmarks import SideFile, read_landmarks, side_file
from avatar_jax.track.camera import to_translation
from avatar_jax.track.choose import Chooser
from avatar_jax.track.crops import Still, still_picture
from avatar_jax.track.detect import detect_faces
from avatar_jax.track.five_points import FivePoints, estimate
from avatar_jax.track.inputs import PictureFrames, StillFrame
from avatar_jax.track.mean_face import crop_label, crop_pose
from avatar_jax.track.measured import MeasuredClip, record
from avatar_jax.track.placing import crop_poses

NETWORK = 'network'
_FILE_SIGMA = 0.02  # decimetres; accuracy that landmark files are credited with


def measure_aligned(
    path: str | os.PathLike,
    *,
    size: int,
    label_mode: str,
    background: str,
    face: str | int | None,
    landmarks: str | os.PathLike | None,
    tracker: Callable[[], Any],
) -> MeasuredClip:
    """A clip of one aligned picture; arguments and errors as ``track.measure.measure``.

    Args:
        tracker: called for the tracker where ``landmarks`` is 'network'.
    """
    need_picture(path)
    picture = read_image(path)
    width, height = picture.size
    if width != height:
        raise UserError(
            f'{picture.path}: an aligned frame is square, this picture is {width}x{height}; leave --aligned out'
        )
    if landmarks == NETWORK:
        return _by_network(picture, size, label_mode, background, face, tracker())
    warnings: list[str] = []
    found, marks = _find_points(picture, face, landmarks, warnings, tracker)
    still = _whole(picture, size, None if found is None else found.points)
    angle = translation = None
    if found is None:
        label = unknown_label(label_mode)
        warnings.append('no face found in the aligned frame: the camera is taken as frontal')
    else:
        pose = crop_pose(still.crop_points, size, found.sigma)
        label = crop_label(pose, label_mode)
        angle, translation = pose.angle.astype(np.float32), pose.trans.astype(np.float32)
    parts = () if found is None else ('pose',) if marks is None else ('pose', 'landmarks')
    return MeasuredClip(
        path=picture.path,
        coefficients=record(angle=angle, translation=translation),
        labels=label[None],
        landmarks=np.zeros((1, 68, 2), np.float32) if marks is None else _scaled(marks, picture, size)[None],
        found=np.ones(1, bool),
        fps=25.0,
        basis='',
        parts=parts,
        pictures=_pictures(picture, still, background),
        label_mode=label_mode,
        points=None if found is None else still.crop_points[None],
        notes=picture.notes,
        warnings=tuple(warnings),
        sha256=file_sha256(picture.path),
    )


def _whole(picture: Picture, size: int, five: np.ndarray | None) -> Still:
    side = picture.size[0]
    return Still(
        rgb=picture.pixels,
        shown=np.ones((side, side), np.float32),
        opacity=None if picture.alpha is None else picture.alpha / np.float32(255),
        points=five,
        box=(0, 0, side, side),
        size=size,
    )


def _scaled(points: np.ndarray, picture: Picture, size: int) -> np.ndarray:
    """Pixels of the file as pixels of the result."""
    return ((points + 0.5) * (size / picture.size[0]) - 0.5).astype(np.float32)


def _pictures(picture: Picture, still: Still, background: str) -> Any:
    def pictures(wanted: Sequence[int] | None, on_frame: Callable[[Any], None] | None):
        if on_frame is not None:
            on_frame(StillFrame(0, 0.0, picture.pixels, picture.alpha, picture.notes))
        yield still_picture(still, background, masked=False)

    return pictures


def _find_points(
    picture: Picture, face: str | int | None, landmarks: Any, warnings: list[str], tracker: Callable[[], Any]
) -> tuple[FivePoints | None, np.ndarray | None]:
    """Five points from a file, else by the cascade and colours; and 68 where the file has them."""
    beside = SideFile() if landmarks is not None else side_file(picture.path)
    file = landmarks if landmarks is not None else beside.path
    if beside.guessed and not _fits(file, picture):
        beside, file = beside.ignored('its points do not lie on the picture'), None
    warnings += beside.notes
    if file is not None:
        marks = read_landmarks(file)
        points = five_points(marks).astype(np.float64)
        if any('reduced' in note for note in picture.notes):
            raise UserError(f'{file}: belongs to a picture that is too large to use whole; reduce both or leave it out')
        center = points.mean(0)
        if not ((center >= 0) & (center < picture.size)).all() or np.ptp(points, axis=0).min() < 2:
            raise UserError(f'{file}: the points do not lie on the picture {picture.path.name}; check the pairing')
        found = FivePoints(points, np.full((5, 2), _FILE_SIGMA), 'file', ('eyes', 'nose', 'mouth'))
        return found, marks if len(marks) == 68 else None
    faces = detect_faces(picture.pixels)
    if not faces:
        return None, None
    try:
        # Only a person's picture needs the network, to compare.
        network = tracker().network if isinstance(face, (str, os.PathLike)) and face != 'size' else None
        chosen, said = Chooser(face, network)(picture.pixels, faces)
    except UserError as error:
        raise UserError(f'{picture.path}: {error}') from error
    if chosen is None:
        raise UserError(f'{picture.path}: {said}')
    if said:
        warnings.append(said)
    return estimate(picture.pixels, chosen), None


def _by_network(
    picture: Picture, size: int, label_mode: str, background: str, face: str | int | None, tracker: Any
) -> MeasuredClip:
    """The picture measured like a photograph, with everything said of the whole picture and not of a crop of it."""
    clip = tracker(PictureFrames([picture.path]), size=size, label_mode=label_mode, face=face)
    track = clip.track
    landmark_model, scale = tracker.landmark_model, size / picture.size[0]
    points3d = np.asarray(
        landmark_model.points(track.identity[track.segment[0]], track.expression[0][: landmark_model.num_expression])
    )
    pose = crop_poses(points3d[None], (track.fitted + 0.5) * scale, track.pose, size)
    angle, translation = (np.asarray(v, np.float32) for v in to_translation(pose))
    landmarks = _scaled(track.landmarks[0], picture, size)[None]
    still = _whole(picture, size, five_points(track.landmarks[0]).astype(np.float64))
    coefficients = record(clip.coefficients[0, :80], track.expression[0], angle[0], translation[0])
    return dataclasses.replace(
        clip,
        coefficients=coefficients,
        labels=label_from_pose(angle, translation, label_mode).astype(np.float32),
        landmarks=landmarks,
        matrices=np.array([[[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]]]),
        pictures=_pictures(picture, still, background),
        quality=None,
        fitted=None,
        track=None,
    )


def _fits(file: Path, picture: Picture) -> bool:
    """Whether a file that was only guessed from its name holds landmarks of this picture."""
    try:
        center = read_landmarks(file).mean(0)
    except UserError:
        return False
    return bool(((center >= 0) & (center < picture.size)).all())
