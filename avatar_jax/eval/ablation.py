"""A table of a paper: trains and scores its variants, and tells what became of the claims.

Rows have mean and spread over the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval.portraits import MOST, built_scores, portrait_scores
from avatar_jax.io import atomic
from avatar_jax.methods.base import Claim, Table, methods
from avatar_jax.methods.model import Model, load_model


def chosen(
    name: str, variants: Sequence[str] | None = None, size: str | None = None
) -> tuple[Table, tuple[str, ...], str]:
    """A table of a method, the variants of it that are trained (None: all), and the size (None: the table's first).

    Raises:
        UserError: it has no such size, or a variant is not in it.
    """
    table = next(m.tables[name] for m in methods() if name in m.tables)
    size = table.sizes[0] if size is None else size
    if size not in table.sizes:
        raise UserError(f'--size {size}: {name} has {", ".join(table.sizes)}')
    variants = tuple(variants or table.variants)
    if unknown := [v for v in variants if v not in table.variants]:
        raise UserError(f'--variants: {", ".join(unknown)} unknown; use {", ".join(table.variants)}')
    return table, variants, size


def trained_scores(
    table: Table,
    out: Path,
    variant: str,
    seed: int,
    settings: Mapping[str, Any],
    train: Callable[[str, Sequence[str], Path], None],
    portrait_sets: Callable[[int, int, int], Callable[[int], Mapping[str, np.ndarray]]],
) -> Mapping[str, Mapping[str, float]]:
    """Scores of one trained variant, by the keys of the table's rows; trains and scores it if that has not been done.

    Args:
        out: folder of the table; the variant's is ``out/VARIANT-SEED``.
        settings: 'steps' of each training (None: as configured), 'people' that are scored, 'size' of the table.
        train: (``FILE:VARIANT`` of a config, overrides, folder): trains it there, or goes on.
        portrait_sets: (people, portraits of each, pixels) -> the people of ``eval.portraits``.
    """
    folder = out / f'{variant}-{seed}'
    result = folder / 'scores.json'
    if result.is_file():
        known = json.loads(result.read_text())
        if known['settings'] == settings:
            return known['scores']
    runs = table.run(variant, settings['size'], seed, settings['steps'], out / 'pictures')
    runs, before = [runs] if isinstance(runs, tuple) else runs, []
    for number, (spec, overrides) in enumerate(runs, 1):
        place = folder if number == len(runs) else folder / f'stage{number}'
        train(spec, [*overrides, *before], place)
        before = [f'--config.init={place / "weights.safetensors"}']
    model = load_model(folder / 'weights.safetensors')
    scores = score(table, variant, model, settings['people'], portrait_sets)
    atomic.write_json(result, {'settings': settings, 'scores': scores})
    return scores


def score(
    table: Table,
    variant: str,
    model: Model,
    people: int,
    portrait_sets: Callable[[int, int, int], Callable[[int], Mapping[str, np.ndarray]]],
) -> Mapping[str, Mapping[str, float]]:
    """What a table's protocol measures of a trained model of one of its variants."""
    if callable(table.protocol):
        return table.protocol(model, people)
    sets = portrait_sets(people, MOST, model.config.img_resolution)
    if table.builds:
        keys = {row.key for row in table.rows.values() if row.variant == variant}
        return built_scores(model, sets, people, {k: v for k, v in table.builds.items() if k in keys})
    return portrait_scores(model, sets, people)


def rows_of(table: Table, variant: str, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The rows of the table that a trained variant fills."""
    return {name: scores[row.key] for name, row in table.rows.items() if row.variant == variant}


def make_report(
    table: Table, scores: Mapping[str, Sequence[Mapping[str, float]]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Rows with mean and spread over the seeds, and what became of the paper's claims.

    Args:
        scores: row -> the scores of each seed.
    """
    rows = {}
    for name, values in scores.items():
        row = table.rows[name]
        rows[name] = {'variant': row.variant, 'seeds': len(values), 'paper': dict(row.paper)}
        for score in table.scores:
            numbers = [v[score] for v in values]
            rows[name] |= {score: float(np.mean(numbers)), f'{score}_std': float(np.std(numbers))}
    claims = []
    for claim in (Claim(*pair) for pair in table.claims):
        if claim.better in rows and claim.worse in rows:
            names = claim.scores or tuple(table.scores)
            verdicts = {name: _verdict(rows, claim, name, table.scores[name]) for name in names}
            found: dict[str, Any] = {'better': claim.better, 'worse': claim.worse, 'equal': claim.equal}
            for name, (holds, clear) in verdicts.items():
                found |= {name: holds, f'{name}_clear': clear}
            claims.append(found)
    kept = {k: v for k, v in settings.items() if isinstance(v, str | int | list | type(None))}
    return {'table': table.title, 'settings': kept, 'rows': rows, 'claims': claims, 'note': table.note}


def _verdict(
    rows: Mapping[str, Mapping[str, float]], claim: Claim, score: str, higher: bool
) -> tuple[bool | None, bool]:
    """Whether a claim holds in one score (None: no difference at all), and whether the difference exceeds the spread of
    the seeds.
    """
    better, worse = rows[claim.better], rows[claim.worse]
    gain = (better[score] - worse[score]) * (1 if higher else -1)
    clear = abs(gain) > max(better[f'{score}_std'], worse[f'{score}_std'])
    if claim.equal:
        return not clear, clear
    return (gain > 0 if gain else None), clear


def render(table: Table, report: Mapping[str, Any]) -> str:
    """The report as text."""
    note = f'; {report["note"]}' if report['note'] else ''
    lines = [f'{report["table"]}; mean +- standard deviation over the seeds{note}', '']
    width = max((len(name) for name in report['rows']), default=0) + 2
    lines.append(f'{"":{width}}' + ''.join(f'{score.upper():>21}{"paper":>8}' for score in table.scores))
    for name, row in report['rows'].items():
        cells = ''
        for score in table.scores:
            paper, spread = row['paper'].get(score), row[f'{score}_std']
            measured = f'{row[score]:.4g} +- {spread:.2g}'
            cells += f'{measured:>21}{"" if paper is None else format(paper, "g"):>8}'
        lines.append(f'{name:{width}}{cells}')
    lines.append('')
    for claim in report['claims']:
        verdicts = [_words(claim, score) for score in table.scores if score in claim]
        relation = 'the same as' if claim['equal'] else 'better than'
        lines.append(f'{claim["better"]} {relation} {claim["worse"]}: {", ".join(verdicts)}')
    return '\n'.join(lines)


def _words(claim: Mapping[str, Any], score: str) -> str:
    if claim['equal']:
        return (
            f'{score.upper()} {"as in the paper" if claim[score] else "differs by more than the spread of the seeds"}'
        )
    if claim[score] is None:
        return f'{score.upper()} no difference'
    within = '' if claim[f'{score}_clear'] else ' (within the spread of the seeds)'
    return f'{score.upper()} {"as in the paper" if claim[score] else "the other way"}{within}'
