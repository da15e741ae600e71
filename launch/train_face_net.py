"""Trains the landmark network on rendered heads and writes a weight file and a report.

    python -m launch.train_face_net --out DIR [--data DIR] [--count N] [--steps N] [--resume]

Heads are rendered into `--data` first (once: complete shards are kept), training people and held-out people apart.
Writes ``face_net.safetensors`` and ``report.json`` with held-out errors. Interrupted runs continue with `--resume`, and
may then be given another number of steps (the learning rate falls to zero over the last two fifths of it).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--out', type=Path, required=True, help='folder for weights, report, log and checkpoints')
    parser.add_argument('--data', type=Path, help='folder for the rendered heads (default: OUT/data)')
    parser.add_argument('--count', type=int, default=7000, help='heads to train on')
    parser.add_argument('--held-out', type=int, default=250, help='heads to test on, of people never trained on')
    parser.add_argument('--steps', type=int, default=4000)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--present',
        metavar='FILE',
        help='no training: only solve anew, in these weights, what tells faces from other things',
    )
    parser.add_argument('--resume', action='store_true', help='continue the run in OUT')


def train(config, data: dict, held_out: dict, out: Path, *, resume: bool = False, quiet: bool = False) -> dict:
    """Trains, tests, writes ``face_net.safetensors`` and ``report.json`` into ``out``; returns the report."""
    import jax

    from avatar_jax.bundled import face_net
    from avatar_jax.io.atomic import write_json
    from avatar_jax.io.weights import save_weights
    from avatar_jax.models.perception.face_net import FACE_NET_METHOD
    from avatar_jax.train.loop import LoopConfig, fit

    began = time.monotonic()
    state = fit(
        face_net.init_state(config, data),
        face_net.make_step(config),
        lambda start: face_net.batches(config, data, start),
        folder=out,
        loop=LoopConfig(config.steps, log_every=20, sample_every=0, checkpoint_every=max(1, min(200, config.steps))),
        config=config,
        resume=resume,
        may_differ=('steps', 'batch'),
        label='landmark network',
        images_per_step=config.batch,
        quiet=quiet,
    )
    variables = jax.tree.map(np.asarray, face_net.variables_of(state))
    variables = face_net.solve_expression(variables, config.net, data)
    variables = face_net.solve_present(variables, config.net, data)
    figures, calibration = face_net.evaluate(variables, config.net, held_out)
    report = {
        'held_out': figures,
        'trained_on': {
            'heads': len(data['rgb']),
            'resolution': int(data['rgb'].shape[1]),
            'source': 'procedural heads, face_crops, augmented',
        },
        'steps': config.steps,
        'batch': config.batch,
        'seed': config.seed,
        'seconds_of_this_run': round(time.monotonic() - began, 1),
    }
    report['sha256'] = save_weights(
        out / 'face_net.safetensors',
        {**variables, 'calibration': calibration},
        method=FACE_NET_METHOD,
        config=config.net,
        provenance={'command': 'launch.train_face_net', **report},
        storage='float16',
    )
    write_json(out / 'report.json', report)
    return report


def solve_again(weights: str, data: dict, held_out: dict, out: Path) -> dict:
    """Solves the row ``present`` of given weights anew; writes weights and report; returns the report."""
    import jax

    from avatar_jax.bundled import face_net
    from avatar_jax.configure import from_plain
    from avatar_jax.io.atomic import write_json
    from avatar_jax.io.weights import load_weights, save_weights
    from avatar_jax.models.perception.face_net import FACE_NET_METHOD, FaceNetConfig

    old = load_weights(weights, method=FACE_NET_METHOD)
    net = from_plain(FaceNetConfig, old.config)
    before = jax.tree.map(lambda a: np.asarray(a, np.float32), {k: old.variables[k] for k in ('params', 'batch_stats')})
    variables = face_net.solve_present(before, net, data)
    report = {
        'held_out': face_net.evaluate(variables, net, held_out)[0],
        'held_out_before': face_net.evaluate(before, net, held_out)[0],
        'solved_on': {'heads': len(data['rgb']), 'source': 'procedural heads and drawn animals, augmented'},
        'weights_before': old.sha256,
    }
    variables = {**variables, 'calibration': old.variables['calibration']}
    record = {'command': 'launch.train_face_net --present', **report, 'before': old.provenance}
    out.mkdir(parents=True, exist_ok=True)
    report['sha256'] = save_weights(
        out / 'face_net.safetensors',
        variables,
        method=FACE_NET_METHOD,
        config=net,
        provenance=record,
        storage='float16',
    )
    write_json(out / 'report.json', report)
    return report


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.face_net import FaceTrainConfig
    from data_pipelines.face_crops import FaceCropsConfig, generate, load_shards

    if args.count < 2 or args.held_out < 4:
        raise UserError('--count must be at least 2, --held-out at least 4')
    config = FaceTrainConfig(steps=args.steps, batch=args.batch, seed=args.seed)
    folder = args.data or args.out / 'data'
    arrays = []
    for split, count in (('train', args.count), ('val', args.held_out)):
        generate(FaceCropsConfig(seed=args.seed, split=split), folder / split, 0, count, shard=min(250, count))
        arrays.append(load_shards(folder / split, limit=count))
    if args.present:
        report = solve_again(args.present, *arrays, args.out)
    else:
        report = train(config, *arrays, args.out, resume=args.resume)
    for name, value in report['held_out'].items():
        print(f'{name}: {value:.4g}')
    print(args.out / 'face_net.safetensors')
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m launch.train_face_net``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
