"""VGG-16 and VGG-19 without batch norm (Simonyan & Zisserman 2015), torchvision's ``features`` with named taps.

Keys ``features.N.weight|bias`` with torchvision's indices; the classifier of the public files is not used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.models.perception.layers import Conv, max_pool

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Convolutions per block; every block ends in a 2x2 pool.
_BLOCKS = {'vgg16': (2, 2, 3, 3, 3), 'vgg19': (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


def conv_indices(layout: str) -> dict[str, int]:
    """Torchvision index of the convolution before each activation: ``{'relu_1_1': 0, 'relu_1_2': 2, ...}``."""
    index, table = 0, {}
    for block, count in enumerate(_BLOCKS[layout], 1):
        for layer in range(1, count + 1):
            table[f'relu_{block}_{layer}'] = index
            index += 2
        index += 1
    return table


def imagenet_normalize(image: jax.Array) -> jax.Array:
    """[-1, 1] RGB -> the range that ImageNet networks of torchvision expect."""
    return ((image + 1) * 0.5 - jnp.asarray(IMAGENET_MEAN, image.dtype)) / jnp.asarray(IMAGENET_STD, image.dtype)


class _Features(nn.Module):
    layout: str
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, taps):
        indices, found, inputs = conv_indices(self.layout), {}, x.shape[-1]
        for block, count in enumerate(_BLOCKS[self.layout], 1):
            width = self.widths[block - 1]
            for layer in range(1, count + 1):
                name = f'relu_{block}_{layer}'
                x = jax.nn.relu(Conv(inputs, width, use_bias=True, name=str(indices[name]))(x))
                inputs = width
                if name in taps:
                    found[name] = x
            if block < len(_BLOCKS[self.layout]):
                x = max_pool(x, 2, 2)
        return found


class VGG(nn.Module):
    """Activations of a VGG network. ``layout`` is 'vgg16' or 'vgg19'; other ``widths`` make a slimmer network."""

    layout: str = 'vgg19'
    widths: tuple[int, ...] = _WIDTHS

    def setup(self):
        if self.layout not in _BLOCKS:
            raise ValueError(f'VGG layout {self.layout!r}: use one of {sorted(_BLOCKS)}')
        self.features = _Features(self.layout, self.widths)

    def __call__(self, x: jax.Array, taps: tuple[str, ...]) -> dict[str, jax.Array]:
        """Taps like 'relu_3_1' -> [N,h,w,C], from normalised images [N,H,W,3] (`imagenet_normalize`).

        Raises:
            ValueError: an image side under 16 (nothing is left after four pools), or an unknown tap.
        """
        unknown = [t for t in taps if t not in conv_indices(self.layout)]
        if unknown:
            raise ValueError(f'{self.layout} has no {", ".join(unknown)}')
        if min(x.shape[1:3]) < 16:
            raise ValueError(f'{self.layout}: image {x.shape[1]}x{x.shape[2]} is too small; at least 16 pixels a side')
        return self.features(x, taps)
