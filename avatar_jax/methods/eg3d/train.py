"""One iteration of EG3D's training, and the state it works on.

The iteration runs up to four phases, each with an optimizer step of its own: generator, generator regularisation,
discriminator, discriminator regularisation. Which ones, and at which raw resolution, is static (``Flags``): a run
compiles three programs (every iteration, every 4th, every 16th), and the same again while the blur is on and for every
raw resolution. The launcher picks the program by the number of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.errors import UserError
from avatar_jax.methods.eg3d import losses, phases, schedules
from avatar_jax.methods.eg3d.augment import AdaState, KeyDraws, augment
from avatar_jax.methods.eg3d.config import WITHOUT_EFFECT, RunConfig
from avatar_jax.methods.eg3d.draws import Dice
from avatar_jax.models.discriminator import Discriminator, freeze_labels
from avatar_jax.models.fresh_noise import noise_size
from avatar_jax.models.triplane import TriPlaneGenerator, init_generator
from avatar_jax.parallel import as_arrays, mean_over_devices, num_shards, sample_keys
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group, TrainState, step_key
from avatar_jax.types import PyTree

PHASES = ('g_main', 'g_reg', 'd_main', 'd_reg')  # first parts of metric names, in order of time
_AUGMENT = 50  # random streams from here on belong to augmentation


@dataclass(frozen=True)
class Flags:
    """What an iteration does: raw resolution, whether images are blurred, which regularisations it includes."""

    resolution: int
    blur: bool
    g_reg: bool
    d_reg: bool


def flags_at(config: RunConfig, step: int) -> Flags:
    """The flags of iteration ``step``, counted from 0; regularisation falls into its first iteration."""
    loss, shown = config.loss, step * config.train.batch
    size = schedules.raw_resolution(
        shown,
        config.generator.neural_rendering_resolution,
        loss.resolution_final,
        loss.resolution_fade_kimg,
        loss.resolution_multiple,
    )
    sigma = schedules.blur_sigma(shown, loss.blur_init_sigma, config.blur_fade_kimg)
    g, d = config.g_interval, config.train.d_reg_interval
    rendering = config.generator.rendering
    nothing = config.loss.path_length_weight == 0 and rendering.reg_type in WITHOUT_EFFECT
    return Flags(
        resolution=size,
        blur=bool(3 * sigma >= 1),
        g_reg=g is not None and not nothing and (g == 0 or step % g == 0),
        d_reg=loss.r1_gamma > 0 and (d == 0 or step % d == 0),
    )


def optimizers(config: RunConfig) -> tuple[Any, Any]:
    """Of generator and discriminator, corrected for their lazy regularisation."""
    t = config.train
    g, d = (OptimizerConfig(t.optimizer, lr, t.beta1, t.beta2, t.eps) for lr in (t.g_lr, t.d_lr))
    return (
        make_optimizer(schedules.lazy_optimizer(g, config.g_interval or 0)),
        make_optimizer(schedules.lazy_optimizer(d, t.d_reg_interval)),
    )


def check_batch(config: RunConfig, num_devices: int) -> None:
    """Raises ``UserError`` unless the batch divides among devices, micro-batches and groups."""
    t, d = config.train, config.discriminator
    parts = num_devices * t.accumulate
    if t.batch % parts:
        raise UserError(
            f'train.batch: {t.batch} does not divide among {num_devices} devices with {t.accumulate} '
            f'micro-batches each; use a multiple of {parts}'
        )
    part = t.batch // parts
    group = d.mbstd_group_size
    if group is not None and (group > part or part % group):
        raise UserError(
            f'discriminator.mbstd_group_size: {group} does not divide a micro-batch of {part} '
            f'({t.batch} images, {num_devices} devices, {t.accumulate} micro-batches each); '
            'use another batch or group'
        )
    if config.loss.path_length_weight > 0 and part % config.loss.path_length_shrink:
        raise UserError(
            f'loss.path_length_shrink: {config.loss.path_length_shrink} does not divide a micro-batch of {part}'
        )


# ------------------------------------------------------------------------------------------------------------- state


def init_discriminator(config: RunConfig, key: jax.Array) -> PyTree:
    """Fresh parameters of the discriminator."""
    g = config.generator
    net = config.discriminator.module(g.img_resolution, g.c_dim)
    return init_judge(net, 2 if config.discriminator.kind == 'dual' else 1, key)


def init_judge(net: Discriminator, pictures: int, key: jax.Array) -> PyTree:
    """Fresh parameters of a discriminator that judges one picture, or two."""
    size, c = net.img_resolution, jnp.zeros((1, 25))
    images = (jnp.zeros((1, size, size, 3)),) * pictures
    abstract = jax.eval_shape(net.init, key, *images, c)['params']
    paths, structure = jax.tree_util.tree_flatten_with_path(abstract)

    def draw(key):
        leaves = []
        for i, (path, leaf) in enumerate(paths):
            names = [k.key for k in path]
            if names[-1] != 'weight':
                leaves.append(jnp.zeros(leaf.shape))
                continue
            scale = 100.0 if names[0] == 'mapping' and names[1] != 'embed' else 1.0  # learning-rate multiplier 0.01
            leaves.append(jax.random.normal(jax.random.fold_in(key, i), leaf.shape) * scale)
        return jax.tree.unflatten(structure, leaves)

    return draw(key)


def fresh_variables(config: RunConfig) -> tuple[dict[str, PyTree], PyTree]:
    """Generator variables and discriminator parameters before training; they depend on the seed alone."""
    k_g, k_d = jax.random.split(jax.random.key(config.seed))
    return init_generator(config.generator, k_g), init_discriminator(config, k_d)


def init_state(
    config: RunConfig, g_variables: Mapping[str, PyTree], d_params: PyTree, g_ema: PyTree | None = None
) -> TrainState:
    """A state before the first iteration.

    Groups ``generator`` (with its average) and ``discriminator``. ``extra``: the generator's other collections
    (``noise``, ``ema_stats`` with the mean style row), ``augment`` (`AdaState`) and ``path_mean``.

    Args:
        g_ema: where the generator's average starts; None: at its parameters.
    """
    tx_g, tx_d = optimizers(config)
    generator = Group.create(g_variables['params'], tx_g, ema=True)
    if g_ema is not None:
        generator = generator.replace(ema=as_arrays(g_ema))
    groups = {'generator': generator, 'discriminator': Group.create(d_params, tx_d)}
    extra = {
        'noise': as_arrays(g_variables['noise']),
        'ema_stats': as_arrays(g_variables['ema_stats']),
        'augment': AdaState.create(config.augment),
        'path_mean': jnp.zeros(()),
    }
    return TrainState.create(groups, extra)


def generator_variables(state: TrainState, averaged: bool = True) -> dict[str, PyTree]:
    """The generator's variables: its average (what inference uses), or the raw parameters."""
    group = state.groups['generator']
    return {'params': group.inference_params if averaged else group.params, **_buffers(state)}


def _buffers(state: TrainState) -> dict[str, PyTree]:
    return {name: state.extra[name] for name in ('noise', 'ema_stats')}


# --------------------------------------------------------------------------------------------------------- iteration


def gradients(
    function: Callable[[PyTree, PyTree], tuple[jax.Array, dict]],
    params: PyTree,
    inputs: PyTree,
    parts: int,
    axis_name: str | None,
) -> tuple[PyTree, dict]:
    """Gradients of ``function(params, inputs) -> (loss, terms)``, averaged over micro-batches and devices.

    ``inputs``: arrays with the samples of this device in front; ``terms``: scalars (or trees) that may be averaged.
    """

    def one(part):
        (_, terms), grads = jax.value_and_grad(function, has_aux=True)(params, part)
        return grads, terms

    if parts == 1:
        found = one(inputs)
    else:
        split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), inputs)
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jax.tree.map(lambda x: x[0], split))
        )
        total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, one(part)), None), zero, split)
        found = jax.tree.map(lambda x: x / parts, total)
    return mean_over_devices(found, axis_name)


def clean(grads: PyTree) -> tuple[PyTree, jax.Array]:
    """NaN becomes 0, infinities 1e5, as in the original; also how many entries that were."""
    bad = sum(jnp.sum(~jnp.isfinite(g)).astype(jnp.float32) for g in jax.tree.leaves(grads))
    return jax.tree.map(lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5), grads), bad


def train_step(
    config: RunConfig,
    flags: Flags,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    labels: jax.Array,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One iteration.

    Args:
        config, flags: static.
        batch: this device's share: ``image`` [B, R, R, 3] uint8, ``label`` [B, 25].
        labels: [M, 25], the cameras that generated images are drawn with.

    Returns:
        the state, and scalars named ``phase/term``.
    """
    t, loss = config.train, config.loss
    model = TriPlaneGenerator(config.generator)
    net = config.discriminator.module(config.generator.img_resolution, config.generator.c_dim)
    setting = phases.Setting(model, net, loss, flags.resolution, t.remat)
    tx_g, tx_d = optimizers(config)
    count = batch['image'].shape[0]
    shown = state.step * t.batch
    probability = schedules.swap_probability(shown, config.generator.rendering.gpc_reg_prob, loss.gpc_reg_fade_kimg)
    sigma = schedules.blur_sigma(shown, loss.blur_init_sigma, config.blur_fade_kimg) if flags.blur else None
    ada, metrics = state.extra['augment'], {}
    numbers = noise_size(state.extra['noise'])

    def dice(phase: int) -> Dice:
        return Dice(
            config, flags.resolution, step_key(config.seed, state.step, phase), labels, count, numbers, axis_name
        )

    def augment_keys(stream: int) -> jax.Array:
        return sample_keys(step_key(config.seed, state.step, _AUGMENT + stream), count, axis_name)

    def transform(keys):
        if not config.augment.active:
            return None
        return lambda images: augment(config.augment.transforms, images, ada.p, KeyDraws(keys))

    def update(name: str, phase: str, state: TrainState, tx, grads, terms, frozen: int = 0) -> TrainState:
        if t.clean_gradients:
            grads, metrics[f'{phase}/cleaned'] = clean(grads)
        if frozen:
            grads = jax.tree.map(
                lambda g, label: jnp.zeros_like(g) if label == 'frozen' else g, grads, freeze_labels(grads, frozen)
            )
        group, stats = state.groups[name].apply_gradients(grads, tx)
        metrics.update({f'{phase}/{k}': v for k, v in {**terms, **stats}.items()})
        return state.with_groups(**{name: group})

    # Generator.
    def g_main(params, inputs):
        value, terms = phases.generator_main(
            setting,
            params,
            state.groups['discriminator'].params,
            _buffers(state),
            inputs['draws'],
            probability,
            sigma,
            transform(inputs['keys']),
        )
        return value, _scalars(terms)

    def g_reg(params, inputs):
        return phases.generator_reg(
            setting, params, _buffers(state), inputs['draws'], probability, state.extra['path_mean']
        )

    together_g = flags.g_reg and t.g_reg_interval == 0
    inputs = {'draws': dice(0).generated(), 'keys': augment_keys(0)}
    if together_g:
        inputs['regular'] = dice(1).regular()

        def g_both(params, inputs):
            value, terms = g_main(params, inputs)
            more, other = g_reg(params, {'draws': inputs['regular']})
            return value + more, terms | {f'reg_{k}': v for k, v in other.items()}

    grads, terms = gradients(
        g_both if together_g else g_main, state.groups['generator'].params, inputs, t.accumulate, axis_name
    )
    path_length = terms.get('reg_path_length')
    state = update('generator', 'g_main', state, tx_g, grads, terms)
    if flags.g_reg and not together_g:
        grads, terms = gradients(
            _scaled(g_reg, t.g_reg_interval),
            state.groups['generator'].params,
            {'draws': dice(1).regular()},
            t.accumulate,
            axis_name,
        )
        path_length = terms.get('path_length')
        state = update('generator', 'g_reg', state, tx_g, grads, terms)

    # Discriminator.
    images = batch['image'].astype(jnp.float32) / 127.5 - 1
    chance = dice(2)
    real_inputs = {'image': images, 'c': chance.told(batch['label']), 'keys_real': augment_keys(2)}
    frozen = config.discriminator.freeze_layers

    def real_of(inputs) -> losses.Pair:
        return losses.real_pair(inputs['image'], flags.resolution, sigma, loss.filter_mode)

    def d_main(params, inputs):
        value, terms = phases.discriminator_main(
            setting,
            params,
            generator_variables(state, averaged=False),
            real_of(inputs),
            inputs['c'],
            inputs['draws'],
            probability,
            sigma,
            (transform(inputs['keys']), transform(inputs['keys_real'])),
        )
        return value, _scalars(terms) | {'ema_stats': terms['ema_stats']}

    def d_reg(params, inputs):
        value, terms = phases.discriminator_reg(
            setting, params, real_of(inputs), inputs['c'], sigma, transform(inputs['keys_real'])
        )
        return value, _scalars(terms)

    together_d = flags.d_reg and t.d_reg_interval == 0

    def d_both(params, inputs):
        value, terms = d_main(params, inputs)
        more, other = d_reg(params, inputs)
        return value + more, terms | {f'reg_{k}': v for k, v in other.items()}

    inputs = {**real_inputs, 'draws': chance.generated(), 'keys': augment_keys(1)}
    grads, terms = gradients(
        d_both if together_d else d_main, state.groups['discriminator'].params, inputs, t.accumulate, axis_name
    )
    stats = terms.pop('ema_stats')
    reports = [terms['sign_real']]
    state = update('discriminator', 'd_main', state, tx_d, grads, terms, frozen)
    if flags.d_reg and not together_d:
        other = {**real_inputs, 'keys_real': augment_keys(3)}
        grads, terms = gradients(
            _scaled(d_reg, t.d_reg_interval), state.groups['discriminator'].params, other, t.accumulate, axis_name
        )
        reports.append(terms['sign_real'])
        state = update('discriminator', 'd_reg', state, tx_d, grads, terms, frozen)

    # Averages, controller, counters.
    ema_kimg = t.batch * 10 / 32 if t.ema_kimg is None else t.ema_kimg
    decay = schedules.ema_decay(shown, t.batch, ema_kimg, t.ema_rampup)
    state = state.with_groups(generator=state.groups['generator'].update_ema(decay))
    for sign in reports:
        ada = ada.report(sign, count * num_shards(axis_name))
    ada = ada.advance(config.augment, state.step + 1, t.batch)
    extra = {**state.extra, 'ema_stats': stats, 'augment': ada}
    if path_length is not None:
        old = state.extra['path_mean']
        extra['path_mean'] = old + loss.path_length_decay * (path_length - old)
        metrics['g_reg/path_mean'] = extra['path_mean']
    metrics |= {
        'ema/decay': jnp.float32(decay),
        'schedule/resolution': jnp.float32(flags.resolution),
        'schedule/kimg': (shown + t.batch) / 1000,
        'schedule/blur': jnp.float32(0.0 if sigma is None else sigma),
    }
    if probability is not None:
        metrics['schedule/swap'] = jnp.float32(probability)
    if config.augment.active:
        metrics['augment/p'] = ada.p
    return state.replace(step=state.step + 1, extra=extra), metrics


def _scalars(terms: dict[str, Any]) -> dict[str, jax.Array]:
    return {k: v for k, v in terms.items() if isinstance(v, jax.Array) and v.ndim == 0}


def _scaled(function: Callable, gain: float) -> Callable:
    """A phase that is run once in ``gain`` iterations counts as often; its terms are logged unscaled."""

    def scaled(params, inputs):
        value, terms = function(params, inputs)
        return value * gain, terms

    return scaled


def with_resolution(config: RunConfig, resolution: int) -> RunConfig:
    """A run's configuration whose generator renders that many pixels: what its weights are stored with."""
    return replace(config, generator=config.generator.replace(neural_rendering_resolution=resolution))
