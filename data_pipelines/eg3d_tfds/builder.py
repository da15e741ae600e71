"""TFDS builder for a user's own pictures with camera labels; the labels are checked before anything is written.

Beside the records, ``labels-<split>.npy`` holds all labels, so that a training run can draw cameras without a pass over
the pictures.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from avatar_jax.progress import Console

if TYPE_CHECKING:
    from data_pipelines.eg3d_images import Eg3dImages

LABELS = 'labels-{split}.npy'


@dataclass
class PicturesConfig(tfds.core.BuilderConfig):
    """``resolution``: side of the pictures. ``origin``: fingerprint of the folder or zip they come from."""

    resolution: int = 512
    origin: str = ''
    validation: int = 0


class LabelledPictures(tfds.core.GeneratorBasedBuilder):
    """Square pictures with 25-number camera labels."""

    VERSION = tfds.core.Version('1.0.0')
    url_infos: ClassVar[dict] = {}  # nothing is downloaded

    source: Eg3dImages | None = None
    show_progress: bool = True

    def _info(self) -> tfds.core.DatasetInfo:
        r = self.builder_config.resolution
        return tfds.core.DatasetInfo(
            builder=self,
            description='Pictures with camera labels (cam2world 4x4 and normalised intrinsics 3x3, row by row).',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(r, r, 3), encoding_format='png'),
                    'label': tfds.features.Tensor(shape=(25,), dtype=np.float32),
                    'name': tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # record i is picture i
            metadata=tfds.core.MetadataDict(origin=self.builder_config.origin, resolution=r),
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager
        held = self.builder_config.validation
        rows = {'train': range(held, len(self.source)), 'validation': range(held)}
        return {split: self._generate_examples(split, r) for split, r in rows.items() if len(r)}

    def _generate_examples(self, split: str, rows: range) -> Iterator[tuple[int, dict]]:
        from PIL import Image

        labels = self.source.all_labels()[rows.start : rows.stop]
        np.save(self.data_path / LABELS.format(split=split), labels)
        silent = None if self.show_progress else True
        for key, row in enumerate(tqdm(rows, desc=f'{split} pictures', file=Console(), disable=silent)):
            data = io.BytesIO()
            picture = self.source[row]
            Image.fromarray(picture['image']).save(data, 'PNG')
            data.seek(0)
            name = self.source.names[row % len(self.source.names)]
            yield key, {'image': data, 'label': picture['label'], 'name': name}
