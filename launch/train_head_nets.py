"""Trains the stand-in networks for procedural heads and writes a weight file and a report.

    python -m launch.train_head_nets --out DIR [--data DIR] [--people N] [--pictures N] [--steps N] [--resume]

Pictures are rendered into `--data` first (once: complete shards are kept), training people and held-out people apart.
Writes ``head_nets.safetensors`` and ``report.json`` with held-out verification accuracy and expression and landmark
errors. Interrupted runs continue with `--resume`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError

# The middle frame of a motion window has the picture's own pose.
_ANGLE, _TRANSLATION = slice(64, 67), slice(67, 70)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--out', type=Path, required=True, help='folder for weights, report, log and checkpoints')
    parser.add_argument('--data', type=Path, help='folder for the rendered heads (default: data in --out)')
    parser.add_argument('--people', type=int, default=1000, help='people to train on (default: 1000)')
    parser.add_argument('--pictures', type=int, default=5, help='pictures of each person (default: 5)')
    parser.add_argument(
        '--held-out', type=int, default=120, help='people to test on, who are not trained on (default: 120)'
    )
    parser.add_argument('--resolution', type=int, default=128, help='side of the pictures (default: 128)')
    parser.add_argument('--workers', type=int, default=1, help='processes that draw (default: 1)')
    parser.add_argument('--steps', type=int, default=1500, help='training steps (default: 1500)')
    parser.add_argument('--batch', type=int, default=48, help='pictures per step (default: 48)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out')


def heads(folder: Path, split: str, people: int, pictures: int, resolution: int, seed: int, workers: int) -> dict:
    """Renders (or finds) heads of one split and returns the arrays that `train.head_nets` takes."""
    from avatar_jax.faces.windows import RADIUS
    from data_pipelines.fast_heads import FastHeadsConfig, generate, load_shards

    config = FastHeadsConfig(seed=seed, split=split, resolution=resolution, frames_per_identity=pictures)
    folder = Path(folder) / split
    generate(config, folder, 0, people * pictures, shard=min(256, people * pictures), workers=workers)
    fields = ('index', 'expression', 'window', 'rgb', 'landmarks')
    arrays = load_shards(folder, fields, limit=people * pictures)
    middle = arrays['window'][:, RADIUS]
    return {
        'rgb': arrays['rgb'],
        'person': (arrays['index'] // pictures).astype(np.int32),
        'expression': arrays['expression'],
        'angle': middle[:, _ANGLE],
        'translation': middle[:, _TRANSLATION],
        'landmarks': arrays['landmarks'],
    }


def train(config, data: dict, held_out: dict, out: Path, *, resume: bool = False, quiet: bool = False) -> dict:
    """Trains, tests, writes ``head_nets.safetensors`` and ``report.json`` into ``out``; returns the report."""
    import jax

    from avatar_jax.bundled import head_nets
    from avatar_jax.io.atomic import write_json
    from avatar_jax.io.weights import save_weights
    from avatar_jax.losses.perception import HEAD_NETS_METHOD
    from avatar_jax.train.loop import LoopConfig, fit

    began = time.monotonic()
    state = head_nets.init_state(config, data)
    loop = LoopConfig(config.steps, log_every=20, sample_every=0, checkpoint_every=max(1, min(200, config.steps)))
    state = fit(
        state,
        head_nets.make_step(config),
        lambda start: head_nets.batches(config, data, start),
        folder=out,
        loop=loop,
        config=config,
        resume=resume,
        label='head networks',
        images_per_step=config.batch,
        quiet=quiet,
    )
    variables = jax.tree.map(np.asarray, head_nets.variables_of(state))
    report = {
        'held_out': head_nets.evaluate(variables, config.nets, held_out),
        'trained_on': {
            'pictures': len(data['rgb']),
            'people': int(data['person'].max()) + 1,
            'resolution': int(data['rgb'].shape[1]),
            'source': 'procedural heads, fast_heads',
        },
        'steps': config.steps,
        'batch': config.batch,
        'seed': config.seed,
        'seconds_of_this_run': round(time.monotonic() - began, 1),
    }
    report['sha256'] = save_weights(
        out / 'head_nets.safetensors',
        variables,
        method=HEAD_NETS_METHOD,
        config=config.nets,
        provenance={'command': 'launch.train_head_nets', **report},
        storage='float16',
    )
    write_json(out / 'report.json', report)
    return report


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.head_nets import HeadTrainConfig

    for name, least in (('people', 2), ('pictures', 2), ('held_out', 4), ('resolution', 32)):
        if getattr(args, name) < least:
            raise UserError(f'--{name.replace("_", "-")} {getattr(args, name)}: must be at least {least}')
    config = HeadTrainConfig(steps=args.steps, batch=args.batch, seed=args.seed)
    folder = args.data or args.out / 'data'
    common = (args.pictures, args.resolution, args.seed, args.workers)
    data = heads(folder, 'train', args.people, *common)
    held_out = heads(folder, 'val', args.held_out, *common)
    report = train(config, data, held_out, args.out, resume=args.resume)
    identity, coefficients = report['held_out']['identity'], report['held_out']['coefficients']
    print(
        f'held-out people: verification {identity["accuracy"]:.1%} (same {identity["cosine_same"]:.2f}, different '
        f'{identity["cosine_different"]:.2f}); expression error {coefficients["expression_mae"]:.3f} (the mean: '
        f'{coefficients["expression_mae_of_the_mean"]:.3f}), landmarks {coefficients["landmarks_pixels"]:.2f} px, '
        'mouth '
        f'opening correlation {coefficients["mouth_opening_correlation"]:.3f}, eyes '
        f'{coefficients["eye_openness_correlation"]:.3f}, angle {coefficients["angle_degrees"]:.2f} degrees'
    )
    print(args.out / 'head_nets.safetensors')
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m launch.train_head_nets``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
