"""Pivotal tuning: find a code for a picture, hold it, and fit some of the networks' parameters to the picture.

Roich et al. 2022 ("PTI"), and NOFA's fast form of it, which tunes a small compensation network instead of the
generator. Methods have their own losses and their own parameters; here is what they share: the search for the pivot,
the loop of the tuning with its stopping rule, the locality regulariser, and what is reported of a person.

Everything is a pure function of arrays for one person; many people are the same function under ``jax.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.options import flag
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.types import PyTree

Terms = Mapping[str, jax.Array]
LossFn = Callable[[PyTree, jax.Array], tuple[jax.Array, Terms]]

TUNE = ('none', 'compensation', 'generator')
LOCAL = 'locality'
PSNR = 'negative_psnr'  # a term that every method's loss of a fit reports, for the stopping rule


# ---------------------------------------------------------------------------------------------------------- the pivot


@dataclass(frozen=True)
class PivotConfig:
    """Search for a code in W, one row for all layers (PTI's first step; StyleGAN2's projector).

    Attributes:
        steps: Adam steps. lr: peak of the learning rate.
        warm_up, ramp_down: shares of the steps in which it rises linearly and falls along a cosine.
        noise: standard deviation of the noise on the code, in standard deviations of codes. noise_until: share of the
            steps over which it decays (with the square) to nothing.
        samples: codes of the mapping network, for their mean and spread.
        start: 'mean' of these codes, or what an 'encoder' sees in the picture (the mean of its rows).
    """

    steps: int = 450
    lr: float = 0.01
    warm_up: float = 0.05
    ramp_down: float = 0.25
    noise: float = 0.05
    noise_until: float = 0.75
    samples: int = 600
    start: str = 'mean'

    def __post_init__(self):
        check = Check(self, 'pivot')
        check.at_least(1, 'steps')
        check.at_least(2, 'samples')
        check.one_of('start', 'mean', 'encoder')
        check.above(0, 'lr', 'noise_until')
        check.at_least(0, 'noise')
        check.within(0, 1, 'warm_up', 'ramp_down', 'noise_until')


class Pivot(NamedTuple):
    """A code found in W.

    Attributes:
        code: [d]. curve: [steps] loss before each update. terms: name -> [steps].
    """

    code: jax.Array
    curve: jax.Array
    terms: dict[str, jax.Array]


def pivot_rate(step: jax.Array, config: PivotConfig) -> jax.Array:
    """Learning rate of a step as a share of the peak: linear rise, plateau, cosine fall."""
    t = step / config.steps
    fall = jnp.minimum(1.0, (1 - t) / config.ramp_down) if config.ramp_down else 1.0
    rise = jnp.minimum(1.0, t / config.warm_up) if config.warm_up else 1.0
    return (0.5 - 0.5 * jnp.cos(fall * jnp.pi)) * rise


def code_statistics(codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean [d] of codes [n,d], and their spread: root of the mean squared distance from it (a scalar)."""
    mean = codes.mean(0)
    return mean, jnp.sqrt(jnp.mean(jnp.sum((codes - mean) ** 2, -1)))


def find_pivot(
    loss_fn: Callable[[jax.Array, jax.Array], tuple[jax.Array, Terms]],
    start: jax.Array,
    spread: jax.Array,
    key: jax.Array,
    config: PivotConfig,
) -> Pivot:
    """Optimises one code of one person.

    Args:
        loss_fn: ``(code [d], key) -> (loss, terms)``.
        start: [d], usually the mean of ``code_statistics``. spread: of it.
    """
    tx = make_optimizer(OptimizerConfig('adam', config.lr))

    def step(carry, n):
        code, state = carry
        noise_key, loss_key = jax.random.split(jax.random.fold_in(key, n))
        left = jnp.maximum(0.0, 1 - n / (config.steps * config.noise_until))
        noise = spread * config.noise * left**2 * jax.random.normal(noise_key, code.shape)
        (loss, terms), grad = jax.value_and_grad(lambda c: loss_fn(c + noise, loss_key), has_aux=True)(code)
        update, state = tx.update(grad, state, code, lr_scale=pivot_rate(n, config))
        return (code + update, state), (loss, dict(terms))

    (code, _), (curve, terms) = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(config.steps))
    return Pivot(code, curve, terms)


# ---------------------------------------------------------------------------------------------------------- the tuning


@dataclass(frozen=True)
class LocalityConfig:
    """Keeps tuning from spoiling other codes than the pivot (PTI's locality regulariser).

    Attributes:
        weight: of the term; 0 leaves it out. radius: distance from the pivot, along the way to a random code, at which
            the tuned and the untouched generator are compared.
        pixel, perceptual: weights of the mean squared error and the perceptual distance between their pictures.
        every: the term is computed in one of so many steps, drawn at random, with as much more weight.
    """

    weight: float = 0.0
    radius: float = 30.0
    pixel: float = 0.1
    perceptual: float = 0.1
    every: int = 1

    def __post_init__(self):
        check = Check(self, 'locality')
        check.at_least(0, 'weight')
        check.above(0, 'radius')
        check.at_least(1, 'every')


@dataclass(frozen=True)
class TuningConfig:
    """Tuning around a fixed code.

    Attributes:
        tune: what is fitted: 'generator', 'compensation' (methods that have such a network) or 'none'.
        steps, optimizer: of the fit.
        stop_term, stop_below: end when this term of the loss has fallen below the value; '' makes all steps.
        locality: regulariser of the generator's tuning.
    """

    tune: str = 'generator'
    steps: int = 350
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 3e-4))
    stop_term: str = ''
    stop_below: float = 0.0
    locality: LocalityConfig = field(default_factory=LocalityConfig)

    def __post_init__(self):
        check = Check(self, 'tuning')
        check.one_of('tune', *TUNE)
        check.need(self.steps >= 1, 'steps', "must be at least 1 (tune='none' leaves the networks alone)")
        check.need(
            not self.locality.weight or self.tune != 'compensation',
            'locality.weight',
            'it compares generators, but the compensation network is tuned, which belongs to one picture; set it to 0',
        )


def chosen_tuning(
    base: TuningConfig,
    tune: str | None = None,
    fit_steps: int | None = None,
    fit_stop: float | None = None,
    locality: float | None = None,
) -> TuningConfig:
    """A configuration with what the options ``--tune``, ``--fit-steps``, ``--fit-stop`` and ``--locality`` say; None
    leaves it as it is.

    Args:
        fit_stop: ends the fit when the picture is this good (dB). locality: weight of the regulariser.

    Raises:
        UserError: a value out of its range, or an option of a fit where nothing is fitted.
    """
    given = {'fit_steps': fit_steps, 'fit_stop': fit_stop, 'locality': locality}
    tune = base.tune if tune is None else tune
    for name, value in given.items():
        if value is not None and tune == 'none':
            raise UserError(f'{flag(name)} {value:g}: nothing is fitted (--tune none); leave it out, or choose --tune')
    if locality and tune == 'compensation':
        raise UserError(
            f'--locality {locality:g}: it compares generators, but --tune compensation leaves the generator alone; '
            'leave it out, or choose --tune generator'
        )
    check = Check.values(OPTION, **given)
    check.at_least(1, 'fit_steps')
    check.at_least(0, 'locality')
    changes: dict[str, Any] = {'tune': tune}
    if fit_steps is not None:
        changes['steps'] = fit_steps
    if fit_stop is not None:
        changes |= {'stop_term': PSNR, 'stop_below': -fit_stop}
    if locality is not None:
        changes['locality'] = replace(base.locality, weight=locality)
    return replace(base, **changes)


class Tuned(NamedTuple):
    """What tuning gave one person.

    Attributes:
        params: the tuned copy. curve: [steps] loss before each update, NaN after an early end. terms: name -> [steps].
        steps: updates made (int32). stopped: whether the stopping rule ended it (bool).
    """

    params: PyTree
    curve: jax.Array
    terms: dict[str, jax.Array]
    steps: jax.Array
    stopped: jax.Array


class State(NamedTuple):
    """Tuning under way: parameters, optimizer state, updates made (int32), whether the stopping rule was met (bool)."""

    params: PyTree
    opt_state: PyTree
    steps: jax.Array
    stopped: jax.Array


def start(params: PyTree, config: TuningConfig) -> State:
    """Before the first step."""
    opt_state = jax.jit(make_optimizer(config.optimizer).init)(params)  # one program, not one for each shape
    return State(params, opt_state, jnp.zeros((), jnp.int32), jnp.zeros((), bool))


def advance(
    loss_fn: LossFn,
    state: State,
    key: jax.Array,
    count: int,
    config: TuningConfig,
    locality: Callable[[PyTree, jax.Array], jax.Array] | None = None,
) -> tuple[State, tuple[jax.Array, dict[str, jax.Array]]]:
    """Up to ``count`` steps: fewer at the end, and where the stopping rule is met.

    A program that wants to show progress calls this itself and gets the same numbers as ``tune``.

    Args:
        locality: of ``locality_term``; needed where ``config.locality.weight`` is not 0.

    Returns:
        the state, and (losses [count], terms), NaN for steps that were not made.

    Raises:
        ValueError: the regulariser has a weight but is not given, or the stopping rule names an unknown term.
    """
    loss_fn = _with_locality(loss_fn, config.locality, locality)
    tx = make_optimizer(config.optimizer)

    def step(state: State):
        step_key = jax.random.fold_in(key, state.steps)
        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, step_key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        stopped = terms[config.stop_term] < config.stop_below if config.stop_term else state.stopped
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.steps + 1, stopped), (loss, dict(terms))

    shapes = jax.eval_shape(loss_fn, state.params, key)
    if config.stop_term and config.stop_term not in shapes[1]:
        raise ValueError(f'stop_term={config.stop_term!r}: the loss has {sorted(shapes[1])}')
    buffers = jax.tree.map(lambda s: jnp.full((count, *s.shape), jnp.nan, s.dtype), (shapes[0], dict(shapes[1])))

    def going(loop):
        i, state, _ = loop
        return (i < count) & (state.steps < config.steps) & ~state.stopped

    def body(loop):
        i, state, buffers = loop
        state, out = step(state)
        return i + 1, state, jax.tree.map(lambda b, o: b.at[i].set(o), buffers, out)

    # Both depend on the state, which says nothing: else ``vmap`` goes through the loop's body once more for each.
    zero = 0 * state.steps
    buffers = jax.tree.map(lambda b: b + zero.astype(b.dtype), buffers)
    _, state, buffers = jax.lax.while_loop(going, body, (zero, state, buffers))
    return state, buffers


def finish(state: State, outs: list[tuple[jax.Array, dict[str, jax.Array]]]) -> Tuned:
    """The result from the final state and the outputs of ``advance`` in order."""
    curve, terms = jax.tree.map(lambda *x: jnp.concatenate(x), *outs)
    return Tuned(state.params, curve, terms, state.steps, state.stopped)


def tune(
    loss_fn: LossFn,
    params: PyTree,
    key: jax.Array,
    config: TuningConfig,
    locality: Callable[[PyTree, jax.Array], jax.Array] | None = None,
) -> Tuned:
    """Fits ``params`` of one person's ``loss_fn(params, key) -> (loss, terms)``. See ``advance``."""
    state, out = advance(loss_fn, start(params, config), key, config.steps, config, locality)
    return finish(state, [out])


def _with_locality(
    loss_fn: LossFn, config: LocalityConfig, locality: Callable[[PyTree, jax.Array], jax.Array] | None
) -> LossFn:
    if not config.weight:
        return loss_fn
    if locality is None:
        raise ValueError('tuning: locality.weight is set, but there is nothing to compare with')

    def loss(params, key):
        value, terms = loss_fn(params, key)
        own, due_key = jax.random.split(jax.random.fold_in(key, 1))
        if config.every == 1:
            term = config.weight * locality(params, own)
        else:
            # Every n-th step on average, with as much weight more: the loop hands over keys and no numbers.
            due = jax.random.bernoulli(due_key, 1 / config.every)
            term = jax.lax.cond(
                due, lambda p: config.every * config.weight * locality(p, own), lambda p: jnp.zeros(()), params
            )
        return value + term, {**terms, LOCAL: term}

    return loss


def nearby_code(pivot: jax.Array, other: jax.Array, radius: float) -> jax.Array:
    """The code at a distance from the pivot [L,d], on the way to another one; all rows together are one vector."""
    way = other - pivot
    return pivot + radius * way / jnp.maximum(jnp.sqrt(jnp.sum(way * way)), 1e-8)


def locality_term(
    render: Callable[[PyTree, jax.Array], jax.Array],
    untouched: PyTree,
    pivot: jax.Array,
    random_code: Callable[[jax.Array], jax.Array],
    config: LocalityConfig,
    distance: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[PyTree, jax.Array], jax.Array]:
    """The regulariser ``(params, key) -> scalar`` (without its weight).

    Args:
        render: ``(params, code [L,d]) -> picture [1,H,W,3]``.
        untouched: parameters before the tuning.
        random_code: key -> code [L,d] of the mapping network.
        distance: perceptual distance of two pictures (a scalar); None leaves its part out.
    """

    def term(params: PyTree, key: jax.Array) -> jax.Array:
        code = jax.lax.stop_gradient(nearby_code(pivot, random_code(key), config.radius))
        wanted = jax.lax.stop_gradient(render(untouched, code))
        got = render(params, code)
        value = config.pixel * jnp.mean((got - wanted) ** 2)
        return value if distance is None else value + config.perceptual * distance(got, wanted)

    return term


def report(tuned: Tuned) -> dict[str, Any]:
    """Plain values for a JSON report of one person: steps, whether the rule ended it, curves."""
    steps = int(tuned.steps)
    return {
        'steps': steps,
        'stopped': bool(tuned.stopped),
        'loss': np.asarray(tuned.curve)[:steps].tolist(),
        'terms': {name: np.asarray(curve)[:steps].tolist() for name, curve in tuned.terms.items()},
    }
