"""Builds a data set of real people: ``python -m data_pipelines.tracked hdtf --videos DIR --data-dir DIR``.

Every clip is tracked into a file of its own first, so a run that was stopped goes on where it was. The folder that is
printed is what the pipelines read. The exit status is 2 when a clip was skipped. With --beam the clips are tracked by
the workers of Apache Beam: DirectRunner is one process per core of this machine; FlinkRunner, SparkRunner and
DataflowRunner are clusters of yours.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avatar_jax.errors import UserError
from data_pipelines.tracked.layouts import LAYOUTS

if TYPE_CHECKING:
    from avatar_jax.track.measure import Measures


def build(
    name: str,
    videos: str | Path,
    data_dir: str | Path = 'data',
    config: str = '512',
    tracker: Measures | None = None,
    beam: str | None = None,
    beam_options: Sequence[str] = (),
) -> tuple[Path, list[tuple[str, str]]]:
    """Builds (or finds) a data set.

    Args:
        name: a name in ``layouts.LAYOUTS``.
        videos: the manual directory.
        data_dir: TFDS root.
        config: '512', '256', '128' or 'tiny'.
        tracker: None takes the default one.
        beam: runner of Apache Beam whose workers track the clips; None: this process does. They must be able to import
            ``tracker``, and see ``videos`` and ``data_dir`` under the same paths. beam_options: of the runner, each
            '--name=value'.

    Returns:
        (folder of the data set, [(clip, reason)] of what was skipped).

    Raises:
        UserError: unknown data set or config, a directory that does not look like it, nothing usable, no space;
            Beam is missing, does not know the runner or an option, or its pipeline failed.
    """
    import json

    import tensorflow_datasets as tfds

    from data_pipelines.tracked.builder import BUILDERS, SKIPPED_NAME, recipe

    if name not in BUILDERS:
        raise UserError(f'data set {name!r}: unknown; there are {", ".join(BUILDERS)}')
    specs = LAYOUTS[name].find(videos)
    known = [c.name for c in BUILDERS[name].BUILDER_CONFIGS]
    if config not in known:
        raise UserError(f'--config {config}: unknown; use one of {", ".join(known)}')
    if beam is not None:
        check_beam(beam, beam_options, videos)
    tfds.disable_progress_bar()
    builder = BUILDERS[name](data_dir=Path(data_dir), config=config)
    builder.tracker = tracker
    builder.beam = None if beam is None else (beam, tuple(beam_options))
    downloads = tfds.download.DownloadConfig(manual_dir=Path(videos))
    try:
        builder.download_and_prepare(file_format='array_record', download_config=downloads)
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and 'No space left' not in str(e):
            raise
        raise UserError(
            f'{data_dir}: cannot write the data set ({e}); free some space or choose another --data-dir'
        ) from e
    if (builder.info.metadata or {}).get('recipe') != recipe(specs, builder.options()):
        raise UserError(
            f'{builder.data_path}: was built from other files, or with another tracker; delete it or choose '
            'another --data-dir'
        )
    record = json.loads((Path(builder.data_path) / SKIPPED_NAME).read_text(encoding='utf-8'))
    return Path(builder.data_path), [(r['clip'], r['reason']) for r in record]


def check_beam(runner: str, options: Sequence[str], videos: str | Path) -> None:
    """Raises ``UserError`` where Apache Beam is missing, or cannot work with the runner, an option or the path."""
    if importlib.util.find_spec('apache_beam') is None:
        raise UserError(
            f"--beam {runner}: apache_beam is not installed; install it with: pip install 'avatar-jax[beam]'"
        )
    from data_pipelines.tracked.beam_run import check

    check(runner, options, videos)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m data_pipelines.tracked', description=__doc__.splitlines()[0])
    parser.add_argument('name', nargs='?', metavar='NAME', help=f'kind of data set: {", ".join(LAYOUTS)}')
    parser.add_argument('--videos', metavar='DIR', help='folder of the original files')
    parser.add_argument('--data-dir', default='data', metavar='DIR', help='where TFDS keeps data sets (default: data)')
    parser.add_argument(
        '--config', default='512', metavar='NAME', help='512, 256 or 128 pixels, or tiny (default: 512)'
    )
    parser.add_argument(
        '--list', action='store_true', help='show what the folder of each kind must look like, and stop'
    )
    parser.add_argument('--check', action='store_true', help='only show splits, clips and people of --videos')
    text = (
        'track with the workers of an Apache Beam runner, e.g. DirectRunner or FlinkRunner (default: in this process)'
    )
    parser.add_argument('--beam', metavar='RUNNER', help=text)
    text = "the runner's own options, at the end: --beam-options --direct_num_workers=4"
    parser.add_argument('--beam-options', nargs=argparse.REMAINDER, default=[], metavar='OPTION', help=text)
    args = parser.parse_args(argv)
    if args.list:
        for layout in LAYOUTS.values():
            print(f'{layout.name}: {layout.instructions.strip()}\n  split: {layout.citation}\n')
        return 0
    try:
        return _run(args)
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from absl import logging

    if args.name not in LAYOUTS:
        raise UserError(f'{args.name or "data set"}: give one of {", ".join(LAYOUTS)} (--list says more)')
    if args.videos is None:
        raise UserError(f'--videos: where is {LAYOUTS[args.name].title}? expected {LAYOUTS[args.name].short}')
    if args.beam_options and args.beam is None:
        raise UserError('--beam-options: goes with --beam')
    if args.check:
        specs = LAYOUTS[args.name].find(args.videos)
        for split in sorted({s.split for s in specs}):
            part = [s for s in specs if s.split == split]
            print(f'{split}: {len(part)} clips of {len({s.person for s in part})} people')
        return 0
    logging.set_verbosity(logging.ERROR)
    folder, skipped = build(
        args.name, args.videos, args.data_dir, args.config, beam=args.beam, beam_options=args.beam_options
    )
    print(folder)
    if skipped:
        print(f'{len(skipped)} clips were skipped:', file=sys.stderr)
        for clip, reason in skipped:
            print(f'  {clip}: {reason}', file=sys.stderr)
    return 2 if skipped else 0


if __name__ == '__main__':
    sys.exit(main())
