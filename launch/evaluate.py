"""Measures an avatar method on people that it never saw: procedural heads with known truth, or recorded clips.

For every identity: rebuild it from one picture, show it from other sides, drive it with another's motion, and compare
with the true pictures. Results are kept per identity, so an interrupted run continues where it stopped, and an
identity that fails is reported without stopping the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.progress import Progress
from avatar_jax.types import Avatar, Frames, Motion, Portrait

if TYPE_CHECKING:
    from avatar_jax.methods.otavatar.model import ModelConfig

DEFAULT_WEIGHTS = 'heads128'
REPORT, TABLE, RUN = 'report.json', 'report.txt', 'run.json'
SHEET_COLUMNS = 8
FIELDS = {
    'image': (1 / 127.5, -1.0),
    'mask': (1 / 255, 0.0),
    'label': (1.0, 0.0),
    'landmarks': (1.0, 0.0),
}  # scale, shift


@dataclass(frozen=True)
class Method:
    """What is measured.

    Attributes:
      name: for the report.
      build: (portrait or list of them, on_step) -> avatar; it calls ``on_step(done)`` with the number of its steps done
          so far.
      animate: (avatar, windows [B, 27, 70], labels [B, 25]) -> Frames.
      weights: SHA-256 of its weights.
      networks: what its own losses look through, in words.
      settings: everything else that decides its results, plain values.
      steps: of one ``build``.
      bank: the frozen networks at hand, for estimators.
    """

    name: str
    build: Callable
    animate: Callable
    weights: str = ''
    networks: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1
    bank: PerceptionBank = field(default_factory=PerceptionBank)


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
        for person, driver in itertools.pairwise(clips)
    ]


class _Frames:
    """One field of the frames of a clip, read when they are asked for: pictures in [-1, 1], masks in [0, 1]."""

    def __init__(self, row: Callable[[int], Mapping[str, np.ndarray]], length: int, field: str):
        self.row, self.length, self.field = row, length, field

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        scale, shift = FIELDS[self.field]
        rows = np.stack([self.row(int(k))[self.field] for k in np.asarray(index)])
        return rows.astype(np.float32) * np.float32(scale) + np.float32(shift)


def clip_items(source: Any, count: int, config: ProtocolConfig) -> list[TestItem]:
    """The first clip of up to ``count`` people of a source of frames; each drives itself from the clip's first frame.

    Args:
      source: one of ``data_pipelines.sources``.
      count: people.
      config: see ``ProtocolConfig``; its resolution must be that of the pictures.

    Raises:
      UserError: pictures of another size.
    """
    table = source.table
    size = source[0]['image'].shape[0]
    if size != config.resolution:
        raise UserError(
            f'the data set has pictures of {size} pixels, the avatars have {config.resolution}; '
            f'give a data set of {config.resolution} pixels'
        )

    def make(clip: int) -> Case:
        length, start = int(table.num_frames[clip]), table.record(clip, 0, 0)
        part = table.motion[start : start + length]
        motion = Motion(part[:, :64], part[:, 64:67], part[:, 67:70], float(table.fps), table.basis)
        row = lru_cache(maxsize=64)(lambda k: source[start + k])  # the four fields share what was read
        pictures, masks, labels, landmarks = (_Frames(row, length, k) for k in FIELDS)
        return clip_case(
            str(table.name[clip]),
            motion,
            labels,
            pictures,
            masks,
            landmarks,
            frames=config.frames,
            portraits=config.portraits,
        )

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
    paths = {item.name: out / 'identities' / f'{item.name}.json' for item in items}
    records = {name: _stored(path) for name, path in paths.items()}
    todo = [item for item in items if records[item.name] is None]
    with Progress(len(todo) * (method.steps + 1), f'evaluation of {len(todo)} people') as bar:
        if len(todo) < len(items):
            bar.note(f'{len(items) - len(todo)} of {len(items)} people are done already')
        for item in todo:
            record, result = _one(item, method, estimators, batch, bar)
            if result is not None and sheets:
                write_png(paths[item.name].with_suffix('.png'), contact_sheet(result), provenance)
            atomic.write_json(paths[item.name], record)
            records[item.name] = record
            bar.note(_line(record))
    report = make_report(list(records.values()), run, title, provenance)
    atomic.write_json(out / REPORT, report)
    report = json.loads((out / REPORT).read_text())  # as its readers see it: NaN is null
    atomic.write_text(out / TABLE, tables.render(report))
    return report


def _one(
    item: TestItem, method: Method, estimators: Estimators, batch: int, bar: Progress
) -> tuple[dict, CaseResult | None]:
    start, shown = time.monotonic(), 0

    def on_step(done: int) -> None:
        nonlocal shown
        bar.update(done - shown)
        shown = done

    try:
        case = item.make()
        result = run_case(case, lambda portraits: method.build(portraits, on_step), method.animate, estimators, batch)
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


def _line(record: Mapping[str, Any]) -> str:
    """One identity in one line."""
    if record['status'] == 'failed':
        return f'{record["name"]}: failed: {record["error"]}'
    names = {'source.psnr_head': 'source', 'views.psnr_head': 'other sides', 'driven.psnr_head': 'driven'}
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


# ------------------------------------------------------------------------------------------------------- GPAvatar


def encoder_method(model: Any, files: Mapping[str, str | Path] | None = None) -> tuple[Method, Any]:
    """A method that encodes its portraits (GPAvatar), from a loaded model.

    Args:
      model: ``methods.registry.Model``.
      files: weights of frozen networks for scores, name -> file, besides the stand-ins that ship with the package.
    """
    import jax

    from avatar_jax.methods import registry
    from launch.perception import default_bank

    config, module = model.config, registry.method(model.method)
    bank = PerceptionBank.load(files or {}, default_bank(config.img_resolution))

    def build(portraits: Portrait | Sequence[Portrait], on_step: Callable[[int], None]) -> Avatar:
        found = model.build(portraits)
        on_step(1)
        return found

    @jax.jit
    def render(variables, avatar, windows, labels):
        return module.animate(variables, config, avatar, windows, labels)

    def animate(avatar: Avatar, windows: np.ndarray, labels: np.ndarray) -> Frames:
        return render(model.variables, avatar.replace(source=''), windows, labels)

    settings = {'weight file': Path(model.source).name, 'config': config.to_dict()}
    return Method('GPAvatar', build, animate, model.sha256, {}, settings, 1, bank), config


# ------------------------------------------------------------------------------------------------------ OTAvatar


def otavatar_method(
    weights: str | Path | None = None, files: Mapping[str, str | Path] | None = None, steps: int | None = None
) -> tuple[Method, ModelConfig]:
    """OTAvatar from a weight file, inverting one portrait at a time.

    Args:
      weights: the file; None is the shipped one.
      files: weights of frozen networks, name -> file, besides the stand-ins that ship with the package.
      steps: of each inversion stage; None keeps the configured number.

    Raises:
      UserError: weights that cannot be read.
    """
    import jax

    from avatar_jax.io.weights import shipped
    from avatar_jax.methods.otavatar import invert, model
    from launch.perception import default_bank

    path = shipped(DEFAULT_WEIGHTS) if weights is None else Path(weights)
    variables, config, digest, _ = model.load_model(path)
    if steps is not None:
        if steps < 1:
            raise UserError(f'--steps {steps}: must be at least 1')
        sr_steps = config.method.inversion.sr_steps
        method = config.method.replace(
            inversion__w_steps=steps,
            inversion__wplus_steps=steps if config.method.inversion.wplus_steps else 0,
            inversion__sr_steps=None if sr_steps is None else min(sr_steps, steps),
        )
        config = replace(config, method=method)
    bank = PerceptionBank.load(files or {}, default_bank(config.generator.img_resolution))
    basis = model.controller_basis(variables, config)

    def build(portrait: Portrait, on_step: Callable[[int], None]) -> Avatar:
        found = invert.invert_people(
            variables, config, [portrait], bank, weights=digest, on_step=lambda done, _loss: on_step(done)
        )
        return found[0].avatar

    @partial(jax.jit, static_argnames='chunk')
    def render(variables, avatar, windows, labels, basis, chunk):
        return model.animate(variables, config, avatar, windows, labels, basis=basis, chunk=chunk)

    def animate(avatar: Avatar, windows: np.ndarray, labels: np.ndarray) -> Frames:
        # The source is a static field: with it, every person would be compiled anew.
        return render(variables, avatar.replace(source=''), windows, labels, basis, 1)

    loss = config.method.loss
    method = Method(
        name='OTAvatar',
        build=build,
        animate=animate,
        weights=digest,
        networks=bank.report(loss.perceptual_network, loss.identity_network),
        settings={'weight file': path.name, 'config': config.to_dict()},
        steps=invert.num_steps(config),
        bank=bank,
    )
    return method, config


def named_files(arguments: Sequence[str]) -> dict[str, Path]:
    """``['vgg19=a.npz']`` -> ``{'vgg19': Path('a.npz')}``. Raises ``UserError`` for anything else."""
    files = {}
    for argument in arguments:
        name, equals, path = argument.partition('=')
        if not (name and equals and path):
            raise UserError(f'--perception {argument}: give NAME=FILE, for example vgg19=vgg19.npz')
        files[name] = Path(path)
    return files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``avatar-jax evaluate``."""
    parser.add_argument('--out', type=Path, required=True, help='folder for the results; an unfinished run continues')
    parser.add_argument('--identities', type=int, default=16, help='how many people (default: 16)')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other people (default: 0)')
    parser.add_argument('--method', metavar='NAME', help='otavatar (default) or gpavatar')
    parser.add_argument('--weights', type=Path, help='weight file (default: the shipped one)')
    parser.add_argument(
        '--dataset',
        type=Path,
        metavar='DIR',
        help='a built data set, or clips processed for OTAvatar (LMDB), instead of fresh procedural heads',
    )
    parser.add_argument(
        '--split', default='test', help='split of --dataset, or of the procedural people (default: test)'
    )
    parser.add_argument('--frames', type=int, default=24, help='driven frames per person (default: 24)')
    parser.add_argument(
        '--portraits', type=int, default=1, metavar='N', help='pictures of each person that gpavatar sees (default: 1)'
    )
    parser.add_argument('--steps', type=int, help='steps of each inversion stage (default: as the weights say)')
    parser.add_argument(
        '--perception',
        action='append',
        default=[],
        metavar='NAME=FILE',
        help='weights of a frozen network (vgg19, arcface18, lpips_alex, ...); may be repeated',
    )
    parser.add_argument('--no-sheets', action='store_true', help='write no contact sheets')


def run(args: argparse.Namespace) -> int:
    """Evaluates a method as the options say and prints the table; returns the exit status."""
    from avatar_jax.eval.estimators import from_bank
    from avatar_jax.methods.registry import choose_model
    from data_pipelines.sources import open_source

    out = atomic.output_folder(args.out)
    if args.identities < 1:
        raise UserError(f'--identities {args.identities}: must be at least 1')
    model = choose_model(args.method, args.weights)
    if args.portraits < 1:
        raise UserError(f'--portraits {args.portraits}: must be at least 1')
    if model.method == 'otavatar':
        if args.portraits > 1:
            raise UserError(
                f'--portraits {args.portraits}: otavatar rebuilds a person from one picture; use --method gpavatar'
            )
        method, config = otavatar_method(args.weights, named_files(args.perception), args.steps)
    elif args.steps is not None:
        raise UserError(f'--steps {args.steps}: {model.method} encodes portraits and has no optimisation; leave it out')
    else:
        method, config = encoder_method(model, named_files(args.perception))
    if config.basis != 'procedural' and args.dataset is None:
        raise UserError(
            f"{args.weights}: these weights read the basis '{config.basis}', fresh people are procedural; "
            'give a data set with --dataset'
        )
    size = config.img_resolution
    protocol = ProtocolConfig(
        resolution=size, frames=args.frames, clip_frames=max(120, args.frames), portraits=args.portraits
    )
    if args.dataset is None:
        items = procedural_items(args.identities, args.seed, protocol, args.split)
        data = {'people': f'procedural, split {args.split}', 'reenactment': "another person's motion"}
    else:
        source = open_source(args.dataset, args.split)
        if source.table.basis != config.basis:
            raise UserError(
                f"{args.dataset}: its expressions are in the basis '{source.table.basis}', these weights read "
                f"'{config.basis}'; give other weights or other data"
            )
        items = clip_items(source, args.identities, protocol)
        data = {'people': f'{args.dataset.resolve()}, split {args.split}', 'reenactment': 'own motion'}
    report = evaluate(
        out,
        method,
        items,
        estimators=from_bank(method.bank),
        seed=args.seed,
        settings={**data, 'protocol': asdict(protocol)},
        title=f'{method.name} on people that it never saw',
        sheets=not args.no_sheets,
    )
    print((out / TABLE).read_text())
    print(f'written: {out / TABLE}, {out / REPORT}, {out / "identities"}')
    if report['failed']:
        print(f'avatar-jax: {len(report["failed"])} of {len(items)} people failed', file=sys.stderr)
    return 2 if report['failed'] else 0
