"""Parts of a run's configuration that the methods have in common: where data come from, and what a run writes."""

from __future__ import annotations

from dataclasses import dataclass

from avatar_jax.errors import UserError
from avatar_jax.train.loop import LoopConfig


@dataclass(frozen=True)
class ClipsConfig:
    """Where clips come from.

    Attributes:
        source: 'rendered' (clips of procedural heads, drawn when asked for), 'built' (a data set on disk: one that was
            built here, or clips that were processed for OTAvatar) or 'heads' (``data_pipelines.fast_heads``: pictures
            of procedural heads in any pose and expression, made once into ``folder`` and then read from memory).
        folder: of the data set. split: its split.
        people, clips_per_person, frames, resolution, seed: of rendered heads and (without clips) of 'heads'; resolution
            0 is that of the generator.
        in_memory: decode or render every frame once and keep it.
        num_threads, prefetch: how batches are read; they do not change them.
    """

    source: str = 'rendered'
    folder: str = ''
    split: str = 'train'
    people: int = 64
    clips_per_person: int = 1
    frames: int = 50
    resolution: int = 0
    seed: int = 0
    in_memory: bool = False
    num_threads: int = 2
    prefetch: int = 8

    def __post_init__(self):
        if self.source not in ('rendered', 'built', 'heads'):
            raise UserError(f"data.source: {self.source!r}; use 'rendered', 'built' or 'heads'")
        if self.source == 'built' and not self.folder:
            raise UserError("data.folder: give the folder of the built data set, or use data.source='rendered'")
        if self.source == 'heads' and (not self.folder or self.clips_per_person != 1):
            raise UserError("data: source='heads' needs a folder for its pictures, and clips_per_person=1")


@dataclass(frozen=True)
class PicturesConfig:
    """Where single pictures and their cameras come from.

    Attributes:
        source: 'eg3d' (folder or zip with dataset.json), 'built' (TFDS, ``data_pipelines.eg3d_tfds``), 'fast_heads'
            (folder of shards) or 'rendered' (procedural heads, drawn when asked for).
        folder: of the first three. split: of 'built' and the procedural heads.
        mirror: 'off', 'images+labels' (twice the set, cameras mirrored too) or 'images' (as the original's flag).
        max_size: largest number of pictures to use, chosen by ``seed``; 0: all.
        count, seed: number of heads of 'rendered', and the seed that chooses them.
        in_memory: decode or draw everything once and keep it.
        num_workers, num_threads, prefetch: how batches are read; they do not change them.
    """

    source: str = 'rendered'
    folder: str = ''
    split: str = 'train'
    mirror: str = 'off'
    max_size: int = 0
    count: int = 2000
    seed: int = 0
    in_memory: bool = False
    num_workers: int = 0
    num_threads: int = 2
    prefetch: int = 64

    def __post_init__(self):
        if self.source not in ('eg3d', 'built', 'fast_heads', 'rendered'):
            raise UserError(f"data.source: {self.source!r}; use 'eg3d', 'built', 'fast_heads' or 'rendered'")
        if self.source != 'rendered' and not self.folder:
            raise UserError(f'data.folder: give the folder or file of the data set (data.source={self.source!r})')
        if self.source == 'rendered' and self.count < 1:
            raise UserError('data.count: must be at least 1')


@dataclass(frozen=True)
class OutputConfig:
    """When a run logs, draws samples and writes checkpoints; see ``train.loop.LoopConfig``. Counts are steps."""

    log_every: int = 10
    sample_every: int = 100
    checkpoint_every: int = 100
    keep: int = 2
    keep_every: int = 0
    nonfinite: str = 'stop'
    max_skipped: int = 20
    tensorboard: bool = True

    def loop(self, total_steps: int) -> LoopConfig:
        """The settings of the loop for a run of ``total_steps``."""
        return LoopConfig(
            total_steps,
            self.log_every,
            self.sample_every,
            self.checkpoint_every,
            self.keep,
            self.keep_every,
            self.nonfinite,
            self.max_skipped,
            self.tensorboard,
        )


@dataclass(frozen=True)
class PeopleOutput(OutputConfig):
    """``sample_people``: how many people a sample picture shows; 0 draws none."""

    sample_people: int = 3
