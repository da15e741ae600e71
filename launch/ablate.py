"""Trains and compares the variants of a paper's table, and says whether their order is the paper's.

    avatar-jax ablate --table gpavatar3 --size tiny --out DIR          # GPAvatar's Table 3

Every variant is trained once per seed on procedural heads (folders DIR/<variant>-<seed>, which resume) and evaluated on
people of the test split with one to four portraits. ``--size full`` has the sizes of configs/gpavatar_heads.py,
``tiny`` those of its variant ``small``: pictures of 32 pixels. The pictures that all trainings share are drawn into
    DIR/pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

# GPAvatar's Table 3: row -> (variant to train, portraits, PSNR and AED of the paper).
GPAVATAR3 = {
    'without field': ('no_field', 1, 22.01, 0.576),
    'local sampling': ('local', 1, 21.58, 0.518),
    'fewer points': ('few_points', 1, 21.95, 0.497),
    'four neighbours': ('four_neighbours', 1, 22.04, 0.514),
    'one portrait': ('full', 1, 22.08, 0.434),
    'mean of two': ('mean', 2, 22.75, 0.452),
    'mean of three': ('mean', 3, 23.03, 0.455),
    'mean of four': ('mean', 4, 23.16, 0.449),
    'two portraits': ('full', 2, 22.86, 0.411),
    'three portraits': ('full', 3, 23.27, 0.403),
    'four portraits': ('full', 4, 23.49, 0.400),
}
# What the paper concludes: the better row of each pair.
CLAIMS = (
    ('one portrait', 'without field'),
    ('one portrait', 'local sampling'),
    ('one portrait', 'fewer points'),
    ('one portrait', 'four neighbours'),
    ('two portraits', 'one portrait'),
    ('four portraits', 'two portraits'),
    ('two portraits', 'mean of two'),
    ('three portraits', 'mean of three'),
    ('four portraits', 'mean of four'),
)
TABLES = ('gpavatar3',)
SIZES = ('tiny', 'full')
MOST = 4  # portraits
NETWORK_SIDE = 128  # pixels that the stand-in for expression coefficients was trained on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument('--table', choices=TABLES, default='gpavatar3', help='which table')
    parser.add_argument('--size', choices=SIZES, default='tiny', help='of networks, pictures and data')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for trainings and report; a run continues')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='trainings of each variant (default: 3)')
    parser.add_argument('--steps', type=int, metavar='N', help='of each training (default: as configured)')
    parser.add_argument('--people', type=int, default=32, metavar='N', help='test people (default: 32)')
    parser.add_argument('--variants', nargs='+', metavar='NAME', help='only these of the trained variants')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.io import atomic
    from avatar_jax.progress import Progress

    if args.seeds < 1 or args.people < 1 or (args.steps is not None and args.steps < 1):
        raise UserError('--seeds, --people and --steps must be at least 1')
    variants = list(dict.fromkeys(v for v, *_ in GPAVATAR3.values()))
    if args.variants is not None:
        if unknown := [v for v in args.variants if v not in variants]:
            raise UserError(f'--variants: {", ".join(unknown)} unknown; use {", ".join(variants)}')
        variants = args.variants
    out = atomic.output_folder(args.out)
    scores: dict[str, list[dict[str, float]]] = {}
    with Progress(len(variants) * args.seeds, 'trainings of the table') as bar:
        for variant in variants:
            for seed in range(args.seeds):
                found = measured(out, variant, seed, args)
                for row, (wanted, portraits, *_) in GPAVATAR3.items():
                    if wanted == variant:
                        scores.setdefault(row, []).append(found[str(portraits)])
                bar.update(1)
    report = make_report(scores, vars(args))
    atomic.write_json(out / 'report.json', report)
    atomic.write_text(out / 'report.txt', render(report))
    print(render(report))
    return 0


def measured(out: Path, variant: str, seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Scores by number of portraits of one trained variant; trains it if that has not been done."""
    import json

    from avatar_jax.configure import from_plain
    from avatar_jax.io import atomic
    from avatar_jax.methods.gpavatar.train import RunConfig
    from avatar_jax.methods.registry import load_model
    from launch.config_args import load_config
    from launch.train_gpavatar import train

    folder = out / f'{variant}-{seed}'
    result, settings = folder / 'scores.json', {'steps': args.steps, 'people': args.people, 'size': args.size}
    if result.is_file():
        known = json.loads(result.read_text())
        if known['settings'] == settings:
            return known['scores']
    names = ','.join(n for n in ('small' if args.size == 'tiny' else '', '' if variant == 'full' else variant) if n)
    overrides = [f'--config.seed={seed}', '--config.output.sample_people=0', f'--config.data.folder={out / "pictures"}']
    if args.steps is not None:
        overrides.append(f'--config.model.method.train.iterations={args.steps}')
    spec = f'gpavatar_heads:{names}' if names else 'gpavatar_heads'
    train(from_plain(RunConfig, load_config(spec, overrides).to_dict()), folder, resume=True, quiet=True)
    scores = evaluate(load_model(folder / 'weights.safetensors'), args.people)
    atomic.write_json(result, {'settings': settings, 'scores': scores})
    return scores


def evaluate(model: Any, people: int, most: int = MOST) -> dict[str, dict[str, float]]:
    """PSNR and expression distance of same-person reenactment with 1..most portraits, on people of the test split.

    Args:
        model: ``methods.registry.Model`` of procedural heads.
        people: how many; each shows one driver frame and ``most`` portraits from one clip.
    """
    import jax.numpy as jnp

    from avatar_jax.eval.estimators import from_bank
    from avatar_jax.eval.faces import expression_distance
    from avatar_jax.eval.image import psnr, to_unit
    from avatar_jax.ops.resize import resize
    from avatar_jax.types import Camera, Portrait
    from data_pipelines.clips import ClipOptions
    from data_pipelines.sets import SetConfig, Sets
    from data_pipelines.sources import RenderedFrames
    from launch.perception import default_bank

    size = model.config.img_resolution
    source = RenderedFrames.of_people(people, 0, 'test', 1, size, ClipOptions(num_frames=4 * (1 + most)))
    sets = Sets(source, SetConfig(1, 1 + most, 0))
    estimate = from_bank(default_bank(NETWORK_SIDE)).coefficients
    found: dict[str, dict[str, list[float]]] = {str(n): {'psnr': [], 'aed': []} for n in range(1, most + 1)}
    for k in range(people):
        item = sets(k)
        portraits = [
            Portrait(image=item['images'][i], camera=Camera.from_label(item['labels'][i]), source=f'frame {i}')
            for i in range(1, 1 + most)
        ]
        truth = item['images'][:1]
        for n in range(1, most + 1):
            avatar = model.build(portraits[:n]).replace(source='')
            picture = np.asarray(model.animate(avatar, item['windows'][:1], item['labels'][:1]).rgb)
            scores = found[str(n)]
            scores['psnr'].append(float(psnr(to_unit(picture), to_unit(truth))[0]))
            if estimate is not None:
                codes = [
                    np.asarray(estimate.call(resize(jnp.asarray(x), NETWORK_SIDE), None)) for x in (picture, truth)
                ]
                scores['aed'].append(float(np.mean(expression_distance(*codes))))
    return {n: {k: float(np.mean(v)) if v else float('nan') for k, v in s.items()} for n, s in found.items()}


def make_report(scores: Mapping[str, Sequence[Mapping[str, float]]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rows with mean and spread over the seeds, and what became of the paper's claims."""
    rows = {}
    for row, values in scores.items():
        _, portraits, paper_psnr, paper_aed = GPAVATAR3[row]
        rows[row] = {'portraits': portraits, 'paper_psnr': paper_psnr, 'paper_aed': paper_aed, 'seeds': len(values)}
        for name in ('psnr', 'aed'):
            numbers = [v[name] for v in values]
            rows[row] |= {name: float(np.mean(numbers)), f'{name}_std': float(np.std(numbers))}
    claims = []
    for better, worse in CLAIMS:
        if better in rows and worse in rows:
            a, b = rows[better], rows[worse]
            claims.append(
                {
                    'better': better,
                    'worse': worse,
                    'psnr': a['psnr'] > b['psnr'],
                    'aed': a['aed'] < b['aed'],
                    'psnr_clear': a['psnr'] - b['psnr'] > max(a['psnr_std'], b['psnr_std']),
                }
            )
    kept = {k: v for k, v in settings.items() if isinstance(v, str | int | list | type(None))}
    return {
        'table': 'GPAvatar, Table 3',
        'settings': kept,
        'rows': rows,
        'claims': claims,
        'note': 'expression distance (AED) by a stand-in network that knows procedural heads',
    }


def render(report: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = [f'{report["table"]}; mean +- standard deviation over the seeds; {report["note"]}', '']
    lines.append(f'{"":18}{"PSNR":>16}{"paper":>8}{"AED":>18}{"paper":>8}')
    for name, r in report['rows'].items():
        psnr, aed = (f'{r[k]:.{n}f} +- {r[f"{k}_std"]:.{n}f}' for k, n in (('psnr', 3), ('aed', 4)))
        lines.append(f'{name:18}{psnr:>16}{r["paper_psnr"]:8.2f}{aed:>18}{r["paper_aed"]:8.3f}')
    lines.append('')
    for c in report['claims']:
        verdict = ', '.join(f'{k.upper()} {"as in the paper" if c[k] else "the other way"}' for k in ('psnr', 'aed'))
        clear = '' if c['psnr_clear'] else ' (PSNR within the spread of the seeds)'
        lines.append(f'{c["better"]} better than {c["worse"]}: {verdict}{clear}')
    return '\n'.join(lines)
