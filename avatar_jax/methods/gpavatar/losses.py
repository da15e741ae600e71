"""Training losses (paper section 3.5 and its released form). Pictures are [B,H,W,3] with values in [0,1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.errors import UserError
from avatar_jax.losses.pixel import pyramid_loss
from avatar_jax.methods.gpavatar.train_config import LossConfig
from avatar_jax.models.perception.lpips import AlexNet, lpips_layers
from avatar_jax.models.perception.vgg import IMAGENET_MEAN, IMAGENET_STD
from avatar_jax.ops.resize import resize

Distance = Callable[[jax.Array, jax.Array], jax.Array]
PYRAMID_SCALES = 4
# Layers of the checkpoint's AlexNet, ``percep_loss.net.slice{k}.{n}``, and their names in torchvision's.
_SLICES = {'slice1_0': '0', 'slice2_3': '3', 'slice3_6': '6', 'slice4_8': '8', 'slice5_10': '10'}


def alexnet_of(net: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of ``models.perception.lpips.AlexNet`` from the checkpoint's tree ``percep_loss/net``."""
    return {'params': {'features': {name: net[piece] for piece, name in _SLICES.items()}}}


def alexnet_features(variables: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
    """Five activations of images in [0,1]."""
    first = variables['params']['features']
    widths = tuple(first[name]['weight'].shape[-1] for name in _SLICES.values())
    x = (images - jnp.asarray(IMAGENET_MEAN, images.dtype)) / jnp.asarray(IMAGENET_STD, images.dtype)
    return AlexNet(widths).apply(variables, x)


def alexnet_layers(variables: Mapping[str, Any], a: jax.Array, b: jax.Array) -> jax.Array:
    """[5] squared distances of channel-normalised features, summed over channels, averaged over pixels and images."""
    return lpips_layers(alexnet_features(variables, a), alexnet_features(variables, b), None).mean(0)


def pyramid(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multi-scale pixel and edge distance, for want of a network; not a perceptual metric."""
    scales = min(PYRAMID_SCALES, min(a.shape[1:3]).bit_length() - 1)
    return pyramid_loss(a, b, scales) / scales


def network_of(config: LossConfig, alexnet: Mapping[str, Any] | None) -> str:
    """What the perceptual term looks through: 'alexnet', 'pyramid' or 'none'.

    Raises:
        UserError: AlexNet is asked for by name and its weights are not here.
    """
    if config.network == 'alexnet' and alexnet is None:
        raise UserError(
            "loss.network: 'alexnet' needs its weights: those of the released checkpoint, or give "
            "--config.perception=('alexnet=FILE',)"
        )
    if config.network == 'auto':
        return 'pyramid' if alexnet is None else 'alexnet'
    return config.network


def distance_of(config: LossConfig, alexnet: Mapping[str, Any] | None) -> Distance:
    """The perceptual distance of two batches of pictures."""
    kind = network_of(config, alexnet)
    if kind == 'alexnet':
        return lambda a, b: alexnet_layers(alexnet, a, b).sum()
    return pyramid if kind == 'pyramid' else lambda a, b: jnp.zeros(())


def crop_matrix(low: jax.Array, high: jax.Array, size: int, out: int) -> jax.Array:
    """[B,out,size] matrices that take pixels low..high-1 [B] of an axis and resize them (bilinear, antialiased)."""
    low, high = low[:, None, None].astype(jnp.float32), high[:, None, None].astype(jnp.float32)
    scale = (high - low) / out
    place = low + (jnp.arange(out)[:, None] + 0.5) * scale
    pixel = jnp.arange(size) + 0.5
    weight = jnp.maximum(1 - jnp.abs(pixel - place) / jnp.maximum(scale, 1.0), 0.0)
    weight = jnp.where((pixel > low) & (pixel < high), weight, 0.0)
    return weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-8)


def crop(images: jax.Array, boxes: jax.Array, out: int) -> jax.Array:
    """Face boxes [B,4] (x1,y1,x2,y2 relative to the width, cut to the picture, whole pixels) of images ->
    [B,out,out,C].
    """
    height, width = images.shape[1:3]
    x1, y1, x2, y2 = jnp.trunc(jnp.clip(boxes, 0, 1) * width).T
    high = jax.lax.Precision.HIGHEST
    rows = jnp.einsum('bih,bhwc->biwc', crop_matrix(y1, y2, height, out), images, precision=high)
    return jnp.einsum('bjw,biwc->bijc', crop_matrix(x1, x2, width, out), rows, precision=high)


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean absolute difference."""
    return jnp.mean(jnp.abs(a - b))


def difference(config: LossConfig, a: jax.Array, b: jax.Array) -> jax.Array:
    """The pixel term: weighted mean absolute and mean squared difference."""
    found = config.pixel * l1(a, b)
    return found + config.squared * jnp.mean((a - b) ** 2) if config.squared else found


def box_terms(
    config: LossConfig, distance: Distance, images: Mapping[str, jax.Array], target: jax.Array, boxes: jax.Array
) -> dict[str, jax.Array]:
    """The face box's term of every picture, by name, weighted."""
    found = {}
    for name, image in images.items():
        truth = resize(target, image.shape[1], antialias=True)
        a, b = (crop(x, boxes, config.box_size) for x in (image, truth))
        found[name] = config.box * (config.perceptual * distance(a, b) + config.pixel * l1(a, b))
    return found


def losses(
    config: LossConfig,
    distance: Distance,
    images: Mapping[str, jax.Array],
    target: jax.Array,
    opacities: jax.Array,
    boxes: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """All terms, weighted; their sum is the loss.

    Args:
        images: ``coarse``, ``fine`` and ``image`` (super-resolved), of any sizes. target: [B,S,S,3].
        opacities: of all samples of the first pass.
        boxes: [B,4]; needed with a box term.
    """
    images = dict(images)
    if not config.coarse:
        images.pop('coarse')
    pairs = [(image, resize(target, image.shape[1], antialias=True)) for image in images.values()]
    terms = {'pixel': sum(difference(config, a, b) for a, b in pairs)}
    if config.perceptual:
        terms['perceptual'] = config.perceptual * sum(distance(a, b) for a, b in pairs) / len(pairs)
    if config.box:
        if boxes is None:
            raise ValueError('a box term needs boxes')
        terms['box'] = sum(box_terms(config, distance, images, target, boxes).values())
    if config.norm:
        square = jnp.sum(opacities**2)
        terms['norm'] = config.norm * jnp.sqrt(jnp.maximum(square, 1e-20))
    return terms


def ray_losses(config: LossConfig, coarse: jax.Array, fine: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
    """The terms that single rays have: colours [B,M,3] of both passes against the picture's."""
    images = (coarse, fine) if config.coarse else (fine,)
    return {'pixel': sum(difference(config, x, target) for x in images)}


def opacity_term(config: LossConfig, opacity: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Weighted squared difference of rendered opacities to the head's mask, both of one shape; empty without the
    term.
    """
    return {'opacity': config.opacity * jnp.mean((opacity - mask) ** 2)} if config.opacity else {}


def depth_term(
    config: LossConfig, weights: jax.Array, depths: jax.Array, surface: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Weighted mean distance of what is seen from the known surface; empty without the term.

    Args:
        weights, depths: [B,M,S] of the samples of rays. surface: [B,M], 0 where nothing is. mask: [B,M] of the head.
    """
    if not config.depth:
        return {}
    away = jnp.sum(weights * jnp.abs(depths - surface[..., None]), -1)
    return {'depth': config.depth * jnp.mean(jnp.where((surface > 0) & (mask > 0.99), away, 0.0))}


def total(terms: Mapping[str, jax.Array]) -> jax.Array:
    """Sum of the terms."""
    return sum(terms.values())
