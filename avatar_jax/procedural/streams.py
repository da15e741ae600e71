"""Random numbers that are the same on every machine and with every NumPy version.

NumPy promises the raw bits of Philox, but not what its distributions make of them; the few distributions needed here
are written out over the raw bits.
"""

from __future__ import annotations

import math
import zlib

import numpy as np


class Stream:
    """An endless stream of random numbers that depends on its keys alone.

    The methods follow ``numpy.random.Generator``: the same names, argument order and meaning, float64 results.

    Args:
        keys: integers (not negative) and words.
    """

    def __init__(self, *keys: int | str):
        self.keys = tuple(
            zlib.crc32(k.encode('utf-8', 'surrogateescape')) if isinstance(k, str) else int(k) for k in keys
        )
        if any(k < 0 for k in self.keys):
            raise ValueError(f'random stream: keys must not be negative, got {keys}')
        self._bits = np.random.Philox(np.random.SeedSequence(self.keys))

    def child(self, *keys: int | str) -> Stream:
        """An independent stream; drawing from one does not move the other."""
        return Stream(*self.keys, *keys)

    def random(self, size=None):
        """Uniform in [0, 1) with 53 bits."""
        if size is None:
            return (int(self._bits.random_raw()) >> 11) * 2.0**-53
        raw = np.asarray(self._bits.random_raw(math.prod(np.atleast_1d(size))), np.uint64)
        return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(size)

    def uniform(self, low=0.0, high=1.0, size=None):
        """Uniform in [low, high)."""
        return low + (high - low) * self.random(size)

    def normal(self, loc=0.0, scale=1.0, size=None):
        """Gaussian (Box-Muller); ``loc`` and ``scale`` broadcast against ``size``."""
        if size is None:
            radius = math.sqrt(-2.0 * math.log1p(-self.random()))
            return loc + scale * radius * math.cos(2.0 * math.pi * self.random())
        u = self.random(
            (math.prod(np.atleast_1d(size)), 2)
        )  # pairs stand together: a longer draw begins like a shorter
        return loc + scale * (np.sqrt(-2.0 * np.log1p(-u[:, 0])) * np.cos(2.0 * np.pi * u[:, 1])).reshape(size)

    def exponential(self, scale=1.0):
        """One exponentially distributed number of mean ``scale``."""
        return -scale * math.log1p(-self.random())

    def integers(self, low: int, high: int, size=None):
        """Whole numbers in [low, high), for ranges up to 2**62 by remainder: the bias is negligible below 2**40."""
        span = int(high) - int(low)
        if not 0 < span <= 2**62:
            raise ValueError(f'integers: need low < high, got {low} and {high}')
        if size is None:
            return int(self._bits.random_raw()) % span + int(low)
        raw = np.asarray(self._bits.random_raw(math.prod(np.atleast_1d(size))), np.uint64)
        return ((raw % np.uint64(span)).astype(np.int64) + int(low)).reshape(size)

    def choice(self, options: int, size=None, p=None):
        """Whole numbers 0 .. options-1 with probabilities ``p`` (normalised here; equal when absent)."""
        if p is None:
            return self.integers(0, options, size)
        if size is None:
            left = self.random() * sum(p)
            for index, share in enumerate(p):
                left -= share
                if left < 0:
                    return index
            return options - 1
        edges = np.cumsum(np.asarray(p, np.float64))
        index = np.searchsorted(edges / edges[-1], self.random(size), side='right')
        return np.minimum(index, options - 1)
