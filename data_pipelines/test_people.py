"""People that no training has seen, as cases of an evaluation: procedural heads, or clips of a data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval.cases import Case, procedural_case
from avatar_jax.eval.evaluation import TestItem
from avatar_jax.eval.options import VIDEO_FRAMES, ProtocolConfig
from avatar_jax.eval.recorded import Recording, cross_case, own_case, remembering, views_case
from avatar_jax.faces.conventions import Conventions, of_model
from avatar_jax.types import Motion

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model
    from data_pipelines.sources import ClipFrames

REENACTMENT = {
    'own': 'own motion',
    'cross': "another person's motion",
    'views': 'own motion, seen by all cameras',
}


def procedural_items(count: int, seed: int, config: ProtocolConfig, split: str = 'test') -> list[TestItem]:
    """``count`` procedural people that no training has seen; each is driven by the next one's motion."""
    from data_pipelines.clips import evaluation_clips

    if count < 1:
        raise UserError(f'--identities {count}: must be at least 1')
    if seed < 0:
        raise UserError(f'--seed {seed}: must not be negative')
    # Clips are made one person at a time: only numbers, no pictures.
    clips = evaluation_clips(count + 1, seed, split, config.clip_frames, num_cameras=3)
    return [
        TestItem(person.name, lambda a=person, b=driver: procedural_case(a, b, config))
        for person, driver in itertools.pairwise(clips)
    ]


def recording(source: ClipFrames, clip: int) -> Recording:
    """A clip of a source of frames."""
    table = source.table
    length, start = int(table.num_frames[clip]), table.record(clip, 0, 0)
    part = table.motion[start : start + length]
    fps = float(table.fps if table.clip_fps is None else table.clip_fps[clip])
    motion = Motion(part[:, :64], part[:, 64:67], part[:, 67:70], fps, table.basis)

    def row(camera: int, frame: int) -> Mapping[str, np.ndarray]:
        found = source[table.record(clip, camera, frame)]
        return found if source.has_masks else {k: v for k, v in found.items() if k != 'mask'}

    return Recording(
        str(table.name[clip]),
        motion,
        remembering(row),
        lambda camera, frame: table.window(clip, camera, frame),
        int(table.num_cameras[clip]),
    )


def clip_items(source: ClipFrames, count: int, config: ProtocolConfig) -> list[TestItem]:
    """The first clip of up to ``count`` people of a source of frames, as ``config.kind`` tests it.

    Args:
        source: one of ``data_pipelines.sources``.
        count: people.
        config: see ``ProtocolConfig``; its resolution must be that of the pictures.

    Raises:
        UserError: pictures of another size; no such driver, or nobody who could be one; one camera for 'views'.
    """
    table = source.table
    size = source[0]['image'].shape[0]
    if size != config.resolution:
        raise UserError(
            f'the data set has pictures of {size} pixels, the avatars have {config.resolution}; '
            f'give a data set of {config.resolution} pixels'
        )
    clips = [int(table.clips_of(person)[0]) for person in table.people]
    names = [str(n) for n in table.name]
    if config.driver and config.driver not in names:
        raise UserError(f'--driver {config.driver}: no such clip; there are {", ".join(names[:4])}, ...')
    if config.kind == 'cross' and not config.driver and len(clips) < 2:
        raise UserError('--protocol cross: the data set has one person; name the clip that drives with --driver')
    if config.kind == 'views' and int(table.num_cameras.max()) < 2:
        raise UserError('--protocol views: the clips were seen by one camera each; give multi-view data')
    items = []
    for k, clip in enumerate(clips):
        other = names.index(config.driver) if config.driver else clips[(k + 1) % len(clips)]
        if config.kind == 'cross' and table.person[other] == table.person[clip]:
            continue  # nobody is driven by themselves
        items.append(TestItem(names[clip], lambda a=clip, b=other: _case(source, a, b, config)))
    return items[:count]


def _case(source: Any, clip: int, driver: int, config: ProtocolConfig) -> Case:
    person = recording(source, clip)
    if config.kind == 'views':
        return views_case(person, config.frames)
    if config.kind == 'cross':
        return cross_case(person, recording(source, driver), config.frames, config.portraits, config.rule)
    return own_case(person, config.frames, config.portraits, config.rule, config.steady)


def items_of(
    dataset: Path | None, split: str, count: int, seed: int, config: ProtocolConfig, weights: Conventions
) -> tuple[list[TestItem], dict[str, str]]:
    """The people of an evaluation, and what they are, in words.

    Args:
        dataset: folder of a data set; None: fresh procedural people. weights: conventions of the model.

    Raises:
        UserError: data that do not fit the model's conventions.
    """
    from data_pipelines.fitted import fitted
    from data_pipelines.sources import open_source

    if dataset is None:
        for flag, value, default in (('protocol', config.kind, 'own'), ('portrait-frames', config.rule, 'spread')):
            if value != default:
                raise UserError(
                    f'--{flag} {value}: is of recorded clips; give a data set with --dataset (procedural people are '
                    'seen from three sides and driven by others as it is)'
                )
        if weights.basis != 'procedural':
            raise UserError(
                f"--weights: these read the basis '{weights.basis}', fresh people are procedural; give a data set "
                'with --dataset'
            )
        about = {'people': f'procedural, split {split}', 'reenactment': "another person's motion"}
        return procedural_items(count, seed, config, split), about
    if config.source_yaw:
        raise UserError('--source-yaw: recorded people are seen as they were; leave out --dataset to turn cameras')
    source, notes = fitted(open_source(dataset, split), weights, str(dataset))
    about = {'people': f'{dataset.resolve()}, split {split}', 'reenactment': REENACTMENT[config.kind]}
    about |= {'conventions': '; '.join(notes)} if notes else {}
    return clip_items(source, count, config), about


def people_for(
    model: Model,
    config: ProtocolConfig,
    dataset: Path | None,
    split: str,
    count: int,
    seed: int,
    video_frames: int,
    out: Path,
) -> tuple[list[TestItem], dict[str, str]]:
    """The people on whom a model is evaluated, as its method is shown them, and what they are, in words.

    Args:
        dataset: folder of a data set; None: fresh procedural people. split, count, seed: which of them.
        video_frames: frames of the videos that are drawn for a method that learns from one, into ``out``.

    Raises:
        UserError: data that do not fit the model; a length of videos for a method that learns from pictures.
    """
    owner = model.method
    if owner.sources == ('video',):
        from data_pipelines.test_videos import video_items

        return video_items(dataset, count, seed, config.frames, video_frames, out)
    if video_frames != VIDEO_FRAMES:
        raise UserError(f'--video-frames {video_frames}: {owner.title} learns from pictures; leave it out')
    return items_of(dataset, split, count, seed, config, of_model(model.config))


def portrait_sets(people: int, most: int, resolution: int, seed: int = 0) -> Callable[[int], Mapping[str, np.ndarray]]:
    """Number of a person of the test split -> one driver frame and ``most`` portraits with independent poses (yaw up to
    45 degrees to either side, pitch up to 20), expressions and blinks.
    """
    from data_pipelines.fast_heads import FastHeadsConfig, sample

    config = FastHeadsConfig(seed, 'test', resolution, frames_per_identity=1 + most, speech_share=0.0)

    def person(number: int) -> dict[str, np.ndarray]:
        if not 0 <= number < people:
            raise IndexError(f'person {number} of {people}')
        rows = [sample(config, number * (1 + most) + k) for k in range(1 + most)]
        return {
            'images': np.stack([r['rgb'] for r in rows]).astype(np.float32) / 127.5 - 1.0,
            'windows': np.stack([r['window'] for r in rows]),
            'labels': np.stack([r['label'] for r in rows]),
            'masks': np.stack([r['mask'] for r in rows]),
            'landmarks': np.stack([r['landmarks'] for r in rows]),
            'identity': rows[0]['identity'],
        }

    return person
