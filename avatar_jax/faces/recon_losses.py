"""Losses that train the coefficient regressor without labels (Deep3DFaceRecon).

``total`` is the weighted sum; each term is a plain function. Images are [B, H, W, 3] in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.ops.coefficients import Coefficients, unpack

PHOTO_EPS = 1e-6
HEAVY_LANDMARKS = (28, 29, 30, *range(60, 68))  # nose ridge and inner lips
HEAVY_WEIGHT = 20.0


@dataclass(frozen=True)
class ReconLossWeights:
    """Weights of the terms in ``total`` and of the parts of ``coefficient_loss``."""

    feat: float = 0.2
    color: float = 1.92
    reg: float = 3e-4
    gamma: float = 10.0
    lm: float = 1.6e-3
    reflc: float = 5.0
    id: float = 1.0
    exp: float = 0.8
    tex: float = 1.7e-2


def photo_loss(rendered: jax.Array, real: jax.Array, mask: jax.Array, eps: float = PHOTO_EPS) -> jax.Array:
    """Mean colour distance inside ``mask`` [B, H, W, 1] (skin attention times rendered region, no gradient); 0 if
    empty.
    """
    distance = jnp.sqrt(eps + jnp.sum((rendered - real) ** 2, -1, keepdims=True))
    mask = jax.lax.stop_gradient(mask)
    return jnp.sum(distance * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def landmark_weights() -> np.ndarray:
    """[68]: 20 for the nose ridge and the inner lips, else 1."""
    weights = np.ones(68, np.float32)
    weights[list(HEAVY_LANDMARKS)] = HEAVY_WEIGHT
    return weights


def landmark_loss(predicted: jax.Array, target: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted mean squared distance of landmarks [B, 68, 2] in pixels."""
    weights = landmark_weights() if weights is None else weights
    square = jnp.sum((predicted - target) ** 2, -1)
    return jnp.sum(square * weights) / (square.shape[0] * square.shape[1])


def coefficient_loss(
    coefficients: jax.Array | Coefficients, weights: ReconLossWeights = ReconLossWeights()
) -> tuple[jax.Array, jax.Array]:
    """(regularisation, light) of coefficients [B, 257].

    The first pulls identity, expression and albedo towards the mean face; the second keeps the light colourless:
    squared distance of the three channels' 9 numbers from their mean.
    """
    c = coefficients if isinstance(coefficients, Coefficients) else unpack(coefficients)
    size = sum(getattr(weights, part) * jnp.sum(getattr(c, part) ** 2) for part in ('id', 'exp', 'tex'))
    gamma = c.gamma.reshape(-1, 3, 9)
    return size / c.id.shape[0], jnp.mean((gamma - gamma.mean(1, keepdims=True)) ** 2)


def reflectance_loss(texture: jax.Array, skin_mask: jax.Array) -> jax.Array:
    """Variance of the albedo [B, V, 3] over the skin vertices of ``skin_mask`` [V]."""
    mask = skin_mask[:, None]
    mean = jnp.sum(texture * mask, 1, keepdims=True) / jnp.sum(skin_mask)
    return jnp.sum(((texture - mean) * mask) ** 2) / (texture.shape[0] * jnp.sum(skin_mask))


def perceptual_loss(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of 1 - cosine between face-recognition features [B, D] of rendered and real face."""

    def unit(x):
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return jnp.mean(1 - jnp.sum(unit(predicted) * unit(target), -1))


def total(terms: dict[str, jax.Array], weights: ReconLossWeights = ReconLossWeights()) -> jax.Array:
    """Weighted sum of the given terms, named as the first six fields of ``ReconLossWeights``.

    Raises:
        ValueError: an unknown term.
    """
    known = {f.name for f in fields(weights)} - {'id', 'exp', 'tex'}
    unknown = set(terms) - known
    if unknown:
        raise ValueError(f'unknown loss terms {sorted(unknown)}; known are {sorted(known)}')
    return sum(getattr(weights, name) * value for name, value in terms.items())
