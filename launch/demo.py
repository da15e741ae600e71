"""Shows the whole path on a head that no training has seen, offline and from the shipped weights.

One picture of a procedural head is inverted to an identity code; the avatar then speaks and turns with another
head's motion while the camera swings. Because the heads are made here, the true picture of every frame is known and
stands beside the avatar. Writes demo.mp4 (driver | avatar | truth), sheet.png and report.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

DEFAULT_WEIGHTS = 'heads128'
PANEL = 256  # pixels of one panel in the video
SWING = np.deg2rad(20.0)  # of the camera, to both sides, once per clip
BATCH = 5  # frames rendered per call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument('--out', type=Path, default=Path('demo'), help='folder for video, sheet and report')
    parser.add_argument('--seed', type=int, default=0, help='which people meet; any number gives unseen ones')
    parser.add_argument('--frames', type=int, default=75, help='length of the video at 25 frames per second')
    parser.add_argument('--steps', type=int, default=None, help='inversion steps per stage (default: as configured)')
    parser.add_argument('--weights', default=None, help='weight file (default: the shipped one)')


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration; returns the exit status."""
    report = demo(args.out, seed=args.seed, frames=args.frames, steps=args.steps, weights=args.weights)
    inversion, driven = report['inversion'], report['driven']
    print(
        f'source view rebuilt at {inversion["psnr_in_mask"]:.1f} dB in the head mask; driven frames '
        f'{driven["psnr_head"]:.1f} dB against the truth (mouth and eyes {driven["psnr_mouth_eyes"]:.1f} dB, '
        f'{driven["psnr_mouth_eyes_still"]:.1f} dB for a face that keeps the source expression)'
    )
    print(f'{args.out / "demo.mp4"}: driver | avatar | truth, {report["frames"]} frames')
    return 0


def demo(
    out: str | Path, *, seed: int = 0, frames: int = 75, steps: int | None = None, weights: str | None = None
) -> dict[str, Any]:
    """The demonstration as a function.

    Args:
      out: folder, made if missing.
      seed: decides both people, their light and the motion.
      frames: length of the video.
      steps: steps of each inversion stage; None keeps the configured number.
      weights: a weight file; None is the shipped one.

    Returns:
      the report that is also written as report.json.

    Raises:
      UserError: bad options, weights that cannot be read, or a folder that cannot be written.
    """
    import jax

    from avatar_jax.eval import faces, image
    from avatar_jax.io import atomic
    from avatar_jax.io.provenance import Provenance
    from avatar_jax.io.weights import shipped
    from avatar_jax.methods.otavatar import invert, model
    from avatar_jax.progress import Progress, activity

    if frames < 2:
        raise UserError(f'--frames {frames}: give at least 2')
    if seed < 0:
        raise UserError(f'--seed {seed}: must not be negative')
    if steps is not None and steps < 1:
        raise UserError(f'--steps {steps}: give at least 1')
    out = atomic.output_folder(out)
    began = time.monotonic()
    variables, config, digest, _ = model.load_model(shipped(DEFAULT_WEIGHTS) if weights is None else weights)
    if config.basis != 'procedural':
        raise UserError(
            f'{weights}: is driven by the basis {config.basis!r}; the demo needs a model of procedural heads'
        )
    if steps is not None:
        sr_steps = min(steps, config.method.inversion.sr_steps)
        config = model.ModelConfig(
            config.generator,
            config.method.replace(inversion__w_steps=steps, inversion__wplus_steps=steps, inversion__sr_steps=sr_steps),
            config.basis,
            config.label_mode,
        )
    size = config.generator.img_resolution

    with activity('meeting two people'):
        scene = make_scene(seed, frames, size)
    timing = {'scene': time.monotonic() - began}

    bank = load_bank(config)
    began = time.monotonic()
    total = invert.num_steps(config)
    with Progress(total, 'inverting one picture (compiles first)') as bar:
        state = {'done': 0}

        def on_step(done: int, loss: float) -> None:
            bar.update(done - state['done'], loss=loss)
            state['done'] = done

        found = invert.invert_people(variables, config, [scene['portrait']], bank, weights=digest, on_step=on_step)[0]
    timing['inversion'] = time.monotonic() - began

    began = time.monotonic()
    basis = model.controller_basis(variables, config)
    animate = jax.jit(lambda w, c: model.animate(variables, config, found.avatar, w, c, basis=basis))
    pictures, still = [], []
    with Progress(2 * frames, 'animating', unit='frame') as bar:
        for start in range(0, frames, BATCH):
            index = np.minimum(np.arange(start, start + BATCH), frames - 1)  # one shape, one compilation
            for rows, kind in ((pictures, 'windows'), (still, 'still_windows')):
                rgb = np.asarray(animate(scene[kind][index], scene['labels'][index]).rgb)
                rows += list(rgb[: min(BATCH, frames - start)])
                bar.update(min(BATCH, frames - start))
    pictures, still = np.stack(pictures), np.stack(still)
    timing['animation'] = time.monotonic() - began

    truth, mask, marks = scene['truth'], scene['mask'], scene['landmarks']
    box = np.asarray(faces.region_boxes(marks, size)['mouth_eyes'])
    unit = image.to_unit

    def score(rgb, **options):
        return float(np.mean(image.psnr(unit(rgb), unit(truth), **options)))

    provenance = Provenance(synthetic=True, weights=digest, seed=seed, command='demo')
    report = {
        'inversion': invert.report(found),
        'driven': {
            'psnr_head': score(pictures, mask=mask),
            'psnr_mouth_eyes': score(pictures, mask=box),
            'psnr_mouth_eyes_still': score(still, mask=box),
        },
        'frames': frames,
        'people': scene['people'],
        'networks': bank.report(),
        'seconds': {k: round(v, 1) for k, v in timing.items()},
        'provenance': provenance.as_dict(),
    }
    with activity('writing'):
        write_video(out / 'demo.mp4', scene, pictures, provenance)
        write_sheet(out / 'sheet.png', scene, found, pictures, provenance)
        atomic.write_json(out / 'report.json', report)
    return report


def load_bank(config: Any) -> Any:
    """The networks that the losses of ``config`` can look through here: the shipped stand-ins, if there are any."""
    from launch.perception import default_bank

    return default_bank(config.generator.img_resolution)


def make_scene(seed: int, frames: int, size: int) -> dict[str, Any]:
    """Two unseen people: the first one's portrait, the second one's motion under a swinging camera, and the truth."""
    from avatar_jax.eval.cases import ProtocolConfig, keep_expression, source_frame
    from avatar_jax.faces.windows import RADIUS, windows
    from avatar_jax.procedural import EXPRESSION_NAMES, render_head
    from avatar_jax.types import Camera, Portrait
    from data_pipelines.cameras import pose_labels, seen_from
    from data_pipelines.clips import evaluation_clips

    person, driver = evaluation_clips(2, seed, 'test', num_frames=max(frames, 2 * RADIUS))
    channels = [EXPRESSION_NAMES.index(n) for n in ('blink_l', 'blink_r')]
    first = source_frame(person.angle[:, 1], person.expression[:, channels].max(-1), ProtocolConfig())
    head = person.render(first, resolution=size)
    motion = person.motion()
    portrait = Portrait(
        image=np.float32(2 * head.rgb - 1),
        camera=Camera.from_label(person.labels()[first]),
        expression=motion.expression[first],
        angle=motion.angle[first],
        translation=motion.translation[first],
        landmarks=head.landmarks,
        mask=head.mask,
        basis=motion.basis,
        source=f'procedural head {person.name}',
    )
    swing = SWING * np.sin(2 * np.pi * np.arange(frames) / frames)
    poses = [seen_from(driver.angle[t], driver.translation[t], swing[t]) for t in range(frames)]
    angle, translation = (np.float32(np.stack(x)) for x in zip(*poses, strict=True))
    labels = pose_labels(angle, translation)
    rows = np.concatenate([driver.expression[:frames], angle, translation], 1)

    def show(who):
        return [
            render_head(who.identity, e, c, who.gamma, resolution=size, supersample=2)
            for e, c in zip(driver.expression[:frames], labels, strict=True)
        ]

    true, acting = show(person), show(driver)
    driven = windows(rows)
    source_rows = np.repeat(person.motion_rows()[first][None], 2 * RADIUS + 1, 0)
    return {
        'portrait': portrait,
        'windows': driven,
        'still_windows': keep_expression(driven, source_rows),
        'labels': labels,
        'truth': np.float32(np.stack([2 * h.rgb - 1 for h in true])),
        'driver': np.float32(np.stack([2 * h.rgb - 1 for h in acting])),
        'mask': np.stack([h.mask for h in true]),
        'landmarks': np.stack([h.landmarks for h in true]),
        'fps': driver.options.fps,
        'people': {'source': f'{person.name}, frame {first}', 'driver': driver.name, 'seed': seed},
    }


def _enlarge(pictures: np.ndarray) -> np.ndarray:
    """[..., H, W, 3] in [-1, 1] -> uint8 panels of `PANEL` pixels."""
    from PIL import Image

    from avatar_jax.io.images import to_uint8

    return np.stack(
        [np.asarray(Image.fromarray(p).resize((PANEL, PANEL), Image.Resampling.BICUBIC)) for p in to_uint8(pictures)]
    )


def write_video(path: Path, scene: dict, pictures: np.ndarray, provenance: Any) -> None:
    """driver | avatar | truth."""
    from avatar_jax.io.video import write_video as write

    rows = zip(scene['driver'], pictures, scene['truth'], strict=True)
    write(path, (np.concatenate(list(_enlarge(np.stack(row))), 1) for row in rows), scene['fps'], provenance=provenance)


def write_sheet(path: Path, scene: dict, found: Any, pictures: np.ndarray, provenance: Any) -> None:
    """First row: the only picture and its reconstruction; then driver, avatar and truth at six moments."""
    from avatar_jax.io.images import grid, write_png

    columns = min(6, len(pictures))
    chosen = np.linspace(0, len(pictures) - 1, columns).round().astype(int)
    first = [np.asarray(scene['portrait'].image), np.asarray(found.image)]
    first = first[:columns] + [np.ones_like(first[0])] * (columns - len(first))
    cells = np.concatenate([np.stack(first), scene['driver'][chosen], pictures[chosen], scene['truth'][chosen]])
    write_png(path, grid(_enlarge(cells), columns), provenance)
