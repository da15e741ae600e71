"""Terms on style rows: e4e's delta regulariser, its latent discriminator, and the norm of a code (NOFA section 2.5).

They keep the rows of an encoder near each other and near the codes that the generator was trained with, so that the
code stays editable.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

Score = Callable[[jax.Array], jax.Array]


def safe_norm(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
    """Euclidean norm over axes; its gradient at 0 is 0 instead of NaN."""
    square = jnp.sum(x * x, axes)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def code_norm(rows: jax.Array) -> jax.Array:
    """Mean over the batch of the norm of all entries of offsets from the mean code [B,L,D]."""
    return jnp.mean(safe_norm(rows, (1, 2)))


def delta_regularizer(rows: jax.Array, stage: int | jax.Array | None = None) -> jax.Array:
    """Sum over the rows 1..stage of the batch's mean of ``|w_i - w_0|``; None: all rows [B,L,D]."""
    norms = safe_norm(rows[:, 1:] - rows[:, :1], -1).mean(0)
    if stage is None:
        return norms.sum()
    return jnp.sum(jnp.where(jnp.arange(1, rows.shape[1]) <= stage, norms, 0))


def encoder_adversarial(score: Score, rows: jax.Array, stage: int | jax.Array | None = None) -> jax.Array:
    """How little an encoder's rows [B,L,D] look like real codes: softplus(-D), mean over the rows 0..stage."""
    each = jax.nn.softplus(-score(rows)[..., 0]).mean(0)
    if stage is None:
        return each.mean()
    counts = jnp.arange(rows.shape[1]) <= stage
    return jnp.sum(jnp.where(counts, each, 0)) / counts.sum()


def discriminator_loss(score: Score, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Non-saturating loss of a discriminator of codes [N,D]."""
    return jnp.mean(jax.nn.softplus(-score(real))) + jnp.mean(jax.nn.softplus(score(fake)))


def r1_penalty(score: Score, real: jax.Array) -> jax.Array:
    """Mean over the batch of the squared gradient of the score at real codes [N,D]."""
    return jnp.mean(jnp.sum(jnp.square(jax.grad(lambda w: jnp.sum(score(w)))(real)), -1))


@struct.dataclass
class CodePool:
    """Codes that an encoder made earlier [P,D], and how many places are filled."""

    codes: jax.Array
    filled: jax.Array

    @classmethod
    def empty(cls, size: int, w_dim: int) -> CodePool:
        """A pool without codes; size 0 hands codes on as they are."""
        return cls(jnp.zeros((size, w_dim)), jnp.zeros((), jnp.int32))


def query_pool(pool: CodePool, codes: jax.Array, key: jax.Array) -> tuple[CodePool, jax.Array]:
    """Hands in codes [N,D], gets as many back: while there is room they are kept and returned; then each is either
    returned, or (every second on average) takes the place of a random earlier one, which is returned instead.
    """
    size = pool.codes.shape[0]
    if size == 0:
        return pool, codes

    def one(pool, item):
        code, key = item
        swap_key, place_key = jax.random.split(key)
        room = pool.filled < size
        swap = ~room & jax.random.bernoulli(swap_key)
        place = jnp.where(room, pool.filled, jax.random.randint(place_key, (), 0, size))
        place = jnp.minimum(place, size - 1)
        out = jnp.where(swap, pool.codes[place], code)
        kept = jnp.where(room | swap, code, pool.codes[place])
        return CodePool(pool.codes.at[place].set(kept), jnp.minimum(pool.filled + room, size)), out

    return jax.lax.scan(one, pool, (codes, jax.random.split(key, codes.shape[0])))
