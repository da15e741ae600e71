"""Clips of procedural people, fitted as ``avatar-jax track`` fits them, whose expression numbers are known.

Speech and independent expressions are projected to landmarks through random lenses, with errors from none to those of
a network, and fitted; or rendered, read by the landmark network and fitted. ``bundled.expression_net`` learns from
them. A clip is a function of its number alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.bundled.expression_net import LENGTH, FittedClip
from avatar_jax.io.atomic import atomic_path
from avatar_jax.ops.landmark_layouts import FILE_SIGMA
from avatar_jax.procedural import ProceduralHead, motion, sample_identity
from avatar_jax.procedural.random_expressions import random_expressions
from avatar_jax.procedural.streams import Stream
from avatar_jax.progress import Progress
from avatar_jax.track.camera import from_translation
from avatar_jax.track.choose import Chooser
from avatar_jax.track.clip import track_clip
from avatar_jax.track.fit import FitConfig
from avatar_jax.track.landmark_model import LandmarkModel, at_landmarks
from avatar_jax.track.network import FaceReader
from avatar_jax.track.observe import Observed, observe
from avatar_jax.track.placing import project_clip
from avatar_jax.track.track import TrackConfig
from data_pipelines.speaking_heads import speaking_head

SPEECH, RENDERED = 100_000, 200_000  # first seeds; the clips of tests and figures have others
_MOTIONS = 300_000


def independent(seed: int, frames: int, every: float = 8.0) -> np.ndarray:
    """[T,64]: independent expressions, one after every ``every`` frames, with smooth changes between them."""
    at = np.arange(frames) / every
    first = at.astype(int)
    poses = random_expressions(Stream(seed, 'reader'), first[-1] + 2)
    share = motion.smoothstep(1.5 * (at - first))[:, None]
    return poses[first] * (1 - share) + poses[first + 1] * share


def simulated(index: int, landmark_model: LandmarkModel) -> dict[str, Any]:
    """One clip of simulated landmarks, fitted: arrays of ``FittedClip``."""
    rng = np.random.default_rng([11, index])
    frames, start = int(rng.integers(60, 160)), int(rng.integers(0, 100))
    arrays = motion.speech_arrays(SPEECH + index, start + frames)
    truth, angle, translation = (arrays[k][start:].astype(np.float64) for k in ('expression', 'angle', 'translation'))
    if index % 5 == 4:
        truth = independent(SPEECH + index, frames)
    identity = rng.normal(size=80) if index % 3 == 0 else sample_identity(SPEECH + index, 'train')[:80]
    focal, side = np.exp(rng.uniform(np.log(1.0), np.log(4.5))), int(rng.choice([256, 512, 1024]))
    quality = index % 4  # exact, noise, and twice landmarks that err like a network's
    network = rng.uniform(0.01, 0.05) if quality > 1 else 0.0
    noise = rng.uniform(0, 0.004) * side if quality == 1 else 0.0
    points = np.asarray(landmark_model.mean) + np.tensordot(identity, np.asarray(landmark_model.identity), 1)
    points = points + np.tensordot(truth, np.asarray(landmark_model.expression), 1)
    pose = from_translation(angle, translation)
    pose[:, 5] += np.log(focal / 2.1)  # as large in the picture, whatever the lens
    seen = project_clip(points, pose, focal * side, np.full(2, side / 2))
    extent = 0.5 * float(np.ptp(seen, axis=1).max(-1).mean())
    slow = _slow_noise(rng, frames)
    seen = (
        seen
        + noise * rng.normal(size=seen.shape)
        + network * extent * (0.6 * rng.normal(size=(1, 68, 2)) + 0.5 * slow + 0.4 * rng.normal(size=seen.shape))
    )
    smooth = float(rng.choice([0.0, 1.0, 1.0, 1.0, 2.0]))
    observed = Observed(
        np.arange(frames) / 25,
        np.ones(frames, bool),
        seen,
        np.full((frames, 68), extent * max(FILE_SIGMA, network)),
        np.full((frames, 64), np.nan),
        np.full((frames, 3), np.nan),
        np.ones(frames),
        np.zeros(frames, np.int32),
        (side, side),
        'simulated',
        [],
        [1.0],
    )
    track = track_clip(
        observed, landmark_model, TrackConfig(FitConfig(smooth=smooth), smooth, label_mode='raw', read_numbers=False)
    )
    kind = f'{"network" if network else "exact"} {"smooth" if smooth else "rough"}'
    return {'fitted': track.expression, 'truth': truth, 'angle': track.angle, 'kind': kind}


def _slow_noise(rng: np.random.Generator, frames: int) -> np.ndarray:
    """[T,68,2] of variance 1, correlated over a quarter of a second."""
    kernel = np.exp(-(np.arange(-10, 11) ** 2) / 18.0)
    kernel /= np.sqrt((kernel**2).sum())
    noise = rng.normal(size=(frames + 20, 68, 2))
    return sum(k * noise[i : i + frames] for i, k in enumerate(kernel))


def rendered(index: int, landmark_model: LandmarkModel, frames: int = 60) -> dict[str, Any]:
    """One rendered clip, read by the landmark network and fitted."""
    rng, reader = np.random.default_rng([12, index]), FaceReader()
    clip = speaking_head(
        RENDERED + index, 'train', frames, int(rng.integers(190, 330)), start=int(rng.integers(0, 200))
    )
    observed = observe(clip.frames, reader, Chooser())
    track = track_clip(observed, landmark_model, TrackConfig(label_mode='raw', read_numbers=False), reader.calibration)
    return {'fitted': track.expression, 'truth': clip.expression, 'angle': track.angle, 'kind': 'rendered'}


def fitted_clips(folder: Path, clips: int, rendered_clips: int) -> list[FittedClip]:
    """All fitted clips; those that are in ``folder`` already are read.

    Args:
        clips: of simulated landmarks. rendered_clips: which are rendered and read by the landmark network.
    """
    landmark_model, found = at_landmarks(ProceduralHead()), []
    folder.mkdir(parents=True, exist_ok=True)
    work = [('simulated', simulated, i) for i in range(clips)] + [
        ('rendered', rendered, i) for i in range(rendered_clips)
    ]
    with Progress(len(work), 'fitted clips', unit='clip') as bar:
        for name, make, index in work:
            path = folder / f'{name}_{index:05d}.npz'
            if not path.exists():
                with atomic_path(path) as part, open(part, 'wb') as file:
                    np.savez(file, **make(index, landmark_model))
            with np.load(path) as file:
                found.append(FittedClip(*(file[k] for k in ('fitted', 'truth', 'angle')), str(file['kind'])))
            bar.update()
    return found


def motions(count: int) -> dict[str, list[Any]]:
    """``count`` spoken motions and a sixth as many of independent expressions."""
    spoken = [(a['expression'], a['angle']) for a in (motion.speech_arrays(_MOTIONS + k, LENGTH) for k in range(count))]
    rng = np.random.default_rng(13)
    unspoken = [
        (independent(_MOTIONS + k, LENGTH, rng.uniform(6, 14)), spoken[k][1]) for k in range(max(1, count // 6))
    ]
    return {'spoken': spoken, 'unspoken': unspoken}
