"""The three training stages (paper section 4): state, one step as a pure function, sample pictures, configuration.

* ``general``: encoder, generator and deformation field learn from pairs of frames of one clip: the source gives code
  and identity coefficients, the target expression, camera and picture (equation 7). Compensation is not used yet.
* ``teeth``: the same without the deformation field; the mouth learns from a teacher that restores it (equation 9).
* ``compensation``: the compensation network alone, from single pictures (equation 11).

A stage trains some groups of parameters; everything else is in ``extra`` and stays bit for bit what it was, but for the
encoder's batch statistics in the first stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.faces.importance import importance, part_boxes
from avatar_jax.losses import codes
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.nofa import losses
from avatar_jax.methods.nofa.code_metric import code_error
from avatar_jax.methods.nofa.config import METHOD, STAGES, ModelConfig, StageConfig
from avatar_jax.methods.nofa.model import (
    deformation_of,
    encode,
    network,
    render,
    render_pixels,
    sample_draws,
    volume_of,
    w_avg,
    with_network,
)
from avatar_jax.methods.nofa.teacher import Teacher
from avatar_jax.models.e4e import LatentDiscriminator, progressive_stage
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.ops.windows import RADIUS
from avatar_jax.parallel import as_arrays, mean_over_devices, sample_keys
from avatar_jax.render.sampling import draw_pixels
from avatar_jax.train.loop import LoopConfig
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from avatar_jax.train.state import Group, TrainState, step_key
from avatar_jax.types import PyTree

DISCRIMINATOR = 'discriminator'


@dataclass(frozen=True)
class RunConfig:
    """One training run: one stage.

    Attributes:
        stage: 'general', 'teeth' or 'compensation'.
        seed: decides initial weights, data order and all random draws.
        model: networks and method; ``model.settings.train`` has lengths, batches and optimizers.
        data: the clips. output: logs, samples, checkpoints.
        init: weight file of this method to go on from (of the stage before); '' starts from ``generator``.
        generator: weight file of the generator (EG3D or another method that has one) to start from; '' draws one.
        backbone: weight file of ArcFace's IR-SE-50, or of an encoder, for the encoder's first backbone; '' draws one.
        perception: 'name=file' of frozen networks for the losses. stand_ins: use the shipped stand-ins where nothing
            better is given.
        teacher: weight file of GFPGAN, for ``train.teacher='gfpgan'``.
        parallel: 'pmap', 'shard_map' or 'single'.
        storage: of the numbers in the final weight file: 'float32' or 'float16'.
        method: says to ``avatar-jax train`` whose configuration this is.
    """

    method: str = METHOD
    stage: str = 'general'
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ClipsConfig = field(default_factory=ClipsConfig)
    output: PeopleOutput = field(default_factory=PeopleOutput)
    init: str = ''
    generator: str = ''
    backbone: str = ''
    perception: tuple[str, ...] = ()
    stand_ins: bool = True
    teacher: str = ''
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
        'model.generator.remat',
    )

    def __post_init__(self):
        check = Check(self)
        check.need(self.method == METHOD, 'method', f'this configuration is of {METHOD!r}')
        check.one_of('stage', *STAGES)
        check.need(
            self.stage == 'general' or bool(self.init),
            'init',
            f"stage '{self.stage}' goes on from trained weights; give the file of the stage before",
        )
        for name in ('generator', 'backbone'):
            check.need(not (self.init and getattr(self, name)), name, 'init already holds it; give one or the other')
        check.one_of('storage', 'float32', 'float16')
        check_stage(self.model, self.stage)

    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return self.output.loop(self.model.settings.train.stage(self.stage).iterations)


def check_stage(config: ModelConfig, stage: str) -> None:
    """Raises ``UserError`` for a stage that has nothing to train."""
    if stage == 'compensation' and not config.settings.compensation.use:
        raise UserError("stage: 'compensation', but model.settings.compensation.use is off; switch it on")


@flax.struct.dataclass
class Frozen:
    """What a step reads and never changes: the networks of the losses, the teacher, and for steps of codes the matrix
    of ``code_metric``.
    """

    bank: PerceptionBank = flax.struct.field(default_factory=PerceptionBank)
    teacher: Teacher = flax.struct.field(default_factory=Teacher)
    metric: jax.Array | None = None


# ------------------------------------------------------------------------------------------------------------- state


def trained_networks(config: ModelConfig, stage: str) -> tuple[str, ...]:
    """Names of the networks that a stage trains."""
    if stage == 'compensation':
        return ('compensation',)
    base = ('encoder', 'generator') if config.settings.train.train_generator else ('encoder',)
    return (*base, 'deformation') if stage == 'general' else base


def split_generator(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of the generator as (trained, fixed): the mapping network is never used, and never moves."""
    backbone = dict(params['backbone'])
    fixed = {'backbone': {'mapping': backbone.pop('mapping')}}
    return {**params, 'backbone': backbone}, fixed


def join_generator(trained: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``split_generator``."""
    return {**trained, 'backbone': {**trained['backbone'], **fixed['backbone']}}


def with_discriminator(config: ModelConfig, stage: str) -> bool:
    """Whether a stage trains the latent discriminator."""
    return stage == 'general' and config.settings.train.encoder.discriminator > 0


def init_state(config: ModelConfig, variables: Mapping[str, Any], stage: str, seed: int = 0) -> TrainState:
    """A state before the first step of a stage.

    Groups are the networks that it trains; ``extra`` holds all other variables under 'variables', and with the latent
    discriminator its pools of codes under 'pools'.

    Args:
        seed: of the latent discriminator's first weights.
    """
    check_stage(config, stage)
    train, groups = config.settings.train, {}
    tx = make_optimizer(train.stage(stage).optimizer)
    left = dict(variables['params'])
    for name in trained_networks(config, stage):
        params = left.pop(name)
        if name == 'generator':
            params, left['generator'] = split_generator(params)
        groups[name] = Group.create(params, tx)
    extra: dict[str, Any] = {'variables': {**variables, 'params': left}}
    if with_discriminator(config, stage):
        width, terms = config.generator.w_dim, train.encoder
        fresh = LatentDiscriminator(width).init(jax.random.fold_in(jax.random.key(seed), 7), jnp.zeros((1, width)))
        groups[DISCRIMINATOR] = Group.create(fresh['params'], make_optimizer(terms.discriminator_optimizer))
        extra['pools'] = {name: codes.CodePool.empty(terms.pool, width) for name in ('real', 'fake')}
    return TrainState.create(groups, as_arrays(extra))


def assembled(fixed: Mapping[str, Any], trained: Mapping[str, PyTree]) -> dict[str, Any]:
    """The common tree from the fixed variables and the parameters that are trained, by network."""
    variables = dict(fixed)
    for name, params in trained.items():
        if name == 'generator':
            params = join_generator(params, fixed['params']['generator'])
        variables = with_network(variables, name, {**network(fixed, name), 'params': params})
    return variables


def variables_of(state: TrainState) -> dict[str, Any]:
    """The model's variables at any point of a stage, as weight files hold them."""
    trained = {name: group.inference_params for name, group in state.groups.items() if name != DISCRIMINATOR}
    return assembled(state.extra['variables'], trained)


# -------------------------------------------------------------------------------------------------------------- step


def train_step(
    config: ModelConfig,
    stage: str,
    seed: int,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    frozen: Frozen,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of a stage.

    Args:
        config, stage, seed: static.
        batch: this device's share: ``images`` [B,F,H,W,3] in [-1,1], ``landmarks`` [B,F,68,2] pixels (may be missing if
            no term needs them), ``labels`` [B,F,25], ``expressions`` [B,F,64], ``shapes`` [B,F,80]. Frame 0 is the
            source and frame 1 the target. With ``importance`` [B,F,H,W] of the pixels and ``masks`` [B,F,H,W] in [0,1]
            it is a step of rays; with ``latents`` [B,Z] one of the encoder's codes (see ``with_host_arrays``).
        frozen: networks of the losses, and the teacher.

    Returns:
        the state, and loss, weighted terms, ``psnr`` (dB) and norms.
    """
    if 'latents' in batch:
        return _code_step(config, state, batch, frozen.metric, axis_name)
    settings, train = config.settings, config.settings.train
    weights = settings.loss.weights(stage)
    fixed, key = state.extra['variables'], step_key(seed, state.step)
    count, along_rays = batch['images'].shape[0], 'importance' in batch
    keys = sample_keys(jax.random.fold_in(key, 1), count, axis_name)
    source = {k: v[:, 0] for k, v in batch.items()}
    target = _targets_of(batch, keys, train.own_view if stage == 'compensation' else train.same_frame)
    if along_rays:
        weights = replace(weights, mouth=0.0, identity=0.0)
    prepared = losses.prepare_targets(
        frozen.bank,
        settings.loss,
        weights,
        target['images'],
        target.get('landmarks'),
        config.generator.neural_rendering_resolution,
    )
    draws = sample_draws(jax.vmap(lambda k: jax.random.fold_in(k, 2))(keys), config, train.rays if along_rays else None)
    terms_of = train.encoder
    last = config.generator.num_ws - 1
    delta_stage = jnp.asarray(last)
    if stage == 'general' and terms_of.progressive_every:
        delta_stage = progressive_stage(
            state.step, terms_of.progressive_start, terms_of.progressive_every, config.generator.num_ws
        )
    score_params = state.groups[DISCRIMINATOR].params if with_discriminator(config, stage) else None

    def loss(trained):
        variables = assembled(fixed, trained)
        learning = stage == 'general'
        offsets, statistics = encode(
            variables, config, source['images'], delta_stage if learning else None, learning, axis_name
        )
        ws = offsets + w_avg(fixed)
        volume = volume_of(variables, config, ws, source['images'], stage == 'compensation')
        deform = deformation_of(variables, config, source['shapes'], target['expressions'])
        if along_rays:
            ray_keys = jax.vmap(lambda k: jax.random.fold_in(k, 6))(keys)
            terms, error = _ray_terms(variables, config, weights, volume, target, deform, draws, ray_keys)
            terms |= losses.code_and_volume_terms(settings.loss, weights, offsets, volume)
        else:
            views = render(variables, config, volume.planes, ws, target['labels'], deform, draws)
            restored = None
            if weights.teeth and frozen.teacher.kind != 'none':
                restored = frozen.teacher(views.image, target['images'], target.get('landmarks'), settings.loss)
            terms = losses.objective_terms(
                frozen.bank, settings.loss, weights, views, prepared, offsets=offsets, volume=volume, restored=restored
            )
            error = jnp.mean((views.image - target['images']) ** 2)
        if learning and terms_of.delta:
            active = delta_stage < last
            terms['delta'] = jnp.where(active, terms_of.delta * codes.delta_regularizer(offsets, delta_stage), 0.0)
        if score_params is not None:
            terms['adversarial'] = terms_of.discriminator * codes.encoder_adversarial(
                partial(_score, config, score_params), ws, delta_stage
            )
        return losses.total(terms), (dict(terms), error, statistics, ws)

    trained = {name: group.params for name, group in state.groups.items() if name != DISCRIMINATOR}
    (value, (terms, error, statistics, ws)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    value, terms, error, grads = mean_over_devices((value, terms, error, grads), axis_name)
    tx, groups, metrics = make_optimizer(train.stage(stage).optimizer), {}, {}
    rate = learning_rate(train.stage(stage), state.step)
    for name, part in grads.items():
        scale = rate * (train.generator_lr if name == 'generator' else 1.0)
        groups[name], found = state.groups[name].apply_gradients(part, tx, lr_scale=scale)
        metrics |= {f'{name}/{k}': v for k, v in found.items()}
    extra = dict(state.extra)
    if stage == 'general':
        own = {**network(fixed, 'encoder'), 'batch_stats': statistics}
        extra['variables'] = with_network(fixed, 'encoder', own)
    if score_params is not None:
        groups[DISCRIMINATOR], extra['pools'], found = _discriminator_step(
            config, state, ws, source['labels'], delta_stage, key, keys, axis_name
        )
        metrics |= found
    state = state.with_groups(**groups).replace(step=state.step + 1, extra=extra)
    # Pictures are in [-1, 1]: the signal's range is 2.
    psnr = 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))
    return state, {'loss': value, 'psnr': psnr, **terms, **metrics}


def learning_rate(stage: StageConfig, step: jax.Array) -> jax.Array:
    """Learning rate of a step as a share of the optimizer's: linear rise, then a cosine to ``final_lr``."""
    rise = jnp.minimum(1.0, (step + 1) / max(stage.warm_up, 1))
    done = jnp.clip(step / stage.iterations, 0, 1)
    return rise * (stage.final_lr + (1 - stage.final_lr) * (0.5 + 0.5 * jnp.cos(jnp.pi * done)))


def _ray_terms(variables, config, weights, volume, target, deform, draws, keys):
    """Weighted terms of single rays through the targets, and the mean squared error of their colours."""
    loss, size = config.settings.loss, target['images'].shape[1]
    pixels = jax.vmap(partial(draw_pixels, count=config.settings.train.rays))(keys, target['importance'])
    views = render_pixels(variables, config, volume.planes, target['labels'], pixels, size, deform, draws)
    wanted, mask = (
        jnp.take_along_axis(target[k].reshape(len(keys), size * size, -1), pixels[..., None], 1)
        for k in ('images', 'masks')
    )
    error = jnp.mean((views.raw - wanted) ** 2)
    terms = {'reconstruction': weights.reconstruction * (error + loss.absolute * jnp.mean(jnp.abs(views.raw - wanted)))}
    if loss.opacity:
        terms['opacity'] = loss.opacity * jnp.mean((views.opacity - mask) ** 2)
    return terms, error


def _code_step(config, state, batch, metric, axis_name):
    """The encoder alone, towards the codes of known latent numbers: of both pictures of a person the same code."""
    train, fixed = config.settings.train, state.extra['variables']
    generator = network(variables_of(state), 'generator')
    labels = batch['labels'][:, 0]
    wanted = TriPlaneGenerator(config.generator).apply(generator, batch['latents'], labels, method='mapping')
    frames = batch['images'].shape[1]
    wanted = jax.lax.stop_gradient(jnp.repeat(wanted - w_avg(fixed), frames, 0))
    images = batch['images'].reshape(-1, *batch['images'].shape[2:])

    def loss(params):
        offsets, statistics = encode(assembled(fixed, {'encoder': params}), config, images, None, True, axis_name)
        return code_error(metric, offsets - wanted), (statistics, code_error(metric, wanted))

    (value, (statistics, size)), grads = jax.value_and_grad(loss, has_aux=True)(state.groups['encoder'].params)
    value, size, grads = mean_over_devices((value, size, grads), axis_name)
    stage = train.stage('general')
    rate = learning_rate(stage, state.step)
    group, found = state.groups['encoder'].apply_gradients(grads, make_optimizer(stage.optimizer), lr_scale=rate)
    own = {**network(fixed, 'encoder'), 'batch_stats': statistics}
    extra = {**state.extra, 'variables': with_network(fixed, 'encoder', own)}
    state = state.with_groups(**{**state.groups, 'encoder': group}).replace(step=state.step + 1, extra=extra)
    # In dB: how much less than with the mean code for everybody.
    psnr = 10 * jnp.log10(size / jnp.maximum(value, 1e-10))
    return state, {'loss': value, 'psnr': psnr, 'codes': value, **{f'encoder/{k}': v for k, v in found.items()}}


def _targets_of(batch: Mapping[str, jax.Array], keys: jax.Array, same_frame: float) -> dict[str, jax.Array]:
    """Frame 1 of every element, or with that probability frame 0."""
    if same_frame == 1.0:
        return {k: v[:, 0] for k, v in batch.items()}
    same = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 1), same_frame))(keys)
    return {k: jnp.where(same.reshape(-1, *(1,) * (v.ndim - 2)), v[:, 0], v[:, 1]) for k, v in batch.items()}


def _score(config: ModelConfig, params: PyTree, rows: jax.Array) -> jax.Array:
    return LatentDiscriminator(config.generator.w_dim).apply({'params': params}, rows)


def _discriminator_step(config, state, ws, labels, delta_stage, key, keys, axis_name):
    """One update of the latent discriminator, from the codes of all devices' pictures: the same on every device."""
    terms = config.settings.train.encoder
    z = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 3), (config.generator.z_dim,)))(keys)
    generator = network(state.extra['variables'], 'generator')  # the mapping network is never trained
    real = TriPlaneGenerator(config.generator).apply(generator, z, labels, method='mapping')[:, 0]
    # Of each picture one of the rows that already differ.
    row = jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(k, 4), (), 0, delta_stage + 1))(keys)
    fake = jnp.take_along_axis(ws, row[:, None, None], 1)[:, 0]
    if axis_name is not None:
        real, fake = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (real, fake))
    pools, drawn = {}, {}
    for i, (name, found) in enumerate((('real', real), ('fake', fake))):
        pools[name], drawn[name] = codes.query_pool(
            state.extra['pools'][name], jax.lax.stop_gradient(found), jax.random.fold_in(key, 5 + i)
        )

    def loss(params):
        score = partial(_score, config, params)
        value = codes.discriminator_loss(score, drawn['real'], drawn['fake'])
        due = state.step % terms.r1_every == 0
        penalty = jnp.where(due, terms.r1 / 2 * terms.r1_every * codes.r1_penalty(score, drawn['real']), 0.0)
        return value + penalty, {'latent_discriminator': value, 'latent_r1': penalty}

    grads, found = jax.grad(loss, has_aux=True)(state.groups[DISCRIMINATOR].params)
    tx = make_optimizer(terms.discriminator_optimizer)
    group, norms = state.groups[DISCRIMINATOR].apply_gradients(grads, tx)
    return group, pools, {**found, **{f'{DISCRIMINATOR}/{k}': v for k, v in norms.items()}}


# -------------------------------------------------------------------------------------------------------------- data


def with_host_arrays(
    config: ModelConfig, stage: str, batch: Mapping[str, np.ndarray], kind: str = 'whole'
) -> dict[str, np.ndarray]:
    """A batch of pairs (``data_pipelines.pairs``) as ``train_step`` wants it.

    Args:
        kind: of the step (``TrainConfig.kind``).

    Raises:
        UserError: no landmarks where terms need them, mouths outside the picture, too few shape coefficients, or data
            without what a kind of step needs.
    """
    c, weights = config.settings.deformation, config.settings.loss.weights(stage)
    images = batch['images']
    if kind == 'codes':
        if 'latent' not in batch:
            raise UserError(
                "model.settings.train.code_steps: these data have no latent numbers; use data.source='heads', or 0"
            )
        return {'images': images, 'labels': batch['labels'], 'latents': batch['latent'].astype(np.float32)}
    out = {k: batch[k] for k in ('images', 'labels', 'landmarks') if k in batch}
    out['expressions'] = np.ascontiguousarray(batch['windows'][:, :, RADIUS, : c.num_expression])
    out['shapes'] = np.repeat(shapes_of(batch, c.num_shape)[:, None], images.shape[1], 1)
    if kind == 'rays':
        if 'masks' not in batch or 'landmarks' not in batch:
            raise UserError(
                'model.settings.train.rays: these data have no landmarks and masks to choose rays by; set it to 0'
            )
        masks, marks = batch['masks'][..., 0], batch['landmarks']
        flat = np.round(255 * masks).astype(np.uint8).reshape(-1, *masks.shape[2:])
        found = importance(flat, part_boxes(marks.reshape(-1, *marks.shape[2:])), config.settings.train.importance)
        return out | {'masks': masks, 'importance': found.reshape(masks.shape)}
    if weights.mouth or weights.teeth:
        names = [f'person {p}' for p in np.repeat(batch.get('person', np.arange(len(images))), images.shape[1])]
        losses.check_mouths(batch.get('landmarks'), images.shape[2], names)
    return out


def shapes_of(batch: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    """[B,size] shape coefficients of the people, from their first frames.

    Raises:
        UserError: data without them, or with too few.
    """
    found = batch.get('shapes', np.zeros((len(batch['images']), 1, 0)))[:, 0]
    if found.shape[1] < size:
        raise UserError(
            f'data: {found.shape[1]} shape coefficients, model.settings.deformation.num_shape is {size}; use other '
            'data, or another number'
        )
    return found[:, :size].astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- samples


@partial(jax.jit, static_argnames='config')
def _sample(variables, batch, *, config):
    source, target = ({k: v[:, i] for k, v in batch.items()} for i in (0, min(1, batch['images'].shape[1] - 1)))
    offsets, _ = encode(variables, config, source['images'])
    ws, rows = offsets + w_avg(variables), []
    for compensate in (False, True):
        volume = volume_of(variables, config, ws, source['images'], compensate)
        for expressions, labels in (
            (source['expressions'], source['labels']),
            (target['expressions'], target['labels']),
        ):
            deform = deformation_of(variables, config, source['shapes'], expressions)
            rows.append(render(variables, config, volume.planes, ws, labels, deform).image)
    return source['images'], target['images'], rows


def sample_sheet(
    config: ModelConfig, state: TrainState, batch: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, float]]:
    """What the networks make of a batch: a row for each person.

    Columns: source; target; source and target without compensation; source and target with it.

    Returns:
        the sheet, uint8, and scores ``sample/psnr_source``, ``sample/psnr_driven`` (with compensation).
    """
    variables = as_arrays(variables_of(state))
    source, target, rows = _sample(variables, {k: jnp.asarray(v) for k, v in batch.items()}, config=config)
    columns = [np.asarray(c) for c in (source, target, *rows)]
    sheet = np.concatenate([np.concatenate(list(c), 0) for c in columns], 1)
    scores = {}
    for name, image, truth in (('source', columns[4], columns[0]), ('driven', columns[5], columns[1])):
        error = np.mean((np.clip(image, -1, 1) - truth) ** 2, (1, 2, 3))
        scores[f'sample/psnr_{name}'] = float(np.mean(10 * np.log10(4 / error)))
    return np.round((np.clip(sheet, -1, 1) + 1) * 127.5).astype(np.uint8), scores
