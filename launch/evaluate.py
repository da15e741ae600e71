"""Measures an avatar method on people that it never saw: procedural heads with known truth, or recorded clips.

For every identity: rebuild it from one picture, show it from other sides, drive it with another's motion, and compare
with the true pictures. Results are kept per identity, so an interrupted run continues where it stopped, and an
identity that fails is reported without stopping the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import avatar_jax
from avatar_jax.errors import UserError
from avatar_jax.eval import tables
from avatar_jax.eval.cases import Case, ProtocolConfig, clip_case, procedural_case
from avatar_jax.eval.estimators import Estimators
from avatar_jax.eval.protocols import ANIMATE_BATCH, CaseResult, run_case
from avatar_jax.io import atomic
from avatar_jax.io.images import write_png
from avatar_jax.io.provenance import Provenance
from avatar_jax.progress import Progress
from avatar_jax.types import Motion

REPORT, TABLE, RUN = 'report.json', 'report.txt', 'run.json'
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class Method:
    """What is measured.

    Attributes:
      name: for the report.
      build: portrait -> avatar.
      animate: (avatar, windows [B, 27, 70], labels [B, 25]) -> Frames.
      weights: SHA-256 of its weights.
      networks: what its own losses look through, in words.
      settings: everything else that decides its results, plain values.
    """

    name: str
    build: Callable
    animate: Callable
    weights: str = ''
    networks: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TestItem:
    """One identity: its name, and how its case is made when its turn comes."""

    __test__ = False  # not a test class, whatever pytest thinks

    name: str
    make: Callable[[], Case]


def procedural_items(count: int, seed: int, config: ProtocolConfig, split: str = 'test') -> list[TestItem]:
    """``count`` procedural people that no training has seen; each is driven by the next one's motion."""
    from data_pipelines.clips import evaluation_clips

    if count < 1:
        raise UserError(f'--identities {count}: must be at least 1')
    if seed < 0:
        raise UserError(f'--seed {seed}: must not be negative')
    # Clips are made one person at a time: only numbers, no pictures.
    clips = evaluation_clips(count + 1, seed, split, config.clip_frames, num_cameras=3)
    return [
        TestItem(person.name, lambda a=person, b=driver: procedural_case(a, b, config))
        for person, driver in zip(clips[:-1], clips[1:], strict=True)
    ]


def dataset_items(folder: str | Path, split: str, count: int, config: ProtocolConfig) -> list[TestItem]:
    """The first clip of up to ``count`` people of a built data set; each drives itself from the clip's first frame."""
    from data_pipelines.sources import BuiltFrames

    source = BuiltFrames(folder, split)
    table = source.table

    def make(clip: int) -> Case:
        length, start = int(table.num_frames[clip]), table.record(clip, 0, 0)
        rows = [source[start + k] for k in range(length)]
        part = table.motion[start : start + length]
        motion = Motion(part[:, :64], part[:, 64:67], part[:, 67:70], float(table.fps), 'procedural')

        def stack(key, scale=1.0, shift=0.0):
            return np.stack([r[key] for r in rows]).astype(np.float32) * scale + shift

        pictures, masks = stack('image', 1 / 127.5, -1.0), stack('mask', 1 / 255)
        name = str(table.name[clip])
        return clip_case(name, motion, stack('label'), pictures, masks, stack('landmarks'), frames=config.frames)

    clips = [int(table.clips_of(person)[0]) for person in table.people[:count]]
    return [TestItem(str(table.name[clip]), lambda k=clip: make(k)) for clip in clips]


def evaluate(
    out: str | Path,
    method: Method,
    items: Sequence[TestItem],
    *,
    estimators: Estimators | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    title: str = 'Evaluation',
    sheets: bool = True,
    batch: int = ANIMATE_BATCH,
) -> dict[str, Any]:
    """Runs all identities that are not done yet and writes the report.

    Args:
      out: folder: ``report.json``, ``report.txt``, ``identities/<name>.json`` and ``.png``.
      method: what is measured.
      items: the identities.
      estimators: networks for scores that need one.
      seed: of the data and of the confidence intervals.
      settings: how the items were made, plain values; a folder only continues a run of equal settings.
      title: of the report.
      sheets: whether to write a contact sheet per identity.
      batch: frames per call of ``method.animate``.

    Returns:
      The report.

    Raises:
      UserError: ``out`` holds another evaluation, or cannot be written.
    """
    out = atomic.output_folder(out)
    estimators = Estimators() if estimators is None else estimators
    run = {
        'version': avatar_jax.__version__,
        'method': method.name,
        'weights': method.weights,
        'method_settings': dict(method.settings),
        'method_networks': dict(method.networks),
        'networks': estimators.report(),
        'seed': seed,
        'settings': dict(settings or {}),
    }
    _claim(out, run)
    provenance = Provenance(synthetic=True, weights=method.weights, seed=seed, command='evaluate')
    records: dict[str, dict] = {}
    with Progress(len(items), 'evaluation', unit='identity') as bar:
        for item in items:
            path = out / 'identities' / f'{item.name}.json'
            record = _stored(path)
            if record is None:
                record, result = _one(item, method, estimators, batch)
                if result is not None and sheets:
                    write_png(path.with_suffix('.png'), contact_sheet(result), provenance)
                atomic.write_json(path, record)
            records[item.name] = record
            if record['status'] == 'failed':
                bar.note(f'{item.name}: failed: {record["error"]}')
            bar.update(1, **_shown(record))
    report = make_report(records.values(), run, title, provenance)
    atomic.write_json(out / REPORT, report)
    report = json.loads((out / REPORT).read_text())  # as its readers see it: NaN is null
    atomic.write_text(out / TABLE, tables.render(report))
    return report


def _one(item: TestItem, method: Method, estimators: Estimators, batch: int) -> tuple[dict, CaseResult | None]:
    start = time.monotonic()
    try:
        result = run_case(item.make(), method.build, method.animate, estimators, batch)
    except Exception as error:  # noqa: BLE001 - one identity must not stop the others; its report names the error
        text = str(error).strip().splitlines()[0] if str(error).strip() else ''
        record = {
            'name': item.name,
            'status': 'failed',
            'error': f'{type(error).__name__}: {text}' if not isinstance(error, UserError) else text,
            'traceback': traceback.format_exc(),
        }
        return record, None
    record = {
        'name': item.name,
        'status': 'done',
        'seconds': round(time.monotonic() - start, 2),
        'scores': result.scores,
        'unavailable': result.unavailable,
        'frames': result.frames,
    }
    return record, result


def _claim(out: Path, run: Mapping[str, Any]) -> None:
    """Marks the folder as this run's, or checks that it is."""
    path, now = out / RUN, json.loads(atomic.json_text(run))
    if not path.exists():
        atomic.write_json(path, run)
        return
    try:
        stored = json.loads(path.read_text())
        different = [k for k in sorted({*stored, *now}) if stored.get(k) != now.get(k)]
    except (ValueError, AttributeError):
        raise UserError(f'{path}: damaged; delete it or choose another --out') from None
    if different:
        raise UserError(
            f'{out}: holds another evaluation (different: {", ".join(different)}); choose another --out or delete it'
        )


def _stored(path: Path) -> dict | None:
    """A finished identity's record; None if there is none, it is damaged, or it failed (and is tried again)."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get('status') == 'done' and 'scores' in record else None


def _shown(record: Mapping[str, Any]) -> dict[str, float]:
    scores = record.get('scores', {})
    names = {'source.psnr_head': 'source', 'views.psnr_head': 'views', 'driven.psnr_head': 'driven'}
    return {short: scores[name] for name, short in names.items() if scores.get(name) is not None}


def make_report(
    records: Sequence[Mapping[str, Any]], run: Mapping[str, Any], title: str, provenance: Provenance
) -> dict[str, Any]:
    """The report of finished and failed identities, as plain values."""
    records = list(records)
    done = [r for r in records if r['status'] == 'done']
    summary = tables.summarise([r['scores'] for r in done], run['seed'])
    about = {
        'method': run['method'],
        'weights': run['weights'][:16] or 'none',
        **{k: v for k, v in run['method_settings'].items() if isinstance(v, str | int | float)},
        'data': ', '.join(f'{k} {v}' for k, v in run['settings'].items() if not isinstance(v, Mapping)),
        'identities': f'{len(done)} measured, {len(records) - len(done)} failed',
        'seed': run['seed'],
        'version': run['version'],
    }
    return {
        'title': title,
        'about': about,
        'mean': {name: value._asdict() for name, value in summary.items()},
        'identities': done,
        'failed': [{k: r[k] for k in ('name', 'error')} for r in records if r['status'] == 'failed'],
        'networks': {**{f'{k} loss': v for k, v in run['method_networks'].items()}, **run['networks']},
        'unavailable': done[0]['unavailable'] if done else {},
        'run': dict(run),
        'provenance': provenance.as_dict(),
    }


def contact_sheet(result: CaseResult) -> np.ndarray:
    """One picture [H, W, 3] in [-1, 1]: source and unseen views, then driven frames; truth above avatar, baseline last."""
    p = result.pictures
    views = [np.concatenate([p[name], p[name.replace('source', 'views')]]) if 'views' in p else p[name]
             for name in ('source_truth', 'source')]  # fmt: skip
    count = len(p['driven'])
    chosen = np.linspace(0, count - 1, min(SHEET_COLUMNS, count)).round().astype(int)
    rows = views + [p[name][chosen] for name in ('driven_truth', 'driven', 'frozen')]
    width = max(len(r) for r in rows)
    size = rows[0].shape[1]
    sheet = np.ones((len(rows) * size, width * size, 3), np.float32)
    for i, row in enumerate(rows):
        for k, picture in enumerate(row):
            sheet[i * size : (i + 1) * size, k * size : (k + 1) * size] = picture
    return np.clip(sheet, -1, 1)
