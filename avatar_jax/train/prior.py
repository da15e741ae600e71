"""Supervised warm start of the generator and the controller on procedural heads.

Procedural heads come with everything that adversarial training has to do without: who is shown (the latent that the
person and the light were made from), what the face does, where the camera stands, the mask and the depth. So the
mapping network learns `latent -> w`, the controller `motion window -> w_x`, and the generator renders `w + w_x` at the
known camera, all by plain regression. It takes minutes where adversarial training takes days, and it leaves the very
networks that OTAvatar works on: a prior that turns a normal z into a head, and a controller over its code book.

Two kinds of steps. *Rays*: a few hundred rays per image at full-image positions, no super-resolution; most of the
budget goes here. *Frames*: whole raw images through the two-pass renderer and the super-resolution module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.methods.otavatar.controller import Controller, ControllerConfig
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator
from avatar_jax.render import marching
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group

PyTree = Any
LATENT_DIM = 200  # identity 192, light 8


def heads_generator() -> GeneratorConfig:
    """The shipped prior's generator: `heads128` with the latent of procedural heads and their camera distances."""
    rendering = {
        'depth_resolution': 18, 'depth_resolution_importance': 18, 'ray_start': 2.3, 'ray_end': 3.3, 'box_warp': 0.8,
        'decoder_lr_mul': 3.0,
    }  # fmt: skip
    # Planes as fine as the rendered image: the box is little larger than what the camera sees.
    return GeneratorConfig.heads128().replace(
        z_dim=LATENT_DIM, plane_resolution=64, channel_base=2048, channel_max=192, rendering=rendering
    )


def heads_controller(generator: GeneratorConfig) -> ControllerConfig:
    """The released controller's shape over the latent code of `generator`."""
    return ControllerConfig(num_ws=generator.num_ws, w_dim=generator.w_dim)


@dataclass(frozen=True)
class PriorConfig:
    """The warm start's options.

    Attributes:
      generator, controller: the networks.
      batch, frame_batch: images per rays step and per frames step.
      rays: rays per image in a rays step; coarse, near: samples over the whole range and around the known depth.
      near_std: standard deviation of the latter, in world units.
      opacity, depth, density, codes: weights of the mask, depth, density-smoothness and code-size terms (the
        colour term has weight 1); squared: share of the squared error in the colour term, the rest is absolute.
      lr, mapping_lr, controller_lr: peak learning rates; they rise over `warmup` steps and fall to `final_lr` of the
        peak. The mapping network stores its weights 100 times larger (learning-rate multiplier 0.01): with the common
        rate it would stay almost random for the few thousand steps of a warm start.
      ema: decay of the moving average that is shipped.
      max_norm: gradient clipping of each group.
    """

    generator: GeneratorConfig = field(default_factory=heads_generator)
    controller: ControllerConfig = field(default_factory=lambda: heads_controller(heads_generator()))
    batch: int = 6
    frame_batch: int = 2
    rays: int = 384
    coarse: int = 12
    near: int = 6
    near_std: float = 0.02
    squared: float = 0.8
    opacity: float = 0.5
    depth: float = 1.5
    density: float = 0.0005
    codes: float = 1e-4
    lr: float = 1e-2
    mapping_lr: float = 0.3
    controller_lr: float = 1e-3
    warmup: int = 100
    final_lr: float = 0.1
    ema: float = 0.996
    max_norm: float = 1.0
    steps: int = 5000
    frame_steps: int = 500
    seed: int = 0


@flax.struct.dataclass
class PriorState:
    """The three groups; the step number and the seed determine everything else."""

    mapping: Group
    generator: Group
    controller: Group

    def params(self, average: bool = False) -> tuple[PyTree, PyTree]:
        """Parameters of the whole generator and of the controller; `average`: the moving averages."""
        trees = [g.ema if average else g.params for g in (self.mapping, self.generator, self.controller)]
        return _join(trees[0], trees[1]), trees[2]


def _split(params: PyTree) -> tuple[PyTree, PyTree]:
    """Generator parameters -> (mapping network, the rest)."""
    rest = params | {'backbone': {'synthesis': params['backbone']['synthesis']}}
    return params['backbone']['mapping'], rest


def _join(mapping: PyTree, rest: PyTree) -> PyTree:
    return rest | {'backbone': rest['backbone'] | {'mapping': mapping}}


def init_state(config: PriorConfig) -> tuple[PriorState, PyTree]:
    """Fresh networks. Returns the state and the generator's constant collections (noise maps, average code)."""
    generator, controller = TriPlaneGenerator(config.generator), Controller(config.controller)
    k_g, k_c = jax.random.split(jax.random.key(config.seed))
    z, c = jnp.zeros((1, config.generator.z_dim)), jnp.zeros((1, 25)).at[:, 16].set(4.26).at[:, 20].set(4.26)
    variables = jax.jit(generator.init)({'params': k_g, 'noise': k_g}, z, c)
    params_c = jax.jit(controller.init)(k_c, jnp.zeros((1, 27, 70)))['params']
    # OTAvatar's initial gain of 0.02 suits ten small steps per identity; regression from nothing wants unit gain.
    params_c = jax.tree_util.tree_map_with_path(
        lambda path, p: p * 50.0 if path[-1].key == 'weight' and path[0].key != 'direction' else p, params_c
    )
    trees = (*_split(variables['params']), params_c)
    groups = [Group.create(p, make_optimizer(_adam(lr)), ema=True) for p, lr in zip(trees, _rates(config), strict=True)]
    return PriorState(*groups), {k: v for k, v in variables.items() if k != 'params'}


def _rates(config: PriorConfig) -> tuple[float, float, float]:
    return config.mapping_lr, config.lr, config.controller_lr


def _adam(lr: float) -> OptimizerConfig:
    return OptimizerConfig(type='adam', lr=lr, beta1=0.9, beta2=0.99)


def codes(config: PriorConfig, params: tuple[PyTree, PyTree], constants: PyTree, batch: dict) -> tuple[jax.Array, ...]:
    """Identity codes `w` [N, num_ws, w_dim] (all rows equal) and motion codes `w_x` of a batch."""
    generator, controller = TriPlaneGenerator(config.generator), Controller(config.controller)
    variables = {'params': params[0], **constants}
    label = jnp.zeros((batch['latent'].shape[0], 25))
    w = generator.apply(variables, batch['latent'], label, method='mapping')
    w_x, _ = controller.apply({'params': params[1]}, batch['window'])
    return w, w_x


def rays_loss(config: PriorConfig, constants: PyTree, params, batch: dict, key: jax.Array):
    """Loss of a rays step.

    ``batch``: latent [N, Z], window [N, 27, 70], origins and directions [N, M, 3], rgb [N, M, 3] in [-1, 1],
    mask [N, M] in [0, 1], depth [N, M] (0 outside), weight [N, M] (importance of the pixel, mean about 1).
    """
    render = config.generator.rendering
    generator = TriPlaneGenerator(config.generator)
    variables = {'params': params[0], **constants}
    w, w_x = codes(config, params, constants, batch)
    planes = generator.apply(variables, w + w_x, method='planes')
    k_far, k_near, k_density, k_step = jax.random.split(key, 4)
    shape = batch['mask'].shape
    stratum = (render.ray_end - render.ray_start) / config.coarse
    grid = render.ray_start + stratum * jnp.arange(config.coarse)
    far = grid + stratum * jax.random.uniform(k_far, (*shape, config.coarse))
    seen = batch['depth'][..., None] > 0
    middle = jnp.where(seen, batch['depth'][..., None], 0.5 * (render.ray_start + render.ray_end))
    spread = jnp.where(seen, config.near_std, 0.15)
    near = middle + spread * jax.random.truncated_normal(k_near, -3, 3, (*shape, config.near))
    depths = jnp.sort(jnp.concatenate([far, near], -1), -1)
    points = batch['origins'][:, :, None] + depths[..., None] * batch['directions'][:, :, None]
    colors, density = generator.apply(variables, planes, points.reshape(shape[0], -1, 3), method='sample_density')
    colors, density = colors.reshape(*depths.shape, -1)[..., :3], density.reshape(depths.shape)
    weights = marching.interval_weights(density, depths)
    opacity = weights.sum(-1)
    rgb = jnp.einsum('nms,nmsk->nmk', marching.sample_weights(weights), colors)
    rgb = marching.to_image_range(rgb, opacity[..., None], render.white_back)
    error = rgb - batch['rgb']
    pixel = batch['weight'][..., None]
    middles = 0.5 * (depths[..., :-1] + depths[..., 1:])
    off_surface = (weights * jnp.abs(middles - batch['depth'][..., None])).sum(-1)
    points = jax.random.uniform(k_density, (shape[0], 256, 3), minval=-0.4, maxval=0.4)
    nearby = points + 0.01 * jax.random.normal(k_step, points.shape)
    _, sigma = generator.apply(variables, planes, jnp.concatenate([points, nearby], 1), method='sample_density')
    terms = {
        'color': _color(config, error, pixel),
        'opacity': config.opacity * jnp.mean((opacity - batch['mask']) ** 2),
        'depth': config.depth * jnp.mean(jnp.where(seen[..., 0] & (batch['mask'] > 0.99), off_surface, 0.0)),
        'density': config.density * jnp.mean(jnp.abs(sigma[:, :256] - sigma[:, 256:])),
        'codes': config.codes * (jnp.mean(w**2) + jnp.mean(w_x**2)),
    }
    metrics = terms | {'psnr': -10 * jnp.log10(jnp.mean(error**2) / 4)}
    return sum(terms.values()), metrics


def frames_loss(config: PriorConfig, constants: PyTree, params, batch: dict, key: jax.Array):
    """Loss of a frames step: ``batch`` has latent, window, label [N, 25], image [N, H, W, 3], weight [N, H, W]."""
    generator = TriPlaneGenerator(config.generator)
    variables = {'params': params[0], **constants}
    w, w_x = codes(config, params, constants, batch)
    out = generator.apply(variables, w + w_x, batch['label'], key=key, method='synthesis')
    raw, image = out['image_raw'], out['image']
    factor = image.shape[1] // raw.shape[1]
    pool = partial(_pool, factor=factor)
    error, raw_error = image - batch['image'], raw - pool(batch['image'])
    terms = {
        'color': _color(config, error, batch['weight'][..., None]),
        'raw': _color(config, raw_error, pool(batch['weight'][..., None])),
        'opacity': config.opacity * jnp.mean((out['opacity'] - pool(batch['mask'][..., None])) ** 2),
        'codes': config.codes * (jnp.mean(w**2) + jnp.mean(w_x**2)),
    }
    metrics = terms | {
        'psnr': -10 * jnp.log10(jnp.mean(error**2) / 4),
        'psnr_raw': -10 * jnp.log10(jnp.mean(raw_error**2) / 4),
    }
    return sum(terms.values()), metrics


def _pool(x: jax.Array, factor: int) -> jax.Array:
    n, h, w, c = x.shape
    return x.reshape(n, h // factor, factor, w // factor, factor, c).mean((2, 4))


def _color(config: PriorConfig, error: jax.Array, weight: jax.Array) -> jax.Array:
    squared, absolute = jnp.mean(weight * error**2), jnp.mean(weight * jnp.abs(error))
    return config.squared * 4 * squared + (1 - config.squared) * absolute


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(config: PriorConfig, kind: str, state: PriorState, constants: PyTree, batch: dict, step: jax.Array):
    """One update; ``kind`` is 'rays' or 'frames', ``step`` the number of updates made before."""
    loss = {'rays': rays_loss, 'frames': frames_loss}[kind]
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    grads, metrics = jax.grad(lambda p: loss(config, constants, p, batch, key), has_aux=True)(state.params())
    # As in EG3D's training loop: one overflowing ray must not end the run.
    grads = jax.tree.map(lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5), grads)
    progress = jnp.clip(step / config.steps, 0.0, 1.0)
    scale = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    scale = scale * jnp.minimum(1.0, (step + 1) / config.warmup)
    groups = []
    names = ('mapping', 'generator', 'controller')
    for name, grad, lr in zip(names, (*_split(grads[0]), grads[1]), _rates(config), strict=True):
        group, stats = getattr(state, name).apply_gradients(
            grad, make_optimizer(_adam(lr)), lr_scale=scale, max_norm=config.max_norm
        )
        groups.append(group.update_ema(jnp.minimum(config.ema, (step + 1) / (step + 10))))
        metrics[f'{name}/grad_norm'] = stats['grad_norm']
    return PriorState(*groups), metrics
