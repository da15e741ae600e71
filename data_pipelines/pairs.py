"""Batches of frame pairs with motion windows, for training avatars from clips.

One element is two frames (or more, or one) of one clip of one person. Every epoch shows every person once, in a new
order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.procedural.streams import Stream
from data_pipelines.stream import Batches, Order

SAMPLINGS = ('expression', 'uniform')
CAMERA_CHOICES = ('any', 'same', 'front')


@dataclass(frozen=True)
class PairConfig:
    """What decides the stream of batches (all of it belongs into a run's metadata), and how it is read.

    Attributes:
        batch_size: pairs per step over all processes.
        seed: order of people, choice of clips and frames.
        sampling: 'expression' draws frames in proportion to the size of their expression (as OTAvatar's release does),
            'uniform' draws them evenly; the frames of an element are independent.
        cameras: which camera each frame of an element comes from: 'any' (independent), 'same' (one for all), 'front'.
        num_workers: worker processes; 0 reads in threads. Does not change the batches.
        num_threads: reading threads. Does not change the batches.
        prefetch: elements read ahead.
        frames: of one element.
    """

    batch_size: int = 4
    seed: int = 0
    sampling: str = 'expression'
    cameras: str = 'any'
    num_workers: int = 0
    num_threads: int = 2
    prefetch: int = 8
    frames: int = 2

    def __post_init__(self):
        check = Check(self)
        check.at_least(1, 'frames')
        check.one_of('sampling', *SAMPLINGS)
        check.one_of('cameras', *CAMERA_CHOICES)
        check.at_least(0, 'seed')


class Pairs:
    """The pair at any position of the endless stream.

    Args:
        source: one of ``data_pipelines.sources``.
        config: see ``PairConfig``.
    """

    def __init__(self, source, config: PairConfig):
        self.source, self.config = source, config
        self.people = source.table.people
        self._order = Order(len(self.people), config.seed, 'people')

    def choice(self, position: int) -> tuple[int, list[int], list[int]]:
        """Clip, and camera and number of each frame."""
        rng, table = Stream(self.config.seed, 'pair', position), self.source.table
        clips = table.clips_of(self.people[self._order[position]])
        clip = int(clips[rng.integers(0, len(clips))])
        count = self.config.frames
        cameras = [0] * count
        if self.config.cameras != 'front':
            cameras = [rng.integers(0, int(table.num_cameras[clip])) for _ in range(count)]
            if self.config.cameras == 'same':
                cameras = cameras[:1] * count
        weights = table.frame_weights(clip) if self.config.sampling == 'expression' else None
        frames = [int(k) for k in rng.choice(int(table.num_frames[clip]), count, p=weights)]
        return clip, cameras, frames

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        clip, cameras, frames = self.choice(position)
        table = self.source.table
        rows = [self.source[table.record(clip, c, f)] for c, f in zip(cameras, frames, strict=True)]
        return {
            'images': np.stack([r['image'] for r in rows]).astype(np.float32) / 127.5 - 1.0,
            'masks': np.stack([r['mask'] for r in rows]).astype(np.float32)[..., None] / 255.0,
            'windows': np.stack([table.window(clip, c, f) for c, f in zip(cameras, frames, strict=True)]),
            'labels': np.stack([r['label'] for r in rows]),
            **({'landmarks': np.stack([r['landmarks'] for r in rows])} if 'landmarks' in rows[0] else {}),
            **({'identity': rows[0]['identity']} if 'identity' in rows[0] else {}),
            **({'shapes': np.stack([r['shape'] for r in rows])} if 'shape' in rows[0] else {}),
            **({'latent': rows[0]['latent']} if 'latent' in rows[0] else {}),
            'person': np.int64(table.person[clip]),
            'clip': np.int64(clip),
            'frames': np.array(frames, np.int64),
            'cameras': np.array(cameras, np.int64),
        }


def pair_batches(
    source, config: PairConfig, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Endless batches of pairs, beginning at ``start_step``.

    Args:
        source: one of ``data_pipelines.sources``.
        config: see ``PairConfig``.
        start_step, process_index, process_count: see ``data_pipelines.stream.Batches``.
    Returns:
        Iterator of dicts of numpy arrays, B = batch_size / process_count, F = frames: ``images`` [B,F,H,W,3] in [-1,1],
        ``masks`` [B,F,H,W,1] in [0,1], ``windows`` [B,F,27,70], ``labels`` [B,F,25], ``person`` [B], ``clip`` [B],
        ``frames`` [B,F], ``cameras`` [B,F]; and where the source has them ``landmarks`` [B,F,68,2] pixels, ``shapes``
        [B,F,S] of the heads in the data's basis, ``identity`` [B,192], ``latent`` [B,200] (of heads that are made with
        one).
    Raises:
        UserError: the batch does not divide among the processes, or there are fewer people than processes.
    """
    pairs = Pairs(source, config)
    if len(pairs.people) < process_count:
        raise UserError(
            f'data set: {len(pairs.people)} people are too few for {process_count} processes; '
            'use fewer processes or more data'
        )
    return Batches(
        pairs,
        config.batch_size,
        start_step,
        process_index,
        process_count,
        config.num_workers,
        config.num_threads,
        config.prefetch,
    )
