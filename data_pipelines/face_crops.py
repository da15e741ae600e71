"""Rendered heads for the landmark network: wide framing, wide poses, every lens; numpy only, shards that resume.

    python -m data_pipelines.face_crops --out DIR --count 6000 [--split val] [--start 0]

Differs from ``data_pipelines.fast_heads``: the picture shows about 1.45 times the EG3D crop, so that training can
shift, turn and zoom it; yaws reach 60 and pitches 30 degrees; the camera stands between half and twice the usual
distance with a lens to match; light is harder. What varies after rendering (background, colour, blur, occlusion, ...)
is left to ``avatar_jax.bundled.face_augment``. A sample is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.faces.pose import CAMERA_DISTANCE
from avatar_jax.ops.windows import RADIUS
from avatar_jax.options import option
from avatar_jax.procedural.looks import VERSIONS
from avatar_jax.procedural.streams import Stream
from data_pipelines.cameras import pose_labels
from data_pipelines.fast_heads import SPLITS, FastHeadsConfig, sample_parameters
from data_pipelines.shards import Shards

FIELDS = ('rgb', 'mask', 'landmarks', 'expression', 'angle', 'shape')


@dataclass(frozen=True)
class FaceCropsConfig:
    """What decides the samples; stored beside the shards and checked when a run is resumed."""

    seed: int = option(0, 'chooses people, expressions and cameras')
    split: str = option('train', 'train, val or test, whose people are different ones')
    resolution: int = option(192, 'side of the pictures in pixels')
    zoom: float = option(
        0.69, 'factor on the focal length of the aligned crop; below 1 the picture shows more than that crop'
    )
    nearest: float = option(0.5, 'smallest distance of the camera, in units of the usual one')
    farthest: float = option(2.0, 'largest distance of the camera, in units of the usual one')
    speech_share: float = option(
        0.3, 'share of the samples that are frames of speech; the others have random expressions'
    )
    yaw_degrees: float = option(60.0, 'largest yaw of the random expressions, to both sides')
    pitch_degrees: float = option(30.0, 'largest pitch, up and down')
    light: float = option(1.6, 'strength of the random light; 0: always the default light')
    version: int = 1
    looks: int = option(1, 'version of the looks: 1, or 2 with glasses, hats, strands of hair, shadows', metavar='N')

    def __post_init__(self):
        check = Check(self, OPTION)
        check.one_of('split', *SPLITS)
        check.at_least(32, 'resolution')
        check.within(0.2, 2, 'zoom')
        check.at_least(0.3, 'nearest')
        check.one_of('looks', *VERSIONS)
        check.need(self.farthest >= self.nearest, 'farthest', f'must not be less than --nearest {self.nearest}')


def sample(config: FaceCropsConfig, index: int) -> dict[str, np.ndarray]:
    """Sample ``index``: rgb [r,r,3] uint8 before white, mask [r,r] uint8, landmarks [68,2] pixels (first pixel centred
    at 0.5), expression [64], angle [3] radians, shape [80]."""
    from avatar_jax.procedural import render_head

    heads = FastHeadsConfig(
        seed=config.seed,
        split=config.split,
        speech_share=config.speech_share,
        yaw_degrees=config.yaw_degrees,
        pitch_degrees=config.pitch_degrees,
        light=config.light,
    )
    p = sample_parameters(heads, index)
    draw = Stream(config.seed, 'face_crops', config.split, index)
    middle = p['window'][RADIUS]
    angle, translation = middle[64:67].astype(np.float64), middle[67:70].astype(np.float64)
    # A nearer camera with a wider lens: the same size in the picture, another perspective.
    distance = np.exp(draw.uniform(np.log(config.nearest), np.log(config.farthest)))
    translation[2] = CAMERA_DISTANCE - distance * (CAMERA_DISTANCE - translation[2])
    label = pose_labels(angle, translation).copy()
    label[[16, 20]] *= config.zoom * distance
    head = render_head(
        p['identity'],
        p['expression'],
        label,
        p['gamma'],
        resolution=config.resolution,
        supersample=1,
        looks=config.looks,
    )
    return {
        'rgb': np.round(np.clip(head.rgb, 0, 1) * 255).astype(np.uint8),
        'mask': np.round(np.clip(head.mask, 0, 1) * 255).astype(np.uint8),
        'landmarks': head.landmarks.astype(np.float32),
        'expression': p['expression'].astype(np.float32),
        'angle': angle.astype(np.float32),
        'shape': p['identity'][:80].astype(np.float32),
    }


SHARDS = Shards('face crops', 'data_pipelines.face_crops', 'faces', FaceCropsConfig, sample, FIELDS, shard=250)
generate = SHARDS.generate
load_shards = SHARDS.load


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return SHARDS.main(__doc__, argv)


if __name__ == '__main__':
    sys.exit(main())
