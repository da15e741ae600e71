"""Tracks faces: photographs, videos and folders become aligned crops, camera labels, coefficients and motion files.

For each input a folder appears in --out: crops/ and masks/ (512 pixels, EG3D's alignment), track.npz (landmarks,
labels, coefficients, poses, quality of every frame), motion.npz (drives an avatar: avatar-jax animate), overlay.mp4 or
.png, and report.json. avatar-jax invert takes such a folder as a portrait; dataset.json in --out makes the whole a data
set of pictures with camera labels. An input that cannot be used is reported and skipped; the others are done.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from avatar_jax.io.names import shown
from launch.common import say

if TYPE_CHECKING:
    from avatar_jax.track.inputs import Input


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    add('input', nargs='+', metavar='INPUT', help='pictures, videos, or folders of them')
    add('--out', required=True, metavar='DIR', help='folder for the results')
    add('--size', type=int, default=512, metavar='N', help='side of the crops in pixels (default: 512)')
    text = (
        'files of 5, 68, 98 or 478 facial landmarks, one for each input (default: the file beside the input; without '
    )
    add('--landmarks', nargs='+', metavar='FILE', help=f'{text}one, landmarks are detected)')
    text = (
        "MediaPipe's face_landmarker.task, which knows real faces, or none for the network in the package (default: "
        'the file, where avatar-jax assets --get face-landmarker has fetched it)'
    )
    add('--mediapipe', metavar='FILE|none', help=text)
    text = 'head model to fit: procedural (default), or the file of a BFM, FLAME or ICT-FaceKit model'
    add('--model', default='procedural', metavar='FILE|procedural', help=text)
    text = 'which of several faces: the largest (size, default), the N-th largest, or the one most similar to the face '
    add('--face', default='size', metavar='size|N|FILE', help=f'{text}in a picture')
    text = 'clip: one square for a whole shot; frame: a square that follows the face; auto (default): clip if the head '
    add('--crop', choices=('auto', 'frame', 'clip'), default='auto', help=f'{text}hardly leaves its place')
    add('--smooth', type=float, default=1.0, metavar='S', help='strength of temporal smoothing; 0: none (default: 1)')
    text = 'focal length, in units of the longer side of the picture (default: estimated)'
    add('--focal', type=float, metavar='F', help=text)
    text = 'normalisation of camera labels: orig (default, as released FFHQ generators), cor, simplify, or raw (as '
    modes = ('orig', 'cor', 'simplify', 'raw')
    add('--label-mode', choices=modes, default='orig', help=f'{text}procedural heads)')
    text = 'refine pose and expression on the pixels, and estimate light and albedo (slow: for photographs and short '
    add('--pixels', action='store_true', help=f'{text}clips)')
    text = "add the head's movement in the uncropped video to the camera labels"
    add('--translation', action='store_true', help=text)
    text = 'treat each folder as the frames of one video, not as separate pictures'
    add('--sequence', action='store_true', help=text)
    add('--fps', type=float, default=25.0, metavar='R', help='frame rate of --sequence (default: 25)')
    text = 'format of the crops (default: auto: png for pictures, jpg for videos)'
    add('--crops', choices=('auto', 'png', 'jpg', 'none'), default='auto', help=text)
    text = 'what is behind the head in the crops (default: keep)'
    add('--background', choices=('keep', 'white'), default='keep', help=text)
    add('--no-overlay', action='store_true', help='write no overlay')
    add('--no-masks', action='store_true', help='write no head masks')
    add('--weights', metavar='FILE', help='weights of the landmark network (default: those in the package)')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status (2 if an input was skipped)."""
    from avatar_jax.io.atomic import output_folder, write_json
    from avatar_jax.track.choose import Chooser
    from avatar_jax.track.inputs import find_inputs
    from avatar_jax.track.run import LISTED, TrackOptions, dataset_labels, landmark_files, summary, track_into
    from launch.batch import Batch

    options = TrackOptions(**{f.name: getattr(args, f.name) for f in fields(TrackOptions)})
    items = find_inputs(args.input, args.sequence, args.fps)
    files = landmark_files(items, args.landmarks, options)
    tracker = options.tracker()
    chooser = Chooser(args.face, tracker.network)
    out, batch = output_folder(args.out), Batch()
    settings = {k: v for k, v in vars(args).items() if k not in ('input', 'out')}

    def work(item: Input) -> dict[str, Any]:
        return track_into(out, item, tracker, chooser, options, files.get(item.name), settings, say)

    batch.run(items, work, name=lambda item: str(item.path))
    skipped = [{'input': name, 'reason': reason} for name, reason in batch.skipped]
    listed = [{k: report[k] for k in LISTED} for report in batch.results]
    write_json(out / 'report.json', {'inputs': listed, 'skipped': skipped})
    if batch.results and args.crops != 'none':
        write_json(out / 'dataset.json', {'labels': dataset_labels(out, [r['name'] for r in batch.results])})
    for report in batch.results:
        print(shown(f'{out / report["name"]}: {summary(report)}'))
    return batch.finish()
