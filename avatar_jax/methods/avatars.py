"""From pictures on disk to avatars on disk: builds them in groups and writes each one's folder with a report."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from avatar_jax.configure import to_plain
from avatar_jax.errors import UserError
from avatar_jax.io.atomic import atomic_folder, write_json
from avatar_jax.io.images import grid, write_png
from avatar_jax.io.provenance import Provenance
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Built, Source
from avatar_jax.methods.model import Model, save_avatar
from avatar_jax.methods.render import side_labels
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.progress import Progress

SHOWN = 4  # portraits in the picture


@dataclass(frozen=True)
class Person:
    """Whom an avatar is made of: the source, what reading it gave (``report()``, ``path``, ``sha256`` each), and where
    the first picture's expression is from."""

    source: Source
    read: Sequence[Any]
    expression: str = ''

    @property
    def alignment(self) -> str:
        """How well the first picture could be aligned, in a word."""
        quality = self.read[0].quality
        return 'as given' if quality is None else quality.grade


def build_avatars(
    model: Model,
    people: Iterable[Person],
    out: Path,
    options: Mapping[str, Any],
    *,
    bank: PerceptionBank = None,
    key: jax.Array | None = None,
    group: int = 4,
    seed: int = 0,
    refused: Callable[[Person, UserError], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Makes avatars, ``group`` of them side by side where the method can, and writes ``out/<name>`` for each.

    ``people`` may be an iterator that reads each picture when it is asked for: no more than a group is asked for at a
    time, and nothing of a group is kept when the next one is read.

    Args:
        refused: called with everybody whom the method refuses to make an avatar of; the others of the group are then
            built one by one. None: the error is raised.

    Yields:
        the report of each avatar, as soon as its folder is there; its ``notes`` are for the person who asked.
    """
    people = iter(people)
    if model.method.build_many is None:  # one after the other on each device: none waits for the others to be written
        group = min(group, jax.local_device_count())
    for start in itertools.count(0, group):
        own = None if key is None else jax.random.fold_in(key, start)
        # Only the inner generator, which is gone after it, has names for the pictures and avatars of a group.
        how = (model, out, options, bank, own, seed, refused)
        if not (yield from _build_group(list(itertools.islice(people, group)), *how)):
            return


def _build_group(
    part: list[Person],
    model: Model,
    out: Path,
    options: Mapping[str, Any],
    bank: PerceptionBank,
    key: jax.Array | None,
    seed: int,
    refused: Callable[[Person, UserError], None] | None,
) -> Generator[dict[str, Any], None, int]:
    """The reports of one group; returns how many people were in it."""
    if not part:
        return 0
    try:
        built = _built(part, model, options, bank, key)
    except UserError as error:
        if refused is None:
            raise
        if len(part) == 1:
            refused(part[0], error)
        else:
            for person in part:
                yield from _build_group([person], model, out, options, bank, key, seed, refused)
        return len(part)
    for person, found in zip(part, built, strict=True):
        report = write_avatar(model, person, found, out / person.source.name, seed)
        if person.source.work:  # done: what was kept to go on with is not needed any more
            shutil.rmtree(person.source.work, ignore_errors=True)
        yield report
    return len(part)


def _built(
    part: list[Person], model: Model, options: Mapping[str, Any], bank: PerceptionBank, key: jax.Array | None
) -> list[Built]:
    """Avatars of one group, with its progress."""
    steps = model.steps(**options)
    title = part[0].source.name if len(part) == 1 else f'{len(part)} avatars'
    total = steps * (1 if model.method.build_many else len(part))
    with Progress(total, title) as bar:
        shown = 0

        def on_step(done: int, **numbers: Any) -> None:
            nonlocal shown
            bar.update(done - shown, **numbers)
            shown = done
            if done >= total:
                bar.describe(f'{title}: rendering it')

        return model.build_many([p.source for p in part], bank=bank, key=key, on_step=on_step, **options)


def write_avatar(model: Model, person: Person, built: Built, folder: Path, seed: int) -> dict[str, Any]:
    """Writes one avatar's folder, completely or not at all; returns its report."""
    portraits = person.source.portraits
    first = portraits[0]
    provenance = Provenance(
        synthetic=True,
        weights=model.sha256,
        seed=seed,
        command='invert',
        sources={p.path.name: p.sha256 for p in person.read},
    )
    views, labels = built.views, side_labels(first)
    if views is None:
        views = model.frames(built.avatar, model.of(built.avatar).still(first, len(labels)), labels).rgb
    count = 1 if person.source.kind == 'video' else min(SHOWN, len(portraits))
    shown = np.stack([np.asarray(portraits[i].image) for i in range(count)])
    measured = float(psnr(to_unit(views[:1]), to_unit(shown[:1]))[0])
    report = {
        'name': person.source.name,
        'method': model.method.name,
        'psnr': built.scores.get('psnr', measured),
        'scores': built.scores,
        'alignment': person.alignment,
        'portraits': [p.report() for p in person.read],
        **({'source_expression': person.expression} if person.expression else {}),
        **built.report,
        'notes': list(built.notes),
        'provenance': provenance.as_dict(),
    }
    with atomic_folder(folder) as temporary:
        save_avatar(temporary, built.avatar, provenance.as_dict())
        write_png(temporary / 'reconstruction.png', grid(np.concatenate([shown, views]), 4), provenance)
        write_json(temporary / 'report.json', report)
    return report


def in_a_line(folder: Path, report: Mapping[str, Any]) -> str:
    """An avatar's folder and how well it turned out, for the person who asked."""
    count = len(report['portraits'])
    which = 'the portrait' if count == 1 else f'the first of {count} portraits'
    return f'{folder}: {report["psnr"]:.1f} dB to {which}, alignment {report["alignment"]}'


def write_summary(
    path: Path,
    model: Model,
    options: Mapping[str, Any],
    bank: PerceptionBank,
    reports: Sequence[Mapping[str, Any]],
    skipped: Sequence[tuple[str, str]],
    seed: int,
) -> None:
    """The report of a whole command."""
    owner = model.method
    write_json(
        path,
        {
            'avatars': [
                {**{k: r[k] for k in ('name', 'psnr', 'alignment')}, 'portraits': len(r['portraits'])} for r in reports
            ],
            'skipped': [{'image': name, 'reason': reason} for name, reason in skipped],
            'method': owner.name,
            'options': to_plain(model.options(options)),
            'weights': {'source': model.path, 'sha256': model.sha256},
            'networks': {} if owner.networks is None else owner.networks(model.config, bank),
            'provenance': Provenance(True, model.sha256, seed, 'invert').as_dict(),
        },
    )
