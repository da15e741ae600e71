"""What was measured: ``Measured`` of one picture, ``MeasuredClip`` of all frames of a clip.

A photograph is a clip of one frame. Of a clip only numbers are kept; its pictures are read again, cropped and parted
from their background as they are asked for, a few at a time, so that an hour of video needs no more memory than a
second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import five_points
from avatar_jax.io.images import to_float
from avatar_jax.ops.coefficients import NUM_EXP, NUM_ID, NUM_RECORD, SLICES
from avatar_jax.track.quality import LIMIT, Quality
from avatar_jax.track.smooth import even_rate
from avatar_jax.types import Camera, Motion, Portrait

if TYPE_CHECKING:
    from avatar_jax.track.track import Track


@dataclass(frozen=True)
class Measured:
    """A picture of a head, aligned, and everything that was measured on it.

    What was not measured is None. Pixels (x, y) are of the aligned picture, y downwards, integers at pixel centres.

    Attributes:
        image: [S, S, 3] uint8, the aligned picture before its background.
        mask: [S, S] float32, 1 on the person (1 on all of the picture where nothing was separated).
        label: [25] camera label. label_mode: how it is normalised (``faces.camera_labels.normalise_pose``).
        path: the file or folder. sha256: of the bytes that the picture was read from.
        landmarks: [68, 2] pixels.
        points: [5, 2] pixels: eyes, nose tip, mouth corners, by which the picture is aligned.
        expression: [64], shape: [80] coefficients in ``basis``.
        angle: [3] radians, translation: [3] decimetres: the head's pose as the aligned picture shows it.
        basis: name of the coefficient basis, '' without coefficients.
        quality: how far this can be trusted; None for pictures that came aligned.
        found: a face was measured here; False in frames of a video that are interpolated or held.
        index: number of the frame. time: seconds.
        notes: what was done, one phrase each. warnings: what the user should look at, one line each.
        landmarks_from: what read the landmarks, in words; '' where none did.
    """

    image: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    label_mode: str
    path: Path
    sha256: str = ''
    landmarks: np.ndarray | None = None
    points: np.ndarray | None = None
    expression: np.ndarray | None = None
    shape: np.ndarray | None = None
    angle: np.ndarray | None = None
    translation: np.ndarray | None = None
    basis: str = ''
    quality: Quality | None = None
    found: bool = True
    index: int = 0
    time: float = 0.0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    landmarks_from: str = ''

    def portrait(self) -> Portrait:
        """The ``Portrait`` that methods read, with all that was measured."""
        return Portrait(
            image=to_float(self.image),
            camera=Camera.from_label(self.label),
            expression=self.expression,
            angle=self.angle,
            translation=self.translation,
            shape=self.shape,
            landmarks=self.landmarks,
            mask=self.mask,
            basis=self.basis,
            source=self.path.name,
        )

    def motion(self) -> Motion:
        """The coefficients as a motion of one frame; zeros where nothing was measured."""
        rows = [
            np.zeros((1, n), np.float32) if v is None else v[None]
            for v, n in ((self.expression, NUM_EXP), (self.angle, 3), (self.translation, 3))
        ]
        return Motion(*rows, 25.0, self.basis, f'frame {self.index} of {self.path.name}')

    def report(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        record: dict[str, Any] = {
            'file': str(self.path),
            'sha256': self.sha256,
            'frame': self.index,
            'camera_label': self.label,
            'label_mode': self.label_mode,
            'landmarks_from': self.landmarks_from,
            'landmarks': self.landmarks if self.landmarks is not None else self.points,
            'basis': self.basis,
            'expression': self.expression,
            'shape': self.shape,
            'measured': [name for name in _PARTS if getattr(self, name) is not None],
            'notes': list(self.notes),
            'warnings': list(self.warnings),
            'limit': LIMIT,
        }
        if self.angle is not None:
            record['head_angle_degrees'] = np.rad2deg(self.angle)
            record['head_translation_decimetres'] = self.translation
        if self.quality is not None:
            record['alignment'] = {
                'score': self.quality.score,
                'grade': self.quality.grade,
                'parts': dict(self.quality.parts),
                'sentences': list(self.quality.sentences),
            }
        return record


_PARTS = ('landmarks', 'points', 'expression', 'shape', 'angle', 'translation')


class Shown(NamedTuple):
    """The picture of a frame: its number, crop [S,S,3] uint8, mask [S,S] float32 in [0,1]; and about this frame alone
    the SHA-256 of its bytes, notes and warnings."""

    index: int
    image: np.ndarray
    mask: np.ndarray
    sha256: str = ''
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


# Called with the wanted frames (None: all) and a function that is given every input frame as it is read.
Pictures = Callable[[Sequence[int] | None, Callable[[Any], None] | None], Iterator[Shown]]


@dataclass(frozen=True)
class MeasuredClip:
    """The numbers of N frames, and their pictures on demand; iterating gives a ``Measured`` of each.

    Attributes:
        path: the file or folder.
        coefficients: [N, 257 or 260] in the layout of ``ops.coefficients``, numbers of ``basis``; zeros where not
            measured.
        labels: [N, 25] camera labels of the crops in ``label_mode``.
        landmarks: [N, 68, 2] pixels of the crops.
        found: [N] bool, a face was found; other frames are interpolated or held.
        fps: frames per second.
        basis: name of the coefficient basis.
        parts: what was measured: of 'pose', 'expression', 'identity', 'texture', 'landmarks'.
        pictures: gives crops and masks; None where there are none.
        label_mode: of the labels.
        points: [N, 5, 2] pixels of the crops by which they are aligned; None: those of the landmarks.
        valid: [N] bool, the numbers mean something; None: all.
        segment: [N] number of the shot or person; None: one throughout.
        matrices: [N, 2, 3] from pixels of the input to pixels of the crop (integers at pixel centres), or None.
        times: [N] seconds in the file; None for evenly spaced frames.
        quality: parts of the frames' quality and their product 'score', each [N]; None for pictures that came aligned.
        sentences: the quality of a frame in words.
        fitted: [N, 68, 2] landmarks of the fitted head, pixels of the input.
        notes: what was done. warnings: what the user should look at.
        sha256: of the file.
        landmarks_from: what read the landmarks, in words; '' where none did.
        track: everything about the fit (``track.track.Track``); None where it was not made here.
    """

    path: Path
    coefficients: np.ndarray
    labels: np.ndarray
    landmarks: np.ndarray
    found: np.ndarray
    fps: float
    basis: str
    parts: tuple[str, ...]
    pictures: Pictures | None = None
    label_mode: str = 'raw'
    points: np.ndarray | None = None
    valid: np.ndarray | None = None
    segment: np.ndarray | None = None
    matrices: np.ndarray | None = None
    times: np.ndarray | None = None
    quality: Mapping[str, np.ndarray] | None = None
    sentences: Callable[[int], tuple[str, ...]] = lambda frame: ()
    fitted: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sha256: str = ''
    landmarks_from: str = ''
    track: Track | None = None

    @property
    def num_frames(self) -> int:
        """N."""
        return len(self.found)

    @property
    def start(self) -> float:
        """Time of the first frame in the file, seconds."""
        return 0.0 if self.times is None else float(self.times[0])

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[Measured]:
        return self.frames()

    def frames(
        self, wanted: Sequence[int] | None = None, on_frame: Callable[[Any], None] | None = None
    ) -> Iterator[Measured]:
        """The frames in order; those whose numbers mean nothing (no face in the shot) are left out.

        Args:
            wanted: their numbers, sorted; None gives all.
            on_frame: called with every input frame (``index``, ``time``, ``pixels``) as it is read, also with those
                that are left out.

        Raises:
            UserError: there are no pictures, or the file can no longer be read.
        """
        if self.pictures is None:
            raise UserError(f'{self.path}: has no pictures, only numbers')
        for shown in self.pictures(wanted, on_frame):
            yield self._measured(shown)

    def frame(self, index: int) -> Measured:
        """One frame.

        Raises:
            UserError: there is no such frame, or no face in it.
        """
        if not 0 <= index < self.num_frames or (self.valid is not None and not self.valid[index]):
            raise UserError(f'{self.path}: has no face in frame {index}')
        return next(self.frames([index]))

    def best(self) -> Measured:
        """The frame that makes the best portrait: see ``best_frame``."""
        return self.frame(self.best_frame())

    def portrait(self) -> Portrait:
        """The portrait of the best frame."""
        return self.best().portrait()

    def best_frame(self) -> int:
        """The number of the measured frame with good quality, frontal, and the mouth near its usual opening."""
        if self.num_frames == 1 or self.quality is None:
            return int(np.argmax(self.found))
        yaw = self.coefficients[:, SLICES['angle']][:, 1]
        score = self.quality['score'] * np.cos(np.clip(2 * yaw, -1.5, 1.5))
        points = self.landmarks if self.fitted is None else self.fitted
        height = np.maximum(np.ptp(points[..., 1], axis=1), 1e-6)
        opening = np.linalg.norm(points[:, 62] - points[:, 66], axis=-1) / height
        score = score - np.maximum(opening - np.median(opening), 0)
        return int(np.argmax(np.where(self.found, score, -np.inf)))

    def motion(self, source: str = '') -> Motion:
        """The movement alone, of all frames, at an even rate: where time stamps are uneven, interpolated between
        them.
        """
        c = np.asarray(self.coefficients, np.float32)
        rows = np.concatenate([c[:, SLICES[k]] for k in ('exp', 'angle', 'trans')], axis=1)
        if self.times is not None:
            rows = even_rate(rows, np.asarray(self.times, np.float64), float(self.fps))
        return Motion(rows[:, :64], rows[:, 64:67], rows[:, 67:70], float(self.fps), self.basis, source)

    def _measured(self, shown: Shown) -> Measured:
        i = shown.index
        numbers = {k: np.asarray(self.coefficients[i, SLICES[k]], np.float32) for k in ('id', 'exp', 'angle', 'trans')}
        has = {k: k in self.parts for k in ('pose', 'expression', 'identity', 'landmarks')}
        landmarks = np.asarray(self.landmarks[i], np.float32) if has['landmarks'] else None
        points = None if landmarks is None else five_points(landmarks)
        if self.points is not None:
            points = self.points[i]
        warnings = (*self.warnings, *shown.warnings)
        quality = None
        if self.quality is not None:
            parts = {k: float(v[i]) for k, v in self.quality.items() if k != 'score'}
            quality = Quality(float(self.quality['score'][i]), parts, self.sentences(i))
            if quality.grade == 'poor':
                told = '; '.join(quality.sentences)
                warnings += (f'the alignment is poor (score {quality.score:.2f}): {told}',)
        return Measured(
            image=shown.image,
            mask=shown.mask,
            label=np.asarray(self.labels[i], np.float32),
            label_mode=self.label_mode,
            path=self.path,
            sha256=shown.sha256 or self.sha256,
            landmarks=landmarks,
            points=points,
            expression=numbers['exp'] if has['expression'] else None,
            shape=numbers['id'] if has['identity'] else None,
            angle=numbers['angle'] if has['pose'] else None,
            translation=numbers['trans'] if has['pose'] else None,
            basis=self.basis if has['expression'] or has['identity'] else '',
            quality=quality,
            found=bool(self.found[i]),
            index=i,
            time=i / self.fps if self.times is None else float(self.times[i]),
            notes=(*self.notes, *shown.notes),
            warnings=warnings,
            landmarks_from=self.landmarks_from,
        )


def record(
    shape: np.ndarray | None = None,
    expression: np.ndarray | None = None,
    angle: np.ndarray | None = None,
    translation: np.ndarray | None = None,
) -> np.ndarray:
    """[1, 260] coefficients of one picture, zeros where not measured."""
    out = np.zeros((1, NUM_RECORD), np.float32)
    for name, values, width in (
        ('id', shape, NUM_ID),
        ('exp', expression, NUM_EXP),
        ('angle', angle, 3),
        ('trans', translation, 3),
    ):
        if values is not None:
            used = np.asarray(values, np.float32).reshape(-1)[:width]
            out[0, SLICES[name].start : SLICES[name].start + len(used)] = used
    return out
