"""From portraits to avatars of OTAvatar, with a report: ``invert`` behind the interface of all methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Built, Source
from avatar_jax.methods.otavatar import finetune, invert, losses
from avatar_jax.methods.otavatar.holding import HoldConfig
from avatar_jax.methods.otavatar.model import ModelConfig

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model
    from avatar_jax.methods.otavatar.method import BuildOptions


RAYS = 1024  # of a picture that are rendered at once where pictures are large


def configured(config: ModelConfig, options: BuildOptions) -> ModelConfig:
    """The model's configuration with the inversion that the options ask for."""
    check = Check(options, OPTION)
    check.at_least(0, 'pti', 'pti_hold')
    check.at_least(1, 'steps', 'portion')
    if options.space not in ('w', 'w+'):
        raise UserError(f"--space {options.space}: use 'w' or 'w+'")
    found = config.settings.inversion
    changes: dict[str, Any] = {'early_stop': options.early_stop or found.early_stop}
    if (steps := options.steps) is not None:
        changes |= {'w_steps': steps, 'wplus_steps': steps if found.wplus_steps else 0}
        if found.sr_steps is not None:
            changes['sr_steps'] = min(found.sr_steps, steps)
    if options.space == 'w':
        changes |= {'wplus_steps': 0, 'w_steps': options.steps or found.w_steps or found.wplus_steps}
    inversion = dataclasses.replace(found, **changes)
    config = dataclasses.replace(config, settings=dataclasses.replace(config.settings, inversion=inversion))
    if config.img_resolution >= invert.LARGE and config.generator.rendering.ray_chunk is None:
        # The same numbers in less memory: 1.5 instead of 2.4 GiB for a step at the published size.
        config = dataclasses.replace(config, generator=config.generator.replace(rendering={'ray_chunk': RAYS}))
    return config


def num_steps(model: Model, options: BuildOptions) -> int:
    """Steps of one inversion, both stages together."""
    return invert.num_steps(configured(model.config, options))


def networks(config: ModelConfig, bank: PerceptionBank) -> dict[str, str]:
    """What the losses of the inversion look through, in words."""
    loss = config.settings.loss
    return bank.report(loss.perceptual_network, loss.identity_network)


def looks_through(config: ModelConfig, bank: PerceptionBank) -> tuple[str, ...]:
    """The networks of the bank that the losses of the inversion use."""
    return losses.looks_through(bank, config.settings.loss)


def build(model: Model, source: Source, options: BuildOptions, **tools: Any) -> Built:
    """The avatar of one portrait; see ``build_many``."""
    return build_many(model, [source], options, **tools)[0]


def build_many(
    model: Model,
    sources: Sequence[Source],
    options: BuildOptions,
    *,
    bank: PerceptionBank,
    key: jax.Array | None,
    on_step: Callable[..., None],
) -> list[Built]:
    """Avatars of many portraits, inverted side by side (paper section 3.3), over all devices of this process.

    Args:
        key: jitters the samples along the rays; None inverts through the deterministic renderer.
    """
    config = configured(model.config, options)
    portraits = [source.portraits[0] for source in sources]
    found = invert.invert_people(
        model.variables,
        config,
        portraits,
        bank,
        key,
        weights=model.sha256,
        on_step=lambda done, loss: on_step(done, loss=loss),
        portion=options.portion,
    )
    built = []
    for portrait, inverted in zip(portraits, found, strict=True):
        tuned = None
        if options.pti:
            before = float(inverted.psnr)
            hold = HoldConfig().times(options.pti_hold) if options.pti_hold else None
            inverted, curve = finetune.finetune_generator(
                model.variables, config, portrait, inverted, bank, key, steps=options.pti, hold=hold
            )
            tuned = {
                'steps': options.pti,
                'hold': options.pti_hold,
                'psnr_before': before,
                'loss': np.asarray(curve).tolist(),
            }
        missing = losses.left_out(bank, config.settings.loss, portrait.landmarks is not None)
        through = networks(config, bank) | {k: f'off: {why}' for k, why in missing.items()}
        built.append(
            Built(
                inverted.avatar,
                scores={'psnr': float(inverted.psnr), 'psnr_in_mask': float(inverted.psnr_mask)},
                views=None if tuned else inverted.views,
                curves={'loss': np.concatenate([np.asarray(stage.curve) for stage in inverted.stages])},
                report={
                    'losses': {
                        'computed': {name: float(value) for name, value in inverted.terms.items()},
                        'left_out': missing,
                    },
                    'inversion': invert.report(inverted),
                    'generator_tuning': tuned,
                    'networks': through,
                    'limit': 'the likeness is bounded by the prior: what the weights have not seen they cannot show',
                },
                notes=tuple(
                    f'{portrait.source or "portrait"}: the {name} term is left out of the loss: {why}'
                    for name, why in missing.items()
                ),
            )
        )
    return built
