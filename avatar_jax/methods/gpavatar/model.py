"""GPAvatar's networks together: an avatar in one forward pass of its portraits, and its frames.

Variables are nested dicts, collections first, as weight files hold them (see ``release``): ``params``, ``noise``,
``constants``; with imported weights also ``perception`` and ``unused``. ``load_model`` adds ``mesh``, the head model
that moves the points, which no weight file contains.

``build`` encodes portraits one by one and fuses their tri-planes; they are kept in the avatar. ``animate`` computes
only what depends on motion and camera. Pictures are in [-1,1] outside and in [0,1] inside this package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct

from avatar_jax.errors import UserError
from avatar_jax.methods.gpavatar import cameras, fusion, head, render
from avatar_jax.methods.gpavatar.config import METHOD, ModelConfig
from avatar_jax.methods.gpavatar.front import cameras_of, on_front
from avatar_jax.methods.gpavatar.inputs import warp, warp_coefficients
from avatar_jax.methods.gpavatar.mesh import head_points, load_mesh, shape_of
from avatar_jax.methods.weight_files import traced_once
from avatar_jax.models import host_draws, styleunet
from avatar_jax.models.styleunet import StyleUNet
from avatar_jax.ops.resize import resize
from avatar_jax.parallel import as_arrays
from avatar_jax.types import Avatar, Camera, Frames, Portrait, PyTree

if TYPE_CHECKING:
    from avatar_jax.faces.flame import FLAME

NETS = {'style_tplane': 'encoder', 'up_renderer': 'superresolution'}
MAX_PORTRAITS = 1000
PICTURE_GAIN = 6.0  # of a picture in a plane: the mean of three planes then spans about -1..1

# ---------------------------------------------------------------------------------------------------------- variables


def init(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh variables (no mesh)."""
    keys = iter(jax.random.split(key, 7))
    c, params, noise = config.settings, {}, {}
    for name, part in NETS.items():
        sizes = getattr(config, part)
        params[name] = styleunet.init_params(next(keys), sizes)
        if c.train.first == 'he':
            params[name] = styleunet.keep_variance(params[name])
        if config.sr_skip if name == 'up_renderer' else config.plane_skip and c.train.first == 'he':
            params[name] = styleunet.silence(params[name])
        noise[name] = {'stylegan_decoder': {'noises': styleunet.init_noise(next(keys), sizes)}}
    params['nerf_mlp'] = head.init_head(c.head, c.field, next(keys))
    if c.train.first == 'he':
        params['nerf_mlp'] = head.keep_variance(params['nerf_mlp'])
    scale = head.FASTER if c.train.first == 'he' else 1.0
    attention = fusion.init_fusion(c.fusion, c.head.plane_channels, next(keys))
    if c.train.first == 'he':
        attention = fusion.keep_variance(attention, c.fusion)
    if attention:
        params['attn_module'] = attention
        params['query_style_tplane'] = host_draws.normal(next(keys), config.plane_shape, scale)
    constants = {'attn_module': {'scale': jnp.full((1,), c.head.plane_channels**-0.5)}}
    return {'params': params, 'noise': noise, 'constants': constants}


def with_coefficients(variables: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Networks whose field knows the points alone, as such of the kind 'both' that do not heed the coefficients yet."""
    field, params = config.settings.field, dict(variables['params'])
    querier = {
        **params['nerf_mlp']['points_querier'],
        'expression_layer': {
            'weight': jnp.zeros((field.expression_dim, field.feature_dim)),
            'bias': jnp.zeros(field.feature_dim),
        },
    }
    params['nerf_mlp'] = {**params['nerf_mlp'], 'points_querier': querier}
    return {**variables, 'params': params}, config.with_method(field__kind='both')


@traced_once
def abstract(config: ModelConfig) -> dict[str, Any]:
    """Names and shapes of the variables, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


OWN = ('params', 'noise', 'constants')


def save_model(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    config: ModelConfig,
    provenance: Mapping[str, Any],
    storage: str = 'float32',
) -> str:
    """Writes a weight file of this method (without mesh); returns its SHA-256."""
    from avatar_jax.io.weights import check_tree, save_weights

    variables = {k: v for k, v in variables.items() if k != 'mesh'}
    check_tree(path, {k: variables[k] for k in OWN}, abstract(config))
    return save_weights(path, variables, method=METHOD, config=config.to_dict(), provenance=provenance, storage=storage)


def load_model(
    path: str | os.PathLike, flame: FLAME | str | os.PathLike | None = None
) -> tuple[dict[str, Any], ModelConfig, str, dict[str, Any]]:
    """Reads a weight file of this method: (variables with the mesh, configuration, SHA-256, provenance).

    Args:
        flame: FLAME or its file, for weights that were trained with it; None looks among the optional files.

    Raises:
        UserError: missing, damaged or foreign file; weights that do not fit their configuration; no head model.
    """
    from avatar_jax.io.weights import check_tree, load_weights

    weights = load_weights(path, method=METHOD)
    config = ModelConfig.from_dict(weights.config)
    check_tree(path, {k: v for k, v in weights.variables.items() if k in OWN}, abstract(config))
    variables = as_arrays(weights.variables)
    return {**variables, 'mesh': load_mesh(config, flame)}, config, weights.sha256, weights.provenance


# ------------------------------------------------------------------------------------------------------------ networks


def noise_of(
    variables: Mapping[str, Any], config: ModelConfig, name: str, kind: str, batch: int, key: jax.Array | None
) -> list[jax.Array] | None:
    """Noise maps for one call of a network (``style_tplane`` or ``up_renderer``); None adds none."""
    sizes = getattr(config, NETS[name])
    if kind == 'stored':
        return styleunet.stored_noise(variables['noise'][name]['stylegan_decoder']['noises'], sizes)
    if kind == 'random' and key is not None:
        return styleunet.draw_noise(key, sizes, batch)
    return None


def encode(
    params: PyTree, config: ModelConfig, images: jax.Array, noise: Sequence[jax.Array] | None = None
) -> jax.Array:
    """Canonical pictures [N,H,W,3 or 4] in [0,1] -> tri-planes [N,3,h,w,C]; rows of the planes grow upwards.

    The fourth channel, of ``canonical``, is no input of the network; ``plane_skip`` shows it to the head.
    """
    images = images[:, ::-1]
    found = StyleUNet(config.encoder).apply({'params': params['style_tplane']}, images[..., :3], noise)
    planes, height, width, _ = config.plane_shape
    found = rearrange(found, 'n h w (p c) -> n p h w c', p=planes)
    if not config.plane_skip:
        return found
    shown = PICTURE_GAIN * (resize(images, (height, width), antialias=True) - 0.5)
    return found.at[:, 0, ..., : shown.shape[-1]].add(shown)


def fuse(params: PyTree, scale: jax.Array, config: ModelConfig, planes: jax.Array) -> jax.Array:
    """Planes of V portraits [B,V,3,h,w,C] -> [B,3,h,w,C]."""
    kind = config.settings.fusion
    return fusion.fuse(params.get('attn_module', {}), params.get('query_style_tplane'), planes, scale, kind)


@struct.dataclass
class Views:
    """N rendered views with values in [0,1] (not clamped): ``coarse``, ``fine`` [N,R,R,O] whose first three channels
    are RGB, ``image`` [N,S,S,3] or None, ``depth``, ``opacity`` [N,R,R,1], ``coarse_opacities`` [N,R*R,samples]."""

    coarse: jax.Array
    fine: jax.Array
    depth: jax.Array
    opacity: jax.Array
    coarse_opacities: jax.Array
    image: jax.Array | None = None


def render_views(
    params: PyTree,
    config: ModelConfig,
    scene: head.Scene,
    transforms: jax.Array,
    focal: jax.Array,
    draws: render.Draws | None = None,
    noise: Sequence[jax.Array] | None = None,
    sr: bool = True,
) -> Views:
    """Renders N scenes from N cameras [N,3,4] with focal lengths [] or [N].

    Args:
        draws: random places of the samples, for training. noise: of super-resolution.
        sr: also run super-resolution (static).
    """
    size = config.raw_size
    found = render_rays(params, config, scene, *cameras.rays(transforms, focal, size, size), draws)
    coarse, fine, depth, opacity = (
        render.to_image(x, size, size)
        for x in (found.coarse, found.fine, found.distance[..., None], found.opacity[..., None])
    )
    image = superresolve(params, config, fine, noise) if sr else None
    return Views(coarse, fine, depth, opacity, found.coarse_opacities, image)


def render_rays(
    params: PyTree,
    config: ModelConfig,
    scene: head.Scene,
    origins: jax.Array,
    directions: jax.Array,
    draws: render.Draws | None = None,
    more: jax.Array | None = None,
) -> render.Rendered:
    """Renders rays [N,M,3] through N scenes, without super-resolution.

    Args:
        draws: as in ``render_views``. more: [N,M,K] depths that take the place of K of the fine samples.
    """
    c = config.settings
    fine = c.fine_samples - (0 if more is None else more.shape[-1])

    def field(places, directions):
        return head.query(params['nerf_mlp'], c.head, c.field, scene, places, directions, c.ray_chunk, c.density)

    return render.render(field, origins, directions, c.samples, fine, draws, c.background, density=c.density, more=more)


def superresolve(
    params: PyTree, config: ModelConfig, features: jax.Array, noise: Sequence[jax.Array] | None = None
) -> jax.Array:
    """Rendered features [N,R,R,O] -> pictures [N,S,S,3] in (-0.001, 1.001); with ``sr_skip`` they may be beyond."""
    found = StyleUNet(config.superresolution).apply({'params': params['up_renderer']}, features, noise)
    return found - 0.5 + resize(features[..., :3], config.img_resolution) if config.sr_skip else found


# ------------------------------------------------------------------------------------------------------- build, frames


def canonical(
    config: ModelConfig, images: jax.Array, views: jax.Array | None, front: jax.Array | None = None
) -> jax.Array:
    """Pictures [N,S,S,3] in [0,1] as the encoder wants them, brought to the canonical frame.

    Args:
        views: of ``views_of``. front: of ``load_mesh``, with ``warp_surface='head'``; there is a fourth channel then.
    """
    c = config.settings
    if not c.warp:
        return images
    return (
        warp(images, views, c.background, c.warp_border)
        if c.warp_surface == 'plane'
        else on_front(images, views, front)
    )


def views_of(config: ModelConfig, labels: np.ndarray) -> np.ndarray:
    """What ``canonical`` has to know of pictures' camera labels [...,25], on the host: [...,8] homographies into the
    canonical frame, or [...,13] cameras with ``warp_surface='head'``."""
    transforms, focal = cameras.camera_of_label(np.asarray(labels, np.float32), config.world)
    if config.settings.warp_surface == 'head':
        return cameras_of(transforms, focal)
    return warp_coefficients(transforms, focal, config.image_size, config.settings.warp_corners)


@partial(jax.jit, static_argnames='config')
def _add_portrait(variables, front, state, image, view, key, *, config):
    """One more portrait [S,S,3] in [-1,1] in the fusion; also what its tri-planes are alone."""
    c, params = config.settings, variables['params']
    unit = jnp.clip((resize(image, config.image_size, antialias=True) + 1) / 2, 0, 1)[None]
    noise = noise_of(variables, config, 'style_tplane', c.noise, 1, key)
    planes = encode(params, config, canonical(config, unit, view[None], front), noise)[0]
    scale = variables['constants']['attn_module']['scale']
    added = state.add(params.get('attn_module', {}), params.get('query_style_tplane'), planes, scale, c.fusion)
    return added, planes


def build(
    variables: Mapping[str, Any],
    config: ModelConfig,
    portrait: Portrait | Sequence[Portrait],
    *,
    key: jax.Array | None = None,
    weights: str = '',
) -> Avatar:
    """The avatar of one person from any number of portraits, in one forward pass of each.

    Portraits are encoded one after the other and fused as they come: memory does not grow with their number.

    Args:
        portrait: one, or several of the same person.
        key: draws the noise of ``noise='random'``; without it there is none. weights: SHA-256 of the weights, stored
            in the avatar.

    Returns:
        ``Avatar`` whose identity is ``{'planes': [3,H,W,C], 'shape': [S]}``.

    Raises:
        UserError: no portrait, or shape coefficients of another head model.
    """
    portraits = [portrait] if isinstance(portrait, Portrait) else list(portrait)
    if not portraits:
        raise UserError('portraits: none given; an avatar needs at least one picture')
    if len(portraits) > MAX_PORTRAITS:
        raise UserError(f'portraits: {len(portraits)} given; use at most {MAX_PORTRAITS}')
    shape = shape_of(config, [p.shape if config.shape == 'own' else None for p in portraits])
    networks, front = (
        {k: variables[k] for k in OWN},
        variables['mesh'].get('front'),
    )  # nothing that inference does not read
    state, planes = fusion.FusionState.start(config.plane_shape), None
    for k, one in enumerate(portraits):
        view = jnp.asarray(views_of(config, np.asarray(one.camera.label)))
        step_key = None if key is None else jax.random.fold_in(key, k)
        state, planes = _add_portrait(networks, front, state, jnp.asarray(one.image), view, step_key, config=config)
    planes = planes if len(portraits) == 1 else state.result(config.settings.fusion)
    source = ', '.join(p.source for p in portraits[:8] if p.source) + (', ...' if len(portraits) > 8 else '')
    return Avatar(
        {'planes': planes, 'shape': jnp.asarray(shape)},
        camera=Camera.from_label(np.asarray(portraits[0].camera.label)),
        method=METHOD,
        config=config,
        basis=config.basis,
        weights=weights,
        source=source,
    )


def views(
    variables: Mapping[str, Any],
    config: ModelConfig,
    identity: Mapping[str, jax.Array],
    expression: jax.Array,
    labels: jax.Array,
    noise: Sequence[jax.Array] | None = None,
    sr: bool = True,
) -> Views:
    """N views side by side: all that depends on expressions [N,64] and cameras [N,25]; for ``jax.export``."""
    c, count = config.settings, expression.shape[0]
    transforms, focal = cameras.camera_of_label(labels, config.world)
    planes = jnp.broadcast_to(identity['planes'], (count, *identity['planes'].shape))
    points = head_points(config, variables['mesh'], identity['shape'], expression) if c.field.with_points else None
    scene = head.Scene(planes, points, expression)
    return render_views(variables['params'], config, scene, transforms, focal, noise=noise, sr=sr)


def frame(
    variables: Mapping[str, Any],
    config: ModelConfig,
    identity: Mapping[str, jax.Array],
    prepared: None,
    signals: Mapping[str, jax.Array],
    labels: jax.Array,
    keys: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """N frames side by side; a pure function (``config`` and ``sr`` static under ``jit``).

    Args:
        identity: ``{'planes': [3,H,W,C], 'shape': [S]}``. prepared: nothing.
        signals: ``expression`` [N,64] of the driver. labels: [N,25] cameras.
        keys: [N], draw the noise of ``noise='random'``; without them there is none, and no flicker.
        sr: False leaves super-resolution out; ``rgb`` is then the raw rendering.

    Returns:
        ``Frames`` with rgb and raw limited to [-1,1].
    """
    del prepared
    kind = config.settings.noise
    if keys is None or kind != 'random':
        noise = noise_of(variables, config, 'up_renderer', kind, labels.shape[0], None)
    else:  # each frame's own, whatever is computed beside it
        each = jax.vmap(lambda k: noise_of(variables, config, 'up_renderer', kind, 1, k))(keys)
        noise = [x[:, 0] for x in each]
    found = views(variables, config, identity, signals['expression'], labels, noise, sr)
    raw = jnp.clip(found.fine[..., :3] * 2 - 1, -1, 1)
    rgb = raw if found.image is None else jnp.clip(found.image * 2 - 1, -1, 1)
    return Frames(rgb, raw, found.depth, found.opacity)
