"""Makes a video of an avatar from someone's motion.

The driver is a motion file (docs/motion_file.md), coefficients of another program (.mat, .npz), a video, a picture, a
clip of a data set (``FOLDER:SPLIT:CLIP``), made-up speech (``speech:SEED`` or ``speech:SEED:FRAMES``), or numbers
(``--slider jaw_open=0.6 yaw=20``). An avatar that was trained to be driven by pictures takes a video, a picture or a
tracked folder, of anybody; one that listens a sound (``--sound``), alone or with a motion for the head. The video has
the driver's frame rate and, where the driver is a video, its sound.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.names import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument('--avatar', required=True, metavar='DIR', help='folder that avatar-jax invert wrote')
    parser.add_argument(
        '--motion',
        metavar='FILE|CLIP',
        help='the driver: a motion file, coefficients, a video, a picture, a tracked folder, FOLDER:SPLIT:CLIP of a '
        'data set, or speech:SEED[:FRAMES]',
    )
    parser.add_argument(
        '--slider',
        nargs='+',
        default=(),
        metavar='NAME=VALUE',
        help='set components of the expression by name or index, yaw, pitch, roll (degrees), move_x, move_y, move_z '
        "(decimetres); alone, or in place of the driver's values",
    )
    parser.add_argument(
        '--relative',
        nargs='?',
        choices=('none', 'expression', 'pose', 'all'),
        default='none',
        const='all',
        help="add the driver's change from its neutral frame to the avatar, instead of taking the driver's numbers as "
        'they are',
    )
    parser.add_argument(
        '--neutral', type=int, metavar='N', help='number of the neutral frame (default: it is estimated)'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        default=(),
        choices=('mouth', 'eyes', 'brows', 'expression', 'pose'),
        help='take only these from the driver; the rest of the face stays at rest, the head as in the portrait',
    )
    parser.add_argument('--amplify', type=float, default=1.0, metavar='F', help='factor on the expression (default: 1)')
    parser.add_argument(
        '--amplify-pose', type=float, default=1.0, metavar='F', help="factor on the head's movement (default: 1)"
    )
    parser.add_argument(
        '--face',
        default='size',
        metavar='size|N|FILE',
        help='which face of a driving video or picture: the largest (default), the N-th largest, or the one most '
        'similar to the face in a picture',
    )
    parser.add_argument(
        '--fps', type=float, metavar='N', help='frame rate of a coefficient file that has none in it (default: 25)'
    )
    parser.add_argument(
        '--sound',
        metavar='FILE',
        help="sound of the video: a file, or 'none' (default: that of a driving video); an avatar that listens is "
        'driven by it, or by sound features (.npy)',
    )
    parser.add_argument(
        '--camera',
        choices=('track', 'orbit', 'fixed'),
        default='track',
        help="track (default): the head turns as the driver's; orbit: the camera circles around the head; fixed: the "
        'camera of the portrait',
    )
    parser.add_argument(
        '--towards',
        metavar='DIR',
        help='another avatar of the same weights: the person turns into that one in the course of the video',
    )
    parser.add_argument(
        '--amount', type=float, metavar='F', help='with --towards: the share of the other avatar in every frame, 0 to 1'
    )
    parser.add_argument('--out', default='avatar.mp4', metavar='FILE.mp4', help='the video (default: avatar.mp4)')
    parser.add_argument('--png', metavar='DIR', help='also write every frame as a PNG into this folder')
    parser.add_argument('--raw', action='store_true', help='show the volume rendering beside the final picture')
    parser.add_argument(
        '--driver',
        metavar='NAME',
        help='what drives an avatar that was trained with several: picture, coefficients, sound (default: the first)',
    )
    parser.add_argument('--method', metavar='NAME', help='method of the avatar (default: the one stored in it)')
    parser.add_argument(
        '--weights', metavar='FILE|NAME', help='weights that the avatar was made with (default: those in the package)'
    )
    parser.add_argument(
        '--frames',
        type=int,
        metavar='N',
        help='only the first N frames; for a picture or --slider alone, the length (default: 25)',
    )
    parser.add_argument(
        '--per-call', type=int, default=8, metavar='N', help='frames in one call of the compiled renderer (default: 8)'
    )
    parser.add_argument(
        '--side-by-side',
        type=int,
        default=1,
        metavar='N',
        help='frames of a call that each device renders as one batch (default: 1)',
    )


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.driving.audio import FeatureFile
    from avatar_jax.driving.cameras import camera_labels
    from avatar_jax.driving.plan import Plan
    from avatar_jax.driving.request import Request
    from avatar_jax.driving.signals import make_drive, needed_parts
    from avatar_jax.faces.conventions import background_of
    from avatar_jax.io.atomic import output_file, output_place
    from avatar_jax.methods.model import check_weights, choose_model, load_avatar
    from avatar_jax.progress import Progress
    from data_pipelines.tables import clip_motion

    if (args.frames is not None and args.frames < 1) or args.per_call < 1 or args.side_by_side < 1:
        raise UserError('--frames, --per-call and --side-by-side must be at least 1')
    if Path(args.out).suffix.lower() not in ('.mp4', '.m4v'):
        raise UserError(f'--out {args.out}: videos are written as MP4; choose a name that ends in .mp4')
    output_file(args.out)  # before minutes of rendering
    if args.png:
        output_place(args.png)
    avatar = load_avatar(args.avatar)
    model = choose_model(args.method or avatar.method or None, args.weights)
    check_weights(avatar, model)
    avatar = driven_by(args.driver, model, avatar)
    model = model.of(avatar)
    plan = Plan(args.relative, args.neutral, tuple(args.only), args.amplify, args.amplify_pose)
    request = Request(args.motion, tuple(args.slider), plan, args.face, args.fps, args.frames, args.sound)
    if 'sound' not in needed_parts(model.method, model.config):
        if args.motion is None and not args.slider:
            raise UserError('--motion: who drives the avatar? give --motion FILE, or numbers with --slider')
        if args.sound is not None and FeatureFile.is_one(args.sound):
            raise UserError(f'--sound {args.sound}: is no sound, and this avatar is not driven by sound features')
    crops = {'size': model.config.img_resolution, 'background': background_of(model.config, 'weights')}
    driving = request.read(model.config.basis, avatar, clip_motion, crops)
    motion, sound = driving.motion, driving.track
    for note in driving.notes:
        print(shown(f'avatar-jax: {args.motion or "sliders"}: {note}'), file=sys.stderr)
    drive = make_drive(model.method, model.config, driving.parts, motion.fps, motion.source)
    labels = camera_labels(args.camera, model.config, avatar, motion)
    other = mixture(args, avatar, model, motion.num_frames)
    with Progress(motion.num_frames, 'animating (compiles first)', unit='frame') as bar:
        pictures = model.stream(
            avatar,
            drive,
            labels,
            per_call=args.per_call,
            chunk=args.side_by_side,
            towards=other,
            on_frames=bar.update,
        )
        count = write_outputs(args, pictures, motion.fps, provenance_of(args, model, avatar, motion), sound)
    for note in () if sound is None else sound.notes:
        print(shown(f'avatar-jax: {sound.path}: {note}'), file=sys.stderr)
    end = '' if sound is None else ', with sound'
    print(shown(f'{args.out}: {count} frames at {motion.fps:g} per second{end}'))
    return 0


def driven_by(driver: str | None, model: Any, avatar: Any) -> Any:
    """The avatar as --driver wants it driven."""
    if driver is None:
        return avatar
    ways = {} if model.method.ways is None else model.method.ways(model.of(avatar).config)
    if driver not in ways:
        known = f'there are {", ".join(ways)}' if ways else f'avatars of {model.method.title} are driven in one way'
        raise UserError(f'--driver {driver}: this avatar was not trained with it; {known}')
    return avatar.replace(config=ways[driver])


def mixture(args: argparse.Namespace, avatar: Any, model: Any, frames: int) -> tuple[Any, np.ndarray] | None:
    """The avatar of --towards and how much of it each frame shows."""
    from avatar_jax.methods.model import check_weights, load_avatar
    from avatar_jax.methods.render import check_mixable

    if args.towards is None:
        if args.amount is not None:
            raise UserError('--amount: goes with --towards')
        return None
    if args.amount is not None and not 0 <= args.amount <= 1:
        raise UserError(f'--amount {args.amount}: must be between 0 and 1')
    other = load_avatar(args.towards)
    check_weights(other, model)
    check_mixable(model.method, avatar, other, args.side_by_side)
    return other, np.linspace(0, 1, frames) if args.amount is None else np.full(frames, args.amount)


def provenance_of(args: argparse.Namespace, model: Any, avatar: Any, motion: Any) -> Any:
    """What the files say about their origin."""
    from avatar_jax.io.inputs import file_sha256
    from avatar_jax.io.provenance import Provenance
    from avatar_jax.methods.model import AVATAR_FILE

    folder = Path(args.avatar)
    sources = {AVATAR_FILE: file_sha256(folder / AVATAR_FILE if folder.is_dir() else folder)}
    if args.towards is not None:
        sources['towards'] = str(args.towards)
    if args.motion is None:
        sources['sliders'] = ' '.join(args.slider)
    elif Path(args.motion).is_file():
        sources[Path(args.motion).name] = file_sha256(args.motion)
    elif motion.source:
        sources['motion'] = motion.source
    return Provenance(synthetic=True, weights=model.sha256, command='animate', sources=sources)


def write_outputs(args: argparse.Namespace, pictures: Any, fps: float, provenance: Any, sound: Any = None) -> int:
    """Writes the video (and PNG files) from a stream of ``Frames``; returns the number of frames."""
    from avatar_jax.io.atomic import atomic_folder
    from avatar_jax.io.images import write_png
    from avatar_jax.io.video import VideoWriter

    count = 0
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(atomic_folder(args.png)) if args.png else None
        video = stack.enter_context(VideoWriter(args.out, fps, provenance=provenance, sound=sound))
        for frames in pictures:
            for rgb, raw in zip(frames.rgb, frames.raw, strict=True):
                picture = np.concatenate([rgb, enlarged(raw, rgb.shape[0])], 1) if args.raw else rgb
                video.write(picture)
                if folder is not None:
                    write_png(folder / f'{count:06d}.png', picture, provenance)
                count += 1
    return count


def enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """[R,R,3] -> [size,size,3] by repeating pixels (rounded positions)."""
    index = np.arange(size) * image.shape[0] // size
    return image[index][:, index]
