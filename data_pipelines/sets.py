"""Batches of frame sets for methods that encode portraits: frames of one clip, some that drive and some others.

Every epoch shows every person once, in a new order; all frames of a set differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.procedural.streams import Stream
from data_pipelines.stream import Batches, Order


@dataclass(frozen=True)
class SetConfig:
    """What decides the stream of batches, and how it is read.

    Attributes:
        batch_size: sets per step over all processes.
        frames: per set.
        seed: order of people, choice of clips, cameras and frames.
        num_threads, prefetch: reading threads, and elements read ahead; they do not change the batches.
    """

    batch_size: int = 4
    frames: int = 3
    seed: int = 0
    num_threads: int = 2
    prefetch: int = 8

    def __post_init__(self):
        check = Check(self)
        check.at_least(2, 'frames')
        check.at_least(0, 'seed')


class Sets:
    """The set at any position of the endless stream; ``source`` is one of ``data_pipelines.sources``."""

    def __init__(self, source, config: SetConfig):
        self.source, self.config = source, config
        self.people = source.table.people
        self._order = Order(len(self.people), config.seed, 'people')

    def choice(self, position: int) -> tuple[int, list[int], list[int]]:
        """Clip, cameras, frames.

        Raises:
            UserError: a clip with fewer frames than a set.
        """
        rng, table = Stream(self.config.seed, 'set', position), self.source.table
        clips = table.clips_of(self.people[self._order[position]])
        clip = int(clips[rng.integers(0, len(clips))])
        count = int(table.num_frames[clip])
        if count < self.config.frames:
            raise UserError(f'{table.name[clip]}: has {count} frames, sets need {self.config.frames}; use longer clips')
        frames = np.argsort(rng.random(count), kind='stable')[: self.config.frames]
        cameras = [int(rng.integers(0, int(table.num_cameras[clip]))) for _ in frames]
        return clip, cameras, [int(f) for f in frames]

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        clip, cameras, frames = self.choice(position)
        table = self.source.table
        rows = [self.source[table.record(clip, c, f)] for c, f in zip(cameras, frames, strict=True)]
        depths = {'depths': np.stack([r['depth'] for r in rows])} if 'depth' in rows[0] else {}
        shapes = {'shapes': np.stack([r['shape'] for r in rows])} if 'shape' in rows[0] else {}
        return (
            depths
            | shapes
            | {
                'images': np.stack([r['image'] for r in rows]).astype(np.float32) / 127.5 - 1.0,
                'labels': np.stack([r['label'] for r in rows]),
                'windows': np.stack([table.window(clip, c, f) for c, f in zip(cameras, frames, strict=True)]),
                'masks': np.stack([r['mask'] for r in rows]),
                **({'landmarks': np.stack([r['landmarks'] for r in rows])} if 'landmarks' in rows[0] else {}),
                **({'boxes': np.stack([r['box'] for r in rows])} if 'box' in rows[0] else {}),
                **({'identity': rows[0]['identity']} if 'identity' in rows[0] else {}),
                'person': np.int64(table.person[clip]),
            }
        )


def set_batches(
    source, config: SetConfig, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Endless batches of sets, beginning at ``start_step``.

    Args:
        start_step, process_index, process_count: see ``data_pipelines.stream.Batches``.

    Returns:
        Iterator of dicts of numpy arrays, B = batch_size / process_count: ``images`` [B,F,H,W,3] in [-1,1], ``labels``
        [B,F,25], ``windows`` [B,F,27,70], ``masks`` [B,F,H,W] uint8 (255 = head), ``landmarks``
        [B,F,68,2] pixels, ``identity`` [B,192] (both where the source has them), ``person`` [B]; from some sources
        ``boxes`` [B,F,4] of the faces, relative to the picture, ``depths`` [B,F,H,W] along
        the ray, ``shapes`` [B,F,S] of the heads in the data's basis.
    """
    return Batches(
        Sets(source, config),
        config.batch_size,
        start_step,
        process_index,
        process_count,
        0,
        config.num_threads,
        config.prefetch,
    )
