"""A video that ``avatar-jax track`` has measured, as the video of one person: its longest shot, with its sound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar_jax.driving.audio import sound_signal
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.images import read_image
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.sound import has_sound
from avatar_jax.track.folder import read_track
from avatar_jax.track.output import CROPS, MASKS, REPORT
from data_pipelines.one_person.frames import TEST_SHARE, FilePictures, PersonVideo, check_length, last_part
from data_pipelines.one_person.labels import smooth_labels


@dataclass(frozen=True)
class MaskedPictures:
    """Crops in files, laid over white by their head masks when read."""

    paths: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        picture = read_image(self.paths[index], min_side=16).pixels.astype(np.float32)
        mask = read_image(self.masks[index], min_side=16).pixels[..., :1].astype(np.float32) / 255
        return np.rint(255 + mask * (picture - 255)).astype(np.uint8)


def read_tracked(
    folder: str | Path,
    *,
    sound: str | Path | None = None,
    label_mode: str = 'raw',
    label_sigma: float = 0.0,
    background: str = 'keep',
    test_share: float = TEST_SHARE,
) -> PersonVideo:
    """The longest shot of a tracked video.

    Args:
        folder: what ``avatar-jax track`` wrote, with its crops.
        sound: a sound file or DeepSpeech features (``.npy``) that belong to the video; None takes the video's own sound
            where the video is still there, and no sound where it has none.
        label_mode: how cameras are made from the tracked pose (``faces.camera_labels.MODES``).
        label_sigma: smoothing of the labels in time, in frames; 0: none.
        background: 'white' lays crops over white by their masks, 'keep' leaves them.
        test_share: the last part of the shot that training does not see.

    Raises:
        UserError: not such a folder, no crops, a shot of less than five seconds, a sound that cannot be used.
    """
    folder, arrays = Path(folder), read_track(folder)
    rows, notes = _longest_shot(folder, arrays)
    times = np.asarray(arrays['time'][rows], np.float64)
    check_length(str(folder), times)
    paths = _files(folder, rows)
    pictures = _with_background(folder, rows, paths, background)
    labels = label_from_pose(arrays['angle'][rows], arrays['translation'][rows], label_mode)
    if label_sigma:
        labels = smooth_labels(labels, label_sigma)
    signals, features, file = {'coefficients': np.asarray(arrays['expression'][rows], np.float32)}, '', ''
    source = _source(folder) if sound is None else Path(sound)
    if source is not None and (sound is not None or has_sound(source)):
        heard = sound_signal(source, times)
        if heard.covered < len(times):
            notes.append(f'{len(times) - heard.covered} frames lie beyond the end of the sound and are silent')
        signals['sound'], features, file = heard.windows, heard.features, str(source)
        notes += [n for n in heard.notes if not n.startswith('the sound ends')]
    train, test = last_part(len(rows), test_share)
    return PersonVideo(
        name=str(folder),
        pictures=pictures,
        labels=np.asarray(labels, np.float32),
        times=times,
        signals=signals,
        train=train,
        test=test,
        basis=str(arrays['basis']),
        features=features,
        notes=tuple(notes),
        sound=file,
    )


def _longest_shot(folder: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """Frame numbers of the shot (of one person, without cuts) with most measured frames, and what else there was."""
    valid, segment = arrays['valid'], arrays['segment']
    numbers, counts = np.unique(segment[valid], return_counts=True)
    if not len(numbers):
        raise UserError(f'{folder}: no face was found in any frame; give a video that shows one')
    best = numbers[counts.argmax()]
    rows = np.flatnonzero(valid & (segment == best))
    notes = []
    if len(numbers) > 1:
        notes.append(
            f'the longest of {len(numbers)} shots (cuts, or other people) is used: {len(rows)} of {len(valid)} frames'
        )
    return rows, notes


def _files(folder: Path, rows: np.ndarray) -> tuple[Path, ...]:
    out = []
    for i in rows:
        file = next((f for f in (folder / CROPS / f'{i:06d}{s}' for s in ('.png', '.jpg')) if f.is_file()), None)
        if file is None:
            raise UserError(f'{folder}: has no crop of frame {i}; track the video again without --crops none')
        out.append(file)
    return tuple(out)


def _with_background(
    folder: Path, rows: np.ndarray, paths: tuple[Path, ...], background: str
) -> FilePictures | MaskedPictures:
    if background not in ('white', 'keep'):
        raise UserError(f"background {background!r}: use 'white' or 'keep'")
    if background == 'keep':
        return FilePictures(paths)
    masks = tuple(folder / MASKS / f'{i:06d}.png' for i in rows)
    missing = next((m for m in masks if not m.is_file()), None)
    if missing is not None:
        raise UserError(f'{missing}: no such mask; track the video again with masks, or keep the background')
    return MaskedPictures(paths, masks)


def _source(folder: Path) -> Path | None:
    """The tracked video, if it is still where it was and what it was."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding='utf-8'))
        path = Path(report['file'])
        return path if path.is_file() and file_sha256(path) == report['sha256'] else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
