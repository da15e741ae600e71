"""How a decoded frame is shown: its display matrix (quarter turns and mirrors), and sizes that change midway."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame


@dataclasses.dataclass(frozen=True)
class Turn:
    """One of the eight ways to show a picture: first transposed, then mirrored.

    Attributes:
        transpose: rows become columns.
        mirror_x, mirror_y: afterwards left and right, top and bottom are swapped.
    """

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """[H, W, ...] as it is shown."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) as they are shown; the same function leads back."""
        return (height, width) if self.transpose else (width, height)

    @property
    def note(self) -> str:
        """What is done, for reports; '' for nothing."""
        if self == Turn():
            return ''
        quarters = {(True, False, True): 1, (False, True, True): 2, (True, True, False): 3}
        turn = quarters.get((self.transpose, self.mirror_x, self.mirror_y))
        if turn:
            return f'turned upright by {90 * turn} degrees'
        if self.transpose:
            return 'turned upright and mirrored, as the file says'
        return f'mirrored {"left-right" if self.mirror_x else "upside down"}, as the file says'


def turn_of(frame: VideoFrame, otherwise: Turn = Turn()) -> Turn:
    """How a decoded frame is to be shown, by its display matrix; ``otherwise`` where it has none."""
    data = frame.side_data.get('DISPLAYMATRIX')
    return otherwise if data is None else turn_of_matrix(struct.unpack('<9i', bytes(data)[:36]))


def turn_of_matrix(matrix: tuple[int, ...]) -> Turn:
    """The nearest of the eight turns to a display matrix (a, b, u, c, d, ...): x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = matrix[:5]
    if not any((a, b, c, d)):
        return Turn()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Turn(False, a < 0, d < 0)
    return Turn(True, c < 0, b < 0)


def fitted(size: tuple[float, float], box: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of the aspect of ``size`` within ``box``; the box itself where it is that near."""
    scale = min(box[0] / size[0], box[1] / size[1])
    found = tuple(min(limit, max(1, round(side * scale))) for side, limit in zip(size, box, strict=True))
    return box if all(limit - side <= 1 for side, limit in zip(found, box, strict=True)) else found


def boxed(pixels: np.ndarray, box: tuple[int, int]) -> np.ndarray:
    """[h, w, 3] in the middle of a black picture of ``box`` = (width, height)."""
    height, width = pixels.shape[:2]
    if (width, height) == box:
        return pixels
    out = np.zeros((box[1], box[0], pixels.shape[2]), pixels.dtype)
    left, top = (box[0] - width) // 2, (box[1] - height) // 2
    out[top : top + height, left : left + width] = pixels
    return out
