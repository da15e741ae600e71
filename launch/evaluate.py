"""Measures an avatar method on people that it never saw: procedural heads with known truth, or recorded clips.

Every person is rebuilt from one picture (or --portraits), shown from other sides, driven by somebody else's motion, and
compared with the true pictures. Results are stored per person, so an interrupted run continues where it stopped, and a
person who fails is reported without stopping the others.

A method that learns from minutes of video gets the first part of each person's video and is compared on the last one,
in every way in which it can be driven, with the mean frame and with an avatar of one frame.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from avatar_jax.eval.options import VIDEO_FRAMES, ProtocolConfig
from avatar_jax.methods.options import add_build_options, given_options
from avatar_jax.options import add_options, from_arguments
from launch.common import add_model, add_perception, say
from launch.program import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``avatar-jax evaluate``."""
    add = parser.add_argument
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the results; an unfinished run continues')
    add('--identities', type=int, default=16, metavar='N', help='number of people (default: 16)')
    add('--seed', type=int, default=0, metavar='N', help='chooses the people (default: 0)')
    add_model(parser)
    text = 'a built data set, or processed clips (LMDB, docs/datasets.md), instead of fresh procedural heads'
    add('--dataset', type=Path, metavar='DIR', help=text)
    text = 'split of --dataset, or of the procedural heads (default: test)'
    add('--split', default='test', metavar='NAME', help=text)
    add_options(parser, ProtocolConfig)
    text = 'frames of the talking videos that are drawn for methods that learn from a video (default: %(default)s)'
    add('--video-frames', type=int, default=VIDEO_FRAMES, metavar='N', help=text)
    text = 'weights of frozen networks for losses and scores (vgg19, arcface18, lpips_alex with alexnet, deep3d_recon, '
    add_perception(parser, f'{text}...; default: stand-ins)')
    text = (
        'the network of the identity similarity, if several face recognition networks are given (default: the first '
        'of arcface18, arcface18_se, iresnet18 ... iresnet100, ir50, irse50, dlib_face that is given)'
    )
    add('--csim', default='auto', metavar='NAME', help=text)
    add('--save-frames', action='store_true', help='also write the driven and the true frames into frames/')
    text = (
        'scores of what other programs measured on those pictures: DIR/NAME.npz for each person (landmarks, '
        'expression, pose, action units, embeddings, vertices, SyncNet features; docs/evaluation.md)'
    )
    add('--measured', type=Path, metavar='DIR', help=text)
    text = (
        'only the K-th of N equal shares of the people, for several machines or processes with one --out; each writes '
        'report_K_of_N, and the command without this option then the report of all'
    )
    add('--share', metavar='K/N', help=text)
    add('--no-sheets', action='store_true', help='write no contact sheets')
    add_build_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates a method as the options say and prints the table; returns the exit status."""
    from avatar_jax.eval.estimators import chosen_estimators
    from avatar_jax.eval.evaluation import REPORT, TABLE, evaluate
    from avatar_jax.eval.personal import subject_of
    from avatar_jax.io import atomic
    from avatar_jax.losses.networks import bank_of
    from avatar_jax.methods.model import choose_model
    from data_pipelines.test_people import people_for
    from launch.batch import part_of, share_of

    out = atomic.output_folder(args.out)
    at_least(args, identities=1, portraits=1, seed=0, video_frames=2)
    model = choose_model(args.method, args.weights)
    size, length = model.config.img_resolution, max(ProtocolConfig.clip_frames, args.frames, args.steady)
    protocol = from_arguments(ProtocolConfig, args, resolution=size, clip_frames=length)
    protocol.check_method(model.method)
    options, bank, part = given_options(args, model.method), bank_of(args.perception, size), part_of(args.share)
    estimators = chosen_estimators(bank, args.csim, args.perception, model)
    which = (args.dataset, args.split, args.identities, args.seed, args.video_frames)
    items, data = people_for(model, protocol, *which, out)
    measured = subject_of(model, options, bank, protocol, args.measured, out, say, estimators)
    report = evaluate(
        out,
        measured,
        [items[i] for i in share_of(len(items), args.share)],
        estimators=estimators,
        seed=args.seed,
        settings={**data, 'protocol': asdict(protocol)},
        title=f'{measured.name} on people that it never saw',
        sheets=not args.no_sheets,
        save_frames=args.save_frames,
        measured=args.measured,
        part=part,
    )
    table, summary = (out / name.replace('report', f'report{part}') for name in (TABLE, REPORT))
    print(table.read_text())
    print(f'written: {table}, {summary}, {out / "identities"}')
    if report['failed']:
        say(f'{len(report["failed"])} of {len(report["failed"]) + len(report["identities"])} people failed')
    return 2 if report['failed'] else 0
