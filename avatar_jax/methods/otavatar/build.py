"""From portraits to avatars of OTAvatar, with a report: ``invert`` behind the interface of all methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.inversion import tuning
from avatar_jax.inversion.start import check_start, chosen_encoder
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Built, Source
from avatar_jax.methods.otavatar import finetune, invert, losses
from avatar_jax.methods.otavatar.holding import HoldConfig
from avatar_jax.methods.otavatar.model import ModelConfig, network

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model
    from avatar_jax.methods.otavatar.method import BuildOptions


RAYS = 1024  # of a picture that are rendered at once where pictures are large


def configured(config: ModelConfig, options: BuildOptions) -> ModelConfig:
    """The model's configuration with the inversion that the options ask for."""
    check = Check(options, OPTION)
    check.at_least(0, 'hold')
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


def fit_of(options: BuildOptions) -> tuning.TuningConfig:
    """The fit that the options ask for. Raises ``UserError``."""
    if options.hold and options.tune == 'none':
        raise UserError(f'--hold {options.hold:g}: nothing is fitted; leave it out, or add --tune generator')
    base = dataclasses.replace(finetune.DEFAULT, tune='none')
    return tuning.chosen_tuning(base, options.tune, options.fit_steps, options.fit_stop, options.locality)


def num_steps(model: Model, options: BuildOptions) -> int:
    """Steps of one inversion, both stages together, and of the fit."""
    check_start(options.start, options.encoder)
    fit = fit_of(options)
    return invert.num_steps(configured(model.config, options)) + (0 if fit.tune == 'none' else fit.steps)


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
    generator = network(model.variables, 'generator')
    encoder = chosen_encoder(options.start, options.encoder, config.generator, generator)
    fit = fit_of(options)
    found = invert.invert_people(
        model.variables,
        config,
        portraits,
        bank,
        key,
        weights=model.sha256,
        on_step=lambda done, loss: on_step(done, loss=loss),
        encoder=encoder,
        portion=options.portion,
    )
    tuned: list[dict[str, Any] | None] = [None] * len(found)
    if fit.tune != 'none':
        before, done = [float(f.psnr) for f in found], invert.num_steps(config)
        hold = HoldConfig().times(options.hold) if options.hold else None
        fitted = finetune.tune_people(
            model.variables,
            config,
            portraits,
            found,
            bank,
            key,
            fit,
            hold,
            on_step=lambda n, **numbers: on_step(done + n, **numbers),
            portion=options.portion,
        )
        found = [f.inversion for f in fitted]
        tuned = [
            {**tuning.report(f.tuned), 'seconds': f.seconds, 'hold': options.hold or 0.0, 'psnr_before': b}
            for f, b in zip(fitted, before, strict=True)
        ]
    began = {'start': options.start} if encoder is None else {'start': options.start, 'encoder': encoder.sha256}
    built = []
    for portrait, inverted, fit_report in zip(portraits, found, tuned, strict=True):
        missing = losses.left_out(bank, config.settings.loss, portrait.landmarks is not None)
        through = networks(config, bank) | {k: f'off: {why}' for k, why in missing.items()}
        built.append(
            Built(
                inverted.avatar,
                scores={'psnr': float(inverted.psnr), 'psnr_in_mask': float(inverted.psnr_mask)},
                views=inverted.views,
                curves={'loss': np.concatenate([np.asarray(stage.curve) for stage in inverted.stages])},
                report={
                    'losses': {
                        'computed': {name: float(value) for name, value in inverted.terms.items()},
                        'left_out': missing,
                    },
                    'inversion': began | invert.report(inverted),
                    'tuning': fit_report,
                    'networks': through,
                    'limit': 'the likeness is bounded by the prior: what the weights have not seen they cannot show',
                },
                course=inverted.course,
                notes=tuple(
                    f'{portrait.source or "portrait"}: the {name} term is left out of the loss: {why}'
                    for name, why in missing.items()
                ),
            )
        )
    return built
