"""Which part of an array a reference file stores."""

from __future__ import annotations

import re

import numpy as np


def stored_slices(text: str) -> dict[str, tuple[slice, ...]]:
    """Parts named in a file's own words: 'layer1 [:, ::8, ::4, ::4]; ...' -> {'layer1': slices}."""
    return {name: index_of(index) for name, index in re.findall(r'(\w+) \[([:\d, ]+)\]', text)}


def index_of(text: str) -> tuple[slice, ...]:
    """'[:, ::8, ::4]' (brackets optional) -> slices."""
    steps = [part.strip().lstrip(':') for part in text.strip('[] ').split(',')]
    return tuple(slice(None, None, int(s) if s else None) for s in steps)


def thinned(array: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Every n-th entry of each axis so that the shape is that of ``expected``; n is a power of two where that fits."""
    index = []
    for full, part in zip(array.shape, expected.shape, strict=True):
        fitting = [s for s in range(1, full + 1) if -(-full // s) == part]
        powers = [s for s in fitting if s & (s - 1) == 0]
        assert fitting, f'{part} of {full} entries is no regular selection'
        index.append(slice(None, None, (powers or fitting)[0]))
    return array[tuple(index)]
