"""Single pictures with cameras for adversarial training: from an EG3D set, a built one, shards, or drawn on the way.

A source has ``len``, ``source[i] -> {'image': [H,W,3] uint8, 'label': [25]}``, ``resolution``, ``all_labels()`` [N,25]
(cheap: without decoding a picture) and ``fingerprint()``, a short text that changes when the data do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import mirror_label
from avatar_jax.progress import Console

if TYPE_CHECKING:
    from avatar_jax.train.run import PicturesConfig


class Images(Protocol):
    """A source of single pictures; see the module."""

    resolution: int

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """``image`` [H,W,3] uint8 and ``label`` [25]."""

    def all_labels(self) -> np.ndarray:
        """[N, 25]."""

    def fingerprint(self) -> str:
        """Changes when the data do."""


def digest(*parts: Any) -> str:
    """Short SHA-256 of arrays and texts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(
            np.ascontiguousarray(part).tobytes()
            if isinstance(part, np.ndarray)
            else str(part).encode('utf-8', 'surrogateescape')
        )
    return found.hexdigest()[:16]


class ArrayImages:
    """Pictures in memory: images [N,H,W,3] uint8, labels [N,25]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, np.asarray(labels, np.float32)
        self.resolution = images.shape[1]

    @classmethod
    def of(cls, source: Images, progress: bool = False) -> ArrayImages:
        """All pictures of another source, decoded or drawn once."""
        from tqdm import tqdm

        bar = tqdm(range(len(source)), desc='pictures into memory', file=Console(), disable=None if progress else True)
        rows = [source[i] for i in bar]
        found = cls(np.stack([r['image'] for r in rows]), np.stack([r['label'] for r in rows]))
        found.fingerprint = source.fingerprint  # of what was read
        return found

    @classmethod
    def of_shards(cls, folder: str | Path, max_size: int | None = None) -> ArrayImages:
        """Pictures of a folder that ``python -m data_pipelines.fast_heads`` wrote."""
        from data_pipelines.fast_heads import load_shards

        data = load_shards(Path(folder), ('rgb', 'label'), max_size)
        return cls(data['rgb'], data['label'])

    def all_labels(self) -> np.ndarray:
        """[N, 25]."""
        return self._labels

    def fingerprint(self) -> str:
        """Of all pixels and labels."""
        return digest(self._images, self._labels)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {'image': self._images[index], 'label': self._labels[index]}


class RenderedImages:
    """Procedural heads, each with its own person, expression, light and camera, drawn when asked for.

    Args:
        count: how many. resolution: pixels per side.
        seed, split: which heads; see ``data_pipelines.fast_heads``. looks: version of the looks.
    """

    def __init__(self, count: int, resolution: int, seed: int = 0, split: str = 'train', looks: int = 1):
        from data_pipelines.fast_heads import FastHeadsConfig

        split = {'validation': 'val'}.get(split, split)
        self.config = FastHeadsConfig(seed=seed, split=split, resolution=resolution, looks=looks)
        self.count, self.resolution = count, resolution
        self._labels: np.ndarray | None = None

    def all_labels(self) -> np.ndarray:
        """[N, 25]; no picture is drawn."""
        from data_pipelines.fast_heads import sample_parameters

        if self._labels is None:
            self._labels = np.stack([sample_parameters(self.config, i)['label'] for i in range(self.count)])
        return self._labels

    def fingerprint(self) -> str:
        """Of the recipe and of what the head model draws."""
        from data_pipelines.fingerprint import head_fingerprint

        return digest(self.config.recipe(), self.count, head_fingerprint(self.config.looks))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        from data_pipelines.fast_heads import sample

        if not 0 <= index < self.count:
            raise IndexError(f'head {index} of {self.count}')
        row = sample(self.config, index)
        return {'image': row['rgb'], 'label': np.asarray(row['label'], np.float32)}


class Mirrored:
    """Twice a source: the second half are its pictures left-right mirrored, with mirrored cameras.

    ``labels=False`` leaves the cameras alone, as EG3D's own flag does (wrong, kept for comparison).
    """

    def __init__(self, source: Images, labels: bool = True):
        self.source, self.labels, self.resolution = source, labels, source.resolution

    def all_labels(self) -> np.ndarray:
        """[2N, 25]."""
        own = self.source.all_labels()
        return np.concatenate([own, mirror_label(own) if self.labels else own]).astype(np.float32)

    def fingerprint(self) -> str:
        """That of the source, marked."""
        return f'{self.source.fingerprint()}+mirror{int(self.labels)}'

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        flip, k = divmod(int(index), len(self.source))
        row = self.source[k]
        if not flip:
            return row
        label = mirror_label(row['label']) if self.labels else row['label']
        return {'image': np.ascontiguousarray(row['image'][:, ::-1]), 'label': np.asarray(label, np.float32)}


def open_images(data: PicturesConfig, resolution: int, progress: bool = True) -> Images:
    """The source of a training run.

    Args:
        data: what is wanted. resolution: side of the generator's pictures.
    Raises:
        UserError: the data cannot be read, are empty, or of another size.
    """
    from data_pipelines.camera_effects import CameraImages
    from data_pipelines.eg3d_images import MIRRORS, Eg3dImages

    if data.mirror not in MIRRORS:
        raise UserError(f'data.mirror: {data.mirror!r}; use one of {", ".join(MIRRORS)}')
    limit = data.max_size or None
    if data.source == 'eg3d':
        source = Eg3dImages(data.folder, max_size=limit, seed=data.seed)
    elif data.source == 'built':
        from data_pipelines.eg3d_tfds.reader import BuiltImages

        source = BuiltImages(data.folder, data.split)
    elif data.source == 'fast_heads':
        source = ArrayImages.of_shards(data.folder, limit)
    else:
        source = RenderedImages(data.count, resolution, data.seed, data.split, data.looks)
    if not len(source):
        raise UserError(f'data: {data.folder or data.source} has no pictures in {data.split!r}')
    if source.resolution != resolution:
        raise UserError(
            f'data: {data.folder} holds pictures of {source.resolution} pixels, the generator makes '
            f'{resolution}; resize them or set generator.img_resolution'
        )
    if data.in_memory and not isinstance(source, ArrayImages):
        source = ArrayImages.of(source, progress)
    if data.camera > 0:
        source = CameraImages(source, data.camera, data.camera_seed)
    return source if data.mirror == 'off' else Mirrored(source, data.mirror == 'images+labels')
