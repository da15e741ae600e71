"""From portraits to avatars of OTAvatar, with a report: ``invert`` behind the interface of all methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.inversion import tuning
from avatar_jax.inversion.start import StartEncoder, check_start, chosen_encoder, first_codes
from avatar_jax.io.provenance import of_procedural_heads
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Built, Source
from avatar_jax.methods.otavatar import finetune, invert, losses
from avatar_jax.methods.otavatar.holding import HoldConfig
from avatar_jax.methods.otavatar.model import ModelConfig, network
from avatar_jax.methods.otavatar.several import Person, mean_over, name_of, pictures_of, yaw_of

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model
    from avatar_jax.methods.otavatar.method import BuildOptions
    from avatar_jax.types import Portrait


RAYS = 1024  # of a picture that are rendered at once where pictures are large
# With --tune auto: a portrait that the code alone shows worse than this (dB) is fitted, and held that strongly.
REACHED, AUTO_HOLD = 22.5, 1.0


def configured(config: ModelConfig, options: BuildOptions) -> ModelConfig:
    """The model's configuration with the inversion that the options ask for."""
    check = Check(options, OPTION)
    check.at_least(0, 'hold', 'steps')
    check.at_least(1, 'portion')
    if options.steps == 0 and options.start != 'encoder':
        raise UserError('--steps 0: no code is searched; give 1 or more, or add --start encoder --encoder FILE')
    if options.space not in ('w', 'w+'):
        raise UserError(f"--space {options.space}: use 'w' or 'w+'")
    found = config.settings.inversion
    changes: dict[str, Any] = {'early_stop': options.early_stop or found.early_stop}
    if steps := options.steps:
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


def whether_ever(model: Model, options: BuildOptions) -> tuple[bool, str]:
    """Whether anybody's generator may be fitted, and why (not), in words."""
    if options.tune != 'auto':
        return options.tune != 'none', f'--tune {options.tune}'
    if not of_procedural_heads(model.provenance):
        return False, '--tune auto: the weights do not say that they were trained on procedural heads'
    if options.steps is not None or options.space != 'w+':
        return False, '--tune auto: with --steps or --space, a bad code says nothing of what the weights know'
    return True, ''


def whether_to_fit(model: Model, options: BuildOptions, inverted: invert.Inversion) -> tuple[bool, str]:
    """Whether the generator is fitted to a person, and why (not), in words."""
    ever, why = whether_ever(model, options)
    if why:
        return ever, why
    score, where = mean_score(inverted, 'psnr_mask'), 'in the mask'
    if not np.isfinite(score):
        score, where = mean_score(inverted, 'psnr'), 'of the picture'
    what = f'the {len(inverted.each)} portraits at an average of' if inverted.each else 'the portrait at'
    text = f'--tune auto: the code alone shows {what} {score:.1f} dB {where}, '
    if score < REACHED:
        return True, f'{text}under {REACHED:g}: no procedural head, as the weights know them'
    return False, f'{text}{REACHED:g} or more: as heads that the weights know'


def mean_score(inverted: invert.Inversion, name: str) -> float:
    """A score of the portrait, or its mean over several; NaN where there is none."""
    return mean_over(inverted.each, name) if inverted.each else float(getattr(inverted, name))


def fit_of(model: Model, options: BuildOptions) -> tuning.TuningConfig:
    """The fit of those who are fitted. Raises ``UserError``."""
    tune = 'generator' if whether_ever(model, options)[0] else 'none'
    if options.hold and tune == 'none':
        raise UserError(f'--hold {options.hold:g}: nothing is fitted; leave it out, or add --tune generator')
    base = dataclasses.replace(finetune.DEFAULT, tune='none')
    return tuning.chosen_tuning(base, tune, options.fit_steps, options.fit_stop, options.locality)


def hold_of(options: BuildOptions) -> float:
    """How strongly shape and unseen side are held in the fit."""
    return (AUTO_HOLD if options.tune == 'auto' else 0.0) if options.hold is None else options.hold


def num_steps(model: Model, options: BuildOptions) -> int:
    """Steps of one inversion, both stages together, and of the fit."""
    check_start(options.start, options.encoder)
    fit = fit_of(model, options)
    return max(search_steps(model.config, options) + (0 if fit.tune == 'none' else fit.steps), 1)


def search_steps(config: ModelConfig, options: BuildOptions) -> int:
    """Steps of the search for a code; none for that of an encoder as it is."""
    config = configured(config, options)
    return 0 if options.steps == 0 else invert.num_steps(config)


def networks(config: ModelConfig, bank: PerceptionBank) -> dict[str, str]:
    """What the losses of the inversion look through, in words."""
    loss = config.settings.loss
    return bank.report(loss.perceptual_network, loss.identity_network)


def looks_through(config: ModelConfig, bank: PerceptionBank) -> tuple[str, ...]:
    """The networks of the bank that the losses of the inversion use."""
    return losses.looks_through(bank, config.settings.loss)


def build(model: Model, source: Source, options: BuildOptions, **tools: Any) -> Built:
    """The avatar of one person; see ``build_many``."""
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
    """Avatars of many people, inverted side by side (paper section 3.3), over all devices of this process.

    Of several portraits of a person, all have one code (and one fitted generator), each its own camera and motion.

    Args:
        key: jitters the samples along the rays; None inverts through the deterministic renderer.
    """
    config = configured(model.config, options)
    people = [tuple(s.portraits) if len(s.portraits) > 1 else s.portraits[0] for s in sources]
    generator = network(model.variables, 'generator')
    encoder = chosen_encoder(options.start, options.encoder, config.generator, generator)
    fit = fit_of(model, options)
    if options.steps == 0:
        found = encoded_people(model, config, people, bank, encoder)
        on_step(1)
    else:
        found = invert.invert_people(
            model.variables,
            config,
            people,
            bank,
            key,
            weights=model.sha256,
            on_step=lambda done, loss: on_step(done, loss=loss),
            encoder=encoder,
            portion=options.portion,
        )
    plans = [whether_to_fit(model, options, one) for one in found]
    tuned, earlier = [{'tuned': wanted, 'why': why} for wanted, why in plans], {}
    if which := [i for i, (wanted, _) in enumerate(plans) if wanted]:
        done, strength = search_steps(model.config, options), hold_of(options)
        hold = HoldConfig().times(strength) if strength else None
        # How many of a group are fitted is not known before: one at a time is the same program for any number.
        portion = 1 if options.tune == 'auto' and options.portion is None else options.portion
        fitted = finetune.tune_people(
            model.variables,
            config,
            [people[i] for i in which],
            [found[i] for i in which],
            bank,
            key,
            fit,
            hold,
            on_step=lambda n, **numbers: on_step(done + n, **numbers),
            portion=portion,
        )
        for i, person in zip(which, fitted, strict=True):
            before = {'psnr_before': float(found[i].psnr), 'psnr_in_mask_before': float(found[i].psnr_mask)}
            earlier[i] = found[i].each
            tuned[i] |= {**tuning.report(person.tuned), 'seconds': person.seconds, 'hold': strength, **before}
            found[i] = person.inversion
    began = {'start': options.start} if encoder is None else {'start': options.start, 'encoder': encoder.sha256}
    built = []
    for i, (person, inverted, fit_report) in enumerate(zip(people, found, tuned, strict=True)):
        pictures, name = pictures_of(person), name_of(person) or 'portrait'
        marked = all(p.landmarks is not None for p in pictures)
        missing = losses.left_out(bank, config.settings.loss, marked, len(pictures))
        each = each_portrait(pictures, inverted, earlier.get(i, ()))
        means = {f'{k}_mean': mean_over(each, k) for k in ('psnr', 'psnr_in_mask')} if each else {}
        through = networks(config, bank) | {k: f'off: {why}' for k, why in missing.items()}
        built.append(
            Built(
                inverted.avatar,
                scores={'psnr': float(inverted.psnr), 'psnr_in_mask': float(inverted.psnr_mask), **means},
                views=inverted.views,
                curves={'loss': np.concatenate([np.zeros(0), *(np.asarray(s.curve) for s in inverted.stages)])},
                report={
                    'losses': {
                        'computed': {name: float(value) for name, value in inverted.terms.items()},
                        'left_out': missing,
                    },
                    'inversion': began | invert.report(inverted),
                    'tuning': fit_report,
                    **({'each_portrait': each, 'yaw': [f(p['yaw'] for p in each) for f in (min, max)]} if each else {}),
                    'networks': through,
                    'limit': 'the likeness is bounded by the prior: what the weights have not seen they cannot show',
                },
                course=inverted.course,
                notes=fitted_note(name, options, fit_report)
                + tuple(f'{name}: the {term} term is left out of the loss: {why}' for term, why in missing.items()),
            )
        )
    return built


def each_portrait(
    pictures: Sequence[Portrait], inverted: invert.Inversion, before: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of several portraits of a person, plain values of each: name, scores (``before``: those without the fit), and the
    degrees by which the camera stands to the side. Of one: none.
    """
    found = []
    for k, one in enumerate(inverted.each):
        values = {'name': pictures[k].source or f'portrait {k + 1}'}
        values |= {'psnr': float(one['psnr']), 'psnr_in_mask': float(one['psnr_mask'])}
        if before:
            values |= {'psnr_before': float(before[k]['psnr']), 'psnr_in_mask_before': float(before[k]['psnr_mask'])}
        values['yaw'] = yaw_of(pictures[k])
        found.append(values)
    return found


def fitted_note(name: str, options: BuildOptions, report: Mapping[str, Any]) -> tuple[str, ...]:
    """Says that somebody was fitted without being asked for it."""
    if options.tune != 'auto' or not report['tuned']:
        return ()
    text = report['why'].removeprefix('--tune auto: ')
    return (f'{name}: {text}; so a copy of the generator was fitted to it (--tune none leaves that out)',)


def encoded_people(
    model: Model, config: ModelConfig, people: Sequence[Person], bank: PerceptionBank, encoder: StartEncoder
) -> list[invert.Inversion]:
    """People with the codes that an encoder sees in their pictures, without a step of inversion."""
    pictures, device = [p for person in people for p in pictures_of(person)], jax.local_devices()[:1]
    space = config.settings.inversion.stages()[-1].space
    rows, _ = first_codes(encoder, jnp.stack([jnp.asarray(p.image, jnp.float32) for p in pictures]), space, device)
    ends = np.cumsum([len(pictures_of(person)) for person in people])
    codes = [rows[b - len(pictures_of(p)) : b].mean(0) for p, b in zip(people, ends, strict=True)]
    bias = invert.first_code(model.variables, config)[1]
    avatars = [invert.make_avatar(config, p, c, bias, model.sha256) for p, c in zip(people, codes, strict=True)]
    return [
        invert.Inversion(avatar, [], **invert.shown(model.variables, config, person, bank, avatar))
        for person, avatar in zip(people, avatars, strict=True)
    ]
