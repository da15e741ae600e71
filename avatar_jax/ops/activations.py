"""Bias, activation, gain and clamp in one step, with the default gains of the StyleGAN2 family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Float

SQRT2 = 2.0**0.5


class Activation(NamedTuple):
    """``function(x, alpha)``, its default ``alpha`` (None: takes none) and the gain that keeps the variance."""

    function: Callable[[jax.Array, float], jax.Array]
    alpha: float | None
    gain: float


ACTIVATIONS: dict[str, Activation] = {
    'linear': Activation(lambda x, a: x, None, 1.0),
    'relu': Activation(lambda x, a: jax.nn.relu(x), None, SQRT2),
    'lrelu': Activation(lambda x, a: jnp.where(x >= 0, x, x * a), 0.2, SQRT2),
    'tanh': Activation(lambda x, a: jnp.tanh(x), None, 1.0),
    'sigmoid': Activation(lambda x, a: jax.nn.sigmoid(x), None, 1.0),
    'elu': Activation(lambda x, a: jax.nn.elu(x), None, 1.0),
    'selu': Activation(lambda x, a: jax.nn.selu(x), None, 1.0),
    'softplus': Activation(lambda x, a: jax.nn.softplus(x), None, 1.0),
    'swish': Activation(lambda x, a: x * jax.nn.sigmoid(x), None, SQRT2),
}


def activation(name: str) -> Activation:
    """Looks an activation up by name; ``ValueError`` with the known names otherwise."""
    if name not in ACTIVATIONS:
        raise ValueError(f'activation {name!r} is unknown; use one of {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS[name]


def bias_act(
    x: Float[jax.Array, '*batch channels'],
    b: Float[jax.Array, ' channels'] | None = None,
    act: str = 'linear',
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Float[jax.Array, '*batch channels']:
    """``clip(act(x + b) * gain, -clamp, clamp)`` over the last (channel) axis.

    Args:
        x: [..., C].
        b: [C] or None.
        act: a name of ``ACTIVATIONS``.
        alpha: slope for 'lrelu'; None takes the default 0.2. Other activations take none.
        gain: factor after the activation; None takes the default of the activation.
        clamp: limit of the absolute value after the gain; None does not limit.

    Returns:
        [..., C] in the dtype of ``x``.
    """
    spec = activation(act)
    if alpha is not None and spec.alpha is None:
        raise ValueError(f'activation {act!r} has no alpha')
    if b is not None:
        x = x + b.astype(x.dtype)
    x = spec.function(x, spec.alpha if alpha is None else alpha)
    gain = spec.gain if gain is None else gain
    if gain != 1:
        x = x * gain
    return x if clamp is None else jnp.clip(x, -clamp, clamp)


def normalize_2nd_moment(
    x: Float[jax.Array, '*batch channels'], eps: float = 1e-8
) -> Float[jax.Array, '*batch channels']:
    """Scales [..., C] to unit mean square over the last axis: ``x * rsqrt(mean(x^2) + eps)``."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
