"""Many independent procedural heads, fast: numpy only, several processes, compressed shards that resume.

    python -m data_pipelines.fast_heads --out DIR --start 0 --count 20000 --resolution 128 --workers 2 --shard 256

Each sample is a function of (seed, split, index) alone, so ranges made on different machines fit together. A sample
is half the time a random expression with a random pose (yaw up to +-45, pitch +-20 degrees) and else a frame of a
speech clip. ``--frames-per-identity K`` gives K consecutive samples the same person and light (pairs for training a
controller). Files are written under another name and renamed when complete; complete shards are skipped.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.ops.windows import RADIUS, WINDOW
from avatar_jax.options import option
from avatar_jax.procedural import motion, random_expressions
from avatar_jax.procedural.looks import VERSIONS
from avatar_jax.procedural.streams import Stream
from data_pipelines.cameras import pose_labels
from data_pipelines.lights import random_gamma
from data_pipelines.shards import Shards

DATA_VERSION = 1
SPLITS = ('train', 'val', 'test')
FIELDS = {  # name -> (shape after [N], dtype); r is the resolution
    'index': ('', 'int64'),
    'identity': ('192', 'float32'),
    'expression': ('64', 'float32'),
    'window': ('27,70', 'float32'),
    'label': ('25', 'float32'),
    'gamma': ('27', 'float32'),
    'rgb': ('r,r,3', 'uint8'),
    'mask': ('r,r', 'uint8'),
    'depth': ('r,r', 'float16'),
    'landmarks': ('68,2', 'float32'),
}


@dataclass(frozen=True)
class FastHeadsConfig:
    """What decides the samples; stored beside the shards and checked when a run is resumed."""

    seed: int = option(0, 'chooses people, expressions and cameras')
    split: str = option('train', 'train, val or test, whose people are different ones')
    resolution: int = option(128, 'side of the pictures in pixels')
    supersample: int = option(2, 'samples per pixel along each axis')
    frames_per_identity: int = option(1, 'samples of each person, in the same light')
    speech_share: float = option(
        0.5, 'share of the samples that are frames of speech; the others have random expressions'
    )
    yaw_degrees: float = option(45.0, 'largest yaw of the random expressions, to both sides')
    pitch_degrees: float = option(20.0, 'largest pitch, up and down')
    light: float = option(1.0, 'strength of the random light; 0: always the default light')
    version: int = DATA_VERSION
    looks: int = option(1, 'version of the looks: 1, or 2 with glasses, hats, strands of hair, shadows', metavar='N')

    def __post_init__(self):
        check = Check(self, OPTION)
        check.one_of('split', *SPLITS)
        check.at_least(16, 'resolution')
        check.at_least(1, 'frames_per_identity')
        check.within(0, 1, 'speech_share')
        check.one_of('looks', *VERSIONS)

    def recipe(self) -> str:
        """The configuration as text; version 1 of the looks is not named, as before there was another."""
        kept = {k: v for k, v in asdict(self).items() if k != 'looks' or v != 1}
        return f'FastHeadsConfig({", ".join(f"{k}={v!r}" for k, v in kept.items())})'


def sample_parameters(config: FastHeadsConfig, index: int) -> dict[str, np.ndarray]:
    """Everything of sample ``index`` but its picture: identity [192], expression [64], window [27,70], label [25],
    gamma [27].
    """
    from avatar_jax.procedural import sample_identity

    person = index // config.frames_per_identity
    owner = (config.seed, 'fast_heads', config.split, person)
    draw = Stream(*owner, 'person')
    identity = sample_identity(int(draw.integers(0, 2**62)), config.split)
    gamma = motion.settle(random_gamma(draw, config.light))
    clip = int(draw.integers(0, 2**62))
    rng = Stream(config.seed, 'fast_heads', config.split, index, 'frame')
    if rng.random() < config.speech_share:
        length = 2 * WINDOW
        arrays = motion.speech_arrays(clip + int(rng.integers(0, 2**20)), length)
        centre = int(rng.integers(RADIUS, length - RADIUS))
        span = slice(centre - RADIUS, centre + RADIUS + 1)
        window = np.concatenate([arrays[k][span] for k in ('expression', 'angle', 'translation')], axis=1)
    else:
        expression = random_expressions.random_expressions(rng, 1)
        angle, translation = random_expressions.random_poses(
            rng, 1, np.deg2rad(config.yaw_degrees), np.deg2rad(config.pitch_degrees)
        )
        window = motion.settle(random_expressions.windows_around(rng, expression, angle, translation)[0])
    middle = window[RADIUS]
    return {
        'index': np.int64(index),
        'identity': identity,
        'expression': middle[:64],
        'window': window,
        'label': pose_labels(middle[64:67], middle[67:70]),
        'gamma': gamma,
    }


def sample(config: FastHeadsConfig, index: int) -> dict[str, np.ndarray]:
    """Sample ``index`` with its picture: also rgb [r,r,3] uint8, mask [r,r] uint8, depth [r,r] float16, landmarks
    [68,2].
    """
    from avatar_jax.procedural import render_head

    out = sample_parameters(config, index)
    head = render_head(
        out['identity'],
        out['expression'],
        out['label'],
        out['gamma'],
        resolution=config.resolution,
        supersample=config.supersample,
        looks=config.looks,
    )
    out['rgb'] = np.round(np.clip(head.rgb, 0, 1) * 255).astype(np.uint8)
    out['mask'] = np.round(np.clip(head.mask, 0, 1) * 255).astype(np.uint8)
    out['depth'] = np.asarray(head.depth, np.float16)
    out['landmarks'] = np.asarray(head.landmarks, np.float32)
    return out


SHARDS = Shards('fast heads', 'data_pipelines.fast_heads', 'heads', FastHeadsConfig, sample, tuple(FIELDS))
generate = SHARDS.generate
read_config = SHARDS.read_config
load_shards = SHARDS.load


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return SHARDS.main(__doc__, argv)


if __name__ == '__main__':
    sys.exit(main())
