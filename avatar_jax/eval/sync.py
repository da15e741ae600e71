"""Audio-visual synchronisation scores from SyncNet features (Chung and Zisserman)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from avatar_jax.ops.arrays import Array, namespace

MAX_SHIFT = 10  # video frames (0.4 s at 25 frames per second)
PAIR_EPS = 1e-6  # added to every difference


class SyncScores(NamedTuple):
    """Scores of one clip."""

    mean_distances: Array  # [2 * shift + 1], by audio offset -shift .. shift
    offset: Array  # frames by which the audio must move, an integer
    min_distance: Array  # LSE-D, lower is better
    confidence: Array  # LSE-C = median - minimum, higher is better


def distance_matrix(video: Array, audio: Array, shift: int = MAX_SHIFT, eps: float = PAIR_EPS) -> Array:
    """Distances of video features [T, D] to audio features [T, D] shifted by -shift .. shift (zeros outside the clip).

    ``eps`` is added to every difference. Returns [T, 2*shift+1].
    """
    xp = namespace(video, audio)
    padded = xp.pad(audio, ((shift, shift), (0, 0)))
    index = np.arange(video.shape[0])[:, None] + np.arange(2 * shift + 1)
    return xp.sqrt(((video[:, None] - padded[index] + eps) ** 2).sum(-1))


def sync_scores(video: Array, audio: Array, shift: int = MAX_SHIFT, eps: float = PAIR_EPS) -> SyncScores:
    """Offset, LSE-D and LSE-C of per-clip-position features [T, D]."""
    xp = namespace(video, audio)
    mean = distance_matrix(video, audio, shift, eps).mean(0)
    best = xp.argmin(mean)
    return SyncScores(mean, shift - best, mean[best], xp.median(mean) - mean[best])


def frame_confidence(video: Array, audio: Array, shift: int = MAX_SHIFT, width: int = 9) -> np.ndarray:
    """Confidence per clip position [T]: median of the mean distances minus the distance at the best offset.

    Smoothed with a median filter of ``width`` frames (zeros outside the clip).
    """
    matrix = np.asarray(distance_matrix(np.asarray(video), np.asarray(audio), shift))
    mean = matrix.mean(0)
    raw = np.median(mean) - matrix[:, mean.argmin()]
    padded = np.pad(raw, width // 2)
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
