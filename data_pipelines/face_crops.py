"""Rendered heads for the landmark network: wide framing, wide poses, every lens; numpy only, shards that resume.

    python -m data_pipelines.face_crops --out DIR --count 6000 [--split val] [--start 0]

Differs from ``data_pipelines.fast_heads``: the picture shows about 1.45 times the EG3D crop, so that training can
shift, turn and zoom it; yaws reach 60 and pitches 30 degrees; the camera stands between half and twice the usual
distance with a lens to match; light is harder. What varies after rendering (background, colour, blur, occlusion, ...)
is left to ``avatar_jax.bundled.face_augment``. A sample is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.pose import CAMERA_DISTANCE
from avatar_jax.ops.windows import RADIUS
from avatar_jax.procedural.streams import Stream
from data_pipelines.cameras import pose_labels
from data_pipelines.fast_heads import SPLITS, FastHeadsConfig, sample_parameters
from data_pipelines.fast_heads import TEXTS as HEADS_TEXTS
from data_pipelines.fingerprint import head_fingerprint, same_head

FIELDS = ('rgb', 'mask', 'landmarks', 'expression', 'angle', 'shape')
_SHARED = ('seed', 'split', 'resolution', 'speech_share', 'yaw_degrees', 'pitch_degrees', 'light')
TEXTS = {name: HEADS_TEXTS[name] for name in _SHARED} | {  # of the options, by field of the configuration
    'zoom': 'factor on the focal length of the aligned crop; below 1 the picture shows more than that crop',
    'nearest': 'smallest distance of the camera, in units of the usual one',
    'farthest': 'largest distance of the camera, in units of the usual one',
}


@dataclass(frozen=True)
class FaceCropsConfig:
    """What decides the samples; stored beside the shards and checked when a run is resumed."""

    seed: int = 0
    split: str = 'train'
    resolution: int = 192
    zoom: float = 0.69  # of the focal length: below 1 the picture shows more than the EG3D crop
    nearest: float = 0.5  # camera distance in units of the usual one
    farthest: float = 2.0
    speech_share: float = 0.3
    yaw_degrees: float = 60.0
    pitch_degrees: float = 30.0
    light: float = 1.6
    version: int = 1

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f'--split {self.split}: unknown; use one of {", ".join(SPLITS)}')
        if self.resolution < 32 or not 0.2 <= self.zoom <= 2 or not 0.3 <= self.nearest <= self.farthest:
            raise UserError('--resolution must be at least 32, --zoom 0.2 to 2, --nearest 0.3 up to --farthest')


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
    head = render_head(p['identity'], p['expression'], label, p['gamma'], resolution=config.resolution, supersample=1)
    return {
        'rgb': np.round(np.clip(head.rgb, 0, 1) * 255).astype(np.uint8),
        'mask': np.round(np.clip(head.mask, 0, 1) * 255).astype(np.uint8),
        'landmarks': head.landmarks.astype(np.float32),
        'expression': p['expression'].astype(np.float32),
        'angle': angle.astype(np.float32),
        'shape': p['identity'][:80].astype(np.float32),
    }


def generate(
    config: FaceCropsConfig, folder: Path, start: int, count: int, shard: int = 250, progress: bool = True
) -> None:
    """Makes the samples ``start .. start + count - 1`` that are not there yet.

    Raises:
      UserError: the folder holds samples of another configuration, or cannot be written.
    """
    if start < 0 or count < 1 or shard < 1:
        raise UserError('--start must not be negative; --count and --shard must be at least 1')
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / 'config.json'
        if not path.exists():
            path.write_text(json.dumps({**asdict(config), 'head': head_fingerprint()}))
    except OSError as e:
        raise UserError(f'{folder}: cannot write ({e.strerror or e}); choose another --out') from e
    if read_config(folder) != config:
        raise UserError(f'{folder}: holds samples of another configuration; choose another --out or the same options')
    began, made = time.perf_counter(), 0
    for first in range(start, start + count, shard):
        n = min(shard, start + count - first)
        path = folder / f'faces-{first:09d}-{n:05d}.npz'
        if path.exists():
            continue
        samples = [sample(config, i) for i in range(first, first + n)]
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            with open(temporary, 'wb') as f:
                np.savez_compressed(f, **{k: np.stack([s[k] for s in samples]) for k in FIELDS})
            os.replace(temporary, path)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise UserError(f'{path}: cannot write ({e.strerror or e}); free some space or choose another --out') from e
        made += n
        if progress:
            rate = made / (time.perf_counter() - began)
            print(
                f'{first + n - start}/{count} samples, {rate:.1f}/s, {(start + count - first - n) / rate / 60:.1f} '
                'min left',
                flush=True,
            )


def read_config(folder: Path) -> FaceCropsConfig:
    """The configuration of a folder of shards.

    Raises:
      UserError: ``config.json`` is missing, damaged, or of another head model.
    """
    path = Path(folder) / 'config.json'
    try:
        stored = json.loads(path.read_text())
        head = stored.pop('head')
        config = FaceCropsConfig(**stored)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UserError(f'{path}: not a configuration of face crops ({e}); make the shards again') from e
    if not same_head(head):
        raise UserError(f'{folder}: holds pictures of another version of the head model; make the shards again')
    return config


def load_shards(folder: Path, limit: int | None = None) -> dict[str, np.ndarray]:
    """All samples of a folder in memory: name -> [N, ...].

    Raises:
      UserError: no shards, or a damaged one.
    """
    read_config(folder)
    files = sorted(Path(folder).glob('faces-*.npz'))
    if not files:
        raise UserError(f'{folder}: no shards (faces-*.npz); make some with python -m data_pipelines.face_crops')
    parts: dict[str, list[np.ndarray]] = {k: [] for k in FIELDS}
    for path in files:
        try:
            with np.load(path) as z:
                for k, part in parts.items():
                    part.append(z[k])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise UserError(f'{path}: damaged shard ({e}); delete it and make it again') from e
        if limit is not None and sum(map(len, parts['rgb'])) >= limit:
            break
    return {k: np.concatenate(v)[:limit] for k, v in parts.items()}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m data_pipelines.face_crops', description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the files')
    add('--start', type=int, default=0, metavar='N', help='number of the first sample (default: 0)')
    add('--count', type=int, required=True, metavar='N', help='number of samples')
    add('--shard', type=int, default=250, metavar='N', help='samples per file (default: 250)')
    defaults = asdict(FaceCropsConfig())
    for name, text in TEXTS.items():
        value, flag = defaults[name], '--' + name.replace('_', '-')
        add(
            flag, type=type(value), default=value, metavar=name.split('_')[0].upper(), help=f'{text} (default: {value})'
        )
    options = vars(parser.parse_args(argv))
    try:
        where = {k: options.pop(k) for k in ('out', 'start', 'count', 'shard')}
        generate(FaceCropsConfig(**options), where.pop('out'), **where)
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
