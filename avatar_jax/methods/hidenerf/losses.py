"""HiDe-NeRF's training terms (supplement 6.2, eq. S1; reference section 6). Pictures are [N,H,W,3] in [-1, 1].

The printed equation repeats the final picture in the second perceptual and adversarial term; its text makes clear that
the raw picture is meant.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.losses.pixel import pyramid_loss
from avatar_jax.methods.hidenerf.model import Views
from avatar_jax.methods.hidenerf.parts import LossConfig
from avatar_jax.ops.resize import resize

Distance = Callable[[jax.Array, jax.Array], jax.Array]
RAW_ENLARGED = 4  # the raw picture is compared perceptually at so many times its size
PYRAMID_SCALES = 4


def network_of(config: LossConfig, bank: PerceptionBank | None) -> str:
    """What the perceptual term looks through: 'vgg16', 'pyramid' or 'none'.

    Raises:
        UserError: LPIPS is asked for by name and its weights are not here.
    """
    here = bank is not None and bank.has('lpips_vgg')
    if config.network == 'vgg16' and not here:
        raise UserError(
            "loss.network: 'vgg16' needs the weights of LPIPS: give --config.perception=('vgg16=FILE', "
            "'lpips_vgg=FILE'), or use 'pyramid'"
        )
    if config.network == 'auto':
        return 'vgg16' if here else 'pyramid'
    return config.network


def distance_of(config: LossConfig, bank: PerceptionBank | None) -> Distance:
    """The perceptual distance of two batches of pictures, averaged over them."""
    kind = network_of(config, bank)
    if kind == 'vgg16':
        return lambda a, b: bank.lpips('vgg', a, b).mean()
    return pyramid if kind == 'pyramid' else lambda a, b: jnp.zeros(())


def pyramid(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multi-scale pixel and edge distance, for want of a network; not a perceptual metric."""
    scales = min(PYRAMID_SCALES, min(a.shape[1:3]).bit_length() - 1)
    return pyramid_loss(a, b, scales) / scales


def deformation_norm(shift: jax.Array, reduce: str = 'mean') -> jax.Array:
    """R_D, the l1 norm of displacements [...,3]: its mean over points, or its sum (the paper's wording)."""
    norms = jnp.abs(shift).sum(-1)
    return norms.mean() if reduce == 'mean' else norms.sum()


def reconstruction(
    config: LossConfig,
    distance: Distance,
    views: Views,
    target: jax.Array,
    mask: jax.Array | None = None,
    importance: jax.Array | None = None,
    surface: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Weighted terms that need no discriminator; their sum is the loss.

    Args:
        views: without a final picture, its parts of the terms are left out.
        target: [N,R,R,3], the driver's picture. mask: [N,R,R] of its head, for ``opacity``.
        importance: [N,R,R] weights of its pixels, for ``focus``. surface: [N,H,W] distances along the rays, 0 where
            nothing is, for ``depth``.
    """
    raw = views.raw.shape[1]
    small = resize(target, raw, antialias=True)
    whole = views.image is not None
    errors = ([jnp.square(views.image - target)] if whole else []) + [jnp.square(views.raw - small)]
    terms = {'pixel': config.pixel * sum(e.mean() for e in errors)}
    if config.perceptual and config.network != 'none':
        # 64 x 64 pixels would leave the deepest layers 4 x 4.
        pair = [resize(x, RAW_ENLARGED * raw) for x in (views.raw, small)]
        final = distance(views.image, target) if whole else 0.0
        terms['perceptual'] = config.perceptual * (final + distance(*pair))
    if config.deformation:
        terms['deformation'] = config.deformation * deformation_norm(views.shift, config.reduce)
    if config.opacity:
        if mask is None:
            raise ValueError('loss.opacity needs masks')
        covered = resize(mask[..., None], raw, antialias=True)
        terms['opacity'] = config.opacity * jnp.mean((views.opacity - covered) ** 2)
    if config.focus:
        if importance is None:
            raise ValueError('loss.focus needs importances')
        weights = [importance[..., None]] * whole + [resize(importance[..., None], raw, antialias=True)]
        # Normalised by picture, so that the term is a mean over samples.
        terms['focus'] = config.focus * sum(
            ((e * w).mean((1, 2, 3)) / jnp.maximum(w.mean((1, 2, 3)), 1e-6)).mean()
            for e, w in zip(errors, weights, strict=True)
        )
    if config.depth:
        if surface is None:
            raise ValueError('loss.depth needs depths')
        there = (surface > 0).astype(jnp.float32)
        share, mean = (resize(x[..., None], raw, antialias=True) for x in (there, surface * there))
        away = jnp.abs(views.depth - mean / jnp.maximum(share, 1e-6))
        terms['depth'] = config.depth * jnp.mean(jnp.where(share > 0.99, away, 0.0))
    return terms
