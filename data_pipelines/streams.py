"""What trainings read: frames of people in pairs and in sets, and single pictures, as streams that begin at any step.

``avatar-jax train`` hands this module to a method's training, which takes from it what it needs. All streams give this
process's rows of the global batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from avatar_jax import processes
from avatar_jax.errors import UserError
from avatar_jax.faces.conventions import Conventions

if TYPE_CHECKING:
    from avatar_jax.models.triplane import GeneratorConfig
    from avatar_jax.train.run import ClipsConfig, PersonConfig, PicturesConfig
    from avatar_jax.types import PyTree
    from data_pipelines.image_sources import Images
    from data_pipelines.one_person.frames import PersonVideo
    from data_pipelines.sources import ClipFrames

T = TypeVar('T')
_SPLITS = {'validation': 'val'}  # of procedural people


def clips(data: ClipsConfig, resolution: int, weights: Conventions, notes: list[str] | None = None) -> ClipFrames:
    """The frames that a ``train.run.ClipsConfig`` names, with labels and backgrounds as the model knows them.

    Args:
        resolution: of rendered heads, where the configuration does not say it. weights: conventions of the model.
        notes: gets what differs between data and model without harm.

    Raises:
        UserError: no such data, or they do not fit the model's conventions.
    """
    from data_pipelines.camera_effects import CameraFrames
    from data_pipelines.clips import ClipOptions
    from data_pipelines.fitted import fitted
    from data_pipelines.sources import MemoryFrames, RenderedFrames, open_source

    size = data.resolution or resolution
    if data.source == 'built':
        source = open_source(data.folder, data.split)
    elif data.source == 'heads':
        source = _heads(data, size)
    else:
        split, options = _SPLITS.get(data.split, data.split), ClipOptions(num_frames=data.frames, looks=data.looks)
        source = RenderedFrames.of_people(data.people, data.seed, split, data.clips_per_person, size, options)
    source, found = fitted(source, weights, data.folder or f'data.source {data.source}')
    if notes is not None:
        notes += [f'data: {note}' for note in found]
    keep = data.in_memory and data.source != 'heads'  # those are in memory already
    if keep:
        source = MemoryFrames(source, progress=processes.is_first())
    return CameraFrames(source, data.camera, data.camera_seed) if data.camera > 0 else source


def _heads(data: Any, resolution: int) -> Any:
    """The pictures of ``data.source='heads'``; makes those that are missing (which resumes)."""
    from data_pipelines.fast_heads import FastHeadsConfig, generate
    from data_pipelines.sources import HeadShards

    split = _SPLITS.get(data.split, data.split)
    config = FastHeadsConfig(data.seed, split, resolution, frames_per_identity=data.frames, looks=data.looks)
    count = data.people * data.frames
    if processes.is_first():
        generate(config, Path(data.folder), 0, count, workers=os.cpu_count() or 1)
    processes.agree('the data', {'pictures': count})  # also waits until they are there
    return HeadShards(data.folder, data.people)


def share(batch_size: int) -> tuple[int, int]:
    """Number of this process and count of processes, for the stream of a global batch.

    Raises:
        UserError: the batch does not divide among the processes.
    """
    import jax

    if batch_size % jax.process_count():
        raise UserError(f'batch of {batch_size}: not divisible by {jax.process_count()} processes; use a multiple')
    return jax.process_index(), jax.process_count()


class PairData(Protocol):
    """How pairs are drawn and read; see ``data_pipelines.pairs.PairConfig``."""

    cameras: str
    num_workers: int
    num_threads: int
    prefetch: int


def pairs(
    source: ClipFrames, data: PairData, batch_size: int, seed: int, sampling: str, start: int = 0, frames: int = 2
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of two (or ``frames``) frames of each person, from step ``start`` on; see ``data_pipelines.pairs``."""
    from data_pipelines.pairs import PairConfig, pair_batches

    settings = PairConfig(
        batch_size, seed, sampling, data.cameras, data.num_workers, data.num_threads, data.prefetch, frames
    )
    with pair_batches(source, settings, start, *share(batch_size)) as batches:
        yield from batches


def sets(
    source: ClipFrames, data: ClipsConfig, batch_size: int, frames: int, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of several frames of each person, from step ``start`` on; see ``data_pipelines.sets.set_batches``."""
    from data_pipelines.sets import SetConfig, set_batches

    settings = SetConfig(batch_size, frames, seed, data.num_threads, data.prefetch)
    with set_batches(source, settings, start, *share(batch_size)) as batches:
        yield from batches


def first_sets(
    source: ClipFrames, frames: int, seed: int, count: int, arrays: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """``count`` single sets, stacked, the same in every process: for sample pictures and statistics.

    Args:
        arrays: names of those that are kept, as far as the source has them; None: all.
    """
    from data_pipelines.sets import SetConfig, Sets

    each = Sets(source, SetConfig(1, frames, seed))
    rows = [{k: v for k, v in each(k).items() if arrays is None or k in arrays} for k in range(count)]
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}


def pictures(data: PicturesConfig, resolution: int, quiet: bool = False) -> Images:
    """The single pictures that a data configuration names; see ``data_pipelines.image_sources.open_images``."""
    from data_pipelines.image_sources import open_images

    return open_images(data, resolution, progress=not quiet and processes.is_first())


def images(
    source: Images, data: PicturesConfig, batch_size: int, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of single pictures (uint8) and their cameras, from step ``start`` on."""
    from data_pipelines.eg3d_images import image_batches

    stream = image_batches(
        source,
        batch_size,
        seed,
        start,
        *share(batch_size),
        data.num_workers,
        data.num_threads,
        data.prefetch,
        as_bytes=True,
    )
    with stream as batches:
        yield from batches


def first(stream: Iterator[T]) -> T:
    """The first batch of a stream, which is closed then; says early when there is too little data."""
    with closing(stream):
        return next(stream)


def person(data: PersonConfig, size: int, label_mode: str, notes: list[str] | None = None) -> PersonVideo:
    """The video of one person that a ``train.run.PersonConfig`` names, as a ``one_person.frames.PersonVideo``.

    Talking videos of procedural people are made where they are missing.

    Args:
        size: side of the pictures in memory. label_mode: of the model, by which tracked poses become cameras.
        notes: gets what was done, or differs without harm.

    Raises:
        UserError: no such video, one of another person than the configuration's, or one that is too short.
    """
    from data_pipelines.one_person.released import read_released
    from data_pipelines.one_person.tracked import read_tracked

    if data.source == 'talking':
        found = _talking(data, label_mode)
    elif data.source == 'tracked':
        found = read_tracked(
            data.folder,
            sound=data.sound or None,
            label_mode=label_mode,
            label_sigma=data.label_sigma,
            background=data.background,
            test_share=data.test_share,
        )
    else:
        found = read_released(data.folder, axes=data.axes, label_sigma=data.label_sigma, sound_index=data.sound_index)
    if notes is not None:
        notes += [f'data: {note}' for note in found.notes]
    return found.in_memory(size) if data.in_memory else found


def _talking(data: Any, label_mode: str) -> Any:
    """The video of ``data.source='talking'``; makes it if it is missing."""
    from contextlib import nullcontext

    from avatar_jax.progress import Progress
    from data_pipelines.one_person.procedural import TalkOptions, is_talking, read_talking, read_truth
    from data_pipelines.one_person.procedural import write_talking_video as write
    from data_pipelines.workers import worker_pool

    if label_mode != 'raw':
        raise UserError(f"model.label_mode: {label_mode!r}; talking videos have cameras of 'raw'")
    options = TalkOptions(data.frames, data.fps, data.size, supersample=data.supersample)
    folder = Path(data.folder)
    if processes.is_first() and not is_talking(folder):
        with (
            worker_pool(data.workers) if data.workers > 1 else nullcontext() as pool,
            Progress(data.frames, f'drawing {folder.name}', unit='frame') as bar,
        ):
            write(folder, data.seed, data.person, options, pool=pool, on_frame=lambda: bar.update(1))
    processes.agree('the data', {'frames': data.frames})  # also waits until they are there
    truth = read_truth(folder)
    there = {'seed': int(truth['seed']), 'person': int(truth['person']), 'frames': len(truth['labels'])}
    for name, value in there.items():
        if value != getattr(data, name):
            raise UserError(
                f'{folder}: is the video of {name} {value}, but data.{name} is {getattr(data, name)}; set it alike, or '
                'choose another data.folder'
            )
    return read_talking(folder, data.test_share)


def frechet(source: Images, inception: str, count: int, seed: int, batch: int = 16) -> Callable[..., float]:
    """The FID of a generator to all pictures of a source: (variables, configuration, labels [M,25]) -> number.

    Args:
        inception: file of the Inception network. count: generated pictures; their codes follow from ``seed``.

    Raises:
        UserError: the file cannot be used.
    """
    from avatar_jax.eval.distributions import frechet_distance
    from avatar_jax.eval.generators import fake_features, real_features
    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.models.perception.inception import fid_features

    weights, real = PerceptionBank.load({'inception': inception}).weights['inception'], []

    def distance(variables: PyTree, config: GeneratorConfig, labels: np.ndarray) -> float:
        if not real:  # the same for the whole run
            real.append(real_features(source, weights, fid_features, batch)(0, len(source)))
        fake = fake_features(variables, config, labels, weights, fid_features, seed, batch)(0, count)
        return frechet_distance(real[0], fake)

    return distance
