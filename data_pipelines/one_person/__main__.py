"""Makes talking videos of procedural people: ``python -m data_pipelines.one_person --out DIR --people 3``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from avatar_jax.errors import UserError
from data_pipelines.one_person.procedural import TalkOptions, write_talking_video
from data_pipelines.workers import worker_pool


def make(out: Path, people: int, seed: int, workers: int, options: TalkOptions, progress: bool = True) -> list[Path]:
    """Writes ``out/person_00`` and so on; folders that are there already are kept. Returns all of them."""
    from tqdm import tqdm

    if people < 1 or workers < 1:
        raise UserError('--people and --workers must be at least 1')
    folders = []
    with worker_pool(workers) if workers > 1 else contextlib.nullcontext() as pool:
        for person in range(people):
            folder = out / f'person_{person:02d}'
            if not folder.exists():
                with tqdm(total=options.frames, desc=folder.name, disable=not progress) as bar:
                    write_talking_video(folder, seed, person, options, pool=pool, on_frame=bar.update)
            folders.append(folder)
    return folders


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    default = TalkOptions()
    parser = argparse.ArgumentParser(prog='python -m data_pipelines.one_person', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder, which gets one folder for each person'
    )
    parser.add_argument('--people', type=int, default=1, metavar='N', help='number of people (default: 1)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='chooses the people (default: 0)')
    parser.add_argument(
        '--frames', type=int, default=default.frames, metavar='N', help='frames per video (default: %(default)s)'
    )
    parser.add_argument(
        '--fps', type=float, default=default.fps, metavar='F', help='frames per second (default: %(default)s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        default=default.size,
        metavar='N',
        help='side of the pictures in pixels (default: %(default)s)',
    )
    parser.add_argument(
        '--mood',
        type=float,
        default=default.mood,
        metavar='F',
        help='strength of the moods, which are not audible (default: %(default)s)',
    )
    parser.add_argument('--workers', type=int, default=1, metavar='N', help='processes that draw (default: 1)')
    args = parser.parse_args(argv)
    try:
        options = TalkOptions(args.frames, args.fps, args.size, args.mood)
        for folder in make(args.out, args.people, args.seed, args.workers, options):
            print(folder)
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
