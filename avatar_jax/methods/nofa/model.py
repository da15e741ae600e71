"""NOFA's networks together: one tree of variables, one way from a picture to an avatar, one way to render it.

Variables are nested dicts, collections first and then the network, as weight files hold them:

    params      / generator, encoder, compensation, deformation
    noise       / generator                constant noise maps of the backbone
    ema_stats   / generator                ``w_avg``, the mean code
    batch_stats / encoder
    constants   / compensation ``gain``; coefficients ``mean``, ``std`` (with ``deformation.standardize``)

An avatar is what depends on the source alone (paper, Figure 2): the style rows, the volume ``V_c + V_m`` as planes, and
the identity coefficients. A frame of it costs the deformation field, the decoder and super-resolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avatar_jax.errors import UserError
from avatar_jax.methods.nofa.compensation import Compensation
from avatar_jax.methods.nofa.config import METHOD, ModelConfig
from avatar_jax.methods.nofa.deformation import DeformationField, backward, condition
from avatar_jax.methods.weight_files import WeightFiles, traced_once
from avatar_jax.models.e4e import E4eEncoder, encoder_input, init_encoder
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator, init_generator
from avatar_jax.render.cameras import frontal_label, unpack_label
from avatar_jax.render.rays import sample_rays
from avatar_jax.render.sampling import RenderDraws
from avatar_jax.types import Avatar, Frames, Portrait, PyTree

NETWORKS = ('generator', 'encoder', 'compensation', 'deformation')
RENDERER = ('decoder', 'superresolution')  # parts of the generator that every frame needs
Variables = Mapping[str, Any]


# --------------------------------------------------------------------------------------------------------- variables


def network(variables: Variables, name: str) -> dict[str, Any]:
    """The variables of one network out of the common tree, as its module takes them."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def with_network(variables: Variables, name: str, own: Variables) -> dict[str, Any]:
    """The common tree with one network's variables replaced."""
    out = {collection: {k: v for k, v in tree.items() if k != name} for collection, tree in variables.items()}
    for collection, values in own.items():
        out.setdefault(collection, {})[name] = values
    return out


def w_avg(variables: Variables) -> jax.Array:
    """[D] the mean code, which the encoder's rows are offsets from (equation 1)."""
    return variables['ema_stats']['generator']['backbone']['mapping']['w_avg']


def compensation_module(config: ModelConfig) -> Compensation:
    """The compensation network in its size for the generator."""
    return Compensation(config.settings.compensation, config.feature_channels, 3 * config.generator.plane_channels)


def init_compensation(config: ModelConfig, key: jax.Array) -> PyTree:
    """Fresh parameters of the compensation network."""
    features = jax.ShapeDtypeStruct((1, *(config.feature_resolution,) * 2, config.feature_channels), jnp.float32)
    image = jax.ShapeDtypeStruct((1, *(config.img_resolution,) * 2, 3), jnp.float32)
    return compensation_module(config).lazy_init(key, features, image)['params']


def init(config: ModelConfig, key: jax.Array, generator: Variables | None = None) -> dict[str, Any]:
    """Fresh variables.

    Args:
        generator: trained variables of the generator; None draws fresh ones.
    """
    keys = jax.random.split(key, 4)
    c = config.settings
    generator = init_generator(config.generator, keys[0]) if generator is None else generator
    variables = with_network({}, 'generator', generator)
    variables = with_network(variables, 'encoder', init_encoder(c.encoder, keys[1]))
    if c.compensation.use:
        own = {'params': init_compensation(config, keys[2]), 'constants': {'gain': jnp.ones(())}}
        variables = with_network(variables, 'compensation', own)
        if c.compensation.gain == 'rms':
            variables['constants']['compensation'] = {'gain': feature_gain(variables, config)}
    deformation = DeformationField(c.deformation).init(keys[3])['params']
    variables = with_network(variables, 'deformation', {'params': deformation})
    if c.deformation.standardize:
        count = c.deformation.num_shape + c.deformation.num_expression
        variables.setdefault('constants', {})['coefficients'] = {'mean': jnp.zeros(count), 'std': jnp.ones(count)}
    return variables


@traced_once
def abstract(config: ModelConfig) -> dict[str, Any]:
    """Names and shapes of the variables, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def check_generator(ours: GeneratorConfig, theirs: GeneratorConfig, source: str = 'generator weights') -> None:
    """Raises ``UserError`` when a generator's weights cannot be used: other planes, rows or sizes."""
    if theirs.rendering.plane_axes != ours.rendering.plane_axes:
        raise UserError(
            f"{source}: its planes are '{theirs.rendering.plane_axes}', the configuration has "
            f"'{ours.rendering.plane_axes}'; set model.generator.rendering.plane_axes to the former"
        )
    if theirs.num_ws != ours.num_ws:
        raise UserError(
            f'{source}: it takes {theirs.num_ws} style rows (planes of {theirs.plane_resolution}), the configuration '
            f'{ours.num_ws} (planes of {ours.plane_resolution}); give a generator with as many layers'
        )
    sizes = ('w_dim', 'img_resolution', 'plane_channels', 'channel_base', 'channel_max', 'decoder_hidden')
    for name in (*sizes, 'decoder_out', 'superresolution', 'sr_channels'):
        if getattr(theirs, name) != getattr(ours, name):
            raise UserError(
                f'{source}: {name} is {getattr(theirs, name)}, the configuration has {getattr(ours, name)}; '
                f'set model.generator.{name} alike'
            )


def feature_gain(variables: Variables, config: ModelConfig) -> jax.Array:
    """One over the root mean square of the backbone's features at the mean code (a scalar)."""
    rows = jnp.broadcast_to(w_avg(variables), (1, config.generator.num_ws, config.generator.w_dim))
    run = jax.jit(lambda generator, rows: canonical(generator, config, rows)[1])
    features = run(network(variables, 'generator'), rows)
    return jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(features)), 1e-12))


def with_mean_code(variables: Variables, config: ModelConfig, key: jax.Array, samples: int = 10_000) -> dict[str, Any]:
    """The variables with the mean code measured anew: the mean of codes of random z, seen from the frontal camera."""
    rendering = config.generator.rendering
    label = frontal_label(rendering.avg_camera_radius, rendering.avg_camera_pivot).reshape(-1)
    z = jax.random.normal(key, (samples, config.generator.z_dim))

    def codes(generator, z):
        labels = jnp.broadcast_to(label, (z.shape[0], 25))
        return TriPlaneGenerator(config.generator).apply(generator, z, labels, method='mapping')[:, 0]

    mean = jax.jit(codes)(network(variables, 'generator'), z).mean(0)
    out = jax.tree.map(lambda x: x, dict(variables))
    out['ema_stats']['generator']['backbone']['mapping']['w_avg'] = mean
    return out


def with_coefficient_statistics(variables: Variables, shapes: np.ndarray, expressions: np.ndarray) -> dict[str, Any]:
    """The variables with means and standard deviations of coefficients [n,80] and [n,64], for ``standardize``."""
    both = [np.asarray(x, np.float64) for x in (shapes, expressions)]
    mean = np.concatenate([x.mean(0) for x in both])
    std = np.concatenate([np.maximum(x.std(0), 1e-3) for x in both])
    found = {'mean': jnp.asarray(mean, jnp.float32), 'std': jnp.asarray(std, jnp.float32)}
    return {**variables, 'constants': {**variables.get('constants', {}), 'coefficients': found}}


WEIGHTS = WeightFiles(METHOD, ModelConfig.from_dict, abstract)
save_model = WEIGHTS.save
load_model = WEIGHTS.load


# ------------------------------------------------------------------------------------------------- source to volume


def encode(
    variables: Variables,
    config: ModelConfig,
    images: jax.Array,
    stage: int | jax.Array | None = None,
    train: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, PyTree]:
    """Source pictures [N,S,S,3] in [-1,1] -> offsets from the mean code [N,L,D], and the encoder's statistics.

    ``stage``, ``train`` and ``axis_name`` are those of ``models.e4e``; the statistics move only with ``train``.
    """
    module, own = E4eEncoder(config.settings.encoder), network(variables, 'encoder')
    x = encoder_input(images, config.settings.encoder.image_size)
    if not train:
        return module.apply(own, x, stage), own['batch_stats']
    rows, moved = module.apply(own, x, stage, True, axis_name, mutable=['batch_stats'])
    return rows, moved['batch_stats']


def style_rows(variables: Variables, config: ModelConfig, images: jax.Array) -> jax.Array:
    """Equation 1: the style rows ``E(I) + w_avg`` [N,L,D] of source pictures [N,S,S,3]."""
    return encode(variables, config, images)[0] + w_avg(variables)


def canonical(generator: Variables, config: ModelConfig, ws: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Style rows [N,L,D] -> the canonical volume V_c as planes [N,3,H,W,C], and the features f [N,H/4,W/4,C'].

    ``generator``: its variables.
    """
    model = TriPlaneGenerator(config.generator)
    return model.apply(generator, ws, config.feature_resolution, method='planes_and_features')


def added(variables: Variables, config: ModelConfig, features: jax.Array, images: jax.Array) -> jax.Array:
    """The compensation volume V_m as planes [N,3,H,W,C], of features f and source pictures [N,S,S,3]."""
    own = network(variables, 'compensation')
    gain = jax.lax.stop_gradient(own['constants']['gain'])
    volume = compensation_module(config).apply({'params': own['params']}, features, images, gain)
    return rearrange(volume, 'n h w (p c) -> n p h w c', p=3)


@flax.struct.dataclass
class Volume:
    """Of N sources: style rows [N,L,D]; the canonical and the added volume [N,3,H,W,C] (None without compensation)."""

    ws: jax.Array
    canonical: jax.Array
    added: jax.Array | None

    @property
    def planes(self) -> jax.Array:
        """``V = V_c + V_m``."""
        return self.canonical if self.added is None else self.canonical + self.added


def volume_of(
    variables: Variables, config: ModelConfig, ws: jax.Array, images: jax.Array, compensate: bool = True
) -> Volume:
    """The volume of style rows [N,L,D] and source pictures [N,S,S,3]; ``compensate`` False leaves V_m out."""
    planes, features = canonical(network(variables, 'generator'), config, ws)
    use = compensate and config.settings.compensation.use
    return Volume(ws, planes, added(variables, config, features, images) if use else None)


# --------------------------------------------------------------------------------------------------------- rendering


@flax.struct.dataclass
class Views:
    """N rendered views; ``image`` [N,S,S,3] is None where super-resolution was not asked for. raw [N,R,R,3]; depth,
    opacity [N,R,R,1]. Not clamped.
    """

    raw: jax.Array
    depth: jax.Array
    opacity: jax.Array
    image: jax.Array | None = None


def deformation_of(
    variables: Variables, config: ModelConfig, shape: jax.Array, expression: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The backward deformation of N pictures, from identity [N,80] and expression [N,64] coefficients."""
    c, params = config.settings.deformation, variables['params']['deformation']
    statistics = variables['constants']['coefficients'] if c.standardize else None
    given = condition(params, c, shape, expression, statistics)
    return backward(params, c, given, config.generator.rendering.box_warp)


def render(
    variables: Variables,
    config: ModelConfig,
    planes: jax.Array,
    ws: jax.Array,
    labels: jax.Array,
    deform: Callable[[jax.Array], jax.Array] | None,
    draws: RenderDraws | None = None,
    sr: bool = True,
) -> Views:
    """Renders volumes as planes [N,3,H,W,C] from cameras [N,25].

    Args:
        ws: [N,L,D], whose last row drives super-resolution.
        deform: ``deformation_of``; None renders the canonical volume (Figure 6). It is evaluated for coarse and fine
            samples, ``rendering.ray_chunk`` rays at a time if that is set.
        draws: jitter of the samples; None renders deterministically.
    """
    generator, model = network(variables, 'generator'), TriPlaneGenerator(config.generator)
    out = model.apply(generator, planes, labels, draws=draws, deform=deform, method='render')
    image = model.apply(generator, out.rgb, out.features, ws, method='superresolve') if sr else None
    return Views(out.rgb, out.depth, out.opacity, image)


def render_pixels(
    variables: Variables,
    config: ModelConfig,
    planes: jax.Array,
    labels: jax.Array,
    pixels: jax.Array,
    size: int,
    deform: Callable[[jax.Array], jax.Array] | None,
    draws: RenderDraws | None = None,
) -> Views:
    """Some pixels [N,M] (row * size + column) of pictures of a size, without super-resolution: maps [N,M,...]."""
    generator, model = network(variables, 'generator'), TriPlaneGenerator(config.generator)
    rays = [jnp.take_along_axis(x, pixels[..., None], 1) for x in sample_rays(*unpack_label(labels), size)]
    out = model.apply(generator, planes, *rays, draws=draws, deform=deform, method='render_rays')
    return Views(out.features[..., :3], out.depth, out.opacity)


def sample_draws(keys: jax.Array, config: ModelConfig, rays: int | None = None) -> RenderDraws:
    """Draws for N views from N keys: each view's do not depend on the others around it. ``rays``: None: all of them."""
    rays = rays or config.generator.neural_rendering_resolution**2
    draws = jax.vmap(lambda k: RenderDraws.from_key(k, config.generator.rendering, 1, rays))(keys)
    return jax.tree.map(lambda x: x[:, 0], draws)


# --------------------------------------------------------------------------------------------------- build, animate


def coefficients_of(portrait: Portrait, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Identity [80] and expression [64] of a portrait; zeros where they were not measured."""
    c = config.settings.deformation
    return tuple(
        jnp.zeros(n) if v is None else jnp.asarray(v, jnp.float32)
        for v, n in ((portrait.shape, c.num_shape), (portrait.expression, c.num_expression))
    )


@partial(jax.jit, static_argnames='config')
def forward_pass(variables: Variables, image: jax.Array, *, config: ModelConfig) -> Volume:
    """Encoder, generator and compensation network on one source picture [S,S,3]; arrays with a leading 1."""
    images = image[None]
    return volume_of(variables, config, style_rows(variables, config, images), images)


def check_portrait(config: ModelConfig, portrait: Portrait) -> None:
    """Raises ``UserError`` when a picture or its coefficients do not fit the model."""
    size = config.img_resolution
    name = portrait.source or 'portrait'
    if tuple(portrait.image.shape) != (size, size, 3):
        raise UserError(
            f'{name}: the picture is {portrait.image.shape[1]}x{portrait.image.shape[0]}, not {size}x{size}'
        )
    if portrait.shape is not None and portrait.basis and portrait.basis != config.basis:
        raise UserError(
            f"{name}: its coefficients belong to the basis '{portrait.basis}', the avatar needs '{config.basis}'"
        )


def make_avatar(
    config: ModelConfig,
    portrait: Portrait,
    volume: Volume,
    weights: str = '',
    renderer: Mapping[str, Any] | None = None,
) -> Avatar:
    """The avatar of one volume (arrays with a leading 1).

    Its identity is ``{'code': [L,D], 'planes': [3,H,W,C], 'shape': [80]}``, and where the generator was tuned
    ``'renderer'``: the parameters of decoder and super-resolution.
    """
    shape, _ = coefficients_of(portrait, config)
    identity = {'code': volume.ws[0], 'planes': volume.planes[0], 'shape': shape}
    if renderer is not None:
        identity['renderer'] = {k: renderer[k] for k in RENDERER}
    return Avatar(
        identity,
        camera=portrait.camera,
        method=METHOD,
        config=config,
        basis=config.basis,
        weights=weights,
        source=portrait.source,
    )


def build(variables: Variables, config: ModelConfig, portrait: Portrait, *, weights: str = '') -> Avatar:
    """The avatar of one portrait in one forward pass (no tuning; see ``methods.nofa.fit``).

    Raises:
        UserError: a picture of another size, or coefficients of another basis.
    """
    check_portrait(config, portrait)
    volume = forward_pass(variables, jnp.asarray(portrait.image), config=config)
    return make_avatar(config, portrait, volume, weights)


def with_renderer(variables: Variables, identity: Mapping[str, Any]) -> Variables:
    """The variables with an avatar's own decoder and super-resolution, if it has them."""
    if 'renderer' not in identity:
        return variables
    params = {**variables['params']['generator'], **identity['renderer']}
    return {**variables, 'params': {**variables['params'], 'generator': params}}


def frame(
    variables: Variables,
    config: ModelConfig,
    identity: Mapping[str, Any],
    prepared: PyTree,
    signals: Mapping[str, jax.Array],
    labels: jax.Array,
    keys: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """N frames of an avatar side by side; a pure function.

    Args:
        prepared: nothing is computed beforehand (the argument is common to all methods).
        signals: ``expression`` [N,64]. labels: cameras [N,25].
        keys: [N] keys that jitter the samples along the rays; None renders deterministically, without flicker.
        sr: False leaves super-resolution out; ``rgb`` is then the raw rendering.
    """
    del prepared
    variables = with_renderer(variables, identity)
    count = labels.shape[0]
    planes, ws, shape = (
        jnp.broadcast_to(identity[k], (count, *identity[k].shape)) for k in ('planes', 'code', 'shape')
    )
    deform = deformation_of(variables, config, shape, signals['expression'])
    draws = None if keys is None else sample_draws(keys, config)
    looking = dataclasses.replace(config, generator=config.generator.for_frames())
    views = render(variables, looking, planes, ws, labels, deform, draws, sr)
    raw = jnp.clip(views.raw, -1, 1)
    return Frames(raw if views.image is None else jnp.clip(views.image, -1, 1), raw, views.depth, views.opacity)
