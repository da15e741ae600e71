"""Drawn animal heads, for the landmark network to learn what is no human face: furry, two eyes, a muzzle, ears.

They look enough like faces for detectors to take them for some. Everything varies: a picture is a function of
(seed, index).
"""

from __future__ import annotations

import numpy as np

from avatar_jax.models.perception.face_net import CROP_SIDE

SIZE = 192
_DARK = (28.0, 20.0, 16.0)


def animal(seed: int, index: int) -> np.ndarray:
    """A head before a plain background, in the middle of the picture: [SIZE, SIZE, 3] uint8."""
    import cv2

    rng = np.random.default_rng([seed, index])
    draw = rng.uniform
    fur = np.array([draw(120, 235), draw(110, 215), draw(90, 200)])
    bright = np.minimum(1.1 * fur, 250)
    image = np.broadcast_to(draw(40, 200, 3), (SIZE, SIZE, 3)).astype(np.float32).copy()
    for side in (-1, 1):  # ears
        _blob(image, (side * draw(0.3, 0.5), -draw(0.5, 0.7)), (draw(0.1, 0.2), draw(0.2, 0.4)), 0.7 * fur, 0.08)
    _blob(image, (0, 0), (draw(0.48, 0.62), draw(0.62, 0.8)), fur, 0.1)
    eye_x, eye_y = draw(0.2, 0.32), -draw(0.1, 0.25)
    for side in (-1, 1):  # dark around the eyes
        _blob(image, (side * eye_x, eye_y), (draw(0.14, 0.2), draw(0.09, 0.14)), draw(0.35, 0.6) * fur, 0.1)
    _blob(image, (0, 0.05), (draw(0.08, 0.16), draw(0.3, 0.45)), bright, 0.12)
    for side in (-1, 1):
        _blob(image, (side * draw(0.28, 0.4), draw(0.1, 0.2)), (0.16, 0.14), bright, 0.12)
    _blob(image, (0, draw(0.3, 0.4)), (draw(0.2, 0.34), draw(0.22, 0.34)), draw(0.8, 1.05) * fur, 0.12)  # muzzle
    radius, white = draw(0.05, 0.09), draw() < 0.6
    for side in (-1, 1):
        eye = (side * eye_x, eye_y)
        if white:
            _blob(image, eye, (1.6 * radius, 0.9 * radius), (200, 190, 180), 0.03)
        _blob(image, eye, (radius, radius), _DARK, 0.03)
        _blob(image, (eye[0] + 0.02, eye[1] - 0.03), (0.018, 0.018), (240, 240, 240), 0.02)
        _blob(image, (eye[0], eye_y - draw(0.12, 0.16)), (0.15, 0.03), 0.45 * fur, 0.05)
    nose = draw(0.15, 0.3)
    _blob(image, (0, nose), (draw(0.08, 0.15), draw(0.05, 0.09)), (40, 32, 32), 0.05)
    _blob(image, (0, nose + 0.12), (0.015, 0.08), (70, 50, 50), 0.02)
    _blob(image, (0, nose + draw(0.2, 0.28)), (draw(0.12, 0.2), draw(0.02, 0.04)), (80, 45, 50), 0.04)
    hair = rng.normal(size=(SIZE // 3 + 2, SIZE // 3 + 2)).astype(np.float32)
    image += draw(3, 9) * cv2.resize(hair, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)[..., None]
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1.0), 0, 255).astype(np.uint8)


def crop(picture: np.ndarray, rng: np.random.Generator, side: int = CROP_SIDE) -> np.ndarray:
    """The crop that the network would read of a head in the middle of a picture, with errors: [side, side, 3] uint8."""
    import cv2

    half = picture.shape[0] / 2
    centre, width = np.array([half, 1.12 * half]), 1.35 * half * np.exp(rng.normal(0, 0.14))
    turn = np.clip(rng.normal(0, 0.2), -0.6, 0.6)
    linear = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * (side / width)
    place = side * (0.5 + rng.normal(0, 0.05, 2))
    matrix = np.concatenate([linear, (place - linear @ centre)[:, None]], 1)
    return cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _blob(image: np.ndarray, place: tuple, radii: tuple, colour: object, soft: float) -> None:
    """Draws a soft ellipse; places and radii in halves of the picture, from its middle."""
    half = image.shape[0] / 2
    reach = 1 + soft / min(radii)
    low = [max(0, int(half + half * (c - reach * r)) - 1) for c, r in zip(place, radii, strict=True)]
    high = [min(image.shape[0], int(half + half * (c + reach * r)) + 2) for c, r in zip(place, radii, strict=True)]
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    if not x.size:
        return
    distance = np.hypot(((x - half) / half - place[0]) / radii[0], ((y - half) / half - place[1]) / radii[1])
    alpha = np.clip((1 - distance) * (min(radii) / soft) + 0.5, 0, 1)[..., None]
    part = image[low[1] : high[1], low[0] : high[0]]
    part += alpha * (np.asarray(colour, np.float32) - part)
