"""Training and testing of the two stand-in networks for procedural heads (`models.perception.head_nets`).

Both networks learn from the same pictures in one step: the identity network by classifying the training people with a
cosine margin, the coefficient network by regressing what the pictures were made from. Pictures are varied in colour,
light, sharpness and noise, so that a generator's slightly soft images are not foreign to them.

A data set is a dict of arrays: rgb [N,H,W,3] uint8, person [N] (0..P-1), expression [N,64], angle [N,3] (radians),
translation [N,3] (decimetres), landmarks [N,68,2] pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.bundled.report import write_network
from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.eval.faces import eye_openness, mouth_opening
from avatar_jax.eval.statistics import pearson
from avatar_jax.losses.perception import HEAD_NETS_METHOD
from avatar_jax.models.perception.head_nets import (
    NUM_EXPRESSION,
    HeadCoefficients,
    HeadIdentity,
    HeadNetsConfig,
    margin_logits,
    pack,
)
from avatar_jax.ops.resize import resize
from avatar_jax.train.loop import LoopConfig, fit
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group, TrainState, step_key
from avatar_jax.types import PyTree

Data = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class HeadTrainConfig:
    """One training of both networks.

    Attributes:
        nets: their sizes.
        steps, batch, seed: length, pictures per step, seed of everything.
        optimizer: its rate falls from full to zero along half a cosine, after `warmup` steps.
        margin, scale: of the identity classification.
        identity, coefficients, landmarks, openings: weights of the terms.
    """

    nets: HeadNetsConfig = field(default_factory=HeadNetsConfig)
    steps: int = 1500
    batch: int = 48
    seed: int = 0
    warmup: int = 50
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adamw', 2e-3, weight_decay=0.02))
    margin: float = 0.2
    scale: float = 16.0
    identity: float = 0.2
    coefficients: float = 1.0
    landmarks: float = 1.0
    openings: float = 1.0

    def __post_init__(self):
        check = Check(self)
        check.at_least(1, 'steps')
        check.at_least(2, 'batch')
        check.at_least(0, 'warmup')


def targets_of(data: Data) -> np.ndarray:
    """What the coefficient network learns, [N,206] in the order of `pack`; landmarks as fractions of the side."""
    side = data['rgb'].shape[2]
    landmarks = data['landmarks'].reshape(len(data['landmarks']), -1) / side
    parts = [data['expression'], data['angle'], data['translation'], landmarks]
    return np.concatenate(parts, -1).astype(np.float32)


def init_state(config: HeadTrainConfig, data: Data, key: jax.Array | None = None) -> TrainState:
    """Fresh networks; the output scale of the coefficient network is set from the training data."""
    key = jax.random.key(config.seed) if key is None else key
    image = jnp.zeros((1, 128, 128, 3))
    keys = jax.random.split(key, 3)
    identity = HeadIdentity(config.nets).init(keys[0], image)
    coefficients = HeadCoefficients(config.nets).init(keys[1], image)
    targets = targets_of(data)
    # Coefficients that are nearly always zero must not be blown up to the size of the others.
    deviation = np.maximum(targets.std(0), np.where(np.arange(targets.shape[1]) < NUM_EXPRESSION, 0.05, 1e-3))
    stats = dict(coefficients['batch_stats'])
    stats |= {'scale': jnp.asarray(deviation, jnp.float32), 'offset': jnp.asarray(targets.mean(0))}
    people = int(data['person'].max()) + 1
    params = {
        'head_identity': identity['params'],
        'head_coefficients': coefficients['params'],
        'centres': jax.random.normal(keys[2], (people, config.nets.embedding)),
    }
    group = Group.create(params, make_optimizer(config.optimizer))
    return TrainState.create({'nets': group}, {'head_identity': identity['batch_stats'], 'head_coefficients': stats})


def batches(config: HeadTrainConfig, data: Data, start: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches; the batch of a step is a function of (seed, step) alone."""
    targets, count = targets_of(data), len(data['rgb'])
    step = start
    while True:
        rng = np.random.default_rng([config.seed, step])
        index = rng.choice(count, config.batch, replace=count < config.batch)
        yield {'rgb': data['rgb'][index], 'person': data['person'][index], 'targets': targets[index]}
        step += 1


def augment(key: jax.Array, rgb: jax.Array) -> jax.Array:
    """Pictures [B,H,W,3] in [0,1] with random tint, contrast, light from one side, softness and noise."""
    keys = jax.random.split(key, 6)
    batch, height, width = rgb.shape[:3]
    tint = 1 + 0.08 * jax.random.normal(keys[0], (batch, 1, 1, 3)) + 0.08 * jax.random.normal(keys[1], (batch, 1, 1, 1))
    shift = 0.04 * jax.random.normal(keys[2], (batch, 1, 1, 1))
    slope = jax.random.uniform(keys[3], (batch, 2), minval=-0.25, maxval=0.25)
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing='ij')
    light = 1 + slope[:, 0, None, None] * x + slope[:, 1, None, None] * y
    soft = resize(resize(rgb, height // 2, 'area'), height, 'bilinear')
    share = jax.random.uniform(keys[4], (batch, 1, 1, 1), minval=-0.5, maxval=1.0).clip(0)
    rgb = (1 - share) * rgb + share * soft
    rgb = rgb * tint * light[..., None] + shift + 0.015 * jax.random.normal(keys[5], rgb.shape)
    return jnp.clip(rgb, 0, 1)


def _openings(landmarks: jax.Array) -> jax.Array:
    """Vertical gaps of mouth and eyes [N,7] as fractions of the image side; small numbers that matter."""
    gaps = [landmarks[:, 67 - i, 1] - landmarks[:, 61 + i, 1] for i in range(3)]
    gaps += [landmarks[:, a, 1] - landmarks[:, b, 1] for a, b in ((41, 37), (40, 38), (47, 43), (46, 44))]
    return jnp.stack(gaps, -1)


def loss(params: PyTree, stats: PyTree, config: HeadTrainConfig, batch: Mapping[str, jax.Array], key: jax.Array):
    """``(loss, (new batch statistics, weighted terms and figures))``."""
    rgb = augment(key, batch['rgb'].astype(jnp.float32) / 255) * 2 - 1
    names = ('head_identity', 'head_coefficients')
    modules = {'head_identity': HeadIdentity(config.nets), 'head_coefficients': HeadCoefficients(config.nets)}
    out, new_stats = {}, {}
    for name in names:
        variables = {'params': params[name], 'batch_stats': stats[name]}
        out[name], changed = modules[name].apply(variables, rgb, True, mutable=['batch_stats'])
        new_stats[name] = changed['batch_stats']

    logits = margin_logits(out['head_identity'], params['centres'], batch['person'], config.margin, config.scale)
    log_p = jax.nn.log_softmax(logits)
    identity = -jnp.mean(jnp.take_along_axis(log_p, batch['person'][:, None], 1))
    accuracy = jnp.mean(logits.argmax(-1) == batch['person'])

    scale = stats['head_coefficients']['scale']
    error = (pack(out['head_coefficients']) - batch['targets']) / scale
    huber = jnp.where(jnp.abs(error) < 1, 0.5 * error**2, jnp.abs(error) - 0.5)
    coefficients, landmarks = huber[:, :70].mean(), huber[:, 70:].mean()
    truth = batch['targets'][:, 70:].reshape(-1, 68, 2)
    openings = jnp.mean(jnp.abs(_openings(out['head_coefficients'].landmarks) - _openings(truth))) * 128
    terms = {
        'identity': config.identity * identity,
        'coefficients': config.coefficients * coefficients,
        'landmarks': config.landmarks * landmarks,
        'openings': config.openings * openings,
    }
    total = sum(terms.values())
    return total, (new_stats, {**terms, 'loss': total, 'accuracy': accuracy})


def make_step(config: HeadTrainConfig):
    """Compiled ``(state, batch) -> (state, metrics)``."""
    tx = make_optimizer(config.optimizer)

    @jax.jit
    def step(state: TrainState, batch):
        key = step_key(config.seed, state.step, stream=1)
        group = state.groups['nets']
        grads, (stats, metrics) = jax.grad(loss, has_aux=True)(group.params, state.extra, config, batch, key)
        done = state.step.astype(jnp.float32)
        rate = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(done / config.steps, 1)))
        rate = rate * jnp.minimum(1.0, (done + 1) / max(config.warmup, 1))
        group, norms = group.apply_gradients(grads, tx, lr_scale=rate, max_norm=5.0)
        state = state.with_groups(nets=group).replace(step=state.step + 1, extra=stats)
        return state, {**metrics, 'grad_norm': norms['grad_norm']}

    return step


def variables_of(state: TrainState) -> dict[str, Any]:
    """What a weight file holds: collection -> network -> arrays (class centres are left out)."""
    names = ('head_identity', 'head_coefficients')
    params = state.groups['nets'].params
    return {'params': {n: params[n] for n in names}, 'batch_stats': {n: state.extra[n] for n in names}}


# ------------------------------------------------------------------------------------------------------------- testing


def predict(variables: Mapping[str, Any], nets: HeadNetsConfig, rgb: np.ndarray, batch: int = 64):
    """Embeddings [N,E] and packed coefficients [N,206] of pictures [N,H,W,3] uint8."""

    @jax.jit
    def run(variables, rgb):
        x = rgb.astype(jnp.float32) / 127.5 - 1
        part = {n: {c: variables[c][n] for c in variables} for n in ('head_identity', 'head_coefficients')}
        embedding = HeadIdentity(nets).apply(part['head_identity'], x)
        return embedding, pack(HeadCoefficients(nets).apply(part['head_coefficients'], x))

    outputs = []
    for first in range(0, len(rgb), batch):
        chunk = rgb[first : first + batch]
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), 0)])  # one shape, one compilation
        outputs.append([np.asarray(o)[: len(chunk)] for o in run(variables, padded)])
    return tuple(np.concatenate(parts) for parts in zip(*outputs))


def verification(embedding: np.ndarray, person: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How well cosines tell same from different people, on all same pairs and as many random different ones.

    The threshold is chosen on one half of the people and tested on the other, then the other way round.

    Raises:
        UserError: fewer than four people with two pictures each.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(person)
    counts = np.bincount(np.searchsorted(names, person))
    if (counts >= 2).sum() < 4:
        raise UserError('verification: at least four people with two pictures each are needed')
    half = rng.permutation(len(names)) % 2
    accuracies, areas, same_all, different_all = [], [], [], []
    halves = []
    for side in (0, 1):
        rows = np.flatnonzero(half[np.searchsorted(names, person)] == side)
        a, b = np.triu_indices(len(rows), 1)
        cosine = (embedding[rows[a]] * embedding[rows[b]]).sum(-1)
        equal = person[rows[a]] == person[rows[b]]
        same, different = cosine[equal], cosine[~equal]
        different = rng.choice(different, min(len(different), len(same)), replace=False)
        halves.append((same, different))
    for chosen, tested in ((0, 1), (1, 0)):
        same, different = halves[chosen]
        candidates = np.sort(np.concatenate([same, different]))
        scores = [(same >= t).mean() + (different < t).mean() for t in candidates]
        threshold = candidates[int(np.argmax(scores))]
        same, different = halves[tested]
        accuracies.append(((same >= threshold).mean() + (different < threshold).mean()) / 2)
        areas.append(np.mean(same[:, None] > different[None]) + 0.5 * np.mean(same[:, None] == different[None]))
        same_all.append(same)
        different_all.append(different)
    return {
        'accuracy': float(np.mean(accuracies)),
        'auc': float(np.mean(areas)),
        'cosine_same': float(np.mean(np.concatenate(same_all))),
        'cosine_different': float(np.mean(np.concatenate(different_all))),
        'people': len(names),
    }


def coefficient_errors(packed: np.ndarray, data: Data) -> dict[str, float]:
    """Errors on held-out pictures: expression, pose, landmarks, and how openings follow the truth."""
    truth, side = targets_of(data), data['rgb'].shape[2]
    error = np.abs(packed - truth)
    spread = np.abs(truth[:, :64] - truth[:, :64].mean(0)).mean()
    found, true = (x[:, 70:].reshape(-1, 68, 2) * side for x in (packed, truth))
    distance = np.linalg.norm(found - true, axis=-1)
    eyes = np.linalg.norm(true[:, 36:42].mean(1) - true[:, 42:48].mean(1), axis=-1)
    mouth = (mouth_opening(found), mouth_opening(true))
    lids = (eye_openness(found).mean(-1), eye_openness(true).mean(-1))
    seen = np.abs(data['angle'][:, 1]) < np.deg2rad(30)  # beyond that one eye is hidden
    return {
        'expression_mae': float(error[:, :64].mean()),
        'expression_mae_of_the_mean': float(spread),
        'expression_l1_sum': float(error[:, :64].sum(1).mean()),
        'expression_correlation': _mean_correlation(packed[:, :64], truth[:, :64]),
        'angle_degrees': float(np.rad2deg(error[:, 64:67].mean())),
        'translation_dm': float(error[:, 67:70].mean()),
        'landmarks_pixels': float(distance.mean()),
        'landmarks_of_eye_distance': float((distance.mean(1) / np.maximum(eyes, 0.1 * side)).mean()),
        'mouth_opening_correlation': pearson(*mouth),
        'eye_openness_correlation': pearson(lids[0][seen], lids[1][seen]),
        'pictures': len(truth),
    }


def _mean_correlation(found: np.ndarray, true: np.ndarray) -> float:
    """Mean correlation over the coefficients that vary."""
    active = np.flatnonzero((true.std(0) > 0.02) & (found.std(0) > 1e-6))
    return float(np.mean([pearson(found[:, i], true[:, i]) for i in active])) if len(active) else float('nan')


def evaluate(variables: Mapping[str, Any], nets: HeadNetsConfig, data: Data) -> dict[str, dict[str, float]]:
    """Held-out figures of both networks."""
    embedding, packed = predict(variables, nets, data['rgb'])
    return {'identity': verification(embedding, data['person']), 'coefficients': coefficient_errors(packed, data)}


# ------------------------------------------------------------------------------------------------------------ training


def train(
    config: HeadTrainConfig, data: Data, held_out: Data, out: Path, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Trains, tests, writes ``head_nets.safetensors`` and ``report.json`` into ``out``; returns the report."""
    began = time.monotonic()
    state = fit(
        init_state(config, data),
        make_step(config),
        lambda start: map(jax.device_put, batches(config, data, start)),
        folder=out,
        loop=LoopConfig(config.steps, log_every=20, sample_every=0, checkpoint_every=max(1, min(200, config.steps))),
        config=config,
        resume=resume,
        label='head networks',
        images_per_step=config.batch,
        quiet=quiet,
    )
    variables = jax.tree.map(np.asarray, variables_of(state))
    return write_network(
        out / 'head_nets.safetensors',
        variables,
        method=HEAD_NETS_METHOD,
        net=config.nets,
        config=config,
        held_out=evaluate(variables, config.nets, held_out),
        trained_on={
            'pictures': len(data['rgb']),
            'people': int(data['person'].max()) + 1,
            'resolution': int(data['rgb'].shape[1]),
            'source': 'procedural heads, fast_heads',
        },
        began=began,
    )
