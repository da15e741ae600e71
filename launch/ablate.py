"""Trains and compares the variants of a paper's table, and says whether their order is the paper's.

Every variant is trained once per seed on procedural heads (folders DIR/<variant>-<seed>, which resume) and evaluated on
people of the test split. The pictures that all trainings share are drawn into DIR/pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar_jax.errors import UserError
from avatar_jax.methods.base import Table, methods
from launch.program import at_least

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model


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
    from avatar_jax.eval.ablation import make_report, render, rows_of
    from avatar_jax.io import atomic
    from avatar_jax.progress import Progress
    from launch.batch import share_of

    at_least(args, seeds=1, people=1, steps=1)
    owner = next(m for m in methods() if args.table in m.tables)
    table = owner.tables[args.table]
    args.size = table.sizes[0] if args.size is None else args.size
    if args.size not in table.sizes:
        raise UserError(f'--size {args.size}: {args.table} has {", ".join(table.sizes)}')
    variants = args.variants or list(table.variants)
    if unknown := [v for v in variants if v not in table.variants]:
        raise UserError(f'--variants: {", ".join(unknown)} unknown; use {", ".join(table.variants)}')
    every = [(variant, seed) for variant in variants for seed in range(args.seeds)]
    trainings = [every[i] for i in share_of(len(every), args.share)]
    out = atomic.output_folder(args.out)
    scores: dict[str, list[Any]] = {}
    with Progress(len(trainings), 'trainings of the table') as bar:
        for variant, seed in trainings:
            for row, found in rows_of(table, variant, measured(table, out, variant, seed, args)).items():
                scores.setdefault(row, []).append(found)
            bar.update(1)
    if args.share is not None:
        print(f'{len(trainings)} of {len(every)} trainings are done; the command without --share writes the report')
        return 0
    report = make_report(table, scores, {k: v for k, v in vars(args).items() if k != 'share'})
    atomic.write_json(out / 'report.json', report)
    atomic.write_text(out / 'report.txt', render(table, report))
    print(render(table, report))
    return 0


def measured(table: Table, out: Path, variant: str, seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Scores of one trained variant, by the keys of the table's rows; trains it if that has not been done."""
    from avatar_jax.io import atomic
    from avatar_jax.methods.model import load_model
    from avatar_jax.train.runner import train
    from data_pipelines import streams
    from launch.config_args import load_run

    folder = out / f'{variant}-{seed}'
    result, settings = folder / 'scores.json', {'steps': args.steps, 'people': args.people, 'size': args.size}
    if result.is_file():
        known = json.loads(result.read_text())
        if known['settings'] == settings:
            return known['scores']
    runs = table.run(variant, args.size, seed, args.steps, out / 'pictures')
    runs, before = [runs] if isinstance(runs, tuple) else runs, []
    for number, (spec, overrides) in enumerate(runs, 1):
        place = folder if number == len(runs) else folder / f'stage{number}'
        training, config = load_run(spec, [*overrides, *before])
        train(training.start, config, place, streams, resume=True, quiet=True)
        before = [f'--config.init={place / "weights.safetensors"}']
    model = load_model(folder / 'weights.safetensors')
    scores = score(table, variant, model, args.people)
    atomic.write_json(result, {'settings': settings, 'scores': scores})
    return scores


def score(table: Table, variant: str, model: Model, people: int) -> dict[str, dict[str, float]]:
    """What a table's protocol measures of a trained model."""
    if callable(table.protocol):
        return table.protocol(model, people)
    from avatar_jax.eval.portraits import MOST, built_scores, portrait_scores
    from data_pipelines.test_people import portrait_sets

    sets = portrait_sets(people, MOST, model.config.img_resolution)
    if table.builds:
        keys = {row.key for row in table.rows.values() if row.variant == variant}
        return built_scores(model, sets, people, {k: v for k, v in table.builds.items() if k in keys})
    return portrait_scores(model, sets, people)
