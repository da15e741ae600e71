"""Makes avatars from portraits: aligned frames or raw photographs, one or many at once.

Some methods make one avatar of all pictures, in a folder named after the first; the others make one of each picture,
and some of these one of all if --one-person says that they show one person. An avatar's folder holds the avatar, a
picture (portraits | reconstruction | side views) and a report; report.json in --out lists all avatars. The training of
an avatar of a video keeps its state and a preview in --out; the same command goes on where it was interrupted. A
picture that cannot be used is reported and skipped. An avatar can only be as good as what its weights were trained on:
weights of procedural heads make a likeness in the style of procedural heads.
"""

from __future__ import annotations

import argparse

from avatar_jax.io.names import shown
from avatar_jax.methods.options import add_build_options, given_options, makes, whether_joined
from launch.common import add_model, add_perception, say
from launch.program import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    text = 'pictures of faces, or folders that avatar-jax track wrote; for methods that learn from one also videos'
    add('--image', nargs='+', required=True, metavar='FILE', help=text)
    add('--out', required=True, metavar='DIR', help='folder for the avatars')
    add_model(parser, makes)
    text = 'the pictures show one person: one avatar of all of them, for methods that take several portraits'
    add('--one-person', action='store_true', help=f'{text} (default: what the method does, see --method)')
    text = (
        'motion files whose first frame has the expression and pose of the portrait, one for each picture or one for '
        'all (default: what was measured on the picture, else a neutral face in the estimated pose)'
    )
    add('--motion', nargs='+', metavar='FILE', help=text)
    add('--aligned', action='store_true', help='the pictures are aligned crops already; no face is searched for')
    text = (
        "5, 68, 98 or 478 points, one file per image, or 'network' (default: a file beside the picture, else the "
        'network; of --aligned pictures without a file only the camera is measured, with a simple detector)'
    )
    add('--landmarks', nargs='+', metavar='FILE', help=text)
    text = 'which face to take: the largest, the N-th largest, or the one most like a picture (default: the largest if '
    add('--face', metavar='size|N|FILE', help=f'{text}it is clearly so)')
    text = 'what is behind the head (default: what the weights were trained with)'
    add('--background', choices=('weights', 'white', 'black', 'keep'), default='weights', help=text)
    add_perception(parser, 'weights of networks for the losses, e.g. vgg19=vgg19.npz (default: stand-ins)')
    text = 'draw at random what is random in training, e.g. the samples along rays (default: fixed samples)'
    add('--jitter', action='store_true', help=text)
    text = 'the forward pass of the method alone, nothing searched or fitted: seconds (for methods that have one)'
    add('--fast', action='store_true', help=text)
    text = 'avatars that are made at the same time, over all devices together (default: 4)'
    add('--group', type=int, default=4, metavar='N', help=text)
    text = (
        'only the K-th of N equal shares of the pictures, for several machines that work on one list; each writes its '
        'own report_K_of_N.json'
    )
    add('--share', metavar='K/N', help=text)
    add('--seed', type=int, default=0, metavar='N', help='random seed (default: 0)')
    add_build_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status (2 if a picture was skipped)."""
    import jax

    from avatar_jax.io.atomic import output_folder
    from avatar_jax.losses.networks import bank_of, refuse_unused
    from avatar_jax.methods.avatars import build_avatars, in_a_line, write_summary
    from avatar_jax.methods.model import choose_model
    from avatar_jax.methods.pictures import Pictures, people_in_turn
    from launch.batch import Batch, part_of, share_of

    at_least(args, group=1, seed=0)
    how = {name: getattr(args, name) for name in ('motion', 'landmarks', 'background', 'aligned', 'face')}
    pictures, mine = Pictures(args.image, note=say, **how), share_of(len(args.image), args.share)
    out = output_folder(args.out)
    model = choose_model(args.method, args.weights)
    owner, config = model.method, model.config
    joined = whether_joined(owner, len(args.image), args.one_person, args.share)
    options = given_options(args, owner)
    model.steps(**options)  # their checks, before anything is read
    bank = bank_of(args.perception, config.img_resolution)
    used = owner.used_networks(config, bank)
    if used is not None:
        refuse_unused(args.perception, used, f'making an avatar of {owner.title}')
    batch, clips = Batch(), 'video' in owner.sources
    read = batch.each(mine, lambda i: pictures.read(i, config, clips=clips), name=lambda i: args.image[i])
    people = people_in_turn(read, joined, pictures.names[0], out)
    key, reports = jax.random.key(args.seed) if args.jitter else None, []
    if args.jitter and owner.draws is not None and not owner.draws(config, owner.options(options)):
        say(f'--jitter: {owner.title} draws nothing at random here; the avatars are as without it')
    how = {'bank': bank, 'key': key, 'group': args.group, 'seed': args.seed}
    for report in build_avatars(model, people, out, options, **how, refused=batch.take_back):
        reports.append(report)
        for note in report['notes']:
            say(note)
        print(shown(in_a_line(out / report['name'], report)))
    if reports:
        path = out / f'report{part_of(args.share)}.json'
        write_summary(path, model, options, bank, reports, batch.skipped, args.seed)
    return batch.finish()
