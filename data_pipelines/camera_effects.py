"""What a camera does to a picture: blur, noise, JPEG, white balance, exposure, vignette; by a seed of its own.

Pictures are changed when they are read; what is stored stays clean, and labels, landmarks, masks and depth are those of
the clean picture (nothing here moves a pixel). Where there is a mask, the background stays as it was.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.procedural.streams import Stream

if TYPE_CHECKING:
    from data_pipelines.image_sources import Images
    from data_pipelines.sources import ClipFrames


def camera_effects(image: np.ndarray, draw: Stream, strength: float = 1.0) -> np.ndarray:
    """A picture as a random camera would have taken it.

    Args:
        image: [H, W, 3] uint8. draw: the source of randomness. strength: 1 for the full range, 0 leaves the picture.

    Returns:
        [H, W, 3] uint8.
    """
    if strength <= 0:
        return image
    size = max(image.shape[:2])
    balance = np.exp(strength * draw.normal(0, 0.07, 3) * [1.0, 0.5, 1.0])
    exposure = np.exp(strength * draw.normal(0, 0.14))
    contrast = 1 + strength * draw.uniform(-0.15, 0.15)
    vignette = strength * draw.uniform(0, 0.4) * (draw.random() < 0.5)
    middle = draw.uniform(-0.15, 0.15, 2)
    sigma = strength * size / 128 * max(draw.uniform(-0.5, 1.1), 0)
    grain = strength * 0.035 * draw.random() ** 2
    quality = round(100 - strength * draw.uniform(2, 70))
    compressed = draw.random() < 0.6
    noise_seed = draw.integers(0, 2**62)
    x = image.astype(np.float32) / 255
    if sigma > 0.25:
        x = _blur(x, sigma)
    if vignette > 0:
        v, u = (np.linspace(-1, 1, n, dtype=np.float32) - m for n, m in zip(x.shape[:2], middle, strict=True))
        x = x * (1 - vignette * np.minimum((v * v)[:, None] + (u * u)[None], 2) / 2)[..., None]
    x = np.clip(x * np.float32(exposure) * balance.astype(np.float32), 0, 1)
    x = np.clip(0.5 + (x - 0.5) * np.float32(contrast), 0, 1)
    if grain > 0.002:
        # Three uniform numbers from each raw one: quick, and about normal.
        raw = np.random.Philox(np.random.SeedSequence(int(noise_seed))).random_raw(x.size)
        parts = np.stack([(raw >> np.uint64(s)) & np.uint64(0xFFFF) for s in (0, 16, 32, 48)]).astype(np.float32)
        white = (parts.sum(0) / 65535 - 2) * np.float32(1.732)
        x = x + np.float32(grain) * white.reshape(x.shape) * (0.4 + 0.6 * np.sqrt(x))
    out = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return _jpeg(out, max(quality, 12)) if compressed else out


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [H, W, 3] with ``sigma`` pixels, the edges repeated."""
    reach = max(int(np.ceil(2.5 * sigma)), 1)
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma)).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        wide, n = np.pad(x, pad, mode='edge'), x.shape[axis]
        x = sum(k * np.take(wide, np.arange(i, i + n), axis) for i, k in enumerate(kernel))
    return x


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    with Image.open(file) as picture:
        return np.asarray(picture.convert('RGB'))


class CameraFrames:
    """Another source of frames (``data_pipelines.sources``) through random cameras, one for each record.

    Args:
        source: the frames. strength: see ``camera_effects``. seed: which cameras.
    """

    def __init__(self, source: ClipFrames, strength: float, seed: int = 0):
        self.source, self.strength, self.seed = source, strength, seed
        self.table, self.has_masks, self.conventions = source.table, source.has_masks, source.conventions

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, record: int) -> Mapping[str, Any]:
        row = dict(self.source[record])
        seen = camera_effects(row['image'], Stream(self.seed, 'camera', int(record)), self.strength)
        if self.has_masks:
            alpha = row['mask'].astype(np.float32)[..., None] / 255
            seen = np.round(alpha * seen + (1 - alpha) * row['image']).astype(np.uint8)
        row['image'] = seen
        return row


class CameraImages:
    """Another source of single pictures (``data_pipelines.image_sources``) through random cameras, one for each.

    Args:
        source: the pictures. strength: see ``camera_effects``. seed: which cameras.
    """

    def __init__(self, source: Images, strength: float, seed: int = 0):
        self.source, self.strength, self.seed = source, strength, seed
        self.resolution = source.resolution

    def all_labels(self) -> np.ndarray:
        """[N, 25]."""
        return self.source.all_labels()

    def fingerprint(self) -> str:
        """That of the source, marked."""
        return f'{self.source.fingerprint()}+camera{self.strength:g}.{self.seed}'

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self.source[index]
        seen = camera_effects(row['image'], Stream(self.seed, 'camera', int(index)), self.strength)
        return {**row, 'image': seen}
