"""Makes a video of an avatar from someone's motion.

The motion is a file (docs/motion_file.md), a clip of a data set (``FOLDER:SPLIT:CLIP``) or made-up speech
(``speech:SEED`` or ``speech:SEED:FRAMES``). The video has the motion's frame rate.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

SPEECH_FRAMES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument('--avatar', required=True, metavar='DIR', help='folder that avatar-jax invert wrote')
    parser.add_argument('--motion', required=True, metavar='FILE|CLIP', help='who drives it: a motion file, '
                        'FOLDER:SPLIT:CLIP of a data set, or speech:SEED[:FRAMES]')
    parser.add_argument('--camera', choices=('track', 'orbit', 'fixed'), default='track',
                        help="track: as the driver's head turns; orbit: around the head; fixed: the portrait's camera")
    parser.add_argument('--out', default='avatar.mp4', metavar='FILE.mp4', help='the video')
    parser.add_argument('--png', metavar='DIR', help='also write every frame as a PNG into this folder')
    parser.add_argument('--raw', action='store_true', help='show the volume rendering beside the final picture')
    parser.add_argument('--method', metavar='NAME', help="the avatar's method (it knows it itself)")
    parser.add_argument('--weights', metavar='FILE|NAME', help='weights of the avatar (default: the shipped ones)')
    parser.add_argument('--frames', type=int, metavar='N', help='only the first N frames')
    parser.add_argument('--per-call', type=int, default=8, metavar='N', help='frames handed to the device at once')
    parser.add_argument('--side-by-side', type=int, default=1, metavar='N', help='of these, so many computed together')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.methods.animate import camera_labels, check_drivable, render_motion
    from avatar_jax.methods.registry import check_weights, choose_model, load_avatar
    from avatar_jax.progress import Progress

    if (args.frames is not None and args.frames < 1) or args.per_call < 1 or args.side_by_side < 1:
        raise UserError('--frames, --per-call and --side-by-side must be at least 1')
    if Path(args.out).suffix.lower() not in ('.mp4', '.m4v'):
        raise UserError(f'--out {args.out}: videos are written as MP4; choose a name that ends in .mp4')
    avatar = load_avatar(args.avatar)
    model = choose_model(args.method or avatar.method or None, args.weights)
    check_weights(avatar, model)
    motion = read_motion(args.motion, model.config.basis)
    if args.frames is not None:
        motion = motion.frames(0, args.frames)
    check_drivable(model.config, avatar, motion, model.sha256)
    labels = camera_labels(args.camera, model.config, avatar, motion)
    with Progress(motion.num_frames, 'animating (compiles first)', unit='frame') as bar:
        pictures = render_motion(model.variables, model.config, avatar, motion, labels, per_call=args.per_call,
                                 chunk=args.side_by_side, on_frames=bar.update)  # fmt: skip
        count = write_outputs(args, pictures, motion.fps, provenance_of(args, model, avatar, motion))
    print(f'{args.out}: {count} frames at {motion.fps:g} per second')
    return 0


def read_motion(spec: str, basis: str) -> Any:
    """The driving motion behind the ``--motion`` option."""
    from avatar_jax.io.motion import load_motion

    if spec.startswith('speech:') and not Path(spec).exists():
        from avatar_jax.faces.procedural.motion import speech_motion

        try:
            seed, *rest = (int(x) for x in spec.split(':')[1:])
            frames = rest[0] if rest else SPEECH_FRAMES
            if len(rest) > 1 or seed < 0 or frames < 1:
                raise ValueError
        except ValueError:
            raise UserError(f'--motion {spec}: give speech:SEED or speech:SEED:FRAMES') from None
        motion = speech_motion(seed, frames)
        if motion.basis != basis:
            raise UserError(f"--motion {spec}: is in the basis '{motion.basis}', the avatar needs '{basis}'")
        return motion
    if not Path(spec).exists() and spec.count(':') >= 2:
        return data_set_motion(spec, basis)
    return load_motion(spec, basis=basis)


def data_set_motion(spec: str, basis: str) -> Any:
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
        raise UserError(f'--motion {spec}: {split} has no clip {clip!r}; give a number below {len(names)} or a name such '
                        f'as {names[0]}')  # fmt: skip
    if basis != 'procedural':
        raise UserError(f"--motion {spec}: is in the basis 'procedural', the avatar needs '{basis}'")
    start, length = table.record(index, 0, 0), int(table.num_frames[index])
    rows = table.motion[start : start + length]
    return Motion(rows[:, :64], rows[:, 64:67], rows[:, 67:70], float(table.fps), 'procedural', f'clip {names[index]}')


def provenance_of(args: argparse.Namespace, model: Any, avatar: Any, motion: Any) -> Any:
    """What the files say about their origin."""
    from avatar_jax.io.inputs import file_sha256
    from avatar_jax.io.provenance import Provenance
    from avatar_jax.methods.registry import AVATAR_FILE

    folder = Path(args.avatar)
    sources = {AVATAR_FILE: file_sha256(folder / AVATAR_FILE if folder.is_dir() else folder)}
    if Path(args.motion).is_file():
        sources[Path(args.motion).name] = file_sha256(args.motion)
    elif motion.source:
        sources['motion'] = motion.source
    return Provenance(synthetic=True, weights=model.sha256, command='animate', sources=sources)


def write_outputs(args: argparse.Namespace, pictures: Any, fps: float, provenance: Any) -> int:
    """Writes the video (and PNG files) from a stream of ``Frames``; returns the number of frames."""
    from avatar_jax.io.atomic import atomic_folder
    from avatar_jax.io.images import write_png
    from avatar_jax.io.video import VideoWriter

    count = 0
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(atomic_folder(args.png)) if args.png else None
        video = stack.enter_context(VideoWriter(args.out, fps, provenance=provenance))
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
