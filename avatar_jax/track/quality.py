"""How far a tracked frame can be trusted, as numbers between 0 and 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from avatar_jax.track.track import Track

PARTS = ('seen', 'landmarks', 'fit', 'resolution', 'pose', 'inside')
# Expected error of the network's landmarks in eye distances: 0.03 to 0.043 on photographs and procedural heads, turned
# ones included; what is read with more is likely no human face.
ERROR_USUAL, ERROR_BAD = 0.043, 0.085
# Doubt of the network that there is a face at all: photographs have under 0.01, drawn animals that it does not rule
# out 0.08 to 0.5.
DOUBT_USUAL, DOUBT_BAD = 0.02, 0.15
_GRADES = ((0.6, 'good'), (0.3, 'fair'), (0.0, 'poor'))
LIMIT = (
    'The avatar can only show what its prior has learnt. The shipped prior knows procedural heads: expect pose, '
    'colours '
    'and broad shape of a real person, not the likeness.'
)


@dataclasses.dataclass(frozen=True)
class Quality:
    """How far what was measured in a picture can be trusted.

    Attributes:
        score: 0 (useless) to 1 (as good as the method gets); the product of the ``parts``.
        parts: each factor by name, in [0, 1]; see ``frame_quality``.
        sentences: the same for people.
    """

    score: float
    parts: Mapping[str, float]
    sentences: tuple[str, ...] = ()

    @property
    def grade(self) -> str:
        """'good', 'fair' or 'poor'."""
        return grade(self.score)


def _falling(value: np.ndarray, usual: float, bad: float) -> np.ndarray:
    return np.clip((bad - value) / (bad - usual), 0.0, 1.0)


def frame_quality(track: Track) -> dict[str, np.ndarray]:
    """Parts and their product ('score'), each [T].

    ``seen``: the backend is sure of a face; ``landmarks``: its own estimate of their error; ``fit``: a head model
    explains them; ``resolution``: pixels of the input per pixel of the crop; ``pose``: not turned too far; ``inside``:
    share of the crop that lies in the picture. Frames without a face have 0.
    """
    eyes = np.linalg.norm(track.landmarks[:, 36:42].mean(1) - track.landmarks[:, 42:48].mean(1), axis=-1)
    mouth = np.linalg.norm(track.landmarks[:, 36:48].mean(1) - track.landmarks[:, 48:].mean(1), axis=-1)
    size = np.maximum(np.maximum(eyes, 0.9 * mouth), 1e-3)
    enlarged = _enlarged(track)
    yaw = np.abs(np.rad2deg(track.angle[:, 1]))
    parts = {
        'seen': _falling(1 - track.present, DOUBT_USUAL, DOUBT_BAD),
        'landmarks': _falling(np.median(track.sigma, 1) / size, ERROR_USUAL, ERROR_BAD),
        'fit': _falling(np.nan_to_num(track.residual, nan=1.0), 0.05, 0.20),
        'resolution': np.maximum(0.1, _falling(np.log2(np.maximum(enlarged, 1e-3)), 0.0, 3.0)),
        'pose': np.maximum(0.1, _falling(yaw, 30.0, 75.0)),
        'inside': np.maximum(0.1, _falling(1 - _inside(track), 0.02, 0.5)),
    }
    good = track.found & track.valid
    parts = {k: np.where(good, v, 0.0).astype(np.float32) for k, v in parts.items()}
    return {**parts, 'score': np.prod(list(parts.values()), axis=0).astype(np.float32)}


def sentences(track: Track, frame: int) -> tuple[str, ...]:
    """What lies behind a frame's quality, in words."""
    pitch, yaw, roll = np.rad2deg(track.angle[frame])
    enlarged, outside = float(_enlarged(track)[frame]), 1 - float(_inside(track)[frame])
    residual = float(np.nan_to_num(track.residual[frame]))
    told = [
        f'landmarks from the {track.source}, fitted by the head model to {100 * residual:.1f} % of the eye distance',
        f'head turned {yaw:+.0f} degrees sideways, {pitch:+.0f} up or down, tilted {roll:+.0f}',
        f'picture {"enlarged" if enlarged >= 1 else "reduced"} {max(enlarged, 1 / max(enlarged, 1e-6)):.1f} times',
    ]
    if outside > 0.02:
        told.append(f'{100 * outside:.0f} % of the crop lies beyond the edge of the picture')
    return tuple(told)


def _enlarged(track: Track) -> np.ndarray:
    """[T] pixels of the crop per pixel of the picture."""
    return np.abs(np.linalg.det(track.matrices[..., :2])) ** 0.5


def _inside(track: Track) -> np.ndarray:
    """[T] share of the crop that lies in the picture (crops are not turned)."""
    scale = np.maximum(track.matrices[:, 0, 0], 1e-9)
    low = -track.matrices[:, :, 2] / scale[:, None]
    side = track.crop_size / scale
    size = np.array(track.size)
    common = np.clip(np.minimum(low + side[:, None], size) - np.maximum(low, 0), 0, None)
    return common.prod(1) / np.maximum(side**2, 1e-9)


def grade(score: float) -> str:
    """'good', 'fair' or 'poor'."""
    return next(name for limit, name in _GRADES if score >= limit)
