"""Reading what ``avatar-jax track`` wrote: as a portrait for inversion, or as arrays."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import five_points
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.images import read_image
from avatar_jax.io.inputs import file_sha256, input_file
from avatar_jax.photo.pose import HeadPose
from avatar_jax.photo.prepare import Prepared
from avatar_jax.photo.quality import Quality
from avatar_jax.track.output import ARRAYS, CROPS, FORMAT, MASKS
from avatar_jax.track.quality import grade
from avatar_jax.types import Motion


def is_track(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a folder that the tracker wrote."""
    return Path(path).is_dir() and (Path(path) / ARRAYS).is_file()


def read_track(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a track folder (or of its ``track.npz``): see docs/tracking.md.

    Raises:
      UserError: missing, damaged, or not a track.
    """
    path = Path(path)
    path = input_file(path / ARRAYS if path.is_dir() else path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: is damaged, or was not written by avatar-jax track; track the input again') from error
    if str(arrays.get('format')) != FORMAT:
        raise UserError(f'{path}: was not written by this version of avatar-jax track; track the input again')
    return arrays


def best_frame(arrays: dict[str, np.ndarray]) -> int:
    """The measured frame that makes the best portrait: good quality, frontal, mouth near its usual opening."""
    score = arrays['quality'] * np.cos(np.clip(2 * arrays['angle'][:, 1], -1.5, 1.5))
    points = arrays['fitted_landmarks']
    opening = np.linalg.norm(points[:, 62] - points[:, 66], axis=-1) / np.maximum(np.ptp(points[..., 1], axis=1), 1e-6)
    score = score - np.maximum(opening - np.median(opening), 0)
    return int(np.argmax(np.where(arrays['found'], score, -np.inf)))


def prepared(
    path: str | os.PathLike, *, size: int, label_mode: str, background: str = 'white', frame: int | None = None
) -> tuple[Prepared, Motion]:
    """A frame of a track as inversion reads it, and its own coefficients as a motion of one frame.

    Args:
      path: track folder. size: side of the picture. label_mode: of the camera label.
      background: 'white' lays the crop over white by the head mask, 'keep' leaves it.
      frame: which; the best by default.

    Raises:
      UserError: no crops, no such frame, damaged files.
    """
    from PIL import Image

    path, arrays = Path(path), read_track(path)
    chosen = best_frame(arrays) if frame is None else frame
    if not 0 <= chosen < len(arrays['found']) or not arrays['valid'][chosen]:
        raise UserError(f'{path}: has no face in frame {chosen}')
    file = next((f for f in (path / CROPS / f'{chosen:06d}{s}' for s in ('.png', '.jpg')) if f.is_file()), None)
    if file is None:
        raise UserError(f'{path}: has no crop of frame {chosen}; track the input again without --crops none')
    picture = read_image(file, min_side=16).pixels
    mask = np.ones((size, size), np.float32)
    image = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))
    notes = [f'frame {chosen} of {len(arrays["found"])} from {path.name}']
    mask_file = path / MASKS / f'{chosen:06d}.png'
    if mask_file.is_file():
        alpha = Image.fromarray(read_image(mask_file, min_side=16).pixels[..., 0])
        mask = np.asarray(alpha.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
        if background == 'white':
            image = np.rint(255 + mask[..., None] * (image.astype(np.float32) - 255)).astype(np.uint8)
            notes.append("background made white by the network's head mask, approximate")
    angle, translation = arrays['angle'][chosen], arrays['translation'][chosen]
    label = label_from_pose(angle, translation, label_mode).astype(np.float32)
    points = (five_points(arrays['landmarks_crop'][chosen]) + 0.5) * (size / picture.shape[0]) - 0.5
    score = float(arrays['quality'][chosen])
    quality = Quality(score, {'tracking': score}, (f'tracked with quality {score:.2f}',))
    warnings = () if grade(score) != 'poor' else (f'frame {chosen} was tracked poorly (quality {score:.2f})',)
    pose = HeadPose(angle.astype(np.float64), translation.astype(np.float64), float('nan'))
    own = Motion(
        arrays['expression'][chosen][None],
        angle[None],
        translation[None],
        25.0,
        str(arrays['basis']),
        f'frame {chosen} of {path.name}',
    )
    return Prepared(image, mask, label, points, pose, quality, tuple(notes), warnings, path, file_sha256(file)), own
