"""Trains the prior (generator, mapping, controller) on procedural heads by regression and writes a weight file.

    python -m launch.train_prior --data DIR --val DIR --out DIR [--steps N] [--frame-steps N] [--seed N]

The run resumes from its last checkpoint. See `avatar_jax.bundled.prior` for what is learned and why.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.bundled import prior
from avatar_jax.errors import UserError
from avatar_jax.train.checkpoints import Checkpoints, config_dict
from avatar_jax.train.logging import JsonlLog, Progress, check_finite, nonfinite_terms, to_host

# A resumed run may go on with another schedule; everything else must stay.
SCHEDULE = (
    'steps',
    'ray_steps',
    'frame_steps',
    'batch',
    'ray_batch',
    'frame_batch',
    'points',
    'rays',
    'lr',
    'codes_lr',
    'controller_lr',
    'noise_lr',
    'frame_lr',
    'ema',
)


def train(
    config: prior.PriorConfig, data, val, out: Path, *, log_every: int = 50, save_every: int = 600
) -> prior.PriorState:
    """Runs the steps that are left; returns the final state."""
    out.mkdir(parents=True, exist_ok=True)
    state, constants = prior.init_state(config)
    checkpoints = Checkpoints(out / 'checkpoints', config=config, may_differ=SCHEDULE)
    start = checkpoints.latest_step() or 0
    if start:
        state, start = checkpoints.restore(state)
        state = jax.tree.map(jnp.asarray, state)
    log = JsonlLog(out / 'metrics.jsonl', resume_step=start or None)
    total = config.steps
    progress = Progress(total, start=start, label='prior')
    bad = 0
    began = time.monotonic()
    for step in range(start, total):
        kind = prior.kind_of(config, step)
        rng = np.random.default_rng([config.seed, step])
        if kind == 'points':
            batch = data.points(data.order(config.seed, step, config.batch), config.points, rng)
        elif kind == 'rays':
            batch = data.rays(data.order(config.seed + 1, step, config.ray_batch), config.rays, rng)
        else:
            batch = data.frames(data.order(config.seed + 2, step, config.frame_batch))
        state, metrics = prior.train_step(config, kind, state, constants, batch, jnp.int32(step))
        if (step + 1) % log_every == 0 or step + 1 == total:
            metrics = to_host(metrics)
            bad = bad + 1 if nonfinite_terms(metrics) else 0
            if bad > 2:  # single bad steps are harmless: their gradients were cleaned
                check_finite(metrics, step + 1)
            values = {k: float(v) for k, v in metrics.items()}
            log.write(step + 1, values | {'kind': kind, 'seconds': round(time.monotonic() - began, 1)})
            progress.update(step + 1, f'{kind} psnr {values["psnr"]:.2f}')
        if (step + 1) % save_every == 0 or step + 1 == total:
            checkpoints.save(step + 1, state)
            scores = validate(config, state, constants, val)
            log.write(step + 1, scores)
            progress.note(f'step {step + 1}: ' + '  '.join(f'{k} {v:.2f}' for k, v in scores.items()))
            preview(config, state, constants, val, out / 'preview.png')
    return state


def render(config, trees, constants, batch):
    """Deterministic pictures of a batch from its known traits: dict of NHWC arrays."""
    w, w_x = prior.codes(config, trees, batch)
    generator = prior.TriPlaneGenerator(config.generator)
    return generator.apply(prior.variables_of(trees, constants), w + w_x, batch['label'], method='synthesis')


_render = jax.jit(render, static_argnums=0)


def validate(config, state, constants, val, count: int = 16) -> dict[str, float]:
    """PSNR inside the head mask on people never seen, from their known latents."""
    trees = state.trees(average=True)
    scores: dict[str, list[float]] = {'val_psnr': [], 'val_psnr_raw': []}
    for first in range(0, count, 4):
        batch = val.frames(np.arange(first, first + 4))
        out = _render(config, trees, constants, batch)
        for name, key in (('val_psnr', 'image'), ('val_psnr_raw', 'image_raw')):
            picture = np.clip(np.asarray(out[key]), -1, 1)
            factor = batch['image'].shape[1] // picture.shape[1]
            target = np.asarray(prior._pool(batch['image'], factor))
            mask = np.asarray(prior._pool(batch['mask'][..., None], factor))
            error = ((picture - target) ** 2 * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
            scores[name] += list(-10 * np.log10(error / 4))
    return {k: float(np.mean(v)) for k, v in scores.items()}


def preview(config, state, constants, val, path: Path) -> None:
    """A sheet: truth, raw (enlarged), image of eight validation samples."""
    from PIL import Image

    trees = state.trees(average=True)
    rows: list[list[np.ndarray]] = [[], [], []]
    for first in (0, 4):
        batch = val.frames(np.arange(first, first + 4))
        out = _render(config, trees, constants, batch)
        raw = np.asarray(out['image_raw'])
        factor = batch['image'].shape[1] // raw.shape[1]
        for row, picture in zip(rows, (batch['image'], raw.repeat(factor, 1).repeat(factor, 2), out['image'])):
            row += list(np.asarray(picture))
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows], 0)
    Image.fromarray(np.uint8(np.clip(sheet * 127.5 + 127.5, 0, 255))).save(path)


def export(config: prior.PriorConfig, state: prior.PriorState, constants, out: Path, facts: dict) -> Path:
    """Writes the moving averages as a weight file of OTAvatar, ready for inversion and animation.

    The average code, where inversion starts, is the origin, the mean of the traits. `facts` go into the provenance.
    """
    from avatar_jax.configure import from_plain
    from avatar_jax.methods.otavatar import model
    from configs.otavatar_heads import get_config

    trees = state.trees(average=True)
    params = dict(trees['generator'])
    backbone = dict(params['backbone'])
    backbone['mapping'], missed = prior.fit_mapping(
        config, backbone['mapping'], _random_heads(config), trees['codes']['weight']
    )
    params['backbone'] = backbone
    collections = {'params': params, 'noise': trees['noise'], **constants}
    collections['ema_stats'] = {'backbone': {'mapping': {'w_avg': np.zeros(config.generator.w_dim, np.float32)}}}
    facts = facts | {'mapping': f'explains {100 * (1 - missed):.1f} % of the variance of the codes'}
    variables = jax.tree.map(np.asarray, model.join(collections, {'params': trees['controller']}))
    method = from_plain(model.ModelConfig, get_config().model.to_dict()).method
    path = out / 'heads128.safetensors'
    model.save_model(path, variables, model.ModelConfig(config.generator, method), facts, storage='float16')
    return path


def _random_heads(config: prior.PriorConfig, batch: int = 256, people: int = 65536):
    """Random latents and their traits for `prior.fit_mapping`: a function of the step."""
    from data_pipelines.prior_batches import traits

    rng = np.random.default_rng(config.seed)
    latent = rng.standard_normal((people, prior.LATENT_DIM), dtype=np.float32)
    meaning = traits(latent)

    def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.random.default_rng([config.seed, step]).integers(0, people, batch)
        return latent[index], meaning[index]

    return draw


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    from data_pipelines.prior_batches import PriorData

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ('data', 'val', 'out'):
        parser.add_argument(f'--{name}', type=Path, required=True)
    defaults = prior.PriorConfig()
    for name in ('seed', *SCHEDULE):
        parser.add_argument(
            '--' + name.replace('_', '-'), type=type(getattr(defaults, name)), default=getattr(defaults, name)
        )
    options = vars(parser.parse_args(argv))
    folders = [options.pop(k) for k in ('data', 'val', 'out')]
    try:
        config = dataclasses.replace(defaults, **options)
        data, val = PriorData(folders[0]), PriorData(folders[1], limit=64)
        folders[2].mkdir(parents=True, exist_ok=True)
        (folders[2] / 'config.json').write_text(json.dumps(config_dict(config), indent=1))
        began = time.monotonic()
        state = train(config, data, val, folders[2])
        _, constants = prior.init_state(config)
        facts = {
            'command': 'python -m launch.train_prior',
            'config': config_dict(config),
            'data': 'fast_heads, split train',
            'samples': len(data),
            'seed': config.seed,
            'validation': validate(config, state, constants, val),
            'seconds_of_this_run': round(time.monotonic() - began),
        }
        print(export(config, state, constants, folders[2], facts))
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
