"""One tracked clip on disk: encoded crops and masks, and the numbers of its frames, in one uncompressed zip.

Tracking is slow, so every clip is finished into a file of its own before the data set is written: a run that was
stopped goes on with the next clip, and clips can be tracked on several machines. Pictures are written as they come, so
the length of a clip costs no memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import pose_from_label
from avatar_jax.io import atomic
from avatar_jax.io.animation import open_video
from avatar_jax.ops.coefficients import NUM_COEFFICIENTS, SLICES
from avatar_jax.progress import Progress
from avatar_jax.track.measure import MeasuredClip, Measures, PictureFrames, Selected, measure
from data_pipelines.tracked.layouts import ClipSpec, choose_frames

VERSION = 1
MIN_FOUND = 0.5  # a clip with fewer faces than this share of its frames is not used
MIN_FRAMES = 2  # of a video
_NUMBERS = ('coefficients', 'labels', 'landmarks', 'found')
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Options:
    """What decides a tracked clip besides its source.

    Attributes:
        resolution: side of the crops.
        jpeg_quality: 0 stores PNG.
        tracker: name of the tracker.
    """

    resolution: int
    jpeg_quality: int
    tracker: str

    def key(self, clip: ClipSpec) -> str:
        """Identifies the clip's archive: its sources (names, sizes, times of change), options and version."""
        files = [p for c in clip.cameras for p in ((c,) if isinstance(c, Path) else (c[0], c[-1]))]
        try:
            facts = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        except OSError as e:
            raise UserError(f'{clip.name}: cannot be read ({e.strerror or e})') from e
        counts = [1 if isinstance(c, Path) else len(c) for c in clip.cameras]
        record = [
            VERSION,
            self.resolution,
            self.jpeg_quality,
            self.tracker,
            facts,
            counts,
            clip.part,
            clip.frames,
            clip.label,
        ]
        if clip.label is not None:
            record.append('mask of the picture')  # before, of another crop
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class TrackedClip:
    """An archive that is complete.

    Attributes:
        path: the file.
        cameras: for each camera the numbers of its T frames: ``coefficients`` [T,257], ``labels`` [T,25], ``landmarks``
            [T,68,2].
        fps: frames per second.
        parts: what was measured. notes: what was done.
    """

    path: Path
    cameras: tuple[dict[str, np.ndarray], ...]
    fps: float
    parts: tuple[str, ...]
    notes: tuple[str, ...]
    _kept: np.ndarray  # numbers of the frames in the file
    _order: tuple[int, ...]  # numbers of the cameras in the file
    _endings: tuple[str, str]

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.cameras[0]['labels'])

    def pictures(self, camera: int) -> Iterator[tuple[bytes, bytes]]:
        """Encoded crop and mask of each frame."""
        try:
            with zipfile.ZipFile(self.path) as file:
                for k in self._kept:
                    yield tuple(file.read(f'{self._order[camera]}/{k:07d}{ending}') for ending in self._endings)
        except DAMAGED as e:
            raise UserError(f'{self.path}: damaged archive of a tracked clip ({e}); delete it and run again') from e

    def motion_rows(self, camera: int) -> np.ndarray:
        """[T,70] float32: expression, angle, translation."""
        c = self.cameras[camera]['coefficients']
        return np.concatenate([c[:, SLICES[k]] for k in ('exp', 'angle', 'trans')], axis=1).astype(np.float32)


def archive_path(folder: Path, clip: ClipSpec, options: Options) -> Path:
    """Where the archive of a clip lies."""
    return folder / f'{options.key(clip)}.zip'


def finished_clip(clip: ClipSpec, tracker: Measures, options: Options, path: Path) -> None:
    """Makes sure that a clip's archive is there and whole: tracks the clip if it has none yet.

    Raises:
        UserError: the clip cannot be used, or its archive is damaged.
    """
    if not path.is_file():
        track_clip(clip, tracker, options, path)
    load_clip(path)


def track_clip(clip: ClipSpec, tracker: Measures, options: Options, path: Path) -> None:
    """Tracks a clip and writes its archive, completely or not at all.

    Raises:
        UserError: a source cannot be read, shows no face or too few, or has too few frames.
    """
    encode = _encoder(options)
    record: dict[str, Any] = {'version': VERSION, 'cameras': [], 'notes': [], 'parts': [], 'fps': 0.0}
    arrays: dict[str, np.ndarray] = {}
    with atomic.atomic_path(path) as temporary, zipfile.ZipFile(temporary, 'w', zipfile.ZIP_STORED) as file:
        for k, source in enumerate(clip.cameras):
            try:
                measured = _measure(clip, k, source, tracker, options, file, encode)
            except UserError as e:
                if len(clip.cameras) == 1:
                    raise
                record['notes'].append(f'camera {k} is left out: {e}')  # a view from behind shows no face
                continue
            record['fps'], record['parts'] = float(measured.fps), list(measured.parts)
            record['notes'] += [n for n in measured.notes if n not in record['notes']]
            record['cameras'].append(k)
            for name in _NUMBERS:
                arrays[f'{k}/{name}'] = np.asarray(getattr(measured, name))
            arrays[f'{k}/coefficients'] = arrays[f'{k}/coefficients'][:, :NUM_COEFFICIENTS]
            shots = np.zeros(len(measured.found), np.int32) if measured.segment is None else measured.segment
            arrays[f'{k}/shot'] = np.asarray(shots, np.int32)
        if not record['cameras']:
            raise UserError(f'{clip.name}: no camera shows a face; {record["notes"][0]}')
        data = io.BytesIO()
        np.savez(data, **arrays)
        file.writestr('numbers.npz', data.getvalue())
        file.writestr('clip.json', json.dumps(record | {'name': clip.name, 'endings': encode.endings}))


def load_clip(path: Path) -> TrackedClip:
    """Reads an archive's numbers; frames without a face are left out in all cameras, and all shots but the longest.

    Raises:
        UserError: missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            record = json.loads(file.read('clip.json'))
            with np.load(io.BytesIO(file.read('numbers.npz')), allow_pickle=False) as z:
                arrays = {k: z[k] for k in z.files}
    except DAMAGED as e:
        raise UserError(f'{path}: damaged archive of a tracked clip ({e}); delete it and run again') from e
    numbers = record['cameras']
    found = np.logical_and.reduce([arrays[f'{k}/found'] for k in numbers])
    shots, notes = arrays[f'{numbers[0]}/shot'], tuple(record['notes'])
    if shots.max(initial=0) > 0:  # after a cut it may be somebody else
        sizes = np.bincount(shots[found]) if found.any() else np.zeros(1, int)
        found = found & (shots == int(sizes.argmax()))
        notes += (f'{len(np.unique(shots))} shots: only the longest is used',)
    kept = np.flatnonzero(found)
    cameras = [{n: arrays[f'{k}/{n}'][kept] for n in _NUMBERS if n != 'found'} for k in numbers]
    # The most frontal view is camera 0, as pipelines that want one view expect.
    yaw = [float(np.abs(c['coefficients'][:, SLICES['angle'].start + 1]).mean()) if len(kept) else 0.0 for c in cameras]
    order = sorted(range(len(numbers)), key=lambda k: (round(yaw[k], 3), k))
    return TrackedClip(
        path,
        tuple(cameras[k] for k in order),
        record['fps'],
        tuple(record['parts']),
        notes,
        kept,
        tuple(numbers[k] for k in order),
        tuple(record['endings']),
    )


def _frames(source: Path | tuple[Path, ...], clip: ClipSpec) -> Any:
    """The chosen frames of one camera."""
    frames = open_video(source) if isinstance(source, Path) else PictureFrames(source, clip.fps, source[0].parent)
    if clip.frames is None and clip.part == (0.0, 1.0):
        return frames
    total = frames.num_frames or sum(1 for _ in frames)
    index = choose_frames(total, clip)
    taken = (clip.part[1] - clip.part[0]) * total
    return Selected(frames, index, float(frames.fps) * len(index) / taken if len(index) < taken else float(frames.fps))


def _measure(
    clip: ClipSpec, camera: int, source: Any, tracker: Any, options: Options, file: zipfile.ZipFile, encode: Any
) -> MeasuredClip:
    def store(number: int, image: np.ndarray, mask: np.ndarray) -> None:
        mask = np.rint(255 * np.clip(mask, 0, 1)).astype(np.uint8)
        for ending, data in zip(encode.endings, (encode.picture(image), encode.mask(mask)), strict=True):
            file.writestr(zipfile.ZipInfo(f'{camera}/{number:07d}{ending}', (1980, 1, 1, 0, 0, 0)), data)

    if clip.label is not None:
        return _aligned_picture(clip, source[0], tracker, options, store)
    frames = _frames(source, clip)
    measured = measure(frames, size=options.resolution, label_mode='raw', tracker=tracker)
    total, seen = len(measured.found), int(measured.found.sum())
    if total < MIN_FRAMES:
        raise UserError(f'{clip.name}: has only {total} frame; a clip needs {MIN_FRAMES}')
    if seen < MIN_FOUND * total:
        raise UserError(f'{clip.name}: a face in only {seen} of {total} frames; it is not used')
    with Progress(total, f'{Path(frames.path).name}: crops', unit='frame') as bar:
        for one in measured:
            store(one.index, one.image, one.mask)
            bar.update()
    return measured


def _aligned_picture(clip: ClipSpec, path: Path, tracker: Any, options: Options, store: Any) -> MeasuredClip:
    """A picture that is a crop with a camera label already: both are kept, the tracker adds what it measures."""
    from PIL import Image

    from avatar_jax.io.images import read_image

    pixels = read_image(path).pixels
    if pixels.shape[0] != pixels.shape[1]:
        raise UserError(f'{path}: is {pixels.shape[1]}x{pixels.shape[0]} pixels; aligned pictures are square')
    size = options.resolution
    measured = measure(PictureFrames([path]), size=size, label_mode='raw', face='size', tracker=tracker)
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
    store(0, np.asarray(image), mask_of_picture(measured, pixels.shape[0], size))
    label = np.asarray(clip.label, np.float64)[None]
    coefficients = np.array(measured.coefficients, np.float32)
    angle, trans = pose_from_label(label)
    coefficients[:, SLICES['angle']], coefficients[:, SLICES['trans']] = angle, trans
    landmarks = mean_face_landmarks(label, size)
    if 'landmarks' in measured.parts and measured.matrices is not None:
        to_crop = np.asarray(measured.matrices[0], np.float64)
        back = np.linalg.inv(np.vstack([to_crop, [0, 0, 1]]))[:2]
        own = np.asarray(measured.landmarks[0], np.float64) @ back[:, :2].T + back[:, 2]
        landmarks = ((own + 0.5) * (size / pixels.shape[0]) - 0.5)[None].astype(np.float32)
    return replace(measured, coefficients=coefficients, labels=label.astype(np.float32), landmarks=landmarks)


def mask_of_picture(measured: MeasuredClip, side: int, size: int) -> np.ndarray:
    """The mask [size,size] of a whole picture of ``side`` pixels, of which the tracker cut a crop of its own."""
    import cv2

    mask = next(iter(measured)).mask
    if measured.matrices is None:
        return mask
    scale = side / size
    to_crop = np.asarray(measured.matrices[0], np.float64)
    shift = to_crop[:, :2] @ np.full(2, 0.5 * scale - 0.5) + to_crop[:, 2]
    matrix = np.concatenate([to_crop[:, :2] * scale, shift[:, None]], 1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(mask, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def mean_face_landmarks(labels: np.ndarray, size: int) -> np.ndarray:
    """[N, 68, 2] pixels at which the mean face's landmarks appear to cameras ``labels`` [N, 25]."""
    from avatar_jax.procedural import ProceduralHead, to_world

    head = ProceduralHead()
    world = to_world(np.asarray(head.landmarks(np.zeros(80, np.float32), np.zeros(64, np.float32))))
    pose = np.asarray(labels, np.float64)[:, :16].reshape(-1, 4, 4)
    seen = np.einsum('nij,npi->npj', pose[:, :3, :3], world[None] - pose[:, None, :3, 3])
    focal, centre = np.asarray(labels)[:, None, [16]], np.asarray(labels)[:, None][..., [18, 21]]
    return ((seen[..., :2] / seen[..., 2:] * focal + centre) * size).astype(np.float32)


class _Encoder:
    """Pictures as bytes."""

    def __init__(self, jpeg_quality: int):
        self.jpeg_quality = jpeg_quality
        self.endings = ('.jpg' if jpeg_quality else '.png', '.mask.png')

    def picture(self, image: np.ndarray) -> bytes:
        from PIL import Image

        out = io.BytesIO()
        if self.jpeg_quality:
            Image.fromarray(image).save(out, 'JPEG', quality=self.jpeg_quality, subsampling=0)
        else:
            Image.fromarray(image).save(out, 'PNG')
        return out.getvalue()

    def mask(self, mask: np.ndarray) -> bytes:
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(mask).save(out, 'PNG')
        return out.getvalue()


def _encoder(options: Options) -> _Encoder:
    return _Encoder(options.jpeg_quality)
