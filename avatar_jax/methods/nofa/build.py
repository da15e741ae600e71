"""From portraits to avatars of NOFA, with a report: ``fit`` behind the interface of all methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.inversion.tuning import chosen_tuning
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Built, Source
from avatar_jax.methods.nofa import fit, losses
from avatar_jax.methods.nofa.config import ModelConfig

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model
    from avatar_jax.methods.nofa.method import BuildOptions


def configured(config: ModelConfig, options: BuildOptions) -> ModelConfig:
    """The model's configuration with the fit that the options ask for. Raises ``UserError``."""
    Check(options, OPTION).at_least(1, 'portion')
    tuning = chosen_tuning(config.settings.tuning, options.tune, options.fit_steps, options.fit_stop, options.locality)
    config = fit.with_tuning(config, pivot=options.pivot, tuning=tuning)
    if options.start is None:
        return config
    if options.start == 'mean' and config.settings.pivot != 'search':
        raise UserError('--start mean: no code is searched, the encoder gives it; add --pivot search')
    return config.replace(search__start=options.start)


def num_steps(model: Model, options: BuildOptions) -> int:
    """Steps of the fit; 1 for the forward pass alone."""
    return max(fit.steps_of(configured(model.config, options)), 1)


def draws(config: ModelConfig, options: BuildOptions) -> bool:
    """Whether anything is drawn at random: the search's noise, or the samples of a fit; not by the encoder alone."""
    settings = configured(config, options).settings
    return settings.pivot == 'search' or settings.tuning.tune != 'none'


def networks(config: ModelConfig, bank: PerceptionBank) -> dict[str, str]:
    """What the losses of the fit look through, in words."""
    return losses.networks(config.settings.loss, bank)


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
    """Avatars of several portraits (``fit.fit_people``). ``key``: jitters the samples along the rays."""
    config = configured(model.config, options)
    portraits = [source.portraits[0] for source in sources]
    how = {'weights': model.sha256, 'on_step': on_step, 'portion': options.portion}
    found = fit.fit_people(model.variables, config, portraits, bank, key, **how)
    built = []
    for portrait, fitted in zip(portraits, found, strict=True):
        report = {**fitted.report(), 'networks': networks(config, bank), 'fitted': config.settings.tuning.tune}
        curves = {} if fitted.tuned is None else {'loss': np.asarray(fitted.tuned.curve)}
        missing = [name for name in ('expression', 'shape') if getattr(portrait, name) is None]
        notes = ()
        if missing:
            notes = (f'{portrait.source or "portrait"}: {" and ".join(missing)} were not measured: taken as neutral',)
        if fitted.pivot is not None:
            report['search']['start'] = config.settings.search.start
        built.append(Built(fitted.avatar, dict(fitted.scores), curves, report, notes, course=fitted.course))
    return built
