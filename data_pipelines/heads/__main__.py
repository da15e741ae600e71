"""Builds the procedural heads: ``python -m data_pipelines.heads --config 128 --data-dir DIR --workers 2``.

Options that change the data (``--people``, ``--frames`` ...) give the data set a name of its own, so that no folder
ever mixes two recipes. The folder that is printed is what the pipelines read.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import sys
from pathlib import Path

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from data_pipelines.fingerprint import same_head
from data_pipelines.workers import worker_pool


def customised(
    config,
    seed: int | None = None,
    people: int | None = None,
    clips: int | None = None,
    frames: int | None = None,
    cameras: int | None = None,
    audio: bool = False,
    looks: int | None = None,
):
    """A config with some numbers changed, under a name that says so; unchanged numbers keep the name."""
    changes = {
        k: v for k, v in (('seed', seed), ('train_people', people), ('clips_per_person', clips)) if v is not None
    }
    inner = {k: v for k, v in (('num_frames', frames), ('num_cameras', cameras), ('looks', looks)) if v is not None}
    changes |= {'audio': True} if audio else {}
    new = dataclasses.replace(config, **changes, clips=dataclasses.replace(config.clips, **inner))
    if new.recipe() == config.recipe():
        return config
    check = Check.values(OPTION, people=new.train_people, clips=new.clips_per_person, seed=new.seed)
    check.at_least(1, 'people', 'clips')
    check.at_least(0, 'seed')
    digest = hashlib.sha256(json.dumps(new.recipe(), sort_keys=True).encode()).hexdigest()[:8]
    return dataclasses.replace(new, name=f'{config.name}-{digest}')


def build(
    config: str = '128', data_dir: str | Path = 'data', workers: int = 1, progress: bool = True, **changes
) -> Path:
    """Build (or find) the data set and return its folder.

    Args:
        config: '64', '128', '256', '512' or 'tiny'.
        data_dir: TFDS root; the data set goes into ``procedural_heads/<config>/<version>`` below it.
        workers: rendering processes.
        progress: show bars.
        changes: ``seed, people, clips, frames, cameras, audio, looks`` as on the command line.
    Raises:
        UserError: unknown config, or the folder cannot be written.
    """
    import tensorflow_datasets as tfds

    from data_pipelines.heads.heads import ProceduralHeads

    known = {c.name: c for c in ProceduralHeads.BUILDER_CONFIGS}
    if config not in known:
        raise UserError(f'--config {config}: unknown; use one of {", ".join(known)}')
    if workers < 1:
        raise UserError(f'--workers {workers}: must be at least 1')
    tfds.disable_progress_bar()  # our own bars know the total
    try:
        builder = ProceduralHeads(data_dir=Path(data_dir), config=customised(known[config], **changes))
        builder.show_progress = progress
        with worker_pool(workers) if workers > 1 else contextlib.nullcontext() as builder.pool:
            builder.download_and_prepare(file_format='array_record')
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and 'No space left' not in str(e):  # how array_record reports a full disk
            raise
        raise UserError(
            f'{data_dir}: cannot write the data set ({e}); free some space or choose another --data-dir'
        ) from e
    metadata = builder.info.metadata or {}
    if metadata.get('recipe') != builder.builder_config.recipe() or not same_head(
        metadata.get('head', []), builder.builder_config.clips.looks
    ):
        raise UserError(
            f'{builder.data_path}: was built by another version of this program; delete it or choose another --data-dir'
        )
    return Path(builder.data_path)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m data_pipelines.heads', description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='128', metavar='NAME', help='64, 128, 256, 512 or tiny (default: 128)')
    parser.add_argument('--data-dir', default='data', metavar='DIR', help='where TFDS keeps data sets (default: data)')
    parser.add_argument('--workers', type=int, default=1, metavar='N', help='processes that draw (default: 1)')
    parser.add_argument('--seed', type=int, metavar='N', help='chooses the people (default: as --config says)')
    parser.add_argument(
        '--people', type=int, metavar='N', help='people of the training split (default: as --config says)'
    )
    parser.add_argument('--clips', type=int, metavar='N', help='clips per person (default: as --config says)')
    parser.add_argument('--frames', type=int, metavar='N', help='frames per clip (default: as --config says)')
    parser.add_argument(
        '--cameras', type=int, metavar='N', help='cameras of the clips with several (default: as --config says)'
    )
    parser.add_argument('--looks', type=int, metavar='N', help='version of the looks, 1 or 2 (default: 1)')
    parser.add_argument(
        '--audio', action='store_true', help='with the sound of the speech: features per frame, WAV files per clip'
    )
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # TFDS announces a config that is not in its list as a warning
    try:
        print(build(**vars(parser.parse_args(argv))))
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
