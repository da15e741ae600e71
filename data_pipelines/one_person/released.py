"""NerFACE's and AD-NeRF's videos in the layout that HFA-GP was released with.

    PERSON/train/cropped_images/*.png|*.jpg   aligned crops
    PERSON/train/cropped_images/test.json     {"labels": [[FILE.png, [25 numbers]], ...]}; the ending is always .png
    PERSON/test2/cropped_images/...           the part that is left for testing (also called `test`)
    PERSON/transforms_{train,test,val}.json   what drives: NerFACE's `expression`, or AD-NeRF's `aud_id`
    PERSON/aud.npy                            windows of DeepSpeech features, one for each frame at 25 a second

Crops without a label or without anything that drives them are left out, and how many is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import flip_axes
from avatar_jax.io.inputs import input_file
from avatar_jax.sound.windows import LOGITS, WINDOW, WINDOW_RATE
from data_pipelines.one_person.frames import FilePictures, PersonVideo
from data_pipelines.one_person.labels import smooth_labels

CROPS, LABELS = 'cropped_images', 'test.json'
EXPRESSION = 76
FPS = 25.0
_TEST_FOLDERS = ('test2', 'test', 'val')
_ENDINGS = ('.png', '.jpg', '.jpeg')


def is_released(folder: str | Path) -> bool:
    """Whether a folder has this layout."""
    return (Path(folder) / 'train' / CROPS / LABELS).is_file()


def read_released(
    folder: str | Path, *, axes: str = 'opencv', label_sigma: float = 0.0, sound_index: str = 'frame'
) -> PersonVideo:
    """The video of one person: crops, cameras, and coefficients (NerFACE) or sound windows (AD-NeRF).

    Args:
        axes: of the stored labels: 'opencv' (as released) or 'opengl' (as the released data set class hands them on).
        label_sigma: standard deviation, in frames, of a smoothing of the labels in time; 0: none, as released.
        sound_index: which window belongs to a frame: that of its number ('frame', as training was done) or of its
            ``aud_id`` ('aud_id', as the released data set class says).

    Raises:
        UserError: files are missing, damaged, or do not fit together.
    """
    folder = Path(folder)
    if not is_released(folder):
        raise UserError(
            f'{folder}: has no train/{CROPS}/{LABELS}; crops and cameras are made by tracking (avatar-jax track)'
        )
    if axes not in ('opencv', 'opengl') or sound_index not in ('frame', 'aud_id'):
        raise UserError(f"axes={axes!r}, sound_index={sound_index!r}: use 'opencv' or 'opengl', 'frame' or 'aud_id'")
    tables = _tables(folder)
    test = next((t for t in _TEST_FOLDERS if (folder / t / CROPS / LABELS).is_file()), None)
    parts, dropped = [], 0
    sound = _sound(folder)
    for part in ('train', test):
        if part is None:
            continue
        found, missing = _part(folder / part / CROPS, tables, sound, axes, sound_index)
        parts.append(found)
        dropped += missing
    counts = [len(p['paths']) for p in parts]
    if not counts[0]:
        raise UserError(f'{folder}: none of its training crops has a label and something that drives it')
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0] if k != 'paths'}
    labels = np.concatenate([smooth_labels(p['labels'], label_sigma) if label_sigma else p['labels'] for p in parts])
    signals = {k: joined[k] for k in ('coefficients', 'sound') if k in joined}
    notes = (f'{dropped} crops without label or driving numbers left out',) if dropped else ()
    return PersonVideo(
        name=folder.name,
        pictures=FilePictures(tuple(path for p in parts for path in p['paths'])),
        labels=labels.astype(np.float32),
        times=joined['number'] / FPS,
        signals=signals,
        train=np.arange(counts[0]),
        test=np.arange(counts[0], sum(counts)),
        basis='nerface' if 'coefficients' in signals else '',
        features='deepspeech' if 'sound' in signals else '',
        notes=notes,
    )


def _json(path: Path) -> Any:
    path = input_file(path)
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: is damaged or no JSON ({error}); get it again') from error


def number_of(name: str) -> int:
    """The frame number in a name: the last number in it (f_0012 -> 12).

    Raises:
        UserError: there is none.
    """
    found = re.findall(r'\d+', name)
    if not found:
        raise UserError(f'{name}: frames are sorted by the number in their names, and this has none; rename it')
    return int(found[-1])


def _tables(folder: Path) -> dict[str, dict[str, Any]]:
    """Frame name (without ending) -> its entry, of all ``transforms_*.json`` that are there."""
    out: dict[str, dict[str, Any]] = {}
    for split in ('train', 'val', 'test'):
        path = folder / f'transforms_{split}.json'
        if not path.is_file():
            continue
        frames = _json(path)
        frames = frames.get('frames') if isinstance(frames, Mapping) else None
        if not isinstance(frames, list):
            raise UserError(f'{path}: has no list of frames')
        for frame in frames:
            if not isinstance(frame, Mapping) or not ('file_path' in frame or 'img_id' in frame):
                raise UserError(f'{path}: a frame has neither file_path (NerFACE) nor img_id (AD-NeRF)')
            name = Path(str(frame['file_path'])).name if 'file_path' in frame else str(frame['img_id'])
            out[name] = dict(frame)
    return out


def _sound(folder: Path) -> np.ndarray | None:
    path = folder / 'aud.npy'
    if not path.is_file():
        return None
    try:
        windows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f'{path}: cannot be read as .npy; make it again') from error
    if windows.ndim != 3 or windows.shape[1:] != (WINDOW, LOGITS) or not len(windows):
        raise UserError(
            f'{path}: has shape {list(windows.shape)}; windows of DeepSpeech features are [N, {WINDOW}, {LOGITS}] at '
            f'{WINDOW_RATE} a second'
        )
    return windows.astype(np.float32)


def _part(
    crops: Path, tables: Mapping[str, Mapping[str, Any]], sound: np.ndarray | None, axes: str, sound_index: str
) -> tuple[dict[str, Any], int]:
    """Crops of one part in order of time, with everything that belongs to them; and how many were left out."""
    labels = _labels(crops / LABELS)
    files = sorted((p for p in crops.iterdir() if p.suffix.lower() in _ENDINGS), key=lambda p: number_of(p.stem))
    rows: dict[str, list] = {'paths': [], 'labels': [], 'number': []}
    drive = 'coefficients' if any('expression' in t for t in tables.values()) else 'sound'
    if drive == 'sound' and sound is None and not tables:
        raise UserError(f'{crops.parent.parent}: has neither transforms_*.json nor aud.npy; nothing drives its frames')
    if drive == 'sound' and sound is None:
        raise UserError(f'{crops.parent.parent}: its transforms_*.json have no expressions, and aud.npy is missing')
    rows[drive] = []
    for path in files:
        label, entry = labels.get(f'{path.stem}.png'), tables.get(path.stem)
        if label is None or (drive == 'coefficients' and (entry is None or 'expression' not in entry)):
            continue
        number = number_of(path.stem)
        if drive == 'coefficients':
            value = np.asarray(entry['expression'], np.float32).reshape(-1)
            if value.size != EXPRESSION:
                raise UserError(f'{path.name}: its expression has {value.size} numbers, NerFACE has {EXPRESSION}')
        else:
            place = number
            if sound_index == 'aud_id':
                if entry is None or 'aud_id' not in entry:
                    continue
                place = int(entry['aud_id'])
            value = sound[min(place, len(sound) - 1)]
        rows['paths'].append(path)
        rows['labels'].append(label if axes == 'opencv' else flip_axes(label))
        rows['number'].append(number)
        rows[drive].append(value)
    width = {'coefficients': (EXPRESSION,), 'sound': (WINDOW, LOGITS)}[drive]
    out = {
        'paths': rows['paths'],
        'labels': np.asarray(rows['labels'], np.float32).reshape(-1, 25),
        'number': np.asarray(rows['number'], np.float64),
        drive: np.asarray(rows[drive], np.float32).reshape(-1, *width),
    }
    return out, len(files) - len(rows['paths'])


def _labels(path: Path) -> dict[str, np.ndarray]:
    """File name -> label [25]."""
    table = _json(path)
    pairs = table.get('labels') if isinstance(table, Mapping) else None
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f'{path}: has no list of labels')
    out = {}
    for pair in pairs:
        try:
            name, values = pair
            label = np.asarray(values, np.float32).reshape(25)
        except (TypeError, ValueError) as error:
            raise UserError(f'{path}: a label is not [file name, 25 numbers]') from error
        out[Path(str(name)).name] = label
    return out
