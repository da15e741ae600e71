"""Several rendered pictures of each of many people with everything they were made from, for the stand-in networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avatar_jax.ops.windows import RADIUS
from data_pipelines.fast_heads import FastHeadsConfig, generate, load_shards

# The middle frame of a motion window has the picture's own pose.
_ANGLE, _TRANSLATION = slice(64, 67), slice(67, 70)


def heads(
    folder: Path, split: str, people: int, pictures: int, resolution: int, seed: int, workers: int, looks: int = 1
) -> dict:
    """Renders (or finds) heads of one split: the arrays that ``avatar_jax.bundled.head_nets`` takes.

    Args:
        folder: gets a folder of shards for the split; complete ones are kept.
        split, people, pictures: so many pictures of each of so many people of a split.
        resolution, seed, workers, looks: of the rendering.
    """
    config = FastHeadsConfig(seed=seed, split=split, resolution=resolution, frames_per_identity=pictures, looks=looks)
    folder = Path(folder) / split
    generate(config, folder, 0, people * pictures, shard=min(256, people * pictures), workers=workers)
    fields = ('index', 'expression', 'window', 'rgb', 'landmarks')
    arrays = load_shards(folder, fields, limit=people * pictures)
    middle = arrays['window'][:, RADIUS]
    return {
        'rgb': arrays['rgb'],
        'person': (arrays['index'] // pictures).astype(np.int32),
        'expression': arrays['expression'],
        'angle': middle[:, _ANGLE],
        'translation': middle[:, _TRANSLATION],
        'landmarks': arrays['landmarks'],
    }
