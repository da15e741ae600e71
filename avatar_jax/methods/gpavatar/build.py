"""From portraits to an avatar of GPAvatar, with a report: ``model.build`` behind the interface of all methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.losses.identity import FACE_NETWORKS
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Built, NoOptions, Source
from avatar_jax.methods.gpavatar import model as networks

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model
    from avatar_jax.types import Portrait

# Below this similarity two portraits probably show different people. Of 64 procedural people in four poses each, the
# stand-in network has 8 % of the pairs of one person below 0.1, and 23 % of the pairs of two people above.
SAME_PERSON = {**dict.fromkeys(FACE_NETWORKS, 0.3), 'head_identity': 0.1}


def build(
    model: Model,
    source: Source,
    options: NoOptions,
    *,
    bank: PerceptionBank,
    key: jax.Array | None,
    on_step: Callable[..., None],
) -> Built:
    """One avatar of all portraits, in one forward pass of each.

    Args:
        bank: whose network of identity, if there is one, tells whether the portraits show one person.
        key: draws the noise of ``noise='random'``; None adds none.
    """
    del options
    portraits = list(source.portraits)
    similarity, why = similarities(bank, portraits)
    began = time.monotonic()
    avatar = networks.build(model.variables, model.config, portraits, key=key, weights=model.sha256)
    np.asarray(avatar.identity['planes'])
    seconds = time.monotonic() - began
    on_step(1)
    return Built(
        avatar,
        report={
            'similarity_to_first': similarity,
            'seconds_with_compilation': seconds,
            'limit': 'the likeness is bounded by what the weights have seen in training',
        },
        notes=(
            *strangers([p.source or f'portrait {i + 1}' for i, p in enumerate(portraits)], similarity),
            *([why] if why else []),
            *_mean_head(model.config, portraits),
        ),
    )


def _mean_head(config: networks.ModelConfig, portraits: Sequence[Portrait]) -> list[str]:
    """Says that the points have the mean head's shape though the weights want the person's own."""
    if config.shape != 'own' or not config.settings.field.with_points or any(p.shape is not None for p in portraits):
        return []
    size = networks.shape_of(config, []).size
    return [
        f"these weights move the points of the person's own head, but no portrait has shape coefficients ({size} of "
        f"'{config.basis}'): the mean head's were taken, which costs likeness"
    ]


def draws(config: networks.ModelConfig, options: NoOptions) -> bool:
    """Whether anything is drawn at random: the noise of the planes, where it is neither stored nor none."""
    del options
    return config.settings.noise == 'random'


def looks_through(config: networks.ModelConfig, bank: PerceptionBank) -> tuple[str, ...]:
    """The bank's network that compares the portraits."""
    del config
    return tuple(k for k in SAME_PERSON if bank.has(k))[:1]


@partial(jax.jit, static_argnames='kind')
def _recognised(bank, image, landmarks, *, kind):
    return bank.apply(kind, FACE_NETWORKS[kind].cut(image, FACE_NETWORKS[kind].place(landmarks)))


@jax.jit
def _stand_in(bank, image):
    return bank.apply('head_identity', image)


def similarities(bank: PerceptionBank, portraits: Sequence[Portrait]) -> tuple[dict[str, Any] | None, str]:
    """Cosine similarity of each further portrait to the first, and the network it was measured with.

    Returns:
        None where there is nothing to compare, or no network; and a sentence where portraits are not compared, or
        not by the network that was given. Recognition networks look at aligned faces: where a portrait has no
        landmarks, the stand-in looks instead, and is named.
    """
    if len(portraits) < 2:
        return None, ''
    marked, why = all(p.landmarks is not None for p in portraits), ''
    given = next((k for k in FACE_NETWORKS if bank.has(k)), None)
    kind = given if given and marked else 'head_identity' if bank.has('head_identity') else None
    if given and not marked:
        instead = 'the stand-in head_identity compared the portraits' if kind else 'the portraits were not compared'
        why = f'{FACE_NETWORKS[given].title} needs 68 landmarks, which not all portraits have; {instead}'
    elif kind is None:
        why = 'no face recognition network was given: whether the portraits show one person was not checked'
    if kind is None:
        return None, why
    first, values = None, []
    for p in portraits:  # one by one: a hundred portraits need no more memory than one
        image = jnp.asarray(p.image)[None]
        if kind in FACE_NETWORKS:
            code = np.asarray(_recognised(bank, image, jnp.asarray(p.landmarks)[None], kind=kind))[0]
        else:
            code = np.asarray(_stand_in(bank, image))[0]
        code = code / max(float(np.linalg.norm(code)), 1e-12)
        first = code if first is None else first
        values.append(float(code @ first))
    title = FACE_NETWORKS[kind].title if kind in FACE_NETWORKS else 'stand-in: head_identity'
    name = f'{title} ({dict(bank.sources)[kind]})'
    return {'network': name, 'kind': kind, 'values': values[1:]}, why


def strangers(names: Sequence[str], similarity: dict[str, Any] | None) -> list[str]:
    """A sentence for each portrait that looks like somebody else."""
    if similarity is None:
        return []
    limit = SAME_PERSON[similarity['kind']]
    return [
        f'{name}: may show another person than {names[0]} (similarity {value:.2f}, below {limit:.2f}; '
        f'{similarity["network"]}); the avatar will be a mixture'
        for name, value in zip(names[1:], similarity['values'], strict=True)
        if value < limit
    ]
