"""Trains the network that reads expression numbers from the landmark fit, and writes a weight file and a report.

    python -m launch.train_expression_net --out DIR [--data DIR] [--clips N] [--rendered N] [--steps N] [--resume]

Speech and independent expressions of procedural people are projected to landmarks through random lenses, with errors
from none to those of a network, and fitted as ``avatar-jax track`` fits them; `--rendered` clips are rendered and read
by the landmark network instead (slow). Fitted clips are kept in `--data`. Writes ``expression_net.safetensors`` and
``report.json`` with figures on the tenths of the clips that are held out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

SPEECH, RENDERED = 100_000, 200_000  # first seeds; the clips of tests and figures have others
_MOTIONS = 300_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--out', type=Path, required=True, help='folder for weights, report, log and checkpoints')
    parser.add_argument('--data', type=Path, help='folder for the fitted clips (default: data in --out)')
    parser.add_argument('--clips', type=int, default=420, help='clips of simulated landmarks (default: 420)')
    parser.add_argument('--rendered', type=int, default=20, help='clips that are rendered and read (default: 20)')
    parser.add_argument(
        '--motions', type=int, default=2000, help='motions for training, disturbed as fits are (default: 2000)'
    )
    parser.add_argument('--steps', type=int, default=9000, help='training steps (default: 9000)')
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    parser.add_argument('--resume', action='store_true', help='continue the run in --out')


def independent(seed: int, frames: int, every: float = 8.0) -> np.ndarray:
    """[T,64]: independent expressions, one every so many frames, with smooth changes between them."""
    from avatar_jax.procedural import motion
    from avatar_jax.procedural.random_expressions import random_expressions
    from avatar_jax.procedural.streams import Stream

    at = np.arange(frames) / every
    first = at.astype(int)
    poses = random_expressions(Stream(seed, 'reader'), first[-1] + 2)
    share = motion.smoothstep(1.5 * (at - first))[:, None]
    return poses[first] * (1 - share) + poses[first + 1] * share


def simulated(index: int, basis: Any) -> dict[str, Any]:
    """One clip of simulated landmarks, fitted: arrays of ``FittedClip``."""
    from avatar_jax.faces.landmark_layouts import FILE_SIGMA
    from avatar_jax.procedural import motion, sample_identity
    from avatar_jax.track.camera import from_translation
    from avatar_jax.track.clip import TrackConfig, project_clip, track_clip
    from avatar_jax.track.fit import FitConfig
    from avatar_jax.track.observe import Observed

    rng = np.random.default_rng([11, index])
    frames, start = int(rng.integers(60, 160)), int(rng.integers(0, 100))
    arrays = motion.speech_arrays(SPEECH + index, start + frames)
    truth, angle, translation = (arrays[k][start:].astype(np.float64) for k in ('expression', 'angle', 'translation'))
    if index % 5 == 4:
        truth = independent(SPEECH + index, frames)
    identity = rng.normal(size=80) if index % 3 == 0 else sample_identity(SPEECH + index, 'train')[:80]
    focal, side = np.exp(rng.uniform(np.log(1.0), np.log(4.5))), int(rng.choice([256, 512, 1024]))
    quality = index % 4  # exact, noise, and twice landmarks that err like a network's
    network = rng.uniform(0.01, 0.05) if quality > 1 else 0.0
    noise = rng.uniform(0, 0.004) * side if quality == 1 else 0.0
    points = np.asarray(basis.mean) + np.tensordot(identity, np.asarray(basis.identity), 1)
    points = points + np.tensordot(truth, np.asarray(basis.expression), 1)
    pose = from_translation(angle, translation)
    pose[:, 5] += np.log(focal / 2.1)  # as large in the picture, whatever the lens
    seen = project_clip(points, pose, focal * side, np.full(2, side / 2))
    extent = 0.5 * float(np.ptp(seen, axis=1).max(-1).mean())
    slow = _slow_noise(rng, frames)
    seen = (
        seen
        + noise * rng.normal(size=seen.shape)
        + network * extent * (0.6 * rng.normal(size=(1, 68, 2)) + 0.5 * slow + 0.4 * rng.normal(size=seen.shape))
    )
    smooth = float(rng.choice([0.0, 1.0, 1.0, 1.0, 2.0]))
    observed = Observed(
        np.arange(frames) / 25,
        np.ones(frames, bool),
        seen,
        np.full((frames, 68), extent * max(FILE_SIGMA, network)),
        np.full((frames, 64), np.nan),
        np.full((frames, 3), np.nan),
        np.ones(frames),
        np.zeros(frames, np.int32),
        (side, side),
        'simulated',
        [],
        [1.0],
    )
    track = track_clip(
        observed, basis, TrackConfig(FitConfig(smooth=smooth), smooth, label_mode='raw', read_numbers=False)
    )
    kind = f'{"network" if network else "exact"} {"smooth" if smooth else "rough"}'
    return {'fitted': track.expression, 'truth': truth, 'angle': track.angle, 'kind': kind}


def _slow_noise(rng: np.random.Generator, frames: int) -> np.ndarray:
    """[T,68,2] of variance 1, correlated over a quarter of a second."""
    kernel = np.exp(-(np.arange(-10, 11) ** 2) / 18.0)
    kernel /= np.sqrt((kernel**2).sum())
    noise = rng.normal(size=(frames + 20, 68, 2))
    return sum(k * noise[i : i + frames] for i, k in enumerate(kernel))


def rendered(index: int, basis: Any, frames: int = 60) -> dict[str, Any]:
    """One rendered clip, read by the landmark network and fitted."""
    from avatar_jax.track.choose import Chooser
    from avatar_jax.track.clip import TrackConfig, track_clip
    from avatar_jax.track.network import FaceReader
    from avatar_jax.track.observe import observe
    from launch.evaluate_face_net import render_clip

    rng, reader = np.random.default_rng([12, index]), FaceReader()
    clip = render_clip(RENDERED + index, 'train', frames, int(rng.integers(190, 330)), start=int(rng.integers(0, 200)))
    observed = observe(clip.frames, reader, Chooser())
    track = track_clip(observed, basis, TrackConfig(label_mode='raw', read_numbers=False), reader.calibration)
    return {'fitted': track.expression, 'truth': clip.expression, 'angle': track.angle, 'kind': 'rendered'}


def fitted_clips(folder: Path, clips: int, rendered_clips: int) -> list[Any]:
    """All fitted clips; those that are in ``folder`` already are read."""
    from avatar_jax.bundled.expression_net import FittedClip
    from avatar_jax.io.atomic import atomic_path
    from avatar_jax.procedural import ProceduralHead
    from avatar_jax.progress import Progress
    from avatar_jax.track.basis import landmark_basis

    basis, found = landmark_basis(ProceduralHead()), []
    folder.mkdir(parents=True, exist_ok=True)
    work = [('simulated', simulated, i) for i in range(clips)] + [
        ('rendered', rendered, i) for i in range(rendered_clips)
    ]
    with Progress(len(work), 'fitted clips', unit='clip') as bar:
        for name, make, index in work:
            path = folder / f'{name}_{index:05d}.npz'
            if not path.exists():
                with atomic_path(path) as part, open(part, 'wb') as file:
                    np.savez(file, **make(index, basis))
            with np.load(path) as file:
                found.append(FittedClip(*(file[k] for k in ('fitted', 'truth', 'angle')), str(file['kind'])))
            bar.update()
    return found


def motions(count: int) -> dict[str, list[Any]]:
    """``count`` spoken motions and a sixth as many of independent expressions."""
    from avatar_jax.bundled.expression_net import LENGTH
    from avatar_jax.procedural import motion

    spoken = [(a['expression'], a['angle']) for a in (motion.speech_arrays(_MOTIONS + k, LENGTH) for k in range(count))]
    rng = np.random.default_rng(13)
    unspoken = [
        (independent(_MOTIONS + k, LENGTH, rng.uniform(6, 14)), spoken[k][1]) for k in range(max(1, count // 6))
    ]
    return {'spoken': spoken, 'unspoken': unspoken}


def train(config, moving: dict, clips: list, out: Path, *, resume: bool = False, quiet: bool = False) -> dict:
    """Trains, tests, writes ``expression_net.safetensors`` and ``report.json`` into ``out``; returns the report."""
    import jax

    from avatar_jax.bundled import expression_net
    from avatar_jax.io.atomic import write_json
    from avatar_jax.io.weights import save_weights
    from avatar_jax.models.perception.expression_net import EXPRESSION_NET_METHOD
    from avatar_jax.train.loop import LoopConfig, fit

    began = time.monotonic()
    held_out = [c for i, c in enumerate(clips) if i % 10 in (3, 4, 6)]
    used = [c for i, c in enumerate(clips) if i % 10 not in (3, 4, 6)]
    state = fit(
        expression_net.init_state(config, used),
        expression_net.make_step(config),
        lambda start: expression_net.batches(config, moving, used, start),
        folder=out,
        loop=LoopConfig(config.steps, log_every=50, sample_every=0, checkpoint_every=max(1, min(500, config.steps))),
        config=config,
        resume=resume,
        label='expression network',
        quiet=quiet,
    )
    variables = jax.tree.map(np.asarray, {'params': state.groups['net'].params, 'constants': state.extra})
    figures, covariance = expression_net.evaluate(variables, config, held_out)
    report = {
        'held_out': figures,
        'trained_on': {'fitted clips': len(used), 'motions': sum(map(len, moving.values()))},
        'steps': config.steps,
        'batch': config.batch,
        'seed': config.seed,
        'seconds_of_this_run': round(time.monotonic() - began, 1),
    }
    report['sha256'] = save_weights(
        out / 'expression_net.safetensors',
        {**variables, 'calibration': {'covariance': covariance}},
        method=EXPRESSION_NET_METHOD,
        config=config.net,
        provenance={'command': 'launch.train_expression_net', **report},
        storage='float16',
    )
    write_json(out / 'report.json', report)
    return report


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled.expression_net import ExpressionTrainConfig

    if args.clips < 20 or args.motions < 1 or args.rendered < 0:
        raise UserError('--clips must be at least 20, --motions at least 1, --rendered not negative')
    clips = fitted_clips(args.data or args.out / 'data', args.clips, args.rendered)
    report = train(
        ExpressionTrainConfig(steps=args.steps, seed=args.seed),
        motions(args.motions),
        clips,
        args.out,
        resume=args.resume,
    )
    for kind, values in report['held_out'].items():
        print(f'{kind}: {values}')
    print(args.out / 'expression_net.safetensors')
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m launch.train_expression_net``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
