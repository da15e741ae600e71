"""Reads a data set that ``python -m data_pipelines.eg3d_tfds`` built."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError


class BuiltImages:
    """Pictures with cameras of a built data set; an image source (see ``data_pipelines.image_sources``).

    Args:
        folder: the data set's folder (the command prints it). split: 'train' or 'validation'.
    Raises:
        UserError: not such a folder, or no such split.
    """

    def __init__(self, folder: str | Path, split: str = 'train'):
        self.folder, self.split = Path(folder), split
        self._records = None
        path = self.folder / f'labels-{split}.npy'
        if not path.is_file():
            raise UserError(
                f'{folder}: no data set with a split {split!r}; build one with python -m data_pipelines.eg3d_tfds'
            )
        self._labels = np.load(path, allow_pickle=False)
        if not len(self._labels) or len(self._open()) != len(self._labels):
            raise UserError(f'{folder}: the split {split!r} is empty or incomplete; build the data set again')
        self.resolution = self[0]['image'].shape[0]

    def _open(self):
        if self._records is None:  # opened on first use, also in worker processes
            import tensorflow_datasets as tfds

            try:
                builder = tfds.builder_from_directory(self.folder)
                self._records = builder.as_data_source(split=self.split, decoders={'image': tfds.decode.SkipDecoding()})
                self._origin = (builder.info.metadata or {}).get('origin', '')
            except Exception as e:  # TFDS raises many kinds for a damaged folder
                raise UserError(f'{self.folder}: not a readable data set ({e}); build it again') from e
        return self._records

    def __getstate__(self):
        return {**self.__dict__, '_records': None}

    def all_labels(self) -> np.ndarray:
        """[N, 25]."""
        return self._labels

    def fingerprint(self) -> str:
        """Of the origin and the split."""
        self._open()
        return f'{self._origin}-{self.split}-{len(self._labels)}'

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        from PIL import Image

        if not 0 <= index < len(self):
            raise IndexError(f'picture {index} of {len(self)}')
        row = self._open()[int(index)]
        with Image.open(io.BytesIO(row['image'])) as picture:
            return {'image': np.asarray(picture.convert('RGB')), 'label': np.asarray(row['label'], np.float32)}
