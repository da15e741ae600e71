"""The run of the supervised warm start (`bundled.prior`): steps, checkpoints, validation, and the weight file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from avatar_jax.bundled import prior
from avatar_jax.methods.otavatar import model
from avatar_jax.methods.otavatar.config import OTAvatarConfig
from avatar_jax.parallel import as_arrays
from avatar_jax.train.checkpoints import Checkpoints
from avatar_jax.train.logging import JsonlLog, RunProgress, check_finite, metrics_to_host, nonfinite_terms
from avatar_jax.types import PyTree

Batch = dict[str, np.ndarray]

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


class Batches(Protocol):
    """What a training reads, e.g. ``data_pipelines.prior_batches.PriorData``; ``index`` [N] says which samples."""

    def __len__(self) -> int:
        """Number of samples."""

    def order(self, seed: int, step: int, batch: int) -> np.ndarray:
        """Which samples [batch] a step uses."""

    def points(self, index: np.ndarray, count: int, rng: np.random.Generator) -> Batch:
        """For `prior.points_loss`."""

    def rays(self, index: np.ndarray, count: int, rng: np.random.Generator) -> Batch:
        """For `prior.rays_loss`."""

    def frames(self, index: np.ndarray) -> Batch:
        """For `prior.frames_loss`, with the mask [N, H, W] in [0, 1]."""


def train(
    config: prior.PriorConfig, data: Batches, val: Batches, out: Path, *, log_every: int = 50, save_every: int = 600
) -> prior.PriorState:
    """Runs the steps that are left; returns the final state. ``out`` gets log, checkpoints and a preview."""
    out.mkdir(parents=True, exist_ok=True)
    state, constants = prior.init_state(config)
    checkpoints = Checkpoints(out / 'checkpoints', config=config, may_differ=SCHEDULE)
    start = checkpoints.latest_step() or 0
    if start:
        state, start = checkpoints.restore(state)
        state = as_arrays(state)
    log = JsonlLog(out / 'metrics.jsonl', resume_step=start or None)
    total = config.steps
    progress = RunProgress(total, start=start, label='prior')
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
            metrics = metrics_to_host(metrics)
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


def render(config: prior.PriorConfig, trees: dict[str, Any], constants: PyTree, batch: Batch) -> dict[str, jax.Array]:
    """Deterministic pictures of a batch from its known traits: dict of NHWC arrays."""
    w, w_x = prior.codes(config, trees, batch)
    generator = prior.TriPlaneGenerator(config.generator)
    return generator.apply(prior.variables_of(trees, constants), w + w_x, batch['label'], method='synthesis')


_render = jax.jit(render, static_argnums=0)


def validate(
    config: prior.PriorConfig, state: prior.PriorState, constants: PyTree, val: Batches, count: int = 16
) -> dict[str, float]:
    """PSNR inside the head mask on people never seen, from their known latents."""
    trees = state.trees(average=True)
    scores: dict[str, list[float]] = {'val_psnr': [], 'val_psnr_raw': []}
    for first in range(0, count, 4):
        batch = val.frames(np.arange(first, first + 4))
        out = _render(config, trees, constants, batch)
        for name, key in (('val_psnr', 'image'), ('val_psnr_raw', 'image_raw')):
            picture = np.clip(np.asarray(out[key]), -1, 1)
            factor = batch['image'].shape[1] // picture.shape[1]
            target = np.asarray(prior.pooled(batch['image'], factor))
            mask = np.asarray(prior.pooled(batch['mask'][..., None], factor))
            error = ((picture - target) ** 2 * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
            scores[name] += list(-10 * np.log10(error / 4))
    return {k: float(np.mean(v)) for k, v in scores.items()}


def preview(config: prior.PriorConfig, state: prior.PriorState, constants: PyTree, val: Batches, path: Path) -> None:
    """A sheet: truth, raw (enlarged), image of eight validation samples."""
    from PIL import Image

    trees = state.trees(average=True)
    rows: list[list[np.ndarray]] = [[], [], []]
    for first in (0, 4):
        batch = val.frames(np.arange(first, first + 4))
        out = _render(config, trees, constants, batch)
        raw = np.asarray(out['image_raw'])
        factor = batch['image'].shape[1] // raw.shape[1]
        enlarged = repeat(raw, 'n h w c -> n (h a) (w b) c', a=factor, b=factor)
        for row, picture in zip(rows, (batch['image'], enlarged, out['image'])):
            row += list(np.asarray(picture))
    sheet = rearrange(np.asarray(rows), 'rows n h w c -> (rows h) (n w) c')
    Image.fromarray(np.uint8(np.clip(sheet * 127.5 + 127.5, 0, 255))).save(path)


def export(
    config: prior.PriorConfig,
    settings: OTAvatarConfig,
    state: prior.PriorState,
    constants: PyTree,
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]],
    path: Path,
    facts: dict[str, Any],
) -> Path:
    """Writes the moving averages as a weight file of OTAvatar, ready for inversion and animation.

    The average code, where inversion starts, is the origin, the mean of the traits.

    Args:
        method: settings of inversion and losses that the file is to have.
        draw: random heads for `prior.fit_mapping`.
        facts: for the provenance.
    """
    trees = state.trees(average=True)
    params = dict(trees['generator'])
    backbone = dict(params['backbone'])
    backbone['mapping'], missed = prior.fit_mapping(config, backbone['mapping'], draw, trees['codes']['weight'])
    params['backbone'] = backbone
    collections = {'params': params, 'noise': trees['noise'], **constants}
    collections['ema_stats'] = {'backbone': {'mapping': {'w_avg': np.zeros(config.generator.w_dim, np.float32)}}}
    facts = facts | {'mapping': f'explains {100 * (1 - missed):.1f} % of the variance of the codes'}
    variables = jax.tree.map(np.asarray, model.join(collections, {'params': trees['controller']}))
    model.save_model(path, variables, model.ModelConfig(config.generator, settings), facts, storage='float16')
    return path
