"""Which numbers moved the face: expressions of the procedural basis, read from the fit by ``expression_net``.

The network's answer is a guess with a known error covariance S (held-out clips), and the fit says where the landmarks
move, E e, up to ``SIGMA``. Both are put together as Gaussians: numbers that landmarks determine stay those of the fit,
the others follow the network. So faces that move as no procedural head does keep their landmarks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from avatar_jax.models.perception.expression_net import (
    EXPRESSION_NET_METHOD,
    MARGIN,
    RATE,
    ExpressionNet,
    ExpressionNetConfig,
)
from avatar_jax.parallel import as_arrays
from avatar_jax.track.landmark_model import LandmarkModel

WEIGHTS = 'expression_net'
SIGMA = 0.015  # decimetres by which the fit's motion of a landmark may be wrong: 2.5 % of the eye distance
_WINDOW = 64  # frames at once


@functools.cache
def _load(path: str) -> tuple[Any, Any, np.ndarray]:
    from avatar_jax.configure import from_plain
    from avatar_jax.io.weights import load_weights

    weights = load_weights(path, method=EXPRESSION_NET_METHOD)
    net = ExpressionNet(from_plain(ExpressionNetConfig, weights.config))
    variables = as_arrays({k: weights.variables[k] for k in ('params', 'constants')})
    covariance = np.asarray(weights.variables['calibration']['covariance'], np.float64)
    return jax.jit(net.apply), variables, (covariance + covariance.T) / 2


def expected_numbers(
    fitted: np.ndarray, angle: np.ndarray, times: np.ndarray, found: np.ndarray, path: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The network's answer alone.

    Args:
        fitted: [T,64] expressions of the fit. angle: [T,3] radians in the aligned crop.
        times: [T] seconds, increasing. found: [T] bool, frames that were measured.
        path: weight file; the shipped one by default.

    Returns:
        ([T,64] numbers, not clipped; [64,64] covariance of their errors).
    """
    from avatar_jax.io.weights import shipped

    run, variables, covariance = _load(str(path or shipped(WEIGHTS)))
    usual = fitted[found].mean(0) if found.any() else fitted.mean(0)
    count = 1 + int(np.ceil((times[-1] - times[0]) * RATE - 1e-6))
    ticks = times[0] + np.arange(count) / RATE
    rows = np.concatenate([fitted, angle], 1)
    even = np.stack([np.interp(ticks, times, column) for column in rows.T], 1).astype(np.float32)
    even = np.pad(even, ((MARGIN, MARGIN + -count % _WINDOW), (0, 0)), 'edge')
    answers = []
    for first in range(0, count, _WINDOW):
        part = even[None, first : first + _WINDOW + 2 * MARGIN]
        answer = run(variables, part[..., :-3], part[..., -3:], usual[None].astype(np.float32))
        answers.append(np.asarray(answer)[0] - part[0, :, :-3])
    change = np.concatenate([a[MARGIN:-MARGIN] for a in answers])[:count]
    # Between its frames the correction is interpolated, not the expression: blinks keep their height.
    return fitted + np.stack([np.interp(times, ticks, column) for column in change.T], 1), covariance


@functools.lru_cache(maxsize=4)
def _gain(path: str, expression: bytes) -> np.ndarray:
    """[204,64]: from where landmarks should move beyond the network's answer to its correction."""
    covariance = _load(path)[2]
    moved = np.frombuffer(expression, np.float32).reshape(len(covariance), -1).astype(np.float64)
    inner = moved.T @ covariance @ moved + SIGMA**2 * np.eye(moved.shape[1])
    return np.linalg.solve(inner, moved.T @ covariance)


def read_numbers(
    fitted: np.ndarray,
    angle: np.ndarray,
    times: np.ndarray,
    found: np.ndarray,
    landmark_model: LandmarkModel,
    path: str | None = None,
) -> np.ndarray:
    """Expression numbers [T,64] from those of the fit; arguments as of ``expected_numbers``.

    Raises:
        UserError: not such weights.
    """
    from avatar_jax.io.weights import shipped

    path = str(path or shipped(WEIGHTS))
    guess, _ = expected_numbers(fitted, angle, times, found, path)
    guess = np.clip(guess, np.asarray(landmark_model.low), np.asarray(landmark_model.high))
    moved = np.asarray(landmark_model.expression, np.float32)
    gain = _gain(path, moved.tobytes())
    return guess + (fitted - guess) @ moved.reshape(len(moved), -1).astype(np.float64) @ gain
