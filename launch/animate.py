"""Makes a video of an avatar from someone's motion.

The driver is a motion file (docs/motion_file.md), coefficients of another program (.mat, .npz), a video, a picture, a
clip of a data set (``FOLDER:SPLIT:CLIP``), made-up speech (``speech:SEED`` or ``speech:SEED:FRAMES``), or numbers
(``--slider jaw_open=0.6 yaw=20``). The video has the driver's frame rate and, where the driver is a video, its sound.
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

SPEECH_FRAMES = 100
STILL_FRAMES = 25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument('--avatar', required=True, metavar='DIR', help='folder that avatar-jax invert wrote')
    parser.add_argument(
        '--motion',
        metavar='FILE|CLIP',
        help='who drives it: a motion file, coefficients, a video, a '
        'picture, FOLDER:SPLIT:CLIP of a data set, or speech:SEED[:FRAMES]',
    )
    parser.add_argument(
        '--slider',
        nargs='+',
        default=(),
        metavar='NAME=VALUE',
        help='set components by name or index, '
        "yaw, pitch, roll (degrees) and move_x, move_y, move_z; alone, or in place of the driver's own",
    )
    parser.add_argument(
        '--relative',
        nargs='?',
        choices=('none', 'expression', 'pose', 'all'),
        default='none',
        const='all',
        help="take the driver's change from its neutral frame instead of its absolute numbers",
    )
    parser.add_argument('--neutral', type=int, metavar='N', help='the neutral frame (default: found automatically)')
    parser.add_argument(
        '--only',
        nargs='+',
        default=(),
        choices=('mouth', 'eyes', 'brows', 'expression', 'pose'),
        help='take only these from the driver; the rest stays as in the portrait',
    )
    parser.add_argument('--amplify', type=float, default=1.0, metavar='F', help='strength of the expression')
    parser.add_argument('--amplify-pose', type=float, default=1.0, metavar='F', help="strength of the head's movement")
    parser.add_argument(
        '--face',
        default='size',
        metavar='size|N|FILE',
        help='which face of a driving video or picture: the largest, the N-th largest, or the one most like a picture',
    )
    parser.add_argument('--fps', type=float, metavar='N', help='frame rate of coefficient files that do not say it')
    parser.add_argument(
        '--sound', metavar='FILE', help="sound track (default: that of a driving video; 'none' for none)"
    )
    parser.add_argument(
        '--camera',
        choices=('track', 'orbit', 'fixed'),
        default='track',
        help="track: as the driver's head turns; orbit: around the head; fixed: the portrait's camera",
    )
    parser.add_argument('--out', default='avatar.mp4', metavar='FILE.mp4', help='the video')
    parser.add_argument('--png', metavar='DIR', help='also write every frame as a PNG into this folder')
    parser.add_argument('--raw', action='store_true', help='show the volume rendering beside the final picture')
    parser.add_argument('--method', metavar='NAME', help="the avatar's method (it knows it itself)")
    parser.add_argument('--weights', metavar='FILE|NAME', help='weights of the avatar (default: the shipped ones)')
    parser.add_argument(
        '--frames', type=int, metavar='N', help='only the first N frames; of numbers or a picture, how many (25)'
    )
    parser.add_argument('--per-call', type=int, default=8, metavar='N', help='frames handed to the device at once')
    parser.add_argument('--side-by-side', type=int, default=1, metavar='N', help='of these, so many computed together')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.io.atomic import output_file, output_place
    from avatar_jax.methods.animate import camera_labels, check_drivable, render_motion
    from avatar_jax.methods.registry import check_weights, choose_model, load_avatar
    from avatar_jax.progress import Progress

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
    motion, sound, notes = driving_motion(args, model.config.basis, avatar)
    for note in notes:
        print(shown(f'avatar-jax: {args.motion or "sliders"}: {note}'), file=sys.stderr)
    check_drivable(model.config, avatar, motion, model.sha256)
    labels = camera_labels(args.camera, model.config, avatar, motion)
    with Progress(motion.num_frames, 'animating (compiles first)', unit='frame') as bar:
        pictures = render_motion(
            model.variables,
            model.config,
            avatar,
            motion,
            labels,
            per_call=args.per_call,
            chunk=args.side_by_side,
            on_frames=bar.update,
        )
        count = write_outputs(args, pictures, motion.fps, provenance_of(args, model, avatar, motion), sound)
    for note in () if sound is None else sound.notes:
        print(shown(f'avatar-jax: {sound.path}: {note}'), file=sys.stderr)
    end = '' if sound is None else ', with sound'
    print(shown(f'{args.out}: {count} frames at {motion.fps:g} per second{end}'))
    return 0


def driving_motion(args: argparse.Namespace, basis: str, avatar: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """The avatar's motion, its sound track or None, and what was done, from the command's options."""
    from avatar_jax.driving.plan import Plan, apply_plan
    from avatar_jax.driving.retarget import retarget
    from avatar_jax.driving.sliders import parse_sliders
    from avatar_jax.io.sound import SoundTrack, sound_of

    if args.motion is None and not args.slider:
        raise UserError('--motion: who drives the avatar? give --motion FILE, or numbers with --slider')
    plan = Plan(args.relative, args.neutral, tuple(args.only), args.amplify, args.amplify_pose)
    sliders = parse_sliders(args.slider, basis) if args.slider else None
    sound, notes = None, ()
    if args.motion is None:
        motion = sliders.motion(args.frames or STILL_FRAMES)
        if sliders.basis != basis:
            motion = retarget(motion, basis)
    else:
        driver = read_driver(args)
        motion = driver.motion
        if motion.num_frames == 1:
            motion = held(motion, args.frames or STILL_FRAMES)
        elif args.frames is not None:
            motion = motion.frames(0, args.frames)
        motion, notes = apply_plan(motion, plan, basis, avatar)
        notes = (*driver.notes, *notes)
        if sliders is not None:
            motion = slid(motion, sliders)
        if driver.media is not None and args.sound is None:
            sound = sound_of(driver.media, driver.start)
    if args.sound not in (None, 'none'):
        sound = SoundTrack(args.sound)
    return motion, sound, notes


def held(motion: Any, frames: int) -> Any:
    """The first frame of a motion, ``frames`` times."""
    parts = {
        k: np.repeat(np.asarray(getattr(motion, k))[:1], frames, 0) for k in ('expression', 'angle', 'translation')
    }
    return motion.replace(**parts)


def slid(motion: Any, sliders: Any) -> Any:
    """A motion with slider values in place of its own; names of another basis are moved over as a whole expression."""
    from avatar_jax.driving.retarget import retarget

    if sliders.basis == motion.basis:
        return sliders.applied(motion)
    moved = retarget(sliders.motion(1), motion.basis)
    changed = sliders.applied(motion.replace(basis=sliders.basis))  # pose alone is read from this one
    expression = np.asarray(motion.expression) + np.asarray(moved.expression)
    return motion.replace(expression=expression, angle=changed.angle, translation=changed.translation)


def read_driver(args: argparse.Namespace) -> Any:
    """The ``Driver`` behind the ``--motion`` option."""
    from avatar_jax.driving.drivers import Driver, open_driver
    from avatar_jax.io.video import frame_rate

    spec = args.motion
    fps = None if args.fps is None else float(frame_rate(args.fps))
    if spec.startswith('speech:') and not Path(spec).exists():
        return Driver(made_up_speech(spec))
    if not Path(spec).exists() and spec.count(':') >= 2:
        return Driver(data_set_motion(spec))
    return open_driver(spec, fps=fps, frames=args.frames, face=args.face)


def made_up_speech(spec: str) -> Any:
    """The motion of ``speech:SEED[:FRAMES]``."""
    from avatar_jax.procedural.motion import speech_motion

    try:
        seed, *rest = (int(x) for x in spec.split(':')[1:])
        frames = rest[0] if rest else SPEECH_FRAMES
        if len(rest) > 1 or seed < 0 or frames < 1:
            raise ValueError
    except ValueError:
        raise UserError(f'--motion {spec}: give speech:SEED or speech:SEED:FRAMES') from None
    return speech_motion(seed, frames)


def data_set_motion(spec: str) -> Any:
    """The motion of a clip of a built data set, ``FOLDER:SPLIT:CLIP`` (name or number of the clip)."""
    from avatar_jax.types import Motion
    from data_pipelines.tables import load_table

    folder, split, clip = spec.rsplit(':', 2)
    table = load_table(folder, split)
    names = [str(n) for n in table.name]
    if clip in names:
        index = names.index(clip)
    elif clip.isdigit() and int(clip) < len(names):
        index = int(clip)
    else:
        raise UserError(
            f'--motion {spec}: {split} has no clip {clip!r}; give a number below {len(names)} or a name such '
            f'as {names[0]}'
        )
    start, length = table.record(index, 0, 0), int(table.num_frames[index])
    rows = table.motion[start : start + length]
    fps = float(table.fps if table.clip_fps is None else table.clip_fps[index])
    return Motion(rows[:, :64], rows[:, 64:67], rows[:, 67:70], fps, table.basis, f'clip {names[index]}')


def provenance_of(args: argparse.Namespace, model: Any, avatar: Any, motion: Any) -> Any:
    """What the files say about their origin."""
    from avatar_jax.io.inputs import file_sha256
    from avatar_jax.io.provenance import Provenance
    from avatar_jax.methods.registry import AVATAR_FILE

    folder = Path(args.avatar)
    sources = {AVATAR_FILE: file_sha256(folder / AVATAR_FILE if folder.is_dir() else folder)}
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
