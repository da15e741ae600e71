"""From a picture file to what inversion needs: an aligned crop, a camera label, and a report of how good they are."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import (
    EG3D_RESCALE,
    EG3D_SIZE,
    align,
    eg3d_crop_box,
    five_points,
)
from avatar_jax.faces.camera_labels import canonical_label
from avatar_jax.io.images import Picture, read_image, to_float
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.kinds import need_picture
from avatar_jax.io.landmarks import SideFile, read_landmarks, side_file
from avatar_jax.photo.background import separate
from avatar_jax.photo.detect import Face, detect_faces
from avatar_jax.photo.points import FivePoints, estimate
from avatar_jax.photo.pose import HeadPose, crop_label, crop_pose
from avatar_jax.photo.quality import LIMIT, Quality, assess
from avatar_jax.types import Camera, Portrait

BACKGROUNDS = ('white', 'keep')
_FILE_SIGMA = 0.02  # decimetres; accuracy that landmark files are credited with
_SAME_SIZE = 0.8  # two faces whose sizes differ by less cannot be told apart by size


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A photograph made ready for inversion.

    Attributes:
        image: [S, S, 3] uint8, the aligned crop.
        mask: [S, S] float32, 1 on the person (all of the photograph where nothing was separated).
        label: [25] camera label of the crop.
        points: [5, 2] landmarks in the crop, pixels, y down; None for an aligned frame without any.
        pose: the head pose behind the label; None with the canonical label.
        quality: how good the alignment is; None for frames that came aligned.
        notes: what was done, one phrase each.
        warnings: what the user should look at, one line each.
        path: the file; sha256: its bytes.
    """

    image: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    points: np.ndarray | None
    pose: HeadPose | None
    quality: Quality | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    path: Path
    sha256: str

    def portrait(self) -> Portrait:
        """The ``Portrait`` that methods read."""
        return Portrait(
            image=to_float(self.image),
            camera=Camera.from_label(self.label),
            angle=None if self.pose is None else self.pose.angle.astype(np.float32),
            translation=None if self.pose is None else self.pose.trans.astype(np.float32),
            mask=self.mask,
            source=self.path.name,
        )

    def report(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        record: dict[str, Any] = {
            'file': str(self.path),
            'sha256': self.sha256,
            'camera_label': self.label,
            'landmarks': self.points,
            'notes': list(self.notes),
            'warnings': list(self.warnings),
            'limit': LIMIT,
        }
        if self.pose is not None:
            record['head_angle_degrees'] = np.rad2deg(self.pose.angle)
        if self.quality is not None:
            record['alignment'] = {
                'score': self.quality.score,
                'grade': self.quality.grade,
                'parts': self.quality.parts,
                'sentences': list(self.quality.sentences),
            }
        return record


def prepare(
    path: str | os.PathLike,
    *,
    size: int = 512,
    aligned: bool = False,
    background: str = 'white',
    face: int | None = None,
    landmarks: str | os.PathLike | None = None,
    label_mode: str = 'orig',
) -> Prepared:
    """Reads, aligns and labels one portrait.

    Args:
        path: picture file.
        size: side of the result in pixels.
        aligned: the picture is an EG3D crop already (square); it is only resized.
        background: 'white' replaces the background by white, 'keep' leaves it (black beyond the photograph).
        face: which face to take when there are several, 1 is the largest; None takes the largest if it is clearly so.
        landmarks: file with 5 or 68 points; None looks beside the picture, then uses the detector.
        label_mode: normalisation of the camera, see ``faces.camera_labels.normalise_pose``.

    Raises:
        UserError: unreadable picture, no face, several faces of one size, no such face, landmarks outside the picture.
    """
    if background not in BACKGROUNDS:
        raise UserError(f"background '{background}': choose one of {', '.join(BACKGROUNDS)}")
    if size < 16:
        raise UserError(f'size {size}: the crop needs at least 16 pixels')
    need_picture(path)
    picture = read_image(path)
    warnings: list[str] = []
    found = _find_points(picture, face, landmarks, warnings, required=not aligned)
    frame = _resized(picture, size, found) if aligned else _aligned(picture, size, found)
    points = frame.crop_points
    pose = None if points is None else crop_pose(points, size, found.sigma)
    if pose is None:
        label = canonical_label().astype(np.float32)
        warnings.append('no face found in the aligned frame: the camera is taken as frontal')
    else:
        label = crop_label(pose, label_mode)
    quality = None
    if not aligned:
        quality = assess(found, pose, frame.enlarged, float(1 - frame.cut(frame.shown).mean()))
        if quality.grade == 'poor':
            warnings.append(f'the alignment is poor (score {quality.score:.2f}): {"; ".join(quality.sentences)}')
    image, mask, note = _background(frame, background, warnings)
    notes = (*picture.notes, note) if note else picture.notes
    return Prepared(
        image, mask, label, points, pose, quality, notes, tuple(warnings), picture.path, file_sha256(picture.path)
    )


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A square picture with the head in the middle, and the part of it that is the crop."""

    rgb: np.ndarray  # [T, T, 3] uint8, black where there is no photograph
    shown: np.ndarray  # [T, T] in [0, 1]: photograph
    opacity: np.ndarray | None  # [T, T] in [0, 1]: the file's own transparency
    points: np.ndarray | None  # [5, 2] pixels, y down
    box: tuple[int, int, int, int]  # left, top, right, bottom of the crop
    size: int  # side of the result
    enlarged: float = 1.0  # pixels of the result per pixel of the photograph

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The crop of [T, T] in [0, 1] or [T, T, 3] uint8, at the side of the result."""
        from PIL import Image

        part = image[self.box[1] : self.box[3], self.box[0] : self.box[2]]
        floating = part.dtype != np.uint8
        part = Image.fromarray(np.rint(part * 255).astype(np.uint8) if floating else np.ascontiguousarray(part))
        result = np.asarray(part.resize((self.size, self.size), Image.Resampling.LANCZOS))
        return result.astype(np.float32) / 255 if floating else result

    @property
    def crop_points(self) -> np.ndarray | None:
        """[5, 2] landmarks in the result."""
        if self.points is None:
            return None
        return (self.points - self.box[0] + 0.5) * (self.size / (self.box[2] - self.box[0])) - 0.5


def _find_points(
    picture: Picture, face: int | None, landmarks: Any, warnings: list[str], *, required: bool
) -> FivePoints | None:
    """Landmarks from a file, else from the detector."""
    beside = SideFile() if landmarks is not None else side_file(picture.path)
    file = Path(landmarks) if landmarks is not None else beside.path
    if beside.guessed and not _fits(file, picture):
        beside, file = beside.ignored('its points do not lie on the picture'), None
    warnings += beside.notes
    if file is not None:
        points = five_points(read_landmarks(file)).astype(np.float64)
        if any('reduced' in note for note in picture.notes):
            raise UserError(f'{file}: belongs to a picture that is too large to use whole; reduce both or leave it out')
        center = points.mean(0)
        if not ((center >= 0) & (center < picture.size)).all() or np.ptp(points, axis=0).min() < 2:
            raise UserError(f'{file}: the points do not lie on the picture {picture.path.name}; check the pairing')
        return FivePoints(points, np.full((5, 2), _FILE_SIGMA), 'file', ('eyes', 'nose', 'mouth'))
    faces = detect_faces(picture.pixels)
    if not faces and not required:
        return None
    return estimate(picture.pixels, _choose(picture, faces, face, warnings))


def _fits(file: Path, picture: Picture) -> bool:
    """Whether a file that was only guessed from its name holds landmarks of this picture."""
    try:
        center = read_landmarks(file).mean(0)
    except UserError:
        return False
    return bool(((center >= 0) & (center < picture.size)).all())


def _describe(faces: list[Face]) -> str:
    return ', '.join(f'{i}: {f.size:.0f} px at ({f.center[0]:.0f}, {f.center[1]:.0f})' for i, f in enumerate(faces, 1))


def _choose(picture: Picture, faces: list[Face], index: int | None, warnings: list[str]) -> Face:
    if not faces:
        raise UserError(
            f'{picture.path}: no face found; use a sharper, more frontal picture, or put five landmarks into '
            f'{picture.path.stem}.landmarks5.txt beside it'
        )
    if index is not None:
        if not 1 <= index <= len(faces):
            raise UserError(f'{picture.path}: there is no face {index}; found {_describe(faces)}')
        return faces[index - 1]
    sure = [f for f in faces if f.eyes is not None] or faces  # a "face" without eyes is usually a pattern
    if len(sure) > 1 and sure[1].size > _SAME_SIZE * sure[0].size:
        raise UserError(
            f'{picture.path}: {len(sure)} faces of similar size ({_describe(faces)}); choose one with --face'
        )
    if len(sure) > 1:
        warnings.append(f'{len(sure)} faces, the largest was taken ({_describe(faces)}); choose with --face')
    return sure[0]


def _aligned(picture: Picture, size: int, found: FivePoints) -> _Frame:
    """EG3D's crop of a photograph at any size: five-point alignment to 1024, centre 700, Lanczos."""
    if np.hypot(*(found.points[1] - found.points[0])) < 2:
        raise UserError(f'{picture.path}: the eyes lie on one point; check the landmarks')
    # Alignment treats channels alike: opacity and extent of the photograph travel as further channels.
    extent = np.full(picture.pixels.shape[:2], 255, np.uint8)
    opacity = extent if picture.alpha is None else picture.alpha
    result = align(picture.pixels, found.points, EG3D_SIZE, EG3D_RESCALE)
    extra = align(np.dstack([opacity, extent, extent]), found.points, EG3D_SIZE, EG3D_RESCALE).image / np.float32(255)
    points = np.array(result.landmarks, np.float64)
    points[:, 1] = EG3D_SIZE - 1 - points[:, 1]
    box = eg3d_crop_box()
    return _Frame(
        rgb=result.image,
        shown=extra[..., 1],
        opacity=None if picture.alpha is None else extra[..., 0],
        points=points,
        box=box,
        size=size,
        enlarged=float(result.trans_params[2]) * size / (box[2] - box[0]),
    )


def _resized(picture: Picture, size: int, found: FivePoints | None) -> _Frame:
    """A frame that is aligned already."""
    width, height = picture.size
    if width != height:
        raise UserError(
            f'{picture.path}: an aligned frame is square, this picture is {width}x{height}; leave --aligned out'
        )
    return _Frame(
        rgb=picture.pixels,
        shown=np.ones((width, width), np.float32),
        opacity=None if picture.alpha is None else picture.alpha / np.float32(255),
        points=None if found is None else found.points,
        box=(0, 0, width, width),
        size=size,
        enlarged=size / width,
    )


def _background(frame: _Frame, background: str, warnings: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """(crop over its new background, mask, note)."""
    rgb, shown = frame.cut(frame.rgb), frame.cut(frame.shown)
    own = shown if frame.opacity is None else frame.cut(frame.opacity)
    if background == 'keep':
        return rgb, own, ''
    if frame.opacity is not None:  # read_image laid the picture over white: only what lies beyond it is left to fill
        return _over_white(rgb, shown, shown), own, "background from the file's transparency"
    if frame.points is None:
        return _over_white(rgb, shown, shown), own, ''
    matte = separate(frame.rgb, frame.shown, frame.points)
    if not matte.trusted:
        warnings.append(f'the background could not be separated ({matte.method}) and was kept')
        return _over_white(rgb, shown, shown), own, ''
    alpha = frame.cut(matte.alpha)
    return _over_white(rgb, shown, alpha), alpha, f'background made white: {matte.method}'


def _over_white(rgb: np.ndarray, shown: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lays the crop over white. ``rgb`` fades to black where ``shown`` does, so its colour is ``rgb / shown``."""
    colour = np.minimum(rgb / np.maximum(shown, 1e-3)[..., None], 255.0)
    weight = np.clip(np.minimum(alpha, shown), 0, 1)[..., None]
    return np.rint(colour * weight + 255.0 * (1 - weight)).astype(np.uint8)
