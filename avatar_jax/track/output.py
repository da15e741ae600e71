"""The folder that a tracked input becomes: crops, masks, arrays, motion files, overlay, report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.faces.base import MorphableModel
from avatar_jax.io import atomic
from avatar_jax.io.images import encode_png, write_png
from avatar_jax.io.motion import save_motion
from avatar_jax.io.provenance import Provenance
from avatar_jax.io.video import VideoFrame, VideoWriter
from avatar_jax.track.inputs import FrameSource, Input
from avatar_jax.track.measured import MeasuredClip
from avatar_jax.track.overlay import Wire, draw
from avatar_jax.track.quality import PARTS, grade
from avatar_jax.track.smooth import even_rate, runs
from avatar_jax.track.track import Track
from avatar_jax.types import Motion

FORMAT = 'avatar_jax track 1'
ARRAYS, MOTION, REPORT, CROPS, MASKS = 'track.npz', 'motion.npz', 'report.json', 'crops', 'masks'


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """What is written.

    Attributes:
        crops: 'png', 'jpg' or 'none'. overlay: write the overlay.
        masks: write head masks.
    """

    crops: str = 'png'
    overlay: bool = True
    masks: bool = True


def motions(track: Track, fps: float, source: str) -> list[tuple[Motion, tuple[int, int]]]:
    """Motion of each shot that has a face, at an even frame rate, with its range of frames; the longest first."""
    found = []
    for s in range(len(track.identity)):
        rows = np.flatnonzero((track.segment == s) & track.valid)
        if not len(rows):
            continue
        values = np.concatenate([track.expression, track.angle, track.translation], 1)[rows]
        values = even_rate(values, track.times[rows], fps)
        found.append(
            (
                Motion(values[:, :64], values[:, 64:67], values[:, 67:], fps, track.basis, source),
                (int(rows[0]), int(rows[-1]) + 1),
            )
        )
    return sorted(found, key=lambda m: -(m[1][1] - m[1][0]))


def write(
    folder: Path,
    item: Input,
    frames: FrameSource,
    clip: MeasuredClip,
    model: MorphableModel,
    config: OutputConfig,
    settings: dict[str, Any],
    weights: str = '',
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Second pass: writes everything into ``folder``, completely or not at all.

    Args:
        item: what was tracked. frames: its frames. clip: what was measured in them.
        model: head model (for the mesh).
        settings: options of the run, for the report.
        weights: SHA-256 of the landmark network.

    Returns:
        The report.
    """
    sha, track = item.sha256(), clip.track
    provenance = Provenance(synthetic=False, weights=weights, command='track', sources={item.path.name: sha})
    with atomic.atomic_folder(folder) as temporary:
        _write_arrays(temporary / ARRAYS, clip, provenance, item.path.name)
        fps = float(frames.fps)
        clips = motions(track, fps, sha)
        for i, (motion, _) in enumerate(clips):
            save_motion(temporary / (MOTION if i == 0 else f'motion_{i + 1:02d}.npz'), motion, provenance)
        report = make_report(clip, clips, item, frames, settings, provenance)
        atomic.write_json(temporary / REPORT, report)
        wire = Wire(model) if config.overlay else None
        _write_pictures(temporary, item, frames, clip, wire, config, provenance, on_frame)
    return report


def _write_arrays(path: Path, clip: MeasuredClip, provenance: Provenance, name: str) -> None:
    track = clip.track
    arrays = {
        'format': np.array(FORMAT),
        'basis': np.array(track.basis),
        'input': np.array(name),
        'provenance': np.array(provenance.json()),
        'size': np.array(track.size, np.int32),
        'time': track.times,
        'found': track.found,
        'valid': track.valid,
        'segment': track.segment,
        'landmarks': track.landmarks,
        'sigma': track.sigma,
        'fitted_landmarks': track.fitted,
        'landmarks_crop': clip.landmarks,
        'identity': track.identity,
        'coefficients': track.coefficients(),
        'expression': track.expression,
        'angle': track.angle,
        'translation': track.translation,
        'labels': track.labels,
        'crop_matrix': track.matrices.astype(np.float32),
        'crop_placement': track.placement,
        'camera_pose': track.pose,
        'focal': track.focal,
        'quality': clip.quality['score'],
        'label_mode': np.array(clip.label_mode),
        'fps': np.array(clip.fps),
        'crop_size': np.array(track.crop_size, np.int32),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic.write_bytes(path, buffer.getvalue())


def _write_pictures(
    folder: Path,
    item: Input,
    frames: FrameSource,
    clip: MeasuredClip,
    wire: Wire | None,
    config: OutputConfig,
    provenance: Provenance,
    on_frame: Callable[[], None],
) -> None:
    with contextlib.ExitStack() as stack:
        video = None

        def each(frame: VideoFrame) -> None:
            nonlocal video
            if wire is not None and frame.index < clip.num_frames:
                picture = draw(frame.pixels, clip.track, frame.index, wire)
                if not item.moving:
                    atomic.write_bytes(folder / 'overlay.png', encode_png(picture, provenance))
                else:
                    video = video or stack.enter_context(
                        VideoWriter(
                            folder / 'overlay.mp4', frames.fps, crf=22, preset='veryfast', provenance=provenance
                        )
                    )
                    video.write(picture)
            on_frame()

        if config.crops == 'none' and not config.masks:
            for frame in frames:
                each(frame)
            return
        for measured in clip.frames(on_frame=each):
            name = f'{measured.index:06d}'
            if config.masks:
                mask = np.rint(255 * np.clip(measured.mask, 0, 1)).astype(np.uint8)
                write_png(folder / MASKS / f'{name}.png', mask, provenance)
            if config.crops == 'png':
                write_png(folder / CROPS / f'{name}.png', measured.image, provenance)
            elif config.crops == 'jpg':
                atomic.write_bytes(folder / CROPS / f'{name}.jpg', _jpeg(measured.image))


def _jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format='JPEG', quality=95, subsampling=0)
    return buffer.getvalue()


def make_report(
    clip: MeasuredClip,
    clips: list,
    item: Input,
    frames: FrameSource,
    settings: dict[str, Any],
    provenance: Provenance,
) -> dict[str, Any]:
    """Everything about one input as plain values."""
    track, quality = clip.track, clip.quality
    score = float(quality['score'][track.found].mean()) if track.found.any() else 0.0
    missing = [
        {
            'frames': [a, b - 1],
            'from': float(track.times[a]),
            'to': float(track.times[b - 1]),
            'what': 'no face in the shot'
            if not track.valid[a:b].any()
            else 'interpolated'
            if _between(track, a, b)
            else 'held',
        }
        for a, b in runs(~track.found)
    ]
    segments = [
        {
            'frames': [int(np.flatnonzero(track.segment == s)[0]), int(np.flatnonzero(track.segment == s)[-1])],
            'found': int((track.found & (track.segment == s)).sum()),
            'focal_pixels': float(track.focal[s]),
            'likeness_to_first': track.likeness[s] if s < len(track.likeness) else None,
        }
        for s in range(len(track.identity))
    ]
    return {
        'file': str(item.path),
        'sha256': provenance.sources[item.path.name],
        'kind': item.kind,
        'frames': track.num_frames,
        'fps': float(frames.fps),
        'size': list(track.size),
        'input_notes': list(frames.notes),
        'landmarks_from': track.source,
        'basis': track.basis,
        'crop': track.crop_mode,
        'crop_size': track.crop_size,
        'faces_found': int(track.found.sum()),
        'missing': missing,
        'notes': track.notes,
        'warnings': list(clip.warnings),
        'segments': segments,
        'quality': {
            'score': score,
            'grade': grade(score),
            'parts': {k: float(quality[k][track.found].mean()) for k in PARTS},
        },
        'jitter_percent_of_eye_distance': {'measured': 100 * track.jitter[0], 'after_filter': 100 * track.jitter[1]},
        'fit_residual_percent_of_eye_distance': 100 * float(np.nanmean(track.residual)),
        'fit_seconds': track.seconds,
        'fit_frames_per_second': track.num_frames / max(track.seconds, 1e-9),
        'even_rate': bool(len(clips) == 0 or all(m.num_frames == b - a for m, (a, b) in clips)),
        'motion_files': [
            {'file': MOTION if i == 0 else f'motion_{i + 1:02d}.npz', 'frames': [a, b - 1]}
            for i, (_, (a, b)) in enumerate(clips)
        ],
        'settings': settings,
        'provenance': provenance.as_dict(),
    }


def _between(track: Track, first: int, end: int) -> bool:
    """Whether faces of the same shot were found before and after the frames."""
    same = track.segment == track.segment[first]
    return bool((track.found & same)[:first].any() and (track.found & same)[end:].any())
