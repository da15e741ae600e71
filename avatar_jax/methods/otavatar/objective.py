"""How OTAvatar's networks are evaluated: the losses of rendered views, for training and for inversion alike.

Letters: B people, F frames of each, N = B * F views, L rows and D width of the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from avatar_jax.faces.camera_labels import correct_intrinsics
from avatar_jax.inversion.decoupling import Objective
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.otavatar import losses
from avatar_jax.methods.otavatar.controller import MotionCode
from avatar_jax.methods.otavatar.model import (
    ModelConfig,
    Views,
    driven_codes,
    merge,
    motion_codes,
    network,
    render_views,
)
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.types import PyTree


def level_sizes(config: ModelConfig) -> dict[str, int]:
    """Side in pixels of the images that are compared: 'raw' and 'sr'."""
    return {'raw': config.generator.neural_rendering_resolution, 'sr': config.generator.img_resolution}


def prepare_targets(
    bank: PerceptionBank, config: ModelConfig, images: jax.Array, landmarks: jax.Array | None
) -> PyTree:
    """What views will be compared with, for images [..., H, W, 3] and landmarks [..., 68, 2]; leading axes are kept."""
    lead = images.shape[:-3]
    flat = images.reshape(-1, *images.shape[-3:])
    points = None if landmarks is None else landmarks.reshape(-1, *landmarks.shape[-2:])
    found = losses.prepare_targets(bank, config.settings.loss, flat, points, level_sizes(config))
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)


def view_terms(
    bank: PerceptionBank, config: ModelConfig, views: Views, targets: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Weighted image terms of N views, averaged over them; those of 'sr' where the views have an image."""
    return image_terms(bank, config, views.raw, views.image, targets)


def image_terms(
    bank: PerceptionBank, config: ModelConfig, raw: jax.Array, image: jax.Array | None, targets: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """``view_terms`` of pictures: raw [N,R,R,3] and, where there are some, super-resolved [N,S,S,3]."""
    terms = losses.image_terms(bank, config.settings.loss, raw, targets['raw'], 'raw')
    if image is not None:
        terms |= losses.image_terms(bank, config.settings.loss, image, targets['sr'], 'sr')
    return terms


def split_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Independent keys for rays and for regulariser points from keys [N]."""
    pairs = jax.vmap(lambda k: jax.random.split(k, 2))(keys)
    return pairs[:, 0], pairs[:, 1]


class ControllerOutput(NamedTuple):
    """Controller outputs for all frames: codes [B,F,...] and the terms on the controller itself."""

    codes: MotionCode
    terms: dict[str, jax.Array]


def training_objective(config: ModelConfig, bank: PerceptionBank, frozen: Mapping[str, Any]) -> Objective:
    """The objective of ``inversion.decoupling`` on batches of clips.

    A batch has ``windows`` [B,F,27,70], ``labels`` [B,F,25] and ``targets`` (``prepare_targets`` of [B,F,...]).

    Args:
        frozen: the variables of the model without what is trained: ``params/generator`` has only the parameters that
            stay fixed; generator groups hold the others.
    """

    def generator_of(params: PyTree) -> dict[str, Any]:
        variables = network(frozen, 'generator')
        return {**variables, 'params': merge(variables.get('params', {}), params)}

    def motion(params: PyTree, batch: Mapping[str, Any]) -> ControllerOutput:
        codes = motion_codes(params, config, batch['windows'])
        other = codes.alpha[:, 1] if codes.alpha.shape[1] > 1 else None
        return ControllerOutput(codes, losses.controller_terms(config.settings.loss, params, codes.alpha[:, 0], other))

    def loss(generator_params, regulariser_params, motion, w, bias, batch, keys, sr, frames):
        people, count = w.shape[0], len(frames)

        def pick(x):  # [B,F,...] -> [B*f,...]
            chosen = x if frames == tuple(range(x.shape[1])) else jnp.stack([x[:, j] for j in frames], 1)
            return chosen.reshape(people * count, *x.shape[2:])

        keys = jax.vmap(lambda k: jax.vmap(lambda j: jax.random.fold_in(k, j))(jnp.asarray(frames)))(keys).reshape(-1)
        ray_keys, point_keys = split_keys(keys)
        ws = driven_codes(jnp.repeat(w, count, 0), jax.tree.map(pick, motion.codes), config, frozen, clamp=True)
        labels = correct_intrinsics(pick(batch['labels']), jnp.repeat(bias, count, 0))
        views = render_views(generator_of(generator_params), config.generator, ws, labels, ray_keys, sr)
        terms = view_terms(bank, config, views, jax.tree.map(pick, batch['targets']))
        model, regulariser = TriPlaneGenerator(config.generator), generator_of(regulariser_params)

        def density(points):
            return model.apply(regulariser, views.planes, points, method='sample_density')[1]

        box = config.generator.rendering.box_warp
        terms |= losses.density_terms(config.settings.loss, density, point_keys, people * count, box)
        terms = {name: count * value for name, value in terms.items()}  # a sum over frames, a mean over people
        terms |= motion.terms
        return losses.total(terms), terms

    return Objective(motion, loss)


def portrait_loss(
    config: ModelConfig,
    bank: PerceptionBank,
    generator: Mapping[str, Any],
    variables: Mapping[str, Any],
    motion: MotionCode,
    label: jax.Array,
    targets: Mapping[str, Any],
    jitter: bool,
):
    """The loss of one person's picture, as ``inversion.invert`` takes it: (code [L,D], bias [18], key, sr).

    Args:
        generator: its variables (trained ones of ``variables``, or a copy that is being tuned).
        motion: controller output [1,L,D] of the picture's own motion. label: [25].
        targets: ``prepare_targets`` of the picture [1,H,W,3]. jitter: move the samples along the rays at random.
    """

    def loss(code, bias, key, sr):
        ws = driven_codes(code[None], motion, config, variables, clamp=True)
        labels = correct_intrinsics(label, bias)[None]
        views = render_views(generator, config.generator, ws, labels, key[None] if jitter else None, sr)
        terms = view_terms(bank, config, views, targets)
        return losses.total(terms), terms

    return loss
