"""People that no training has seen, as cases of an evaluation: procedural heads, or clips of a data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval.cases import Case, ProtocolConfig, clip_case, procedural_case
from avatar_jax.eval.evaluation import TestItem
from avatar_jax.faces.conventions import Conventions
from avatar_jax.types import Motion

FIELDS = {
    'image': (1 / 127.5, -1.0),
    'mask': (1 / 255, 0.0),
    'label': (1.0, 0.0),
    'landmarks': (1.0, 0.0),
}  # scale, shift


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


class _Frames:
    """One field of the frames of a clip, read when they are asked for: pictures in [-1, 1], masks in [0, 1]."""

    def __init__(self, row: Callable[[int], Mapping[str, np.ndarray]], length: int, field: str):
        self.row, self.length, self.field = row, length, field

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        scale, shift = FIELDS[self.field]
        rows = np.stack([self.row(int(k))[self.field] for k in np.asarray(index)])
        return rows.astype(np.float32) * np.float32(scale) + np.float32(shift)


def clip_items(source: Any, count: int, config: ProtocolConfig) -> list[TestItem]:
    """The first clip of up to ``count`` people of a source of frames; each drives itself from the clip's first frame.

    Args:
      source: one of ``data_pipelines.sources``.
      count: people.
      config: see ``ProtocolConfig``; its resolution must be that of the pictures.

    Raises:
      UserError: pictures of another size.
    """
    table = source.table
    size = source[0]['image'].shape[0]
    if size != config.resolution:
        raise UserError(
            f'the data set has pictures of {size} pixels, the avatars have {config.resolution}; '
            f'give a data set of {config.resolution} pixels'
        )

    def make(clip: int) -> Case:
        length, start = int(table.num_frames[clip]), table.record(clip, 0, 0)
        part = table.motion[start : start + length]
        motion = Motion(part[:, :64], part[:, 64:67], part[:, 67:70], float(table.fps), table.basis)
        row = lru_cache(maxsize=64)(lambda k: source[start + k])  # the four fields share what was read
        pictures, masks, labels, landmarks = (_Frames(row, length, k) for k in FIELDS)
        return clip_case(
            str(table.name[clip]),
            motion,
            labels,
            pictures,
            masks,
            landmarks,
            frames=config.frames,
            portraits=config.portraits,
        )

    clips = [int(table.clips_of(person)[0]) for person in table.people[:count]]
    return [TestItem(str(table.name[clip]), lambda k=clip: make(k)) for clip in clips]


def items_of(
    dataset: Any, split: str, count: int, seed: int, config: ProtocolConfig, weights: Conventions
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
        if weights.basis != 'procedural':
            raise UserError(
                f"--weights: these read the basis '{weights.basis}', fresh people are procedural; give a data set "
                'with --dataset'
            )
        about = {'people': f'procedural, split {split}', 'reenactment': "another person's motion"}
        return procedural_items(count, seed, config, split), about
    source, notes = fitted(open_source(dataset, split), weights, str(dataset))
    about = {'people': f'{dataset.resolve()}, split {split}', 'reenactment': 'own motion'}
    about |= {'conventions': '; '.join(notes)} if notes else {}
    return clip_items(source, count, config), about


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
        }

    return person
