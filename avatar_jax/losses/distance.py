"""A perceptual distance of pictures: LPIPS where its weights are here, else one that needs no network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.losses.pixel import pyramid_loss

CHOICES = ('auto', 'lpips_alex', 'lpips_vgg', 'lpips_squeeze', 'pyramid', 'none')
Distance = Callable[[jax.Array, jax.Array], jax.Array]


def distance_kind(bank: PerceptionBank, choice: str = 'auto', option: str = 'perceptual_network') -> str:
    """'lpips_...', 'pyramid' or 'none'; 'auto' is AlexNet's LPIPS where its weights are here, else pyramid.

    Raises:
        UserError: an unknown choice, or a network that is asked for by name and is not here.
    """
    if choice not in CHOICES:
        raise UserError(f'{option}: {choice!r}; use one of {", ".join(CHOICES)}')
    if choice == 'auto':
        return 'lpips_alex' if bank.has('lpips_alex') else 'pyramid'
    if choice.startswith('lpips_') and not bank.has(choice):
        raise UserError(f'{option}: {choice!r} needs the weights of its trunk and of {choice}; give their files')
    return choice


def distance_of(bank: PerceptionBank, kind: str, scales: int = 3) -> Distance | None:
    """The distance of two batches of pictures [N,H,W,3] in [-1,1], a mean over them; None for 'none'.

    ``scales``: of 'pyramid'.
    """
    if kind == 'none':
        return None
    if kind == 'pyramid':
        return lambda a, b: pyramid_loss(a, b, scales)
    return lambda a, b: jnp.mean(bank.lpips(kind.removeprefix('lpips_'), a, b))


def describe(bank: PerceptionBank, kind: str) -> str:
    """The distance in words, for reports."""
    texts = {'pyramid': 'no network: multi-scale pixel and edge distance (pyramid)', 'none': 'off'}
    return texts.get(kind) or f'LPIPS {kind.removeprefix("lpips_")} v0.1 ({dict(bank.sources).get(kind, "")})'
