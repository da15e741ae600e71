"""Which head model made the data: a small picture of one fixed person, compared with a tolerance.

Data made before and after a change of the head model must not end up in one folder; a hash would also object to the
last bit of another machine's arithmetic.
"""

from __future__ import annotations

import functools

import numpy as np
from einops import reduce

_SIDE, _CELLS = 48, 8
_LARGEST_DIFFERENCE = 1  # grey levels of a cell's mean


@functools.lru_cache(maxsize=4)
def head_fingerprint(looks: int = 1) -> tuple[int, ...]:
    """Mean colours (0..255) of an 8 x 8 grid over pictures of two fixed people in a version of the looks, rounded."""
    from avatar_jax.procedural import render_head, sample_identity
    from avatar_jax.procedural.motion import blend
    from data_pipelines.cameras import pose_labels

    cells = []
    for seed, weights, yaw in ((1, {'viseme_aa': 0.8, 'gaze_x': 0.5}, 0.3), (2, {'smile': 0.9, 'blink': 0.6}, -0.4)):
        head = render_head(
            sample_identity(seed, 'test'),
            blend(weights).astype(np.float32),
            pose_labels([0.1, yaw, 0.0], [0.0, 0.0, 0.0]),
            resolution=_SIDE,
            supersample=2,
            looks=looks,
        )
        cells.append(reduce(head.rgb, '(h a) (w b) c -> (h w c)', 'mean', h=_CELLS, w=_CELLS))
    return tuple(int(x) for x in np.round(np.concatenate(cells) * 255))


def same_head(stored: list[int], looks: int = 1) -> bool:
    """Whether a stored fingerprint belongs to the head model of this program, in a version of the looks."""
    now = head_fingerprint(looks)
    return len(stored) == len(now) and int(np.abs(np.subtract(stored, now)).max()) <= _LARGEST_DIFFERENCE
