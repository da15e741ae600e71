"""Measures an avatar method on people that it never saw: procedural heads with known truth, or recorded clips.

Every person is rebuilt from one picture (or --portraits), shown from other sides, driven by somebody else's motion, and
compared with the true pictures. Results are stored per person, so an interrupted run continues where it stopped, and a
person who fails is reported without stopping the others.

A method that learns from minutes of video gets the first part of each person's video and is compared on the last one,
in every way in which it can be driven, with the mean frame and with an avatar of one frame.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.methods.base import DEFAULT, methods
from avatar_jax.methods.options import add_build_options, given_options

VIDEO_FRAMES = 3000
# Options that say nothing about a video: (name, default).
_OF_PORTRAITS = (
    ('source_yaw', 0.0),
    ('steady', 0),
    ('portraits', 1),
    ('protocol', 'own'),
    ('driver', ''),
    ('portrait_frames', 'spread'),
    ('measured', None),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``avatar-jax evaluate``."""
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder for the results; an unfinished run continues'
    )
    parser.add_argument('--identities', type=int, default=16, metavar='N', help='number of people (default: 16)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='chooses the people (default: 0)')
    able = ', '.join(m.name for m in methods() if m.has_avatars)
    parser.add_argument('--method', metavar='NAME', help=f'{able}; default: that of --weights, else {DEFAULT}')
    parser.add_argument('--weights', metavar='FILE|NAME', help='weight file, or the name of one in the package')
    parser.add_argument(
        '--dataset',
        type=Path,
        metavar='DIR',
        help='a built data set, or processed clips (LMDB, docs/datasets.md), instead of fresh procedural heads',
    )
    parser.add_argument(
        '--split', default='test', metavar='NAME', help='split of --dataset, or of the procedural heads (default: test)'
    )
    parser.add_argument('--frames', type=int, default=24, metavar='N', help='driven frames per person (default: 24)')
    parser.add_argument(
        '--video-frames',
        type=int,
        default=VIDEO_FRAMES,
        metavar='N',
        help='length of the talking videos that are drawn for methods that learn from a video (default: %(default)s)',
    )
    parser.add_argument(
        '--source-yaw',
        type=float,
        default=0.0,
        metavar='DEGREES',
        help='turn the camera of the portraits to the side (procedural people; default: 0)',
    )
    parser.add_argument(
        '--steady',
        type=int,
        default=0,
        metavar='N',
        help="N frames more, one after the other: how much they change, beside the true pictures' changes (default: 0)",
    )
    parser.add_argument(
        '--portraits',
        type=int,
        default=1,
        metavar='N',
        help='pictures of each person that the avatar is made of, for methods that take several (default: 1)',
    )
    parser.add_argument(
        '--perception',
        action='append',
        default=[],
        metavar='NAME=FILE',
        help='weights of a frozen network (vgg19, arcface18, lpips_alex with alexnet, deep3d_recon, ...); may be '
        'repeated; one that neither the method nor a score uses is refused',
    )
    parser.add_argument(
        '--csim',
        default='auto',
        metavar='NAME',
        help='the network of the identity similarity, if several face recognition networks are given (default: the '
        'first of arcface18, arcface18_se, iresnet18 ... iresnet100, ir50, irse50 that is)',
    )
    parser.add_argument(
        '--protocol',
        choices=('own', 'cross', 'views'),
        default='own',
        help="with --dataset: own: a frame of a clip is driven by the rest of it; cross: by another person's clip; "
        'views: the first frontal frame is driven by what follows and seen by all cameras (default: own)',
    )
    parser.add_argument(
        '--driver',
        default='',
        metavar='CLIP',
        help='with --protocol cross: the clip that drives everybody (default: each person is driven by the next)',
    )
    parser.add_argument(
        '--portrait-frames',
        choices=('spread', 'paper'),
        default='spread',
        help='with --dataset, which frames --portraits takes: spread over the clip, or those of the paper on several '
        'portraits: first; first and last; first, middle, last; first, at 30 and 60 percent, last (default: spread)',
    )
    parser.add_argument(
        '--save-frames', action='store_true', help='also write the driven and the true frames as pictures, into frames/'
    )
    parser.add_argument(
        '--measured',
        type=Path,
        metavar='DIR',
        help='scores of what other programs measured on those pictures: DIR/NAME.npz for each person (landmarks, '
        'expression, pose, action units, embeddings, vertices, SyncNet features; docs/evaluation.md)',
    )
    parser.add_argument(
        '--share',
        metavar='K/N',
        help='only the K-th of N equal shares of the people, for several machines with one --out; the command without '
        'this option then writes the report of all',
    )
    parser.add_argument('--no-sheets', action='store_true', help='write no contact sheets')
    add_build_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates a method as the options say and prints the table; returns the exit status."""
    from avatar_jax.eval.cases import ProtocolConfig
    from avatar_jax.eval.estimators import Estimators, from_bank, looks_through
    from avatar_jax.eval.evaluation import subject
    from avatar_jax.faces.conventions import of_model
    from avatar_jax.io import atomic
    from avatar_jax.losses.networks import bank_of, refuse_unused
    from avatar_jax.methods.model import choose_model
    from data_pipelines.test_people import items_of

    out = atomic.output_folder(args.out)
    if args.identities < 1 or args.portraits < 1:
        raise UserError('--identities and --portraits: must be at least 1')
    model = choose_model(args.method, args.weights)
    config, owner = model.config, model.method
    if args.portraits > 1 and not owner.joins_portraits:
        able = ', '.join(m.name for m in methods() if m.joins_portraits)
        raise UserError(
            f'--portraits {args.portraits}: {owner.name} rebuilds a person from one picture; use --method {able}'
        )
    options = given_options(args, owner)
    bank = bank_of(args.perception, config.img_resolution)
    estimators, used = from_bank(bank, args.csim), owner.used_networks(config, bank)
    if used is not None:
        refuse_unused(args.perception, {*used, *looks_through(bank, args.csim)}, 'the evaluation')
    measured = subject(model, bank, **options)
    if owner.sources == ('video',):
        measured, items, data = of_videos(args, model, bank, options)
        return finish(args, measured, items, data, {'frames': args.frames}, Estimators(), out)
    if args.video_frames != VIDEO_FRAMES:
        raise UserError(f'--video-frames {args.video_frames}: {owner.title} learns from pictures; leave it out')
    protocol = ProtocolConfig(
        resolution=config.img_resolution,
        frames=args.frames,
        clip_frames=max(120, args.frames, args.steady),
        portraits=args.portraits,
        kind=args.protocol,
        driver=args.driver,
        rule=args.portrait_frames,
        source_yaw=args.source_yaw,
        steady=args.steady,
    )
    items, data = items_of(args.dataset, args.split, args.identities, args.seed, protocol, of_model(config))
    return finish(args, measured, items, data, asdict(protocol), estimators, out)


def of_videos(args: argparse.Namespace, model: Any, bank: Any, options: dict[str, Any]) -> tuple[Any, list, dict]:
    """What is measured, on whom, and that in words: of a method that learns from videos."""
    from dataclasses import replace

    from avatar_jax.eval.evaluation import subject
    from avatar_jax.eval.personal import check_baseline, measure_video
    from avatar_jax.methods.model import choose_model
    from data_pipelines.test_videos import video_items

    for name, default in _OF_PORTRAITS:
        if getattr(args, name) != default:
            flag = '--' + name.replace('_', '-')
            raise UserError(f'{flag}: says nothing about people who are learned from a video; leave it out')
    if args.frames < 2 or args.video_frames < 2:
        raise UserError('--frames and --video-frames: must be at least 2')
    items, data = video_items(args.dataset, args.identities, args.seed, args.frames, args.video_frames, args.out)
    one = choose_model(None, None)
    reason = check_baseline(model, one)
    if reason:
        print(f'avatar-jax: no comparison with an avatar of one frame: {reason}', file=sys.stderr)
        one = None

    def measure(case: Any, on_step: Any) -> Any:
        work = str(args.out / 'training' / case.name)
        case = replace(case, source=replace(case.source, work=work))
        found = measure_video(case, model, options, bank, lambda done, **_: on_step(done), one)
        shutil.rmtree(work, ignore_errors=True)  # measured: nothing is left to go on with
        return found

    return replace(subject(model, bank, **options), measure=measure), items, data


def finish(
    args: argparse.Namespace,
    measured: Any,
    items: list,
    data: dict[str, str],
    protocol: dict[str, Any],
    estimators: Any,
    out: Path,
) -> int:
    """Evaluates and prints the table; returns the exit status."""
    from avatar_jax.eval.evaluation import REPORT, TABLE, evaluate
    from launch.batch import share_of

    report = evaluate(
        out,
        measured,
        [items[i] for i in share_of(len(items), args.share)],
        estimators=estimators,
        seed=args.seed,
        settings={**data, 'protocol': protocol},
        title=f'{measured.name} on people that it never saw',
        sheets=not args.no_sheets,
        save_frames=args.save_frames,
        measured=args.measured,
    )
    print((out / TABLE).read_text())
    print(f'written: {out / TABLE}, {out / REPORT}, {out / "identities"}')
    if report['failed']:
        print(f'avatar-jax: {len(report["failed"])} of {len(items)} people failed', file=sys.stderr)
    return 2 if report['failed'] else 0
