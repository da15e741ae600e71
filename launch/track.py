"""Tracks faces: photographs, videos and folders become aligned crops, camera labels, coefficients and motion files.

For each input a folder appears in --out: crops/ and masks/ (512 pixels, EG3D's alignment), track.npz (landmarks,
labels, coefficients, poses, quality of every frame), motion.npz (drives an avatar: avatar-jax animate), overlay.mp4 or
.png, and report.json. avatar-jax invert takes such a folder as a portrait; dataset.json in --out makes the whole a data
set of pictures with camera labels. An input that cannot be used is reported and skipped; the others are done.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.io.names import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument('input', nargs='+', metavar='INPUT', help='pictures, videos, or folders of them')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the results')
    parser.add_argument('--size', type=int, default=512, metavar='N', help='side of the crops in pixels (default: 512)')
    parser.add_argument(
        '--landmarks',
        nargs='+',
        metavar='FILE',
        help='files of 5, 68, 98 or 478 facial landmarks, one for each input (default: a landmark file beside the '
        'input, else landmarks are detected)',
    )
    parser.add_argument(
        '--mediapipe', metavar='FILE', help='detect landmarks by MediaPipe, with your face_landmarker.task'
    )
    parser.add_argument(
        '--model',
        default='procedural',
        metavar='FILE|procedural',
        help='head model that is fitted: procedural (default), or the file of a BFM, FLAME or ICT-FaceKit model',
    )
    parser.add_argument(
        '--face',
        default='size',
        metavar='size|N|FILE',
        help='which face, if there are several: the largest (default), the N-th largest, or the one most similar to '
        'the face in a picture',
    )
    parser.add_argument(
        '--crop',
        choices=('auto', 'frame', 'clip'),
        default='auto',
        help='clip: the same square in a whole shot; frame: a square that follows the face; auto (default): clip if '
        'the head hardly leaves its place',
    )
    parser.add_argument(
        '--smooth', type=float, default=1.0, metavar='S', help='strength of temporal smoothing; 0: none (default: 1)'
    )
    parser.add_argument(
        '--focal',
        type=float,
        metavar='F',
        help='focal length, in units of the longer side of the picture (default: estimated)',
    )
    parser.add_argument(
        '--label-mode',
        choices=('orig', 'cor', 'simplify', 'raw'),
        default='orig',
        help='normalisation of camera labels: orig (default, released FFHQ generators), cor, simplify, or raw '
        '(procedural heads)',
    )
    parser.add_argument(
        '--pixels',
        action='store_true',
        help='refine pose and expression on the pixels, and estimate light and albedo (slow: for photographs and '
        'short clips)',
    )
    parser.add_argument(
        '--translation',
        action='store_true',
        help="camera labels include the head's translation in the uncropped video",
    )
    parser.add_argument(
        '--sequence', action='store_true', help='a folder holds the frames of one clip, not separate pictures'
    )
    parser.add_argument('--fps', type=float, default=25.0, metavar='R', help='frame rate of --sequence (default: 25)')
    parser.add_argument(
        '--crops',
        choices=('auto', 'png', 'jpg', 'none'),
        default='auto',
        help='format of the crops (default: auto: png for pictures, jpg for videos)',
    )
    parser.add_argument(
        '--background',
        choices=('keep', 'white'),
        default='keep',
        help='what is behind the head in the crops (default: keep)',
    )
    parser.add_argument('--no-overlay', action='store_true', help='write no overlay')
    parser.add_argument('--no-masks', action='store_true', help='write no head masks')
    parser.add_argument(
        '--weights', metavar='FILE', help='weights of the landmark network (default: those in the package)'
    )


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status (2 if an input was skipped)."""
    from avatar_jax.io.atomic import output_folder, write_json
    from avatar_jax.io.video import frame_rate
    from avatar_jax.track.choose import Chooser
    from avatar_jax.track.inputs import find_inputs
    from launch.batch import Batch

    if args.size < 16 or args.size > 4096:
        raise UserError(f'--size {args.size}: must lie between 16 and 4096')
    if args.smooth < 0 or (args.focal is not None and not 0.2 <= args.focal <= 100):
        raise UserError('--smooth must not be negative, --focal must lie between 0.2 and 100')
    frame_rate(args.fps)
    if args.landmarks and args.mediapipe:
        raise UserError('--landmarks and --mediapipe: give one of them')
    sources = find_inputs(args.input, args.sequence, args.fps)
    if args.landmarks and len(args.landmarks) != len(sources):
        raise UserError(f'--landmarks: {len(args.landmarks)} files for {len(sources)} inputs; give one for each')
    tracker = make_tracker(args)
    choose = Chooser(args.face, tracker.network)
    out = output_folder(args.out)
    batch = Batch()
    files = dict(zip((s.name for s in sources), args.landmarks or ()))

    def work(source: Any) -> dict[str, Any]:
        try:
            return {
                'name': source.name,
                **track_source(source, out / source.name, tracker, choose, args, files.get(source.name)),
            }
        except UserError as error:
            text = str(error)
            raise UserError(text if str(source.path) in text else f'{source.path}: {text}') from error

    batch.run(sources, work, name=lambda s: str(s.path))
    write_json(
        out / 'report.json',
        {
            'inputs': [
                {k: r[k] for k in ('name', 'file', 'kind', 'frames', 'faces_found', 'quality')} for r in batch.results
            ],
            'skipped': [{'input': name, 'reason': reason} for name, reason in batch.skipped],
        },
    )
    if batch.results and args.crops != 'none':
        write_json(out / 'dataset.json', {'labels': dataset_labels(out, [r['name'] for r in batch.results])})
    for r in batch.results:
        print(shown(summary(out, r)))
    return batch.finish()


def summary(out: Path, report: dict[str, Any]) -> str:
    """One line about a tracked input."""
    quality = report['quality']
    frames = f'{report["faces_found"]} of {report["frames"]} frames'
    text = f'{out / report["name"]}: {frames}, quality {quality["score"]:.2f} ({quality["grade"]})'
    if report['frames'] > 2:
        jitter = report['jitter_percent_of_eye_distance']
        text += f', jitter {jitter["measured"]:.2f} -> {jitter["after_filter"]:.2f} % of the eye distance'
    return text


def make_tracker(args: argparse.Namespace) -> Any:
    """The tracker that all inputs of a run share."""
    from avatar_jax.track.fit import FitConfig
    from avatar_jax.track.measure import Tracker

    return Tracker(
        args.model,
        weights=args.weights,
        mediapipe=args.mediapipe,
        fit=FitConfig(smooth=args.smooth, focal=args.focal),
        steady=args.smooth,
        crop=args.crop,
        pixels=args.pixels,
        translation=args.translation,
    )


def track_source(
    source: Any, folder: Path, tracker: Any, choose: Any, args: argparse.Namespace, landmarks: str | None
) -> dict[str, Any]:
    """Tracks one input into ``folder``; returns its report."""
    from avatar_jax.io.landmarks import SideFile, side_file
    from avatar_jax.progress import Progress
    from avatar_jax.track import output
    from avatar_jax.track.measure import track_beside

    frames = source.open()
    beside = SideFile() if landmarks or args.mediapipe else side_file(source.path)
    began = time.monotonic()
    clip = track_beside(
        tracker,
        frames,
        beside,
        landmarks,
        size=args.size,
        label_mode=args.label_mode,
        background=args.background,
        face=choose,
        masked=not args.no_masks,
    )
    measured = time.monotonic() - began
    for note in (*clip.warnings, *frames.notes):
        print(shown(f'avatar-jax: {source.path}: {note}'), file=sys.stderr)
    crops = args.crops if args.crops != 'auto' else 'jpg' if source.moving else 'png'
    config = output.OutputConfig(crops, not args.no_overlay, not args.no_masks)
    settings = {k: v for k, v in vars(args).items() if k not in ('input', 'out')}
    seconds = {'landmarks': measured - clip.track.seconds, 'fit': clip.track.seconds}
    with Progress(clip.num_frames, f'{source.path.name}: writing', unit='frame') as bar:
        return output.write(
            folder,
            source,
            frames,
            clip,
            tracker.model,
            config,
            {**settings, 'seconds': seconds},
            tracker.network.sha256,
            bar.update,
        )


def dataset_labels(out: Path, names: list[str]) -> list[list[Any]]:
    """[[crop, 25 numbers], ...] of all crops, as EG3D's dataset.json has them."""
    import numpy as np

    from avatar_jax.track.output import ARRAYS, CROPS

    rows = []
    for name in names:
        with np.load(out / name / ARRAYS) as arrays:
            labels = arrays['labels']
        for path in sorted((out / name / CROPS).glob('*')):
            rows.append([f'{name}/{CROPS}/{path.name}', [float(v) for v in labels[int(path.stem)]]])
    return rows
