"""Makes a video of an avatar from someone's motion.

The driver is a motion file (docs/motion_file.md), coefficients of another program (.mat, .npz), a video, a picture, a
clip of a data set (``FOLDER:SPLIT:CLIP``), made-up speech (``speech:SEED`` or ``speech:SEED:FRAMES``), or numbers
(``--slider jaw_open=0.6 yaw=20``). The video has the driver's frame rate and, where the driver is a video, its sound.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from avatar_jax.driving.request import Plan, Request
from avatar_jax.io.names import shown
from avatar_jax.options import add_options, from_arguments
from launch.common import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    add('--avatar', required=True, metavar='DIR', help='folder that avatar-jax invert wrote')
    add_options(parser, Request)
    add_options(parser, Plan)
    text = "track (default): the head turns as the driver's; orbit: the camera circles around the head; fixed: the "
    add('--camera', choices=('track', 'orbit', 'fixed'), default='track', help=f'{text}camera of the portrait')
    text = "let the head move through the picture as the driver's, where the weights' cameras keep one distance (those "
    text += 'of released generators do): shift: sideways, up and down; zoom: also nearer and farther (default: none)'
    add('--move', choices=('none', 'shift', 'zoom'), default='none', help=text)
    text = 'another avatar of the same weights: the person turns into that one in the course of the video'
    add('--towards', metavar='DIR', help=text)
    text = 'with --towards: the share of the other avatar in every frame, 0 to 1'
    add('--amount', type=float, metavar='F', help=text)
    add('--out', default='avatar.mp4', metavar='FILE.mp4', help='the video (default: avatar.mp4)')
    add('--png', metavar='DIR', help='also write every frame as a PNG into this folder')
    add('--raw', action='store_true', help='show the volume rendering beside the final picture')
    text = 'what drives an avatar that was trained with several: picture, coefficients, sound (default: the first)'
    add('--driver', metavar='NAME', help=text)
    add('--method', metavar='NAME', help='method of the avatar (default: the one stored in it)')
    text = 'weights that the avatar was made with (default: those in the package)'
    add('--weights', metavar='FILE|NAME', help=text)
    text = 'frames in one call of the compiled renderer (default: 8)'
    add('--per-call', type=int, default=8, metavar='N', help=text)
    text = 'frames of a call that each device renders as one batch (default: 1)'
    add('--side-by-side', type=int, default=1, metavar='N', help=text)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.methods.video import VideoOptions, make_video
    from data_pipelines.tables import clip_motion

    options = VideoOptions(**{f.name: getattr(args, f.name) for f in fields(VideoOptions)})
    request = from_arguments(Request, args, plan=from_arguments(Plan, args))
    names = {'method': args.method, 'weights': args.weights}
    video = make_video(args.avatar, request, options, **names, open_clip=clip_motion, note=say)
    sound = '' if video.sound is None else ', with sound'
    print(shown(f'{args.out}: {video.count} frames at {video.fps:g} per second{sound}'))
    return 0
