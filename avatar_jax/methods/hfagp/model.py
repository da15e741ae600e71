"""HFA-GP's networks together: one tree of variables, one configuration, one way to render.

    params    / basis     / NAME / bases [k, L*d], delta [L*d]   NAME: 'shared', or a driver where each has its own
              / encoder   / DRIVER / ...
              / generator / ...
    noise, ema_stats / generator

A driver's *signal* (``SIGNALS``) gives the weights of the basis, these the W+ code, and that a picture from any camera.
The identity of an avatar is everything that one video taught: basis, encoders and, after the second stage, the tuned
generator. All functions are pure and take a static configuration, so they pass through ``jit``, ``vmap`` and ``grad``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.methods.hfagp.basis import checked_directions, combine, directions, init_basis
from avatar_jax.methods.hfagp.cameras import front_label
from avatar_jax.methods.hfagp.config import METHOD, ModelConfig
from avatar_jax.methods.hfagp.encoders import (
    ATTENDED,
    SOUND_WINDOW,
    CoefficientEncoder,
    PictureEncoder,
    SoundEncoder,
    sound_neighbours,
)
from avatar_jax.methods.weight_files import WeightFiles, traced_once
from avatar_jax.models.triplane import TriPlaneGenerator, init_generator
from avatar_jax.render.sampling import RenderDraws
from avatar_jax.types import Array, Avatar, Camera, Frames

if TYPE_CHECKING:
    from jaxtyping import Float

SHARED = 'shared'
PREVIEW_WEIGHT = {'picture': 10.0, 'coefficients': 5.0, 'sound': 5.0}


# --------------------------------------------------------------------------------------------------------- variables


def basis_name(config: ModelConfig, driver: str) -> str:
    """Where the basis of a driver is: 'shared' or the driver itself."""
    return SHARED if config.settings.basis.shared else driver


def encoder_of(config: ModelConfig, driver: str) -> PictureEncoder | CoefficientEncoder | SoundEncoder:
    """The encoder module of a driver."""
    e, k = config.settings.encoder, config.settings.basis.size
    check_driver(config, driver)
    if driver == 'picture':
        return PictureEncoder(e.picture_size, k, e.width, e.trunk())
    if driver == 'coefficients':
        return CoefficientEncoder(k, e.width)
    return SoundEncoder(k, e.width, e.sound_code, e.sound_first)


def check_driver(config: ModelConfig, driver: str) -> None:
    """``UserError`` when the model cannot be driven in this way."""
    if driver not in config.settings.drivers:
        raise UserError(
            f'driver {driver!r}: this avatar was trained for {", ".join(config.settings.drivers)}; use one of them or '
            'train it with this driver'
        )


def signal_shape(config: ModelConfig, driver: str) -> tuple[int, ...]:
    """Shape of one frame's signal of a driver."""
    e = config.settings.encoder
    return {
        'picture': (e.picture_size, e.picture_size, 3),
        'coefficients': (e.coefficients,),
        'sound': (SOUND_WINDOW, e.sound_channels),
    }[driver]


def check_signal(config: ModelConfig, driver: str, signal: Float[Array, 'frames ...'], source: str = 'driver') -> None:
    """``UserError`` unless a signal [T, ...] has frames of the shape that this model was trained with, all finite."""
    check_driver(config, driver)
    expected, found = signal_shape(config, driver), tuple(np.shape(signal)[1:])
    if np.ndim(signal) < 1 or not np.shape(signal)[0]:
        raise UserError(f'{source}: has no frames of {driver}')
    if found != expected:
        if driver == 'coefficients' and len(found) == 1:
            raise UserError(
                f'{source}: has {found[0]} coefficients per frame, this avatar was trained with {expected[0]}; give '
                'coefficients of the same kind'
            )
        if driver == 'sound' and len(found) == 2:
            raise UserError(
                f'{source}: has windows of {found[0]} rows of {found[1]} sound features, this avatar reads '
                f'{expected[0]} rows of {expected[1]}; make them as its training did'
            )
        raise UserError(f'{source}: has {driver} signals of shape {found}, this avatar reads {expected}')
    if not isinstance(signal, jax.core.Tracer) and not np.isfinite(np.asarray(signal)).all():
        raise UserError(f'{source}: has NaN or infinite numbers; check how it was made')


def check_sound_features(config: ModelConfig, features: str, source: str = 'driver') -> None:
    """``UserError`` when sound windows are made of other features than this model was trained with."""
    wanted = config.settings.encoder.sound_features
    if features != wanted:
        raise UserError(f'{source}: gives {features} features, this avatar was trained with {wanted}; give those')


def init(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh variables."""
    generator = init_generator(config.generator, jax.random.fold_in(key, 0))
    variables: dict[str, Any] = {c: {'generator': tree} for c, tree in generator.items()}
    variables['params'] |= init_personal(config, jax.random.fold_in(key, 1), average_code(variables))
    return variables


def init_personal(
    config: ModelConfig, key: jax.Array, average: jax.Array, rows: jax.Array | None = None
) -> dict[str, Any]:
    """Fresh {'basis', 'encoder'}, what a person needs beside the generator.

    Args:
        average: its average code [d]. rows: [L,d] where the offset starts, whatever the configuration says.
    """
    return _drawn(key, average, rows, config=config)


@functools.partial(jax.jit, static_argnames='config')  # of the module: one program for each configuration
def _drawn(key, average, rows, *, config):
    c, g = config.settings, config.generator
    names = sorted({basis_name(config, d) for d in c.drivers})
    bases, encoders = {}, {}
    for i, name in enumerate(names):
        bases[name] = init_basis(jax.random.fold_in(key, i), c.basis.size, g.num_ws, g.w_dim)
        if c.basis.start == 'average':
            bases[name]['delta'] = jnp.tile(average, g.num_ws)
        if rows is not None:
            bases[name]['delta'] = rows.reshape(-1)
        if not c.basis.offset:
            del bases[name]['delta']
    for i, driver in enumerate(c.drivers):
        sound = driver == 'sound'
        shape = signal_shape(config, driver)
        example = jnp.zeros((1, ATTENDED, *shape) if sound else (1, *shape))
        found = encoder_of(config, driver).init(
            jax.random.fold_in(key, 100 + i), example, **({'method': 'both'} if sound else {})
        )
        encoders[driver] = found['params']
    return {'basis': bases, 'encoder': encoders}


@traced_once
def abstract(config: ModelConfig) -> dict[str, Any]:
    """Names and shapes of the variables, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def average_code(variables: Mapping[str, Any]) -> jax.Array:
    """[d] the generator's average code."""
    return variables['ema_stats']['generator']['backbone']['mapping']['w_avg']


def generator_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's variables as its module takes them."""
    return {collection: tree['generator'] for collection, tree in variables.items() if 'generator' in tree}


WEIGHTS = WeightFiles(METHOD, ModelConfig.from_dict, abstract)
save_model = WEIGHTS.save
load_model = WEIGHTS.load


# ------------------------------------------------------------------------------------------------- from signal to code


def weights_of(
    params: Mapping[str, Any], config: ModelConfig, driver: str, signal: jax.Array, smooth: bool = False
) -> jax.Array:
    """Weights of the basis [N, k] (alpha) from one driver's signals [N, ...].

    Args:
        params: the parameters with ``encoder`` in them.
        smooth: 'sound' only: ``signal`` holds each frame's neighbours [N, 8, 16, C] and is smoothed in time (static).
    """
    module, variables = encoder_of(config, driver), {'params': params['encoder'][driver]}
    found = module.apply(variables, signal, smooth) if driver == 'sound' else module.apply(variables, signal)
    return jax.nn.softmax(found, -1) if config.settings.encoder.softmax else found


def per_video(variables: Mapping[str, Any], config: ModelConfig) -> dict[str, jax.Array]:
    """Directions [D, k] of every basis by name: they depend on the weights alone, so once for a whole video."""
    return {
        name: directions(tree['bases'], config.settings.basis.orthogonal)
        for name, tree in variables['params']['basis'].items()
    }


def checked_per_video(variables: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, jax.Array], list[str]]:
    """``per_video`` with the device's factorisation compared with the host's; and notes of what differed."""
    found = {
        name: checked_directions(tree['bases'], config.settings.basis.orthogonal)
        for name, tree in variables['params']['basis'].items()
    }
    return {n: v for n, (v, _) in found.items()}, [f'{n}: {note}' for n, (_, note) in found.items() if note]


def codes_of(
    params: Mapping[str, Any],
    config: ModelConfig,
    driver: str,
    weights: jax.Array,
    vectors: jax.Array | None = None,
) -> jax.Array:
    """W+ codes [N, L, d] of weights [N, k]; ``vectors``: the driver's of ``per_video``."""
    tree = params['basis'][basis_name(config, driver)]
    if vectors is None:
        vectors = directions(tree['bases'], config.settings.basis.orthogonal)
    return combine(weights, vectors, tree.get('delta'), config.generator.num_ws)


def preview_codes(params: Mapping[str, Any], config: ModelConfig, driver: str) -> jax.Array:
    """Codes [k, L, d] that show single basis vectors: each alone, with weight 10 (picture) or 5, plus the offset."""
    k = config.settings.basis.size
    return codes_of(params, config, driver, PREVIEW_WEIGHT[driver] * jnp.eye(k))


# --------------------------------------------------------------------------------------------------------- rendering


def render(
    generator: Mapping[str, Any],
    config: ModelConfig,
    ws: jax.Array,
    labels: jax.Array,
    keys: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """Pictures of codes [N, L, d] from cameras [N, 25] (OpenCV axes), not clamped.

    Args:
        generator: variables of the generator.
        keys: [N] typed keys that jitter the samples along the rays, as the released program always does; None renders
            deterministically.
        sr: also run super-resolution (static); without it ``rgb`` is the raw rendering.
    """
    g = config.generator
    model, draws = TriPlaneGenerator(g), None
    planes = model.apply(generator, ws, method='planes')
    if keys is not None:
        rays = g.neural_rendering_resolution**2
        draws = jax.vmap(lambda k: RenderDraws.from_key(k, g.rendering, 1, rays))(keys)
        draws = jax.tree.map(lambda x: x[:, 0], draws)
    out = model.apply(generator, planes, labels, draws=draws, method='render')
    image = model.apply(generator, out.rgb, out.features, ws, method='superresolve') if sr else out.rgb
    return Frames(image, out.rgb, out.depth, out.opacity)


def identity_of(variables: Mapping[str, Any], tuned: bool = True) -> dict[str, Any]:
    """What an avatar keeps of trained variables: basis, encoders, and the generator's parameters if it was tuned."""
    params = variables['params']
    identity = {'basis': params['basis'], 'encoder': params['encoder']}
    return identity | ({'generator': params['generator']} if tuned else {})


def avatar_of(
    variables: Mapping[str, Any], config: ModelConfig, weights: str, source: str, label: Array | None = None
) -> Avatar:
    """The avatar that weights with a person are themselves (of a training run, or a released checkpoint).

    Args:
        weights: their SHA-256. source: where the pictures came from. label: [25] the avatar's camera; None: from ahead.
    """
    label = front_label() if label is None else label
    # Everything is in the weights: the avatar's file repeats the basis alone.
    identity = {'basis': variables['params']['basis']}
    return Avatar(identity, Camera.from_label(np.asarray(label)), METHOD, config, config.basis, weights, source)


def with_identity(variables: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The model's variables with an avatar's own parts in the place of theirs."""
    return {**variables, 'params': {**variables['params'], **identity}}


def prepare(variables: Mapping[str, Any], config: ModelConfig, identity: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What is computed once for an avatar: the directions of its bases (``per_video``)."""
    return per_video(with_identity(variables, identity), config)


def frame(
    variables: Mapping[str, Any],
    config: ModelConfig,
    identity: Mapping[str, Any],
    prepared: Mapping[str, jax.Array],
    signals: Mapping[str, jax.Array],
    labels: jax.Array,
    keys: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """N frames of an avatar side by side; each depends on its own signal, camera and key alone.

    Args:
        identity: of ``identity_of``; the model's generator is used where it has no tuned one.
        prepared: of ``prepare``.
        signals: of one driver: ``picture`` [N,S,S,3], ``coefficients`` [N,P], ``sound`` [N,16,C], or ``sound``
            [N,8,16,C] with each frame's neighbours (``encoders.sound_neighbours``), which is then smoothed in time.
        labels: [N,25] cameras. keys: [N] jitter the samples along the rays; None renders deterministically.
        sr: False leaves super-resolution out; ``rgb`` is then the raw rendering.

    Returns:
        ``Frames`` with rgb and raw limited to [-1, 1].
    """
    if len(signals) != 1:
        raise ValueError(f'frame: takes the signals of one driver, got {sorted(signals)}')
    ((driver, signal),) = signals.items()
    own = with_identity(variables, identity)
    smooth = driver == 'sound' and signal.ndim == 4
    weights = weights_of(own['params'], config, driver, signal, smooth)
    codes = codes_of(own['params'], config, driver, weights, prepared[basis_name(config, driver)])
    looking = dataclasses.replace(config, generator=config.generator.for_frames())
    out = render(generator_of(own), looking, codes, labels, keys, sr)
    return out.replace(rgb=jnp.clip(out.rgb, -1, 1), raw=jnp.clip(out.raw, -1, 1))


def animate(
    variables: Mapping[str, Any],
    config: ModelConfig,
    avatar: Avatar,
    signals: Mapping[str, jax.Array],
    labels: jax.Array,
    *,
    vectors: Mapping[str, jax.Array] | None = None,
    smooth: bool = False,
    chunk: int = 1,
    key: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """Renders an avatar from a driver's signals.

    Args:
        variables, config: the model (``config`` static under ``jit``); its generator is used where the avatar has no
            tuned one.
        signals: one of ``picture`` [T,S,S,3], ``coefficients`` [T,P], ``sound`` [T,16,C]. Others may not be there, so
            that what drives is never a matter of order.
        labels: [T,25] cameras.
        vectors: of ``prepare``, to save its computation.
        smooth: average sound codes in time by attention, as weights need that were trained beyond ``smooth_from``.
        chunk: so many frames are rendered side by side; memory grows with it, not with T.
        key: jitters the samples along the rays; None is deterministic, without flicker.
        sr: False leaves super-resolution out; ``rgb`` is then the raw rendering.

    Returns:
        ``Frames`` with rgb and raw limited to [-1, 1].
    """
    if len(signals) != 1:
        raise ValueError(f'animate: takes the signals of one driver, got {sorted(signals)}')
    ((driver, signal),) = signals.items()
    check_signal(config, driver, signal)
    if smooth and driver != 'sound':
        raise UserError(f'smoothing in time is for sound; this avatar is driven by {driver}')
    total = signal.shape[0]
    if labels.shape != (total, 25):
        raise ValueError(f'animate: {total} frames of {driver} need labels [{total}, 25], got {labels.shape}')
    prepared = prepare(variables, config, avatar.identity) if vectors is None else vectors
    sequence = jnp.asarray(signal)

    def frames(numbers, labels, keys):
        part = sound_neighbours(sequence, numbers) if smooth else sequence[numbers]
        return frame(variables, config, avatar.identity, prepared, {driver: part}, labels, keys, sr)

    keys = None if key is None else jax.random.split(key, total)
    inputs = (jnp.arange(total), jnp.asarray(labels), keys)
    if total <= chunk:
        return frames(*inputs)
    whole = total // chunk * chunk
    pieces = jax.tree.map(lambda x: x[:whole].reshape(whole // chunk, chunk, *x.shape[1:]), inputs)
    outputs = jax.lax.map(lambda part: frames(*part), pieces)
    outputs = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outputs)
    if whole == total:
        return outputs
    rest = frames(*jax.tree.map(lambda x: x[whole:], inputs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, rest)
