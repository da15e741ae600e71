"""Pictures of what one and several portraits make of a person, for methods that take any number of them.

    python -m launch.portrait_pictures --out DIR [--weights FILE|NAME] [--people N] [--seed N]

``eyes.jpg``: one portrait with closed and one with open eyes. A row for each person: the two portraits; the avatar of
the closed, of the open and of both, all driven to open eyes from a third side; the truth. ``portraits.jpg``: the avatar
of one, two and four portraits, seen from a side that none of them shows. The people are of the split 'test'. Printed
are the mean PSNRs of the avatars in both pictures against the truth.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.program import at_least, main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    from avatar_jax.methods.base import methods

    shipped = next(m.weights for m in methods() if m.joins_portraits and m.weights)
    add = parser.add_argument
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the two pictures')
    text = 'weight file, or the name of one in the package (default: %(default)s)'
    add('--weights', default=shipped, metavar='FILE|NAME', help=text)
    add('--people', type=int, default=4, help='people, one in a row (default: 4)')
    add('--seed', type=int, default=11, help='chooses the people (default: 11)')


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.eval.portrait_pictures import Sitter, portrait_pictures
    from avatar_jax.methods.model import choose_model
    from data_pipelines.clips import evaluation_clips

    at_least(args, people=1)
    model = choose_model(None, args.weights)
    clips = evaluation_clips(args.people, args.seed, num_frames=2)
    sitters = [Sitter(clip.identity, clip.gamma, model.config.img_resolution) for clip in clips]
    for path, scores in portrait_pictures(model, sitters, args.out).items():
        print(path, ', '.join(f'{kind} {value:.1f} dB' for kind, value in scores.items()))
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
