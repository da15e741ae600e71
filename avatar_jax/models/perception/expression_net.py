"""From the expressions that a landmark fit finds to the expression numbers behind them, in the procedural basis.

Landmarks tell where the face moves, but its 64 numbers overlap: jaw and vowels open the same mouth, and identity is
never exactly known. What helps is how people speak: few mouth shapes at a time, one after the other. This network of
two convolutions in time reads the fitted numbers of about half a second, the clip's mean of them and the head's angle,
and answers with the expected numbers. It was trained on speech of the project's motion generator and on independent
expressions, fitted to landmarks with errors (``launch/train_expression_net.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.checks import Check

EXPRESSION_NET_METHOD = 'expression_net'
RATE = 25.0  # frames per second that it reads
MARGIN = 6  # frames to either side that an answer depends on
NUM_EXPRESSION = 64


@dataclass(frozen=True)
class ExpressionNetConfig:
    """Sizes of the network: ``hidden`` channels; a ``kernel`` of odd length, twice, the second one dilated by two."""

    hidden: int = 80
    kernel: int = 5

    def __post_init__(self):
        check = Check(self)
        check.at_least(1, 'hidden')
        check.one_of('kernel', 5)


class ExpressionNet(nn.Module):
    """Constants: ``mean`` and ``scale_in`` [64] of fitted numbers, ``scale_out`` [64] of the correction.

    Attributes:
        config: sizes.
    """

    config: ExpressionNetConfig

    @nn.compact
    def __call__(self, fitted: jax.Array, angle: jax.Array, usual: jax.Array) -> jax.Array:
        """Expected numbers [N,T,64].

        Args:
            fitted: [N,T,64] expressions of the fit, RATE frames per second. angle: [N,T,3] radians, in the aligned
                crop.
            usual: [N,64] mean of the fit over the measured frames of the clip.
        """
        mean, scale_in, scale_out = (
            self.variable('constants', name, jnp.full, NUM_EXPRESSION, start).value
            for name, start in (('mean', 0.0), ('scale_in', 1.0), ('scale_out', 1.0))
        )
        middle = jnp.broadcast_to(((usual - mean) / scale_in)[:, None], fitted.shape)
        x = jnp.concatenate([(fitted - mean) / scale_in - middle, 3 * angle, middle], -1)
        hidden = nn.silu(nn.Dense(self.config.hidden, name='enter')(x))
        for name, dilation in (('near', 1), ('far', 2)):
            conv = nn.Conv(
                self.config.hidden, (self.config.kernel,), kernel_dilation=dilation, padding='SAME', name=name
            )
            hidden = hidden + nn.silu(conv(hidden))
        correction = nn.Dense(NUM_EXPRESSION, name='leave')(hidden)
        correction = correction + nn.Dense(
            NUM_EXPRESSION, use_bias=False, kernel_init=nn.initializers.zeros, name='straight'
        )(x)
        return fitted + scale_out * correction
