"""Trains and compares the variants of a paper's table, and says whether their order is the paper's.

Every variant is trained once per seed on procedural heads (folders DIR/<variant>-<seed>, which resume) and evaluated on
people of the test split. The pictures that all trainings share are drawn into DIR/pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from avatar_jax.methods.base import methods
from launch.program import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    tables = {name: table for m in methods() for name, table in m.tables.items()}
    about = '; '.join(f'{name}: {table.title}' for name, table in tables.items())
    add = parser.add_argument
    add(
        '--table',
        choices=tuple(tables),
        default=next(iter(tables)),
        help=f'table of a paper (default: %(default)s). {about}',
    )
    add('--size', metavar='NAME', help='size of networks, pictures and data set: tiny (default) or full')
    add('--out', required=True, metavar='DIR', help='folder for trainings and report; an unfinished command continues')
    add('--seeds', type=int, default=3, metavar='N', help='trainings of each variant, with seeds 0 to N-1 (default: 3)')
    add('--steps', type=int, metavar='N', help='steps of each training (default: as configured)')
    add('--people', type=int, default=32, metavar='N', help='number of test people (default: 32)')
    add('--variants', nargs='+', metavar='NAME', help='train only these variants (default: all)')
    text = (
        'only the K-th of N equal shares of the trainings, for several machines with one --out; the command without '
        'this option then writes the report of all'
    )
    add('--share', metavar='K/N', help=text)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.eval import ablation
    from avatar_jax.io import atomic
    from avatar_jax.progress import Progress
    from avatar_jax.train.runner import train
    from data_pipelines import streams
    from data_pipelines.test_people import portrait_sets
    from launch.batch import share_of
    from launch.config_args import load_run

    at_least(args, seeds=1, people=1, steps=1)
    table, variants, args.size = ablation.chosen(args.table, args.variants, args.size)
    every = [(variant, seed) for variant in variants for seed in range(args.seeds)]
    trainings = [every[i] for i in share_of(len(every), args.share)]
    out = atomic.output_folder(args.out)

    def train_one(spec: str, overrides: Sequence[str], folder: Path) -> None:
        training, config = load_run(spec, overrides)
        train(training.start, config, folder, streams, resume=True, quiet=True)

    scores: dict[str, list[Mapping[str, float]]] = {}
    with Progress(len(trainings), 'trainings of the table') as bar:
        for variant, seed in trainings:
            settings = {'steps': args.steps, 'people': args.people, 'size': args.size}
            found = ablation.trained_scores(table, out, variant, seed, settings, train_one, portrait_sets)
            for row, values in ablation.rows_of(table, variant, found).items():
                scores.setdefault(row, []).append(values)
            bar.update(1)
    if args.share is not None:
        print(f'{len(trainings)} of {len(every)} trainings are done; the command without --share writes the report')
        return 0
    report = ablation.make_report(table, scores, {k: v for k, v in vars(args).items() if k != 'share'})
    atomic.write_json(out / 'report.json', report)
    atomic.write_text(out / 'report.txt', ablation.render(table, report))
    print(ablation.render(table, report))
    return 0
