"""A table of a paper from trained variants: rows with mean and spread over the seeds, and what became of the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avatar_jax.methods.base import Table


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
    for better, worse in table.claims:
        if better in rows and worse in rows:
            claim: dict[str, Any] = {'better': better, 'worse': worse}
            for score, more in table.scores.items():
                gain = (rows[better][score] - rows[worse][score]) * (1 if more else -1)
                spread = max(rows[better][f'{score}_std'], rows[worse][f'{score}_std'])
                claim |= {score: gain > 0, f'{score}_clear': abs(gain) > spread}
            claims.append(claim)
    kept = {k: v for k, v in settings.items() if isinstance(v, str | int | list | type(None))}
    return {'table': table.title, 'settings': kept, 'rows': rows, 'claims': claims, 'note': table.note}


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
        verdicts = [
            f'{score.upper()} {"as in the paper" if claim[score] else "the other way"}'
            + ('' if claim[f'{score}_clear'] else ' (within the spread of the seeds)')
            for score in table.scores
        ]
        lines.append(f'{claim["better"]} better than {claim["worse"]}: {", ".join(verdicts)}')
    return '\n'.join(lines)
