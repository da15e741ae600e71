"""Batches for the supervised warm start: whole frames, or pixels picked where they teach most.

A latent is what a head was made from: identity (192 standard normals) and the light, whitened to 8 numbers that are
about standard normal as well, so that a normal vector of 200 numbers is a random head in a random light.

Traits are the same, and what the style numbers mean beside them: which cut, which collar, the colours. Those depend
on the latent through thresholds, which a network has to learn from thousands of heads; said in words they are free.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from avatar_jax.faces.importance import importance, part_boxes
from avatar_jax.ops.windows import RADIUS
from avatar_jax.procedural.style import CUTS, decode_style
from data_pipelines.fast_heads import load_shards
from data_pipelines.lights import random_gamma

LIGHT_DIM = 8
LATENT_DIM = 192 + LIGHT_DIM
NEAREST, FARTHEST = 2.35, 3.25  # world units from the camera: where heads are
NEAR_STD = 0.012  # world units: how far around the visible surface its colour is asked for
IN_FRONT, DEEPEST = 0.015, 0.05  # world units: empty until so far before the surface; solid until so far behind it


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


def _meaning(identity: np.ndarray) -> np.ndarray:
    """What the style of identity [192] says in words, as numbers."""
    s = decode_style(identity[160:])
    cut = [float(s.cut == name) for name, _ in CUTS]
    collar = [float(s.collar == k) for k in range(4)]
    plain = (
        s.recede,
        s.fringe,
        s.volume,
        s.brow_strength,
        s.lip_tint,
        s.beard,
        s.moustache,
        s.stubble,
        s.stripes,
        s.freckles,
        s.lashes,
        s.shadow,
    )
    return np.concatenate([cut, collar, s.hair_colour, s.iris, s.brow_colour, s.cloth, s.cloth2, plain])


@lru_cache
def _meaning_scale() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `_meaning` over random people; the same on every machine."""
    people = np.random.Generator(np.random.Philox(20240608)).normal(size=(4096, 192))
    values = np.stack([_meaning(p) for p in people])
    return values.mean(0), values.std(0) + 1e-3


def traits(latent: np.ndarray) -> np.ndarray:
    """Latents [N, 200] -> [N, TRAIT_DIM] float32: the latent and its meaning, each number of about unit variance."""
    mean, deviation = _meaning_scale()
    meaning = (np.stack([_meaning(p) for p in latent[:, :192]]) - mean) / deviation
    return np.concatenate([latent, meaning], -1).astype(np.float32)


TRAIT_DIM = LATENT_DIM + len(CUTS) + 4 + 15 + 12


def random_heads(seed: int, batch: int = 256, people: int = 65536) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Latents [batch, 200] and traits [batch, TRAIT_DIM] of random heads, as a function of the step."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((people, LATENT_DIM), dtype=np.float32)
    meaning = traits(latent)

    def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.random.default_rng([seed, step]).integers(0, people, batch)
        return latent[index], meaning[index]

    return draw


class PriorData:
    """All samples of a folder of `fast_heads` shards in memory; batches are functions of (seed, step)."""

    def __init__(self, folder: Path, limit: int | None = None):
        self.data = load_shards(Path(folder), limit=limit)
        self.traits = traits(latents(self.data['identity'], self.data['gamma']))
        self.weight_boxes = part_boxes(self.data['landmarks'])
        n, r = self.data['mask'].shape[:2]
        self.resolution = r
        axis = (np.arange(r) + 0.5) / r
        y, x = np.meshgrid(axis, axis, indexing='ij')
        self._pixels = np.stack([x, y], -1).reshape(-1, 2)
        self._size = n

    def __len__(self) -> int:
        return self._size

    def weights(self, index: np.ndarray) -> np.ndarray:
        """[N, r, r] importance of every pixel."""
        return importance(self.data['mask'][index], self.weight_boxes[index])

    def order(self, seed: int, step: int, batch: int) -> np.ndarray:
        """Which samples step `step` uses: every epoch is another permutation."""
        start = step * batch
        return np.array(
            [_permutation(seed, i // self._size, self._size)[i % self._size] for i in range(start, start + batch)]
        )

    def common(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Latent [N, 200], window [N, 27, 70] and label [N, 25].

        Every fourth sample holds still for its whole window, as a photograph does.
        """
        window = self.data['window'][index]
        still = (self.data['index'][index] % 4 == 0)[:, None, None]
        window = np.where(still, window[:, RADIUS : RADIUS + 1], window)
        return {'traits': self.traits[index], 'window': window, 'label': self.data['label'][index]}

    def frames(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of whole pictures for `prior.frames_loss`."""
        weight = self.weights(index)
        return self.common(index) | {
            'image': self.data['rgb'][index].astype(np.float32) / 127.5 - 1,
            'mask': self.data['mask'][index].astype(np.float32) / 255,
            'weight': weight / weight.mean(),
        }

    def _pick(self, index: np.ndarray, count: int, rng: np.random.Generator):
        """Draws ``count`` pixels per picture by importance: (a function that takes them from [N, r, r, ...], rays).

        The draw already carries the importance, so the weight of a drawn pixel is one.
        """
        n, r = len(index), self.resolution
        weight = self.weights(index).reshape(n, -1)
        # The `count` smallest exponential clocks: a weighted draw without replacement.
        clocks = rng.standard_exponential((n, r * r), dtype=np.float32) / weight
        picked = np.argpartition(clocks, count, axis=1)[:, :count]

        def take(name: str) -> np.ndarray:
            values = self.data[name][index]
            return np.take_along_axis(values.reshape(n, r * r, -1), picked[..., None], 1).astype(np.float32)

        return take, _rays(self.data['label'][index], self._pixels[picked])

    def rays(self, index: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A batch of `count` rays per picture for `prior.rays_loss`."""
        take, (origins, directions) = self._pick(index, count, rng)
        return self.common(index) | {
            'origins': origins,
            'directions': directions,
            'rgb': take('rgb') / 127.5 - 1,
            'mask': take('mask')[..., 0] / 255,
            'depth': take('depth')[..., 0],
            'weight': np.ones((len(index), count), np.float32),
        }

    def points(self, index: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A batch for `prior.points_loss`: two points on each of ``count`` rays per picture.

        The depth is known, so there is no need to march: the first point lies around the visible surface and has its
        colour; the second lies in the empty space before it, or in the solid close behind it. On rays that meet
        nothing both are empty. What should be there is `solid`, 0 to 1: at half-covered pixels, their cover.
        """
        take, (origins, directions) = self._pick(index, count, rng)
        depth, mask = take('depth')[..., 0], take('mask')[..., 0] / 255
        seen = depth > 0
        shape = depth.shape
        u = rng.random((3, *shape), dtype=np.float32)
        offset = NEAR_STD * np.clip(rng.standard_normal(shape, dtype=np.float32), -2.5, 2.5)
        anywhere = NEAREST + (FARTHEST - NEAREST) * u[:2]
        front = depth - IN_FRONT - (depth - IN_FRONT - NEAREST) * u[1] ** 2  # most of them close to the surface
        behind = depth + 0.5 * IN_FRONT + (DEEPEST - 0.5 * IN_FRONT) * u[1]
        inside = u[2] < 0.3
        first = np.where(seen, depth + offset, anywhere[0])
        second = np.where(seen, np.where(inside, behind, front), anywhere[1])
        # A smooth step of the width of a few samples: depths are those of pixels, not of points.
        crossed = 1 / (1 + np.exp(-np.clip(offset / 0.002, -30, 30)))
        depths = np.concatenate([first, second], 1)[..., None]
        points = np.tile(origins, (1, 2, 1)) + depths * np.tile(directions, (1, 2, 1))
        solid = np.concatenate([np.where(seen, crossed * mask, 0), np.where(seen & inside, mask, 0)], 1)
        return self.common(index) | {
            'points': points.astype(np.float32),
            'solid': solid.astype(np.float32),
            'rgb': take('rgb') / 127.5 - 1,
            'weight': (mask > 0.99).astype(np.float32),
        }


def _rays(labels: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [N, M, 3] through image positions [N, M, 2] in [0, 1]."""
    pose, intrinsics = labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)
    lifted = np.concatenate([pixels, np.ones((*pixels.shape[:2], 1))], -1)
    directions = np.einsum('nij,nmj->nmi', pose[:, :3, :3] @ np.linalg.inv(intrinsics), lifted)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = np.broadcast_to(pose[:, None, :3, 3], directions.shape)
    return origins.astype(np.float32), directions.astype(np.float32)
