"""Training of GPAvatar: one step on sets of frames, the parameter groups, sample pictures, the run's configuration.

Every element of a batch is one driver frame (or several) and some portraits of the same person. The portraits are
encoded and fused, the head is rendered with the driver's expression from the driver's camera, and compared with the
driver's picture: with all of it, or in the first steps along some of its rays, if ``train.ray_iterations`` says so.
``gpavatar.training`` hands the step to ``train.runner``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.faces.importance import importance, part_boxes
from avatar_jax.methods.gpavatar import cameras, head, render
from avatar_jax.methods.gpavatar.cameras import cube_hits
from avatar_jax.methods.gpavatar.config import METHOD, NEAR, ModelConfig
from avatar_jax.methods.gpavatar.losses import depth_term, distance_of, losses, opacity_term, ray_losses, total
from avatar_jax.methods.gpavatar.mesh import NUM_SHAPE, head_points
from avatar_jax.methods.gpavatar.model import (
    Views,
    canonical,
    encode,
    fuse,
    noise_of,
    render_rays,
    render_views,
    views_of,
)
from avatar_jax.ops.resize import resize
from avatar_jax.ops.windows import RADIUS
from avatar_jax.parallel import as_arrays, mean_over_devices, sample_keys
from avatar_jax.render.sampling import draw_pixels
from avatar_jax.train.loop import LoopConfig
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from avatar_jax.train.state import Group, TrainState, step_key
from avatar_jax.types import PyTree

SR = 'up_renderer'
SLOW = ('style_mlp', 'final_linear')
NEAR_STD = 0.05  # cube units: how far samples are spread around a known surface
BOX_SCALE = 1.25  # of the landmarks' mean extent: the side of the face box


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        seed: decides initial weights, data order and all random draws.
        model: networks and method; ``model.settings.train`` has length, batch and optimizer.
        data: the clips. output: logs, samples, checkpoints.
        init: weight file to start from; '' starts from fresh networks.
        perception: 'alexnet=FILE' for the perceptual loss.
        parallel: 'pmap', 'shard_map' or 'single'.
        storage: number type of the final weight file: 'float32' or 'float16'.
        method: name of the method, by which ``avatar-jax train`` chooses the training.
    """

    method: str = METHOD
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ClipsConfig = field(default_factory=ClipsConfig)
    output: PeopleOutput = field(default_factory=PeopleOutput)
    init: str = ''
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
        'model.settings.train.iterations',
    )

    def __post_init__(self):
        check = Check(self)
        check.need(self.method == METHOD, 'method', f'this configuration is of {METHOD!r}')
        check.one_of('storage', 'float32', 'float16')

    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return self.output.loop(self.model.settings.train.iterations)


# ------------------------------------------------------------------------------------------------------------- state


def split_slow(params: PyTree) -> tuple[PyTree, PyTree]:
    """Parameters as (those of the full learning rate, the style mappings of both StyleUNets)."""
    main, slow = {}, {}
    for name, value in params.items():
        if any(part in name for part in SLOW):
            slow[name] = value
        elif isinstance(value, Mapping):
            a, b = split_slow(value)
            main |= {name: a} if a else {}
            slow |= {name: b} if b else {}
        else:
            main[name] = value
    return main, slow


def join(a: PyTree, b: PyTree) -> PyTree:
    """The inverse of ``split_slow``."""
    both = {**a, **b}
    return {k: join(a[k], b[k]) if k in a and k in b else v for k, v in both.items()}


def split(params: PyTree) -> dict[str, PyTree]:
    """Parameters by group: ``main`` and ``slow`` (``split_slow``), and the same two of super-resolution, ``sr`` and
    ``sr_slow``.
    """
    main, slow = split_slow({k: v for k, v in params.items() if k != SR})
    sr, sr_slow = split_slow({SR: params[SR]})
    return {'main': main, 'slow': slow, 'sr': sr, 'sr_slow': sr_slow}


def gather(parts: Mapping[str, PyTree]) -> PyTree:
    """The inverse of ``split``."""
    return {**join(parts['main'], parts['slow']), **join(parts['sr'], parts['sr_slow'])}


def init_state(config: ModelConfig, variables: Mapping[str, Any]) -> TrainState:
    """A state before the first step: the groups of ``split``; ``extra`` holds what is not trained."""
    train = config.settings.train
    tx = make_optimizer(train.optimizer)
    groups = {name: Group.create(part, tx, ema=train.ema > 0) for name, part in split(variables['params']).items()}
    return TrainState.create(groups, as_arrays({k: variables[k] for k in ('noise', 'constants')}))


def variables_of(state: TrainState, averaged: bool = True) -> dict[str, Any]:
    """The model's variables (without the mesh), with averaged parameters if there are some."""
    parts = {name: g.inference_params if averaged else g.params for name, g in state.groups.items()}
    return {'params': gather(parts), **state.extra}


def learning_rate_scale(config: ModelConfig, step: jax.Array) -> jax.Array:
    """gamma to the number of milestones that have been reached before this step."""
    train, step = config.settings.train, jnp.asarray(step)
    passed = sum(((step >= m).astype(jnp.float32) for m in train.milestones), jnp.zeros(()))
    return jnp.asarray(train.gamma, jnp.float32) ** passed


def update(
    config: ModelConfig, state: TrainState, grads: PyTree, which: str = 'all'
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimizer for 'all' groups, those of super-resolution ('sr') or the 'others'; counts the step.

    Averages begin with a shorter memory: after n updates of a group, its decay is at most (1 + n) / (10 + n).
    """
    train = config.settings.train
    tx, scale = make_optimizer(train.optimizer), learning_rate_scale(config, state.step)
    groups, metrics = {}, {}
    for name, part in split(grads).items():
        if which != 'all' and name.startswith('sr') != (which == 'sr'):  # Adam would go on with its momentum
            continue
        factor = train.slow if name.endswith('slow') else 1.0
        group, found = state.groups[name].apply_gradients(part, tx, lr_scale=scale * factor)
        if train.ema:
            count = jnp.asarray(getattr(group.opt_state, 'count', state.step + 1), jnp.float32)  # SGD keeps none
            group = group.update_ema(jnp.minimum(train.ema, (1 + count) / (10 + count)))
        groups[name] = group
        metrics |= {f'{name}/{k}': v for k, v in found.items()}
    return state.with_groups(**groups).replace(step=state.step + 1), metrics


# -------------------------------------------------------------------------------------------------------------- step


def forward(
    params: PyTree,
    config: ModelConfig,
    scale: jax.Array,
    sources: jax.Array,
    scene: Callable[[jax.Array], head.Scene],
    transforms: jax.Array,
    focal: jax.Array,
    *,
    single: jax.Array | bool = False,
    draws: render.Draws | None = None,
    encoder_noise: Sequence[jax.Array] | None = None,
    noise: Sequence[jax.Array] | None = None,
) -> Views:
    """Portraits to rendered views.

    Args:
        sources: [B,V,S,S,3 or 4] canonical pictures in [0,1].
        scene: planes [B,3,h,w,C] -> the scene (with the driver's points or expression).
        single: use the first portrait only.
        encoder_noise: for B*V pictures, portraits fastest. noise: of super-resolution.
    """
    planes = fused_planes(params, config, scale, sources, single, encoder_noise)
    return render_views(params, config, scene(planes), transforms, focal, draws, noise)


def fused_planes(
    params: PyTree,
    config: ModelConfig,
    scale: jax.Array,
    sources: jax.Array,
    single: jax.Array | bool = False,
    noise: Sequence[jax.Array] | None = None,
) -> jax.Array:
    """Canonical pictures [B,V,S,S,3 or 4] in [0,1] -> tri-planes [B,3,h,w,C] of all, or of the first if ``single``."""
    batch, views = sources.shape[:2]
    planes = encode(params, config, _merge(sources), noise)
    planes = planes.reshape(batch, views, *planes.shape[1:])
    fused = fuse(params, scale, config, planes)
    return jnp.where(single, planes[:, 0], fused) if views > 1 else fused


def _merge(x: jax.Array) -> jax.Array:
    """[B,N,...] -> [B*N,...]."""
    return x.reshape(-1, *x.shape[2:])


def near_surface(keys: jax.Array, rays: tuple[jax.Array, jax.Array], surface: jax.Array) -> jax.Array:
    """Depths [N,M,NEAR] around the surface [N,M] that rays meet, or (where it is 0) anywhere in the cube."""
    near, far, _ = cube_hits(*rays)
    around = jax.vmap(lambda k: jax.random.truncated_normal(k, -3, 3, (*surface.shape[1:], NEAR)))(keys)
    anywhere = near[..., None] + (far - near)[..., None] * jax.scipy.stats.norm.cdf(around)
    return jnp.where(surface[..., None] > 0, surface[..., None] + NEAR_STD * around, anywhere)


def loss_terms(
    config: ModelConfig, views: Views, target: jax.Array, boxes: jax.Array | None, alexnet: PyTree | None
) -> dict[str, jax.Array]:
    """Weighted terms of views against pictures [B,S,S,3] in [0,1]."""
    images = {'coarse': views.coarse[..., :3], 'fine': views.fine[..., :3], 'image': views.image}
    loss = config.settings.loss
    return losses(loss, distance_of(loss, alexnet), images, target, views.coarse_opacities, boxes)


def train_step(
    config: ModelConfig,
    seed: int,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    frozen: Mapping[str, Any],
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step.

    Args:
        config, seed: static.
        batch: this device's share: ``images`` [B,D+V,H,W,3] in [-1,1], the drivers first, ``labels`` [B,D+V,25],
            ``windows`` [B,D+V,27,70], ``views`` [B,V,8 or 13] of the portraits (``model.views_of``), ``boxes`` [B,D,4]
            of the drivers' faces, ``masks`` [B,D,H,W] in [0,1], ``shapes`` [B,S] of the heads. With ``importance``
            [B,D,H,W] of the drivers' pixels it is a step of rays; ``loss.depth`` then needs ``depths`` [B,D,H,W] as
            well.
        frozen: ``mesh``, and ``alexnet`` or None.
    """
    c, train = config.settings, config.settings.train
    count, drivers = batch['images'].shape[0], train.drivers
    views = batch['images'].shape[1] - drivers
    key = step_key(seed, state.step)
    single = jax.random.bernoulli(jax.random.fold_in(key, 1), train.drop_sources)
    keys = sample_keys(jax.random.fold_in(key, 2), count, axis_name)

    unit = (batch['images'] + 1) * (255 / (2 * train.divisor))
    shown, masks = (_merge(x) for x in (unit[:, :drivers], batch['masks']))
    sources = resize(unit[:, drivers:], config.image_size, antialias=True)
    flat = sources.reshape(count * views, *sources.shape[2:])
    sources = canonical(config, flat, _merge(batch['views']), frozen['mesh'].get('front'))
    sources = sources.reshape(count, views, *sources.shape[1:])
    transforms, focal = cameras.camera_of_label(_merge(batch['labels'][:, :drivers]), config.world)
    expression = _merge(batch['windows'][:, :drivers, RADIUS, :64])
    points = None
    if c.field.with_points:
        points = head_points(config, frozen['mesh'], jnp.repeat(batch['shapes'], drivers, 0), expression)
    along_rays = 'importance' in batch
    rays = train.rays if along_rays else config.raw_size**2
    draws = jax.vmap(lambda k: render.Draws.from_key(k, drivers, rays, c.samples))(keys)
    draws = jax.tree.map(_merge, draws)
    variables = {'noise': state.extra['noise']}
    scale = state.extra['constants']['attn_module']['scale']

    def noises(name, keys, drawn=1):
        if c.training_noise != 'random':
            return noise_of(variables, config, name, c.training_noise, len(keys), None)
        return [_merge(x) for x in jax.vmap(lambda k: noise_of(variables, config, name, 'random', drawn, k))(keys)]

    first = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 1), views))(keys).reshape(-1)
    second = jax.vmap(lambda k: jax.random.fold_in(k, 2))(keys)

    def scene(planes):
        return head.Scene(jnp.repeat(planes, drivers, 0), points, expression)

    def whole_pictures(params):
        target = resize(shown, config.img_resolution, antialias=True)
        if train.whole_trains == 'sr':
            params = {k: v if k == SR else jax.lax.stop_gradient(v) for k, v in params.items()}
        found = forward(
            params,
            config,
            scale,
            sources,
            scene,
            transforms,
            focal,
            single=single,
            draws=draws,
            encoder_noise=noises('style_tplane', first),
            noise=noises('up_renderer', second, drivers),
        )
        terms = loss_terms(config, found, target, _merge(batch['boxes']), frozen['alexnet'])
        terms |= opacity_term(c.loss, found.opacity, resize(masks[..., None], config.raw_size, antialias=True))
        return total(terms), {**terms, 'mse': jnp.mean((found.image - target) ** 2)}

    def along(params):
        planes = fused_planes(params, config, scale, sources, single, noises('style_tplane', first))
        pixel_keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 3), drivers))(keys).reshape(-1)
        pixels = jax.vmap(partial(draw_pixels, count=rays))(pixel_keys, _merge(batch['importance']))
        rows, columns = jnp.divmod(pixels, shown.shape[2])
        places = (jnp.stack([columns, rows], -1) + 0.5) / jnp.asarray(shown.shape[2:0:-1])
        picture = jnp.arange(len(shown))[:, None]
        target, mask = shown[picture, rows, columns], masks[picture, rows, columns]
        lines, more = cameras.rays_through(transforms, focal, places, config.raw_size), None
        if c.loss.depth:
            surface = _merge(batch['depths'])[picture, rows, columns] * config.world.scale
            near_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(pixel_keys)
            more = near_surface(near_keys, lines, surface)
        found = render_rays(params, config, scene(planes), *lines, draws, more)
        terms = ray_losses(c.loss, found.coarse[..., :3], found.fine[..., :3], target)
        terms |= opacity_term(c.loss, found.opacity, mask)
        if c.loss.depth:
            terms |= depth_term(c.loss, found.weights, found.depths, surface, mask)
        return total(terms), {**terms, 'mse': jnp.mean((found.fine[..., :3] - target) ** 2)}

    params = gather({name: group.params for name, group in state.groups.items()})
    (value, terms), grads = jax.value_and_grad(along if along_rays else whole_pictures, has_aux=True)(params)
    value, terms, grads = mean_over_devices((value, terms, grads), axis_name)
    psnr = -10 * jnp.log10(jnp.maximum(terms.pop('mse'), 1e-10))
    state, metrics = update(config, state, grads, 'others' if along_rays else train.whole_trains)
    return state, {'loss': value, 'psnr': psnr, **terms, **metrics}


# -------------------------------------------------------------------------------------------------------------- data


def with_host_arrays(config: ModelConfig, batch: Mapping[str, np.ndarray], rays: bool = False) -> dict[str, np.ndarray]:
    """A batch of frames (``data_pipelines.sets``) as ``train_step`` wants it, with what is computed on the host.

    Args:
        rays: for a step of rays.
    """
    drivers = config.settings.train.drivers
    out = {k: batch[k] for k in ('images', 'labels', 'windows')}
    out['masks'] = batch['masks'][:, :drivers].astype(np.float32) / 255
    out['views'] = views_of(config, batch['labels'][:, drivers:])
    size, own = NUM_SHAPE[config.basis], config.shape == 'own'
    if own and 'shapes' not in batch:
        raise UserError("model.shape: 'own' needs data with shape coefficients; use other data, or model.shape='mean'")
    out['shapes'] = np.zeros((len(batch['images']), size), np.float32)
    if own:
        found = batch['shapes'][:, :drivers].mean(1)  # the points are those of the frame that is rendered
        if found.shape[1] != size:
            raise UserError(
                f'data: have {found.shape[1]} shape coefficients, the {config.basis} head has {size}; use other data, '
                "or model.shape='mean'"
            )
        out['shapes'] = found.astype(np.float32)
    landmarks = batch['landmarks'][:, :drivers] if 'landmarks' in batch else None
    if 'boxes' in batch:
        out['boxes'] = batch['boxes'][:, :drivers].astype(np.float32)
    elif landmarks is not None:
        out['boxes'] = face_boxes(landmarks, batch['images'].shape[2])
    else:
        raise UserError('data: have neither landmarks nor boxes of the faces; use other data')
    if rays:
        if landmarks is None:
            raise UserError(
                'model.settings.train.ray_iterations: these data have no landmarks and masks to choose rays by; use 0'
            )
        flat = batch['masks'][:, :drivers].reshape(-1, *batch['masks'].shape[2:])
        found = importance(
            flat, part_boxes(landmarks.reshape(-1, *landmarks.shape[2:])), config.settings.train.importance
        )
        out['importance'] = found.reshape(out['masks'].shape)
        if config.settings.loss.depth:
            if 'depths' not in batch:
                raise UserError(
                    "model.settings.loss.depth: these data have no depths; use data.source='heads', or set it to 0"
                )
            out['depths'] = batch['depths'][:, :drivers].astype(np.float32)
    return out


def face_boxes(landmarks: np.ndarray, size: int) -> np.ndarray:
    """[...,4] square around landmarks [...,68,2] (pixels of a picture of this size), relative to it."""
    low, high = landmarks.min(-2), landmarks.max(-2)
    middle, side = (low + high) / 2, (BOX_SCALE * (high - low).mean(-1, keepdims=True))
    return (np.concatenate([middle - side / 2, middle + side / 2], -1) / size).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- samples


@partial(jax.jit, static_argnames='config')
def _sample(variables, frozen, batch, *, config):
    c = config.settings
    drivers = c.train.drivers
    count, views = batch['images'].shape[0], batch['images'].shape[1] - drivers
    unit = (batch['images'] + 1) / 2
    sources = resize(unit[:, drivers:], config.image_size, antialias=True)
    flat = canonical(config, _merge(sources), _merge(batch['views']), frozen['mesh'].get('front'))
    sources = flat.reshape(count, views, *flat.shape[1:])
    transforms, focal = cameras.camera_of_label(batch['labels'][:, 0], config.world)
    expression = batch['windows'][:, 0, RADIUS, :64]
    points = None
    if c.field.with_points:
        points = head_points(config, frozen['mesh'], batch['shapes'], expression)
    rows = []
    for use in (1, views):
        found = forward(
            variables['params'],
            config,
            variables['constants']['attn_module']['scale'],
            sources[:, :use],
            lambda planes: head.Scene(planes, points, expression),
            transforms,
            focal,
        )
        rows.append((found.image, found.fine[..., :3]))
    return resize(unit[:, 0], config.img_resolution, antialias=True), unit[:, drivers:], rows


def sample_sheet(
    config: ModelConfig, state: TrainState, batch: Mapping[str, np.ndarray], frozen: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, float]]:
    """What the (averaged) networks make of a batch: a row for each person.

    Columns: portraits; driver; result of the first portrait; of all; volume rendering of all.

    Returns:
        the sheet, uint8, and scores ``sample/psnr_one``, ``sample/psnr_all``.
    """
    target, portraits, rows = _sample(
        variables_of(state), frozen, {k: jnp.asarray(v) for k, v in batch.items()}, config=config
    )
    size = config.img_resolution
    columns = [
        *(resize(p, size) for p in jnp.moveaxis(portraits, 1, 0)),
        target,
        rows[0][0],
        rows[1][0],
        resize(rows[1][1], size, 'nearest'),
    ]
    sheet = rearrange(np.stack(columns), 'columns n h w c -> (n h) (columns w) c')
    scores = {}
    for name, (image, _) in zip(('one', 'all'), rows, strict=True):
        error = np.mean((np.clip(np.asarray(image), 0, 1) - np.asarray(target)) ** 2, (1, 2, 3))
        scores[f'sample/psnr_{name}'] = float(np.mean(-10 * np.log10(error)))
    return np.round(np.clip(sheet, 0, 1) * 255).astype(np.uint8), scores
