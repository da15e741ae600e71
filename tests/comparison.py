"""Comparisons that are strict about bugs and indifferent to the order in which float32 numbers are summed.

Instruction sets, thread counts and compilers sum in different orders. A smooth function answers with differences of a
few units in the last place: ``close`` and ``close_l2`` bound those. A function with kinks ((P)ReLU, absolute value,
maximum) can answer with much larger ones, as a number near the kink lands on its other side. Two bounds allow that
without becoming wide:

* ``close_but_for``: nearly all entries are held to the strict bound, a small counted share may miss it;
* ``within_spread``: the difference to the reference is compared with what the program itself does when every input
  and parameter is moved by one unit in the last place, which is what rounding in each layer amounts to.

``tests/test_comparison.py`` plants errors and shows that each bound still finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

EPS = float(np.finfo(np.float32).eps)


def _pair(actual, expected, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays in float64, after checks of shape and of NaN and infinity, which are then left out."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f'{what}: shape {actual.shape}, expected {expected.shape}'
    finite = np.isfinite(expected)
    assert (np.isfinite(actual) == finite).all() and np.array_equal(
        actual[~finite].astype(np.float64), expected[~finite].astype(np.float64), equal_nan=True
    ), f'{what}: NaN or infinity at different places'
    return actual[finite].astype(np.float64), expected[finite].astype(np.float64)


def _excess(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float, scale: float) -> np.ndarray:
    """By how much each entry is beyond ``atol + rtol*|expected| + scale*max|expected|`` (negative: within)."""
    return np.abs(actual - expected) - (atol + rtol * np.abs(expected) + scale * np.abs(expected).max(initial=0.0))


def close(actual, expected, *, rtol: float = 0.0, atol: float = 0.0, scale: float = 0.0, what: str = '') -> None:
    """Asserts ``|actual - expected| <= atol + rtol*|expected| + scale*max|expected|`` element-wise (shapes equal)."""
    close_but_for(actual, expected, share=0.0, rtol=rtol, atol=atol, scale=scale, what=what)


def close_but_for(
    actual,
    expected,
    *,
    share: float,
    rtol: float = 0.0,
    atol: float = 0.0,
    scale: float = 0.0,
    most: float = 0.0,
    what: str = '',
) -> None:
    """Like ``close``, but at most ``share`` of the entries may miss the bound, each by at most
    ``most*max|expected|``.
    """
    actual, expected = _pair(actual, expected, what)
    if not expected.size:
        return
    excess = _excess(actual, expected, rtol, atol, scale)
    beyond, size = int((excess > 0).sum()), np.abs(expected).max()
    error = np.abs(actual - expected).max()
    said = f'{what}: max error {error:.3e} (max |expected| {size:.3e}), {excess.max():.3e} over the bound'
    assert beyond <= share * expected.size, f'{said} at {beyond} of {expected.size} entries, allowed {share:.2%}'
    assert beyond == 0 or excess.max() <= most * size, f'{said}, allowed {most * size:.3e}'


def close_l2(actual, expected, limit: float, what: str = '') -> None:
    """Asserts ``||actual - expected|| <= limit * ||expected||`` over the whole array."""
    actual, expected = _pair(actual, expected, what)
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)
    assert error <= limit, f'{what}: relative L2 error {error:.3e} > {limit:.1e}'


def moved(tree: Any, seed: int) -> Any:
    """The tree with every float32 number multiplied by ``1 + u*eps``, u uniform in [-1, 1]; other leaves as they
    are.
    """
    rng = np.random.default_rng([31, seed])

    def move(x):
        x = np.asarray(x)
        if x.dtype != np.float32:
            return x
        return x * (1 + EPS * rng.uniform(-1, 1, x.shape)).astype(np.float32)

    return jax.tree.map(move, tree)


def with_moved(function: Callable, *args: Any, draws: int = 3) -> list[Any]:
    """Results of ``function(*args)`` (first) and of the same with all arguments moved, ``draws`` times."""
    return [function(*args), *(function(*moved(args, seed)) for seed in range(draws))]


def within_spread(results: list[np.ndarray], expected, *, factor: float = 8.0, what: str = '') -> None:
    """Asserts that the first result is as near ``expected`` as the program is to itself with moved arguments.

    Args:
        results: arrays of ``with_moved``, one shape; the first is the program's answer.
        expected: the reference, same shape.
        factor: how often the largest L2 distance between the answer and a moved one the L2 error may be. An order of
            sums rounds in every layer, a move only at its inputs and weights; measured over instruction sets, the error
            was at most 2.5 times the spread, and planted errors are beyond 8 times it.
        what: name in messages.
    """
    actual, reference = _pair(results[0], expected, what)
    spread = max(np.linalg.norm(_pair(other, results[0], what)[0] - actual) for other in results[1:])
    limit = factor * spread + EPS * np.linalg.norm(reference)
    error = np.linalg.norm(actual - reference)
    assert error <= limit, (
        f'{what}: L2 error {error:.3e}, {error / max(limit, 1e-30):.1f} times the allowed {limit:.3e}'
    )
