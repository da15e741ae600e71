"""Training and testing of the landmark network (`models.perception.face_net`) on rendered heads.

The data are arrays of ``data_pipelines.face_crops``; ``face_augment.example`` makes an example of one. The example at a
place of a batch is a function of (seed, step, place) alone.
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
from einops import reduce

from avatar_jax.bundled.animals import animal, crop
from avatar_jax.bundled.face_augment import example, example_or_empty, rephotographed
from avatar_jax.bundled.report import write_network
from avatar_jax.checks import Check
from avatar_jax.eval.faces import eye_openness, mouth_opening
from avatar_jax.eval.statistics import pearson
from avatar_jax.models.perception.face_net import FACE_NET_METHOD, FaceNet, FaceNetConfig, FaceNetOutput
from avatar_jax.train.loop import LoopConfig, fit
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group, TrainState
from avatar_jax.types import PyTree

Data = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FaceTrainConfig:
    """One training.

    Attributes:
        net: sizes of the network.
        steps, batch, seed: length, pictures per step, seed of everything.
        optimizer: its rate is full after ``warmup`` steps and falls to zero over the last ``cooling`` of the run.
        average: decay of the moving average of the parameters, which is what is kept.
        landmarks, openings, uncertainty, mask, expression, angle, present: weights of the terms.
    """

    net: FaceNetConfig = field(default_factory=FaceNetConfig)
    steps: int = 4000
    batch: int = 32
    seed: int = 0
    warmup: int = 100
    cooling: float = 0.4
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adamw', 2e-3, weight_decay=0.02))
    average: float = 0.998
    landmarks: float = 1.0
    openings: float = 0.5
    uncertainty: float = 0.02
    mask: float = 0.3
    expression: float = 0.3
    angle: float = 0.3
    present: float = 0.2

    def __post_init__(self):
        check = Check(self)
        check.at_least(1, 'steps')
        check.at_least(2, 'batch')
        check.at_least(0, 'warmup')
        check.above(0, 'cooling')
        check.within(0, 1, 'cooling')


def init_state(config: FaceTrainConfig, data: Data) -> TrainState:
    """A fresh network; the output scale of expression and angle is that of the data."""
    side = config.net.side
    variables = FaceNet(config.net).init(jax.random.key(config.seed), jnp.zeros((1, side, side, 3)))
    expression = np.maximum(data['expression'].std(0), 0.05)
    stats = dict(variables['batch_stats'])
    stats['scale'] = jnp.asarray(np.concatenate([expression, data['angle'].std(0) + 0.1]), jnp.float32)
    stats['offset'] = jnp.asarray(np.concatenate([data['expression'].mean(0), [0, 0, 0]]), jnp.float32)
    group = Group.create(variables['params'], make_optimizer(config.optimizer), ema=True)
    return TrainState.create({'net': group}, stats)


def batches(config: FaceTrainConfig, data: Data, start: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step ``start`` on."""
    step, count = start, len(data['rgb'])
    while True:
        order = np.random.default_rng([config.seed, step]).choice(count, config.batch, replace=count < config.batch)
        examples = [
            example_or_empty(np.random.default_rng([config.seed, step, place]), data, int(index), config.net.side)
            for place, index in enumerate(order)
        ]
        yield {k: np.stack([e[k] for e in examples]) for k in examples[0]}
        step += 1


def _openings(points: jax.Array) -> jax.Array:
    """Gap vectors between lips and lids [N,11,2]; small numbers that matter."""
    pairs = (
        (61, 67),
        (62, 66),
        (63, 65),
        (51, 57),
        (50, 58),
        (52, 56),
        (37, 41),
        (38, 40),
        (43, 47),
        (44, 46),
        (48, 54),
    )
    a, b = np.array(pairs).T
    return points[:, b] - points[:, a]


def _huber(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5)


def loss(params: PyTree, stats: PyTree, config: FaceTrainConfig, batch: Mapping[str, jax.Array]):
    """``(loss, (new batch statistics, weighted terms))``."""
    image = batch['rgb'].astype(jnp.float32) / 127.5 - 1
    out, changed = FaceNet(config.net).apply(
        {'params': params, 'batch_stats': stats}, image, True, mutable=['batch_stats']
    )
    error = (out.landmarks - batch['landmarks']) * 50  # two hundredths of the side, about 7 % of the eye distance, is 1
    distance = jnp.sqrt((error**2).sum(-1) + 1e-4)
    gaps = jnp.abs(_openings(out.landmarks) - _openings(batch['landmarks'])) * 50
    fixed = jax.lax.stop_gradient(jnp.sqrt((error**2).sum(-1) / 2) / 50 + 1e-4)
    uncertainty = fixed / jnp.exp(out.log_sigma) + out.log_sigma
    n = len(out.mask)
    share = reduce(batch['mask'].astype(jnp.float32), 'n (h a) (w b) -> n h w', 'mean', a=4, b=4) / 255
    mask = jnp.mean(jnp.logaddexp(0, out.mask) - share * out.mask)
    scale = stats['scale']
    present = batch['present']

    def seen(values):
        """Mean over the pictures that show a face, and over everything else of [N, ...]."""
        return jnp.sum(values.reshape(n, -1).mean(1) * present) / jnp.maximum(present.sum(), 1)

    terms = {
        'landmarks': config.landmarks * seen(distance),
        'openings': config.openings * seen(gaps),
        'uncertainty': config.uncertainty * seen(uncertainty),
        'mask': config.mask * mask,
        'expression': config.expression * seen(_huber((out.expression - batch['expression']) / scale[:64])),
        'angle': config.angle * seen(_huber((out.angle - batch['angle']) / scale[64:] * 3)),
        'present': config.present * jnp.mean(jnp.logaddexp(0, out.present) - present * out.present),
    }
    total = sum(terms.values())
    eyes = jnp.linalg.norm(batch['landmarks'][:, 36:42].mean(1) - batch['landmarks'][:, 42:48].mean(1), axis=-1)
    of_eyes = seen((jnp.linalg.norm(error, axis=-1) / 50).mean(1) / jnp.maximum(eyes, 0.1))
    return total, (changed['batch_stats'], {**terms, 'loss': total, 'error_of_eye_distance': of_eyes})


def make_step(config: FaceTrainConfig):
    """Compiled ``(state, batch) -> (state, metrics)``."""
    tx = make_optimizer(config.optimizer)

    @jax.jit
    def step(state: TrainState, batch):
        group = state.groups['net']
        grads, (stats, metrics) = jax.grad(loss, has_aux=True)(group.params, state.extra, config, batch)
        done = state.step.astype(jnp.float32)
        rate = jnp.clip((config.steps - done) / (config.cooling * config.steps), 0, 1)
        rate = rate * jnp.minimum(1.0, (done + 1) / max(config.warmup, 1))
        group, norms = group.apply_gradients(grads, tx, lr_scale=rate, max_norm=5.0)
        group = group.update_ema(jnp.minimum(config.average, (1 + done) / (10 + done)))
        state = state.with_groups(net=group).replace(step=state.step + 1, extra=stats)
        return state, {**metrics, 'grad_norm': norms['grad_norm']}

    return step


def variables_of(state: TrainState) -> dict[str, Any]:
    """What a weight file holds: collection -> arrays, with the averaged parameters."""
    return {'params': state.groups['net'].inference_params, 'batch_stats': state.extra}


def _hidden(variables: Mapping[str, Any], net: FaceNetConfig) -> Any:
    """What the last layer reads: crops [N,side,side,3] uint8 -> [N,hidden]."""
    module = FaceNet(net)

    @jax.jit
    def hidden(x):
        _, state = module.apply(
            variables,
            x.astype(jnp.float32) / 127.5 - 1,
            mutable=['intermediates'],
            capture_intermediates=lambda m, _: m.name == 'hidden_norm',
        )
        return jax.nn.relu(state['intermediates']['hidden_norm']['__call__'][0])

    return hidden


def solve_present(
    variables: Mapping[str, Any],
    net: FaceNetConfig,
    data: Data,
    count: int | None = None,
    seed: int = 3,
    ridge: float = 30.0,
    favour: float = 4.0,
) -> dict[str, Any]:
    """The network with the row of its last layer that tells faces from other things solved by logistic regression.

    A fifth of ``count`` crops (ten for each head, at most 5,000) show no face in the middle, a third drawn animals
    (``bundled.animals``), which detectors take for faces. The rest are faces, augmented as in training; missing one
    counts ``favour`` times.
    """
    count = min(5000, 10 * len(data['rgb'])) if count is None else count
    hidden, rows, truth = _hidden(variables, net), [], []
    pool = [animal(seed, i) for i in range(max(1, count // 12))]
    size = min(32, count)
    for first in range(0, count - size + 1, size):
        examples = [_face_or_other(np.random.default_rng([seed, first + k]), data, pool, net.side) for k in range(size)]
        rows.append(np.asarray(hidden(np.stack([rgb for rgb, _ in examples])), np.float64))
        truth += [face for _, face in examples]
    h, y = np.concatenate(rows), np.array(truth, np.float64)
    middle, spread = h.mean(0), h.std(0) + 1e-3
    z = np.concatenate([(h - middle) / spread, np.ones((len(h), 1))], 1)
    share = np.where(y > 0, favour, 1.0)
    weight, penalty = np.zeros(z.shape[1]), np.append(np.full(h.shape[1], ridge), 1e-3)
    for _ in range(30):  # Newton's method
        p = 1 / (1 + np.exp(-np.clip(z @ weight, -30, 30)))
        curvature = (z * (share * p * (1 - p) + 1e-6)[:, None]).T @ z + np.diag(penalty)
        weight -= np.linalg.solve(curvature, z.T @ (share * (p - y)) + penalty * weight)
    slope = weight[:-1] / spread
    out = {k: np.array(v) for k, v in variables['params']['out'].items()}
    # The network gives ten times the layer's number.
    out['weight'][:, -1], out['bias'][-1] = slope / 10, (weight[-1] - middle @ slope) / 10
    return {**variables, 'params': {**variables['params'], 'out': out}}


def _face_or_other(
    rng: np.random.Generator, data: Data, animals: list[np.ndarray], side: int
) -> tuple[np.ndarray, float]:
    kind = rng.random()
    if kind < 1 / 3:
        return rephotographed(rng, crop(animals[int(rng.integers(len(animals)))], rng, side)), 0.0
    index = int(rng.integers(len(data['rgb'])))
    found = example_or_empty(rng, data, index, side, 1.0 if kind < 1 / 3 + 1 / 5 else 0.0)
    return found['rgb'], float(found['present'])


def solve_expression(
    variables: Mapping[str, Any], net: FaceNetConfig, data: Data, count: int = 1024, seed: int = 2, ridge: float = 30.0
) -> dict[str, Any]:
    """The network with the expression part of its last layer solved by least squares on ``count`` training examples.

    Most expression numbers are zero most of the time: steps of an optimiser leave their rows near the mean for long,
    while for a linear layer the best answer can be written down.
    """
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(data['rgb']), count)
    hidden = _hidden(variables, net)
    rows, targets = [], []
    size = min(32, count)
    for first in range(0, count - size + 1, size):
        examples = [
            example(np.random.default_rng([seed, first + k]), data, int(index[first + k]), net.side)
            for k in range(size)
        ]
        rows.append(np.asarray(hidden(np.stack([e['rgb'] for e in examples])), np.float64))
        targets.append(np.stack([e['expression'] for e in examples]))
    stats = variables['batch_stats']
    h, e = np.concatenate(rows), stats['scale'].shape[0] - 3
    y = (np.concatenate(targets) - np.asarray(stats['offset'])[:e]) / np.asarray(stats['scale'])[:e]
    middle, mean = h.mean(0), y.mean(0)
    spread = h.std(0) + 1e-3
    z = (h - middle) / spread
    weight = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ (y - mean)) / spread[:, None]
    out = {k: np.array(v) for k, v in variables['params']['out'].items()}
    out['weight'][:, :e], out['bias'][:e] = weight, mean - middle @ weight
    return {**variables, 'params': {**variables['params'], 'out': out}}


# ------------------------------------------------------------------------------------------------------------- testing


def predict(variables: Mapping[str, Any], net: FaceNetConfig, rgb: np.ndarray, batch: int = 32) -> FaceNetOutput:
    """Output (numpy) for crops [N,side,side,3] uint8."""
    run = jax.jit(lambda v, x: FaceNet(net).apply(v, x.astype(jnp.float32) / 127.5 - 1))
    outputs = []
    for first in range(0, len(rgb), batch):
        chunk = rgb[first : first + batch]
        size = len(chunk)
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), 0)])  # one shape, one compilation
        outputs.append(jax.tree.map(lambda a, n=size: np.asarray(a)[:n], run(variables, padded)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def evaluate(variables: Mapping[str, Any], net: FaceNetConfig, data: Data, seed: int = 1):
    """Held-out figures, and how wrong expression and angle are: every head of ``data`` once, augmented as in training.

    Returns:
        (figures, {'expression': [64], 'angle': [3]} root-mean-square errors, float32).
    """
    examples = [example(np.random.default_rng([seed, i]), data, i, net.side) for i in range(len(data['rgb']))]
    truth = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
    empty = [
        example_or_empty(np.random.default_rng([seed, i]), data, i, net.side, 1.0)['rgb'] for i in range(len(examples))
    ]
    drawn = [crop(animal(seed, i), np.random.default_rng([seed, i, 1]), net.side) for i in range(len(examples))]
    found, nothing, beasts = (predict(variables, net, rgb) for rgb in (truth['rgb'], np.stack(empty), np.stack(drawn)))
    figures = {
        **errors(found, truth),
        'faces_missed': float((found.present < 0).mean()),
        'faces_imagined': float((nothing.present > 0).mean()),
        'animals_taken_for_faces': float((beasts.present > 0).mean()),
    }
    return figures, {
        k: np.sqrt(((getattr(found, k) - truth[k]) ** 2).mean(0)).astype(np.float32) for k in ('expression', 'angle')
    }


def errors(found: FaceNetOutput, truth: Data) -> dict[str, float]:
    """Landmark error in eye distances, correlations of openings and expression, angle in degrees, mask overlap."""
    distance = np.linalg.norm(found.landmarks - truth['landmarks'], axis=-1)
    eyes = np.linalg.norm(truth['landmarks'][:, 36:42].mean(1) - truth['landmarks'][:, 42:48].mean(1), axis=-1)
    front = np.abs(truth['angle'][:, 1]) < np.deg2rad(30)
    relative = distance.mean(1) / np.maximum(eyes, 0.1)
    share = reduce(truth['mask'].astype(np.float32), 'n (h a) (w b) -> n h w', 'mean', a=4, b=4) > 127
    guess = found.mask > 0
    spread = np.std(truth['expression'], 0) > 0.03
    correlations = [pearson(found.expression[:, i], truth['expression'][:, i]) for i in np.flatnonzero(spread)]
    sigma = np.exp(found.log_sigma)
    return {
        'pictures': len(found.mask),
        'landmarks_of_eye_distance': float(relative.mean()),
        'landmarks_of_eye_distance_median': float(np.median(relative)),
        'landmarks_of_eye_distance_front': float(relative[front].mean()),
        'mouth_opening_correlation': pearson(mouth_opening(found.landmarks), mouth_opening(truth['landmarks'])),
        'eye_openness_correlation': pearson(
            eye_openness(found.landmarks).mean(-1)[front], eye_openness(truth['landmarks']).mean(-1)[front]
        ),
        'expression_correlation': float(np.mean(correlations)),
        'angle_degrees': float(np.rad2deg(np.abs(found.angle - truth['angle']).mean())),
        'uncertainty_correlation': pearson(np.log(distance.ravel() + 1e-4), np.log(sigma.ravel())),
        'mask_iou': float((share & guess).sum() / max((share | guess).sum(), 1)),
    }


# ------------------------------------------------------------------------------------------------------------ training


def train(
    config: FaceTrainConfig, data: Data, held_out: Data, out: Path, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Trains, tests, writes ``face_net.safetensors`` and ``report.json`` into ``out``; returns the report."""
    began = time.monotonic()
    state = fit(
        init_state(config, data),
        make_step(config),
        lambda start: map(jax.device_put, batches(config, data, start)),
        folder=out,
        loop=LoopConfig(config.steps, log_every=20, sample_every=0, checkpoint_every=max(1, min(200, config.steps))),
        config=config,
        resume=resume,
        may_differ=('steps', 'batch'),
        label='landmark network',
        images_per_step=config.batch,
        quiet=quiet,
    )
    variables = jax.tree.map(np.asarray, variables_of(state))
    variables = solve_expression(variables, config.net, data)
    variables = solve_present(variables, config.net, data)
    figures, calibration = evaluate(variables, config.net, held_out)
    return write_network(
        out / 'face_net.safetensors',
        {**variables, 'calibration': calibration},
        method=FACE_NET_METHOD,
        net=config.net,
        config=config,
        held_out=figures,
        trained_on={
            'heads': len(data['rgb']),
            'resolution': int(data['rgb'].shape[1]),
            'source': 'procedural heads, face_crops, augmented',
        },
        began=began,
    )
