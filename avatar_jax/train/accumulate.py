"""Gradients of a mean over samples, computed on parts of the batch one after the other.

The activations of one part are in memory at a time; the result is that of the whole batch as long as the loss is a mean
over samples (every regulariser that depends on parameters alone counts fully in every part and is averaged away).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from avatar_jax.types import PyTree

Loss = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, Mapping[str, jax.Array]]]


def split_batch(tree: PyTree, parts: int) -> PyTree:
    """Arrays [B, ...] as [parts, B / parts, ...], parts of neighbouring samples. ``ValueError`` if B does not
    divide.
    """

    def split(x):
        if x.shape[0] % parts:
            raise ValueError(f'{x.shape[0]} samples do not divide into {parts} parts')
        return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

    return jax.tree.map(split, tree)


def value_and_grad_in_parts(
    loss_fn: Loss,
    shared: PyTree,
    own: PyTree,
    batch: PyTree,
    parts: int = 1,
) -> tuple[tuple[jax.Array, Mapping[str, jax.Array]], tuple[PyTree, PyTree]]:
    """Value and gradient of ``loss_fn(shared, own, batch) -> (loss, terms)``, averaged over equal parts of the samples.

    Args:
        loss_fn: a mean over the samples that it gets; all terms are scalars.
        shared: what is differentiated and common to all samples, e.g. parameters; () for nothing.
        own: what is differentiated and belongs to the samples, arrays [B, ...]; () for nothing.
        batch: arrays [B, ...] (typed keys too) that are not differentiated.
        parts: how many; 1 is ``jax.value_and_grad`` itself.

    Returns:
        ``(loss, terms), (gradients of shared, gradients of own [B, ...])``, all of the mean over B samples.
    """
    value_and_grad = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
    if parts == 1:
        return value_and_grad(shared, own, batch)

    def one(sums, part):
        (loss, terms), (shared_grads, own_grads) = value_and_grad(shared, *part)
        return jax.tree.map(jnp.add, sums, (loss, dict(terms), shared_grads)), own_grads

    pieces = split_batch((own, batch), parts)
    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(lambda: loss_fn(shared, *first))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], dict(shapes[1])))
    (loss, terms, shared_grads), own_grads = jax.lax.scan(one, (*zeros, jax.tree.map(jnp.zeros_like, shared)), pieces)
    loss, terms, shared_grads, own_grads = jax.tree.map(lambda x: x / parts, (loss, terms, shared_grads, own_grads))
    own_grads = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), own_grads)
    return (loss, terms), (shared_grads, own_grads)
