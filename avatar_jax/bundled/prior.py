"""Supervised warm start of the generator and the controller on procedural heads.

Procedural heads come with everything that adversarial training has to do without: who is shown (the latent that the
person and the light were made from), what the face does, where the camera stands, the mask and the depth. So the
generator learns to render `w + w_x` at the known camera by plain regression, with `w` a linear function of the traits
of the person and the light, and `w_x` the controller's output for the motion window. It takes an hour of one core where
adversarial training takes days, and it leaves the very networks that OTAvatar works on. At the end the mapping network
is fitted to `latent -> w` (`fit_mapping`), which needs no pictures, so that a normal z is a head.

Three kinds of steps. *Points*: as the depth is known, a ray needs no marching; two points on each of many rays say
what is solid, and which colour the surface has. They lay out the heads quickly, but leave densities vague. *Rays*: a
few hundred marched rays per image, no super-resolution, so that densities and colours fit the renderer that will be
used. Most of the budget goes here. *Frames*: whole pictures through the two-pass renderer and the super-resolution
module, which alone learns from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from einops import reduce

from avatar_jax.methods.otavatar.controller import Controller, ControllerConfig
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator
from avatar_jax.options import option
from avatar_jax.render import marching
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group
from avatar_jax.types import PyTree

TRAIT_DIM = 239  # of `data_pipelines.prior_batches.traits`
# Raw density is read as a logit of being solid: 0 is undecided, and hardly seen by the renderer. Downwards it counts in
# units of 6, upwards in units of 24, as it takes about 100 to stop the light within a pixel's width.
EMPTY_SCALE, SOLID_SCALE = 6.0, 24.0
MOTION_GAIN = 8.0  # of the controller's first last layer: motion shall weigh about as much as a few dozen traits


@dataclass(frozen=True)
class PriorConfig:
    """The warm start's options.

    Attributes:
        generator, controller: the networks.
        steps: of all kinds together; the last `frame_steps` are frames, the `ray_steps` before them rays.
        batch, ray_batch, frame_batch: images per step of each kind.
        points: rays per image in a points step; rays: in a rays step.
        coarse, near: samples of a rays step over the whole range and around the known depth; near_std: standard
            deviation of the latter, in world units.
        solid, opacity, depth, density, codes: weights of the solidity, mask, depth, density-smoothness and code-size
            terms (the colour term has weight 1); squared: share of the squared error in the colour term, the rest is
            absolute.
        lr, codes_lr, controller_lr, noise_lr: peak learning rates of generator, traits-to-code matrix, controller and
            noise maps; they rise over `warmup` steps and fall to `final_lr` of the peak. frame_lr: of the frames steps.
        ema: decay of the moving average that is shipped.
        max_norm: gradient clipping of each group.
    """

    generator: GeneratorConfig
    controller: ControllerConfig
    steps: int = option(15000, 'training steps of all three kinds: points, then rays, then frames')
    ray_steps: int = option(11500, 'how many of them are steps of rays')
    frame_steps: int = option(1000, 'how many of them are steps of frames')
    batch: int = option(4, 'heads per step of points')
    ray_batch: int = option(4, 'heads per step of rays')
    frame_batch: int = option(2, 'heads per step of frames')
    points: int = option(1024, 'rays of each head in a step of points, with two points each')
    rays: int = option(512, 'rays of each head in a step of rays')
    coarse: int = 10
    near: int = 6
    near_std: float = 0.02
    squared: float = 0.8
    solid: float = 0.6
    opacity: float = 0.5
    depth: float = 1.5
    density: float = 0.0005
    codes: float = 1e-4
    lr: float = option(1e-2, 'peak learning rate of the generator')
    codes_lr: float = option(2e-4, 'peak learning rate of the matrix from traits to codes')
    controller_lr: float = option(1e-3, 'peak learning rate of the controller')
    noise_lr: float = option(2e-3, 'peak learning rate of the noise maps')
    frame_lr: float = option(3e-3, 'peak learning rate in the steps of frames')
    warmup: int = 100
    final_lr: float = 0.04
    ema: float = option(0.996, 'decay of the moving average of the parameters')
    max_norm: float = 1.0
    seed: int = option(0, 'random seed')


@flax.struct.dataclass
class PriorState:
    """What is trained; the step number and the seed determine everything else.

    Attributes:
        codes: {'weight': [TRAIT_DIM, w_dim]}, which turns traits into w. The average code is the origin.
        generator: its parameters; those of the mapping network stay as they are until `fit_mapping`.
        noise: the generator's constant noise maps, which start from zero and become a layout of the mean head.
        controller: its parameters.
    """

    codes: Group
    generator: Group
    noise: Group
    controller: Group

    def trees(self, average: bool = False) -> dict[str, PyTree]:
        """The parameters of all groups by name; `average`: the moving averages."""
        return {name: getattr(self, name).ema if average else getattr(self, name).params for name in GROUPS}


GROUPS = ('codes', 'generator', 'noise', 'controller')


def init_state(config: PriorConfig) -> tuple[PriorState, PyTree]:
    """Fresh networks. Returns the state and the generator's other constants (the average code)."""
    generator, controller = TriPlaneGenerator(config.generator), Controller(config.controller)
    k_g, k_c, k_w = jax.random.split(jax.random.key(config.seed), 3)
    z, c = jnp.zeros((1, config.generator.z_dim)), jnp.zeros((1, 25)).at[:, 16].set(4.26).at[:, 20].set(4.26)
    variables = jax.jit(generator.init)({'params': k_g, 'noise': k_g}, z, c)
    params_c = jax.jit(controller.init)(k_c, jnp.zeros((1, 27, 70)))['params']
    # OTAvatar's initial gain of 0.02 suits ten small steps per identity; regression from nothing wants unit gain.
    params_c = jax.tree_util.tree_map_with_path(
        lambda path, p: p * 50.0 if path[-1].key == 'weight' and path[0].key != 'direction' else p, params_c
    )
    # The residuals of super-resolution start from zero: its first image is the enlarged raw one.
    # Densities are to become far larger than the logits of colours: their column of the decoder starts larger.
    # All heads start alike: none shall depend on a trait or a motion before the pictures say how.
    first = {
        'affine': jnp.zeros_like,
        'noise_strength': jnp.ones_like,
        'superresolution/torgb': jnp.zeros_like,
        'decoder': lambda p: p.at[:, 0].multiply(8.0),
    }
    params_g = jax.tree_util.tree_map_with_path(
        lambda path, p: first.get(_kind(path), lambda x: x)(p), variables['params']
    )
    matrix, directions = _code_space(config, k_w)
    last = params_c['mapping_Refine'][str(2 * config.controller.mlp_layers)]
    last = last | {'weight': MOTION_GAIN * last['weight']}
    refine = params_c['mapping_Refine'] | {str(2 * config.controller.mlp_layers): last}
    params_c = params_c | {'mapping_Refine': refine, 'direction': {'weight': directions}}
    trees = {
        'codes': {'weight': matrix},
        'generator': params_g,
        'controller': params_c,
        'noise': jax.tree.map(jnp.zeros_like, variables['noise']),
    }
    groups = {k: Group.create(trees[k], make_optimizer(_adam(lr)), ema=True) for k, lr in _rates(config).items()}
    return PriorState(**groups), {k: v for k, v in variables.items() if k not in ('params', 'noise')}


def _code_space(config: PriorConfig, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First matrix [TRAIT_DIM, w_dim] from traits to codes, and first code book [w_dim, directions].

    Identity and motion are added. They start in orthogonal subspaces, so that the one does not look like noise in the
    other.
    """
    width, count = config.generator.w_dim, config.controller.directions
    k_space, k_rows = jax.random.split(key)
    space = jax.random.orthogonal(k_space, width)
    room = width - count
    rows = jax.random.orthogonal(k_rows, max(room, TRAIT_DIM))[:TRAIT_DIM, :room]
    return rows @ space[:, :room].T, space[:, room:]


def _kind(path) -> str:
    names = [p.key for p in path]
    if names[-1] == 'noise_strength':
        return names[-1]
    if names[-2:] == ['affine', 'weight']:
        return 'affine'
    if names == ['decoder', 'net', '2', 'weight']:
        return 'decoder'
    return 'superresolution/torgb' if names[0] == 'superresolution' and names[2:] == ['torgb', 'weight'] else ''


def _rates(config: PriorConfig) -> dict[str, float]:
    return {
        'codes': config.codes_lr,
        'generator': config.lr,
        'noise': config.noise_lr,
        'controller': config.controller_lr,
    }


def _adam(lr: float) -> OptimizerConfig:
    return OptimizerConfig(type='adam', lr=lr, beta1=0.9, beta2=0.99)


def variables_of(trees: dict[str, PyTree], constants: PyTree) -> PyTree:
    """The generator's variables."""
    return {'params': trees['generator'], 'noise': trees['noise'], **constants}


def codes(config: PriorConfig, trees: dict[str, PyTree], batch: dict) -> tuple[jax.Array, jax.Array]:
    """Identity codes `w` [N, num_ws, w_dim] (all rows equal) and motion codes `w_x` of a batch."""
    w = batch['traits'] @ trees['codes']['weight']
    w_x, _ = Controller(config.controller).apply({'params': trees['controller']}, batch['window'])
    return jnp.broadcast_to(w[:, None], w_x.shape), w_x


def points_loss(config: PriorConfig, constants: PyTree, trees, batch: dict, key: jax.Array):
    """Loss of a points step.

    ``batch``: traits [N, TRAIT_DIM], window [N, 27, 70], points [N, 2M, 3], solid [N, 2M] (0..1), and for the first M
    points rgb [N, M, 3] in [-1, 1] and weight [N, M].
    """
    del key
    generator, variables = TriPlaneGenerator(config.generator), variables_of(trees, constants)
    w, w_x = codes(config, trees, batch)
    planes = generator.apply(variables, w + w_x, method='planes')
    colors, density = generator.apply(variables, planes, batch['points'], method='sample_density')
    error = 2 * colors[:, : batch['rgb'].shape[1], :3] - 1 - batch['rgb']
    density = density[..., 0]
    logit = density / jnp.where(density > 0, SOLID_SCALE, EMPTY_SCALE)
    terms = {
        'color': _color(config, error, batch['weight'][..., None]),
        'solid': config.solid * jnp.mean(marching.softplus(logit) - batch['solid'] * logit),
        'codes': config.codes * jnp.mean(w_x**2),
    }
    squared = jnp.sum(batch['weight'][..., None] * error**2) / (3 * jnp.sum(batch['weight']) + 1e-6)
    return sum(terms.values()), terms | {'psnr': -10 * jnp.log10(squared / 4)}


def rays_loss(config: PriorConfig, constants: PyTree, trees, batch: dict, key: jax.Array):
    """Loss of a rays step.

    ``batch``: traits [N, TRAIT_DIM], window [N, 27, 70], origins and directions [N, M, 3], rgb [N, M, 3] in [-1, 1],
    mask [N, M] in [0, 1], depth [N, M] (0 outside), weight [N, M] (importance of the pixel, mean about 1).
    """
    render = config.generator.rendering
    generator = TriPlaneGenerator(config.generator)
    variables = variables_of(trees, constants)
    w, w_x = codes(config, trees, batch)
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
        'codes': config.codes * jnp.mean(w_x**2),
    }
    metrics = terms | {'psnr': -10 * jnp.log10(jnp.mean(error**2) / 4)}
    return sum(terms.values()), metrics


def frames_loss(config: PriorConfig, constants: PyTree, trees, batch: dict, key: jax.Array):
    """Loss of a frames step: ``batch`` has traits, window, label [N, 25], image [N, H, W, 3], weight [N, H, W].

    Only super-resolution learns: a gradient through whole marched images would cost ten times as much.
    """
    generator = TriPlaneGenerator(config.generator)
    variables = variables_of(trees, constants)
    w, w_x = codes(config, trees, batch)
    planes = generator.apply(variables, w + w_x, method='planes')
    out = jax.lax.stop_gradient(generator.apply(variables, planes, batch['label'], key=key, method='render'))
    ws = jax.lax.stop_gradient(w + w_x)
    image = generator.apply(variables, out.rgb, out.features, ws, method='superresolve')
    factor = image.shape[1] // out.rgb.shape[1]
    error, raw_error = image - batch['image'], out.rgb - pooled(batch['image'], factor)
    terms = {'color': _color(config, error, batch['weight'][..., None])}
    metrics = terms | {
        'psnr': -10 * jnp.log10(jnp.mean(error**2) / 4),
        'psnr_raw': -10 * jnp.log10(jnp.mean(raw_error**2) / 4),
    }
    return sum(terms.values()), metrics


def pooled(x: jax.Array, factor: int) -> jax.Array:
    """[N, H, W, C] -> [N, H / factor, W / factor, C]: means of squares of ``factor`` pixels."""
    return reduce(x, 'n (h a) (w b) c -> n h w c', 'mean', a=factor, b=factor)


def _color(config: PriorConfig, error: jax.Array, weight: jax.Array) -> jax.Array:
    squared, absolute = jnp.mean(weight * error**2), jnp.mean(weight * jnp.abs(error))
    return config.squared * 4 * squared + (1 - config.squared) * absolute


def kind_of(config: PriorConfig, step: int) -> str:
    """Which kind of step number ``step`` (from 0) is."""
    left = config.steps - step
    return (
        'frames'
        if left <= config.frame_steps
        else 'rays'
        if left <= config.frame_steps + config.ray_steps
        else 'points'
    )


_LOSSES = {'points': points_loss, 'rays': rays_loss, 'frames': frames_loss}


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(config: PriorConfig, kind: str, state: PriorState, constants: PyTree, batch: dict, step: jax.Array):
    """One update; ``kind`` is 'points', 'rays' or 'frames', ``step`` the number of updates made before."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    frames = kind == 'frames'
    names = ('generator',) if frames else GROUPS

    def loss(trained):
        trees = state.trees() | trained
        if frames:
            rest = {k: v for k, v in state.generator.params.items() if k != 'superresolution'}
            trees['generator'] = rest | trained['generator']
        return _LOSSES[kind](config, constants, trees, batch, key)

    trained = {name: getattr(state, name).params for name in names}
    if frames:
        trained = {'generator': {'superresolution': state.generator.params['superresolution']}}
    grads, metrics = jax.grad(loss, has_aux=True)(trained)
    # As in EG3D's training loop: one overflowing ray must not end the run.
    grads = jax.tree.map(lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5), grads)
    first = config.steps - config.frame_steps
    if frames:
        begun, length = step - first, config.frame_steps
    else:
        begun, length = step, first
    scale = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(begun / length, 0.0, 1.0)))
    scale = scale * jnp.minimum(1.0, (begun + 1) / config.warmup)
    decay = jnp.minimum(config.ema, (begun + 1) / (begun + 10))
    changed = {}
    for name, grad in grads.items():
        group = getattr(state, name)
        lr = config.frame_lr if frames else _rates(config)[name]
        part = _only(group, 'superresolution') if frames else group
        part, stats = part.apply_gradients(grad, make_optimizer(_adam(lr)), lr_scale=scale, max_norm=config.max_norm)
        part = part.update_ema(decay)
        changed[name] = _put_back(group, part) if frames else part
        metrics[f'{name}/grad_norm'] = stats['grad_norm']
    return state.replace(**changed), metrics


def _only(group: Group, name: str) -> Group:
    """The part of a group under one name, its moments included; the count of updates goes along."""
    pick = lambda tree: {name: tree[name]}
    moments = group.opt_state
    return Group(pick(group.params), type(moments)(moments.count, pick(moments.mu), pick(moments.nu)), pick(group.ema))


def _put_back(group: Group, part: Group) -> Group:
    """The inverse of `_only`."""
    old, new = group.opt_state, part.opt_state
    moments = type(old)(new.count, old.mu | new.mu, old.nu | new.nu)
    return Group(group.params | part.params, moments, group.ema | part.ema)


# --------------------------------------------------------------------------------------------- the mapping network


def fit_mapping(
    config: PriorConfig, mapping: PyTree, draw, weight: jax.Array, steps: int = 4000, batch: int = 256, lr: float = 10.0
) -> tuple[PyTree, float]:
    """Fits the mapping network to ``traits @ weight`` on random latents, without pictures.

    Args:
        mapping: its parameters at the start.
        draw: function of a step number: (latents [batch, z_dim], traits [batch, TRAIT_DIM]) of random heads.
        lr: peak learning rate. The network stores its weights 100 times larger than it uses them (multiplier 0.01).

    Returns:
        its parameters, and the share of the codes' variance that it does not explain.
    """
    generator, tx = TriPlaneGenerator(config.generator), make_optimizer(_adam(lr))
    group = Group.create(mapping, tx)

    def loss(mapping, z, target):
        params = {'backbone': {'mapping': mapping}}
        w = generator.apply({'params': params}, z, jnp.zeros((z.shape[0], 25)), method='mapping')[:, 0]
        return jnp.mean((w - target) ** 2) / jnp.mean(target**2)

    @jax.jit
    def update(group, step, z, traits):
        value, grad = jax.value_and_grad(loss)(group.params, z, traits @ weight)
        scale = jnp.minimum(1.0, (step + 1) / 50) * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
        return group.apply_gradients(grad, tx, lr_scale=scale)[0], value

    values = []
    for step in range(steps):
        group, value = update(group, jnp.int32(step), *draw(step))
        values.append(value)
    return group.params, float(jnp.mean(jnp.stack(values[-50:])))
