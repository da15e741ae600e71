"""Clips that were processed for OTAvatar, as a source for the pair pipeline.

    source = OTAvatarFrames('datasets/hdtf_lmdb_inv', 'train')
    with pair_batches(source, PairConfig(batch_size=4)) as batches: ...

The folder has ``train_list.txt``, ``test_list.txt`` and an LMDB environment in a sub-folder named by the resolution.
Keys are ``length``, and for each clip ``CLIP-length``, ``CLIP-0000012`` (frames), ``CLIP-coeff_3dmm`` [N,260],
``CLIP-condition`` [N,7] (the tracker's camera), ``CLIP-keypoint`` [N,68,2] and ``CLIP-id``. Labels are those of
OTAvatar: averaged over neighbouring frames, with its own constants (``faces.camera_labels.labels_from_conditions``).
    Coefficients are BFM's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avatar_jax.driving.bases import BFM
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import labels_from_conditions
from avatar_jax.faces.conventions import Conventions
from avatar_jax.io.text import read_text
from avatar_jax.ops.coefficients import NUM_ID, NUM_RECORD, SLICES
from avatar_jax.types import Motion
from data_pipelines.lmdb_files import LmdbFile
from data_pipelines.tables import ClipTable

SPLITS = {'train': 'train_list.txt', 'test': 'test_list.txt'}
FPS = 30.0  # what the preprocessing writes
CONDITION = 7


class OTAvatarFrames:
    """Frames of one split, see ``data_pipelines.sources``; ``mask`` is full, because the data have none.

    Args:
        folder: the data set's root.
        split: 'train' or 'test'.
        resolution: name of the sub-folder; None takes the largest there is.

    Raises:
        UserError: not such a folder, a clip of the list is missing, or its entries do not fit each other.
    """

    def __init__(self, folder: str | Path, split: str = 'train', resolution: int | None = None):
        self.folder, self.split = Path(folder), split
        if split not in SPLITS:
            raise UserError(f"split {split!r}: unknown; use 'train' or 'test'")
        self.file = LmdbFile(_environment(self.folder, resolution))
        self.clips = _names(self.folder / SPLITS[split])
        numbers = [self._numbers(clip) for clip in self.clips]
        counts = np.array([len(n['records']) for n in numbers])
        people = [c.split('#')[0] for c in self.clips]
        order = {p: i for i, p in enumerate(sorted(set(people)))}
        records = np.concatenate([n['records'] for n in numbers])
        self.labels = np.concatenate([n['labels'] for n in numbers])
        self.landmarks = np.concatenate([n['landmarks'] for n in numbers])
        self.coefficients = records[:, :257]
        self.table = ClipTable(
            name=np.array(self.clips),
            person=np.array([order[p] for p in people]),
            first=np.cumsum(counts) - counts,
            num_frames=counts,
            num_cameras=np.ones(len(counts), int),
            motion=np.concatenate([records[:, SLICES[k]] for k in ('exp', 'angle', 'trans')], axis=1),
            fps=FPS,
            basis=BFM,
        )
        self.has_masks = False
        self.conventions = Conventions(BFM, 'hdtf', 'white', 'clip', NUM_ID)

    def _numbers(self, clip: str) -> dict[str, np.ndarray]:
        length = _count(self.file, f'{clip}-length')
        condition = self.file.need(f'{clip}-condition')
        # Wider rows are tolerated: the first six columns and the last one are read.
        columns = len(condition) // 4 // length
        if columns < CONDITION or len(condition) != 4 * columns * length:
            raise UserError(
                f'{self.file.folder}: {clip}-condition has {len(condition) // 4} numbers for {length} frames, '
                f'expected {length} x {CONDITION}; the data are damaged'
            )
        return {
            'records': self.file.floats(f'{clip}-coeff_3dmm', (NUM_RECORD,), length),
            'labels': labels_from_conditions(self.file.floats(f'{clip}-condition', (columns,), length)),
            'landmarks': self.file.floats(f'{clip}-keypoint', (68, 2), length),
        }

    def __len__(self) -> int:
        return self.table.num_records

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        if not 0 <= record < len(self):
            raise IndexError(f'record {record} of {len(self)}')
        clip = int(np.searchsorted(self.table.first, record, side='right')) - 1
        image = self.file.picture(f'{self.clips[clip]}-{record - int(self.table.first[clip]):07d}')
        identity = np.zeros(192, np.float32)
        identity[:80], identity[80:160] = (self.coefficients[record, SLICES[k]] for k in ('id', 'tex'))
        return {
            'image': image,
            'mask': np.full(image.shape[:2], 255, np.uint8),
            'label': self.labels[record],
            'landmarks': self.landmarks[record],
            'identity': identity,
            'shape': identity[:NUM_ID],
        }

    def motion(self, clip: str) -> Motion:
        """The movement of a clip by name. Raises ``UserError`` when there is none."""
        if clip not in self.clips:
            raise UserError(f'{self.folder}: {self.split} has no clip {clip!r}')
        k = self.clips.index(clip)
        rows = self.table.motion[int(self.table.first[k]) :][: int(self.table.num_frames[k])]
        return Motion(rows[:, :64], rows[:, 64:67], rows[:, 67:70], FPS, BFM, f'clip {clip}')


def _environment(folder: Path, resolution: int | None) -> Path:
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; give the one with train_list.txt')
    found = sorted(
        (int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / 'data.mdb').is_file()), reverse=True
    )
    if not found:
        raise UserError(f'{folder}: has no LMDB environment in a folder such as 512/; check that it was unpacked')
    if resolution is not None and resolution not in found:
        raise UserError(f'{folder}: has no {resolution}/data.mdb; there are {", ".join(map(str, found))}')
    return folder / str(found[0] if resolution is None else resolution)


def _names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except ValueError as e:
        raise UserError(f'{path}: is not a list of clip names, one per line') from e
    if not names:
        raise UserError(f'{path}: names no clips')
    return names


def _count(file: LmdbFile, key: str) -> int:
    text = file.need(key)
    if not text.strip().isdigit() or int(text) < 1:
        raise UserError(f'{file.folder}: {key} is {text[:20]!r}, not a number of frames; the data are damaged')
    return int(text)
