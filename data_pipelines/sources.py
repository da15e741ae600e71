"""Where the frames of clips come from: a built TFDS data set, rendering on the fly, or memory.

A source has a ``table`` (``tables.ClipTable``), a length and random access: ``source[record]`` is a dict with
``image`` [H,W,3] uint8, ``mask`` [H,W] uint8 (255 = head), ``label`` [25], ``landmarks`` [68,2] (pixels),
``identity`` [192]; ``shape`` [S] in the table's basis where it is known; and ``sound`` [16,29] in data sets that were
built with ``--audio``. ``conventions`` says what labels and pictures mean, ``has_masks`` whether masks tell the head
from its background. Sources pickle, so that worker processes can have their own copy.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.faces.conventions import Conventions
from avatar_jax.ops.coefficients import NUM_ID
from avatar_jax.ops.windows import RADIUS
from avatar_jax.progress import Console
from data_pipelines.clips import Clip, ClipOptions, make_clip
from data_pipelines.tables import ClipTable, WindowTable, load_table, table_of_clips
from data_pipelines.track_folders import TrackFrames, track_folders


class ClipFrames(Protocol):
    """A source of frames; see the module."""

    table: ClipTable
    conventions: Conventions
    has_masks: bool

    def __len__(self) -> int:
        """The number of records."""

    def __getitem__(self, record: int) -> Mapping[str, np.ndarray]:
        """One frame."""


def open_source(folder: str | Path, split: str) -> ClipFrames:
    """The frames of a built data set, of clips that were processed for OTAvatar (a folder with its lists) or GPAvatar
    (``dataset.pkl``), or of a folder of folders that ``avatar-jax track`` wrote.

    Raises:
        UserError: none of them, or no such split.
    """
    if (Path(folder) / 'dataset.pkl').is_file():
        from data_pipelines.gpavatar_lmdb import GPAvatarClips

        return GPAvatarClips(folder, split)
    if track_folders(folder):
        return TrackFrames(folder, split)
    if (Path(folder) / 'train_list.txt').is_file() or (Path(folder) / 'test_list.txt').is_file():
        from data_pipelines.otavatar_lmdb import OTAvatarFrames

        return OTAvatarFrames(folder, split)
    return BuiltFrames(folder, split)


class BuiltFrames:
    """Frames of a data set that ``python -m data_pipelines.heads`` or ``python -m data_pipelines.tracked`` built.

    Args:
        folder: the data set's folder (the commands that build data sets print it).
        split: 'train', 'validation' or 'test'.
    Raises:
        UserError: not such a folder, or unknown split.
    """

    def __init__(self, folder: str | Path, split: str = 'train'):
        if split not in ('train', 'validation', 'test'):
            raise UserError(f"split {split!r}: unknown; use 'train', 'validation' or 'test'")
        self.folder, self.split = Path(folder), split
        self.table = load_table(folder, split)
        self._records = None
        if len(self._open()) != self.table.num_records:
            raise UserError(f'{folder}: the clip table and the records of {split} differ; build the data set again')
        aligned = self._layout == 'ffhq_eg3d'  # crops and cameras are kept as they were given
        self.has_masks = True
        self.conventions = Conventions(
            self.table.basis, 'orig' if aligned else 'raw', 'keep' if aligned else 'white', shape=NUM_ID
        )

    def _open(self):
        if self._records is None:  # opened on first use, also in worker processes
            import tensorflow_datasets as tfds

            skip = {k: tfds.decode.SkipDecoding() for k in ('image', 'mask')}
            try:
                builder = tfds.builder_from_directory(self.folder)
                self._layout = builder.name
                self._records = builder.as_data_source(split=self.split, decoders=skip)
            except Exception as e:  # TFDS raises many kinds for a damaged folder
                raise UserError(f'{self.folder}: not a readable data set ({e}); build it again') from e
        return self._records

    def __getstate__(self):
        return {**self.__dict__, '_records': None}

    def __len__(self) -> int:
        return self.table.num_records

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        row = self._open()[record]
        mask = _decode(row['mask'])
        return {
            'image': _decode(row['image']),
            'mask': mask,
            'label': row['label'],
            'landmarks': row['landmarks'],
            'identity': row['identity'],
            'shape': row['identity'][:NUM_ID],
            **({'sound': row['sound']} if 'sound' in row else {}),
        }


def _decode(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


class RenderedFrames:
    """Frames of procedural clips, rendered when asked for; nothing is stored.

    Args:
        clips: the clips, e.g. from ``clips.evaluation_clips``.
        resolution: pixels per side.
    """

    def __init__(self, clips: list[Clip], resolution: int = 128):
        self.clips, self.resolution = list(clips), resolution
        self.table = table_of_clips(self.clips)
        self.has_masks, self.conventions = True, Conventions(self.table.basis, shape=NUM_ID)

    @classmethod
    def of_people(
        cls,
        people: int,
        seed: int = 0,
        split: str = 'train',
        clips_per_person: int = 1,
        resolution: int = 128,
        options: ClipOptions | None = None,
    ) -> RenderedFrames:
        """Frames of the first ``people`` people of a split in the world of ``seed``."""
        Check.values('data', people=people, clips_per_person=clips_per_person).at_least(1, 'people', 'clips_per_person')
        return cls(
            [make_clip(seed, split, p, n, options) for p in range(people) for n in range(clips_per_person)], resolution
        )

    def __len__(self) -> int:
        return self.table.num_records

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        if not 0 <= record < len(self):
            raise IndexError(f'record {record} of {len(self)}')
        k = int(np.searchsorted(self.table.first, record, side='right')) - 1
        clip = self.clips[k]
        camera, frame = divmod(int(record - self.table.first[k]), clip.num_frames)
        head = clip.render(frame, camera, self.resolution)
        return {
            'image': np.round(np.clip(head.rgb, 0, 1) * 255).astype(np.uint8),
            'mask': np.round(np.clip(head.mask, 0, 1) * 255).astype(np.uint8),
            'label': clip.labels(camera)[frame],
            'landmarks': np.asarray(head.landmarks, np.float32),
            'identity': np.asarray(clip.identity, np.float32),
            'shape': np.asarray(clip.identity[:NUM_ID], np.float32),
        }


class HeadShards:
    """The frames of ``data_pipelines.fast_heads``, whose people have some independent poses and expressions; in memory.

    They also have ``depth`` [H,W] float16: along the ray in units of the labels' world, 0 where nothing is, and
    ``latent`` [200]: person and light as the shipped generator's mapping network takes them.

    Every person counts as one clip. Its frames do not follow one another: each has the motion window that it was made
    with.

    Args:
        folder: of the shards. people: the first ones only; None: all.
    Raises:
        UserError: no shards, damaged ones, or fewer people.
    """

    def __init__(self, folder: str | Path, people: int | None = None):
        from data_pipelines.fast_heads import load_shards, read_config
        from data_pipelines.prior_batches import latents

        config = read_config(Path(folder))
        each = config.frames_per_identity
        fields = ('rgb', 'mask', 'depth', 'label', 'landmarks', 'identity', 'window', 'gamma')
        found = load_shards(Path(folder), fields, None if people is None else people * each)
        count = len(found['rgb']) // each
        if count < (people or 1):
            raise UserError(f'{folder}: has {count} people of {each} frames, {people or 1} are asked for; make more')
        self._arrays = {k: v[: count * each] for k, v in found.items()}
        self._arrays['latent'] = latents(found['identity'], self._arrays.pop('gamma'))[: count * each]
        person = np.arange(count)
        self.table = WindowTable(
            name=np.array([f'{config.split}-{p:06d}' for p in person]),
            person=person,
            first=person * each,
            num_frames=np.full(count, each),
            num_cameras=np.ones(count, int),
            motion=self._arrays['window'][:, RADIUS],
            fps=25.0,
            windows=self._arrays['window'],
        )
        self.has_masks, self.conventions = True, Conventions(self.table.basis, shape=NUM_ID)

    def __len__(self) -> int:
        return self.table.num_records

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        names = ('mask', 'depth', 'label', 'landmarks', 'identity', 'latent')
        found = {k: self._arrays[k][record] for k in names}
        return {'image': self._arrays['rgb'][record], 'shape': found['identity'][:NUM_ID], **found}


class MemoryFrames:
    """All frames of another source, decoded once and kept; for sets that fit (128 px: 65 KB per frame)."""

    def __init__(self, source, progress: bool = False):
        from tqdm import tqdm

        self.table, self.has_masks, self.conventions = source.table, source.has_masks, source.conventions
        rows = [
            source[i] for i in tqdm(range(len(source)), desc='frames into memory', file=Console(), disable=not progress)
        ]
        self._arrays = {k: np.stack([r[k] for r in rows]) for k in rows[0]}

    def __len__(self) -> int:
        return self.table.num_records

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        return {k: v[record] for k, v in self._arrays.items()}
