"""Which record holds which frame: the table of a data set of clips, and everything drawn from it.

Records of a clip are numbered ``first + camera * num_frames + frame``. The table also holds the motion (expression,
angles, translation) of every record, so motion windows cost no reading.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.ops.windows import MIN_FRAME_WEIGHT, window_indices
from avatar_jax.types import Motion

TABLE_NAME = 'clips-{split}.npz'
MOTION_DIM = 70
_FIELDS = {'name': 1, 'person': 1, 'first': 1, 'num_frames': 1, 'num_cameras': 1, 'motion': 2, 'fps': 0}


@dataclass(frozen=True)
class ClipTable:
    """Clips of one split.

    Attributes:
        name: [K] text, person: [K] int, first: [K] first record, num_frames: [K], num_cameras: [K].
        motion: [N,70] float32, one row per record.
        fps: frames per second (the usual one, where clips differ).
        basis: of the expression numbers.
        clip_fps: [K] frames per second of each clip, or None where all have ``fps``.
    """

    name: np.ndarray
    person: np.ndarray
    first: np.ndarray
    num_frames: np.ndarray
    num_cameras: np.ndarray
    motion: np.ndarray
    fps: float
    basis: str = 'procedural'
    clip_fps: np.ndarray | None = None

    def __post_init__(self):
        counts = self.num_frames * self.num_cameras
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else np.zeros(0, int)
        if len(self.name) == 0:
            raise UserError('clip table: the split has no clips; build the data set with at least one person')
        if not (np.array_equal(starts, self.first) and counts.sum() == len(self.motion) and counts.min() > 0):
            raise UserError(
                'clip table: the clips do not cover the records one after another; build the data set again'
            )
        if self.motion.shape[1] != MOTION_DIM or not np.isfinite(self.motion).all():
            raise UserError(
                f'clip table: motion must be finite numbers of width {MOTION_DIM}; build the data set again'
            )

    @property
    def num_records(self) -> int:
        """N."""
        return len(self.motion)

    @property
    def people(self) -> np.ndarray:
        """Sorted unique person numbers."""
        return np.unique(self.person)

    def clips_of(self, person: int) -> np.ndarray:
        """Clip indices of a person."""
        return np.flatnonzero(self.person == person)

    def record(self, clip: int, camera: int, frame: int) -> int:
        """Record number of one picture."""
        if not (0 <= camera < self.num_cameras[clip] and 0 <= frame < self.num_frames[clip]):
            raise IndexError(f'clip {clip} has no camera {camera}, frame {frame}')
        return int(self.first[clip] + camera * self.num_frames[clip] + frame)

    def window(self, clip: int, camera: int, frame: int) -> np.ndarray:
        """Motion window [27,70] around a frame, ends repeated."""
        start = self.record(clip, camera, 0)
        return self.motion[start + window_indices(np.asarray(frame), int(self.num_frames[clip]))]

    def frame_weights(self, clip: int) -> np.ndarray:
        """Probability of each frame [T] proportional to the size of its expression (OTAvatar's training sampling)."""
        start = int(self.first[clip])
        expression = self.motion[start : start + int(self.num_frames[clip]), :64]
        weights = np.abs(expression).sum(1, dtype=np.float64) + MIN_FRAME_WEIGHT
        return weights / weights.sum()


@dataclass(frozen=True)
class WindowTable(ClipTable):
    """A table of frames that each have a motion window [27,70] of their own: ``windows`` [N,27,70]."""

    windows: np.ndarray | None = None

    def window(self, clip: int, camera: int, frame: int) -> np.ndarray:
        """Motion window [27,70] of a frame."""
        return self.windows[self.record(clip, camera, frame)]


def load_table(folder: str | Path, split: str) -> ClipTable:
    """The clip table of a built data set.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(folder) / TABLE_NAME.format(split=split)
    try:
        with np.load(path) as z:
            arrays = {k: z[k] for k in _FIELDS}
            more = {'basis': str(z['basis'])} if 'basis' in z.files else {}
            if 'clip_fps' in z.files:
                more['clip_fps'] = z['clip_fps']
    except FileNotFoundError:
        others = sorted(p.stem.removeprefix('clips-') for p in Path(folder).glob(TABLE_NAME.format(split='*')))
        if others:
            raise UserError(f"{folder}: has no split '{split}'; there are {', '.join(others)}") from None
        raise UserError(f'{path}: no such file; give the folder that python -m data_pipelines.heads printed') from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f'{path}: damaged clip table ({e}); build the data set again') from e
    if any(arrays[k].ndim != d for k, d in _FIELDS.items()):
        raise UserError(f'{path}: damaged clip table (wrong shapes); build the data set again')
    if 'clip_fps' in more and more['clip_fps'].shape != arrays['num_frames'].shape:
        raise UserError(f'{path}: damaged clip table (wrong shapes); build the data set again')
    return ClipTable(**{**arrays, **more, 'fps': float(arrays['fps'])})


def table_of_clips(clips: list) -> ClipTable:
    """The table of ``data_pipelines.clips.Clip`` objects that are not stored anywhere."""
    if not clips:
        raise UserError('clip table: no clips given')
    counts = np.array([c.num_frames * c.num_cameras for c in clips])
    return ClipTable(
        name=np.array([c.name for c in clips]),
        person=np.array([c.person for c in clips]),
        first=np.cumsum(counts) - counts,
        num_frames=np.array([c.num_frames for c in clips]),
        num_cameras=np.array([c.num_cameras for c in clips]),
        motion=np.concatenate([c.motion_rows(k) for c in clips for k in range(c.num_cameras)]),
        fps=clips[0].options.fps,
    )


def clip_motion(spec: str) -> Motion:
    """The motion of a clip of a built data set, ``FOLDER:SPLIT:CLIP`` (name or number of the clip)."""
    folder, split, clip = spec.rsplit(':', 2)
    table = load_table(folder, split)
    names = [str(n) for n in table.name]
    if clip in names:
        index = names.index(clip)
    elif clip.isdigit() and int(clip) < len(names):
        index = int(clip)
    else:
        raise UserError(
            f'--motion {spec}: {split} has no clip {clip!r}; give a number below {len(names)} or a name such '
            f'as {names[0]}'
        )
    start, length = table.record(index, 0, 0), int(table.num_frames[index])
    rows = table.motion[start : start + length]
    fps = float(table.fps if table.clip_fps is None else table.clip_fps[index])
    return Motion(rows[:, :64], rows[:, 64:67], rows[:, 67:70], fps, table.basis, f'clip {names[index]}')
