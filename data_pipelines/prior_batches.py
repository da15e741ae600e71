"""Batches for the supervised warm start: whole frames, or rays picked where they teach most.

A latent is what a head was made from: identity (192 standard normals) and the light, whitened to 8 numbers that are
about standard normal as well, so that a normal vector of 200 numbers is a random head in a random light.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from avatar_jax.faces.windows import RADIUS
from data_pipelines.fast_heads import load_shards
from data_pipelines.lights import random_gamma

LIGHT_DIM = 8
LATENT_DIM = 192 + LIGHT_DIM


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


@lru_cache
def light_basis() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [27], directions [8, 27] and standard deviations [8] of the random light; the same on every machine."""
    rng = np.random.Generator(np.random.Philox(20240607))
    gamma = np.stack([random_gamma(rng) for _ in range(4096)])
    mean = gamma.mean(0)
    _, singular, directions = np.linalg.svd(gamma - mean, full_matrices=False)
    directions = directions * np.sign(directions[np.arange(27), np.abs(directions).argmax(1)])[:, None]
    return mean, directions[:LIGHT_DIM], singular[:LIGHT_DIM] / np.sqrt(len(gamma))


def latents(identity: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """[N, 192] and [N, 27] -> [N, 200] float32."""
    mean, directions, deviations = light_basis()
    return np.concatenate([identity, (gamma - mean) @ directions.T / deviations], -1).astype(np.float32)


class PriorData:
    """All samples of a folder of `fast_heads` shards in memory; batches are functions of (seed, step)."""

    def __init__(self, folder: Path, limit: int | None = None):
        self.data = load_shards(Path(folder), limit=limit)
        self.latent = latents(self.data['identity'], self.data['gamma'])
        self.weight_boxes = _boxes(self.data['landmarks'])
        n, r = self.data['mask'].shape[:2]
        self.resolution = r
        axis = (np.arange(r) + 0.5) / r
        y, x = np.meshgrid(axis, axis, indexing='ij')
        self._pixels = np.stack([x, y], -1).reshape(-1, 2)
        self._size = n

    def __len__(self) -> int:
        return self._size

    def weights(self, index: np.ndarray) -> np.ndarray:
        """[N, r, r] importance of every pixel: background 0.3, head 1, eyes and mouth 4."""
        mask = self.data['mask'][index] > 8
        out = np.where(mask, 1.0, 0.3).astype(np.float32)
        for row, i in enumerate(index):
            for x0, y0, x1, y1 in self.weight_boxes[i]:
                box = out[row, max(y0, 0):max(y1, 0), max(x0, 0):max(x1, 0)]
                box[...] = np.where(mask[row, max(y0, 0):max(y1, 0), max(x0, 0):max(x1, 0)], 4.0, box)
        return out

    def order(self, seed: int, step: int, batch: int) -> np.ndarray:
        """Which samples step `step` uses: every epoch is another permutation."""
        start = step * batch
        return np.array([_permutation(seed, i // self._size, self._size)[i % self._size]
                         for i in range(start, start + batch)])

    def common(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Latent [N, 200], window [N, 27, 70] and label [N, 25].

        Every fourth sample holds still for its whole window, as a photograph does.
        """
        window = self.data['window'][index]
        still = (self.data['index'][index] % 4 == 0)[:, None, None]
        window = np.where(still, window[:, RADIUS:RADIUS + 1], window)
        return {'latent': self.latent[index], 'window': window, 'label': self.data['label'][index]}

    def frames(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of whole pictures for `prior.frames_loss`."""
        weight = self.weights(index)
        return self.common(index) | {
            'image': self.data['rgb'][index].astype(np.float32) / 127.5 - 1,
            'mask': self.data['mask'][index].astype(np.float32) / 255,
            'weight': weight / weight.mean(),
        }

    def rays(self, index: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A batch of `count` rays per picture for `prior.rays_loss`, drawn with the pixels' importance.

        The draw already carries the importance, so the weight of a drawn pixel is one.
        """
        n, r = len(index), self.resolution
        weight = self.weights(index).reshape(n, -1)
        # The `count` smallest exponential clocks: a weighted draw without replacement.
        clocks = rng.standard_exponential((n, r * r), dtype=np.float32) / weight
        picked = np.argpartition(clocks, count, axis=1)[:, :count]
        take = lambda a: np.take_along_axis(a.reshape(n, r * r, -1), picked[..., None], 1)
        origins, directions = _rays(self.data['label'][index], self._pixels[picked])
        return self.common(index) | {
            'origins': origins, 'directions': directions,
            'rgb': take(self.data['rgb'][index]).astype(np.float32) / 127.5 - 1,
            'mask': take(self.data['mask'][index])[..., 0].astype(np.float32) / 255,
            'depth': take(self.data['depth'][index])[..., 0].astype(np.float32),
            'weight': np.ones((n, count), np.float32),
        }


def _rays(labels: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [N, M, 3] through image positions [N, M, 2] in [0, 1]."""
    pose, intrinsics = labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)
    lifted = np.concatenate([pixels, np.ones((*pixels.shape[:2], 1))], -1)
    directions = np.einsum('nij,nmj->nmi', pose[:, :3, :3] @ np.linalg.inv(intrinsics), lifted)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = np.broadcast_to(pose[:, None, :3, 3], directions.shape)
    return origins.astype(np.float32), directions.astype(np.float32)


def _boxes(landmarks: np.ndarray) -> np.ndarray:
    """[N, 3, 4] integer boxes (x0, y0, x1, y1) around mouth and both eyes of landmarks [N, 68, 2]."""
    boxes = []
    for first, last in ((48, 68), (36, 42), (42, 48)):
        points = landmarks[:, first:last]
        low, high = points.min(1), points.max(1)
        pad = 0.3 * (high - low).max(-1, keepdims=True) + 1
        boxes.append(np.concatenate([np.floor(low - pad), np.ceil(high + pad)], -1))
    return np.stack(boxes, 1).astype(int)
