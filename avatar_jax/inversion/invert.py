"""Finding the identity code of one picture, and of many pictures at once.

``invert`` is written for one person. Everything in it is a pure function of arrays, so many people are the same
function under ``jax.vmap``: codes, corrections, optimizers, random keys and the decision to stop are then per person. A
person whose loss no longer falls is frozen by a mask while the others go on; the loop ends when all have stopped.

A stage optimises ``rows`` code rows (1: space W; all: W+) together with the correction of the intrinsics, with fresh
optimizers, first on the raw rendering alone and in the last ``sr_steps`` steps on the super-resolved image too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from avatar_jax.train.optimizers import clip_by_global_norm

PyTree = Any
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
        if self.space not in ('w', 'w+'):
            raise ValueError(f"space={self.space!r}: use 'w' or 'w+'")
        if not 0 <= self.sr_steps <= self.steps or self.steps < 1:
            raise ValueError(f'steps={self.steps}, sr_steps={self.sr_steps}: need 0 <= sr_steps <= steps, steps >= 1')
        if not (self.optimise_code or self.optimise_intrinsics):
            raise ValueError('nothing to optimise: switch on optimise_code or optimise_intrinsics')
        if self.patience < 1 or not self.tolerance >= 0:
            raise ValueError(f'patience={self.patience}, tolerance={self.tolerance}: at least 1 and 0')


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


class _Carry(NamedTuple):
    code: jax.Array
    previous: jax.Array
    bias: jax.Array
    code_state: PyTree
    bias_state: PyTree
    smooth: jax.Array  # running mean of the loss, the scale-free part of the stopping rule
    best: jax.Array
    since: jax.Array  # steps since ``best`` fell
    steps: jax.Array


def run_stage(loss_fn: LossFn, code: jax.Array, bias: jax.Array, key: jax.Array, config: StageConfig,
              code_tx: optax.GradientTransformationExtraArgs, bias_tx: optax.GradientTransformationExtraArgs,
              record: Callable[[jax.Array, jax.Array], PyTree] | None = None) -> StageResult:  # fmt: skip
    """One stage for one person; see the module text. ``record``: ``(code, bias) -> pytree`` kept after every update."""
    wanted = tuple(i for i, on in enumerate((config.optimise_code, config.optimise_intrinsics)) if on)
    raw_steps = config.steps - config.sr_steps

    def step(carry: _Carry, n, sr: bool):
        (loss, terms), grads = jax.value_and_grad(loss_fn, argnums=wanted, has_aux=True)(
            carry.code, carry.bias, jax.random.fold_in(key, n), sr)  # fmt: skip
        grads = dict(zip(wanted, grads, strict=True))
        new = carry._replace(previous=carry.code, steps=carry.steps + 1)
        if 0 in grads:
            grad, _ = clip_by_global_norm(grads[0], config.clip)
            update, code_state = code_tx.update(grad, carry.code_state, carry.code)
            new = new._replace(code=carry.code + update, code_state=code_state)
        if 1 in grads:
            update, bias_state = bias_tx.update(grads[1], carry.bias_state, carry.bias)
            new = new._replace(bias=carry.bias + update, bias_state=bias_state)
        smooth = jnp.where(jnp.isinf(carry.smooth), loss, 0.8 * carry.smooth + 0.2 * loss)
        better = smooth < carry.best * (1 - config.tolerance)
        new = new._replace(smooth=smooth, best=jnp.where(better, smooth, carry.best),
                           since=jnp.where(better, 0, carry.since + 1))  # fmt: skip
        kept = None if record is None else record(new.code, new.bias)
        return new, (loss, dict(terms), kept)

    def phase(carry: _Carry, first: int, count: int, sr: bool):
        """``count`` steps from number ``first``; the stopping rule starts afresh, as the loss is another one."""
        inf = jnp.full((), jnp.inf, carry.smooth.dtype)
        carry = carry._replace(smooth=inf, best=inf, since=jnp.zeros((), jnp.int32))
        if not config.early_stop:
            return jax.lax.scan(lambda c, n: step(c, n, sr), carry, first + jnp.arange(count))
        shapes = jax.eval_shape(lambda c: step(c, jnp.asarray(first), sr)[1], carry)
        buffers = jax.tree.map(lambda s: jnp.full((count, *s.shape), jnp.nan, s.dtype), shapes)

        def going(loop):
            return (loop[0] < count) & (loop[1].since < config.patience)

        def body(loop):
            i, carry, buffers = loop
            carry, out = step(carry, first + i, sr)
            return i + 1, carry, jax.tree.map(lambda b, o: b.at[i].set(o), buffers, out)

        _, carry, buffers = jax.lax.while_loop(going, body, (jnp.zeros((), jnp.int32), carry, buffers))
        return carry, buffers

    zero = jnp.zeros((), jnp.int32)
    loss_dtype = jnp.result_type(code, bias)
    inf = jnp.full((), jnp.inf, loss_dtype)
    carry = _Carry(code, code, bias, code_tx.init(code), bias_tx.init(bias), inf, inf, zero, zero)
    outs = []
    for first, count, sr in ((0, raw_steps, False), (raw_steps, config.sr_steps, True)):
        if count:
            carry, out = phase(carry, first, count, sr)
            outs.append((count, out))
    curve = jnp.concatenate([out[0] for _, out in outs])
    names = sorted({name for _, out in outs for name in out[1]})
    terms = {
        name: jnp.concatenate([out[1].get(name, jnp.full((count,), jnp.nan, curve.dtype)) for count, out in outs])
        for name in names
    }
    records = None if record is None else jax.tree.map(lambda *x: jnp.concatenate(x), *[out[2] for _, out in outs])
    result = carry.previous if config.return_previous else carry.code
    return StageResult(result, carry.bias, curve, terms, carry.steps, carry.since >= config.patience, records)


def invert(loss_fn: LossFn, w_avg: jax.Array, num_rows: int, key: jax.Array, stages: tuple[StageConfig, ...],
           code_tx: optax.GradientTransformationExtraArgs, bias_tx: optax.GradientTransformationExtraArgs,
           start: jax.Array | None = None) -> tuple[jax.Array, jax.Array, list[StageResult]]:  # fmt: skip
    """All stages for one person.

    Args:
        loss_fn: loss of one person's picture, for codes of 1 or of ``num_rows`` rows.
        w_avg: [d], where the code starts. start: [rows, d] to start somewhere else.
        num_rows: rows of a full code.
        stages: run in order; a 'w+' stage spreads a one-row code over all rows, the correction of the intrinsics goes
            on, optimizers start afresh.

    Returns:
        code [num_rows, d] (a W code repeated), bias [18], and the result of each stage.
    """
    code = w_avg[None] if start is None else start
    bias = jnp.zeros((18,), code.dtype)
    results = []
    for i, stage in enumerate(stages):
        rows = 1 if stage.space == 'w' else num_rows
        if code.shape[0] > rows:
            raise ValueError("a 'w' stage cannot follow a 'w+' stage: its code has one row for all layers")
        code = jnp.broadcast_to(code, (rows, code.shape[-1]))
        result = run_stage(loss_fn, code, bias, jax.random.fold_in(key, i), stage, code_tx, bias_tx)
        code, bias = result.code, result.bias
        results.append(result)
    return jnp.broadcast_to(code, (num_rows, code.shape[-1])), bias, results


def interpolate(a: PyTree, b: PyTree, amount: jax.Array | float) -> PyTree:
    """``(1 - amount) * a + amount * b`` for codes, corrections or any equal trees (identity interpolation, paper 6.2)."""
    return jax.tree.map(lambda x, y: (1 - amount) * x + amount * y, a, b)


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of a copy of the generator around a fixed code.

    Attributes:
        steps: updates. stop_term, stop_below: end when this term falls below the value ('' runs all steps).
    """

    steps: int = 50
    stop_term: str = ''
    stop_below: float = 0.0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError('steps must be at least 1')


def finetune(loss_fn: Callable[[PyTree, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]], params: PyTree,
             key: jax.Array, config: FinetuneConfig, tx: optax.GradientTransformationExtraArgs,
             ) -> tuple[PyTree, jax.Array, dict[str, jax.Array], jax.Array]:  # fmt: skip
    """Optimises ``params`` of ``loss_fn(params, key) -> (loss, terms)``.

    Returns:
        the tuned copy, loss curve [steps], term curves (NaN after an early end), number of updates.
    """

    def step(params, opt_state, n):
        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, jax.random.fold_in(key, n))
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, (loss, dict(terms))

    shapes = jax.eval_shape(lambda p: step(p, tx.init(p), jnp.asarray(0))[2], params)
    if config.stop_term and config.stop_term not in shapes[1]:
        raise ValueError(f'stop_term={config.stop_term!r}: the loss has {sorted(shapes[1])}')
    buffers = jax.tree.map(lambda s: jnp.full((config.steps, *s.shape), jnp.nan, s.dtype), shapes)

    def going(loop):
        n, _, _, (_, terms) = loop
        if not config.stop_term:
            return n < config.steps
        reached = terms[config.stop_term][jnp.maximum(n - 1, 0)] < config.stop_below  # NaN before the first step
        return (n < config.steps) & ~reached

    def body(loop):
        n, params, opt_state, buffers = loop
        params, opt_state, out = step(params, opt_state, n)
        return n + 1, params, opt_state, jax.tree.map(lambda b, o: b.at[n].set(o), buffers, out)

    start = (jnp.zeros((), jnp.int32), params, tx.init(params), buffers)
    n, params, _, (curve, terms) = jax.lax.while_loop(going, body, start)
    return params, curve, terms, n
