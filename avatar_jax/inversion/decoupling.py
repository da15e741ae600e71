"""Decoupling-by-inverting (OTAvatar, section 3.2 and algorithm 1) as one pure function of its losses.

One iteration works on a batch of B samples; each holds F frames of one person. With B, F and the networks fixed it does

1. fresh identity codes at ``w_avg`` and fresh corrections of the intrinsics, one per sample, shared by its frames;
2. an inner loop of N steps, ``identity`` steps that move the codes (and corrections) and ``controller`` steps that move
   the controller, in the order that ``mode`` says; the last ``sr_steps`` of them with the super-resolution branch;
3. a refinement of the generator (and, in the release, of the controller);
4. the moving averages.

The networks enter through an ``Objective``, two callables; a toy and the full model run through the same code. All
steps are ``lax.scan``s over static segments: a segment either has the super-resolution branch or has not, so no
convolution sits in a conditional, and the whole iteration is one compiled program.

**The batch.** The loss of a batch is the mean of its samples' losses, so gradients with respect to one sample's code do
not depend on the others, and Adam works element by element: codes of the whole batch are optimised side by side, which
equals ``vmap`` over samples with a fresh optimizer each (up to Adam's eps, which sees the gradient divided by B) and
keeps convolutions natively batched. The one coupling is clipping: ``clip_scope='batch'`` (the release) scales all
codes by one factor, from the norm over the whole batch and over all devices; ``'sample'`` clips each sample's gradient
of its own loss on its own. With several devices, B is the global batch and the result is that of one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from avatar_jax.checks import Check
from avatar_jax.parallel import mean_over_devices, num_shards, sample_keys, sum_over_devices
from avatar_jax.train.accumulate import value_and_grad_in_parts
from avatar_jax.train.optimizers import clip_factor, step_decay
from avatar_jax.train.state import TrainState
from avatar_jax.types import PyTree


class Objective(NamedTuple):
    """How the networks are evaluated.

    Attributes:
        motion: ``(controller_params, batch) -> motion``: motion codes of all frames of the batch.
        loss: ``(generator_params, regulariser_params, motion, codes [B, rows, d], bias [B, 18], batch, keys [B],
            sr: bool, frames: tuple of frame indices) -> (loss, terms)``: the weighted sum over these frames, averaged
            over this device's samples, and a dict of named scalars. ``regulariser_params`` are the generator
            parameters whose decoder the density regularisers look at; ``sr`` says whether the super-resolved images
            are made and compared.
    """

    motion: Callable[..., PyTree]
    loss: Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]


@dataclass(frozen=True)
class DecouplingConfig:
    """The schedule and the options in which paper and release differ (values here: the release).

    Attributes:
        identity_steps, controller_steps: N_id and N_mo.
        sr_steps: number of inner steps, the last of N_id + N_mo, with the super-resolved images in the loss.
        mode: 'successively' (all identity steps, then all controller steps), 'alternatively' (every
            ``alternate_every``-th step is a controller step, the others are identity steps) or 'joint' (every step
            moves codes, corrections and controller together; codes are not clipped then).
        alternate_every: period of 'alternatively'.
        code_rows: 1 for codes in W, ``num_ws`` for W+.
        optimise_intrinsics: learn a correction of the intrinsics with the code.
        clip_code, clip_scope: maximum norm of code gradients (None: off), over the 'batch' or per 'sample'.
        clip_controller, clip_generator: maximum global norm of their gradients (None: off).
        controller_lr_scale: factor on the controller's learning rate in the inner loop; refinement uses 1.
        reset_from_ema: start each iteration with the controller's average (algorithm 1, line 4).
        inner_generator: which generator renders in the inner loop, 'ema' or 'raw'.
        refine: 'per_frame' (one update per frame), 'together' (one update on the sum over frames) or 'off'.
        refine_controller: refinement also updates the controller.
        ema_decay: decay of the averages, once per iteration. ema_generator: whether the generator has one.
        lr_decay_every, lr_decay: iterations after which the generator's learning rate is multiplied by ``lr_decay``,
            again and again (0: never).
    """

    identity_steps: int = 90
    controller_steps: int = 10
    sr_steps: int = 10
    mode: str = 'successively'
    alternate_every: int = 10
    code_rows: int = 1
    optimise_intrinsics: bool = True
    clip_code: float | None = 1.0
    clip_scope: str = 'batch'
    clip_controller: float | None = 1.0
    clip_generator: float | None = 1.0
    controller_lr_scale: float = 1.0
    reset_from_ema: bool = False
    inner_generator: str = 'ema'
    refine: str = 'per_frame'
    refine_controller: bool = True
    ema_decay: float = 0.95
    ema_generator: bool = True
    lr_decay_every: int = 10000
    lr_decay: float = 0.2

    def __post_init__(self):
        check = Check(self, 'decoupling')
        check.one_of('mode', 'successively', 'alternatively', 'joint')
        check.one_of('clip_scope', 'batch', 'sample')
        check.one_of('inner_generator', 'ema', 'raw')
        check.one_of('refine', 'per_frame', 'together', 'off')
        check.at_least(0, 'identity_steps', 'controller_steps', 'sr_steps')
        check.need(self.num_steps > 0, 'identity_steps', 'the numbers of steps are all 0; give at least one step')
        if self.mode == 'alternatively':
            check.at_least(2, 'alternate_every')
        check.need(
            self.inner_generator == 'raw' or self.ema_generator, 'inner_generator', "needs ema_generator; use 'raw'"
        )

    @property
    def num_steps(self) -> int:
        """N, the length of the inner loop."""
        return self.identity_steps + self.controller_steps


class Optimizers(NamedTuple):
    """Optax transformations; ``update`` takes ``lr_scale`` (``train.optimizers``). The first two start afresh."""

    code: optax.GradientTransformationExtraArgs
    intrinsics: optax.GradientTransformationExtraArgs
    controller: optax.GradientTransformationExtraArgs
    generator: optax.GradientTransformationExtraArgs


class Codes(NamedTuple):
    """Identity codes [B, rows, d] and corrections of the intrinsics [B, 18] with their optimizer states."""

    w: jax.Array
    bias: jax.Array
    w_state: PyTree
    bias_state: PyTree


Label = tuple[str, bool]  # (what the step updates, with super-resolution)


def step_labels(config: DecouplingConfig) -> list[Label]:
    """What each of the N inner steps does: ('identity' | 'controller' | 'joint', with super-resolution)."""
    labels = []
    for n in range(config.num_steps):
        if config.mode == 'joint':
            kind = 'joint'
        elif config.mode == 'alternatively':
            kind = 'controller' if n % config.alternate_every == config.alternate_every - 1 else 'identity'
        else:
            kind = 'identity' if n < config.identity_steps else 'controller'
        labels.append((kind, n >= config.num_steps - config.sr_steps))
    return labels


def segments(labels: Sequence[Label]) -> list[tuple[int, list[tuple[Label, int]]]]:
    """Run lengths of ``labels``, with repeated pairs of runs folded: [(repeats, [(label, count), ...]), ...].

    Each label is traced once per entry, so 100 alternating steps compile as two bodies, not as twenty.
    """
    runs: list[tuple[Label, int]] = []
    for label in labels:
        if runs and runs[-1][0] == label:
            runs[-1] = (label, runs[-1][1] + 1)
        else:
            runs.append((label, 1))
    folded, i = [], 0
    while i < len(runs):
        pair, repeats = runs[i : i + 2], 1
        while len(pair) == 2 and runs[i + 2 * repeats : i + 2 * repeats + 2] == pair:
            repeats += 1
        if repeats > 1:
            folded.append((repeats, pair))
            i += 2 * repeats
        else:
            folded.append((1, runs[i : i + 1]))
            i += 1
    return folded


def initial_codes(w_avg: jax.Array, batch_size: int, rows: int, optimizers: Optimizers) -> Codes:
    """Codes at the average [d], no correction, fresh optimizers."""
    w = jnp.broadcast_to(w_avg, (batch_size, rows, w_avg.shape[-1])).astype(w_avg.dtype)
    bias = jnp.zeros((batch_size, 18), w_avg.dtype)
    return Codes(w, bias, optimizers.code.init(w), optimizers.intrinsics.init(bias))


def _clip_codes(grad: jax.Array, config: DecouplingConfig, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Clips code gradients [B, rows, d] of the global mean loss; returns them and the norm (largest one per sample)."""
    if config.clip_scope == 'batch' or config.clip_code is None:
        norm = jnp.sqrt(sum_over_devices(jnp.sum(jnp.square(grad)), axis_name))
        return grad if config.clip_code is None else grad * clip_factor(norm, config.clip_code), norm
    own = grad * (grad.shape[0] * num_shards(axis_name))  # gradient of each sample's own loss
    norm = jnp.sqrt(jnp.sum(jnp.square(own), axis=(1, 2), keepdims=True))
    largest = norm.max() if axis_name is None else jax.lax.pmax(norm.max(), axis_name)
    return own * clip_factor(norm, config.clip_code), largest


def _update_codes(
    codes: Codes,
    grads: tuple[jax.Array, jax.Array],
    config: DecouplingConfig,
    optimizers: Optimizers,
    clip: bool,
    axis_name: str | None,
) -> tuple[Codes, jax.Array]:
    """One step of codes and corrections from gradients of this device's mean loss."""
    shards = num_shards(axis_name)
    w_grad, bias_grad = (g / shards for g in grads)  # of the mean over all devices
    scope = config if clip else _UNCLIPPED
    w_grad, norm = _clip_codes(w_grad, scope, axis_name)
    update, w_state = optimizers.code.update(w_grad, codes.w_state, codes.w)
    codes = codes._replace(w=codes.w + update, w_state=w_state)
    if config.optimise_intrinsics:
        update, bias_state = optimizers.intrinsics.update(bias_grad, codes.bias_state, codes.bias)
        codes = codes._replace(bias=codes.bias + update, bias_state=bias_state)
    return codes, norm


_UNCLIPPED = DecouplingConfig(clip_code=None)


def decoupling_iteration(
    state: TrainState,
    batch: PyTree,
    key: jax.Array,
    *,
    objective: Objective,
    config: DecouplingConfig,
    optimizers: Optimizers,
    w_avg: jax.Array,
    num_frames: int = 2,
    axis_name: str | None = None,
    record: Callable[[Codes, PyTree], PyTree] | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array], Codes, PyTree]:
    """One iteration; see the module text.

    Args:
        state: groups ``controller`` and ``generator``; the former has an average, the latter if ``ema_generator``.
        batch: arrays ``[B, F, ...]`` (this device's share), as the objective wants them.
        key: typed key of this iteration, the same on all devices.
        w_avg: [d], where codes start.
        num_frames: F.
        axis_name: the device axis, if any.
        record: ``(codes, controller_params) -> pytree`` kept after every step, for tests and plots.
        accumulate: number of equal parts of the samples on which gradients are computed, one after the other.

    Returns:
        the state (``step`` + 1), metrics (curves over the steps that measured them: ``inner/loss``,
        ``identity/<term>``, ``controller/<term>``, ``refine/<term>``, norms), the final codes, and the stacked
        records ``{'inner': ..., 'refine': ...}`` (None without ``record``).
    """
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    all_frames = tuple(range(num_frames))
    controller, generator = state.groups['controller'], state.groups['generator']
    if config.reset_from_ema:
        controller = controller.replace(params=controller.ema)
    inner_params = generator.ema if config.inner_generator == 'ema' else generator.params
    codes = initial_codes(w_avg, batch_size, config.code_rows, optimizers)
    lr_scale = config.controller_lr_scale

    def gradients(loss_fn, shared, own, n, fixed=None):
        """Value and gradients of ``loss_fn(shared, own, (batch, keys))``, over parts of the samples.

        With ``fixed`` codes the samples are ``((batch, w, bias), keys)``.
        """
        rows = batch if fixed is None else (batch, fixed.w, fixed.bias)
        keys = sample_keys(jax.random.fold_in(key, n), batch_size, axis_name)
        return value_and_grad_in_parts(loss_fn, shared, own, (rows, keys), accumulate)

    def loss_of(generator_params, regulariser_params, motion, w, bias, samples, sr, frames):
        rows, keys = samples
        return objective.loss(generator_params, regulariser_params, motion, w, bias, rows, keys, sr, frames)

    def report(loss, terms, codes, params):
        kept = None if record is None else record(codes, params)
        return {'terms': mean_over_devices({'loss': loss, **terms}, axis_name), 'record': kept}

    def identity_step(motion, params, sr):
        """The controller stands still, so its motion codes are computed once, outside the loop."""

        def step(codes, n):
            def loss_fn(_, own, samples):
                known = motion if accumulate == 1 else objective.motion(params, samples[0])
                return loss_of(inner_params, generator.params, known, *own, samples, sr, all_frames)

            (loss, terms), (_, grads) = gradients(loss_fn, (), (codes.w, codes.bias), n)
            codes, norm = _update_codes(codes, grads, config, optimizers, True, axis_name)
            return codes, report(loss, {**terms, 'code_grad_norm': norm}, codes, params)

        return step

    def controller_step(codes, sr):
        def step(group, n):
            def loss_fn(params, _, samples):
                rows, w, bias = samples[0]
                motion = objective.motion(params, rows)
                return loss_of(inner_params, generator.params, motion, w, bias, (rows, samples[1]), sr, all_frames)

            (loss, terms), (grads, _) = gradients(loss_fn, group.params, (), n, codes)
            grads = mean_over_devices(grads, axis_name)
            group, stats = group.apply_gradients(
                grads, optimizers.controller, lr_scale=lr_scale, max_norm=config.clip_controller
            )
            return group, report(loss, {**terms, **stats}, codes, group.params)

        return step

    def joint_step(sr):
        def step(carry, n):
            codes, group = carry

            def loss_fn(params, own, samples):
                motion = objective.motion(params, samples[0])
                return loss_of(inner_params, generator.params, motion, *own, samples, sr, all_frames)

            (loss, terms), (grads, code_grads) = gradients(loss_fn, group.params, (codes.w, codes.bias), n)
            group, stats = group.apply_gradients(
                mean_over_devices(grads, axis_name),
                optimizers.controller,
                lr_scale=lr_scale,
                max_norm=config.clip_controller,
            )
            codes, norm = _update_codes(codes, code_grads, config, optimizers, False, axis_name)
            terms = {**terms, **stats, 'code_grad_norm': norm}
            return (codes, group), report(loss, terms, codes, group.params)

        return step

    def run(carry, label, first, count):
        """``count`` equal steps from step ``first`` on."""
        codes, group = carry
        kind, sr = label
        steps = first + jnp.arange(count)
        if kind == 'identity':
            motion = objective.motion(group.params, batch)
            codes, out = jax.lax.scan(identity_step(motion, group.params, sr), codes, steps)
        elif kind == 'controller':
            group, out = jax.lax.scan(controller_step(codes, sr), group, steps)
        else:
            (codes, group), out = jax.lax.scan(joint_step(sr), (codes, group), steps)
        return (codes, group), out

    metrics: dict[str, list[jax.Array]] = {}
    losses, inner_records, first = [], [], 0
    carry = (codes, controller)
    for repeats, runs in segments(step_labels(config)):
        period = sum(count for _, count in runs)

        def once(carry, start, runs=runs):
            outs, offset = [], 0
            for label, count in runs:
                carry, out = run(carry, label, start + offset, count)
                outs.append(out)
                offset += count
            return carry, outs

        if repeats == 1:
            carry, outs = once(carry, jnp.asarray(first))
        else:
            carry, outs = jax.lax.scan(once, carry, first + period * jnp.arange(repeats))
        lead = 0 if repeats == 1 else 1  # repeated segments stack as [repeats, count, ...]
        for (label, _), out in zip(runs, outs, strict=True):
            for name, value in out['terms'].items():
                metrics.setdefault(f'{label[0]}/{name}', []).append(value.reshape(-1))
        joined = jax.tree.map(
            lambda *x, lead=lead: jnp.concatenate(x, lead), *[(out['terms']['loss'], out['record']) for out in outs]
        )
        joined = jax.tree.map(lambda x, lead=lead: x.reshape(-1, *x.shape[1 + lead :]), joined)
        losses.append(joined[0])
        inner_records.append(joined[1])
        first += repeats * period
    codes, controller = carry
    curves = {name: jnp.concatenate(values) for name, values in metrics.items()}
    curves['inner/loss'] = jnp.concatenate(losses)

    generator, controller, refined, refine_records = _refine(
        state.step,
        controller,
        generator,
        codes,
        config=config,
        optimizers=optimizers,
        objective=objective,
        loss_of=loss_of,
        gradients=gradients,
        num_frames=num_frames,
        axis_name=axis_name,
        record=record,
    )
    curves.update(refined)
    controller = controller.update_ema(config.ema_decay)
    if config.ema_generator:
        generator = generator.update_ema(config.ema_decay)
    state = state.with_groups(controller=controller, generator=generator).replace(step=state.step + 1)
    records = None
    if record is not None:
        records = {'inner': jax.tree.map(lambda *x: jnp.concatenate(x), *inner_records), 'refine': refine_records}
    return state, curves, codes, records


def _refine(
    step,
    controller,
    generator,
    codes,
    *,
    config,
    optimizers,
    objective,
    loss_of,
    gradients,
    num_frames,
    axis_name,
    record,
):
    """Updates of the generator (and controller) with codes and corrections fixed; super-resolution always on."""
    if config.refine == 'off':
        return generator, controller, {}, None
    groups = [(j,) for j in range(num_frames)] if config.refine == 'per_frame' else [tuple(range(num_frames))]
    generator_scale = step_decay(step, config.lr_decay_every, config.lr_decay)
    collected: list[dict[str, jax.Array]] = []
    records = []
    for j, frames in enumerate(groups):
        n = config.num_steps + j  # the step number that random draws are derived from

        def loss_fn(moving, _, samples, frames=frames, fixed=controller.params):
            generator_params, *controller_params = moving
            rows, w, bias = samples[0]
            motion = objective.motion(controller_params[0] if controller_params else fixed, rows)
            return loss_of(generator_params, generator_params, motion, w, bias, (rows, samples[1]), True, frames)

        moving = (generator.params, controller.params) if config.refine_controller else (generator.params,)
        (loss, terms), (grads, _) = gradients(loss_fn, moving, (), n, codes)
        grads = mean_over_devices(grads, axis_name)
        terms = mean_over_devices({'loss': loss, **terms}, axis_name)
        if config.refine_controller:
            controller, stats = controller.apply_gradients(
                grads[1], optimizers.controller, max_norm=config.clip_controller
            )
            terms.update({f'controller_{k}': v for k, v in stats.items()})
        generator, stats = generator.apply_gradients(
            grads[0], optimizers.generator, lr_scale=generator_scale, max_norm=config.clip_generator
        )
        terms.update({f'generator_{k}': v for k, v in stats.items()})
        collected.append(terms)
        if record is not None:
            records.append(record(codes, controller.params))
    curves = {f'refine/{name}': jnp.stack([terms[name] for terms in collected]) for name in collected[0]}
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *records) if records else None
    return generator, controller, curves, stacked
