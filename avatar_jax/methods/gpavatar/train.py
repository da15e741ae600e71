"""Training of GPAvatar: one step on sets of frames, the parameter groups, sample pictures, the run's configuration.

Every element of a batch is one driver frame and some portraits of the same person. The portraits are encoded and fused,
the head is rendered with the driver's expression from the driver's camera, and compared with the driver's picture.
``launch/train_gpavatar.py`` puts the step into ``train.loop.fit``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.windows import RADIUS
from avatar_jax.methods.gpavatar import cameras, head, render
from avatar_jax.methods.gpavatar.config import METHOD, ModelConfig
from avatar_jax.methods.gpavatar.losses import distance_of, losses, total
from avatar_jax.methods.gpavatar.mesh import NUM_SHAPE, head_points
from avatar_jax.methods.gpavatar.model import (
    Views,
    canonical,
    coefficients_of,
    encode,
    fuse,
    noise_of,
    render_views,
)
from avatar_jax.ops.resize import resize
from avatar_jax.parallel import mean_over_devices, sample_keys
from avatar_jax.train.loop import LoopConfig
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from avatar_jax.train.state import Group, TrainState, step_key

PyTree = Any
SLOW = ('style_mlp', 'final_linear')
BOX_SCALE = 1.25  # of the landmarks' mean extent: the side of the face box


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        seed: decides initial weights, data order and all random draws.
        model: networks and method; ``model.method.train`` has length, batch and optimizer.
        data: the clips. output: logs, samples, checkpoints.
        init: weight file to start from; '' starts from fresh networks.
        perception: 'alexnet=FILE' for the perceptual loss.
        parallel: 'pmap', 'shard_map' or 'single'.
        method: says to ``avatar-jax train`` whose configuration this is.
    """

    method: str = METHOD
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ClipsConfig = field(default_factory=ClipsConfig)
    output: PeopleOutput = field(default_factory=PeopleOutput)
    init: str = ''
    perception: tuple[str, ...] = ()
    parallel: str = 'pmap'

    # What a resumed run may change.
    MAY_DIFFER = ('output.*', 'data.num_threads', 'data.prefetch', 'data.in_memory', 'parallel',
                  'model.method.train.iterations')  # fmt: skip

    def __post_init__(self):
        if self.method != METHOD:
            raise UserError(f'method: {self.method!r}; this configuration is of {METHOD!r}')

    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return self.output.loop(self.model.method.train.iterations)


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


def init_state(config: ModelConfig, variables: Mapping[str, Any]) -> TrainState:
    """A state before the first step: groups ``main`` and ``slow``; ``extra`` holds what is not trained."""
    train = config.method.train
    tx = make_optimizer(train.optimizer)
    parts = zip(('main', 'slow'), split_slow(variables['params']), strict=True)
    groups = {name: Group.create(part, tx, ema=train.ema > 0) for name, part in parts}
    return TrainState.create(groups, jax.tree.map(jnp.asarray, {k: variables[k] for k in ('noise', 'constants')}))


def variables_of(state: TrainState, averaged: bool = True) -> dict[str, Any]:
    """The model's variables (without the mesh), with averaged parameters if there are some."""
    parts = [g.inference_params if averaged else g.params for g in (state.groups['main'], state.groups['slow'])]
    return {'params': join(*parts), **state.extra}


def learning_rate_scale(config: ModelConfig, step: jax.Array) -> jax.Array:
    """gamma to the number of milestones that have been reached before this step."""
    train, step = config.method.train, jnp.asarray(step)
    passed = sum(((step >= m).astype(jnp.float32) for m in train.milestones), jnp.zeros(()))
    return jnp.asarray(train.gamma, jnp.float32) ** passed


def update(config: ModelConfig, state: TrainState, grads: PyTree) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimizer for both groups; counts the step."""
    train = config.method.train
    tx, scale = make_optimizer(train.optimizer), learning_rate_scale(config, state.step)
    groups, metrics = {}, {}
    for name, part, factor in zip(('main', 'slow'), split_slow(grads), (1.0, train.slow), strict=True):
        group, found = state.groups[name].apply_gradients(part, tx, lr_scale=scale * factor)
        groups[name] = group.update_ema(train.ema) if train.ema else group
        metrics |= {f'{name}/{k}': v for k, v in found.items()}
    return state.with_groups(**groups).replace(step=state.step + 1), metrics


# -------------------------------------------------------------------------------------------------------------- step


def forward(params: PyTree, config: ModelConfig, scale: jax.Array, sources: jax.Array, scene: Callable[[jax.Array], head.Scene],
            transforms: jax.Array, focal: jax.Array, *, single: jax.Array | bool = False,
            draws: render.Draws | None = None, encoder_noise: Sequence[jax.Array] | None = None,
            noise: Sequence[jax.Array] | None = None) -> Views:  # fmt: skip
    """Portraits to rendered views.

    Args:
        sources: [B,V,S,S,3] canonical pictures in [0,1].
        scene: planes [B,3,h,w,C] -> the scene (with the driver's points or expression).
        single: use the first portrait only.
        encoder_noise: for B*V pictures, portraits fastest. noise: of super-resolution.
    """
    batch, views = sources.shape[:2]
    planes = encode(params, config, sources.reshape(batch * views, *sources.shape[2:]), encoder_noise)
    planes = planes.reshape(batch, views, *planes.shape[1:])
    fused = fuse(params, scale, config, planes)
    if views > 1:
        fused = jnp.where(single, planes[:, 0], fused)
    return render_views(params, config, scene(fused), transforms, focal, draws, noise)


def loss_terms(config: ModelConfig, views: Views, target: jax.Array, boxes: jax.Array | None,
               alexnet: PyTree | None) -> dict[str, jax.Array]:  # fmt: skip
    """Weighted terms of views against pictures [B,S,S,3] in [0,1]."""
    images = {'coarse': views.coarse[..., :3], 'fine': views.fine[..., :3], 'image': views.image}
    loss = config.method.loss
    return losses(loss, distance_of(loss, alexnet), images, target, views.coarse_opacities, boxes)


def train_step(config: ModelConfig, seed: int, state: TrainState, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any],
               axis_name: str | None = None) -> tuple[TrainState, dict[str, jax.Array]]:  # fmt: skip
    """One step.

    Args:
        config, seed: static.
        batch: this device's share: ``images`` [B,1+V,H,W,3] in [-1,1], the driver first, ``labels`` [B,1+V,25],
            ``windows`` [B,1+V,27,70], ``warps`` [B,V,8] of the portraits, ``boxes`` [B,4] of the driver's face,
            ``shapes`` [B,S] of the heads.
        frozen: ``mesh``, and ``alexnet`` or None.
    """
    c, train = config.method, config.method.train
    count, views = batch['images'].shape[0], batch['images'].shape[1] - 1
    key = step_key(seed, state.step)
    single = jax.random.bernoulli(jax.random.fold_in(key, 1), train.drop_sources)
    keys = sample_keys(jax.random.fold_in(key, 2), count, axis_name)

    unit = (batch['images'] + 1) * (255 / (2 * train.divisor))
    target = resize(unit[:, 0], config.img_resolution, antialias=True)
    sources = resize(unit[:, 1:], config.image_size, antialias=True)
    flat = sources.reshape(count * views, *sources.shape[2:])
    sources = canonical(config, flat, batch['warps'].reshape(-1, 8)).reshape(sources.shape)
    transforms, focal = cameras.camera_of_label(batch['labels'][:, 0], config.world)
    expression = batch['windows'][:, 0, RADIUS, :64]
    points = None
    if c.field.kind == 'points':
        points = head_points(config, frozen['mesh'], batch['shapes'], expression)
    draws = jax.vmap(lambda k: render.Draws.from_key(k, 1, config.raw_size**2, c.samples))(keys)
    draws = jax.tree.map(lambda x: x[:, 0], draws)
    variables = {'noise': state.extra['noise']}

    def noises(name, keys):
        if c.training_noise != 'random':
            return noise_of(variables, config, name, c.training_noise, len(keys), None)
        one = jax.vmap(lambda k: noise_of(variables, config, name, 'random', 1, k))(keys)
        return [x[:, 0] for x in one]

    first = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 1), views))(keys).reshape(-1)
    second = jax.vmap(lambda k: jax.random.fold_in(k, 2))(keys)

    def loss(params):
        found = forward(params, config, state.extra['constants']['attn_module']['scale'], sources,
                        lambda planes: head.Scene(planes, points, expression), transforms, focal, single=single,
                        draws=draws, encoder_noise=noises('style_tplane', first),
                        noise=noises('up_renderer', second))  # fmt: skip
        terms = loss_terms(config, found, target, batch.get('boxes'), frozen['alexnet'])
        error = jnp.mean((found.image - target) ** 2)
        return total(terms), {**terms, 'mse': error}

    params = join(state.groups['main'].params, state.groups['slow'].params)
    (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(params)
    value, terms, grads = mean_over_devices((value, terms, grads), axis_name)
    psnr = -10 * jnp.log10(jnp.maximum(terms.pop('mse'), 1e-10))
    state, metrics = update(config, state, grads)
    return state, {'loss': value, 'psnr': psnr, **terms, **metrics}


# -------------------------------------------------------------------------------------------------------------- data


def with_host_arrays(config: ModelConfig, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch of frames (``data_pipelines.sets``) with what is computed on the host: warps and face boxes."""
    out = {k: batch[k] for k in ('images', 'labels', 'windows')}
    out['warps'] = coefficients_of(config, batch['labels'][:, 1:])
    size, own = NUM_SHAPE[config.basis], config.shape == 'own'
    out['shapes'] = batch['identity'][:, :size] if own else np.zeros((len(batch['images']), size), np.float32)
    out['boxes'] = face_boxes(batch['landmarks'][:, 0], batch['images'].shape[2])
    return out


def face_boxes(landmarks: np.ndarray, size: int) -> np.ndarray:
    """[B,4] square around landmarks [B,68,2] (pixels of a picture of this size), relative to it."""
    low, high = landmarks.min(1), landmarks.max(1)
    middle, side = (low + high) / 2, (BOX_SCALE * (high - low).mean(1, keepdims=True))
    return (np.concatenate([middle - side / 2, middle + side / 2], 1) / size).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- samples


@partial(jax.jit, static_argnames='config')
def _sample(variables, frozen, batch, *, config):
    c = config.method
    count, views = batch['images'].shape[0], batch['images'].shape[1] - 1
    unit = (batch['images'] + 1) / 2
    sources = resize(unit[:, 1:], config.image_size, antialias=True)
    flat = canonical(config, sources.reshape(count * views, *sources.shape[2:]), batch['warps'].reshape(-1, 8))
    sources = flat.reshape(sources.shape)
    transforms, focal = cameras.camera_of_label(batch['labels'][:, 0], config.world)
    expression = batch['windows'][:, 0, RADIUS, :64]
    points = None
    if c.field.kind == 'points':
        points = head_points(config, frozen['mesh'], batch['shapes'], expression)
    rows = []
    for use in (1, views):
        found = forward(variables['params'], config, variables['constants']['attn_module']['scale'], sources[:, :use],
                        lambda planes: head.Scene(planes, points, expression), transforms, focal)  # fmt: skip
        rows.append((found.image, found.fine[..., :3]))
    return resize(unit[:, 0], config.img_resolution, antialias=True), unit[:, 1:], rows


def sample_sheet(config: ModelConfig, state: TrainState, batch: Mapping[str, np.ndarray],
                 frozen: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, float]]:  # fmt: skip
    """What the (averaged) networks make of a batch: a row for each person.

    Columns: portraits; driver; result of the first portrait; of all; volume rendering of all.

    Returns:
        the sheet, uint8, and scores ``sample/psnr_one``, ``sample/psnr_all``.
    """
    target, portraits, rows = _sample(variables_of(state), frozen, {k: jnp.asarray(v) for k, v in batch.items()}, config=config)
    size = config.img_resolution
    columns = [*(resize(p, size) for p in jnp.moveaxis(portraits, 1, 0)), target, rows[0][0], rows[1][0],
               resize(rows[1][1], size, 'nearest')]  # fmt: skip
    sheet = np.concatenate([np.concatenate(list(np.asarray(c)), 0) for c in columns], 1)
    scores = {}
    for name, (image, _) in zip(('one', 'all'), rows, strict=True):
        error = np.mean((np.clip(np.asarray(image), 0, 1) - np.asarray(target)) ** 2, (1, 2, 3))
        scores[f'sample/psnr_{name}'] = float(np.mean(-10 * np.log10(error)))
    return np.round(np.clip(sheet, 0, 1) * 255).astype(np.uint8), scores
