"""VGG-19 perceptual and style (Gram) loss over several scales (OTAvatar sections 3.4 and its released form;
PIRenderer).

The target's features do not change while an image is optimised: `perceptual_target` computes them once.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.models.perception.vgg import VGG, imagenet_normalize
from avatar_jax.ops.resize import halve, resize

TAPS = ('relu_1_1', 'relu_2_1', 'relu_3_1', 'relu_4_1', 'relu_5_1')


@struct.dataclass
class PerceptualTarget:
    """Detached features of a target.

    Attributes:
        features: for each scale a dict tap -> [B,h,w,C].
        grams: for each scale that has a style term a dict tap -> [B,C,C].
        mask: [B,H,W,1] or None, multiplied into both feature maps.
        taps: which activations, in the order of the per-layer results.
    """

    features: tuple[dict[str, jax.Array], ...]
    grams: tuple[dict[str, jax.Array], ...]
    mask: jax.Array | None = None
    taps: tuple[str, ...] = struct.field(pytree_node=False, default=TAPS)


def gram(features: jax.Array) -> jax.Array:
    """``sum_hw f_i f_j / (h w c)`` of features [B,h,w,c] -> [B,c,c]."""
    batch, height, width, channels = features.shape
    flat = features.reshape(batch, height * width, channels)
    return jnp.einsum('bni,bnj->bij', flat, flat) / (height * width * channels)


def multiscale_features(
    variables: Mapping, image: jax.Array, scales: int, mask: jax.Array | None = None, taps: tuple[str, ...] = TAPS
) -> tuple[dict[str, jax.Array], ...]:
    """Taps at each scale: the normalised image is halved from scale to scale. Images [B,H,W,3] in [-1, 1]."""
    if scales < 1:
        raise ValueError(f'perceptual scales: {scales}; at least 1 is needed')
    x, out = imagenet_normalize(image), []
    for scale in range(scales):
        x = halve(x) if scale else x
        features = VGG('vgg19').apply(variables, x, taps)
        if mask is not None:
            features = {tap: f * resize(mask, f.shape[1:3], 'bilinear') for tap, f in features.items()}
        out.append(features)
    return tuple(out)


def perceptual_target(
    variables: Mapping,
    target: jax.Array,
    scales: int,
    style_scales: int = 1,
    mask: jax.Array | None = None,
    taps: tuple[str, ...] = TAPS,
) -> PerceptualTarget:
    """Features of a target [B,H,W,3]; ``style_scales`` of the scales, from full size on, get Gram matrices."""
    features = multiscale_features(variables, target, scales, mask, taps)
    grams = tuple({tap: gram(f) for tap, f in level.items()} for level in features[:style_scales])
    return jax.lax.stop_gradient(PerceptualTarget(features, grams, mask, taps))


def perceptual_layers(
    variables: Mapping, prediction: jax.Array, target: PerceptualTarget, reduction: str = 'mean'
) -> tuple[jax.Array, jax.Array]:
    """L1 distances per layer: content [scales, layers] and style [style scales, layers].

    ``reduction`` 'mean' averages over all entries; 'sum' is the L1 norm per image, averaged over the batch.
    """
    if reduction not in ('mean', 'sum'):
        raise ValueError(f"reduction={reduction!r}: use 'mean' or 'sum'")

    def distance(a, b):
        total = jnp.abs(a - b)
        return total.mean() if reduction == 'mean' else total.sum() / a.shape[0]

    taps = target.taps
    features = multiscale_features(variables, prediction, len(target.features), target.mask, taps)
    content = [[distance(f[t], g[t]) for t in taps] for f, g in zip(features, target.features)]
    style = [[distance(gram(f[t]), g[t]) for t in taps] for f, g in zip(features, target.grams)]
    return jnp.asarray(content), jnp.asarray(style).reshape(-1, len(taps))


def perceptual_loss(
    variables: Mapping, prediction: jax.Array, target: PerceptualTarget, reduction: str = 'mean'
) -> tuple[jax.Array, jax.Array]:
    """``(content, style)``, each summed over layers and scales; the loss is ``content + 250 * style``."""
    content, style = perceptual_layers(variables, prediction, target, reduction)
    return content.sum(), style.sum()
