"""Filtering in time: the One-Euro filter at irregular time stamps, without lag, and how much a track jitters."""

from __future__ import annotations

import numpy as np

# Strength 1 is a cutoff of 4 Hz at rest: jitter of single frames goes, blinks (0.1 s) and speech stay. The cutoff rises
# with the speed of the signal in its own spreads per second.
CUTOFF_HZ, SPEED = 4.0, 0.6
_DERIVATIVE_HZ = 2.0
_IRREGULAR = 0.05  # share by which time stamps differ from an even rate before values are resampled


def _share(cutoff: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Weight of the new value of a first-order low-pass filter."""
    r = 2 * np.pi * cutoff * gap
    return r / (r + 1)


def one_euro(values: np.ndarray, times: np.ndarray, cutoff: float, speed: float) -> np.ndarray:
    """One-Euro filter (Casiez et al. 2012) along the first axis, forwards in time.

    Args:
        values: [T, ...]. times: [T] seconds, increasing.
        cutoff: Hz for a signal at rest. speed: Hz per unit of the signal and second by which it rises.
    """
    out = np.array(values, np.float64)
    slope = np.zeros(out.shape[1:])
    for t in range(1, len(out)):
        gap = max(times[t] - times[t - 1], 1e-6)
        change = (values[t] - out[t - 1]) / gap
        slope = slope + _share(np.float64(_DERIVATIVE_HZ), gap) * (change - slope)
        share = _share(cutoff + speed * np.abs(slope), gap)
        out[t] = out[t - 1] + share * (values[t] - out[t - 1])
    return out


def steady(values: np.ndarray, times: np.ndarray, strength: float, spread: float) -> np.ndarray:
    """The mean of a forward and a backward One-Euro filter: no lag.

    Args:
        values: [T, ...]. times: [T] seconds.
        strength: 0 leaves the values alone; 2 halves the cutoff of 1.
        spread: size of a large change of the signal, in its own unit.
    """
    values = np.asarray(values, np.float64)
    if strength <= 0 or len(values) < 3:
        return values
    cutoff, speed = CUTOFF_HZ / strength, SPEED / spread * 4
    forward = one_euro(values, times, cutoff, speed)
    backward = one_euro(values[::-1], -np.asarray(times)[::-1], cutoff, speed)[::-1]
    return (forward + backward) / 2


def jitter(points: np.ndarray, times: np.ndarray, size: np.ndarray | float) -> float:
    """How much landmarks tremble: root mean square distance of each from the line between its neighbours in time.

    Args:
        points: [T,N,2]. times: [T]. size: eye distance, [T] or one number, in the unit of the points.

    Returns:
        Share of the eye distance; 0 for fewer than three frames. Quick motion counts a little, too.
    """
    if len(points) < 3:
        return 0.0
    share = ((times[1:-1] - times[:-2]) / np.maximum(times[2:] - times[:-2], 1e-9))[:, None, None]
    expected = points[:-2] + share * (points[2:] - points[:-2])
    away = np.linalg.norm(points[1:-1] - expected, axis=-1) / np.broadcast_to(size, len(points))[1:-1, None]
    return float(np.sqrt((away**2).mean()))


def fill_gaps(values: np.ndarray, known: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Values [T, ...] with those of frames that are not ``known`` interpolated in time, held at the ends."""
    values = np.array(values, np.float64)
    index = np.flatnonzero(known)
    if not len(index) or len(index) == len(values):
        return values
    flat = values.reshape(len(values), -1)
    for column in flat.T:
        column[:] = np.interp(times, times[index], column[index])
    return flat.reshape(values.shape)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges of frames where ``flags`` is true."""
    edges = np.diff(np.concatenate([[0], np.asarray(flags, np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist()))


def even_rate(values: np.ndarray, times: np.ndarray, fps: float) -> np.ndarray:
    """Values [T,C] at irregular ``times`` brought to an even rate, float32; as they are where that is even already."""
    if len(values) < 2:
        return values.astype(np.float32)
    expected = times[0] + np.arange(len(times)) / fps
    if np.abs(times - expected).max() < _IRREGULAR / fps + 1e-3:
        return values.astype(np.float32)
    wanted = np.arange(times[0], times[-1] + 0.5 / fps, 1 / fps)
    return np.stack([np.interp(wanted, times, column) for column in values.T], 1).astype(np.float32)
