"""Reading what ``avatar-jax track`` wrote: as a measured clip, or as arrays."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.images import read_image
from avatar_jax.io.inputs import file_sha256, input_file
from avatar_jax.io.video import VideoFrame
from avatar_jax.track.crops import COLOURS, check_background
from avatar_jax.track.measured import MeasuredClip, Shown
from avatar_jax.track.output import ARRAYS, CROPS, FORMAT, MASKS, REPORT


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


def measured_folder(path: str | os.PathLike, *, size: int, label_mode: str, background: str = 'white') -> MeasuredClip:
    """A track folder as it was measured; pictures are read when they are asked for.

    Args:
        path: track folder. size: side of the pictures. label_mode: of the camera labels, which are made anew.
        background: one of ``crops.BACKGROUNDS``, by the stored head masks; 'keep' leaves the crops alone.

    Raises:
        UserError: not a track, damaged files; later, where pictures are asked for: no crops.
    """
    check_background(background)
    path, arrays = Path(path), read_track(path)
    angle, translation = arrays['angle'], arrays['translation']
    side = _crop_size(path, arrays)
    scale = size / side if side else 1.0
    score = arrays['quality']
    return MeasuredClip(
        path=path,
        coefficients=arrays['coefficients'],
        labels=label_from_pose(angle, translation, label_mode).astype(np.float32),
        landmarks=((arrays['landmarks_crop'] + 0.5) * scale - 0.5).astype(np.float32),
        found=arrays['found'] & arrays['valid'],
        fps=_fps(arrays),
        basis=str(arrays['basis']),
        parts=('pose', 'expression', 'identity', 'landmarks'),
        pictures=_pictures(path, arrays['valid'], size, background),
        label_mode=label_mode,
        valid=arrays['valid'],
        segment=arrays['segment'],
        times=arrays['time'],
        quality={'tracking': score, 'score': score},
        sentences=lambda frame: (f'tracked with quality {score[frame]:.2f}',),
        fitted=arrays['fitted_landmarks'],
        sha256=file_sha256(path / ARRAYS),
    )


def _fps(arrays: dict[str, np.ndarray]) -> float:
    """Of the clip; folders of earlier versions only have time stamps."""
    if 'fps' in arrays:
        return float(arrays['fps'])
    times = np.asarray(arrays['time'], np.float64)
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / usual if usual > 0 else 25.0


def _crop_file(path: Path, frame: int) -> Path | None:
    names = (path / CROPS / f'{frame:06d}{ending}' for ending in ('.png', '.jpg'))
    return next((file for file in names if file.is_file()), None)


def _crop_size(path: Path, arrays: dict[str, np.ndarray]) -> int | None:
    """Side of the crops that landmarks refer to; None where folders of earlier versions have no crop to tell it."""
    from PIL import Image

    if 'crop_size' in arrays:
        return int(arrays['crop_size'])
    for file in sorted((path / CROPS).glob('*')):
        with contextlib.suppress(OSError, ValueError), Image.open(file) as image:
            return image.size[0]
    return None


def _pictures(path: Path, valid: np.ndarray, size: int, background: str) -> Callable[..., Iterator[Shown]]:
    def pictures(wanted: Sequence[int] | None, on_frame: Callable[[Any], None] | None) -> Iterator[Shown]:
        from PIL import Image

        for frame in range(len(valid)) if wanted is None else wanted:
            if not valid[frame]:
                continue
            file = _crop_file(path, frame)
            if file is None:
                raise UserError(f'{path}: has no crop of frame {frame}; track the input again without --crops none')
            picture = read_image(file, min_side=16).pixels
            if on_frame is not None:
                on_frame(VideoFrame(frame, 0.0, picture))
            image = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))
            mask, notes = np.ones((size, size), np.float32), (f'frame {frame} of {len(valid)} from {path.name}',)
            mask_file = path / MASKS / f'{frame:06d}.png'
            if mask_file.is_file():
                alpha = Image.fromarray(read_image(mask_file, min_side=16).pixels[..., 0])
                mask = np.asarray(alpha.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
                if background != 'keep':
                    colour = COLOURS[background]
                    image = np.rint(colour + mask[..., None] * (image.astype(np.float32) - colour)).astype(np.uint8)
                    notes += (f'background made {background} by the stored head mask, approximate',)
            yield Shown(frame, image, mask, file_sha256(file), notes)

    return pictures


def tracked_media(path: str | os.PathLike) -> tuple[Path | None, float]:
    """The video that a folder was tracked from, if it is still where it was, and the time of the first frame of the
    longest shot in it, seconds.
    """
    path, media, start = Path(path), None, 0.0
    try:
        report = json.loads((path / REPORT).read_text(encoding='utf-8'))
        first = int(report['motion_files'][0]['frames'][0])
        with np.load(path / ARRAYS, allow_pickle=False) as z:
            start = float(z['time'][first])
        media = Path(report['file'])
        if not media.is_file() or file_sha256(media) != report['sha256']:
            media = None
    except (OSError, ValueError, KeyError, IndexError, TypeError, UserError):
        media = None
    return media, start
