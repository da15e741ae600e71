"""Measures a method on people that it never saw, one after the other, and keeps what is done.

For every identity: rebuild it from one picture, show it from other sides, drive it with another's motion, and compare
with the true pictures. Results are kept per identity, so an interrupted run continues where it stopped, and an
identity that fails is reported without stopping the others.
"""

from __future__ import annotations

import io
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import avatar_jax
from avatar_jax.configure import to_plain
from avatar_jax.errors import UserError
from avatar_jax.eval import tables
from avatar_jax.eval.cases import Case
from avatar_jax.eval.distributions import frechet_distance
from avatar_jax.eval.estimators import Estimators
from avatar_jax.eval.measured import measured_scores
from avatar_jax.eval.protocols import ANIMATE_BATCH, CaseResult, run_case
from avatar_jax.inversion.saving import saving
from avatar_jax.io import atomic
from avatar_jax.io.images import write_png
from avatar_jax.io.provenance import Provenance
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Source
from avatar_jax.methods.model import Model
from avatar_jax.options import option_fields
from avatar_jax.progress import Progress
from avatar_jax.types import Avatar, Frames, Portrait

REPORT, TABLE, RUN, FRAMES = 'report.json', 'report.txt', 'run.json', 'frames'
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        name: for the report.
        build: (portrait or list of them, on_step) -> avatar; it calls ``on_step(done)`` with the number of its steps
            done so far.
        animate: (avatar, windows [B, 27, 70], labels [B, 25]) -> Frames.
        weights: SHA-256 of its weights.
        networks: what its own losses look through, in words.
        settings: everything else that decides its results, plain values.
        steps: of one ``build``.
        measure: (case, on_step) -> ``CaseResult``, in the place of ``build`` and ``animate``: of methods with another
            protocol (``eval.personal``).
        bank: the frozen networks at hand, for estimators.
        more: () -> further scores of the last ``build``, by dotted names; None: there are none.
    """

    name: str
    build: Callable
    animate: Callable
    weights: str = ''
    networks: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1
    bank: PerceptionBank = field(default_factory=PerceptionBank)
    measure: Callable[..., CaseResult] | None = None
    more: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class TestItem:
    """One identity: its name, and how its case is made when its turn comes."""

    __test__ = False  # not a test class, whatever pytest thinks

    name: str
    make: Callable[[], Case]


def subject(model: Model, bank: PerceptionBank, against_mean: bool = False, **options: Any) -> Subject:
    """A loaded model with its options, as something to be measured.

    Args:
        bank: networks of the losses and for the estimators. options: of the method's ``build``.
        against_mean: also start every inversion at the mean code, and measure what the encoder saves (group
            ``saving``).

    Raises:
        UserError: there is nothing to compare.
    """
    owner, config = model.method, model.config
    options = {**owner.evaluation_options, **options}
    usual = _from_the_mean(model, options) if against_mean else None
    own, saved = model.steps(**options), {}

    def build(portraits: Portrait | Sequence[Portrait], on_step: Callable[[int], None]) -> Avatar:
        source = Source([portraits] if isinstance(portraits, Portrait) else list(portraits))
        built = model.build(source, bank=bank, on_step=lambda done, **_: on_step(done), **options)
        saved.clear()
        if usual is not None:
            other = model.build(source, bank=bank, on_step=lambda done, **_: on_step(own + done), **usual)
            if built.course is None or other.course is None:
                raise UserError(f'--against-mean: {owner.title} searched no code with these options; leave it out')
            saved.update({f'saving.{k}': v for k, v in saving(other.course, built.course).items()})
        return built.avatar

    def animate(avatar: Avatar, windows: np.ndarray, labels: np.ndarray) -> Frames:
        return model.frames(avatar, windows, labels, per_call=len(labels))

    return Subject(
        name=owner.title,
        build=build,
        animate=animate,
        weights=model.sha256,
        networks={} if owner.networks is None else owner.networks(config, bank),
        settings={
            'weight file': Path(model.path).name,
            'config': config.to_dict(),
            'options': to_plain(model.options(options)),
        },
        steps=own + (0 if usual is None else model.steps(**usual)),
        bank=bank,
        more=lambda: dict(saved),
    )


FITS = ('start', 'encoder', 'tune', 'fit_steps', 'fit_stop', 'locality', 'hold')


def _from_the_mean(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the inversion that others are compared with: from the mean code, without a fit after it."""
    has = option_fields(model.method.build_options)
    if 'start' not in has or model.method.sources == ('video',):
        raise UserError(f'--against-mean: {model.method.title} does not search a code of a picture; leave it out')
    if options.get('start') != 'encoder':
        raise UserError('--against-mean: compares an encoder with the mean code; add --start encoder')
    usual = {k: v for k, v in options.items() if k not in FITS}
    return usual | {k: v for k, v in {'start': 'mean', 'tune': 'none'}.items() if k in has}


def evaluate(
    out: str | Path,
    method: Subject,
    items: Sequence[TestItem],
    *,
    estimators: Estimators | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    title: str = 'Evaluation',
    sheets: bool = True,
    save_frames: bool = False,
    measured: str | Path | None = None,
    part: str = '',
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
        sheets: whether to write a contact sheet per identity. save_frames: also write the driven frames and the true
            ones, for other programs. measured: folder with what those measured (``eval.measured``).
        part: of the reports' names, where the identities are only some of those that share the folder, e.g. '_2_of_4'.
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
    paths = {item.name: out / 'identities' / f'{item.name}.json' for item in items}
    records = {name: _stored(path) for name, path in paths.items()}
    todo = [
        item
        for item in items
        if records[item.name] is None or (save_frames and not (out / FRAMES / item.name).is_dir())
    ]
    with Progress(len(todo) * (method.steps + 1), f'evaluation of {len(todo)} people') as bar:
        if len(todo) < len(items):
            bar.note(f'{len(items) - len(todo)} of {len(items)} people are done already')
        for item in todo:
            record, result = _one(item, method, estimators, batch, bar)
            if result is not None and result.features:
                write_arrays(paths[item.name].with_suffix('.features.npz'), result.features)
            if result is not None and save_frames:
                for name, shown in (('made', 'driven'), ('true', 'driven_truth')):
                    for k, picture in enumerate(result.pictures[shown]):
                        write_png(out / FRAMES / item.name / name / f'{k:06d}.png', picture, provenance)
            if result is not None and sheets:
                write_png(paths[item.name].with_suffix('.png'), contact_sheet(result), provenance)
            atomic.write_json(paths[item.name], record)
            records[item.name] = record
            bar.note(_line(record))
    if measured is not None:
        add_measured(records, Path(measured))
    report = make_report(list(records.values()), run, title, provenance)
    if fid := frechet([paths[n] for n, r in records.items() if r['status'] == 'done']):
        report['fid'] = fid
    path, table = (out / name.replace('report', f'report{part}') for name in (REPORT, TABLE))
    atomic.write_json(path, report)
    report = json.loads(path.read_text())  # as its readers see it: NaN is null
    atomic.write_text(table, tables.render(report))
    return report


def _one(
    item: TestItem, method: Subject, estimators: Estimators, batch: int, bar: Progress
) -> tuple[dict, CaseResult | None]:
    start, shown = time.monotonic(), 0

    def on_step(done: int) -> None:
        nonlocal shown
        bar.update(done - shown)
        shown = done

    try:
        case = item.make()
        if method.measure is not None:
            result = method.measure(case, on_step)
        else:
            build = lambda portraits: method.build(portraits, on_step)
            result = run_case(case, build, method.animate, estimators, batch)
            result.scores |= {} if method.more is None else method.more()
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ''
        record = {
            'name': item.name,
            'status': 'failed',
            'error': f'{type(error).__name__}: {text}' if not isinstance(error, UserError) else text,
            'traceback': traceback.format_exc(),
        }
        return record, None
    finally:
        on_step(method.steps + 1)
    record = {
        'name': item.name,
        'status': 'done',
        'seconds': round(time.monotonic() - start, 2),
        'scores': result.scores,
        'unavailable': result.unavailable,
        'frames': result.frames,
        'driven': len(result.pictures['driven']),
    }
    return record, result


def add_measured(records: Mapping[str, dict], folder: Path) -> None:
    """Adds the scores of what other programs measured: ``folder/NAME.npz`` for each person that has one.

    Raises:
        UserError: no file of any person, or one that cannot be used.
    """
    found = {name: folder / f'{name}.npz' for name, r in records.items() if r['status'] == 'done'}
    found = {name: path for name, path in found.items() if path.is_file()}
    if not found:
        raise UserError(f'{folder}: has no file NAME.npz of any of the people {", ".join(list(records)[:3])}, ...')
    for name, path in found.items():
        records[name]['scores'] |= measured_scores(path, records[name]['driven'])


def frechet(paths: Sequence[Path]) -> dict[str, Any] | None:
    """FID of all people's driven frames to their true ones; None where no features were kept."""
    sets: dict[str, list[np.ndarray]] = {'made': [], 'real': []}
    for path in paths:
        file = path.with_suffix('.features.npz')
        if file.is_file():
            with np.load(file) as arrays:
                for name, kept in sets.items():
                    kept.append(arrays[name])
    if not sets['made']:
        return None
    made, real = (np.concatenate(sets[k]) for k in ('made', 'real'))
    return {'fid': frechet_distance(real, made, ddof=1), 'made': len(made), 'real': len(real)}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as ``.npz``, completely or not at all."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    atomic.write_bytes(path, data.getvalue())


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


def _line(record: Mapping[str, Any]) -> str:
    """One identity in one line."""
    if record['status'] == 'failed':
        return f'{record["name"]}: failed: {record["error"]}'
    names = {'source.psnr_head': 'source', 'views.psnr_head': 'other sides', 'driven.psnr_head': 'driven'}
    if 'driven.psnr_head' not in record['scores']:  # recorded pictures without masks
        names = {'source.psnr': 'source', 'driven.psnr': 'driven'}
    if not names.keys() & record['scores'].keys():  # a protocol of its own
        names = {k: k.split('.')[0] for k in record['scores'] if k.endswith('.psnr_head')}
    scores = [
        f'{text} {record["scores"][k]:.1f} dB' for k, text in names.items() if record['scores'].get(k) is not None
    ]
    return f'{record["name"]}: {", ".join(scores)} ({record["seconds"]:.0f} s)'


def make_report(
    records: Sequence[Mapping[str, Any]], run: Mapping[str, Any], title: str, provenance: Provenance
) -> dict[str, Any]:
    """The report of finished and failed identities, as plain values."""
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
    """One picture [H, W, 3] in [-1, 1]: source and unseen views, then driven frames; truth above avatar, baseline
    last.
    """
    p = result.pictures
    if 'source_truth' not in p:
        shown = [p[name] for name in p if name != 'driven']
        chosen = np.linspace(0, len(shown[0]) - 1, min(SHEET_COLUMNS, len(shown[0]))).round().astype(int)
        return np.clip(np.concatenate([np.concatenate(list(rows[chosen]), 1) for rows in shown]), -1, 1)
    views = [
        np.concatenate([p[name], p[name.replace('source', 'views')]]) if 'views' in p else p[name]
        for name in ('source_truth', 'source')
    ]
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
