"""From the video of one person to an avatar: trains the personal basis, then the generator, and measures the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import to_plain
from avatar_jax.errors import UserError
from avatar_jax.inversion import tuning
from avatar_jax.inversion.start import check_start, chosen_encoder, first_codes
from avatar_jax.inversion.tuning import TuningConfig, chosen_tuning
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Built, Source
from avatar_jax.methods.hfagp import keeping, losses, scores, train
from avatar_jax.methods.hfagp import model as models
from avatar_jax.methods.hfagp.batches import PersonFrames, check_video, training_batch
from avatar_jax.methods.hfagp.config import METHOD, ModelConfig
from avatar_jax.methods.hfagp.fit import fit_generator
from avatar_jax.methods.hfagp.prior import knows_a_person, with_person
from avatar_jax.methods.hfagp.video import fitted, source_video
from avatar_jax.options import seconds_of
from avatar_jax.parallel import copies, in_loop
from avatar_jax.train.state import TrainState
from avatar_jax.types import Avatar, Camera, PyTree

if TYPE_CHECKING:
    from avatar_jax.methods.hfagp.method import BuildOptions
    from avatar_jax.methods.model import Model

EVERY = 10  # steps between two reports
ENCODED = 8  # frames that an encoder looks at, for the code to start from


@dataclass(frozen=True)
class Schedule:
    """When the generator is tuned, and when training ends.

    Attributes:
        steps: at most so many. frozen: in so many the generator is frozen; None: for the share ``frozen_share`` of the
            time. seconds: of all; None: no limit.
    """

    steps: int | None
    frozen: int | None
    frozen_share: float
    seconds: float | None = None

    @classmethod
    def of(cls, config: ModelConfig, options: BuildOptions) -> Schedule:
        """What the options ask for.

        Raises:
            UserError: numbers out of their range.
        """
        known, fixed = config.settings.train, options.tune is not None
        if fixed and options.frozen_steps is not None:
            raise UserError(
                f'--frozen-steps {options.frozen_steps}: with --tune there is no second stage; leave it out'
            )
        if options.steps is not None and options.steps < (0 if options.further else 1):
            raise UserError(f'--steps {options.steps}: must be at least 1')
        if options.frozen_steps is not None and options.frozen_steps < 0:
            raise UserError(f'--frozen-steps {options.frozen_steps}: must not be negative')
        if not 0 <= options.unseen <= 0.9:
            raise UserError(f'--unseen {options.unseen}: must lie between 0 and 0.9')
        share = min(1.0, known.tune_iter / known.iterations) if known.iterations else 1.0
        if options.budget:
            never = math.inf if fixed else share
            return cls(options.steps, options.frozen_steps, never, seconds_of(options.budget))
        steps = known.iterations if options.steps is None else options.steps
        frozen = math.ceil(share * steps) if options.frozen_steps is None else options.frozen_steps
        frozen = steps if fixed else frozen
        return cls(steps, frozen, share)

    def ended(self, done: int, elapsed: float) -> bool:
        """Whether training is over."""
        return (self.steps is not None and done >= self.steps) or (self.seconds is not None and elapsed >= self.seconds)

    def tunes(self, done: int, elapsed: float) -> bool:
        """Whether the generator is tuned from now on."""
        if self.frozen is not None:
            return done >= self.frozen
        return elapsed >= self.frozen_share * self.seconds

    @property
    def length(self) -> int:
        """For showing progress: the number of steps, or of seconds."""
        return max(1, math.ceil(self.seconds) if self.seconds is not None else self.steps)

    def progress(self, done: int, elapsed: float) -> int:
        """How far training is, of ``length``."""
        return min(self.length, int(elapsed) if self.seconds is not None else done)


def num_steps(model: Model, options: BuildOptions) -> int:
    """Steps of a training, with a budget its seconds, and steps of the fit after it."""
    fit = fit_of(options)
    length = Schedule.of(configured(model.config, options), options).length
    return length + (0 if fit.tune == 'none' else fit.steps)


def fit_of(options: BuildOptions) -> TuningConfig:
    """The fit that the options ask for. Raises ``UserError``."""
    return chosen_tuning(TuningConfig('none'), options.tune, options.fit_steps, options.fit_stop, options.locality)


def configured(config: ModelConfig, options: BuildOptions) -> ModelConfig:
    """The model's configuration with the drivers and the basis that the options ask for."""
    settings = config.settings
    if options.drivers:
        settings = replace(settings, drivers=tuple(options.drivers))
    if options.basis_size is not None:
        settings = replace(settings, basis=replace(settings.basis, size=options.basis_size))
    check_start(options.start or 'mean', options.encoder)
    if options.start and options.further:
        raise UserError(f'--start {options.start}: --further goes on from the person in the weights; leave one out')
    if options.start:
        settings = replace(settings, basis=replace(settings.basis, start='average', offset=True))
    return replace(config, settings=settings)


def build(
    model: Model,
    source: Source,
    options: BuildOptions,
    *,
    bank: PerceptionBank,
    key: jax.Array | None,
    on_step: Callable[..., None],
) -> Built:
    """Trains an avatar on a video; see the module.

    Args:
        bank: LPIPS, if it is there, is a term of the loss.
        key: draws fresh networks, the order of the frames and the samples along rays; None: as ``jax.random.key(0)``.
        on_step: gets the number of steps (with a budget: of seconds), ``loss`` and ``psnr``.

    With ``source.work`` the state and a picture of what the avatar can do so far are kept there every two minutes, and
    a training that was stopped goes on; a budget then counts the time of all its parts.

    Raises:
        UserError: the video is too short or lacks what a driver needs, options do not fit, the loss became NaN.
    """
    began = time.monotonic()
    key = jax.random.key(0) if key is None else key
    config = configured(model.config, options)
    source = replace(source, sound=options.sound or source.sound)
    schedule, fit = Schedule.of(config, options), fit_of(options)
    losses.network_of(config.settings.loss, bank)
    settings = config.settings
    with source_video(source, settings.drivers, settings.loss.size, options.unseen) as video:
        config = fitted(config, video, not options.further)
        check_video(config, video)
        rows = first_rows(model, options, config, video)
        variables = with_person(model.variables, config, key, options.further, model.path or 'weights', rows)
        before = config.settings.train.iterations if options.further else 0
        about = {
            'config': config.to_dict(),
            'options': to_plain(options),
            'weights': model.sha256,
            'video': keeping.of_video(video) if source.work else '',
            'key': [int(x) for x in jax.random.key_data(key).ravel()],
        }
        with keeping.Keeper(source.work, about) as keeper:
            trained = optimise(config, variables, video, bank, schedule, key, began, on_step, before, keeper)
        variables, config, fitted_to = trained.variables, trained.config, None
        if fit.tune != 'none':
            length = schedule.length
            variables, tuned_to, seconds = fit_generator(
                config,
                variables,
                video,
                bank,
                jax.random.fold_in(key, 1),
                fit,
                trained.steps,
                lambda n, **numbers: on_step(length + n, **numbers),
            )
            fitted_to = {**tuning.report(tuned_to), 'seconds': seconds}
        kept = measured(variables, config, video)
        label = video.labels[0]
        notes = [*(f'{source.name}: {note}' for note in video.notes), *keeper.notes]
    _, differing = models.checked_per_video(variables, config)
    tuned = trained.frozen < trained.steps or options.further or fitted_to is not None
    identity = models.identity_of(variables, tuned)
    camera = Camera.from_label(label)
    avatar = Avatar(identity, camera, METHOD, config, config.basis, model.sha256, source.name)
    return Built(
        avatar,
        scores=flat_scores(kept),
        curves=trained.curves,
        report={
            'drivers': list(config.settings.drivers),
            'steps': trained.steps,
            'frozen_steps': trained.frozen,
            'seconds_with_compilation': time.monotonic() - began,
            'frames': {'train': len(video.train), 'unseen': len(video.test)},
            'basis_size': config.settings.basis.size,
            'began_with': 'the person in the weights' if options.further else 'fresh basis and encoder',
            'start': options.start or config.settings.basis.start,
            'tuning': fitted_to,
            'perceptual': losses.report(config.settings.loss, bank),
            'scores': kept,
        },
        notes=(*notes, *differing, *_warnings(model, options, kept)),
    )


def first_rows(model: Model, options: BuildOptions, config: ModelConfig, video: PersonFrames) -> jax.Array | None:
    """With ``--start encoder`` the mean of the rows [L,d] of some training frames."""
    generator = models.generator_of(model.variables)
    encoder = chosen_encoder(options.start or 'mean', options.encoder, config.generator, generator)
    if encoder is None:
        return None
    size = config.generator.img_resolution
    images = np.stack([video.picture(int(i), size) for i in scores.spread(video.train, ENCODED)])
    return first_codes(encoder, jnp.asarray(images), 'w+', jax.local_devices()[:1])[0].mean(0)


def _warnings(model: Model, options: BuildOptions, kept: dict[str, Any]) -> list[str]:
    """What the maker of an avatar should know."""
    found = []
    if knows_a_person(model.variables) and not options.further:
        found.append('the weights know a person already: their generator was taken, tuned as it is')
    for driver, parts in kept.items():
        if parts.get('unseen') and parts['train']['psnr'] - parts['unseen']['psnr'] > 6:
            found.append(
                f'{driver}: frames that were not trained on are shown much worse ({parts["unseen"]["psnr"]:.1f} dB, '
                f'others {parts["train"]["psnr"]:.1f}); a longer video with more expressions helps'
            )
    return found


def measured(variables: PyTree, config: ModelConfig, video: PersonFrames) -> dict[str, dict[str, dict[str, float]]]:
    """Driver -> 'train' and 'unseen' -> ``scores.measure``."""
    parts = {'train': video.train, 'unseen': video.test}
    return {
        driver: {part: scores.measure(variables, config, video, driver, numbers) for part, numbers in parts.items()}
        for driver in config.settings.drivers
    }


def flat_scores(kept: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Scores by one name each; ``psnr`` is that of the first driver on unseen frames, or else on all."""
    flat = {
        f'{part}_{name}_{driver}': value
        for driver, parts in kept.items()
        for part, values in parts.items()
        for name, value in values.items()
    }
    first = next(iter(kept.values()))
    return {'psnr': (first['unseen'] or first['train'])['psnr'], **flat}


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Trained:
    """What ``optimise`` gives: variables; the configuration with the steps that were done; ``frozen`` of them without
    the generator; curves by name.
    """

    variables: PyTree
    config: ModelConfig
    steps: int
    frozen: int
    curves: dict[str, np.ndarray]


def optimise(
    config: ModelConfig,
    variables: PyTree,
    video: PersonFrames,
    bank: PerceptionBank | None,
    schedule: Schedule,
    key: jax.Array,
    began: float,
    on_step: Callable[..., None],
    before: int = 0,
    keeper: keeping.Keeper | None = None,
) -> Trained:
    """Both stages on one device.

    Args:
        began: ``time.monotonic()`` from which the schedule's time counts.
        before: steps that the variables were trained for already: sound is smoothed in time from a certain step on.
        keeper: keeps the state now and then, and may have one to begin with; in its ``with`` block.
    """
    seed = int(jax.random.bits(key) >> 1)
    frozen = jax.device_put({'bank': bank if losses.network_of(config.settings.loss, bank) == 'lpips' else None})
    # A copy, because the step overwrites it.
    state = train.init_state(config, copies(variables))
    keeper = keeping.Keeper('', {}) if keeper is None else keeper
    kept = keeper.restored(state)
    known, state, done, tuned_from = config.settings.train, kept.state, kept.done, kept.tuned_from
    began -= kept.elapsed
    curves: list[Any] = [{k: kept.curves[k][i] for k in keeping.CURVES} for i in range(done)]
    while not schedule.ended(done, time.monotonic() - began):
        if tuned_from is None and schedule.tunes(done, time.monotonic() - began):
            tuned_from = done
        stage = replace(known, tune_iter=before + done + 1 if tuned_from is None else 0)
        frames = train.frame_numbers(known, seed, done, len(video.train))
        batch = training_batch(
            video, frames, config.settings.loss.size, config.settings.drivers, train.smooths(known, before + done)
        )
        placed = jax.device_put(train.with_stage(stage, batch, before + done))
        with in_loop():
            state, metrics = _step(config, seed, state, placed, frozen)
        done += 1
        curves.append({name: metrics[name] for name in keeping.CURVES})
        if done % EVERY == 0:
            _report(curves, done, schedule, began, on_step)
            if keeper.due():
                elapsed = time.monotonic() - began
                now = keeping.TrainingSoFar(state, done, elapsed, tuned_from, _columns(curves))
                keeper.keep(now, train.variables_of(state), config, video)
    if curves:
        _report(curves, done, schedule, began, on_step)
    on_step(schedule.length)
    frozen_steps = done if tuned_from is None else tuned_from
    final = replace(known, iterations=before + done, tune_iter=frozen_steps)
    return Trained(
        train.variables_of(state),
        replace(config, settings=replace(config.settings, train=final)),
        done,
        frozen_steps,
        _columns(curves),
    )


def _columns(curves: list[Any]) -> dict[str, np.ndarray]:
    rows = jax.device_get(curves)
    return {name: np.array([row[name] for row in rows], np.float32) for name in keeping.CURVES}


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(config: ModelConfig, seed: int, state: TrainState, batch: PyTree, frozen: Any) -> Any:
    return train.train_step(config, seed, state, batch, frozen)


def _report(curves: list[Any], done: int, schedule: Schedule, began: float, on_step: Callable[..., None]) -> None:
    """Says how far it is; ends a training whose loss is no number."""
    curves[-EVERY:] = jax.device_get(curves[-EVERY:])
    last = curves[-1]
    if not np.isfinite(last['loss']):
        raise UserError(
            f'the loss became {last["loss"]} in step {done}; give the weights or the video again, or --steps'
        )
    on_step(schedule.progress(done, time.monotonic() - began), loss=float(last['loss']), psnr=float(last['psnr']))
