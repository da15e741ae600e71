"""Makes avatars from portraits: aligned frames or raw photographs, one or many at once.

Methods that encode (gpavatar) make one avatar of all pictures, in a folder of the first one's name. With the others,
for each picture a folder appears in --out with the avatar, a picture (portrait | reconstruction | side views) and a
report; report.json in --out lists them all. A picture that cannot be used is reported and skipped. The quality of an
avatar is bounded by what the weights have seen: a model of procedural heads makes a procedural likeness.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

SIDE_VIEWS = np.deg2rad([-30.0, 30.0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        '--image',
        nargs='+',
        required=True,
        metavar='FILE',
        help='portraits, videos (their best frame is taken), or folders of avatar-jax track',
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the avatars')
    parser.add_argument(
        '--method',
        metavar='NAME',
        help='otavatar (one avatar for each portrait, the default) or gpavatar '
        '(one avatar of all portraits, which show one person)',
    )
    parser.add_argument('--weights', metavar='FILE|NAME', help='weight file, or a shipped one')
    parser.add_argument('--steps', type=int, metavar='N', help='steps of each stage, W and W+ (default: as configured)')
    parser.add_argument('--space', choices=('w', 'w+'), default='w+', help="'w' leaves out the W+ stage")
    parser.add_argument('--early-stop', action='store_true', help='end for each person when the loss no longer falls')
    parser.add_argument(
        '--pti',
        type=int,
        default=0,
        metavar='N',
        help='then tune a copy of the generator to the person for N steps (bigger avatar files)',
    )
    parser.add_argument(
        '--motion',
        nargs='+',
        metavar='FILE',
        help="motion files with the portraits' own coefficients (first frame), one per image or one for all (default: "
        'what is measured; of --aligned pictures a neutral face in the pose that was found)',
    )
    parser.add_argument('--aligned', action='store_true', help='the pictures are aligned crops already')
    parser.add_argument(
        '--landmarks',
        nargs='+',
        metavar='FILE',
        help="5, 68, 98 or 478 points, one file per image, or 'network' (default: a file beside the picture, else the "
        'network; of --aligned pictures without a file only the camera is measured, with a simple detector)',
    )
    parser.add_argument(
        '--face',
        metavar='size|N|FILE',
        help='which face to take: the largest, the N-th largest, or the one most like a picture (default: the largest '
        'if it is clearly so)',
    )
    parser.add_argument('--background', choices=('white', 'black', 'keep'), default='white', help='behind the head')
    parser.add_argument('--perception', nargs='+', default=(), metavar='NAME=FILE', help='networks for the losses')
    parser.add_argument('--jitter', action='store_true', help='move samples along the rays at random, as in training')
    parser.add_argument('--group', type=int, default=4, metavar='N', help='people inverted side by side')
    parser.add_argument('--seed', type=int, default=0, help='of the jitter')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status (2 if a picture was skipped)."""
    from avatar_jax.io.atomic import output_folder
    from avatar_jax.methods.registry import choose_model, method
    from launch.batch import Batch
    from launch.portraits import read_portrait

    if args.landmarks == ['network']:
        args.landmarks *= len(args.image)
    for name in ('landmarks', 'motion'):
        files = getattr(args, name)
        if files and len(files) not in ({len(args.image), 1} if name == 'motion' else {len(args.image)}):
            raise UserError(f'--{name}: {len(files)} files for {len(args.image)} images; give one for each')
    if args.group < 1 or args.pti < 0 or args.seed < 0 or (args.steps is not None and args.steps < 1):
        raise UserError('--group and --steps must be at least 1, --pti and --seed not negative')
    names = unique_names(args.image)
    out = output_folder(args.out)
    model = choose_model(args.method, args.weights)
    if getattr(method(model.method), 'ONE_PASS', False):
        from launch.encode import encode

        return encode(args, model, out)
    config = adjusted(model.config, args.steps, args.space, args.early_stop)
    bank = perception_bank(args.perception, config)
    motions = own_motions(args.motion, len(args.image), config.basis)
    size = config.generator.img_resolution

    batch = Batch()

    def ready(i: int) -> tuple[int, Any, Any]:
        return i, *read_portrait(args, i, config, size, motions[i])

    batch.run(range(len(args.image)), ready, name=lambda i: args.image[i])
    people = batch.results
    reports = []
    for group in groups(people, args.group):
        reports += invert_group(model, config, bank, group, names, out, args)
    reports.sort(key=lambda r: names.index(r['name']))
    write_summary(out, model, bank, config, reports, batch.skipped, args)
    for r in reports:
        print(f'{out / r["name"]}: {r["psnr"]:.1f} dB to the portrait, alignment {r["alignment"]}')
    return batch.finish()


def adjusted(config: Any, steps: int | None, space: str, early_stop: bool) -> Any:
    """The model's configuration with other inversion settings."""
    import dataclasses

    inversion = config.method.inversion
    changes: dict[str, Any] = {'early_stop': early_stop or inversion.early_stop}
    if steps is not None:
        changes |= {'w_steps': steps, 'wplus_steps': steps}
    if space == 'w':
        changes |= {'wplus_steps': 0, 'w_steps': steps or inversion.w_steps or inversion.wplus_steps}
    inversion = dataclasses.replace(inversion, **changes)
    return dataclasses.replace(config, method=dataclasses.replace(config.method, inversion=inversion))


def unique_names(images: list[str]) -> list[str]:
    """A folder name for each picture: its stem, numbered where stems repeat."""
    names: list[str] = []
    for image in images:
        stem, number = Path(image).stem or 'portrait', 2
        name = stem
        while name in names:
            name, number = f'{stem}-{number}', number + 1
        names.append(name)
    return names


def groups(people: list[tuple[int, Any, Any]], size: int) -> list[list]:
    """Groups of at most ``size`` people of whom the same was measured: what one of a group lacks is used of none."""
    parts = ('landmarks', 'expression', 'angle', 'translation', 'shape', 'mask')
    alike: dict[tuple[bool, ...], list] = {}
    for person in people:
        alike.setdefault(tuple(getattr(person[2], name) is not None for name in parts), []).append(person)
    return [kind[i : i + size] for kind in alike.values() for i in range(0, len(kind), size)]


def own_motions(files: list[str] | None, count: int, basis: str) -> list[Any]:
    """The motion file of each portrait, or None."""
    from avatar_jax.io.motion import load_motion

    if not files:
        return [None] * count
    motions = [load_motion(f, basis=basis) for f in files]
    return motions if len(motions) == count else motions * count


def perception_bank(options: tuple[str, ...] | list[str], config: Any, stand_ins: bool = True) -> Any:
    """The networks of the losses: the shipped stand-ins (unless switched off), and what NAME=FILE options add."""
    from avatar_jax.losses.perception import PerceptionBank
    from launch.perception import default_bank

    files = {}
    for option in options:
        name, equals, path = option.partition('=')
        if not equals or not path:
            raise UserError(f'--perception {option}: give NAME=FILE, e.g. vgg19=vgg19.npz')
        files[name] = path
    base = default_bank(config.generator.img_resolution) if stand_ins else PerceptionBank()
    return PerceptionBank.load(files, base)


def invert_group(
    model: Any, config: Any, bank: Any, group: list, names: list[str], out: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Inverts some people side by side and writes their folders."""
    import jax

    from avatar_jax.methods.otavatar import invert
    from avatar_jax.progress import Progress, activity

    key = jax.random.key(args.seed) if args.jitter else None
    title = group[0][1].path.name if len(group) == 1 else f'{len(group)} portraits'
    with Progress(invert.num_steps(config), f'inverting {title} (compiles first)') as bar:
        shown = 0

        def on_step(done: int, loss: float) -> None:
            nonlocal shown
            bar.update(done - shown, loss=loss)
            shown = done

        found = invert.invert_people(
            model.variables, config, [p for _, _, p in group], bank, key, weights=model.sha256, on_step=on_step
        )
    reports = []
    for (i, prepared, portrait), inverted in zip(group, found, strict=True):
        tuned = None
        if args.pti:
            with activity(f'tuning the generator to {prepared.path.name}'):
                before = float(inverted.psnr)
                inverted, curve = invert.finetune_generator(
                    model.variables, config, portrait, inverted, bank, key, steps=args.pti
                )
                tuned = {'steps': args.pti, 'psnr_before': before, 'loss': np.asarray(curve).tolist()}
        reports.append(
            write_person(model, config, bank, out / names[i], names[i], prepared, portrait, inverted, tuned, args)
        )
    return reports


def write_person(
    model: Any,
    config: Any,
    bank: Any,
    folder: Path,
    name: str,
    prepared: Any,
    portrait: Any,
    inverted: Any,
    tuned: dict | None,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Writes one avatar's folder, completely or not at all; returns its report."""
    from avatar_jax.faces.camera_labels import yaw_label
    from avatar_jax.io.atomic import atomic_folder, write_json
    from avatar_jax.io.images import grid, write_png
    from avatar_jax.io.provenance import Provenance
    from avatar_jax.methods.otavatar import invert
    from avatar_jax.methods.otavatar.model import source_windows
    from avatar_jax.methods.registry import save_avatar
    from launch.portraits import expression_source

    provenance = Provenance(
        synthetic=True,
        weights=model.sha256,
        seed=args.seed,
        command='invert',
        sources={prepared.path.name: prepared.sha256},
    )
    label = np.asarray(portrait.camera.label, np.float32)
    labels = np.stack([np.asarray(yaw_label(label, angle), np.float32) for angle in SIDE_VIEWS])
    window = np.broadcast_to(np.asarray(source_windows(portrait)), (len(labels), 27, 70))
    sides = np.asarray(model.animate(inverted.avatar, window, labels).rgb)
    pictures = np.concatenate([np.asarray(portrait.image)[None], np.asarray(inverted.image)[None], sides])
    kind = prepared.quality.grade if prepared.quality is not None else 'as given'
    report = {
        'name': name,
        'psnr': float(inverted.psnr),
        'alignment': kind,
        'portrait': prepared.report(),
        'source_expression': expression_source(prepared, portrait, args.motion),
        'inversion': invert.report(inverted),
        'generator_tuning': tuned,
        'networks': bank.report(config.method.loss.perceptual_network, config.method.loss.identity_network),
        'limit': 'the likeness is bounded by the prior: what the weights have not seen they cannot show',
        'provenance': provenance.as_dict(),
    }
    with atomic_folder(folder) as temporary:
        save_avatar(temporary, inverted.avatar, provenance.as_dict())
        write_png(temporary / 'reconstruction.png', grid(pictures, 4), provenance)
        write_json(temporary / 'report.json', report)
    return report


def write_summary(
    out: Path,
    model: Any,
    bank: Any,
    config: Any,
    reports: list[dict],
    skipped: list[tuple[str, str]],
    args: argparse.Namespace,
) -> None:
    """report.json of the whole command."""
    from avatar_jax.configure import to_plain
    from avatar_jax.io.atomic import write_json
    from avatar_jax.io.provenance import Provenance

    write_json(
        out / 'report.json',
        {
            'avatars': [{k: r[k] for k in ('name', 'psnr', 'alignment')} for r in reports],
            'skipped': [{'image': name, 'reason': reason} for name, reason in skipped],
            'weights': {'source': model.source, 'sha256': model.sha256},
            'inversion': to_plain(config.method.inversion),
            'networks': bank.report(config.method.loss.perceptual_network, config.method.loss.identity_network),
            'provenance': Provenance(True, model.sha256, args.seed, 'invert').as_dict(),
        },
    )
