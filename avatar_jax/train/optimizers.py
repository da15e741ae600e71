"""Optimizers with PyTorch's arithmetic, and gradient clipping with its constant.

Three points where a plain Optax chain differs from the programs whose recipes are reproduced here:

* clipping multiplies by ``min(1, max_norm / (norm + 1e-6))``, not by ``max_norm / norm``;
* the bias corrections ``1 - beta**t`` are taken as ``-expm1(t * log(beta))``: in float32 the literal form loses four
  digits for ``beta = 0.9999`` at the first steps, where PyTorch computes in Python doubles;
* the learning rate of a step may be scaled from outside (``lr_scale``), so schedules live in the train step and need
  neither a recompilation nor a second counter in the optimizer state.

Each trained group (controller, generator, codes) has its own transformation and its own state. A group that is not
trained in a step must not be updated at all: with zero gradients Adam still moves it by its momentum.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from avatar_jax.checks import Check
from avatar_jax.types import PyTree

_LITTLE = 4096  # numbers of a leaf that ``global_norm`` joins with others


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimizer. ``type``: 'adam' (weight decay added to the gradient), 'adamw' (decoupled decay) or 'sgd'."""

    type: str = 'adam'
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0  # sgd only

    def __post_init__(self):
        check = Check(self, 'optimizer')
        check.one_of('type', 'adam', 'adamw', 'sgd')
        check.at_least(0, 'lr', 'eps')
        check.decay('beta1', 'beta2')
        check.need(
            not self.momentum or self.type == 'sgd', 'momentum', f"is an option of 'sgd'; {self.type!r} has beta1"
        )


class AdamState(NamedTuple):
    """First and second moments and the number of updates taken (int32)."""

    count: jax.Array
    mu: PyTree
    nu: PyTree


class SgdState(NamedTuple):
    """Velocity; an empty tuple without momentum."""

    velocity: PyTree


def bias_correction(beta: float, count: jax.Array, dtype) -> jax.Array:
    """``1 - beta**count`` without cancellation; ``count`` >= 1."""
    if beta == 0.0:
        return jnp.ones((), dtype)
    return -jnp.expm1(count.astype(dtype) * math.log(beta))


@functools.lru_cache(maxsize=64)  # so that programs that start its states are known again
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """The Optax transformation of ``config``.

    ``update(grads, state, params, lr_scale=1.0)`` returns updates to be added (``optax.apply_updates``). Moments are
    kept in the dtype of the parameters.
    """
    if config.type == 'sgd':
        return _sgd(config)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None, *, lr_scale=1.0, **_):
        if config.weight_decay and params is None:
            raise ValueError('an optimizer with weight decay needs the parameters')
        count = state.count + 1
        if config.weight_decay and config.type == 'adam':
            grads = jax.tree.map(lambda g, p: g + config.weight_decay * p, grads, params)
        mu = jax.tree.map(lambda m, g: config.beta1 * m + (1 - config.beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: config.beta2 * v + (1 - config.beta2) * g * g, state.nu, grads)

        # Once for each dtype, not for each parameter.
        dtypes = {m.dtype for m in jax.tree.leaves(mu)}
        first, second = ({d: bias_correction(b, count, d) for d in dtypes} for b in (config.beta1, config.beta2))

        def step(m, v, p):
            m_hat = m / first[m.dtype]
            v_hat = v / second[v.dtype]
            direction = m_hat / (jnp.sqrt(v_hat) + config.eps)
            if config.weight_decay and config.type == 'adamw':
                direction = direction + config.weight_decay * p
            return (-config.lr * lr_scale * direction).astype(m.dtype)

        return jax.tree.map(step, mu, nu, mu if params is None else params), AdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _sgd(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    def init(params):
        return SgdState(jax.tree.map(jnp.zeros_like, params) if config.momentum else ())

    def update(grads, state, params=None, *, lr_scale=1.0, **_):
        if config.weight_decay:
            grads = jax.tree.map(lambda g, p: g + config.weight_decay * p, grads, params)
        if config.momentum:
            grads = jax.tree.map(lambda v, g: config.momentum * v + g, state.velocity, grads)
            state = SgdState(grads)
        return jax.tree.map(lambda g: (-config.lr * lr_scale * g).astype(g.dtype), grads), state

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(tree: PyTree) -> jax.Array:
    """Euclidean norm over all leaves together (a scalar; 0 for an empty tree)."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.zeros(())
    # Little leaves, of which networks have many, as one: a sum for each of them is a program to compile for each.
    large = [x for x in leaves if x.size > _LITTLE]
    little = [x.ravel() for x in leaves if x.size <= _LITTLE]
    joined = [jnp.concatenate(little)] if little else []
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in (*large, *joined)))


def clip_factor(norm: jax.Array, max_norm: float) -> jax.Array:
    """``min(1, max_norm / (norm + 1e-6))``."""
    return jnp.minimum(1.0, max_norm / (norm + 1e-6))


def clip_by_global_norm(grads: PyTree, max_norm: float | None) -> tuple[PyTree, jax.Array]:
    """Scales all leaves by one factor so that their common norm is at most ``max_norm``; returns (grads, norm before).

    ``max_norm=None`` only measures.
    """
    norm = global_norm(grads)
    if max_norm is None:
        return grads, norm
    factor = clip_factor(norm, max_norm)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), norm


def step_decay(step: jax.Array, every: int, gamma: float) -> jax.Array:
    """Staircase schedule ``gamma ** (step // every)`` as a scale of the learning rate; ``every=0`` means constant."""
    return gamma ** (jnp.asarray(step) // every) if every else jnp.ones(())


def ema_update(average: PyTree, value: PyTree, decay) -> PyTree:
    """``decay * average + (1 - decay) * value``, leaf by leaf."""
    return jax.tree.map(lambda a, v: decay * a + (1 - decay) * v, average, value)
