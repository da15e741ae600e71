"""The losses of OTAvatar, assembled: what an image is compared by, and what is added in training.

An image is compared at two levels, 'raw' (the volume rendering) and 'sr' (super-resolved). Everything about a target
that does not change while codes are optimised (features, Gram matrices, crops, embeddings) is computed once by
`prepare_targets`; `image_terms` then only looks at the prediction. Terms are already multiplied by their weights, so
the loss is their sum, and a log of the terms shows what each contributes.

All functions average over the batch, and batches of one under ``vmap`` give each person's own loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.losses import density as regularisers
from avatar_jax.losses.identity import FACE_NETWORKS, IdentityTarget, identity_loss, identity_target
from avatar_jax.losses.local import LocalTarget, local_target, local_terms
from avatar_jax.losses.perception import (
    IDENTITY_CHOICES,
    PERCEPTUAL_CHOICES,
    PerceptionBank,
)
from avatar_jax.losses.perceptual import PerceptualTarget, perceptual_loss, perceptual_target
from avatar_jax.losses.pixel import pyramid_loss, smooth_l1
from avatar_jax.ops.resize import match_size
from avatar_jax.types import PyTree

LEVELS = ('raw', 'sr')
_WEIGHTS = (
    'perceptual',
    'style',
    'pyramid',
    'head_features',
    'local',
    'pixel',
    'identity',
    'monotonic',
    'tv',
    'alpha_norm',
    'alpha_mutual',
    'controller_l1',
)


@dataclass(frozen=True)
class LossConfig:
    """Terms, weights and what they look through. Weights 0 switch a term off; nothing is computed for it.

    Attributes:
        perceptual: weight of the VGG-19 content and style term; used when that network is chosen.
        style: weight of the Gram part inside the perceptual term.
        pyramid: weight of the network-free multi-scale pixel and edge distance; used when it is chosen.
        head_features: weight of the distance of the stand-in's activations; used when they are chosen.
        local: weight of the mouth (and eye) crops.
        pixel: weight of the Smooth-L1 distance of the images. The paper has no such term.
        identity: weight of 1 - cosine of the identity embeddings.
        monotonic, tv: density regularisers, in training only.
        alpha_norm, alpha_mutual: weights of ``relu(10 - norm)`` terms on the controller's magnitudes.
        controller_l1: weight of the mean absolute controller parameter. The paper names an L1 penalty without a weight;
            the released program has none.
        eyes: compare the eye crops too. False is the released program, whose eye terms are always zero.
        perceptual_network: 'vgg19', 'pyramid', 'head_features', 'none', or 'auto': vgg19 if given, else pyramid.
        identity_network: a face recognition network (``losses.identity.FACE_NETWORKS``), 'head_identity', 'none', or
            'auto': the first of these that is given.
        perceptual_scales_raw, perceptual_scales_sr: scales of the perceptual (or pyramid) term at each level; each
            halves the image, and VGG-19 needs 16 pixels at the smallest.
        style_scales: number of these scales, from full size on, that have a style term.
        perceptual_reduction: 'mean' over the entries of a feature map, or 'sum', the L1 norm of the paper's formula.
        density_points: points per sample of the regularisers.
        tv_distance: step of the total variation, in world units. tv_scale: factor on its mean.
    """

    perceptual: float = 1.0
    style: float = 250.0
    pyramid: float = 10.0
    head_features: float = 1.0
    local: float = 10.0
    pixel: float = 0.0
    identity: float = 1.0
    monotonic: float = 1.0
    tv: float = 1.0
    alpha_norm: float = 0.0
    alpha_mutual: float = 0.0
    controller_l1: float = 1.0
    eyes: bool = True
    perceptual_network: str = 'auto'
    identity_network: str = 'auto'
    perceptual_scales_raw: int = 2
    perceptual_scales_sr: int = 4
    style_scales: int = 1
    perceptual_reduction: str = 'mean'
    density_points: int = 2000
    tv_distance: float = 0.004
    tv_scale: float = 0.25

    def __post_init__(self):
        check = Check(self, 'loss')
        check.at_least(0, *_WEIGHTS, 'style_scales')
        check.one_of('perceptual_network', *PERCEPTUAL_CHOICES)
        check.one_of('identity_network', *IDENTITY_CHOICES)
        check.one_of('perceptual_reduction', 'mean', 'sum')
        check.at_least(1, 'perceptual_scales_raw', 'perceptual_scales_sr', 'density_points')

    def scales(self, level: str) -> int:
        """Scales of the perceptual term at a level."""
        return {'raw': self.perceptual_scales_raw, 'sr': self.perceptual_scales_sr}[level]


@struct.dataclass
class Target:
    """One level of a target, [B,...]. Parts whose weight is zero are None."""

    image: jax.Array
    perceptual: PerceptualTarget | None = None
    features: tuple[jax.Array, ...] | None = None
    local: LocalTarget | None = None
    identity: IdentityTarget | None = None


def left_out(bank: PerceptionBank, config: LossConfig, landmarks: bool, portraits: int = 1) -> dict[str, str]:
    """The terms of images that have a weight and cannot be computed: name -> what is missing.

    Args:
        landmarks: whether the target has 68 landmarks. portraits: how many targets there are, of which all must.
    """
    found = {}
    has, lacks = 'the portrait has no', 'the portrait does not have'
    if portraits > 1:
        has = lacks = f'not all {portraits} portraits have'
    if config.local and not landmarks:
        found['local'] = f'{has} 68 landmarks'
    if config.identity and config.identity_network != 'none':
        who = bank.identity_kind(config.identity_network)
        if who == 'none':
            found['identity'] = 'no face recognition network was given'
        elif who in FACE_NETWORKS and not landmarks:
            found['identity'] = f'{FACE_NETWORKS[who].title} needs 68 landmarks, which {lacks}'
    return found


def looks_through(bank: PerceptionBank, config: LossConfig) -> tuple[str, ...]:
    """The networks of a bank that the terms use, by their names in it."""
    kind, who = bank.perceptual_kind(config.perceptual_network), bank.identity_kind(config.identity_network)
    found = []
    if kind == 'vgg19' and config.perceptual:
        found.append('vgg19')
    if kind == 'head_features' and config.head_features:
        found.append('head_coefficients')
    if who != 'none' and config.identity:
        found.append(who)
    return tuple(found)


def _check_scales(config: LossConfig, kind: str, level: str, size: int) -> None:
    smallest = size // 2 ** (config.scales(level) - 1)
    needed = {'vgg19': 16, 'pyramid': 2}.get(kind, 1)
    if smallest < needed:
        raise UserError(
            f'loss.perceptual_scales_{level}: {config.scales(level)} scales shrink a {size}-pixel image to {smallest} '
            f'pixels, {kind} needs {needed}; use fewer scales'
        )


def prepare_target(
    bank: PerceptionBank, config: LossConfig, image: jax.Array, landmarks: jax.Array | None, size: int, level: str
) -> Target:
    """What predictions of ``size`` x ``size`` pixels at one level will be compared with.

    Args:
        image: [B,H,H,3] in [-1,1], averaged over areas to ``size``.
        landmarks: [B,68,2] pixels of ``image`` (x, y), y downwards. None leaves out the terms that need them
            (``left_out`` says which).
        level: 'raw' or 'sr'.

    Raises:
        UserError: a network that the configuration names is not in the bank, or too many scales for the size.
    """
    if level not in LEVELS:
        raise ValueError(f'level {level!r}: use one of {", ".join(LEVELS)}')
    if image.ndim != 4 or image.shape[1] != image.shape[2]:
        raise ValueError(f'targets must be square images [B,H,H,3], got {image.shape}')
    if landmarks is not None:
        landmarks = landmarks * (size / image.shape[1])
    image = jax.lax.stop_gradient(match_size(image, size))
    kind = bank.perceptual_kind(config.perceptual_network)
    perceptual = features = local = identity = None
    if kind == 'vgg19' and config.perceptual:
        _check_scales(config, kind, level, size)
        scales = config.scales(level)
        perceptual = perceptual_target(bank.weights['vgg19'], image, scales, min(config.style_scales, scales))
    elif kind == 'pyramid' and config.pyramid:
        _check_scales(config, kind, level, size)
    elif kind == 'head_features' and config.head_features:
        features = jax.lax.stop_gradient(_head_features(bank, image))
    if config.local and landmarks is not None:
        local = local_target(image, landmarks, config.eyes)
    who = bank.identity_kind(config.identity_network)
    if config.identity and who != 'none' and (who == 'head_identity' or landmarks is not None):
        seen = FACE_NETWORKS.get(who)
        looks = (landmarks, seen.cut, seen.place) if seen else (None,)
        identity = identity_target(bank.embed(who), image, *looks)
    return Target(image, perceptual, features, local, identity)


def prepare_targets(
    bank: PerceptionBank,
    config: LossConfig,
    image: jax.Array,
    landmarks: jax.Array | None,
    sizes: Mapping[str, int],
) -> dict[str, Target]:
    """`prepare_target` for each level of ``sizes``, e.g. ``{'raw': 64, 'sr': 512}``."""
    return {level: prepare_target(bank, config, image, landmarks, size, level) for level, size in sizes.items()}


def image_terms(
    bank: PerceptionBank, config: LossConfig, prediction: jax.Array, target: Target, level: str
) -> dict[str, jax.Array]:
    """Weighted terms ``<level>/<name>`` of predictions [B,size,size,3] against a prepared target.

    Names: perceptual, style (VGG-19); pyramid; head_features; local_mouth, local_left_eye, local_right_eye; pixel;
    identity. Only terms that are on occur.
    """
    if prediction.shape != target.image.shape:
        raise ValueError(f'prediction {prediction.shape} does not match its {level} target {target.image.shape}')
    terms = {}
    if target.perceptual is not None:
        content, style = perceptual_loss(
            bank.weights['vgg19'], prediction, target.perceptual, config.perceptual_reduction
        )
        terms['perceptual'] = config.perceptual * content
        if config.style and target.perceptual.grams:
            terms['style'] = config.perceptual * config.style * style
    if target.features is not None:
        pairs = zip(_head_features(bank, prediction), target.features)
        terms['head_features'] = config.head_features * sum(jnp.mean(jnp.abs(a - b)) for a, b in pairs)
    if config.pyramid and bank.perceptual_kind(config.perceptual_network) == 'pyramid':
        terms['pyramid'] = config.pyramid * pyramid_loss(prediction, target.image, config.scales(level))
    if target.local is not None:
        for name, value in local_terms(prediction, target.local).items():
            terms[f'local_{name}'] = config.local * value
    if config.pixel:
        terms['pixel'] = config.pixel * smooth_l1(prediction, target.image)
    if target.identity is not None:
        who = bank.identity_kind(config.identity_network)
        seen = FACE_NETWORKS.get(who)
        value = identity_loss(bank.embed(who), prediction, target.identity, *([seen.cut] if seen else []))
        terms['identity'] = config.identity * value
    return {f'{level}/{name}': value for name, value in terms.items()}


def _head_features(bank: PerceptionBank, image: jax.Array) -> tuple[jax.Array, ...]:
    """Activations of the coefficient stand-in, each divided by its average size so that all layers weigh alike."""
    _, taps = bank.apply('head_coefficients', image, features=True)
    return tuple(f / (jax.lax.stop_gradient(jnp.mean(jnp.abs(f), (1, 2, 3), keepdims=True)) + 1e-3) for f in taps)


def density_terms(
    config: LossConfig, density: regularisers.Density, key: jax.Array, batch: int, box_warp: float = 1.0
) -> dict[str, jax.Array]:
    """Weighted `monotonic` and `tv` of the volumes of a batch.

    Args:
        density: points [B,N,3] -> raw density [B,N] or [B,N,1].
        key: one typed key, or one per sample [B].
    """
    if not (config.monotonic or config.tv):
        return {}
    points, offsets = regularisers.random_points(key, batch, config.density_points)
    terms = {}
    if config.monotonic:
        terms['monotonic'] = config.monotonic * regularisers.monotonic(density, points, box_warp)
    if config.tv:
        value = regularisers.total_variation(density, points, offsets, config.tv_distance, config.tv_scale)
        terms['tv'] = config.tv * value
    return terms


def controller_terms(
    config: LossConfig, params: PyTree, alpha: jax.Array, other_alpha: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Weighted terms on the controller: parameters ``params`` and magnitudes of two frames [B,L,K].

    Raises:
        ValueError: `alpha_mutual` is on and there is no second frame.
    """
    terms = {}
    if config.controller_l1:
        terms['controller_l1'] = config.controller_l1 * regularisers.mean_abs_parameters(params)
    if config.alpha_norm:
        terms['alpha_norm'] = config.alpha_norm * regularisers.alpha_norm(alpha)
    if config.alpha_mutual:
        if other_alpha is None:
            raise ValueError('loss.alpha_mutual compares the magnitudes of two frames; give the other frame')
        terms['alpha_mutual'] = config.alpha_mutual * regularisers.alpha_mutual(alpha, other_alpha)
    return terms


def total(terms: Mapping[str, jax.Array]) -> jax.Array:
    """The loss: the sum of weighted terms (0 without any)."""
    return sum(terms.values(), start=jnp.zeros(()))
