"""A foreign file of weights -> weight files of this project and a report about every entry.

Everything is compared before anything is written: names, shapes, and what is left over on either side. Then each
weight file is written completely or not at all, and the report last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

import avatar_jax
from avatar_jax.convert.base import ForeignFile, ForeignNetwork
from avatar_jax.convert.recognise import kind_named, recognise
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.io import atomic
from avatar_jax.io.foreign import RawFile, read
from avatar_jax.io.weights import save_weights

# Containers of checkpoints that hold no weights of a network: start of the name -> why they are left out.
_TRAINING = 'state of a training run, not a part of the network'
_LEFT_OUT = {
    **dict.fromkeys(
        ('opt_*/*', 'sch_*/*', 'sched_*/*', 'optimizer*/*', 'optim*/*', 'scheduler*/*', 'lr_schedulers/*'), _TRAINING
    ),
    **dict.fromkeys(('callbacks/*', 'loops/*', 'hyper_parameters/*', 'hparams*/*', 'rng_states/*'), _TRAINING),
}
_HASHED_NAME = re.compile(r'-([0-9a-f]{8,64})\.\w+$')


@dataclass
class Imported:
    """The result of a conversion.

    Attributes:
        kind: what the file was.
        files: the weight files written, and what each holds (its method).
        report: about every entry.
        report_path: where the report is.
    """

    kind: str
    files: dict[Path, str] = field(default_factory=dict)
    report: Report = field(default_factory=lambda: Report(''))
    report_path: Path | None = None


def read_source(path: str | os.PathLike, kinds: Sequence[ForeignFile]) -> RawFile:
    """Reads a file, or the folder that one of the kinds is. Raises ``UserError`` for everything else."""
    path = Path(path)
    folders = [kind.folder for kind in kinds if kind.folder]
    if not path.is_dir() or not folders:
        return read(path)
    for folder in folders:
        if (path / folder.mark).is_file():
            return folder.read(path)
    marks, titles = (' or '.join(words) for words in ([f.mark for f in folders], [f.title for f in folders]))
    raise UserError(f'{path}: is a folder without {marks}; give a file, or the folder of {titles}')


def convert(
    path: str | os.PathLike,
    to: str | os.PathLike,
    kinds: Sequence[ForeignFile],
    *,
    kind: str | None = None,
    prefix: str | None = None,
    allow: Sequence[str] = (),
    on_step: Callable[[str], None] | None = None,
) -> Imported:
    """Imports a file.

    Args:
        path: the file, or the folder of a model that is distributed as one.
        to: folder for the results; files of the same name in it are replaced.
        kinds: everything that it may be (``methods.foreign_files.all_kinds``).
        kind: a name for ``--as``; None recognises it.
        prefix: start of the names of the network's tensors; None finds it.
        allow: shell patterns of entries that may be left out although nothing is known about them.
        on_step: told in words what is done.

    Raises:
        UserError: the file is damaged, foreign, ambiguous, or does not fit completely; nothing has been written then.
    """
    say = on_step or (lambda text: None)
    if kind is not None:
        kind_named(kind, kinds)  # a typo is told before a large file is read
    to = Path(to)
    if to.exists() and not to.is_dir():
        raise UserError(f'{to}: is a file; give a folder for --to')
    say(f'reading {path}')
    raw = read_source(path, kinds)
    what, source = recognise(raw, kinds, kind, prefix)
    report = Report(what.name, notes=list(raw.notes))
    say(f'recognised: {what.title}')
    plans = what.plan(source, report)
    _rest(source, report, _LEFT_OUT | {pattern: why for k in kinds for pattern, why in k.left_out.items()})
    _check_name(raw, report)
    report.allow(allow)
    report.check(str(path))
    files = {}
    # A plan and its arrays go as soon as its file is written: large files stay within a small multiple of their size.
    while plans:
        plan = plans.pop(0)
        target = to / plan.file
        provenance = {
            'command': 'avatar-jax convert',
            'avatar_jax': avatar_jax.__version__,
            'source': raw.path.name,
            'source_sha256': raw.sha256,
            'source_bytes': raw.size,
            'source_format': raw.kind,
            'kind': what.name,
        }
        say(f'writing {target}')
        save_weights(target, plan.variables(str(path)), method=plan.method, config=plan.config, provenance=provenance)
        files[target] = plan.method
    report_path = to / f'{what.name}.report.json'
    atomic.write_json(
        report_path,
        {
            'source': raw.path.name,
            'sha256': raw.sha256,
            'bytes': raw.size,
            'format': raw.kind,
            'files': {p.name: m for p, m in files.items()},
            **report.to_dict(),
        },
    )
    return Imported(what.name, files, report, report_path)


def _rest(source: ForeignNetwork, report: Report, left_out: Mapping[str, str]) -> None:
    """Records every entry of the file that is at none of the places of the kind."""
    known = report.mapped.keys() | report.unused.keys() | report.unexpected.keys()
    for name in source.raw.tensors:
        if name in known or any(w.startswith(f'{name} ') for w in report.wrong):
            continue
        reason = next((why for pattern, why in left_out.items() if fnmatchcase(name, pattern)), None)
        if reason:
            report.unused[name] = reason
        else:
            report.unexpected[name] = 'belongs to no part that is converted'
    tree = source.raw.tree
    if isinstance(tree, dict):
        tops = {name.split('/')[0].split('.')[0] for name in source.raw.tensors}
        for key, value in tree.items():
            if not isinstance(value, np.ndarray) and str(key).split('.')[0] not in tops:
                report.unused[str(key)] = f'not a tensor ({type(value).__name__})'


def _check_name(raw: RawFile, report: Report) -> None:
    """Compares the SHA-256 with the start of it that some publishers put into the file's name."""
    found = _HASHED_NAME.search(raw.path.name)
    if found:
        fits = raw.sha256.startswith(found.group(1))
        report.notes.append(
            f'the name promises a SHA-256 that starts with {found.group(1)}: '
            + ('it does' if fits else f'it starts with {raw.sha256[: len(found.group(1))]}, so the file was changed')
        )
