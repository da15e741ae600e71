"""Finding the identity code of one picture, and of many pictures at once.

``invert`` is written for one person. Everything in it is a pure function of arrays, so many people are the same
function under ``jax.vmap``: codes, corrections, optimizers, random keys and the decision to stop are then per person. A
person whose loss no longer falls is frozen by a mask while the others go on; the loop ends when all have stopped.

A stage optimises a code and the correction of the intrinsics with fresh optimizers, first on the raw rendering alone
and in the last ``sr_steps`` steps on the super-resolved image too. Codes always have all their rows. In space W the
rows are *tied*: each gets the sum of the rows' gradients, so equal rows stay equal and every row follows the path that
a single shared row would. Both spaces are then one program, which matters where compiling takes longer than running.

``run_stage`` is made of ``start``, ``begin_phase`` and ``advance``; a program that wants to show progress calls these
itself, some steps at a time, and gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from avatar_jax.checks import Check
from avatar_jax.train.optimizers import clip_factor, global_norm
from avatar_jax.types import PyTree

# (code [rows, d], bias [18], key, sr) -> (loss, named terms); all for one person.
LossFn = Callable[[jax.Array, jax.Array, jax.Array, bool], tuple[jax.Array, Mapping[str, jax.Array]]]


@dataclass(frozen=True)
class StageConfig:
    """One stage of an inversion.

    Attributes:
        space: 'w' (one row for all layers) or 'w+' (every row free).
        steps, sr_steps: length, and how many steps at the end see the super-resolved image.
        optimise_code, optimise_intrinsics: what is moved (with the code fixed: camera adjustment only).
        return_previous: hand on the code from before the last update (the release does so in its W stage; the
            correction of the intrinsics keeps all updates).
        clip: maximum norm of the code's gradient; None (release, paper): no clipping.
        early_stop: leave a phase (raw, super-resolved) when its smoothed loss has not fallen by the fraction
            ``tolerance`` for ``patience`` steps. Without it the rule is only reported (``converged``).
    """

    space: str = 'w'
    steps: int = 100
    sr_steps: int = 10
    optimise_code: bool = True
    optimise_intrinsics: bool = True
    return_previous: bool = False
    clip: float | None = None
    early_stop: bool = False
    tolerance: float = 0.01
    patience: int = 20

    def __post_init__(self):
        check = Check(self, 'inversion')
        check.one_of('space', 'w', 'w+')
        check.at_least(1, 'steps', 'patience')
        check.within(0, self.steps, 'sr_steps')
        check.at_least(0, 'tolerance')
        check.need(
            self.optimise_code or self.optimise_intrinsics,
            'optimise_code',
            'nothing to optimise; switch it on, or optimise_intrinsics',
        )


class StageResult(NamedTuple):
    """What a stage found and how it went.

    Attributes:
        code: [rows, d]. bias: [18].
        curve: [steps] loss before each update; NaN where the stage had stopped.
        terms: name -> [steps]; NaN also where the term was not evaluated (super-resolution terms in the raw phase).
        steps: how many updates were made (int32). converged: the stopping rule was met in the last phase (bool).
        record: what ``record`` kept after each update [steps, ...]; None without it.
    """

    code: jax.Array
    bias: jax.Array
    curve: jax.Array
    terms: dict[str, jax.Array]
    steps: jax.Array
    converged: jax.Array
    record: PyTree = None


class State(NamedTuple):
    """An inversion under way: code [rows, d], the one before the last update, correction [18], optimizer states, and
    the stopping rule's running mean of the loss, its lowest value, and the steps since that fell."""

    code: jax.Array
    previous: jax.Array
    bias: jax.Array
    code_state: PyTree
    bias_state: PyTree
    smooth: jax.Array
    best: jax.Array
    since: jax.Array
    steps: jax.Array


class Transforms(NamedTuple):
    """Optax transformations of code and correction."""

    code: optax.GradientTransformationExtraArgs
    bias: optax.GradientTransformationExtraArgs


Record = Callable[[jax.Array, jax.Array], PyTree]


def start(code: jax.Array, bias: jax.Array, transforms: Transforms) -> State:
    """A stage before its first step, with fresh optimizers."""
    zero, inf = jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, jnp.result_type(code, bias))
    return State(code, code, bias, transforms.code.init(code), transforms.bias.init(bias), inf, inf, zero, zero)


def begin_phase(state: State) -> State:
    """Starts the stopping rule afresh, as the loss that follows is another one."""
    inf = jnp.full_like(state.smooth, jnp.inf)
    return state._replace(smooth=inf, best=inf, since=jnp.zeros_like(state.since))


def has_stopped(state: State, config: StageConfig) -> jax.Array:
    """Whether the stopping rule is met (which only freezes the state if ``early_stop``)."""
    return state.since >= config.patience


def advance(
    loss_fn: LossFn,
    state: State,
    key: jax.Array,
    first: jax.Array | int,
    count: int,
    sr: bool,
    tied: jax.Array | bool,
    config: StageConfig,
    transforms: Transforms,
    record: Record | None = None,
) -> tuple[State, tuple]:
    """``count`` steps, the first of which has the number ``first`` (random draws follow from key and number).

    Args:
        sr: with the super-resolved image (static). tied: rows move together, space W (may be traced).

    Returns:
        the state, and (losses [count], terms, records) stacked; NaN for steps after stopping.
    """
    wanted = tuple(i for i, on in enumerate((config.optimise_code, config.optimise_intrinsics)) if on)

    def update(state: State, n):
        (loss, terms), grads = jax.value_and_grad(loss_fn, argnums=wanted, has_aux=True)(
            state.code, state.bias, jax.random.fold_in(key, n), sr
        )
        grads = dict(zip(wanted, grads, strict=True))
        new = state._replace(previous=state.code, steps=state.steps + 1)
        if 0 in grads:
            rows = state.code.shape[0]
            grad = jnp.where(tied, jnp.broadcast_to(grads[0].sum(0), grads[0].shape), grads[0])
            if config.clip is not None:  # tied rows are one vector, and clipped as one
                grad = grad * clip_factor(global_norm(grad) * jnp.where(tied, rows**-0.5, 1.0), config.clip)
            step, code_state = transforms.code.update(grad, state.code_state, state.code)
            new = new._replace(code=state.code + step, code_state=code_state)
        if 1 in grads:
            step, bias_state = transforms.bias.update(grads[1], state.bias_state, state.bias)
            new = new._replace(bias=state.bias + step, bias_state=bias_state)
        smooth = jnp.where(jnp.isinf(state.smooth), loss, 0.8 * state.smooth + 0.2 * loss)
        better = smooth < state.best * (1 - config.tolerance)
        new = new._replace(
            smooth=smooth, best=jnp.where(better, smooth, state.best), since=jnp.where(better, 0, state.since + 1)
        )
        kept = None if record is None else record(new.code, new.bias)
        return new, (loss, dict(terms), kept)

    if not config.early_stop:
        return jax.lax.scan(update, state, first + jnp.arange(count))

    shapes = jax.eval_shape(lambda s: update(s, jnp.asarray(first))[1], state)
    buffers = jax.tree.map(lambda s: jnp.full((count, *s.shape), jnp.nan, s.dtype), shapes)

    def going(loop):
        return (loop[0] < count) & ~has_stopped(loop[1], config)

    def body(loop):
        i, state, buffers = loop
        state, out = update(state, first + i)
        return i + 1, state, jax.tree.map(lambda b, o: b.at[i].set(o), buffers, out)

    # Both depend on the state, which says nothing: else ``vmap`` goes through the loop's body once more for each.
    zero = 0 * state.steps
    buffers = jax.tree.map(lambda b: b + zero.astype(b.dtype), buffers)
    _, state, buffers = jax.lax.while_loop(going, body, (zero, state, buffers))
    return state, buffers


def phases(config: StageConfig) -> list[tuple[int, int, bool]]:
    """(first step, number of steps, with super-resolution) of the phases of a stage that have steps."""
    raw = config.steps - config.sr_steps
    return [p for p in ((0, raw, False), (raw, config.sr_steps, True)) if p[1]]


def finish(state: State, outs: list[tuple], config: StageConfig) -> StageResult:
    """The result of a stage from its final state and the outputs of ``advance``, in order."""
    curve = jnp.concatenate([out[0] for out in outs])
    names = sorted({name for out in outs for name in out[1]})
    terms = {
        name: jnp.concatenate([out[1].get(name, jnp.full_like(out[0], jnp.nan)) for out in outs]) for name in names
    }
    records = None if outs[0][2] is None else jax.tree.map(lambda *x: jnp.concatenate(x), *[out[2] for out in outs])
    code = state.previous if config.return_previous else state.code
    return StageResult(code, state.bias, curve, terms, state.steps, has_stopped(state, config), records)


def run_stage(
    loss_fn: LossFn,
    code: jax.Array,
    bias: jax.Array,
    key: jax.Array,
    config: StageConfig,
    transforms: Transforms,
    record: Record | None = None,
) -> StageResult:
    """One stage for one person; see the module text.

    Args:
        loss_fn: ``(code [rows, d], bias [18], key, sr) -> (loss, terms)``; terms are named scalars.
        code: [rows, d]; rows are equal for space W.
        record: ``(code, bias) -> pytree`` kept after every update.
    """
    state, outs = start(code, bias, transforms), []
    for first, count, sr in phases(config):
        state, out = advance(
            loss_fn, begin_phase(state), key, first, count, sr, config.space == 'w', config, transforms, record
        )
        outs.append(out)
    return finish(state, outs, config)


def check_order(stages: tuple[StageConfig, ...]) -> None:
    """Raises ValueError for a 'w' stage after a 'w+' stage, whose rows differ already."""
    spaces = [stage.space for stage in stages]
    if 'w' in spaces and 'w+' in spaces[: len(spaces) - spaces[::-1].index('w')]:
        raise ValueError("a 'w' stage cannot follow a 'w+' stage: its code has one row for all layers")


def invert(
    loss_fn: LossFn,
    code: jax.Array,
    bias: jax.Array,
    key: jax.Array,
    stages: tuple[StageConfig, ...],
    transforms: Transforms,
) -> tuple[jax.Array, jax.Array, list[StageResult]]:
    """All stages for one person.

    Args:
        loss_fn: see ``run_stage``.
        code: [rows, d] to start from, usually the average code in every row. bias: [18], usually zeros.
        stages: run in order; code and correction go on from stage to stage, optimizers start afresh.

    Returns:
        code [rows, d], bias [18], and the result of each stage.
    """
    check_order(stages)
    results = []
    for i, stage in enumerate(stages):
        result = run_stage(loss_fn, code, bias, jax.random.fold_in(key, i), stage, transforms)
        code, bias = result.code, result.bias
        results.append(result)
    return code, bias, results


def interpolate(a: PyTree, b: PyTree, amount: jax.Array | float) -> PyTree:
    """``(1 - amount) * a + amount * b`` for codes, corrections or any equal trees (identity interpolation, paper
    6.2).
    """
    return jax.tree.map(lambda x, y: (1 - amount) * x + amount * y, a, b)
