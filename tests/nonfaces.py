"""Pictures that are no human faces but look like some: animals, drawings, things with two lamps and a grille."""

from __future__ import annotations

import numpy as np

SIZE = 320


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    return (x - SIZE / 2) / (SIZE / 2), (y - SIZE / 2) / (SIZE / 2)


def _noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """[SIZE, SIZE] smooth noise of standard deviation 1."""
    import cv2

    small = rng.normal(size=(SIZE // cell + 2, SIZE // cell + 2)).astype(np.float32)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(np.float64)


def _blob(image: np.ndarray, x: float, y: float, rx: float, ry: float, colour: tuple, soft: float = 0.03) -> None:
    """Draws a soft ellipse."""
    gx, gy = _grid()
    distance = np.hypot((gx - x) / rx, (gy - y) / ry)
    alpha = np.clip((1 - distance) / max(soft / min(rx, ry), 1e-3) + 0.5, 0, 1)[..., None]
    image += alpha * (np.array(colour, np.float64) - image)


def animal(seed: int, muzzle: float = 0.3, eyes: float = 0.3, ears: float = 0.35) -> np.ndarray:
    """A furry head with round eyes, a long muzzle and a dark nose: [SIZE, SIZE, 3] uint8."""
    rng = np.random.default_rng([60, seed])
    fur = np.array([rng.uniform(110, 220), rng.uniform(90, 170), rng.uniform(60, 130)])
    image = np.broadcast_to(rng.uniform(60, 200, 3), (SIZE, SIZE, 3)).copy()
    for side in (-1, 1):
        _blob(image, side * 0.42, -0.55, 0.16, ears, tuple(0.7 * fur), 0.08)
    _blob(image, 0, 0.0, 0.6, 0.72, tuple(fur), 0.1)
    _blob(image, 0, 0.3, muzzle, 0.42, tuple(0.5 * fur + 110), 0.12)
    for side in (-1, 1):
        _blob(image, side * eyes, -0.18, 0.1, 0.1, (30, 22, 18), 0.03)
        _blob(image, side * eyes + 0.03, -0.21, 0.025, 0.025, (240, 240, 240), 0.02)
        _blob(image, side * eyes, -0.33, 0.14, 0.04, tuple(0.6 * fur), 0.04)
    _blob(image, 0, 0.18, 0.15, 0.1, (35, 28, 28), 0.04)
    _blob(image, 0, 0.42, 0.02, 0.14, (60, 40, 40), 0.02)
    _blob(image, 0, 0.54, 0.2, 0.03, (70, 40, 45), 0.03)
    image += 14 * (_noise(rng, 4) + 0.6 * _noise(rng, 2))[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def smiley(seed: int) -> np.ndarray:
    """A drawn face."""
    rng = np.random.default_rng([61, seed])
    image = np.full((SIZE, SIZE, 3), 255.0)
    _blob(image, 0, 0, 0.75, 0.75, (255, rng.uniform(190, 230), 60))
    for side in (-1, 1):
        _blob(image, side * 0.28, -0.2, 0.08, 0.13, (20, 20, 20))
    x, y = _grid()
    mouth = (np.abs(np.hypot(x, y + 0.1) - 0.5) < 0.04) & (y > 0.15)
    image[mouth] = 30
    return np.clip(image + 3 * _noise(rng, 3)[..., None], 0, 255).astype(np.uint8)


def thing(seed: int) -> np.ndarray:
    """The front of a vehicle: two lamps, a windscreen, a grille."""
    rng = np.random.default_rng([62, seed])
    paint = rng.uniform(60, 220, 3)
    image = np.broadcast_to(0.4 * paint + 80, (SIZE, SIZE, 3)).copy()
    _blob(image, 0, 0, 0.8, 0.75, tuple(paint), 0.05)
    _blob(image, 0, -0.42, 0.55, 0.2, (60, 70, 80), 0.03)
    for side in (-1, 1):
        _blob(image, side * 0.34, -0.05, 0.15, 0.13, (235, 235, 225), 0.03)
        _blob(image, side * 0.34, -0.05, 0.07, 0.07, (40, 40, 45), 0.02)
    _blob(image, 0, 0.36, 0.4, 0.12, (40, 40, 40), 0.03)
    for k in range(-3, 4):
        _blob(image, 0.1 * k, 0.36, 0.015, 0.1, (170, 170, 170), 0.01)
    return np.clip(image + 4 * _noise(rng, 5)[..., None], 0, 255).astype(np.uint8)


def every(count: int = 4) -> dict[str, np.ndarray]:
    """All kinds by name."""
    found = {}
    for seed in range(count):
        shape = {'muzzle': 0.22 + 0.06 * seed, 'eyes': 0.24 + 0.05 * seed, 'ears': 0.3 + 0.08 * (seed % 2)}
        found[f'animal {seed}'] = animal(seed, **shape)
        found[f'smiley {seed}'] = smiley(seed)
        found[f'thing {seed}'] = thing(seed)
    return found
