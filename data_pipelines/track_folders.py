"""Folders that ``avatar-jax track`` wrote as a source of clips: every shot of a tracked video is a clip.

    DIR/train/NAME/track.npz, DIR/test/NAME/track.npz    or    DIR/NAME/track.npz

A person is a tracked video. Without folders for the splits all people are for training but every twentieth, at least
one, of those sorted by name, which are the test.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.faces.conventions import Conventions
from avatar_jax.io.images import read_image
from avatar_jax.ops.coefficients import NUM_ID
from avatar_jax.track.folder import is_track, read_track
from avatar_jax.track.output import CROPS, MASKS, REPORT
from data_pipelines.tables import ClipTable

SPLITS = ('train', 'validation', 'test')
ASIDE = 20


def track_folders(folder: str | Path) -> list[Path]:
    """The folders of ``avatar-jax track`` in a folder: itself, those in it, or those in its folder of a split."""
    folder = Path(folder)
    if is_track(folder):
        return [folder]
    return sorted(p for p in (*folder.glob('*'), *folder.glob('*/*')) if is_track(p)) if folder.is_dir() else []


class TrackFrames:
    """Frames of one split, see ``data_pipelines.sources``.

    Args:
        folder: of the tracked folders. split: 'train', 'validation' or 'test'.

    Raises:
        UserError: no such split; a folder without crops; folders in different bases, or of different sizes.
    """

    def __init__(self, folder: str | Path, split: str = 'train'):
        if split not in SPLITS:
            raise UserError(f"split {split!r}: unknown; use 'train', 'validation' or 'test'")
        paths = folders_of(Path(folder), split)
        self.files: list[tuple[Path, Path]] = []
        parts: dict[str, list] = {k: [] for k in ('name', 'person', 'first', 'num_frames', 'motion', 'fps')}
        values: dict[str, list] = {k: [] for k in ('labels', 'landmarks', 'shapes')}
        bases, backgrounds = set(), set()
        for person, path in enumerate(paths):
            arrays = read_track(path)
            bases.add(str(arrays['basis']))
            backgrounds.add(_background(path))
            for shot in np.unique(arrays['segment'][arrays['valid']]):
                rows = np.flatnonzero(arrays['valid'] & (arrays['segment'] == shot))
                parts['name'].append(f'{path.name}-{shot}')
                parts['person'].append(person)
                parts['first'].append(len(self.files))
                parts['num_frames'].append(len(rows))
                parts['motion'].append(
                    np.concatenate([arrays[k][rows] for k in ('expression', 'angle', 'translation')], 1)
                )
                times = arrays['time'][rows]
                parts['fps'].append((len(times) - 1) / max(times[-1] - times[0], 1e-6) if len(times) > 1 else 25.0)
                self.files += [(_crop(path, i), path / MASKS / f'{i:06d}.png') for i in rows]
                values['labels'].append(label_from_pose(arrays['angle'][rows], arrays['translation'][rows], 'raw'))
                values['landmarks'].append(arrays['landmarks_crop'][rows])
                own = np.zeros(NUM_ID, np.float32)
                own[: arrays['identity'].shape[1]] = arrays['identity'][shot][:NUM_ID]
                values['shapes'].append(np.broadcast_to(own, (len(rows), NUM_ID)))
        if not self.files:
            raise UserError(f'{folder}: no face was found in the tracked folders of {split}; track other videos')
        for what, found in (('bases', bases), ('backgrounds', backgrounds)):
            if len(found) > 1:
                raise UserError(
                    f'{folder}: the tracked folders have different {what} ({", ".join(sorted(found))}); track them '
                    'alike'
                )
        self.labels, self.landmarks, self.shapes = (np.concatenate(values[k]) for k in values)
        self.table = ClipTable(
            name=np.array(parts['name']),
            person=np.array(parts['person']),
            first=np.array(parts['first']),
            num_frames=np.array(parts['num_frames']),
            num_cameras=np.ones(len(parts['name']), int),
            motion=np.concatenate(parts['motion']).astype(np.float32),
            fps=float(np.median(parts['fps'])),
            basis=bases.pop(),
            clip_fps=np.array(parts['fps']),
        )
        self.has_masks = all(mask.is_file() for _, mask in self.files)
        self.conventions = Conventions(self.table.basis, 'raw', backgrounds.pop(), shape=NUM_ID)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        crop, mask = self.files[record]
        image = read_image(crop, min_side=16).pixels
        alpha = np.full(image.shape[:2], 255, np.uint8)
        if mask.is_file():
            alpha = read_image(mask, min_side=16).pixels[..., 0]
        return {
            'image': image,
            'mask': alpha,
            'label': np.asarray(self.labels[record], np.float32),
            'landmarks': np.asarray(self.landmarks[record], np.float32),
            'shape': np.asarray(self.shapes[record], np.float32),
        }


def folders_of(folder: Path, split: str) -> list[Path]:
    """The tracked folders of a split. Raises ``UserError`` if there are none."""
    paths = track_folders(folder)
    if any(p.parent.name in SPLITS and p.parent.parent == folder for p in paths):
        found = [p for p in paths if p.parent.name == split]
    else:
        aside = set(paths[::ASIDE]) if len(paths) > 1 else set()
        found = [p for p in paths if (p in aside) == (split == 'test')] if split != 'validation' else []
    if not found:
        raise UserError(f'{folder}: has no tracked folders for {split}; put some into {folder / split}')
    return found


def _crop(path: Path, frame: int) -> Path:
    for ending in ('.png', '.jpg'):
        file = path / CROPS / f'{frame:06d}{ending}'
        if file.is_file():
            return file
    raise UserError(f'{path}: has no crop of frame {frame}; track the input again without --crops none')


def _background(path: Path) -> str:
    """What the crops of a tracked folder lie over, as its report says."""
    try:
        settings = json.loads((path / REPORT).read_text(encoding='utf-8')).get('settings', {})
    except (OSError, ValueError):
        settings = {}
    return settings.get('background', 'keep') if isinstance(settings, dict) else 'keep'
