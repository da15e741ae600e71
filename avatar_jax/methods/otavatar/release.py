"""Conventions of the released program that one needs only to compare files with it."""

from __future__ import annotations

import numpy as np


def video_bytes(image: np.ndarray) -> np.ndarray:
    """Pixels [...,3] in [-1,1] as the released program's videos store them: cut off to 8 bits, not rounded.

    Values outside the range are clipped first. Files written by this project round (`io.images.to_uint8`).
    """
    return np.trunc((np.clip(np.asarray(image, np.float32), -1, 1) + 1) / 2 * 255).astype(np.uint8)
