"""Small smooth functions from which the head is sculpted and painted."""

from __future__ import annotations

import numpy as np


def step(edge0, edge1, x):
    """0 at ``edge0``, 1 at ``edge1`` (either order), cubic between, constant outside."""
    t = np.clip((x - edge0) / (edge1 - edge0), 0, 1)
    return t * t * (3 - 2 * t)


def bell(x, sigma):
    """exp(-(x/sigma)^2)."""
    return np.exp(-np.square(x / sigma))


def bump(x, y, cx, cy, sx, sy):
    """Gaussian bump of height 1 at (cx, cy) with radii sx, sy (where it has fallen to 1/e)."""
    return np.exp(-np.square((x - cx) / sx) - np.square((y - cy) / sy))


def smooth_max(a, b, k):
    """Maximum of a and b, rounded over differences below ``k``."""
    h = np.maximum(k - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h / (4 * k)


class Spline:
    """Monotone-preserving cubic through (x, y) knots (Fritsch-Carlson slopes), constant outside them."""

    def __init__(self, x, y):
        x, y = np.asarray(x, float), np.asarray(y, float)
        order = np.argsort(x)
        self.x, self.y = x[order], y[order]
        h = np.diff(self.x)
        secant = np.diff(self.y) / h
        slope = np.zeros(len(x))
        w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
        same = secant[1:] * secant[:-1] > 0
        safe1, safe0 = np.where(same, secant[1:], 1), np.where(same, secant[:-1], 1)
        slope[1:-1] = np.where(same, (w1 + w2) / (w1 / safe0 + w2 / safe1), 0)
        slope[0], slope[-1] = secant[0], secant[-1]
        self.slope = slope

    def __call__(self, x):
        x = np.clip(x, self.x[0], self.x[-1])
        i = np.clip(np.searchsorted(self.x, x, side='right') - 1, 0, len(self.x) - 2)
        h = self.x[i + 1] - self.x[i]
        t = (x - self.x[i]) / h
        return (
            (1 + 2 * t) * (1 - t) ** 2 * self.y[i]
            + t * (1 - t) ** 2 * h * self.slope[i]
            + t * t * (3 - 2 * t) * self.y[i + 1]
            + t * t * (t - 1) * h * self.slope[i + 1]
        )
