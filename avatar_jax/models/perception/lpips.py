"""LPIPS (Zhang et al. 2018): AlexNet, VGG-16 or SqueezeNet-1.1 features, channel-normalised, with learned weights.

Two groups of weights: the trunk (keys ``features.N.*`` of torchvision, ImageNet-trained) and one non-negative number
per channel (keys ``lin{k}.model.1.weight`` of the LPIPS project, version 0.1; version 0.0 belongs to a release that
forgot the input scaling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.models.perception.layers import Conv, max_pool
from avatar_jax.models.perception.vgg import VGG

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
NETS = ('alex', 'vgg', 'squeeze')
TAP_CHANNELS = {
    'alex': (64, 192, 384, 256, 256),
    'vgg': (64, 128, 256, 512, 512),
    'squeeze': (64, 128, 256, 384, 384, 512, 512),
}
_VGG_TAPS = ('relu_1_2', 'relu_2_2', 'relu_3_3', 'relu_4_3', 'relu_5_3')
# First entries of the sums over the published version-0.1 weights; a loader can tell a wrong or 0.0 file by them.
CHECKSUM_LIN0 = {'alex': 2.34953, 'vgg': 6.92599, 'squeeze': 5.6901}


class _AlexFeatures(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        w, taps = self.widths, []
        x = jax.nn.relu(Conv(3, w[0], 11, 4, 2, use_bias=True, name='0')(x))
        taps.append(x)
        x = jax.nn.relu(Conv(w[0], w[1], 5, 1, 2, use_bias=True, name='3')(max_pool(x, 3, 2)))
        taps.append(x)
        x = jax.nn.relu(Conv(w[1], w[2], use_bias=True, name='6')(max_pool(x, 3, 2)))
        taps.append(x)
        x = jax.nn.relu(Conv(w[2], w[3], use_bias=True, name='8')(x))
        taps.append(x)
        x = jax.nn.relu(Conv(w[3], w[4], use_bias=True, name='10')(x))
        return [*taps, x]


class AlexNet(nn.Module):
    """Convolutional part of torchvision's AlexNet; returns its five activations."""

    widths: tuple[int, ...] = TAP_CHANNELS['alex']

    def setup(self):
        self.features = _AlexFeatures(self.widths)

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Normalised images [N,H,W,3], at least 31 pixels a side -> five taps [N,h,w,C]."""
        if min(x.shape[1:3]) < 31:
            raise ValueError(f'AlexNet: image {x.shape[1]}x{x.shape[2]} is too small; at least 31 pixels a side')
        return self.features(x)


class _Fire(nn.Module):
    inputs: int
    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x):
        x = jax.nn.relu(Conv(self.inputs, self.squeeze, 1, padding=0, use_bias=True, name='squeeze')(x))
        parts = [
            jax.nn.relu(Conv(self.squeeze, self.expand, 1, padding=0, use_bias=True, name='expand1x1')(x)),
            jax.nn.relu(Conv(self.squeeze, self.expand, use_bias=True, name='expand3x3')(x)),
        ]
        return jnp.concatenate(parts, -1)


def _ceil_pool(x):
    # SqueezeNet's pools keep the partial window at the end.
    after = [-(x.shape[a] - 3) % 2 for a in (1, 2)]
    x = jnp.pad(x, ((0, 0), (0, after[0]), (0, after[1]), (0, 0)), constant_values=-jnp.inf)
    return max_pool(x, 3, 2)


class _SqueezeFeatures(nn.Module):
    @nn.compact
    def __call__(self, x):
        fires = {
            3: (64, 16, 64),
            4: (128, 16, 64),
            6: (128, 32, 128),
            7: (256, 32, 128),
            9: (256, 48, 192),
            10: (384, 48, 192),
            11: (384, 64, 256),
            12: (512, 64, 256),
        }
        x = jax.nn.relu(Conv(3, 64, 3, 2, 0, use_bias=True, name='0')(x))
        taps = [x]
        for index, sizes in fires.items():
            if index in (3, 6, 9):
                x = _ceil_pool(x)
            x = _Fire(*sizes, name=str(index))(x)
            if index in (4, 7, 9, 10, 11, 12):
                taps.append(x)
        return taps


class SqueezeNet(nn.Module):
    """Convolutional part of torchvision's SqueezeNet 1.1; returns the seven activations of LPIPS."""

    def setup(self):
        self.features = _SqueezeFeatures()

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Normalised images [N,H,W,3], at least 17 pixels a side -> seven taps [N,h,w,C]."""
        if min(x.shape[1:3]) < 17:
            raise ValueError(f'SqueezeNet: image {x.shape[1]}x{x.shape[2]} is too small; at least 17 pixels a side')
        return self.features(x)


def trunk(net: str) -> nn.Module:
    """The feature network of an LPIPS variant; its variables have the keys of torchvision's file."""
    if net not in NETS:
        raise ValueError(f'LPIPS network {net!r}: use one of {", ".join(NETS)}')
    return {'alex': AlexNet, 'vgg': lambda: VGG('vgg16'), 'squeeze': SqueezeNet}[net]()


def lpips_features(net: str, variables: Mapping, image: jax.Array) -> list[jax.Array]:
    """Raw taps of images [N,H,W,3] in [-1, 1]."""
    x = (image - jnp.asarray(SHIFT, image.dtype)) / jnp.asarray(SCALE, image.dtype)
    if net == 'vgg':
        taps = trunk(net).apply(variables, x, _VGG_TAPS)
        return [taps[t] for t in _VGG_TAPS]
    return trunk(net).apply(variables, x)


def unit_channels(f: jax.Array) -> jax.Array:
    """``f / (norm over channels + 1e-10)``; zero vectors stay zero and have a zero gradient instead of NaN."""
    square = jnp.sum(jnp.square(f), -1, keepdims=True)
    positive = square > 0
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
    return f / (norm + 1e-10)


def lpips_layers(
    features_a: Sequence[jax.Array], features_b: Sequence[jax.Array], lin: Sequence[jax.Array] | None
) -> jax.Array:
    """Distance per layer, [N, layers], from taps of two images and one weight vector [C] for each layer.

    ``lin=None`` weighs every channel with 1 (the unlearned variant).
    """
    layers = []
    for k, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
        difference = jnp.square(unit_channels(a) - unit_channels(b))
        weighted = difference.sum(-1) if lin is None else difference @ lin[k]
        layers.append(weighted.mean((1, 2)))
    return jnp.stack(layers, -1)


def lin_weights(flat: Mapping) -> list[jax.Array]:
    """Channel weights [C] per layer from the published keys ``lin{k}.model.1.weight`` (1,C,1,1)."""
    count = sum(k.startswith('lin') for k in flat)
    return [jnp.asarray(flat[f'lin{k}.model.1.weight']).reshape(-1) for k in range(count)]


def lpips(net: str, variables: Mapping, lin: Sequence[jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
    """LPIPS of image pairs [N,H,W,3] in [-1, 1] -> [N]."""
    return lpips_layers(lpips_features(net, variables, a), lpips_features(net, variables, b), lin).sum(-1)
