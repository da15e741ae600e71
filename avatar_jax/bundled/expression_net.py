"""Training of ``expression_net`` on fitted clips whose numbers are known.

Fits take a second each, motion costs nothing. So a few hundred fitted clips of each kind (how exact the landmarks are,
how much is smoothed) tell how a fit answers to true numbers, linearly in five frames, and what errors it adds: one
that stays through a clip, since identity is never exactly known, and one that wanders. With these ``FitModel``s any
amount of motion is turned into what a fit would make of it. The true fits are part of every batch, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.bundled.report import write_network
from avatar_jax.eval.statistics import pearson
from avatar_jax.models.perception.expression_net import EXPRESSION_NET_METHOD, ExpressionNet, ExpressionNetConfig
from avatar_jax.train.loop import LoopConfig, fit
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group, TrainState

LENGTH = 160  # frames of a motion; of shorter clips the last frame is repeated
_WINDOW, _REACH, _RIDGE = 64, 2, 0.3
HELD_OUT = (3, 4, 6)  # these of every ten clips are for testing
_STILLS = 12  # every twelfth example of a batch is one frame, repeated: a photograph


@dataclass(frozen=True)
class FittedClip:
    """A clip whose truth is known.

    Attributes:
        fitted, truth: [T,64] expression numbers. angle: [T,3] radians.
        kind: clips of a kind share a ``FitModel``.
    """

    fitted: np.ndarray
    truth: np.ndarray
    angle: np.ndarray
    kind: str


@dataclass(frozen=True)
class ExpressionTrainConfig:
    """One training: ``batch`` windows a step, of which ``real`` are true fits; ``unspoken`` is the share of motions
    that are independent expressions."""

    net: ExpressionNetConfig = field(default_factory=ExpressionNetConfig)
    steps: int = 9000
    batch: int = 24
    real: int = 5
    unspoken: float = 0.2
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adamw', lr=3e-3, weight_decay=1e-4))


@dataclass(frozen=True)
class FitModel:
    """How a kind of fits answers.

    Attributes:
        response: [321,64] from the numbers of five frames and 1. steady, wandering: [64,64] factors of the errors'
            covariances (rows are independent directions). memory: correlation of wandering errors of neighbouring
            frames.
        weight: share of the clips.
    """

    response: np.ndarray
    steady: np.ndarray
    wandering: np.ndarray
    memory: float
    weight: float


def _five_frames(truth: np.ndarray) -> np.ndarray:
    """[..., T,64] -> [..., T,321]."""
    wide = np.pad(truth, [(0, 0)] * (truth.ndim - 2) + [(_REACH, _REACH), (0, 0)], 'edge')
    t = truth.shape[-2]
    return np.concatenate(
        [wide[..., i : i + t, :] for i in range(2 * _REACH + 1)] + [np.ones((*truth.shape[:-1], 1))], -1
    )


def fit_models(clips: Sequence[FittedClip]) -> list[FitModel]:
    """One model for each kind, by least squares."""
    models = []
    for kind in sorted({c.kind for c in clips}):
        own = [c for c in clips if c.kind == kind]
        rows, answers = np.concatenate([_five_frames(c.truth) for c in own]), np.concatenate([c.fitted for c in own])
        response = np.linalg.solve(rows.T @ rows + _RIDGE * np.eye(rows.shape[1]), rows.T @ answers)
        errors = [c.fitted - _five_frames(c.truth) @ response for c in own]
        steady = np.array([e.mean(0) for e in errors])
        moving = [e - e.mean(0) for e in errors]
        squares = sum(float((e[:-1] ** 2).sum()) for e in moving)
        memory = sum(float((e[1:] * e[:-1]).sum()) for e in moving) / max(squares, 1e-9)
        factors = [
            np.linalg.cholesky(c + 1e-6 * np.eye(64)).T
            for c in (steady.T @ steady / len(own), np.cov(np.concatenate(moving).T))
        ]
        models.append(FitModel(response, *factors, float(np.clip(memory, 0, 0.99)), len(own) / len(clips)))
    return models


def as_fitted(rng: np.random.Generator, truth: np.ndarray, model: FitModel) -> np.ndarray:
    """What a fit would make of numbers [T,64]."""
    noise = rng.normal(size=truth.shape)
    for t in range(1, len(noise)):
        noise[t] = model.memory * noise[t - 1] + np.sqrt(1 - model.memory**2) * noise[t]
    sizes = np.exp(0.3 * rng.normal(size=2))
    steady = rng.normal(size=64) @ model.steady
    return _five_frames(truth) @ model.response + sizes[0] * steady + sizes[1] * noise @ model.wandering


def batches(
    config: ExpressionTrainConfig, motions: Mapping[str, Sequence[Any]], clips: Sequence[FittedClip], start: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step ``start`` on; each is a function of (seed, step).

    Args:
        motions: 'spoken' and 'unspoken' lists of (expression [T,64], angle [T,3]).
    """
    models, step = fit_models(clips), start
    weights = np.array([m.weight for m in models])
    while True:
        rng = np.random.default_rng([config.seed, step])
        rows = []
        for place in range(config.batch):
            if place < config.real:
                clip = clips[rng.integers(len(clips))]
                fitted, truth, angle = clip.fitted, clip.truth, clip.angle
            else:
                pool = motions['unspoken' if rng.random() < config.unspoken else 'spoken']
                truth, angle = pool[rng.integers(len(pool))]
                fitted = as_fitted(rng, truth, models[rng.choice(len(models), p=weights)])
            rows.append(_window(rng, fitted, truth, angle, place % _STILLS == _STILLS - 1))
        yield {k: np.stack([r[k] for r in rows]).astype(np.float32) for k in rows[0]}
        step += 1


def _window(rng: np.random.Generator, fitted, truth, angle, still: bool) -> dict[str, np.ndarray]:
    usual = fitted.mean(0)
    if still:
        t = rng.integers(len(truth))
        fitted, truth, angle = (np.repeat(v[t : t + 1], _WINDOW, 0) for v in (fitted, truth, angle))
        usual = fitted[0]
    missing = max(0, _WINDOW - len(truth))
    fitted, truth, angle = (np.pad(v, ((0, missing), (0, 0)), 'edge') for v in (fitted, truth, angle))
    t = rng.integers(len(truth) - _WINDOW + 1)
    return {
        'fitted': fitted[t : t + _WINDOW],
        'truth': truth[t : t + _WINDOW],
        'angle': angle[t : t + _WINDOW],
        'usual': usual,
    }


def init_state(config: ExpressionTrainConfig, clips: Sequence[FittedClip]) -> TrainState:
    """A fresh network with the scales of the data."""
    zeros = jnp.zeros((1, 8, 64))
    variables = ExpressionNet(config.net).init(jax.random.key(config.seed), zeros, zeros[..., :3], zeros[:, 0])
    truth, fitted = (np.concatenate([getattr(c, k) for c in clips]) for k in ('truth', 'fitted'))
    constants = {'mean': truth.mean(0), 'scale_in': fitted.std(0) + 0.03, 'scale_out': np.maximum(truth.std(0), 0.02)}
    group = Group.create(variables['params'], make_optimizer(config.optimizer))
    return TrainState.create({'net': group}, {k: jnp.asarray(v, jnp.float32) for k, v in constants.items()})


def make_step(config: ExpressionTrainConfig):
    """Compiled ``(state, batch) -> (state, metrics)``; the rate falls to zero as a cosine."""
    net, tx = ExpressionNet(config.net), make_optimizer(config.optimizer)

    @jax.jit
    def step(state: TrainState, batch):
        def loss(params):
            answer = net.apply(
                {'params': params, 'constants': state.extra}, batch['fitted'], batch['angle'], batch['usual']
            )
            return jnp.mean(jnp.sum((answer - batch['truth']) ** 2, -1))

        value, grads = jax.value_and_grad(loss)(state.groups['net'].params)
        rate = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(state.step / config.steps, 0, 1)))
        group, norms = state.groups['net'].apply_gradients(grads, tx, lr_scale=rate, max_norm=5.0)
        return state.with_groups(net=group).replace(step=state.step + 1), {
            'loss': value,
            'grad_norm': norms['grad_norm'],
        }

    return step


def evaluate(variables: Mapping[str, Any], config: ExpressionTrainConfig, clips: Sequence[FittedClip]):
    """(figures by kind of clip, [64,64] covariance of the errors) on clips that were not trained on.

    'numbers' is the correlation of all numbers of all frames with the truth, each number's mean over the clip removed:
    of the fit and of the network.
    """
    net, figures, errors = jax.jit(ExpressionNet(config.net).apply), {}, []
    for clip in clips:
        t = len(clip.truth)
        rows = [
            np.pad(v, ((0, -t % _WINDOW), (0, 0)), 'edge')[None].astype(np.float32) for v in (clip.fitted, clip.angle)
        ]
        answer = np.asarray(net(variables, *rows, clip.fitted.mean(0)[None].astype(np.float32)))[0, :t]
        true = (clip.truth - clip.truth.mean(0)).ravel()
        both = [pearson((v - v.mean(0)).ravel(), true) for v in (clip.fitted, answer)]
        figures.setdefault(clip.kind, []).append(both)
        errors.append(answer - clip.truth)
    errors = np.concatenate(errors)
    covariance = errors.T @ errors / len(errors) + 1e-4 * np.eye(errors.shape[1])
    means = {
        k: dict(zip(('clips', 'numbers_fit', 'numbers'), (len(v), *np.mean(v, 0).tolist()))) for k, v in figures.items()
    }
    return means, covariance.astype(np.float32)


def train(
    config: ExpressionTrainConfig,
    motions: Mapping[str, Sequence[Any]],
    clips: Sequence[FittedClip],
    out: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains, tests on three tenths of the clips, and writes ``expression_net.safetensors`` and ``report.json``.

    Args:
        motions: as of ``batches``. clips: in one order, as their places say which are held out.
        out: folder. resume: continue the run in it.

    Returns:
        the report.
    """
    began = time.monotonic()
    held_out = [c for i, c in enumerate(clips) if i % 10 in HELD_OUT]
    used = [c for i, c in enumerate(clips) if i % 10 not in HELD_OUT]
    state = fit(
        init_state(config, used),
        make_step(config),
        lambda start: map(jax.device_put, batches(config, motions, used, start)),
        folder=out,
        loop=LoopConfig(config.steps, log_every=50, sample_every=0, checkpoint_every=max(1, min(500, config.steps))),
        config=config,
        resume=resume,
        label='expression network',
        quiet=quiet,
    )
    variables = jax.tree.map(np.asarray, {'params': state.groups['net'].params, 'constants': state.extra})
    figures, covariance = evaluate(variables, config, held_out)
    return write_network(
        out / 'expression_net.safetensors',
        {**variables, 'calibration': {'covariance': covariance}},
        method=EXPRESSION_NET_METHOD,
        net=config.net,
        config=config,
        held_out=figures,
        trained_on={'fitted clips': len(used), 'motions': sum(map(len, motions.values()))},
        began=began,
    )
