"""From a portrait to an avatar: pivot, then the fit of the compensation network or of the generator (sections 3 and 4).

The paper's fast way is the encoder's code and a few hundred steps on the compensation network alone (equation 12); the
slow one tunes the generator, as PTI does, with the same objective but for the volume's term. The pivot can also be
searched in W. ``fit_people`` does all of it for people side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.inversion import tuning
from avatar_jax.inversion.memory import bytes_of_view
from avatar_jax.inversion.saving import Course, StepClock
from avatar_jax.inversion.tuning import Pivot, Tuned, TuningConfig
from avatar_jax.losses.distance import distance_of
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.nofa import losses
from avatar_jax.methods.nofa.config import PIVOTS, ModelConfig, Weights
from avatar_jax.methods.nofa.model import (
    Volume,
    added,
    canonical,
    check_portrait,
    coefficients_of,
    deformation_of,
    make_avatar,
    network,
    render,
    sample_draws,
    style_rows,
    volume_of,
)
from avatar_jax.methods.nofa.train import assembled, join_generator, split_generator
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.ops.resize import match_size
from avatar_jax.parallel import apart, as_arrays, in_loop, on_all, on_rows, over_devices, portion_of
from avatar_jax.render.cameras import frontal_label
from avatar_jax.types import Avatar, Portrait, PyTree

STEPS_PER_CALL = 10


@flax.struct.dataclass
class Problem:
    """What stays the same while one portrait is fitted.

    Attributes:
        image: [1,S,S,3]. label: [1,25]. shape: [1,80]. expression: [1,64].
        targets: of the losses.
    """

    image: jax.Array
    label: jax.Array
    shape: jax.Array
    expression: jax.Array
    targets: losses.Targets


@dataclass
class Fitted:
    """An avatar and how it was found.

    Attributes:
        avatar: see ``model.make_avatar``.
        image: [S,S,3] the portrait's view of it, limited to [-1,1].
        scores: ``psnr``, ``psnr_raw`` (dB), ``psnr_forward`` (before tuning), and the weighted terms.
        tuned: of ``inversion.tuning``, or None where nothing was tuned. pivot: of the search, or None.
        seconds: of the fit's steps, without compilation. course: how the loss of the search fell, or None.
    """

    avatar: Avatar
    image: np.ndarray
    scores: dict[str, float]
    tuned: Tuned | None = None
    pivot: Pivot | None = None
    seconds: float = 0.0
    course: Course | None = None

    def report(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        out: dict[str, Any] = {'scores': self.scores}
        if self.tuned is not None:
            out['tuning'] = {**tuning.report(self.tuned), 'seconds': self.seconds}
        if self.pivot is not None:
            out['search'] = {**self.course.report(), 'loss': np.asarray(self.pivot.curve).tolist()}
        return out


def weights_of(config: ModelConfig, tune: str) -> Weights:
    """Equation 12; without the volume's term where the compensation network does not move."""
    weights = config.settings.loss.one_shot
    return weights if tune == 'compensation' else replace(weights, depth=0.0)


def pose_problem(bank: PerceptionBank, config: ModelConfig, portrait: Portrait) -> Problem:
    """Prepares one portrait; a pure function of its arrays."""
    image = jnp.asarray(portrait.image)[None]
    landmarks = None if portrait.landmarks is None else jnp.asarray(portrait.landmarks)[None]
    shape, expression = (x[None] for x in coefficients_of(portrait, config))
    targets = losses.prepare_targets(
        bank,
        config.settings.loss,
        config.settings.loss.one_shot,
        image,
        landmarks,
        config.generator.neural_rendering_resolution,
    )
    return Problem(image, jnp.asarray(portrait.camera.label)[None], shape, expression, targets)


def view_of(variables: Mapping[str, Any], config: ModelConfig, problem: Problem, volume: Volume, key: jax.Array | None):
    """The portrait's own view of a volume: its camera, its expression."""
    deform = deformation_of(variables, config, problem.shape, problem.expression)
    draws = None if key is None else sample_draws(key[None], config)
    return render(variables, config, volume.planes, volume.ws, problem.label, deform, draws)


def _value(bank, config, weights, problem, views, volume) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, its weighted terms, and what a stopping rule may look at: ``negative_psnr`` and ``perceptual``."""
    loss = config.settings.loss
    offsets = jnp.zeros_like(volume.ws)  # the code does not move, so that its norm is no term
    terms = losses.objective_terms(
        bank, loss, replace(weights, latent=0.0), views, problem.targets, offsets=offsets, volume=volume
    )
    wanted = problem.targets.image
    watched = {tuning.PSNR: -psnr(to_unit(views.image), to_unit(wanted))[0]}
    distance = distance_of(bank, losses.perceptual_kind(loss, bank), loss.pyramid_scales)
    if distance is not None:
        watched['perceptual'] = distance(views.image, wanted)
    return losses.total(terms), {**terms, **watched}


def tuning_loss(
    variables: Mapping[str, Any],
    config: ModelConfig,
    problem: Problem,
    ws: jax.Array,
    bank: PerceptionBank,
    tune: str,
    jitter: bool,
    volume: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[Callable, PyTree]:
    """The loss ``(params, key) -> (loss, terms)`` of one person, and the parameters that it starts from.

    ``volume``: what ``model.canonical`` gives for the code, if that is known: it does not move with 'compensation'.
    """
    weights = weights_of(config, tune)
    if tune == 'compensation':
        planes, features = canonical(network(variables, 'generator'), config, ws) if volume is None else volume
        first = variables['params']['compensation']
    else:
        first, fixed = split_generator(variables['params']['generator'])

    def loss(params, key):
        if tune == 'compensation':
            own = assembled(variables, {'compensation': params})
            volume = Volume(ws, planes, added(own, config, features, problem.image))
        else:
            joined = join_generator(params, fixed)
            own = {**variables, 'params': {**variables['params'], 'generator': joined}}
            volume = volume_of(own, config, ws, problem.image)
        views = view_of(own, config, problem, volume, key if jitter else None)
        return _value(bank, config, weights, problem, views, volume)

    return loss, first


def locality_of(
    variables: Mapping[str, Any], config: ModelConfig, problem: Problem, ws: jax.Array, bank: PerceptionBank
) -> Callable[[PyTree, jax.Array], jax.Array]:
    """PTI's regulariser: canonical pictures of other codes stay what they were."""
    first, fixed = split_generator(variables['params']['generator'])
    generator, model = network(variables, 'generator'), TriPlaneGenerator(config.generator)

    def picture(params, rows):
        own = {**variables, 'params': {**variables['params'], 'generator': join_generator(params, fixed)}}
        planes, _ = canonical(network(own, 'generator'), config, rows[None])
        return render(own, config, planes, rows[None], problem.label, None).image

    def random_code(key):
        z = jax.random.normal(key, (1, config.generator.z_dim))
        return model.apply(generator, z, problem.label, method='mapping')[0]

    loss = config.settings.loss
    distance = distance_of(bank, losses.perceptual_kind(loss, bank), loss.pyramid_scales)
    return tuning.locality_term(picture, first, ws[0], random_code, config.settings.tuning.locality, distance)


@partial(jax.jit, static_argnames=('config', 'devices'))
def _pose_all(bank, portraits, *, config, devices):
    def all_of(bank, portraits):
        return jax.vmap(lambda p: pose_problem(bank, config, p))(portraits)

    return over_devices(all_of, devices)(bank, portraits)


@partial(jax.jit, static_argnames=('config', 'devices'))
def _encode_all(variables, images, *, config, devices):
    return over_devices(lambda v, x: style_rows(v, config, x)[:, None], devices)(variables, images)


@partial(jax.jit, static_argnames=('config', 'devices'))
def _search_all(variables, problems, bank, keys, *, config, devices):
    """A code in W for each person: the result of the search, and rows [P,1,L,D]."""

    def all_of(shared, people):
        return _search(*shared, *people, config)

    return over_devices(all_of, devices)((variables, bank), (problems, keys))


# The last program; compiled apart, so that the seconds of a search are those of its steps.
_SEARCHES: dict[Any, Any] = {}


def _compiled_search(arguments: tuple, config: ModelConfig, devices: tuple[jax.Device, ...]) -> Callable:
    leaves, structure = jax.tree.flatten(arguments)
    key = (config, devices, structure, tuple((jnp.shape(x), str(x.dtype)) for x in leaves))
    if key not in _SEARCHES:
        _SEARCHES.clear()
        _SEARCHES[key] = _search_all.lower(*arguments, config=config, devices=devices).compile()
    return _SEARCHES[key]


def _search(variables, bank, problems, keys, config):
    search, generator = config.settings.search, network(variables, 'generator')
    rendering = config.generator.rendering
    label = frontal_label(rendering.avg_camera_radius, rendering.avg_camera_pivot).reshape(-1)
    z = jax.random.normal(jax.random.key(0), (search.samples, config.generator.z_dim))
    labels = jnp.broadcast_to(label, (search.samples, 25))
    sampled = TriPlaneGenerator(config.generator).apply(generator, z, labels, method='mapping')[:, 0]
    mean, spread = tuning.code_statistics(sampled)
    weights = weights_of(config, 'generator')

    def rows_of(code):
        return jnp.broadcast_to(code, (1, config.generator.num_ws, code.shape[-1]))

    def one(problem, key):
        first = mean if search.start == 'mean' else style_rows(variables, config, problem.image)[0].mean(0)

        def loss(code, step_key):
            del step_key
            volume = volume_of(variables, config, rows_of(code), problem.image, compensate=False)
            views = view_of(variables, config, problem, volume, None)
            return _value(bank, config, weights, problem, views, volume)

        found = tuning.find_pivot(loss, first, spread, key, search)
        return found, rows_of(found.code)

    return jax.vmap(one)(problems, keys)


@partial(jax.jit, static_argnames=('config', 'count', 'jitter', 'devices'), donate_argnames='states')
def _advance(variables, problems, rows, bank, states, keys, *, config, count, jitter, devices):
    chosen = config.settings.tuning

    def all_of(shared, people):
        variables, bank = shared

        def one(problem, ws, state, key):
            loss, _ = tuning_loss(variables, config, problem, ws, bank, chosen.tune, jitter)
            local = locality_of(variables, config, problem, ws, bank) if chosen.locality.weight else None
            return tuning.advance(loss, state, key, count, chosen, local)

        return jax.vmap(one)(*people)

    return over_devices(all_of, devices)((variables, bank), (problems, rows, states, keys))


def _own_variables(variables, config, params, tune):
    """The common tree with one person's tuned parameters."""
    if tune == 'compensation':
        return assembled(variables, {'compensation': params})
    if tune == 'none':
        return variables
    _, fixed = split_generator(variables['params']['generator'])
    return {**variables, 'params': {**variables['params'], 'generator': join_generator(params, fixed)}}


@partial(jax.jit, static_argnames=('config', 'tune'))
def _assess(variables, problem, ws, bank, params, *, config, tune):
    """The volume of one person with the tuned parameters, its picture and scores."""
    own = _own_variables(variables, config, params, tune)
    volume = volume_of(own, config, ws, problem.image)
    views = view_of(own, config, problem, volume, None)
    _, terms = _value(bank, config, weights_of(config, tune), problem, views, volume)
    image, raw = jnp.clip(views.image, -1, 1), jnp.clip(views.raw, -1, 1)
    wanted = [match_size(problem.image, x.shape[1]) for x in (image, raw)]
    scores = {
        name: psnr(to_unit(x), to_unit(w))[0]
        for name, x, w in zip(('psnr', 'psnr_raw'), (image, raw), wanted, strict=True)
    }
    return volume, image[0], {**terms, **scores}


def with_tuning(config: ModelConfig, *, pivot: str | None = None, tuning: TuningConfig | None = None) -> ModelConfig:
    """The configuration with another pivot or tuning; only what fits need is compared for compilation.

    Raises:
        UserError: the compensation network is to be tuned, and there is none.
    """
    if pivot is not None and pivot not in PIVOTS:
        raise UserError(f'pivot: {pivot!r}; use one of {", ".join(PIVOTS)}')
    settings = config.settings
    changes = {'pivot': pivot or settings.pivot, 'tuning': tuning or settings.tuning}
    return replace(config, settings=replace(settings, **changes))


def _plain(config: ModelConfig) -> ModelConfig:
    """The configuration without what only the tuning reads, so that other settings share the compiled programs."""
    return with_tuning(config, pivot='encoder', tuning=TuningConfig('none'))


def fit_people(
    variables: Mapping[str, Any],
    config: ModelConfig,
    portraits: list[Portrait],
    bank: PerceptionBank | None = None,
    key: jax.Array | None = None,
    *,
    weights: str = '',
    on_step: Callable[..., None] | None = None,
    devices: Sequence[jax.Device] | None = None,
    portion: int | None = None,
) -> list[Fitted]:
    """Avatars of portraits, a portion of them side by side on each device.

    Args:
        config: ``settings.pivot`` and ``settings.tuning`` say how (``with_tuning``).
        key: jitters the samples along the rays while tuning, and draws the noise of the search; None makes the former
            deterministic.
        weights: SHA-256 of the weights, stored in the avatars.
        on_step: called as ``on_step(done, loss=mean)`` after every few steps of the tuning, ``settings.tuning.steps``
            for all people together.
        devices: over which people are spread, with the same results as on one; None: all of this process.
        portion: people whom each device fits at the same time; None: as many as half of its memory is enough for.

    Returns:
        one ``Fitted`` for each portrait; each equals what the portrait alone gives with the key
        ``fold_in(key, index)``.

    Raises:
        UserError: a picture or its landmarks cannot be used.
    """
    bank = PerceptionBank() if bank is None else bank
    loss, steps = config.settings.loss, config.settings.tuning.steps
    for portrait in portraits:
        check_portrait(config, portrait)
        if loss.one_shot.mouth:
            landmarks = None if portrait.landmarks is None else np.asarray(portrait.landmarks)[None]
            losses.check_mouths(landmarks, config.img_resolution, [portrait.source or 'portrait'])
    devices = tuple(jax.local_devices() if devices is None else devices)[: len(portraits)]
    people = len(portraits)
    count, portion = portion_of(people, devices, bytes_of_fit(variables, config), portion)  # the last one fills up
    start_key = jax.random.key(0) if key is None else key
    keys = jax.vmap(lambda i: jax.random.fold_in(start_key, i))(jnp.arange(count))
    filled, size = [*portraits, *[portraits[-1]] * (count - people)], len(devices) * portion
    found: list[Fitted] = []
    for first in range(0, count, size):

        def step(done: int, loss: float, first: int = first) -> None:
            if on_step is not None:
                on_step((first // size * steps + done) * size // count, loss=loss)

        group = slice(first, first + size)
        real = min(size, people - first)
        found += _fit_group(
            variables, config, filled[group], keys[group], bank, key is not None, weights, step, devices, real
        )
    return found


def bytes_of_fit(variables: Mapping[str, Any], config: ModelConfig) -> float:
    """About what a fit holds for each person who is fitted side by side with others: a copy of what moves with its
    gradient and Adam's moments, and what a step keeps for its gradient.
    """
    tune = config.settings.tuning.tune
    moving = 0 if tune == 'none' else sum(x.size for x in jax.tree.leaves(first_params(variables, tune)))
    return 16.0 * moving + bytes_of_view(config.generator)


def _fit_group(variables, config, portraits, keys, bank, jitter, weights, on_step, devices, real) -> list[Fitted]:
    """``fit_people`` side by side; the first ``real`` of them are asked for."""
    settings, count = config.settings.tuning, len(portraits)
    common, (variables, bank) = (variables, bank), on_all((variables, bank), devices)
    plain = _plain(config)
    problems = _pose_all(bank, _stacked(portraits), config=plain, devices=devices)
    pivots, search_seconds = None, 0.0
    if config.settings.pivot == 'search':
        search_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
        search = _compiled_search((variables, problems, bank, search_keys), plain, devices)
        begun = time.perf_counter()
        pivots, rows = jax.block_until_ready(search(variables, problems, bank, search_keys))
        search_seconds = time.perf_counter() - begun
    else:
        rows = _encode_all(variables, problems.image[:, 0], config=plain, devices=devices)
    tuned, clock = None, StepClock()
    if settings.tune != 'none':
        first = first_params(variables, settings.tune)
        states = jax.vmap(lambda _: tuning.start(first, settings))(jnp.arange(count))
        outs, done = [], 0
        states, keys = on_rows((states, keys), devices)
        while done < settings.steps and not jax.device_get(states.stopped).all():
            size, begun = min(STEPS_PER_CALL, settings.steps), time.perf_counter()
            with in_loop():
                states, out = _advance(
                    variables,
                    problems,
                    rows,
                    bank,
                    states,
                    keys,
                    config=config,
                    count=size,
                    jitter=jitter,
                    devices=devices,
                )
                outs.append(jax.device_get(out))
            clock.add('fit', size, time.perf_counter() - begun)
            done = min(done + size, settings.steps)
            made = outs[-1][0][:real]
            on_step(done, loss=float(np.nanmean(made)) if np.isfinite(made).any() else float('nan'))
        tuned = jax.vmap(tuning.finish)(states, [as_arrays(o) for o in outs])
    found, made = [], (problems, rows, tuned, pivots)
    if len(devices) > 1:
        made, (variables, bank) = jax.device_get(made), common
    for portrait, own in zip(portraits[:real], apart(made, real), strict=True):
        fitted = _finished(variables, config, portrait, bank, weights, *own)
        fitted.seconds = float(clock.per_step().sum())
        if fitted.pivot is not None:
            curve = np.asarray(fitted.pivot.curve)
            fitted.course = Course(curve, np.full(len(curve), search_seconds / len(curve)))
        found.append(fitted)
    return found


def first_params(variables: Mapping[str, Any], tune: str) -> PyTree:
    """What a fit moves, as it is before the first step: the compensation network, or the generator without mapping."""
    params = variables['params']
    return params['compensation'] if tune == 'compensation' else split_generator(params['generator'])[0]


def _stacked(portraits: list[Portrait]) -> Portrait:
    """One portrait with a leading axis of people, of what the fit reads; coefficients that were not measured are
    zero.
    """
    zero = {'shape': np.zeros(80, np.float32), 'expression': np.zeros(64, np.float32)}
    have = all(p.landmarks is not None for p in portraits)
    rows = [
        Portrait(
            image=p.image,
            camera=p.camera,
            landmarks=p.landmarks if have else None,
            **{k: z if getattr(p, k) is None else getattr(p, k) for k, z in zero.items()},
        )
        for p in portraits
    ]
    return as_arrays(jax.tree.map(lambda *x: np.stack([np.asarray(v, np.float32) for v in x]), *rows))


def _finished(variables, config, portrait, bank, weights, problem, ws, tuned, pivot) -> Fitted:
    tune = config.settings.tuning.tune
    first = first_params(variables, tune) if tune != 'none' else None
    plain = _plain(config)
    before = _assess(variables, problem, ws, bank, first, config=plain, tune=tune)[2]
    params = first if tuned is None else tuned.params
    volume, image, scores = _assess(variables, problem, ws, bank, params, config=plain, tune=tune)
    own = _own_variables(variables, config, params, tune)
    renderer = own['params']['generator'] if tune == 'generator' else None
    avatar = make_avatar(config, portrait, volume, weights, renderer)
    numbers = {name: float(value) for name, value in scores.items()} | {'psnr_forward': float(before['psnr'])}
    return Fitted(avatar, np.asarray(image), numbers, tuned, pivot)


def steps_of(config: ModelConfig) -> int:
    """Steps of the tuning that ``fit_people`` reports on."""
    chosen = config.settings.tuning
    return 0 if chosen.tune == 'none' else chosen.steps
