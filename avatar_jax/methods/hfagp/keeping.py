"""What a long training of an avatar keeps on disk: its state, with which it goes on when stopped, and a picture."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.images import write_png
from avatar_jax.io.lock import FolderLock
from avatar_jax.io.provenance import Provenance
from avatar_jax.methods.hfagp import scores
from avatar_jax.methods.hfagp.batches import PersonFrames
from avatar_jax.methods.hfagp.config import ModelConfig
from avatar_jax.parallel import as_arrays
from avatar_jax.train.checkpoints import Checkpoints, config_difference
from avatar_jax.train.state import TrainState
from avatar_jax.types import PyTree

EVERY = 120.0  # seconds between two
PREVIEW = 'preview.png'
CURVES = ('loss', 'psnr', 'mse')
_STATES, _NONE, _SHOWN = 'states', -1, 4


@dataclass
class TrainingSoFar:
    """How far a training is.

    Attributes:
        state: of the networks. done: finished steps. elapsed: seconds spent, over all its runs.
        tuned_from: step from which the generator is tuned, or None. curves: name -> values of the steps.
    """

    state: TrainState
    done: int = 0
    elapsed: float = 0.0
    tuned_from: int | None = None
    curves: Mapping[str, np.ndarray] | None = None


def of_video(video: PersonFrames) -> str:
    """A digest of a video's cameras, signals and some of its pictures: another video does not go on with a training."""
    found = hashlib.sha256(np.ascontiguousarray(video.labels))
    for name in sorted(video.signals):
        found.update(name.encode() + np.ascontiguousarray(video.signals[name], np.float32).tobytes())
    for i in scores.spread(np.arange(len(video.labels)), 8):
        found.update(np.asarray(video.picture(int(i), 16), np.float32).tobytes())
    return found.hexdigest()


class Keeper:
    """Keeps a training in a folder, which one process holds, from ``with`` on.

    Args:
        folder: made if missing; '': nothing is kept.
        about: what decides the training, plain values: one that was made with others is set aside.

    Attributes:
        notes: what the user should know.
    """

    def __init__(self, folder: str, about: Mapping[str, Any]):
        self.folder, self.about = Path(folder) if folder else None, about
        self.notes: list[str] = []
        self._stack = ExitStack()
        self._store: Checkpoints | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self.folder is not None:
            self._stack.enter_context(FolderLock(self.folder, 'training'))
            self._store = self._stack.enter_context(self._opened())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _opened(self) -> Checkpoints:
        """The states that are there, or an empty folder where they are of another training or damaged."""
        for first in (True, False):
            found = Checkpoints(self.folder / _STATES, config=self.about, keep=1)
            try:
                if found.latest_step() is None or not config_difference(found.stored_config(), found.config):
                    break
            except UserError:
                pass
            found.close()
            if first:
                self.notes.append(
                    f'{self.folder}: the unfinished training there was another one; it begins anew '
                    f'(the other was moved to {self._aside()})'
                )
        return found

    def _aside(self) -> Path:
        """Moves the states to a folder of their own beside this one, which is removed when a training is finished."""
        places = (self.folder.with_name(f'{self.folder.name}_{i}') for i in itertools.count(1))
        place = next(p for p in places if not p.exists())
        return (self.folder / _STATES).rename(place)

    def restored(self, fresh: TrainState) -> TrainingSoFar:
        """The progress that was kept, or none with a fresh state."""
        if self._store is None or self._store.latest_step() is None:
            return TrainingSoFar(fresh)
        template = {
            **_stored(TrainingSoFar(fresh)),
            'curves': {k: np.zeros(self._store.latest_step(), np.float32) for k in CURVES},
        }
        try:
            kept, done = self._store.restore(jax.eval_shape(lambda: template))
        except UserError as error:
            self.notes.append(f'{error}; the training begins anew')
            return TrainingSoFar(fresh)
        self.notes.append(f'{self.folder}: goes on after step {done}')
        tuned = int(kept['tuned_from'])
        state = as_arrays(kept['state'])
        return TrainingSoFar(state, done, float(kept['elapsed']), None if tuned == _NONE else tuned, kept['curves'])

    def due(self) -> bool:
        """Whether it is time to keep the state."""
        return self._store is not None and time.monotonic() - self._last >= EVERY

    def keep(self, progress: TrainingSoFar, variables: PyTree, config: ModelConfig, video: PersonFrames) -> None:
        """Writes the state and ``preview.png``: unseen frames beside what each driver makes of them."""
        if self._store is None:
            return
        curves = {k: np.asarray((progress.curves or {})[k], np.float32) for k in CURVES}
        self._store.save(progress.done, {**_stored(progress), 'curves': curves})
        picture, _ = scores.sheet(variables, config, video, _SHOWN)
        write_png(self.folder / PREVIEW, picture, Provenance(synthetic=True, command='invert'))
        self._last = time.monotonic()


def _stored(progress: TrainingSoFar) -> dict[str, Any]:
    return {
        'state': progress.state,
        'elapsed': np.asarray(progress.elapsed, np.float32),
        'tuned_from': np.asarray(_NONE if progress.tuned_from is None else progress.tuned_from, np.int32),
    }
