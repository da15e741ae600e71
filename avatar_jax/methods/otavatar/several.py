"""Several pictures of one person: all have one code, and each keeps its own camera and its own motion.

A person is a ``Portrait``, or a sequence of them. Arrays of several have a further leading axis P of pictures. What is
optimised is the mean of the pictures' losses (``mean_loss``); they are computed one after the other, each with its
gradient, so that eight pictures need no more memory than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.camera_labels import split_label
from avatar_jax.parallel import as_arrays
from avatar_jax.types import Portrait, PyTree

Person = Portrait | Sequence[Portrait]
MEASURED = {'expression': 64, 'angle': 3, 'translation': 3}  # numbers of each; zero where they were not measured
KNOWN = (*MEASURED, 'landmarks', 'mask')  # what a portrait may lack


def pictures_of(person: Person) -> tuple[Portrait, ...]:
    """The pictures of a person; the first is the one that the avatar's own view is of."""
    return (person,) if isinstance(person, Portrait) else tuple(person)


def name_of(person: Person) -> str:
    """Where the pictures are from, for avatars and messages."""
    return ', '.join(p.source for p in pictures_of(person) if p.source)


def compared(person: Person) -> tuple[Portrait, ...]:
    """A person's pictures as the losses see them: of several, the same is known, so that they can be stacked.

    What was not measured on a picture counts as zero, as it does for a single one. Landmarks, which terms need, are
    left out unless all pictures have them.
    """
    pictures = pictures_of(person)
    if len(pictures) == 1:
        return pictures
    marked = all(p.landmarks is not None for p in pictures)
    return tuple(
        p.replace(
            **{k: np.zeros(n, np.float32) for k, n in MEASURED.items() if getattr(p, k) is None},
            **({} if marked else {'landmarks': None}),
        )
        for p in pictures
    )


def alike(people: Sequence[Person]) -> list[list[int]]:
    """Numbers of the people, grouped by how many pictures there are and what is known of them: only such can be
    stacked.
    """
    groups: dict[tuple, list[int]] = {}
    for i, person in enumerate(people):
        pictures = compared(person)
        known = KNOWN if len(pictures) == 1 else KNOWN[:-1]  # masks are for scores, and not stacked
        lacks = tuple(getattr(pictures[0], name) is None for name in known)
        groups.setdefault((len(pictures), *lacks), []).append(i)
    return list(groups.values())


def stack_portraits(people: Sequence[Person]) -> Portrait:
    """One ``Portrait`` with a leading axis of people who are ``alike``, of several pictures each with a second one;
    without source, basis and shape (of several pictures also without masks).
    """

    def stack(trees: Sequence[PyTree]) -> PyTree:
        return jax.tree.map(lambda *x: np.stack([np.asarray(v, np.float32) for v in x]), *trees)

    def plain(person: Person) -> Portrait:
        pictures = [p.replace(source='', basis='', shape=None) for p in compared(person)]
        return pictures[0] if len(pictures) == 1 else stack([p.replace(mask=None) for p in pictures])

    return as_arrays(stack([plain(person) for person in people]))


def mean_loss(
    one: Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]], pictures: PyTree
) -> Callable[[PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]:
    """The mean loss ``(moving, key) -> (loss, terms)`` of P pictures.

    Gradients of the loss with respect to ``moving`` are right; terms are for reports, and have none.

    Args:
        one: ``(picture, moving, key) -> (loss, terms)`` of one picture. pictures: a tree of [P, ...].
    """
    count = jax.tree.leaves(pictures)[0].shape[0]

    def mean(function: Callable, moving: PyTree, key: jax.Array) -> PyTree:
        def each(i: jax.Array, picture: PyTree) -> PyTree:
            return function(picture, moving, jax.random.fold_in(key, i))

        def step(total: PyTree, row: tuple) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, each(*row)), None

        rows = (jnp.arange(count), pictures)
        shapes = jax.eval_shape(each, *jax.tree.map(lambda x: x[0], rows))
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.tree.map(lambda x: x / count, jax.lax.scan(step, start, rows)[0])

    def plain(picture: PyTree, moving: PyTree, key: jax.Array) -> tuple:
        loss, terms = one(picture, moving, key)
        return loss, dict(terms)

    @jax.custom_vjp
    def loss(moving, key):
        return mean(plain, moving, key)

    def forward(moving, key):
        # A scan that is differentiated as a whole would keep what every picture's gradient needs.
        return mean(jax.value_and_grad(plain, argnums=1, has_aux=True), moving, key)

    def backward(gradient, cotangents):
        return jax.tree.map(lambda g: cotangents[0] * g, gradient), None

    loss.defvjp(forward, backward)
    return loss


def yaw_of(portrait: Portrait) -> float:
    """Degrees by which a portrait's camera stands to the side of the face's front, positive towards x."""
    pose, _ = split_label(np.asarray(portrait.camera.label, np.float64))
    forward = pose[:3, 2]
    return float(np.rad2deg(np.arctan2(-forward[0], -forward[2])))


def mean_over(pictures: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean of a score over a person's pictures; NaN where none has it."""
    values = [float(p[name]) for p in pictures]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')
