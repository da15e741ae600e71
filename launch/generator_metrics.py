"""Scores of a trained generator: FID, KID, precision and recall, identity over views, depth and pose.

    avatar-jax metrics --weights RUN|FILE|NAME --out DIR --source fast_heads --data heads [--count 50000]
        [--inception inception.npz]

FID and KID need the public Inception weights of the FID (``--inception``, an .npz of its state dict or what
``avatar-jax convert`` made of it). Without them the same distances are taken on the features of a stand-in network that
was trained on procedural heads, and are named after it: they are not FIDs. Identity, pose and depth are scored for
generators of procedural heads. A run that was interrupted goes on; a larger ``--count`` uses what a smaller one left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.program import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        '--weights',
        required=True,
        metavar='FILE|NAME|RUN',
        help='weight file, the name of one in the package, or the folder of a training run',
    )
    parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='folder for features and scores')
    text = (
        "kind of the real pictures: 'eg3d' (a folder or zip with a dataset.json), 'built' (a TFDS data set), "
        "'fast_heads' (of python -m data_pipelines.fast_heads), or 'rendered' (drawn by the command, default)"
    )
    parser.add_argument('--source', default='rendered', metavar='NAME', help=text)
    parser.add_argument(
        '--data', default='', metavar='PATH', help='folder or zip of the real pictures (not for rendered)'
    )
    parser.add_argument('--split', default='val', metavar='NAME', help='split of the real pictures (default: val)')
    parser.add_argument('--count', type=int, default=50000, help='number of generated pictures (default: 50000)')
    parser.add_argument(
        '--real-count', type=int, default=0, help='number of real pictures (default: all; rendered: --count)'
    )
    parser.add_argument(
        '--inception', type=Path, metavar='FILE', help='weights of the Inception network that FIDs are defined with'
    )
    parser.add_argument(
        '--batch', type=int, default=16, help='pictures per batch, on all devices together (default: 16)'
    )
    parser.add_argument(
        '--people', type=int, default=64, help='people for identity, depth and pose; 0: none (default: 64)'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed of the generated pictures (default: 0)')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.eval.generator_scores import generator_scores
    from avatar_jax.io.atomic import json_text, output_folder, write_json
    from avatar_jax.methods.base import methods
    from avatar_jax.train.run import PicturesConfig
    from data_pipelines.image_sources import open_images

    at_least(args, count=4, batch=1, people=0)
    out = output_folder(args.out)
    weights = next(m for m in methods() if m.generator is not None).generator(args.weights)
    data = PicturesConfig(source=args.source, folder=args.data, split=args.split, count=args.real_count or args.count)
    scores = generator_scores(
        weights,
        open_images(data, weights[1].img_resolution),
        out,
        count=args.count,
        real_count=args.real_count,
        inception=args.inception,
        batch=args.batch,
        people=args.people,
        seed=args.seed,
    )
    write_json(out / 'scores.json', scores)
    print(json_text(scores))
    return 0
