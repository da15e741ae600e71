"""Many independent procedural heads, fast: numpy only, several processes, compressed shards that resume.

    python -m data_pipelines.fast_heads --out DIR --start 0 --count 20000 --resolution 128 --workers 2 --shard 256

Each sample is a function of (seed, split, index) alone, so ranges made on different machines fit together. A sample
is half the time a random expression with a random pose (yaw up to +-45, pitch +-20 degrees) and else a frame of a
speech clip. ``--frames-per-identity K`` gives K consecutive samples the same person and light (pairs for training a
controller). Files are written under another name and renamed when complete; complete shards are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.ops.windows import RADIUS, WINDOW
from avatar_jax.procedural import motion, random_expressions
from avatar_jax.procedural.streams import Stream
from data_pipelines.cameras import pose_labels
from data_pipelines.fingerprint import head_fingerprint, same_head
from data_pipelines.lights import random_gamma
from data_pipelines.workers import worker_pool

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


TEXTS = {  # of the options, by field of the configuration
    'seed': 'chooses people, expressions and cameras',
    'split': 'train, val or test, whose people are different ones',
    'resolution': 'side of the pictures in pixels',
    'supersample': 'samples per pixel along each axis',
    'frames_per_identity': 'samples of each person, in the same light',
    'speech_share': 'share of the samples that are frames of speech; the others have random expressions',
    'yaw_degrees': 'largest yaw of the random expressions, to both sides',
    'pitch_degrees': 'largest pitch, up and down',
    'light': 'strength of the random light; 0: always the default light',
}


@dataclass(frozen=True)
class FastHeadsConfig:
    """What decides the samples; stored beside the shards and checked when a run is resumed."""

    seed: int = 0
    split: str = 'train'
    resolution: int = 128
    supersample: int = 2
    frames_per_identity: int = 1
    speech_share: float = 0.5  # share of samples that are frames of speech clips
    yaw_degrees: float = 45.0
    pitch_degrees: float = 20.0
    light: float = 1.0  # strength of the random light, 0 for the default light
    version: int = DATA_VERSION

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f'--split {self.split}: unknown; use one of {", ".join(SPLITS)}')
        if self.resolution < 16 or self.frames_per_identity < 1 or not 0 <= self.speech_share <= 1:
            raise UserError(
                '--resolution must be at least 16, --frames-per-identity at least 1, --speech-share between 0 and 1'
            )


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
    )
    out['rgb'] = np.round(np.clip(head.rgb, 0, 1) * 255).astype(np.uint8)
    out['mask'] = np.round(np.clip(head.mask, 0, 1) * 255).astype(np.uint8)
    out['depth'] = np.asarray(head.depth, np.float16)
    out['landmarks'] = np.asarray(head.landmarks, np.float32)
    return out


def shard_path(folder: Path, first: int, count: int) -> Path:
    """File of the samples ``first .. first + count - 1``."""
    return folder / f'heads-{first:09d}-{count:05d}.npz'


def write_shard(config: FastHeadsConfig, folder: Path, first: int, count: int) -> Path:
    """Render and write one shard; the file appears under its name only when complete."""
    samples = [sample(config, i) for i in range(first, first + count)]
    arrays = {k: np.stack([s[k] for s in samples]) for k in FIELDS}
    path = shard_path(folder, first, count)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as f:
            np.savez_compressed(f, **arrays)
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UserError(f'{path}: cannot write ({e.strerror or e}); free some space or choose another --out') from e
    return path


def generate(
    config: FastHeadsConfig,
    folder: Path,
    start: int,
    count: int,
    shard: int = 256,
    workers: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Make the samples ``start .. start + count - 1`` that are not there yet; returns the shard files in order.

    Raises:
      UserError: the folder holds shards of another configuration, or cannot be written.
    """
    if start < 0 or count < 1 or shard < 1 or workers < 1:
        raise UserError('--start must not be negative; --count, --shard and --workers must be at least 1')
    folder = Path(folder)
    _claim(config, folder)
    wanted = [(first, min(shard, start + count - first)) for first in range(start, start + count, shard)]
    missing = [w for w in wanted if not shard_path(folder, *w).exists()]
    done, began = 0, time.perf_counter()
    total = sum(n for _, n in missing)
    if progress and len(missing) < len(wanted):
        print(f'{len(wanted) - len(missing)} of {len(wanted)} shards are there already', flush=True)
    for n in _run(config, folder, missing, min(workers, len(missing))):
        done += n
        if progress:
            rate = done / (time.perf_counter() - began)
            print(f'{done}/{total} samples, {rate:.1f}/s, {(total - done) / rate / 60:.1f} min left', flush=True)
    return [shard_path(folder, *w) for w in wanted]


def _run(config: FastHeadsConfig, folder: Path, shards: list[tuple[int, int]], workers: int) -> Iterator[int]:
    if workers <= 1:
        for first, n in shards:
            write_shard(config, folder, first, n)
            yield n
        return
    with worker_pool(workers) as pool:
        jobs = {pool.submit(write_shard, config, folder, first, n): n for first, n in shards}
        try:
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _claim(config: FastHeadsConfig, folder: Path) -> None:
    """Write or check ``config.json`` of the folder."""
    path = folder / 'config.json'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary = folder / f'.config.{os.getpid()}.tmp'
            temporary.write_text(json.dumps({**asdict(config), 'head': head_fingerprint()}))
            os.replace(temporary, path)
    except OSError as e:
        raise UserError(f'{folder}: cannot write ({e.strerror or e}); choose another --out') from e
    stored = read_config(folder)
    if not same_head(json.loads(path.read_text())['head']):
        raise UserError(f'{folder}: holds pictures of another version of the head model; choose another --out')
    if stored != config:
        different = [k for k, v in asdict(config).items() if asdict(stored)[k] != v]
        raise UserError(
            f'{folder}: holds samples of another configuration (different: {", ".join(different)}); '
            'choose another --out or the same options'
        )


def read_config(folder: Path) -> FastHeadsConfig:
    """The configuration of a folder of shards.

    Raises:
      UserError: ``config.json`` is missing or damaged.
    """
    path = Path(folder) / 'config.json'
    try:
        stored = json.loads(path.read_text())
        del stored['head']  # the fingerprint of the head model
        return FastHeadsConfig(**stored)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UserError(f'{path}: not a configuration of fast heads ({e}); make the shards again') from e


def load_shards(folder: Path, fields: tuple[str, ...] | None = None, limit: int | None = None) -> dict[str, np.ndarray]:
    """All samples of a folder in memory, in order of their index.

    Args:
      folder: where ``generate`` wrote.
      fields: which arrays (default all of ``FIELDS``); leaving out depth and window saves time and memory.
      limit: the first ``limit`` samples only.
    Returns:
      name -> array [N, ...], types as in ``FIELDS``.
    Raises:
      UserError: no shards, or a damaged one.
    """
    read_config(folder)
    fields = tuple(FIELDS) if fields is None else fields
    unknown = set(fields) - set(FIELDS)
    if unknown:
        raise UserError(f'fields {sorted(unknown)}: unknown; there are {", ".join(FIELDS)}')
    files = sorted(Path(folder).glob('heads-*.npz'))
    if not files:
        raise UserError(f'{folder}: no shards (heads-*.npz); make some with python -m data_pipelines.fast_heads')
    parts: dict[str, list[np.ndarray]] = {k: [] for k in ('index', *fields)}
    total = 0
    for path in files:
        try:
            with np.load(path) as z:
                for k, part in parts.items():
                    part.append(z[k])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise UserError(f'{path}: damaged shard ({e}); delete it and make it again') from e
        total += len(parts['index'][-1])
        if limit is not None and total >= limit:
            break
    arrays = {k: np.concatenate(v)[:limit] for k, v in parts.items()}
    return {k: arrays[k] for k in fields}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m data_pipelines.fast_heads', description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the files')
    add('--start', type=int, default=0, metavar='N', help='number of the first sample (default: 0)')
    add('--count', type=int, required=True, metavar='N', help='number of samples')
    add('--workers', type=int, default=1, metavar='N', help='processes that draw (default: 1)')
    add('--shard', type=int, default=256, metavar='N', help='samples per file (default: 256)')
    defaults = asdict(FastHeadsConfig())
    for name, text in TEXTS.items():
        value, flag = defaults[name], '--' + name.replace('_', '-')
        add(
            flag, type=type(value), default=value, metavar=name.split('_')[0].upper(), help=f'{text} (default: {value})'
        )
    options = vars(parser.parse_args(argv))
    try:
        where = {k: options.pop(k) for k in ('out', 'start', 'count', 'workers', 'shard')}
        generate(FastHeadsConfig(**options), where.pop('out'), **where)
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
