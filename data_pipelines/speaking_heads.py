"""Rendered clips of one speaking procedural head before a grey wall, as the tracker reads them, with the truth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from avatar_jax.procedural import motion, render_head, sample_identity
from data_pipelines.cameras import pose_labels


def speaking_head(seed: int, split: str, frames: int, side: int, start: int = 0) -> SimpleNamespace:
    """A speaking procedural head: ``frames`` (objects with ``time`` and ``pixels``), and the truth of each:
    ``landmarks`` [T,68,2] (first pixel centred at 0.5), ``expression``, ``angle``."""
    arrays, identity = motion.speech_arrays(seed, start + frames), sample_identity(seed, split)
    grey = 0.3 + 0.4 * np.random.default_rng(seed).random(3)
    clip, landmarks = [], []
    for t in range(frames):
        label = pose_labels(arrays['angle'][start + t], arrays['translation'][start + t])
        head = render_head(
            identity, arrays['expression'][start + t], label, resolution=side, supersample=2, background=grey
        )
        clip.append(
            SimpleNamespace(index=t, time=t / 25, pixels=np.rint(255 * np.clip(head.rgb, 0, 1)).astype(np.uint8))
        )
        landmarks.append(head.landmarks)
    return SimpleNamespace(
        frames=clip,
        landmarks=np.array(landmarks),
        expression=arrays['expression'][start:],
        angle=arrays['angle'][start:],
    )
