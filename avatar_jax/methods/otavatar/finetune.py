"""Tunes a copy of the generator to a person after the inversion (pivotal tuning, ``--pti``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from avatar_jax.faces.camera_labels import correct_intrinsics
from avatar_jax.inversion import tuning
from avatar_jax.inversion.tuning import LocalityConfig, TuningConfig
from avatar_jax.losses.distance import distance_kind, distance_of
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.otavatar import losses
from avatar_jax.methods.otavatar.holding import HoldConfig, hold_terms, mirrored_motion
from avatar_jax.methods.otavatar.invert import Inversion, assess, make_avatar, pose_problem
from avatar_jax.methods.otavatar.model import (
    ModelConfig,
    driven_codes,
    merge,
    motion_codes,
    network,
    render_views,
    source_windows,
    split_trained,
)
from avatar_jax.methods.otavatar.objective import view_terms
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.train.optimizers import OptimizerConfig
from avatar_jax.types import Portrait


def finetune_generator(
    variables: Mapping[str, Any],
    config: ModelConfig,
    portrait: Portrait,
    inverted: Inversion,
    bank: PerceptionBank | None = None,
    key: jax.Array | None = None,
    *,
    steps: int = 50,
    optimizer: OptimizerConfig | None = None,
    stop_psnr: float | None = None,
    locality: LocalityConfig | None = None,
    hold: HoldConfig | None = None,
) -> tuple[Inversion, jax.Array]:
    """Tunes a copy of the generator to one person around the code that inversion found (pivotal tuning).

    An extension: the released program has such an option, but passes a wrong code to the generator. All parameters
    but the mapping network's move; raw and super-resolved images are compared by the losses of the inversion, the
    code and the correction stay fixed. Expression and views away from the source can suffer: judge by more than the
    source's own score.

    Args:
        steps, optimizer: default: 50 steps of Adam with rate 3e-4.
        stop_psnr: end when the super-resolved reconstruction is this good (dB).
        locality: regulariser that keeps pictures of other codes as they were; None: none.
        hold: what keeps shape and unseen side; None: nothing, as the published method.

    Returns:
        the inversion with the tuned avatar (``identity['generator']`` holds its parameters) and its scores, and the
        loss curve [steps], NaN after an early end.
    """
    bank = PerceptionBank() if bank is None else bank
    targets, motion, label = pose_problem(variables, config, portrait, bank)
    code, bias = inverted.avatar.identity['code'], inverted.avatar.identity['bias']
    generator = network(variables, 'generator')
    fixed, moving = split_trained(generator['params'], 'all')
    ws = driven_codes(code[None], motion, config, variables, clamp=False)
    labels = correct_intrinsics(label, bias)[None]
    wanted = to_unit(targets['sr'].image)

    held = None
    if hold is not None:
        windows = source_windows(mirrored_motion(portrait))[None]
        mirrored = motion_codes(network(variables, 'controller')['params'], config, windows)
        other = driven_codes(code[None], mirrored, config, variables, clamp=False)
        held = hold_terms(generator, config.generator, ws, other, labels[0], targets['raw'].image, hold)

    def loss(params, key_n):
        tuned = {**generator, 'params': merge(fixed, params)}
        views = render_views(tuned, config.generator, ws, labels, None if key is None else key_n[None])
        terms = view_terms(bank, config, views, targets)
        if held is not None:
            terms |= held(tuned)
        error = -psnr(to_unit(views.image), wanted)[0]
        return losses.total(terms), {**terms, 'negative_psnr': error}

    def picture(params, rows):
        own = {**generator, 'params': merge(fixed, params)}
        return render_views(own, config.generator, rows[None], labels).image

    def random_code(code_key):
        z = jax.random.normal(code_key, (1, config.generator.z_dim))
        return TriPlaneGenerator(config.generator).apply(generator, z, label[None], method='mapping')[0]

    settings = TuningConfig(
        'generator',
        steps,
        OptimizerConfig('adam', 3e-4) if optimizer is None else optimizer,
        '' if stop_psnr is None else 'negative_psnr',
        -(stop_psnr or 0.0),
        LocalityConfig() if locality is None else locality,
    )
    distance = distance_of(bank, distance_kind(bank))
    regulariser = tuning.locality_term(picture, moving, ws[0], random_code, settings.locality, distance)
    tuned = tuning.tune(loss, moving, jax.random.key(0) if key is None else key, settings, regulariser)
    params, curve = tuned.params, tuned.curve
    params = merge(fixed, params)
    quality = assess(variables, config, portrait, bank, code, bias, {**generator, 'params': params})
    avatar = make_avatar(config, portrait, code, bias, inverted.avatar.weights, params)
    return inverted.replace(avatar=avatar, **quality), curve
