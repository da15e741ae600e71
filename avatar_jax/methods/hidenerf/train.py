"""Training of HiDe-NeRF: one step on pairs of frames, the state, sample pictures, the run's configuration.

Every element of a batch is a driver frame and a source frame of one clip. The source is seen once, its head is rendered
with the driver's expression from the driver's camera, and raw and final picture are compared with the driver's.

Often the source alone is flipped (supplement 6.1): heads then turn more than clips show. What belongs together is
flipped together (reference section 7), see ``flip``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.faces.importance import importance, part_boxes
from avatar_jax.methods.eg3d.augment import AdaState
from avatar_jax.methods.hidenerf import adversary, cameras, model, secc
from avatar_jax.methods.hidenerf.config import METHOD, ModelConfig
from avatar_jax.methods.hidenerf.losses import distance_of, reconstruction
from avatar_jax.methods.hidenerf.secc import HeadMesh
from avatar_jax.ops.coefficients import NUM_ID
from avatar_jax.ops.resize import resize
from avatar_jax.ops.windows import RADIUS
from avatar_jax.parallel import mean_over_devices, num_shards, sample_keys
from avatar_jax.train.accumulate import split_batch
from avatar_jax.train.loop import LoopConfig
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from avatar_jax.train.state import Group, TrainState, step_key
from avatar_jax.types import PyTree

DRIVER, SOURCE = 0, 1  # frames of a pair
PARTS = ('appearance', 'identity', 'deformation', 'points', 'refine')
_FLIPS, _DRAWS, _AUGMENT = range(3)  # random streams of a step


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        seed: decides initial weights, data order and all random draws.
        model: networks, losses and training. data: the clips. output: logs, samples, checkpoints.
        init: weight file to start from; '' starts from fresh networks.
        init_parts: networks to take from it ('appearance', 'identity', 'deformation', 'points', 'refine'), the others
            being fresh, as where rays get finer; () takes all, of the same configuration.
        perception: 'vgg16=FILE' and 'lpips_vgg=FILE' for the perceptual loss.
        parallel: 'pmap', 'shard_map' or 'single'.
        storage: of the numbers in the final weight file: 'float32' or 'float16'.
        method: says to ``avatar-jax train`` whose configuration this is.
    """

    method: str = METHOD
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ClipsConfig = field(default_factory=ClipsConfig)
    output: PeopleOutput = field(default_factory=PeopleOutput)
    init: str = ''
    init_parts: tuple[str, ...] = ()
    perception: tuple[str, ...] = ()
    parallel: str = 'pmap'
    storage: str = 'float32'

    # What a resumed run may change.
    MAY_DIFFER = (
        'output.*',
        'data.num_threads',
        'data.prefetch',
        'data.in_memory',
        'parallel',
        'storage',
        'model.train.iterations',
        'model.train.accumulate',
        'model.train.remat',
        'model.volume.ray_chunk',
    )

    def __post_init__(self):
        check = Check(self)
        check.need(self.method == METHOD, 'method', f'this configuration is of {METHOD!r}')
        check.one_of('storage', 'float32', 'float16')
        for part in self.init_parts:
            check.need(part in PARTS, 'init_parts', f'may have {", ".join(PARTS)}')
        check.need(
            not self.init_parts or bool(self.init), 'init_parts', 'needs init, the weights that have these parts'
        )

    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return self.output.loop(self.model.train.iterations)


@dataclass(frozen=True)
class Flags:
    """What a step does, which decides its program: discriminators, their gradient penalty, the refine network."""

    adversarial: bool
    penalty: bool
    refine: bool = True


def flags_at(config: ModelConfig, step: int) -> Flags:
    """The flags of step ``step``, counted from 0."""
    train = config.train
    begun = config.adversarial and step >= train.gan_from
    penalty = begun and config.loss.r1_gamma > 0 and (step - train.gan_from) % train.r1_every == 0
    return Flags(begun, penalty, step >= train.refine_from)


def check_batch(config: ModelConfig, num_devices: int) -> None:
    """Raises ``UserError`` unless the batch divides among devices, parts and groups of the discriminators."""
    train = config.train
    parts = num_devices * train.accumulate
    if train.batch_size % parts:
        raise UserError(
            f'train.batch_size: {train.batch_size} does not divide among {num_devices} devices with '
            f'{train.accumulate} parts each; use a multiple of {parts}'
        )
    part = train.batch_size // parts
    for name in adversary.NAMES if config.adversarial else ():
        group = getattr(config, name).mbstd_group_size
        if group is not None and (group > part or part % group):
            raise UserError(
                f'{name}.mbstd_group_size: {group} does not divide a part of {part} pairs ({train.batch_size} pairs, '
                f'{num_devices} devices, {train.accumulate} parts each); use another batch or group'
            )


# --------------------------------------------------------------------------------------------------------------- state


def init_state(
    config: ModelConfig, variables: Mapping[str, Any], discriminators: Mapping[str, PyTree] | None = None
) -> TrainState:
    """A state before the first step: groups ``generator`` and, with an adversarial loss, both discriminators.

    Args:
        discriminators: their parameters (``adversary.init``); needed with an adversarial loss.
    """
    tx = make_optimizer(config.train.generator)
    groups = {'generator': Group.create(variables['params'], tx, ema=config.train.ema > 0)}
    extra = {}
    if config.adversarial:
        if discriminators is None:
            raise ValueError('an adversarial loss needs discriminators')
        for name in adversary.NAMES:
            groups[name] = Group.create(discriminators[name], adversary.optimizer(config))
            extra[name] = AdaState.create(config.augment)
    return TrainState.create(groups, extra)


def fresh_state(config: ModelConfig, seed: int) -> TrainState:
    """The state of a run that starts from nothing."""
    first, second = jax.random.split(jax.random.key(seed))
    discriminators = adversary.init(config, second) if config.adversarial else None
    return init_state(config, model.init(config, first), discriminators)


def variables_of(state: TrainState, averaged: bool = True) -> dict[str, Any]:
    """The generator's variables, with averaged parameters if there are some."""
    group = state.groups['generator']
    return {'params': group.inference_params if averaged else group.params}


def learning_rate_scale(config: ModelConfig, step: jax.Array | int) -> jax.Array:
    """Factor of all learning rates at this step."""
    step = jnp.asarray(step)
    passed = sum(((step >= m).astype(jnp.float32) for m in config.train.milestones), jnp.zeros(()))
    return jnp.asarray(config.train.gamma, jnp.float32) ** passed


# ------------------------------------------------------------------------------------------------------------ flipping


def flip(
    config: ModelConfig, pair: Mapping[str, jax.Array], source: jax.Array, both: jax.Array, mesh: HeadMesh
) -> dict[str, jax.Array]:
    """A batch of pairs with flips carried through everything that they concern, and its codes.

    A flipped source has a mirrored camera, and its head the mirrored shape (in both codes), with the driver's
    unflipped expression. Where source and driver are flipped together, codes are flipped and recoloured.

    Args:
        pair: ``images`` [B,2,H,W,3], ``masks`` [B,2,H,W], ``labels`` [B,2,25], ``shapes`` [B,K], ``expression``
            [B,64]; perhaps ``importance`` and ``depths`` [B,H,W], and ``codes`` [B,2,2,S,S,3] that were drawn before
            (``host_codes``).
        source, both: [B] bool, which sources alone and which pairs are flipped.

    Returns:
        ``source``, ``target`` [B,H,W,3], ``mask`` of the target, ``source_label``, ``label``, ``shapes``,
        ``driving``, ``canonical`` [B,S,S,3], and ``importance`` and ``depths`` if they were there.
    """
    turned = {SOURCE: source ^ both, DRIVER: both}

    def choose(flags, a, b):
        return jnp.where(flags.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    def picture(x, frame):
        return choose(turned[frame], x[:, :, ::-1], x)

    def label(frame):
        own = pair['labels'][:, frame]
        return choose(turned[frame], cameras.mirror(own), own)

    if 'codes' in pair:
        drawn = choose(source, pair['codes'][:, 1], pair['codes'][:, 0])
        driving, canonical = drawn[:, 0], drawn[:, 1]
    else:
        shapes = pair['shapes']
        driving = model.driving_codes(config, mesh, shapes, pair['expression'], pair['labels'][:, DRIVER], source)
        if config.shape == 'mean':
            # One head for everybody: two codes instead of one for each pair.
            drawn = secc.canonical(mesh, jnp.zeros((2, mesh.num_shape)), config.secc, jnp.asarray([False, True]))
            canonical = choose(source, drawn[1:], drawn[:1])
        else:
            canonical = secc.canonical(mesh, shapes, config.secc, source)
    out = {
        'source': picture(pair['images'][:, SOURCE], SOURCE),
        'target': picture(pair['images'][:, DRIVER], DRIVER),
        'mask': picture(pair['masks'][:, DRIVER], DRIVER),
        'source_label': label(SOURCE),
        'label': label(DRIVER),
        'shapes': pair['shapes'],
        'driving': choose(both, secc.flipped(driving), driving),
        'canonical': choose(both, secc.flipped(canonical), canonical),
    }
    for name in ('importance', 'depths'):
        if name in pair:
            out[name] = picture(pair[name], DRIVER)
    return out


def prepared(config: ModelConfig, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch in the size of the networks, its pictures masked."""
    size = config.image_size
    masks = resize(batch['masks'][..., None], size, antialias=True)[..., 0]
    images = resize(model.masked(batch['images'], batch['masks'], config.fill), size, antialias=True)
    out = {**batch, 'images': images, 'masks': masks}
    if 'importance' in batch:
        out['importance'] = resize(batch['importance'][..., None], size, antialias=True)[..., 0]
    return out


# ---------------------------------------------------------------------------------------------------------------- step


def in_parts(
    function: Callable[[PyTree, PyTree], tuple[jax.Array, tuple[dict, PyTree]]],
    params: PyTree,
    inputs: PyTree,
    parts: int,
) -> tuple[jax.Array, dict[str, jax.Array], PyTree, PyTree]:
    """Value, terms, arrays of the samples and gradients of a mean over samples, on equal parts one after the other.

    Args:
        function: (params, inputs) -> value, (scalar terms, arrays [B,...]).
    """
    gradient = jax.value_and_grad(function, has_aux=True)
    if parts == 1:
        (value, (terms, samples)), grads = gradient(params, inputs)
        return value, terms, samples, grads

    def one(sums, part):
        (value, (terms, samples)), grads = gradient(params, part)
        return jax.tree.map(jnp.add, sums, (value, terms, grads)), samples

    pieces = split_batch(inputs, parts)
    shapes = jax.eval_shape(lambda p: function(params, p), jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
    sums, samples = jax.lax.scan(one, (*zeros, jax.tree.map(jnp.zeros_like, params)), pieces)
    value, terms, grads = jax.tree.map(lambda x: x / parts, sums)
    return value, terms, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples), grads


def train_step(
    config: ModelConfig,
    seed: int,
    flags: Flags,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    frozen: Mapping[str, Any],
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step: the generator, then (``flags``) both discriminators on the pictures that it made.

    Args:
        config, seed, flags: static.
        batch: this device's share as ``flip`` takes it, in any size; see ``with_host_arrays``.
        frozen: ``mesh``, and ``bank`` (``PerceptionBank``) or None.
    """
    train, mesh = config.train, frozen['mesh']
    count = batch['images'].shape[0]
    scale = learning_rate_scale(config, state.step)
    keys = {s: step_key(seed, state.step, s) for s in (_FLIPS, _DRAWS, _AUGMENT)}
    chances = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(sample_keys(keys[_FLIPS], count, axis_name))
    flips = chances[:, 0] < train.flip_source, chances[:, 1] < train.flip_both
    inputs = flip(config, prepared(config, batch), *flips, mesh)
    inputs['draws'] = model.Draws.from_key(keys[_DRAWS], config, count, axis_name)
    # For each discriminator: the generator's pictures, then generated and real ones of its own step.
    augment_keys = sample_keys(keys[_AUGMENT], count, axis_name)
    inputs['keys'] = jax.vmap(lambda k: jax.random.split(k, 3 * len(adversary.NAMES)))(augment_keys)
    distance = distance_of(config.loss, frozen.get('bank'))
    ada = state.extra

    def shown(params, inputs):
        source = model.encode(
            params,
            config,
            mesh,
            inputs['source'],
            inputs['source_label'],
            inputs['shapes'],
            canonical=inputs['canonical'],
        )
        return model.render(params, config, source, inputs['driving'], inputs['label'], inputs['draws'], flags.refine)

    def generator(params, inputs):
        views = (jax.checkpoint(shown) if train.remat else shown)(params, inputs)
        more = inputs.get('importance'), inputs.get('depths')
        terms = reconstruction(config.loss, distance, views, inputs['target'], inputs['mask'], *more)
        # Without refinement: as the network begins.
        image = resize(views.raw, config.image_size) if views.image is None else views.image
        made = dict(zip(adversary.NAMES, (views.raw, image), strict=True))
        if flags.adversarial:
            for k, name in enumerate(adversary.NAMES):
                seen = adversary.seen(config, made[name], ada[name], inputs['keys'][:, 3 * k])
                wish = adversary.wish(config, name, state.groups[name].params, seen, inputs['label'])
                terms[f'adversarial_{name}'] = config.loss.adversarial * wish
        total = sum(terms.values())
        terms['mse'] = jnp.mean((image - inputs['target']) ** 2)
        terms['shift'] = jnp.abs(views.shift).mean()
        return total, (terms, jax.lax.stop_gradient(made) if flags.adversarial else {})

    value, terms, made, grads = in_parts(generator, state.groups['generator'].params, inputs, train.accumulate)
    value, terms, grads = mean_over_devices((value, terms, grads), axis_name)
    group, stats = state.groups['generator'].apply_gradients(
        grads, make_optimizer(train.generator), lr_scale=scale, max_norm=train.clip
    )
    if train.ema:
        # Averages begin with a shorter memory.
        steps = state.step.astype(jnp.float32)
        group = group.update_ema(jnp.minimum(train.ema, (2 + steps) / (11 + steps)))
    psnr = -10 * jnp.log10(jnp.maximum(terms.pop('mse') / 4, 1e-10))
    metrics = {'loss': value, 'psnr': psnr, **terms} | {f'generator/{k}': v for k, v in stats.items()}
    state = state.with_groups(generator=group)
    if flags.adversarial:
        state, more = _judges_step(config, flags, state, inputs, made, scale, axis_name)
        metrics |= more
    return state.replace(step=state.step + 1), metrics


def _judges_step(
    config: ModelConfig,
    flags: Flags,
    state: TrainState,
    inputs: Mapping[str, jax.Array],
    made: Mapping[str, jax.Array],
    scale: jax.Array,
    axis_name: str | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Both discriminators learn to tell generated pictures ``made`` from the drivers'."""
    train, tx, metrics, extra = config.train, adversary.optimizer(config), {}, dict(state.extra)
    count = inputs['target'].shape[0]
    for k, name in enumerate(adversary.NAMES):
        ada = extra[name]
        real = resize(inputs['target'], made[name].shape[1], antialias=True)
        own = {
            'fake': made[name],
            'real': real,
            'label': inputs['label'],
            'keys': inputs['keys'][:, 3 * k + 1 :][:, :2],
        }

        def verdict(params, own, name=name, ada=ada):
            fake, real = (
                adversary.seen(config, own[x], ada, own['keys'][:, i]) for i, x in enumerate(('fake', 'real'))
            )
            value, terms = adversary.verdict(config, name, params, fake, real, own['label'])
            return value, (terms, {})

        def penalty(params, own, name=name, ada=ada):
            real = adversary.seen(config, own['real'], ada, own['keys'][:, 1])
            value, terms = adversary.penalty(config, name, params, real, own['label'])
            return value * train.r1_every, (terms, {})

        group, reports = state.groups[name], []
        for wanted, phase, function in ((True, 'main', verdict), (flags.penalty, 'penalty', penalty)):
            if not wanted:
                continue
            value, terms, _, grads = in_parts(function, group.params, own, train.accumulate)
            value, terms, grads = mean_over_devices((value, terms, grads), axis_name)
            group, stats = group.apply_gradients(grads, tx, lr_scale=scale)
            reports.append(terms['sign_real'])
            metrics |= {f'{name}/{phase}/{x}': v for x, v in {'loss': value, **terms, **stats}.items()}
        for sign in reports:
            ada = ada.report(sign, count * num_shards(axis_name))
        extra[name] = ada.advance(config.augment, state.step + 1, train.batch_size)
        if config.augment.active:
            metrics[f'{name}/p'] = extra[name].p
        state = state.with_groups(**{name: group})
    return state.replace(extra=extra), metrics


# ---------------------------------------------------------------------------------------------------------------- data


def with_host_arrays(
    config: ModelConfig, batch: Mapping[str, np.ndarray], mesh: HeadMesh, codes: secc.CodeStore | None = None
) -> dict[str, np.ndarray]:
    """A batch of frame pairs (``data_pipelines.sets`` with two frames) as ``train_step`` wants it.

    Args:
        mesh: of the head whose codes are drawn. codes: draws them on the host; None leaves that to the device.

    Raises:
        UserError: data without masks, or without what the configuration asks for: landmarks, depths, shape
            coefficients.
    """
    if 'masks' not in batch:
        raise UserError(
            'data: these clips have no masks of the head, and HiDe-NeRF learns from heads before a plain background; '
            'build the data set with masks'
        )
    shapes = np.zeros((len(batch['images']), mesh.num_shape), np.float32)
    if config.shape == 'own':
        shapes = shapes_of(batch, mesh.num_shape)
    out = {
        'images': batch['images'],
        'labels': batch['labels'],
        'masks': batch['masks'].astype(np.float32) / 255,
        'shapes': shapes,
        'expression': np.ascontiguousarray(batch['windows'][:, DRIVER, RADIUS, :64]),
    }
    if config.loss.focus:
        if 'landmarks' not in batch:
            raise UserError('loss.focus: these data have no landmarks, by which mouths and eyes are found; set it to 0')
        marks = batch['landmarks'][:, DRIVER]
        out['importance'] = importance(batch['masks'][:, DRIVER], part_boxes(marks))
    if config.loss.depth:
        if 'depths' not in batch:
            raise UserError("loss.depth: these data have no depths; use data.source='heads', or set it to 0")
        out['depths'] = batch['depths'][:, DRIVER].astype(np.float32)
    if codes is not None:
        out['codes'] = host_codes(codes, shapes, out['expression'])
    return out


def shapes_of(batch: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    """[B,size] shape coefficients of the sources' heads; further ones than the data's are 0, as those of portraits.

    Raises:
        UserError: data without shape coefficients, or with too few.
    """
    if 'shapes' not in batch:
        raise UserError("model.shape: 'own' needs data with shape coefficients; use other data, or model.shape='mean'")
    found = batch['shapes'][:, SOURCE, :size].astype(np.float32)
    known = found.shape[1]
    if known < min(size, NUM_ID):
        raise UserError(f"data: {known} shape coefficients, the head model has {size}; use shape='mean'")
    return np.pad(found, ((0, 0), (0, size - known)))


def host_codes(codes: secc.CodeStore, shapes: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """[B,2,2,S,S,3] codes drawn on the host: of the shape and of its mirror image; driving and canonical."""
    none = np.zeros_like(expression)
    return np.asarray(
        [
            [[codes(s, e, mirrored) for e in pair] for mirrored in (False, True)]
            for s, pair in zip(shapes, zip(expression, none, strict=True), strict=True)
        ],
        np.float32,
    )


# ------------------------------------------------------------------------------------------------------------- samples


@partial(jax.jit, static_argnames='config')
def _sample(params, mesh, batch, *, config):
    never = jnp.zeros(batch['images'].shape[0], bool)
    inputs = flip(config, prepared(config, batch), never, never, mesh)
    source = model.encode(
        params, config, mesh, inputs['source'], inputs['source_label'], inputs['shapes'], canonical=inputs['canonical']
    )
    return inputs, model.render(params, config, source, inputs['driving'], inputs['label'])


def sample_sheet(
    config: ModelConfig, state: TrainState, batch: Mapping[str, np.ndarray], frozen: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, float]]:
    """What the (averaged) networks make of a batch: a row for each pair.

    Columns: source; driver; final picture; raw picture; canonical and driving code.

    Returns:
        the sheet, uint8, and scores ``sample/psnr``, ``sample/psnr_raw``.
    """
    arrays = {k: jnp.asarray(v) for k, v in batch.items()}
    inputs, views = _sample(variables_of(state)['params'], frozen['mesh'], arrays, config=config)
    size, target = config.image_size, inputs['target']
    columns = [
        inputs['source'],
        target,
        views.image,
        resize(views.raw, size, 'nearest'),
        *(resize(inputs[k], size, 'nearest') for k in ('canonical', 'driving')),
    ]
    sheet = np.concatenate([np.concatenate(list(np.asarray(c)), 0) for c in columns], 1)
    scores = {}
    for name, image in (('psnr', views.image), ('psnr_raw', views.raw)):
        truth = resize(target, image.shape[1], antialias=True)
        error = np.mean((np.clip(np.asarray(image), -1, 1) - np.asarray(truth)) ** 2, (1, 2, 3)) / 4
        scores[f'sample/{name}'] = float(np.mean(-10 * np.log10(np.maximum(error, 1e-10))))
    return np.round((np.clip(sheet, -1, 1) + 1) * 127.5).astype(np.uint8), scores
