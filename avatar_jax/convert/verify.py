"""Proves an import: runs the imported network on recorded inputs and compares with the recorded outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jax

from avatar_jax.convert.base import ForeignFile
from avatar_jax.convert.comparison import Comparison, Recorded, Verification, read_recorded
from avatar_jax.errors import UserError


def kind_of(golden: Recorded, kinds: Sequence[ForeignFile]) -> str:
    """The kind of a record. Raises ``UserError`` if nothing can be compared with it."""
    name = str(golden.config.get('kind', golden.path.stem))
    there = {record for kind in kinds for record in kind.verify}
    known = [record for record in there if name == record or name.startswith(record + '_')]
    if not known:
        raise UserError(
            f'{golden.path}: {name!r} is of no kind that can be compared; its name must start with one of '
            f'{", ".join(sorted(there))}'
        )
    return max(known, key=len)


def verify(golden_path: str | os.PathLike, folder: str | os.PathLike, kinds: Sequence[ForeignFile]) -> Comparison:
    """Compares what was imported into ``folder`` (or one weight file) with recorded numbers.

    Of several kinds that speak of the same record, the first one of which there are weights is taken.

    Raises:
        UserError: the record is damaged or of no known kind, or the folder has nothing that it is about.
    """
    golden = read_recorded(golden_path)
    run = Verification(golden, Path(folder), kind_of(golden, kinds))
    able = [kind for kind in kinds if run.kind in kind.verify]
    chosen = next((kind for kind in able if kind.method in run.files), able[0])
    try:
        with jax.default_matmul_precision('highest'):
            chosen.verify[run.kind](run)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f'{golden_path}: as a record of {run.kind} it does not fit the imported network '
            f'({type(error).__name__}: {str(error)[:200]})'
        ) from error
    return run.done()
