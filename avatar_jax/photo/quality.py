"""How well a photograph could be aligned, as a number and as sentences for the report."""

from __future__ import annotations

import dataclasses

import numpy as np

from avatar_jax.photo.points import FivePoints
from avatar_jax.photo.pose import HeadPose

# What a mean face leaves unexplained in photographs of many people (decimetres); beyond the second value the points
# are unlikely to be those of one face.
_RESIDUAL_USUAL, _RESIDUAL_BAD = 0.06, 0.16
_ENLARGED_USUAL, _ENLARGED_BAD = 1.0, 8.0  # by how much the photograph is enlarged in the crop
_OUTSIDE_BAD = 0.5  # share of the crop beyond the photograph's edges
_YAW_USUAL, _YAW_BAD = 25.0, 70.0  # degrees
LIMIT = (
    'The avatar can only show what its prior has learnt. The shipped prior knows procedural heads: expect pose, '
    'colours '
    'and broad shape of a real person, not the likeness.'
)


@dataclasses.dataclass(frozen=True)
class Quality:
    """Alignment quality.

    Attributes:
        score: 0 (useless) to 1 (as good as the method gets); the product of the ``parts``.
        parts: each factor by name, in [0, 1].
        sentences: the same for people.
    """

    score: float
    parts: dict[str, float]
    sentences: tuple[str, ...]

    @property
    def grade(self) -> str:
        """'good', 'fair' or 'poor'."""
        return 'good' if self.score >= 0.6 else 'fair' if self.score >= 0.3 else 'poor'


def _falling(value: float, usual: float, bad: float) -> float:
    """1 up to ``usual``, 0 from ``bad`` on, linear between."""
    return float(np.clip((bad - value) / (bad - usual), 0.0, 1.0))


def assess(points: FivePoints, pose: HeadPose, enlarged: float, outside: float) -> Quality:
    """Rates an alignment.

    Args:
        points: the landmarks that it rests on.
        pose: the head pose that was fitted to them.
        enlarged: pixels of the crop per pixel of the photograph.
        outside: share of the crop that lies beyond the photograph's edges.
    """
    pitch, yaw, roll = np.rad2deg(pose.angle)
    error = float(np.sqrt((points.sigma**2).sum(-1).mean()))
    parts = {
        'landmarks': float(np.clip(1.1 - 2.5 * error, 0.3, 1.0)) if points.source != 'file' else 1.0,
        'fit': _falling(pose.residual, _RESIDUAL_USUAL, _RESIDUAL_BAD),
        'resolution': max(0.1, _falling(np.log2(max(enlarged, 1.0)), _ENLARGED_USUAL - 1, np.log2(_ENLARGED_BAD))),
        'coverage': _falling(outside, 0.0, _OUTSIDE_BAD) if outside > 0.02 else 1.0,
        'pose': max(0.1, _falling(abs(yaw), _YAW_USUAL, _YAW_BAD)),
    }
    origin = (
        'from a file'
        if points.source == 'file'
        else f'from the detector (seen: {", ".join(points.measured) or "face only"})'
    )
    sentences = [
        f'five landmarks {origin}; they fit a mean face to {100 * pose.residual / 0.62:.0f} % of the eye distance',
        f'head turned {yaw:+.0f} degrees sideways, {pitch:+.0f} up or down, tilted {roll:+.0f}'
        + ('' if points.source == 'file' else ' (a rough estimate)'),
        f'photograph {"enlarged" if enlarged >= 1 else "reduced"} {max(enlarged, 1 / max(enlarged, 1e-6)):.1f} times',
    ]
    if outside > 0.02:
        sentences.append(f'{100 * outside:.0f} % of the crop lies beyond the edge of the photograph')
    score = float(np.prod(list(parts.values())))
    return Quality(score, parts, tuple(sentences))
