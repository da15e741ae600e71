"""The compensation network (paper section 3.2): what the code of a picture has lost, added to the canonical volume.

Features of the generator's backbone become a second volume, ``V = V_c + V_m``. At every step the source picture scales
and shifts them (SPADE without normalisation). Channels are reduced before the size is doubled, so that the modulation's
convolutions, which dominate the cost, stay away from wide maps. The last convolution starts at zero: at first nothing
is added.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.methods.nofa.config import CompensationConfig
from avatar_jax.models.spade import SpadeResBlock
from avatar_jax.models.styleunet import lrelu
from avatar_jax.ops.conv import conv2d
from avatar_jax.ops.resize import resize


class _ZeroConv(nn.Module):
    inputs: int
    features: int

    @nn.compact
    def __call__(self, x):
        weight = self.param('weight', nn.initializers.zeros, (3, 3, self.inputs, self.features))
        return conv2d(x, weight, 1, 1) + self.param('bias', nn.initializers.zeros, (self.features,))


class Compensation(nn.Module):
    """Five SPADE residual blocks ``block_0`` .. ``block_4`` with two enlargements, and the convolution ``out``.

    17,284,960 parameters with a hidden width of 128, 12,987,232 with 64.

    Attributes:
        inputs: channels of the features. outputs: channels of the three planes together.
    """

    config: CompensationConfig
    inputs: int = 512
    outputs: int = 96

    @nn.compact
    def __call__(self, features: jax.Array, image: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        """Features [N,h,w,inputs] and source pictures [N,S,S,3] in [-1,1] -> volume [N,4h,4w,outputs], plane after
        plane.

        Args:
            gain: fixed factor of the features.
        """
        c = self.config
        # Without normalisation nothing catches an overflow of half precision: the blocks run in float32.
        x = features.astype(jnp.float32) * gain
        before = (self.inputs, *c.widths[:-1])
        for i, (inputs, width) in enumerate(zip(before, c.widths, strict=True)):
            if i in (2, 4):
                x = resize(x, (2 * x.shape[1], 2 * x.shape[2]), 'nearest')
            block = SpadeResBlock(inputs, width, 3, c.hidden, 'none', c.resize, name=f'block_{i}')
            x = block(x, image)
        return _ZeroConv(c.widths[-1], self.outputs, name='out')(lrelu(x))
