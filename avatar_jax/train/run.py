"""Parts of a run's configuration that the methods have in common: where data come from, and what a run writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.procedural.looks import VERSIONS
from avatar_jax.train.loop import LoopConfig


def check_pictures(check: Check, data: ClipsConfig | PicturesConfig) -> None:
    """The fields that say how drawn pictures look."""
    check.one_of('looks', *VERSIONS)
    check.at_least(0, 'camera', 'camera_seed')
    drawn = data.source in ('rendered', 'heads')
    check.need(drawn or data.looks == 1, 'looks', f"is of drawn heads; source '{data.source}' has its pictures already")


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
        looks: version of the looks of procedural heads that are drawn, 1 or 2 (docs/data.md).
        camera: strength of the effects of a camera (blur, noise, JPEG, white balance, vignette) that pictures get when
            they are read, 1 for the full range; 0: none. camera_seed: which effects.
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
    looks: int = 1
    camera: float = 0.0
    camera_seed: int = 0

    ADDED_FIELDS: ClassVar = ('looks', 'camera', 'camera_seed')

    def __post_init__(self):
        check = Check(self, 'data')
        check.one_of('source', 'rendered', 'built', 'heads')
        check_pictures(check, self)
        check.need(
            self.source == 'rendered' or bool(self.folder),
            'folder',
            f"source '{self.source}' needs a folder, for its {'pictures' if self.source == 'heads' else 'data set'}",
        )
        check.need(
            self.source != 'heads' or self.clips_per_person == 1, 'clips_per_person', "must be 1 with source 'heads'"
        )


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
        looks: version of the looks of procedural heads that are drawn, 1 or 2 (docs/data.md).
        camera: strength of the effects of a camera (blur, noise, JPEG, white balance, vignette) that pictures get when
            they are read, 1 for the full range; 0: none. camera_seed: which effects.
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
    looks: int = 1
    camera: float = 0.0
    camera_seed: int = 0

    ADDED_FIELDS: ClassVar = ('looks', 'camera', 'camera_seed')

    def __post_init__(self):
        check = Check(self, 'data')
        check.one_of('source', 'eg3d', 'built', 'fast_heads', 'rendered')
        check_pictures(check, self)
        check.need(
            self.source == 'rendered' or bool(self.folder),
            'folder',
            f"source '{self.source}' needs the folder or file of the data set",
        )
        if self.source == 'rendered':
            check.at_least(1, 'count')


@dataclass(frozen=True)
class PersonConfig:
    """Where the video of one person comes from.

    Attributes:
        source: 'talking' (a video of a procedural person with sound, made once into ``folder``), 'tracked' (a folder
            of ``avatar-jax track``) or 'released' (NerFACE's and AD-NeRF's layout as HFA-GP was released with).
        folder: of the video.
        person, seed, frames, fps, size, supersample: of 'talking': which person of which set, length, frames per
            second, side of the pictures, samples per pixel along each axis.
        test_share: the last part of the video, which training does not see ('released' has its own).
        sound: file with the sound of 'tracked'; '' takes that of the video.
        label_sigma: smoothing of the camera labels in time, in frames ('tracked' and 'released'); 0: none.
        axes: of the labels of 'released': 'opencv' or 'opengl'. sound_index: see
            ``data_pipelines.one_person.released.read_released``.
        background: of 'tracked': 'keep', or 'white' by the masks.
        in_memory: read every picture once and keep it, at the size at which pictures are compared.
        workers: processes that draw 'talking'; they do not change it.
    """

    source: str = 'talking'
    folder: str = ''
    person: int = 0
    seed: int = 0
    frames: int = 3000
    fps: float = 25.0
    size: int = 128
    supersample: int = 2
    test_share: float = 0.2
    sound: str = ''
    label_sigma: float = 0.0
    axes: str = 'opencv'
    sound_index: str = 'frame'
    background: str = 'keep'
    in_memory: bool = True
    workers: int = 1

    def __post_init__(self):
        check = Check(self, 'data')
        check.one_of('source', 'talking', 'tracked', 'released')
        check.need(bool(self.folder), 'folder', 'give the folder of the video (of talking heads: where it is made)')
        check.at_least(1, 'workers', 'frames', 'size', 'supersample')
        check.at_least(0, 'person', 'seed', 'label_sigma')
        used = {
            'talking': (),
            'tracked': ('sound', 'label_sigma', 'background'),
            'released': ('label_sigma', 'axes', 'sound_index'),
        }[self.source]
        for name in ('sound', 'label_sigma', 'background', 'axes', 'sound_index'):
            if name not in used and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(f'data.{name}: is not read with data.source={self.source!r}; leave it out')


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

    def __post_init__(self):
        check = Check(self, 'output')
        check.at_least(1, 'log_every', 'keep')
        check.at_least(0, 'sample_every', 'checkpoint_every', 'keep_every', 'max_skipped')
        check.one_of('nonfinite', 'stop', 'skip')

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
