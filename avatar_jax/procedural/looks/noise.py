"""Textures of noise that repeat, made once and looked up by their nearest texel: cheap at every sample.

The skin's texture covers 2.56 x 2.56 decimetre, the hair's one strand after the other across and the growth along.
"""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.procedural.streams import Stream

SIDE = 512
TEXEL = 0.005  # decimetre of skin
HAIR_ALONG = 128
PORES, MOTTLE, SPOTS, BRISTLES = range(4)
STRANDS, LOCKS = range(2)


def _smooth(key: str, rows: int, columns: int, sigma_rows: float, sigma_columns: float) -> np.ndarray:
    """[rows, columns] periodic Gaussian noise of these radii (texels), mean 0 and deviation 1."""
    white = Stream('looks noise', key).random((rows, columns)) - 0.5
    fy, fx = np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None]
    kernel = np.exp(-2 * np.square(np.pi) * (np.square(fy * sigma_rows) + np.square(fx * sigma_columns)))
    kernel[0, 0] = 0
    out = np.fft.irfft2(np.fft.rfft2(white) * kernel, (rows, columns))
    return out / out.std()


@functools.lru_cache(maxsize=1)
def skin_texture() -> np.ndarray:
    """[512 * 512, 4] float32: pores, mottling, spots (all of mean 0 and deviation 1) and bristles (0..1)."""
    pores = _smooth('pores', SIDE, SIDE, 0.8, 0.8) + 0.6 * _smooth('pores 2', SIDE, SIDE, 2.0, 2.0)
    mottle = sum(_smooth(f'mottle {s}', SIDE, SIDE, s, s) * s**0.5 for s in (3, 7, 16, 34))
    spots = _smooth('spots', SIDE, SIDE, 1.3, 1.3)
    bristles = _smooth('bristles', SIDE, SIDE, 1.1, 0.5)
    order = np.argsort(np.argsort(bristles.ravel())).reshape(SIDE, SIDE) / SIDE**2
    out = np.stack([pores / pores.std(), mottle / mottle.std(), spots, order], -1)
    return np.ascontiguousarray(out.reshape(-1, 4), np.float32)


def skin_noise(azimuth: np.ndarray, height: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[N, 4] of ``skin_texture`` at places on the skin; ``offset`` [2] in 0..1 moves it."""
    column = np.floor(azimuth * (0.66 / TEXEL) + float(offset[0]) * SIDE).astype(np.int32) & (SIDE - 1)
    row = np.floor(height * (1 / TEXEL) + float(offset[1]) * SIDE).astype(np.int32) & (SIDE - 1)
    return skin_texture()[row * SIDE + column]


@functools.lru_cache(maxsize=1)
def hair_texture() -> np.ndarray:
    """[512 * 128, 2] float32 in 0..1, evenly spread: single strands, and locks of many; the growth runs along."""
    out = []
    for name, parts in (
        ('strands', ((0.7, 24, 1.0), (1.8, 16, 0.7))),
        ('locks', ((5.0, 14, 1.0), (12.0, 18, 1.2))),
    ):
        total = sum(a * _smooth(f'{name} {k}', SIDE, HAIR_ALONG, w, along) for k, (w, along, a) in enumerate(parts))
        rank = np.argsort(np.argsort(total.ravel(), kind='stable'), kind='stable')
        out.append(rank / len(rank))
    return np.ascontiguousarray(np.stack(out, -1), np.float32)


def hair_noise(across: np.ndarray, along: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[N, 2] of ``hair_texture``: ``across`` in strands (one texel each), ``along`` 0..1 from root to tip."""
    column = np.floor(across + float(offset[0]) * SIDE).astype(np.int32) & (SIDE - 1)
    row = np.floor(along * HAIR_ALONG + float(offset[1]) * HAIR_ALONG).astype(np.int32) & (HAIR_ALONG - 1)
    return hair_texture()[column * HAIR_ALONG + row]
