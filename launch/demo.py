"""Shows the whole path on a head that no training has seen, offline and from the shipped weights.

One picture of a procedural head becomes an avatar, which then speaks and turns with another head's motion while the
camera swings. Because the heads are made here, the true picture of every frame is known and stands beside the avatar.
Writes demo.mp4 (driver | avatar | truth), sheet.png and report.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.methods.options import add_build_options, given_options
from launch.common import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('demo'),
        metavar='DIR',
        help='folder for video, contact sheet and report (default: demo)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='N',
        help='chooses the two people, who are never of the training data (default: 0)',
    )
    parser.add_argument(
        '--frames', type=int, default=75, metavar='N', help='length of the video, at 25 frames per second (default: 75)'
    )
    add_model(parser)
    add_build_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration; returns the exit status."""
    from avatar_jax.eval.demonstration import demonstrate
    from avatar_jax.io import atomic
    from avatar_jax.methods.model import choose_model
    from avatar_jax.progress import activity
    from data_pipelines.scenes import make_scene

    if args.frames < 2:
        raise UserError(f'--frames {args.frames}: give at least 2')
    if args.seed < 0:
        raise UserError(f'--seed {args.seed}: must not be negative')
    out = atomic.output_folder(args.out)
    model = choose_model(args.method, args.weights)
    options = given_options(args, model.method)
    model.steps(**options)
    if model.config.basis != 'procedural':
        raise UserError(
            f'{args.weights}: is driven by the basis {model.config.basis!r}; the demo needs a model of procedural heads'
        )
    with activity('meeting two people'):
        scene = make_scene(args.seed, args.frames, model.config.img_resolution)
    report = demonstrate(model, scene, out, seed=args.seed, **options)
    source, driven = report['source'], report['driven']
    print(
        f'source view rebuilt at {source["psnr_head"]:.1f} dB in the head mask; driven frames '
        f'{driven["psnr_head"]:.1f} dB against the truth (mouth and eyes {driven["psnr_mouth_eyes"]:.1f} dB, '
        f'{driven["psnr_mouth_eyes_still"]:.1f} dB for a face that keeps the source expression)'
    )
    print(f'{out / "demo.mp4"}: driver | avatar | truth, {report["frames"]} frames')
    return 0
