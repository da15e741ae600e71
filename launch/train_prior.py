"""Trains the prior (generator, mapping, controller) on procedural heads by regression and writes a weight file.

    python -m launch.train_prior --data DIR --val DIR --out DIR [--steps N] [--frame-steps N] [--seed N]

The run resumes from its last checkpoint. See `avatar_jax.train.prior` for what is learned and why.
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

from avatar_jax.errors import UserError
from avatar_jax.train import prior
from avatar_jax.train.checkpoints import Checkpoints, config_dict
from avatar_jax.train.logging import JsonlLog, Progress, check_finite, nonfinite_terms, to_host

# A resumed run may go on with another schedule; everything else must stay.
SCHEDULE = ('steps', 'frame_steps', 'batch', 'frame_batch', 'rays', 'lr', 'mapping_lr', 'controller_lr', 'ema')


def train(config: prior.PriorConfig, data, val, out: Path, *, log_every: int = 20, save_every: int = 200) -> prior.PriorState:
    """Runs the rays steps, then the frames steps; returns the final state."""
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
    first_frame, began = total - config.frame_steps, time.monotonic()
    for step in range(start, total):
        kind = 'rays' if step < first_frame else 'frames'
        rng = np.random.default_rng([config.seed, step])
        if kind == 'rays':
            batch = data.rays(data.order(config.seed, step, config.batch), config.rays, rng)
        else:
            batch = data.frames(data.order(config.seed + 1, step, config.frame_batch))
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


def render(config, params, constants, batch):
    """Deterministic pictures of a batch from its known latents: dict of NHWC arrays."""
    w, w_x = prior.codes(config, params, constants, batch)
    generator = prior.TriPlaneGenerator(config.generator)
    return generator.apply({'params': params[0], **constants}, w + w_x, batch['label'], method='synthesis')


_render = jax.jit(render, static_argnums=0)


def validate(config, state, constants, val, count: int = 32) -> dict[str, float]:
    """PSNR inside the head mask on people never seen, from their known latents."""
    params = state.params(average=True)
    scores: dict[str, list[float]] = {'val_psnr': [], 'val_psnr_raw': []}
    for first in range(0, count, 4):
        batch = val.frames(np.arange(first, first + 4))
        out = _render(config, params, constants, batch)
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

    params = state.params(average=True)
    rows: list[list[np.ndarray]] = [[], [], []]
    for first in (0, 4):
        batch = val.frames(np.arange(first, first + 4))
        out = _render(config, params, constants, batch)
        raw = np.asarray(out['image_raw'])
        factor = batch['image'].shape[1] // raw.shape[1]
        for row, picture in zip(rows, (batch['image'], raw.repeat(factor, 1).repeat(factor, 2), out['image'])):
            row += list(np.asarray(picture))
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows], 0)
    Image.fromarray(np.uint8(np.clip(sheet * 127.5 + 127.5, 0, 255))).save(path)


def export(config: prior.PriorConfig, state: prior.PriorState, constants, out: Path, facts: dict) -> Path:
    """Writes the moving averages as a weight file of OTAvatar, ready for inversion and animation.

    The average code, where inversion starts, is the mean over 8192 random latents. `facts` go into the provenance.
    """
    from avatar_jax.configure import from_plain
    from avatar_jax.methods.otavatar import model
    from configs.otavatar_heads import get_config

    params, controller = jax.tree.map(np.asarray, state.params(average=True))
    latents = jax.random.normal(jax.random.key(config.seed), (8192, config.generator.z_dim))
    generator = prior.TriPlaneGenerator(config.generator)
    mapped = generator.apply({'params': params, **constants}, latents, jnp.zeros((8192, 25)), method='mapping')
    constants = jax.tree.map(np.asarray, constants)
    constants['ema_stats'] = {'backbone': {'mapping': {'w_avg': np.asarray(mapped[:, 0].mean(0))}}}
    variables = model.join({'params': params, **constants}, {'params': controller})
    method = from_plain(model.ModelConfig, get_config().model.to_dict()).method
    path = out / 'heads128.safetensors'
    model.save_model(path, variables, model.ModelConfig(config.generator, method), facts, storage='float16')
    return path


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    from data_pipelines.prior_batches import PriorData

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ('data', 'val', 'out'):
        parser.add_argument(f'--{name}', type=Path, required=True)
    defaults = prior.PriorConfig()
    for name in ('steps', 'frame_steps', 'seed', 'batch', 'frame_batch', 'rays', 'lr', 'mapping_lr', 'controller_lr'):
        parser.add_argument('--' + name.replace('_', '-'), type=type(getattr(defaults, name)),
                            default=getattr(defaults, name))
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
            'command': 'python -m launch.train_prior', 'config': config_dict(config), 'data': 'fast_heads, split train',
            'samples': len(data), 'seed': config.seed, 'validation': validate(config, state, constants, val),
            'seconds_of_this_run': round(time.monotonic() - began),
        }
        print(export(config, state, constants, folders[2], facts))
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
