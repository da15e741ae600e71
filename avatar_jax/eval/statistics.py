"""Means with confidence intervals, and correlations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """Mean over items with a bootstrap interval; all NaN when there were no finite values."""

    mean: float
    low: float
    high: float
    count: int  # finite values that entered


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of two sequences [N]; pairs with a NaN are left out.

    NaN when fewer than two pairs are left or one side does not vary.
    """
    x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    if x.shape != y.shape:
        raise ValueError(f'sequences of different length: {x.size} and {y.size}')
    ok = np.isfinite(x) & np.isfinite(y)
    x, y = x[ok], y[ok]
    if x.size < 2:
        return float('nan')
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size > 0 else float('nan')


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Summary:
    """Mean of per-item values [N] and its percentile bootstrap interval (items drawn with replacement).

    NaN items are left out and not counted. One item gives an interval of zero width.
    """
    values = np.asarray(values, np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return Summary(float('nan'), float('nan'), float('nan'), 0)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, values.size, (resamples, values.size))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Summary(float(values.mean()), float(low), float(high), int(values.size))
