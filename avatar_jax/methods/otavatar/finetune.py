"""Tunes copies of the generator to people after the inversion (pivotal tuning, ``--tune generator``)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.camera_labels import correct_intrinsics
from avatar_jax.inversion import tuning
from avatar_jax.inversion.saving import StepClock
from avatar_jax.inversion.tuning import LocalityConfig, Tuned, TuningConfig
from avatar_jax.losses.distance import distance_kind, distance_of
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.otavatar import losses
from avatar_jax.methods.otavatar.holding import Held, HoldConfig, held_of, hold_terms, mirrored_motion
from avatar_jax.methods.otavatar.invert import (
    LARGE,
    STEPS_PER_CALL,
    Inversion,
    Problem,
    make_avatar,
    pose_problem,
    shown,
)
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
from avatar_jax.methods.otavatar.several import Person, alike, mean_loss, pictures_of, stack_portraits
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.parallel import apart, as_arrays, on_all, over_devices
from avatar_jax.train.optimizers import OptimizerConfig
from avatar_jax.types import Portrait, PyTree


class TunedPerson(NamedTuple):
    """A person after the fit: the inversion with the tuned avatar (``identity['generator']`` holds its parameters) and
    its scores, what ``inversion.tuning`` tells, and the seconds of the steps, without compilation.
    """

    inversion: Inversion
    tuned: Tuned
    seconds: float


DEFAULT = TuningConfig('generator', 50, OptimizerConfig('adam', 3e-4))


def finetune_generator(
    variables: Mapping[str, Any],
    config: ModelConfig,
    portrait: Person,
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
    """``tune_people`` for one person.

    Args:
        steps, optimizer: default: 50 steps of Adam with rate 3e-4.
        stop_psnr: end when the super-resolved reconstruction is this good (dB).
        locality: regulariser that keeps pictures of other codes as they were; None: none.
        hold: what keeps shape and unseen side; None: nothing, as the published method.

    Returns:
        the inversion with the tuned avatar and its scores, and the loss curve [steps], NaN after an early end.
    """
    settings = TuningConfig(
        'generator',
        steps,
        DEFAULT.optimizer if optimizer is None else optimizer,
        '' if stop_psnr is None else tuning.PSNR,
        -(stop_psnr or 0.0),
        LocalityConfig() if locality is None else locality,
    )
    bank = PerceptionBank() if bank is None else bank
    (found,) = tune_people(variables, config, [portrait], [inverted], bank, key, settings, hold)
    return found.inversion, found.tuned.curve[:steps]


def tune_people(
    variables: Mapping[str, Any],
    config: ModelConfig,
    portraits: Sequence[Person],
    inverted: Sequence[Inversion],
    bank: PerceptionBank,
    key: jax.Array | None = None,
    settings: TuningConfig = DEFAULT,
    hold: HoldConfig | None = None,
    *,
    on_step: Callable[..., None] | None = None,
    devices: Sequence[jax.Device] | None = None,
    portion: int | None = None,
) -> list[TunedPerson]:
    """Tunes a copy of the generator to each person around the code that inversion found (pivotal tuning).

    An extension: the released program has such an option, but passes a wrong code to the generator. All parameters
    but the mapping network's move; raw and super-resolved images are compared by the losses of the inversion, the
    code and the correction stay fixed. Expression and views away from the source can suffer: judge by more than the
    source's own score.

    People are tuned side by side; where pictures are large (``LARGE``) and nothing else is asked for (``portion``), one
    at a time on each device, for each person needs a generator, its gradient and the moments of Adam.

    Args:
        portraits: one of each person, or several: the mean of their losses is what falls.
        key: jitters the samples along the rays, and draws the codes of the regulariser; None: no jitter. Everybody gets
            the same draws, so that nobody's result depends on the others.
        settings: steps, optimizer, stopping rule (``tuning.PSNR``, or a term of the loss), regulariser.
        on_step: called as ``on_step(done, loss=mean)``, ``settings.steps`` for all people together.
        portion: people whom each device tunes at the same time.
    """
    devices = tuple(jax.local_devices() if devices is None else devices)[: len(portraits)]
    if portion is None and config.img_resolution >= LARGE:
        portion = 1
    most = len(portraits) if portion is None else portion * len(devices)
    groups = [some[k : k + most] for some in alike(portraits) for k in range(0, len(some), most)]
    found: dict[int, TunedPerson] = {}
    for number, group in enumerate(groups):

        def step(done: int, number: int = number, **numbers: Any) -> None:
            if on_step is not None:
                on_step((number * settings.steps + done) // len(groups), **numbers)

        people = [(portraits[i], inverted[i]) for i in group]
        tuned = _tune_alike(variables, config, people, bank, key, settings, hold, step, devices[: len(group)])
        found |= dict(zip(group, tuned, strict=True))
    return [found[i] for i in range(len(portraits))]


def _tune_alike(variables, config, people, bank, key, settings, hold, on_step, devices):
    """``tune_people`` side by side, of whom the same is known."""
    count = -(-len(people) // len(devices)) * len(devices)  # the last one fills up
    filled = [*people, *[people[-1]] * (count - len(people))]
    shared = on_all((variables, bank), devices)
    identities = [i.avatar.identity for _, i in filled]
    codes, biases = (jnp.stack([jnp.asarray(i[k]) for i in identities]) for k in ('code', 'bias'))
    windows = None
    if hold is not None:
        windows = jnp.stack([_mirrored_windows(p) for p, _ in filled])
    rows = (stack_portraits([p for p, _ in filled]), codes, biases, windows)
    fixed, moving = split_trained(network(variables, 'generator')['params'], 'all')
    states = jax.vmap(lambda _: tuning.start(moving, settings))(jnp.arange(count))
    start_key = jax.random.key(0) if key is None else key
    size = min(1 if config.img_resolution >= LARGE else STEPS_PER_CALL, settings.steps)
    how = {'config': config, 'settings': settings, 'hold': hold, 'count': size, 'jitter': key is not None}
    outs, done, clock = [], 0, StepClock()
    while done < settings.steps and not bool(states.stopped.all()):
        begun = time.perf_counter()
        states, out = _advance(on_all(start_key, devices), shared, rows, states, devices=devices, **how)
        outs.append(jax.tree.map(np.asarray, out))
        clock.add('fit', size, time.perf_counter() - begun)
        done = min(done + size, settings.steps)
        made = outs[-1][0][: len(people)]
        on_step(done, loss=float(np.nanmean(made)) if np.isfinite(made).any() else float('nan'))
    seconds = float(clock.per_step().sum())
    tuned = jax.vmap(tuning.finish)(states, [as_arrays(o) for o in outs])
    results = []
    for i, ((portrait, inverted), own) in enumerate(zip(people, apart(tuned, len(people)), strict=True)):
        params, (code, bias) = merge(fixed, own.params), (codes[i], biases[i])
        avatar = make_avatar(config, portrait, code, bias, inverted.avatar.weights, params)
        quality = shown(variables, config, portrait, bank, avatar, devices)
        results.append(TunedPerson(dataclasses.replace(inverted, avatar=avatar, **quality), own, seconds))
    return results


def _mirrored_windows(person: Person) -> jax.Array:
    """Windows [27,70] of the mirror image's motion; of several portraits [P,27,70]."""
    found = [jnp.asarray(source_windows(mirrored_motion(p))) for p in pictures_of(person)]
    return found[0] if len(found) == 1 else jnp.stack(found)


@partial(jax.jit, static_argnames=('config', 'settings', 'hold', 'count', 'jitter', 'devices'), donate_argnums=3)
def _advance(key, shared, rows, states, *, config, settings, hold, count, jitter, devices):
    def all_of(shared, people):
        key, (variables, bank) = shared

        def one(portrait, code, bias, windows, state):
            loss, locality = _loss_of(variables, config, bank, portrait, code, bias, windows, settings, hold, jitter)
            return tuning.advance(loss, state, key, count, settings, locality)

        (portraits, codes, biases, windows), states = people
        return jax.vmap(one)(portraits, codes, biases, windows, states)

    return over_devices(all_of, devices)((key, shared), (rows, states))


class _Picture(NamedTuple):
    """What stays the same of a portrait: targets [1,...], the picture [1,S,S,3] in [0,1], driven code [1,L,D], camera
    as measured [25] and corrected [1,25], and what is held.
    """

    targets: dict[str, Any]
    wanted: jax.Array
    ws: jax.Array
    label: jax.Array
    labels: jax.Array
    held: Held | None


def _loss_of(variables, config, bank, portrait, code, bias, windows, settings, hold, jitter):
    """One person's loss ``(moving parameters, key) -> (loss, terms)``, the mean one of several portraits, and the
    regulariser (at the first of them).
    """
    generator = network(variables, 'generator')
    fixed, moving = split_trained(generator['params'], 'all')
    every = None if portrait.image.ndim == 3 else portrait.camera.label

    def picture_of(portrait: Portrait, windows: jax.Array | None) -> _Picture:
        problem: Problem = pose_problem(variables, config, portrait, bank)
        ws = driven_codes(code[None], problem.motion, config, variables, clamp=False)
        labels, held = correct_intrinsics(problem.label, bias)[None], None
        wanted = to_unit(problem.targets['sr'].image)
        if hold is not None:
            mirrored = motion_codes(network(variables, 'controller')['params'], config, windows[None])
            other = driven_codes(code[None], mirrored, config, variables, clamp=False)
            raw = problem.targets['raw'].image
            held = held_of(generator, config.generator, ws, other, labels[0], raw, hold, every)
        return _Picture(problem.targets, wanted, ws, problem.label, labels, held)

    def one(picture: _Picture, params: PyTree, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        tuned = {**generator, 'params': merge(fixed, params)}
        views = render_views(tuned, config.generator, picture.ws, picture.labels, key[None] if jitter else None)
        terms = view_terms(bank, config, views, picture.targets)
        if hold is not None:
            terms |= hold_terms(tuned, config.generator, picture.held, hold)
        error = -psnr(to_unit(views.image), picture.wanted)[0]
        return losses.total(terms), {**terms, tuning.PSNR: error}

    if every is None:
        first = picture_of(portrait, windows)
        loss = partial(one, first)
    else:
        pictures = jax.lax.map(lambda row: picture_of(*row), (portrait, windows))
        first, loss = jax.tree.map(lambda x: x[0], pictures), mean_loss(one, pictures)

    def render(params: PyTree, rows: jax.Array) -> jax.Array:
        own = {**generator, 'params': merge(fixed, params)}
        return render_views(own, config.generator, rows[None], first.labels).image

    def random_code(key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (1, config.generator.z_dim))
        return TriPlaneGenerator(config.generator).apply(generator, z, first.label[None], method='mapping')[0]

    distance = distance_of(bank, distance_kind(bank))
    return loss, tuning.locality_term(render, moving, first.ws[0], random_code, settings.locality, distance)
