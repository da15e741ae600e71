"""Videos of one person each, as cases of an evaluation: talking videos of procedural people, or tracked ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.eval.evaluation import TestItem
from avatar_jax.eval.personal import FramePortraits, VideoCase
from avatar_jax.methods.base import Source
from avatar_jax.track.folder import is_track
from avatar_jax.types import Motion
from data_pipelines.one_person.frames import PersonVideo
from data_pipelines.one_person.procedural import TalkOptions, is_talking, read_talking, read_truth
from data_pipelines.one_person.tracked import read_tracked


class _Pictures(Sequence):
    """Some pictures of a video, read when asked for."""

    def __init__(self, video: PersonVideo, numbers: np.ndarray):
        self.video, self.numbers = video, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.video.pictures[int(self.numbers[index])]


def video_case(name: str, video: PersonVideo, frames: int, truth: dict[str, np.ndarray] | None = None) -> VideoCase:
    """A video, of which the last part is compared.

    Args:
        frames: so many of them are compared, evenly spread. truth: of ``read_truth``, of a talking video.

    Raises:
        UserError: it has no last part.
    """
    test, train = video.test, video.train
    if len(test) < 2:
        raise UserError(f'{video.name}: has {len(test)} frames that no training sees; give a longer video')
    fps = float(1 / np.median(np.diff(video.times)))
    sound = {'sound': video.sound, 'times': video.times[train], 'fps': fps}
    source = Source(FramePortraits(video, train), 'video', name, start=float(video.times[train[0]]), **sound)
    unseen = FramePortraits(video, test)
    known = video.signals.get('coefficients')
    rows = np.zeros((len(test), 64), np.float32) if known is None else np.asarray(known[test], np.float32)
    motion = Motion(rows, unseen.angle, unseen.translation, fps, video.basis, video.name)
    count = min(frames, len(test))
    chosen = np.linspace(0, len(test) - 1, count).round().astype(int)
    pictures = _Pictures(video, test)
    shown = np.stack([pictures[i] for i in chosen]).astype(np.float32) / 127.5 - 1
    mask = None
    if video.masks is not None:
        mask = np.stack([_channel(video.masks[int(test[i])]) for i in chosen]).astype(np.float32) / 255
    extra = {} if truth is None else _mouths(truth, test[chosen], shown.shape[1])
    start = float(video.times[test[0]])
    return VideoCase(
        name, source, motion, video.labels[test], pictures, video.sound, start, chosen, shown, mask, **extra
    )


def _channel(mask: np.ndarray) -> np.ndarray:
    return mask[..., 0] if mask.ndim == 3 else mask


def _mouths(truth: dict[str, np.ndarray], frames: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """The heads of some frames with the mouth closed and wide open, and their landmarks."""
    from avatar_jax.eval.cases import mouth_expressions
    from avatar_jax.procedural import render_head

    def drawn(expression: np.ndarray) -> np.ndarray:
        heads = [
            render_head(truth['identity'], expression, label, truth['gamma'], resolution=size, supersample=2)
            for label in truth['labels'][frames]
        ]
        return (2 * np.stack([h.rgb for h in heads]) - 1).astype(np.float32)

    shut, wide = mouth_expressions()
    return {'closed': drawn(shut), 'opened': drawn(wide), 'landmarks': truth['landmarks'][frames]}


def video_items(
    dataset: Path | None, count: int, seed: int, frames: int, length: int, out: Path, workers: int = 1
) -> tuple[list[TestItem], dict[str, str]]:
    """The people of an evaluation, and what they are, in words.

    Args:
        dataset: folder of one talking or tracked video, or of several; None draws ``count`` people into ``out/people``.
        frames: of each that are compared. length: frames of the videos that are drawn.

    Raises:
        UserError: no such video.
    """
    if dataset is None:
        from data_pipelines.one_person.__main__ import make

        check = Check.values(OPTION, identities=count, seed=seed)
        check.at_least(1, 'identities')
        check.at_least(0, 'seed')
        folders = make(out / 'people', count, seed, workers, TalkOptions(frames=length))[:count]
        people = 'talking videos of procedural people'
    else:
        inside = [dataset] if _is_video(dataset) else sorted(p for p in dataset.glob('*') if _is_video(p))
        if not inside:
            raise UserError(
                f'{dataset}: holds no video of a person; give a folder of avatar-jax track, or of '
                '`python -m data_pipelines.one_person`'
            )
        folders, people = inside[:count], str(dataset.resolve())
    items = [TestItem(folder.name, lambda folder=folder: _read(folder, frames)) for folder in folders]
    return items, {'people': people, 'driven by': 'the unseen last part of their own video'}


def _is_video(folder: Path) -> bool:
    return folder.is_dir() and (is_talking(folder) or is_track(folder))


def _read(folder: Path, frames: int) -> Any:
    if is_talking(folder):
        return video_case(folder.name, read_talking(folder), frames, read_truth(folder))
    return video_case(folder.name, read_tracked(folder, background='white'), frames)
