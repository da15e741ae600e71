"""Makes avatars from portraits: aligned frames or raw photographs, one or many at once.

Some methods make one avatar of all pictures, in a folder named after the first; the others make one of each picture. An
avatar's folder holds the avatar, a picture (portraits | reconstruction | side views) and a report; report.json in --out
lists all avatars. The training of an avatar of a video keeps its state and a preview in --out; the same command goes on
where it was interrupted. A picture that cannot be used is reported and skipped. An avatar can only be as good as what
its weights were trained on: weights of procedural heads make a likeness in the style of procedural heads.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.io.names import shown
from avatar_jax.methods.options import add_build_options, given_options

SHARE_HELP = (
    'only the K-th of N equal shares of the pictures, for several machines that work on one list; each writes its own '
    'report_K_of_N.json'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    from avatar_jax.methods.base import DEFAULT, methods

    able = ', '.join(
        f'{m.name} ({"one avatar of all portraits" if m.joins_portraits else "an avatar of each portrait"})'
        for m in methods()
        if m.has_avatars
    )
    add = parser.add_argument
    add(
        '--image',
        nargs='+',
        required=True,
        metavar='FILE',
        help='pictures of faces, or folders that avatar-jax track wrote',
    )
    add('--out', required=True, metavar='DIR', help='folder for the avatars')
    add('--method', metavar='NAME', help=f'{able}; default: that of --weights, else {DEFAULT}')
    add('--weights', metavar='FILE|NAME', help='weight file, or the name of one in the package')
    add(
        '--motion',
        nargs='+',
        metavar='FILE',
        help='motion files whose first frame has the expression and pose of the portrait, one for each picture or one '
        'for all (default: what was measured on the picture, else a neutral face in the estimated pose)',
    )
    add('--aligned', action='store_true', help='the pictures are aligned crops already; no face is searched for')
    add(
        '--landmarks',
        nargs='+',
        metavar='FILE',
        help="5, 68, 98 or 478 points, one file per image, or 'network' (default: a file beside the picture, else the "
        'network; of --aligned pictures without a file only the camera is measured, with a simple detector)',
    )
    add(
        '--face',
        metavar='size|N|FILE',
        help='which face to take: the largest, the N-th largest, or the one most like a picture (default: the largest '
        'if it is clearly so)',
    )
    add(
        '--background',
        choices=('weights', 'white', 'black', 'keep'),
        default='weights',
        help='what is behind the head (default: what the weights were trained with)',
    )
    add(
        '--perception',
        nargs='+',
        default=(),
        metavar='NAME=FILE',
        help='weights of networks for the losses, e.g. vgg19=vgg19.npz (default: stand-ins)',
    )
    add('--jitter', action='store_true', help='sample at random where the method does in training, e.g. along the rays')
    add('--group', type=int, default=4, metavar='N', help='avatars that are optimised at the same time (default: 4)')
    add('--share', metavar='K/N', help=SHARE_HELP)
    add('--seed', type=int, default=0, metavar='N', help='random seed (default: 0)')
    add_build_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status (2 if a picture was skipped)."""
    import jax

    from avatar_jax.io.atomic import output_folder
    from avatar_jax.losses.networks import bank_of, refuse_unused
    from avatar_jax.methods.avatars import Person, build_avatars, write_summary
    from avatar_jax.methods.base import Source
    from avatar_jax.methods.model import choose_model
    from avatar_jax.methods.reading import is_clip
    from launch.batch import Batch, share_of
    from launch.pictures import Pictures

    if args.group < 1 or args.seed < 0:
        raise UserError('--group: must be at least 1, and --seed not negative')
    pictures = Pictures(args)
    share_of(1, args.share)
    out = output_folder(args.out)
    model = choose_model(args.method, args.weights)
    if args.share is not None and model.method.joins_portraits:
        raise UserError(f'--share {args.share}: {model.method.title} makes one avatar of all pictures; leave it out')
    options = given_options(args, model.method)
    model.steps(**options)  # their checks, before anything is read
    bank = bank_of(args.perception, model.config.img_resolution)
    used = model.method.used_networks(model.config, bank)
    if used is not None:
        refuse_unused(args.perception, used, f'making an avatar of {model.method.title}')

    batch = Batch()
    mine = share_of(len(args.image), args.share)
    takes_clips = 'video' in model.method.sources

    def read_one(i: int) -> tuple[Any, Any]:
        one = pictures.clip if takes_clips and is_clip(args.image[i]) else pictures.read
        return one(i, model.config)

    batch.run(mine, read_one, name=lambda i: args.image[i])
    read = [(mine[k], *found) for k, found in batch.numbered]
    clips = [
        Person(replace(source, work=str(out / f'{source.name}.training')), [best])
        for _, best, source in read
        if isinstance(source, Source)
    ]
    read = [entry for entry in read if not isinstance(entry[2], Source)]
    if model.method.joins_portraits and read:
        portraits, measured = [p for _, _, p in read], [m for _, m, _ in read]
        first = pictures.expressions[read[0][0]]
        people = [Person(Source(portraits, name=pictures.names[0]), measured, first)]
    else:
        people = [
            Person(Source([portrait], name=pictures.names[i]), [measured], pictures.expressions[i])
            for i, measured, portrait in read
        ]
    people += clips
    key, reports = jax.random.key(args.seed) if args.jitter else None, []
    for report in build_avatars(model, people, out, options, bank=bank, key=key, group=args.group, seed=args.seed):
        reports.append(report)
        say(out / report['name'], report)
    if reports:
        name = 'report.json' if args.share is None else f'report_{args.share.replace("/", "_of_")}.json'
        write_summary(out / name, model, options, bank, reports, batch.skipped, args.seed)
    return batch.finish()


def say(folder: Path, report: dict[str, Any]) -> None:
    """One avatar in a line, and what its maker should know."""
    for note in report['notes']:
        print(shown(f'avatar-jax: {note}'), file=sys.stderr)
    count = len(report['portraits'])
    which = 'the portrait' if count == 1 else f'the first of {count} portraits'
    print(shown(f'{folder}: {report["psnr"]:.1f} dB to {which}, alignment {report["alignment"]}'))
