"""The folder that a tracked input becomes: crops, masks, arrays, motion files, overlay, report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.faces.alignment import eg3d_crop
from avatar_jax.io import atomic
from avatar_jax.io.images import encode_png, write_png
from avatar_jax.io.motion import save_motion
from avatar_jax.io.provenance import Provenance
from avatar_jax.io.video import VideoWriter
from avatar_jax.track.clip import Track
from avatar_jax.track.network import FaceReader, cut
from avatar_jax.track.overlay import Wire, draw
from avatar_jax.track.quality import PARTS, frame_quality, grade
from avatar_jax.track.smooth import runs
from avatar_jax.types import Motion

FORMAT = 'avatar_jax track 1'
ARRAYS, MOTION, REPORT, CROPS, MASKS = 'track.npz', 'motion.npz', 'report.json', 'crops', 'masks'
_IRREGULAR = 0.05  # share by which time stamps differ from an even rate before motion is resampled


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """What is written.

    Attributes:
      crops: 'png', 'jpg' or 'none'. overlay: write the overlay.
      background: 'keep', or 'white' to lay crops over white by their mask.
      masks: write head masks.
    """

    crops: str = 'png'
    overlay: bool = True
    background: str = 'keep'
    masks: bool = True


def crop_of(pixels: np.ndarray, track: Track, frame: int, exact: bool) -> np.ndarray:
    """The aligned crop [S,S,3] of one frame.

    Args:
      exact: resample as the EG3D data were made (Pillow, slow for large pictures); else one antialiased warp, which
        puts every pixel at the same place.
    """
    if exact:
        return eg3d_crop(pixels, track.five[frame], output=track.crop_size)[0]
    matrix = track.matrices[frame].copy()
    matrix[:, 2] += 0.5 - matrix[:, :2] @ [0.5, 0.5]  # from integers at pixel centres to first pixel at 0.5
    return cut(pixels, matrix, track.crop_size)


def motions(track: Track, fps: float, source: str) -> list[tuple[Motion, tuple[int, int]]]:
    """Motion of each shot that has a face, at an even frame rate, with its range of frames; the longest first."""
    found = []
    for s in range(len(track.identity)):
        rows = np.flatnonzero((track.segment == s) & track.valid)
        if not len(rows):
            continue
        values = np.concatenate([track.expression, track.angle, track.translation], 1)[rows]
        values = even(values, track.times[rows], fps)
        found.append(
            (
                Motion(values[:, :64], values[:, 64:67], values[:, 67:], fps, track.basis, source),
                (int(rows[0]), int(rows[-1]) + 1),
            )
        )
    return sorted(found, key=lambda m: -(m[1][1] - m[1][0]))


def even(values: np.ndarray, times: np.ndarray, fps: float) -> np.ndarray:
    """Values [T,C] at irregular ``times`` brought to an even rate; unchanged where the times are even already."""
    if len(values) < 2:
        return values.astype(np.float32)
    expected = times[0] + np.arange(len(times)) / fps
    if np.abs(times - expected).max() < _IRREGULAR / fps + 1e-3:
        return values.astype(np.float32)
    wanted = np.arange(times[0], times[-1] + 0.5 / fps, 1 / fps)
    return np.stack([np.interp(wanted, times, column) for column in values.T], 1).astype(np.float32)


def write(
    folder: Path,
    source: Any,
    reader: Any,
    track: Track,
    model: Any,
    network: FaceReader | None,
    config: OutputConfig,
    settings: dict[str, Any],
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Second pass: writes everything into ``folder``, completely or not at all.

    Args:
      source: the ``Source``. reader: its open reader. model: head model (for the mesh).
      network: reads masks; None writes none.
      settings: options of the run, for the report.

    Returns:
      The report.
    """
    sha = source.sha256()
    quality = frame_quality(track)
    provenance = Provenance(
        synthetic=False, weights=network.sha256 if network else '', command='track', sources={source.path.name: sha}
    )
    with atomic.atomic_folder(folder) as temporary:
        _write_arrays(temporary / ARRAYS, track, quality, provenance, source.path.name)
        fps = float(reader.fps)
        clips = motions(track, fps, sha)
        for i, (motion, _) in enumerate(clips):
            save_motion(temporary / (MOTION if i == 0 else f'motion_{i + 1:02d}.npz'), motion, provenance)
        report = make_report(track, quality, clips, source, reader, settings, provenance)
        atomic.write_json(temporary / REPORT, report)
        _write_pictures(
            temporary,
            source,
            reader,
            track,
            Wire(model) if config.overlay else None,
            network if config.masks else None,
            config,
            provenance,
            on_frame,
        )
    return report


def _write_arrays(path: Path, track: Track, quality: dict[str, np.ndarray], provenance: Provenance, name: str) -> None:
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
        'landmarks_crop': crop_landmarks(track),
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
        'quality': quality['score'],
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic.write_bytes(path, buffer.getvalue())


def crop_landmarks(track: Track) -> np.ndarray:
    """[T,68,2] landmarks in the crops, pixels, y down, integers at pixel centres."""
    m = track.matrices
    return (np.einsum('tij,tnj->tni', m[..., :2], track.landmarks) + m[:, None, :, 2]).astype(np.float32)


def _write_pictures(
    folder: Path,
    source: Any,
    reader: Any,
    track: Track,
    wire: Wire | None,
    network: FaceReader | None,
    config: OutputConfig,
    provenance: Provenance,
    on_frame: Callable[[], None],
) -> None:
    exact = source.kind == 'photo'
    with contextlib.ExitStack() as stack:
        video = None
        for frame in reader:
            i = frame.index
            if i >= track.num_frames:
                break
            if track.valid[i] and (config.crops != 'none' or network is not None):
                crop = crop_of(frame.pixels, track, i, exact)
                mask = network.masks(crop[None])[0] if network is not None else None
                if mask is not None:
                    write_png(
                        folder / MASKS / f'{i:06d}.png', np.rint(255 * np.clip(mask, 0, 1)).astype(np.uint8), provenance
                    )
                if config.background == 'white' and mask is not None:
                    crop = np.rint(255 + mask[..., None] * (crop.astype(np.float32) - 255)).astype(np.uint8)
                if config.crops == 'png':
                    write_png(folder / CROPS / f'{i:06d}.png', crop, provenance)
                elif config.crops == 'jpg':
                    atomic.write_bytes(folder / CROPS / f'{i:06d}.jpg', _jpeg(crop))
            if wire is not None:
                picture = draw(frame.pixels, track, i, wire)
                if exact:
                    atomic.write_bytes(folder / 'overlay.png', encode_png(picture, provenance))
                else:
                    video = video or stack.enter_context(
                        VideoWriter(
                            folder / 'overlay.mp4', reader.fps, crf=22, preset='veryfast', provenance=provenance
                        )
                    )
                    video.write(picture)
            on_frame()


def _jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format='JPEG', quality=95, subsampling=0)
    return buffer.getvalue()


def make_report(
    track: Track,
    quality: dict[str, np.ndarray],
    clips: list,
    source: Any,
    reader: Any,
    settings: dict[str, Any],
    provenance: Provenance,
) -> dict[str, Any]:
    """Everything about one input as plain values."""
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
        'file': str(source.path),
        'sha256': provenance.sources[source.path.name],
        'kind': source.kind,
        'frames': track.num_frames,
        'fps': float(reader.fps),
        'size': list(track.size),
        'input_notes': list(reader.notes),
        'landmarks_from': track.source,
        'basis': track.basis,
        'crop': track.crop_mode,
        'crop_size': track.crop_size,
        'faces_found': int(track.found.sum()),
        'missing': missing,
        'notes': track.notes,
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
