"""First pass over a clip: landmarks of one face in every frame, frame by frame, at bounded memory.

The face is detected in the first frame and then followed from its own landmarks; it is looked for again when the
network no longer sees a face, after a cut, and now and then. Only numbers are kept of a frame.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import five_points
from avatar_jax.ops.landmark_layouts import FILE_SIGMA, OUTLINE_SIGMA, five_as_68, to_68
from avatar_jax.track.choose import Chooser, embedding
from avatar_jax.track.detect import Face, apply, detect_faces, inverse, rotation
from avatar_jax.track.network import PRESENT, QUICK, VARIATIONS, FaceReader, Reading
from avatar_jax.track.search import choose_face

LOOK_AGAIN = 2.0  # seconds between detections while a face is followed
_CUT, _CUT_RISE = 0.09, 4.0  # mean change of a thumbnail that may be a cut, and how far it exceeds the usual change
_JUMP, _GROWTH = 1.2, 1.6  # in face sizes: another face after a loss
_THUMB = (48, 27)
_BOX_PER_EYES, _EYE_LINE = 2.7, 0.39  # side of a detector's box in eye distances, and where it has the eyes
_ANOTHER = 0.3  # eye distances by which the network's points are off where it reads another face than the file's


@dataclasses.dataclass
class Observed:
    """What the first pass keeps of T frames.

    Attributes:
        times: [T] seconds. found: [T] a face was seen.
        points: [T,68,2] pixels, y down, first pixel centred at 0.5; NaN where no face was found.
        sigma: [T,68] pixels, infinite for points that a landmark file does not have.
        expression: [T,64] guess in the procedural basis, or NaN. angle: [T,3] radians, or NaN.
        present: [T] probability of a face. segment: [T] number of the shot or person, from 0.
        size: (width, height) of the frames.
        source: name of the landmark backend. notes: what happened, one line each.
        likeness: cosine of each segment's person with the first segment's (NaN where there was none to compare).
        gaze: [T,2] to the right of the picture and up, 1 is 24 degrees; NaN or None where it was not measured.
    """

    times: np.ndarray
    found: np.ndarray
    points: np.ndarray
    sigma: np.ndarray
    expression: np.ndarray
    angle: np.ndarray
    present: np.ndarray
    segment: np.ndarray
    size: tuple[int, int]
    source: str
    notes: list[str]
    likeness: list[float]
    gaze: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.times)


class _Rows:
    """Grows the arrays of ``Observed`` frame by frame."""

    def __init__(self):
        self.rows: list[tuple[float, Reading | None, int]] = []

    def add(self, time: float, reading: Reading | None, segment: int) -> None:
        if reading is not None:  # half the memory: hours of video are kept
            reading = dataclasses.replace(
                reading,
                **{
                    k: np.asarray(v, np.float32)
                    for k in ('points', 'sigma', 'expression', 'angle', 'gaze')
                    if (v := getattr(reading, k)) is not None
                },
            )
        self.rows.append((time, reading, segment))

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows; NaN where nothing was read."""
        t = len(self.rows)
        points, sigma = np.full((t, 68, 2), np.nan, np.float32), np.full((t, 68), np.inf, np.float32)
        expression, angle = np.full((t, 64), np.nan, np.float32), np.full((t, 3), np.nan, np.float32)
        gaze, present = np.full((t, 2), np.nan, np.float32), np.zeros(t, np.float32)
        for i, (_, reading, _) in enumerate(self.rows):
            if reading is None:
                continue
            points[i], sigma[i], present[i] = reading.points, reading.sigma, reading.present
            for array, value in ((expression, reading.expression), (angle, reading.angle), (gaze, reading.gaze)):
                if value is not None:
                    array[i] = value
        return {
            'times': increasing(np.array([r[0] for r in self.rows])),
            'found': np.array([r[1] is not None for r in self.rows]),
            'points': points,
            'sigma': sigma,
            'expression': expression,
            'angle': angle,
            'present': present,
            'gaze': gaze,
            'segment': np.array([r[2] for r in self.rows], np.int32),
        }


def increasing(times: np.ndarray) -> np.ndarray:
    """Time stamps made strictly increasing: damaged files repeat some."""
    times = np.array(times, np.float64)
    usual = np.median(np.diff(times)) if len(times) > 1 else 0.04
    usual = usual if np.isfinite(usual) and usual > 0 else 0.04
    for i in range(1, len(times)):
        if not times[i] > times[i - 1]:
            times[i] = times[i - 1] + 0.1 * usual
    return times


class Reader(Protocol):
    """What reads faces: ``FaceReader``, which looks for them through ``search``, or a backend with a ``detect`` of its
    own, whose arguments and result are those of ``search.choose_face``.
    """

    name: str

    def around(self, pixels: np.ndarray, points: np.ndarray, variations: tuple = QUICK) -> Reading:
        """Reads the face at roughly known landmarks [68,2] of a picture [H,W,3] uint8."""


def observe(
    frames: Iterable[Any],
    reader: Reader,
    choose: Chooser,
    *,
    careful: bool = False,
    on_frame: Callable[[], None] = lambda: None,
) -> Observed:
    """Reads one face from every frame.

    Args:
        frames: objects with ``time`` (seconds) and ``pixels`` [H,W,3] uint8, all of one size.
        reader: of the network, or another backend.
        choose: which face.
        careful: average over more crops and look for turned heads, too: for photographs.
        on_frame: called after each frame.

    Raises:
        UserError: no frames.
    """
    rows, notes, likeness, wanted = _Rows(), [], [], None
    previous: Reading | None = None
    lost: Reading | None = None  # the last sight of a face that is gone
    lost_at = last_look = last_search = -np.inf
    thumb, usual, segment, size, seen, ghosts = None, 0.0, 0, (0, 0), False, 0
    for index, frame in enumerate(frames):
        pixels, time = frame.pixels, float(frame.time)
        size = (pixels.shape[1], pixels.shape[0])
        small = _thumbnail(pixels)
        change = 0.0 if thumb is None else float(np.abs(small - thumb).mean())
        cut = thumb is not None and change > max(_CUT, _CUT_RISE * usual)
        usual = change if index < 2 else 0.9 * usual + 0.1 * min(change, 3 * usual + 0.01)
        thumb = small
        if cut:
            notes.append(f'cut at frame {index} ({time:.2f} s)')
            lost, lost_at, previous = None, -np.inf, None
        reading = None
        if previous is not None:
            reading = reader.around(pixels, previous.points, VARIATIONS if careful else QUICK)
            if not _follows(reading, previous, size):
                reading = None
            elif time - last_look > LOOK_AGAIN:
                last_look = time
                ghosts = 0 if _confirmed(pixels, reading) is not False else ghosts + 1
                if ghosts > 1:
                    notes.append(f'frame {index}: the face that was followed is not one; looked for again')
                    reading, ghosts = None, 0
        if reading is None and (previous is not None or time - lost_at > 0.2 or cut or index == 0):
            # While nothing is there, a detection five times a second is enough, and a search every two seconds.
            search = index == 0 or cut or time - last_search > LOOK_AGAIN
            last_look = lost_at = time
            last_search = time if search else last_search
            reading, said = _look(pixels, reader, choose, search=search, careful=careful)
            if said and not (notes and notes[-1].endswith(said)):
                notes.append(f'frame {index}: {said}')
        if reading is not None:
            fresh = not seen or cut
            if lost is not None and not fresh:
                away = np.linalg.norm(reading.points.mean(0) - lost.points.mean(0)) / (4 * lost.size)
                ratio = reading.size / lost.size
                fresh = away > _JUMP or not 1 / _GROWTH < ratio < _GROWTH
                if fresh:
                    notes.append(f'frame {index}: the face reappears elsewhere; taken as a new shot or person')
            if fresh:
                segment += seen
                person = _embedding(pixels, reading)
                wanted = person if wanted is None else wanted
                likeness.append(float(person @ wanted) if person is not None and wanted is not None else float('nan'))
            seen, lost = True, reading
        previous = reading
        rows.add(time, reading, segment)
        on_frame()
    if not rows.rows:
        raise UserError('holds no pictures; get the file again')
    return Observed(**rows.arrays(), size=size, source=reader.name, notes=notes, likeness=likeness)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.resize(pixels, _THUMB, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _embedding(pixels: np.ndarray, reading: Reading) -> np.ndarray | None:
    try:
        return embedding(pixels, reading.points)
    except ValueError:  # landmarks without extent
        return None


def _follows(reading: Reading, previous: Reading, size: tuple[int, int]) -> bool:
    """Whether what was read can be the face of the frame before."""
    moved = np.linalg.norm(reading.points.mean(0) - previous.points.mean(0)) / max(previous.size, 1e-6)
    middle = reading.points.mean(0)
    inside = (middle > 0).all() and (middle < np.array(size)).all()
    return bool(
        reading.present > PRESENT and inside and moved < 2.0 and 0.6 < reading.size / max(previous.size, 1e-6) < 1.7
    )


def _confirmed(pixels: np.ndarray, reading: Reading) -> bool | None:
    """Does the detector see a face where one is followed? None: it sees none at all, which turned faces often are."""
    part, offset = _around(pixels, reading)
    faces = detect_faces(part)
    if not faces:
        return None
    middle = reading.points.mean(0)
    near = [f for f in faces if np.linalg.norm(f.center + offset - middle) < 2.5 * reading.size]
    return bool(near) or not any(f.eyes is not None for f in faces)


def _around(pixels: np.ndarray, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """The part of the picture around a face, and its corner: detecting there is quick."""
    middle, reach = reading.points.mean(0), 5 * reading.size
    low = np.clip(middle - reach, 0, None).astype(int)
    high = np.minimum(middle + reach, pixels.shape[1::-1]).astype(int)
    return np.ascontiguousarray(pixels[low[1] : high[1], low[0] : high[0]]), low


def _look(pixels: np.ndarray, reader: Any, choose: Chooser, **how: bool) -> tuple[Reading | None, str]:
    """Detects, chooses and reads a face; other backends than the network bring their own detector."""
    if hasattr(reader, 'detect'):
        return reader.detect(pixels, choose, **how)
    return choose_face(pixels, reader, choose, **how)


class FileLandmarks:
    """Landmarks from a file instead of a network: one row of points per frame.

    Five points say too little about a face: the others, and expression and angle, are then read by the network around
    them, unless what it reads there is another face.

    Args:
        points: [T,N,2] pixels of the upright frames (integers at pixel centres), NaN in frames without a face.
        network: completes five points; None leaves them alone.
        name: of the source, for reports.
    """

    def __init__(self, points: np.ndarray, network: FaceReader | None = None, name: str = 'file'):
        self.name, self.kind = name, points.shape[1]
        self.network = network if self.kind == 5 else None
        self.points = np.asarray(points, np.float64)

    def observe(
        self, frames: Iterable[Any], source: str | os.PathLike, on_frame: Callable[[], None] = lambda: None
    ) -> Observed:
        """``Observed`` of the frames; cuts are not looked for.

        Raises:
            UserError: another number of frames than rows.
        """
        rows, size, count, completed = _Rows(), (0, 0), 0, 0
        for frame in frames:
            size, count = (frame.pixels.shape[1], frame.pixels.shape[0]), count + 1
            if count <= len(self.points):
                reading = self._reading(self.points[count - 1], size)
                if reading is not None and self.network is not None:
                    whole = completed_five(reading, self.points[count - 1] + 0.5, frame.pixels, self.network)
                    reading, completed = whole or reading, completed + (whole is not None)
                rows.add(float(frame.time), reading, 0)
            on_frame()
        if count != len(self.points):
            raise UserError(f'{source}: the landmarks are of {len(self.points)} frames, the input has {count}')
        arrays = rows.arrays()
        notes = []
        if self.network is not None:
            notes.append(f'five points from the file; the network read the others in {completed} of {count} frames')
        return Observed(
            **arrays, size=size, source=self.name, notes=notes, likeness=[1.0] if arrays['found'].any() else []
        )

    def _reading(self, points: np.ndarray, size: tuple[int, int]) -> Reading | None:
        if not np.isfinite(points).all():
            return None
        middle = points.mean(0)
        if not ((middle >= 0) & (middle < np.array(size))).all() or np.ptp(points, axis=0).min() < 2:
            return None
        points = points + 0.5
        if self.kind == 5:
            full, known = five_as_68(points)
            eyes = np.linalg.norm(points[1] - points[0])
        else:
            full, known = to_68(points), np.ones(68, bool)
            eyes = np.linalg.norm(full[36:42].mean(0) - full[42:48].mean(0))
        extent = max(float(eyes), 0.5 * float(np.ptp(points, axis=0).max()))
        sigma = np.where(known, FILE_SIGMA * extent, np.inf)
        if self.kind == 5:
            sigma[[36, 39, 42, 45]] *= 2.5
        if self.kind in (98, 468, 478):
            sigma[:17] *= OUTLINE_SIGMA
        return Reading(full, sigma)


def completed_five(known: Reading, five: np.ndarray, pixels: np.ndarray, network: FaceReader) -> Reading | None:
    """The network's 68 landmarks with five known ones in their places; None where it reads another face.

    Args:
        known: the five at their places among the 68. five: [5,2] the same (first pixel centred at 0.5).
    """
    across, middle = five[1] - five[0], five[:2].mean(0)
    side = _BOX_PER_EYES * max(float(np.linalg.norm(across)), 0.9 * float(np.linalg.norm(five[3:].mean(0) - middle)))
    tilt = float(np.rad2deg(np.arctan2(across[1], across[0])))
    down = apply(inverse(rotation(tilt, np.zeros(2))), np.array([0.0, (0.5 - _EYE_LINE) * side]))
    centre = middle + down
    face = Face((centre[0] - side / 2, centre[1] - side / 2, side, side), tilt, 10.0, five[:2], 1)
    read = network.from_box(pixels, face)
    off = np.linalg.norm(five_points(read.points) - five, axis=1).mean()
    if read.present < PRESENT or off > _ANOTHER * side / _BOX_PER_EYES:
        return None
    points, sigma = read.points.copy(), read.sigma.copy()
    for eye, corners, truth in ((slice(36, 42), [36, 39], five[0]), (slice(42, 48), [42, 45], five[1])):
        points[eye] += truth - points[corners].mean(0)
    points[[30, 48, 54]] = five[2:]
    sure = [30, 48, 54, *range(36, 48)]
    sigma[sure] = np.minimum(sigma[sure], known.sigma[sure])
    return dataclasses.replace(read, points=points, sigma=sigma)
