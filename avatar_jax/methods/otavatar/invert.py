"""Inversion of portraits (paper section 3.3): code in W, then W+, with a report for every person.

A person is one portrait, as in the paper, or several that share the code (``several``).
``invert_portrait`` is the pure function of one person. ``invert_people`` does the same for many people at once, some
steps at a time, so that it can show progress, ends when everybody has stopped, and compiles one program for W and W+.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.driving.signals import drive_of_rows, still_rows
from avatar_jax.faces.camera_labels import correct_intrinsics
from avatar_jax.inversion import invert as inversion
from avatar_jax.inversion.invert import StageResult, Transforms, interpolate
from avatar_jax.inversion.memory import bytes_of_view
from avatar_jax.inversion.saving import Course, StepClock
from avatar_jax.inversion.start import StartEncoder, first_codes
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import method
from avatar_jax.methods.otavatar.controller import MotionCode
from avatar_jax.methods.otavatar.model import (
    METHOD,
    ModelConfig,
    driven_codes,
    motion_codes,
    network,
    render_views,
    source_windows,
    w_avg,
)
from avatar_jax.methods.otavatar.objective import image_terms, portrait_loss, prepare_targets
from avatar_jax.methods.otavatar.several import (
    Person,
    alike,
    compared,
    mean_loss,
    name_of,
    pictures_of,
    stack_portraits,
)
from avatar_jax.methods.render import side_labels, stream
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.ops.resize import match_size
from avatar_jax.parallel import apart, in_loop, in_portions, on_all, on_rows, over_devices, portion_of
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.types import Avatar, Portrait, PyTree

STEPS_PER_CALL = 10
SCORES = ('psnr', 'psnr_raw', 'psnr_mask')
LARGE = 256  # pixels from which a step takes long enough to be shown by itself


@flax.struct.dataclass
class Inversion:
    """An avatar and how it was found.

    Attributes:
        avatar: identity ``{'code': [L,D], 'bias': [18]}``.
        stages: results of the stages, in order.
        image: [S,S,3] reconstruction of the portrait, limited to [-1,1], without jitter. raw: [R,R,3].
        terms: final value of each loss term, at the reconstruction.
        psnr, psnr_raw: dB between portrait and reconstruction (the portrait averaged to its size).
        psnr_mask: dB inside the portrait's mask; NaN without one.
        views: [3,S,S,3] from the portrait's side and from both others (``methods.render.side_labels``), if rendered.
        each: of several portraits, ``psnr``, ``psnr_raw`` and ``psnr_mask`` of each. The fields above are of the first,
            but ``terms`` are means of all.
        course: how the loss fell, in steps and seconds; None of ``invert_portrait``.
    """

    avatar: Avatar
    stages: list[StageResult]
    image: jax.Array
    raw: jax.Array
    terms: dict[str, jax.Array]
    psnr: jax.Array
    psnr_raw: jax.Array
    psnr_mask: jax.Array
    views: np.ndarray | None = None
    each: tuple[dict[str, jax.Array], ...] = ()
    course: Course | None = flax.struct.field(pytree_node=False, default=None)


def transforms(config: ModelConfig) -> Transforms:
    """The optimizers of codes and corrections."""
    return Transforms(
        *(make_optimizer(o) for o in (config.settings.optimizers.codes, config.settings.optimizers.intrinsics))
    )


class Problem(NamedTuple):
    """What stays the same while one portrait is inverted: its targets [1,...], motion [1,L,D] and label [25]; of
    several portraits of a person, all of it with a leading axis.
    """

    targets: dict[str, Any]
    motion: MotionCode
    label: jax.Array


def pose_problem(
    variables: Mapping[str, Any], config: ModelConfig, portrait: Portrait, bank: PerceptionBank
) -> Problem:
    """Prepares one portrait, or several of one person (of ``stack_portraits``) one after the other."""
    if portrait.image.ndim == 4:
        return jax.lax.map(lambda one: pose_problem(variables, config, one, bank), portrait)
    landmarks = None if portrait.landmarks is None else jnp.asarray(portrait.landmarks)[None]
    targets = prepare_targets(bank, config, jnp.asarray(portrait.image)[None], landmarks)
    motion = motion_codes(network(variables, 'controller')['params'], config, source_windows(portrait)[None])
    return Problem(targets, motion, jnp.asarray(portrait.camera.label))


def loss_of(variables: Mapping[str, Any], config: ModelConfig, problem: Problem, bank: PerceptionBank, jitter: bool):
    """The loss function of ``inversion.invert`` for one portrait, or the mean one of several."""
    generator = network(variables, 'generator')

    def of(one: Problem):
        return portrait_loss(config, bank, generator, variables, one.motion, one.label, one.targets, jitter)

    if problem.label.ndim == 1:
        return of(problem)

    def loss(code, bias, key, sr):
        return mean_loss(lambda one, moving, key: of(one)(*moving, key, sr), problem)((code, bias), key)

    return loss


def first_code(variables: Mapping[str, Any], config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Where inversion starts: the average code in every row [L,D], and no correction [18]."""
    start = w_avg(variables)
    return jnp.broadcast_to(start, (config.generator.num_ws, start.shape[-1])), jnp.zeros((18,), start.dtype)


def assess(
    variables: Mapping[str, Any],
    config: ModelConfig,
    portrait: Portrait,
    bank: PerceptionBank,
    code: jax.Array,
    bias: jax.Array,
    generator: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reconstruction of the portrait and its quality: the fields ``image`` ... ``psnr_mask`` of ``Inversion``."""
    targets, motion, label = pose_problem(variables, config, portrait, bank)
    generator = network(variables, 'generator') if generator is None else generator
    ws = driven_codes(code[None], motion, config, variables, clamp=False)
    views = render_views(generator, config.generator, ws, correct_intrinsics(label, bias)[None])
    return quality_of(config, bank, portrait, targets, jnp.clip(views.image, -1, 1), jnp.clip(views.raw, -1, 1))


def quality_of(
    config: ModelConfig,
    bank: PerceptionBank,
    portrait: Portrait,
    targets: Mapping[str, Any],
    image: jax.Array,
    raw: jax.Array,
) -> dict[str, Any]:
    """The fields ``image`` ... ``psnr_mask`` of ``Inversion`` from the rendered portrait [1,S,S,3] and [1,R,R,3]."""
    target = jnp.asarray(portrait.image)[None]
    pictures = {size: to_unit(match_size(target, size)) for size in (image.shape[1], raw.shape[1])}
    mask = portrait.mask
    if mask is not None:
        mask = match_size(jnp.asarray(mask)[None, ..., None], image.shape[1])
    scores = {
        'psnr': psnr(to_unit(image), pictures[image.shape[1]])[0],
        'psnr_raw': psnr(to_unit(raw), pictures[raw.shape[1]])[0],
        'psnr_mask': jnp.nan if mask is None else psnr(to_unit(image), pictures[image.shape[1]], mask=mask)[0],
    }
    return {
        'image': image[0],
        'raw': raw[0],
        'terms': image_terms(bank, config, raw, image, targets),
        **{k: jnp.asarray(v) for k, v in scores.items()},
    }


def make_avatar(
    config: ModelConfig, person: Person, code: jax.Array, bias: jax.Array, weights: str, generator: PyTree = None
) -> Avatar:
    """The avatar of a code; ``generator``: parameters tuned to the person."""
    identity = {'code': code, 'bias': bias} | ({} if generator is None else {'generator': generator})
    return Avatar(
        identity,
        camera=pictures_of(person)[0].camera,
        method=METHOD,
        config=config,
        basis=config.basis,
        weights=weights,
        source=name_of(person),
    )


def invert_portrait(
    variables: Mapping[str, Any],
    config: ModelConfig,
    portrait: Portrait,
    bank: PerceptionBank | None = None,
    key: jax.Array | None = None,
    *,
    weights: str = '',
) -> Inversion:
    """Inverts one portrait; ``jit``- and ``vmap``-able (``config`` static). See ``model.build`` for the arguments."""
    bank = PerceptionBank() if bank is None else bank
    loss = loss_of(variables, config, pose_problem(variables, config, portrait, bank), bank, key is not None)
    code, bias = first_code(variables, config)
    stages = config.settings.inversion.stages()
    code, bias, results = inversion.invert(
        loss, code, bias, jax.random.key(0) if key is None else key, stages, transforms(config)
    )
    quality = assess(variables, config, portrait, bank, code, bias)
    return Inversion(make_avatar(config, portrait, code, bias, weights), results, **quality)


@partial(jax.jit, static_argnames=('config', 'devices'))
def _pose_all(shared, portraits, *, config, devices):
    def all_of(shared, portraits):
        variables, bank = shared
        return jax.vmap(lambda p: pose_problem(variables, config, p, bank))(portraits)

    return over_devices(all_of, devices)(shared, portraits)


@partial(jax.jit, static_argnames=('config', 'stage', 'count', 'sr', 'jitter', 'devices', 'portion'))
def _advance(shared, people, first, tied, *, config, stage, count, sr, jitter, devices, portion):
    """``count`` steps for all people, on each device ``portion`` of them side by side; one program for both spaces, as
    only ``tied`` tells them apart."""

    def all_of(shared, people):
        variables, bank, first, tied = shared

        def one(problem, state, key):
            loss = loss_of(variables, config, problem, bank, jitter)
            return inversion.advance(loss, state, key, first, count, sr, tied, stage, transforms(config))

        return in_portions(one, people, portion)

    return over_devices(all_of, devices)((*shared, first, tied), people)


@partial(jax.jit, static_argnames='config')
def _quality(bank, portrait, image, raw, *, config):
    landmarks = None if portrait.landmarks is None else jnp.asarray(portrait.landmarks)[None]
    targets = prepare_targets(bank, config, jnp.asarray(portrait.image)[None], landmarks)
    return quality_of(config, bank, portrait, targets, image[None], raw[None])


def shown(
    variables: Mapping[str, Any],
    config: ModelConfig,
    person: Person,
    bank: PerceptionBank,
    avatar: Avatar,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """What the avatar makes of its portrait, from its own side and both others, and of further portraits: the fields
    ``image`` ... ``each`` of ``Inversion``. All of them, and frames of an animation, are rendered by one program.
    """
    owner, pictures = method(METHOD), compared(person)
    sides, more = side_labels(pictures[0]), pictures[1:]
    labels = np.concatenate([sides, *(np.asarray(p.camera.label, np.float32)[None] for p in more)])
    rows = np.concatenate([np.repeat(still_rows(pictures[0]), len(sides), 0), *map(still_rows, more)])
    drive = drive_of_rows(owner, config, rows)
    parts = list(stream(owner, variables, config, avatar, drive, labels, per_call=len(sides), devices=devices))
    views, raw = (np.concatenate([getattr(part, name) for part in parts]) for name in ('rgb', 'raw'))
    found = []
    for portrait, k in zip(pictures, (0, *range(len(sides), len(labels))), strict=True):
        plain = portrait.replace(source='', basis='', shape=None)  # one program for all people
        found.append(_quality(bank, plain, views[k], raw[k], config=config))
    first = {**found[0], 'views': views[: len(sides)]}
    if not more:
        return first
    terms = {name: jnp.stack([one['terms'][name] for one in found]).mean() for name in found[0]['terms']}
    return {**first, 'terms': terms, 'each': tuple({k: one[k] for k in SCORES} for one in found)}


def invert_people(
    variables: Mapping[str, Any],
    config: ModelConfig,
    people: Sequence[Person],
    bank: PerceptionBank | None = None,
    key: jax.Array | None = None,
    *,
    weights: str = '',
    on_step: Callable[[int, float], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
    encoder: StartEncoder | None = None,
    portion: int | None = None,
) -> list[Inversion]:
    """Inverts many people side by side.

    Args:
        people: one portrait of each, or several.
        devices: over which people are spread, with the same results as on one; None: all of this process.
        on_step: called with (steps done, mean loss) after every few steps; ``num_steps(config)`` is their total.
        encoder: gives the codes that the inversions start from (of several portraits, their mean); None: all start at
            the mean code.
        portion: people whom each device inverts at the same time, with the same results as with all of them; None: as
            many as half of its memory is enough for (``parallel.portion_of``).

    Returns:
        one ``Inversion`` per person, equal (up to rounding) to ``invert_portrait`` with the key ``fold_in(key,
        index)``: portraits of whom more is known do not lose it in the company of others.
    """
    bank = PerceptionBank() if bank is None else bank
    courses: dict[int, Course] = {}
    how = {'weights': weights, 'on_step': on_step, 'devices': devices, 'portion': portion}
    made = avatars_of(variables, config, people, bank, key, encoder=encoder, courses=courses, **how)
    return [
        Inversion(avatar, stages, **shown(variables, config, person, bank, avatar, devices), course=courses[i])
        for i, (person, (avatar, stages)) in enumerate(zip(people, made, strict=True))
    ]


def avatars_of(
    variables: Mapping[str, Any],
    config: ModelConfig,
    people: Sequence[Person],
    bank: PerceptionBank,
    key: jax.Array | None = None,
    *,
    weights: str = '',
    on_step: Callable[[int, float], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
    encoder: StartEncoder | None = None,
    courses: dict[int, Course] | None = None,
    portion: int | None = None,
) -> list[tuple[Avatar, list[StageResult]]]:
    """``invert_people`` without looking at the result: avatars and the results of their stages.

    ``courses``: is given, by the people's numbers, how their losses fell.
    """
    groups, found = alike(people), [None] * len(people)
    for k, numbers in enumerate(groups):

        def step(done: int, loss: float, k: int = k) -> None:
            on_step((k * num_steps(config) + done) // len(groups), loss)

        some = [people[i] for i in numbers]
        then = None if on_step is None else step
        how = (weights, then, devices, encoder, courses, portion)
        part = _invert_alike(variables, config, some, numbers, bank, key, *how)
        for i, inverted in zip(numbers, part, strict=True):
            found[i] = inverted
    return found


def _invert_alike(
    variables: Mapping[str, Any],
    config: ModelConfig,
    some: Sequence[Person],
    numbers: Sequence[int],
    bank: PerceptionBank,
    key: jax.Array | None,
    weights: str,
    on_step: Callable[[int, float], None] | None,
    devices: Sequence[jax.Device] | None,
    encoder: StartEncoder | None,
    courses: dict[int, Course] | None,
    portion: int | None,
) -> list[tuple[Avatar, list[StageResult]]]:
    """``avatars_of`` people who are ``alike``; ``numbers`` are theirs among all."""
    devices = tuple(jax.local_devices() if devices is None else devices)[: len(some)]
    count, portion = portion_of(len(some), devices, bytes_of_view(config.generator), portion)  # the last one fills up
    people = stack_portraits([*some, *[some[-1]] * (count - len(some))])
    shared = on_all((variables, bank), devices)
    which = jnp.asarray([*numbers, *range(count - len(numbers))])
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0) if key is None else key, i))(which)
    code, bias = first_code(variables, config)
    codes, biases = (jnp.broadcast_to(x, (count, *x.shape)) for x in (code, bias))
    moves, stages, results, done = transforms(config), config.settings.inversion.stages(), [], 0
    inversion.check_order(stages)
    clock, before = StepClock(), 0.0
    if encoder is not None:
        # In W the rows move together: those of an encoder keep their differences, unless W is all there is.
        codes, before = first_codes(on_all(encoder, devices), people.image, stages[-1].space, devices)
    problems = _pose_all(shared, people, config=config, devices=devices)
    for i, stage in enumerate(stages):
        states = jax.vmap(lambda c, b: inversion.start(c, b, moves))(codes, biases)
        stage_keys = on_rows(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys), devices)
        rule = _rule(stage)
        outs = []
        for begin, length, sr in inversion.phases(stage):
            states = on_rows(jax.vmap(inversion.begin_phase)(states), devices)
            most = 1 if config.img_resolution >= LARGE else STEPS_PER_CALL
            steps = max(n for n in range(1, most + 1) if length % n == 0)
            for first in range(begin, begin + length, steps):
                begun = time.perf_counter()
                with in_loop():
                    states, out = _advance(
                        shared,
                        (problems, states, stage_keys),
                        *on_all((np.int32(first), np.asarray(stage.space == 'w')), devices),
                        config=config,
                        stage=rule,
                        count=steps,
                        sr=sr,
                        jitter=key is not None,
                        devices=devices,
                        portion=portion,
                    )
                    losses_now = jax.device_get(out[0])  # waits for the steps
                outs.append(out)
                done += steps
                clock.add((sr, steps), steps, time.perf_counter() - begun)
                if on_step is not None:
                    finite = losses_now[np.isfinite(losses_now)]
                    on_step(done, float(finite.mean()) if len(finite) else float('nan'))
        result = jax.vmap(lambda s, o, stage=stage: inversion.finish(s, o, stage))(states, outs)
        codes, biases = result.code, result.bias
        results.append(result)
    own = apart(results, len(some))
    if courses is not None:
        courses |= {k: course_of(o, clock.per_step(), before) for k, o in zip(numbers, own, strict=True)}
    return [(make_avatar(config, p, codes[i], biases[i], weights), own[i]) for i, p in enumerate(some)]


def course_of(stages: Sequence[StageResult], seconds: np.ndarray, before: float) -> Course:
    """How the loss of the raw rendering fell, which every step measures."""
    terms = [{k: np.asarray(v) for k, v in stage.terms.items() if k.startswith('raw/')} for stage in stages]
    return Course(np.concatenate([sum(t.values()) for t in terms]), seconds, before)


def _rule(stage: inversion.StageConfig) -> inversion.StageConfig:
    """What the compiled steps depend on, without what they do not: both stages are to share them."""
    return dataclasses.replace(stage, space='w+', return_previous=False, steps=1, sr_steps=0)


def step_program(
    variables: Mapping[str, Any], config: ModelConfig, portraits: Sequence[Portrait], bank: PerceptionBank
) -> tuple[Callable, tuple]:
    """One super-resolved step for all portraits (``alike``), on one device: a function and its arguments."""
    devices, moves = tuple(jax.local_devices()[:1]), transforms(config)
    count, portion = portion_of(len(portraits), devices, bytes_of_view(config.generator))
    code, bias = first_code(variables, config)
    state = inversion.start(code, bias, moves)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), state)
    keys = jax.random.split(jax.random.key(0), count)
    people = stack_portraits([*portraits, *[portraits[-1]] * (count - len(portraits))])
    problems = _pose_all((variables, bank), people, config=config, devices=devices)
    rule = _rule(config.settings.inversion.stages()[-1])

    def step(shared: tuple, people: tuple) -> tuple:
        how = {'stage': rule, 'count': 1, 'sr': True, 'jitter': False, 'devices': devices, 'portion': portion}
        state, (loss, *_) = _advance(shared, people, jnp.int32(0), jnp.asarray(False), config=config, **how)
        return state.code, state.bias, loss

    return step, ((variables, bank), (problems, states, keys))


def num_steps(config: ModelConfig) -> int:
    """Steps of an inversion, all stages together."""
    return sum(stage.steps for stage in config.settings.inversion.stages())


def interpolate_avatars(a: Avatar, b: Avatar, amount: jax.Array | float) -> Avatar:
    """Identity interpolation (paper section 6.2): ``(1 - amount) * a + amount * b`` of codes and corrections.

    The camera is that of ``a``. Avatars with tuned generators cannot be mixed: ``ValueError``.
    """
    if 'generator' in a.identity or 'generator' in b.identity:
        raise ValueError('avatars with their own generator weights cannot be interpolated')
    if a.weights != b.weights:
        raise ValueError('the two avatars belong to different weights')
    return a.replace(identity=interpolate(a.identity, b.identity, amount), source=f'{a.source} + {b.source}')


def report(inverted: Inversion) -> dict[str, Any]:
    """Plain values for a JSON report of one person: scores, terms, curves, steps, whether it converged."""
    stages = []
    for result in inverted.stages:
        steps = int(result.steps)
        stages.append(
            {
                'steps': steps,
                'converged': bool(result.converged),
                'loss': np.asarray(result.curve)[:steps].tolist()
                if np.isfinite(result.curve[:steps]).all()
                else np.asarray(result.curve).tolist(),
                'terms': {name: np.asarray(curve).tolist() for name, curve in result.terms.items()},
            }
        )
    return {
        'psnr': float(inverted.psnr),
        'psnr_raw': float(inverted.psnr_raw),
        'psnr_in_mask': float(inverted.psnr_mask),
        'terms': {name: float(value) for name, value in inverted.terms.items()},
        **({'converged': bool(inverted.stages[-1].converged)} if inverted.stages else {}),
        **({} if inverted.course is None else inverted.course.report()),
        'stages': stages,
    }
