"""EG3D's files: network pickles with G_ema, G and D, and state dicts of generators and discriminators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.convert.base import Checkpoint, ForeignFile, ForeignNetwork, NewWeights, match, places
from avatar_jax.convert.comparison import IMAGE, VALUE, Verification, described, nchw, nhwc, thinned
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.methods.eg3d.files import (
    DISCRIMINATOR_METHOD,
    METHOD,
    abstract_discriminator,
    abstract_generator,
    load_discriminator,
    load_generator,
)
from avatar_jax.methods.eg3d.state_dicts import (
    Flat,
    discriminator_config,
    discriminator_keys,
    fits_discriminator,
    fits_generator,
    from_shapes,
    generator_keys,
    released_models,
    sizes,
)
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.models.superresolution import VARIANTS as SUPERRESOLUTION
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator
from avatar_jax.ops.grid_sample import plane_axes_of
from avatar_jax.ops.resize import filtered_resizing
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.sampling import RenderDraws

GENERATOR_ROLES = {'G_ema': 'eg3d.safetensors', 'G': 'eg3d_training.safetensors', '': 'eg3d.safetensors'}
DISCRIMINATOR_FILE = 'eg3d_discriminator.safetensors'
GENERATOR_RECORDS = ('triplane_e2e', 'triplane_full')


# -------------------------------------------------------------------------------------------------- network pickles


def from_module(source: ForeignNetwork, role: str, flat: Flat, report: Report) -> GeneratorConfig:
    """Configuration that a network pickle holds: constructor options, and what was changed in the object since.

    Raises:
        UserError: options that this generator does not have.
    """
    name = source.places[role].rstrip('/')
    module = source.raw.modules[name]
    kwargs = dict(_mapping(module['init_kwargs'], f'{name}: init_kwargs'))
    attributes = module['attributes']
    rendering = dict(
        _mapping(attributes.get('rendering_kwargs', kwargs.get('rendering_kwargs')), f'{name}: rendering_kwargs')
    )
    upsampler = source.raw.modules.get(f'{name}/superresolution', {})
    rendering.setdefault('superresolution_module', upsampler.get('class', ''))
    known = set(RenderConfig.__dataclass_fields__) | {'image_resolution', 'superresolution_module'}
    for option in [k for k in rendering if k not in known]:
        report.unexpected[f'{name}:rendering_kwargs.{option}'] = (
            f'an unknown rendering option ({rendering.pop(option)!r})'
        )
    kwargs['rendering_kwargs'] = rendering
    renderer = source.raw.modules.get(f'{name}/renderer', {}).get('attributes', {})
    axes = 'legacy'
    if 'plane_axes' in renderer:
        try:
            axes = plane_axes_of(renderer['plane_axes'])
        except (ValueError, np.linalg.LinAlgError) as error:
            raise UserError(f'{source.raw.path}: {name}/renderer: {error}') from error
    else:
        report.notes.append(f'{name} does not store its plane axes: those of the first release (legacy) are taken')
    try:
        config = GeneratorConfig.from_release(kwargs, int(attributes.get('neural_rendering_resolution', 64)), axes)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f'{source.raw.path}: the options of {name} are not those of a tri-plane generator ({error})'
        ) from error
    found = sizes(flat)
    blocks = found.pop('sr_channels')
    same = SUPERRESOLUTION[config.superresolution].channels == blocks
    told = {k: v for k, v in found.items() if k in kwargs or k == 'mapping_layers'}
    differ = [f'{k} {getattr(config, k)} (shapes: {v})' for k, v in told.items() if getattr(config, k) != v]
    differ = [d for d in differ if not d.startswith(('channel_base', 'channel_max'))]  # several rules give the same
    if differ:
        raise UserError(f'{source.raw.path}: {name} contradicts itself: {", ".join(differ)}')
    rest = {k: v for k, v in found.items() if k not in told}
    return config.replace(**rest, sr_channels=None if same else blocks)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f'{what} are missing; the file is not a network pickle of EG3D')
    return value


# ------------------------------------------------------------------------------------------------------------- import


def plan_discriminator(source: ForeignNetwork, role: str, report: Report) -> NewWeights:
    """The weight file of a discriminator."""
    flat = source.flat(role)
    module = source.raw.modules.get(source.places[role].rstrip('/'), {})
    kwargs = module.get('init_kwargs') or {}
    try:
        config = source.hint or discriminator_config(flat, kwargs)
        template = abstract_discriminator(config)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f'{source.raw.path}: the discriminator is incomplete or of an unknown form ({error})'
        ) from error
    if not kwargs and not source.hint:
        report.notes.append('the options of the discriminator are not in the file: those of the release are taken')
    return NewWeights(
        DISCRIMINATOR_FILE,
        DISCRIMINATOR_METHOD,
        dict(config),
        match(flat, template, report, source.places[role], DISCRIMINATOR_FILE),
    )


def generator_config(source: ForeignNetwork, role: str, report: Report) -> GeneratorConfig:
    """The configuration of the generator at a place, from wherever the file has it."""
    flat = source.flat(role)
    if source.hint:
        return from_plain(GeneratorConfig, source.hint)
    if source.places[role].rstrip('/') in source.raw.modules:
        return from_module(source, role, flat, report)
    return from_shapes(flat, source.variant, str(source.raw.path))


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    plans = []
    for role in source.places:
        if role == 'D':
            plans.append(plan_discriminator(replace(source, hint={}), role, report))
            continue
        config = generator_config(source, role, report)
        file = GENERATOR_ROLES[role]
        taken = match(
            source.flat(role),
            abstract_generator(config),
            report,
            source.places[role],
            file,
            optional=('dataset_label_std',),
        )
        plans.append(NewWeights(file, METHOD, to_plain(config), taken))
    return plans


def _plan_d(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    return [plan_discriminator(source, '', report)]


def find_generators(tensors: Flat) -> list[str]:
    """Where tri-plane generators are."""
    return places(tensors, 'backbone.synthesis.b4.const', fits_generator)


def _find_d(tensors: Flat) -> list[str]:
    return places(tensors, 'b4.fc.weight', fits_discriminator)


# ------------------------------------------------------------------------------------------------------- verification


def _weighted_loss(out) -> jax.Array:
    def ramp(image):
        height, width, channels = image.shape[1:]
        y, x = jnp.arange(height)[:, None, None] / height, jnp.arange(width)[None, :, None] / width
        return y - x + 0.25 * (jnp.arange(channels) - 1)

    image, raw = out['image'], out['image_raw']
    return (image**2 * (1 + ramp(image))).mean() + (raw**2 * ramp(raw)).mean() + 0.5 * out['image_depth'].mean()


def compare_generator(method: str, run: Verification) -> None:
    """Renders a record of a generator again, with the generator in the weight file of ``method``."""
    golden, cfg = run.golden, run.golden.config
    variables, config, _ = load_generator(run.path(method))
    config = config.replace(
        neural_rendering_resolution=int(cfg.get('neural_rendering_resolution', config.neural_rendering_resolution)),
        release_image_raw=True,
    )
    model, c = TriPlaneGenerator(config), jnp.asarray(golden.inp['c'])
    if golden.param:
        run.weights(generator_keys(variables, config.superresolution))
    seed, rays, samples = cfg.get('SEED'), config.neural_rendering_resolution**2, config.rendering.depth_resolution
    fine = config.rendering.depth_resolution_importance

    def recorded(name, default):
        if name in golden.inp:
            return golden.inp[name]
        if seed is None:
            raise UserError(f'{golden.path}: has no in/{name}')
        return default()

    z = recorded('z', lambda: np.random.RandomState(seed).randn(len(c), config.z_dim).astype(np.float32))
    jitter = recorded(
        'jitter', lambda: np.random.RandomState(seed + 1).random_sample((len(c), rays, samples, 1)).astype(np.float32)
    )
    draws = RenderDraws(jnp.asarray(jitter).reshape(len(c), rays, samples))
    if fine:
        u = recorded(
            'u_importance',
            lambda: np.random.RandomState(seed + 2).random_sample((len(c) * rays, fine)).astype(np.float32),
        )
        draws = draws.replace(importance=jnp.asarray(u).reshape(len(c), rays, fine))
    psi, cutoff = cfg.get('truncation_psi', 0.7 if seed else 1.0), cfg.get('truncation_cutoff', 14 if seed else None)
    ws = model.apply(
        variables, jnp.asarray(z), jnp.asarray(golden.inp['c_conditioning']), psi, cutoff, method='mapping'
    )
    run.compare('ws', ws, VALUE)
    run.compare('ws_row0', ws[:, 0], VALUE)
    ws = jnp.asarray(golden.out['ws']) if 'ws' in golden.out else ws
    noise_mode, points = cfg.get('noise_mode', 'const'), golden.inp.get('points')

    @jax.jit
    def render(variables, ws):
        planes = model.apply(variables, ws, noise_mode, method='planes')
        out = model.apply(variables, ws, c, draws=draws, planes=planes, method='synthesis')
        sampled = (
            None if points is None else model.apply(variables, planes, jnp.asarray(points), method='sample_density')
        )
        return planes, out, sampled

    planes, out, sampled = render(variables, ws)
    flat = np.asarray(planes).transpose(0, 1, 4, 2, 3)
    flat = flat.reshape(flat.shape[0], -1, *flat.shape[3:])
    run.compare('planes', flat, VALUE)
    run.compare('planes_strided', described(run, 'planes_strided', flat), VALUE)
    run.compare('planes_mean', flat.mean((2, 3)), VALUE)
    run.compare('planes_std', flat.std((2, 3), ddof=1), VALUE)
    image = nchw(out['image'])
    run.compare('image', image, IMAGE)
    run.compare('image_strided', described(run, 'image_strided', image), IMAGE)
    run.compare('image_mean', image.mean((2, 3)), IMAGE)
    run.compare('image_std', image.std((2, 3), ddof=1), IMAGE)
    run.compare('image_raw', nchw(out['image_raw']), IMAGE)
    run.compare('image_depth', nchw(out['image_depth']), IMAGE)
    run.compare('loss', _weighted_loss(out), IMAGE)
    if sampled is not None:
        run.compare('points_rgb', sampled[0], VALUE)
        run.compare('points_sigma', sampled[1], VALUE)


def _compare_discriminator(run: Verification) -> None:
    golden, cfg = run.golden, run.golden.config
    variables, net = load_discriminator(run.path(DISCRIMINATOR_METHOD))
    if golden.param:
        run.weights(discriminator_keys(variables))
    if 'image' in golden.inp:
        image, raw = nhwc(golden.inp['image']), nhwc(golden.inp['image_raw'])
    else:
        image, raw = (_formula_picture(cfg, name) for name in ('image', 'image_raw'))
    c = jnp.asarray(golden.inp['c'])
    logits = jax.jit(net.apply)(variables, image, raw, c)
    run.compare('logits', logits, VALUE)
    run.compare('loss_gen', jnp.mean(jax.nn.softplus(logits)), VALUE)
    run.compare('loss_real', jnp.mean(jax.nn.softplus(-logits)), VALUE)
    resized = nchw(filtered_resizing(raw, net.img_resolution))
    if 'image_raw_resized_strided' in golden.out:
        run.compare('image_raw_resized_strided', thinned(resized, golden.out['image_raw_resized_strided']), VALUE)
    if 'cmap' in golden.out:
        mapping = MappingNetwork(0, net.c_dim, golden.out['cmap'].shape[1], None, net.mapping_layers)
        run.compare('cmap', mapping.apply({'params': variables['params']['mapping']}, None, c), VALUE)
    if any(name.startswith('r1_') or name == 'loss_r1' for name in golden.out):
        gradient = jax.jit(jax.grad(lambda i, r: jnp.sum(net.apply(variables, i, r, c)), (0, 1)))
        gi, gr = gradient(image, raw)
        penalty = jnp.sum(jnp.square(gi), (1, 2, 3)) + jnp.sum(jnp.square(gr), (1, 2, 3))
        run.compare('r1_penalty', penalty, VALUE)
        run.compare('loss_r1', jnp.mean(penalty) * (cfg.get('gamma', 1.0) / 2), VALUE)
        run.compare('r1_grad_image_raw', nchw(gr), 3e-3)
        if 'r1_grad_image_strided' in golden.out:
            run.compare('r1_grad_image_strided', thinned(nchw(gi), golden.out['r1_grad_image_strided']), 3e-3)


def _formula_picture(cfg, name: str) -> jax.Array:
    """Uniform bytes; the offset of the seed and the shape are in the description of the record."""
    found = re.search(name + r' = RandomState\(SEED\+(\d+)\)\.randint\(0,256,\(([\d,]+)\)\)', str(cfg.get('what', '')))
    if not found:
        raise UserError(f'the record has no in/{name} and does not describe it')
    shape = tuple(int(n) for n in found.group(2).split(','))
    pixels = np.random.RandomState(cfg['SEED'] + int(found.group(1))).randint(0, 256, shape)
    return nhwc((pixels / 127.5 - 1).astype(np.float32))


FOREIGN = (
    ForeignFile(
        METHOD,
        'tri-plane generator of EG3D (network pickle or state dict), with its discriminator',
        METHOD,
        find_generators,
        _plan,
        export=lambda weights: generator_keys(weights.variables, weights.config['superresolution']),
        verify=dict.fromkeys(GENERATOR_RECORDS, partial(compare_generator, METHOD)),
        variants=tuple(released_models()),
        checkpoint=Checkpoint(('G_ema', 'G', 'D'), (METHOD, DISCRIMINATOR_METHOD), lambda roles: 'G_ema' in roles),
        left_out={'augment_pipe/*': 'augmentation of the training images'},
    ),
    ForeignFile(
        DISCRIMINATOR_METHOD,
        'dual discriminator of EG3D',
        DISCRIMINATOR_METHOD,
        _find_d,
        _plan_d,
        export=lambda weights: discriminator_keys(weights.variables),
        verify={'dual_discriminator': _compare_discriminator},
    ),
)
