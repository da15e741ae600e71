"""EG3D: network pickles with G_ema, G and D, and state dicts of generators and discriminators.

A network pickle says everything about its networks. A state dict says only what its shapes say: the sizes and the
super-resolution class, but not the rendering options, so ``--as`` has to name the released model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.convert.kinds.base import Kind, Plan, Source, has, match, places
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.models.discriminator import DualDiscriminator
from avatar_jax.models.superresolution import VARIANTS as SUPERRESOLUTION
from avatar_jax.models.triplane import GeneratorConfig, init_generator
from avatar_jax.ops.grid_sample import plane_axes_of
from avatar_jax.render.config import RenderConfig

METHOD, DISCRIMINATOR_METHOD = 'eg3d', 'eg3d_discriminator'
GENERATOR_ROLES = {'G_ema': 'eg3d.safetensors', 'G': 'eg3d_training.safetensors', '': 'eg3d.safetensors'}
DISCRIMINATOR_FILE = 'eg3d_discriminator.safetensors'
Flat = Mapping[str, np.ndarray]


def released_models() -> dict[str, GeneratorConfig]:
    """Name for ``--as`` -> configuration of a released model, or of a class that training runs can have."""
    face = GeneratorConfig.ffhq512(64)
    return {
        'eg3d-ffhq512-64': face,
        'eg3d-ffhq512-128': GeneratorConfig.ffhq512(128),
        'eg3d-afhq512-128': GeneratorConfig.afhq512(),
        'eg3d-shapenet128-64': GeneratorConfig.shapenet128(),
        'eg3d-8x-512': face.replace(superresolution='8X'),
        'eg3d-4x-256': face.replace(superresolution='4X', img_resolution=256),
        'eg3d-deepfp32-256': face.replace(superresolution='deepfp32', img_resolution=256, sr_conv_clamp=None),
    }


# ---------------------------------------------------------------------------------------------- sizes from the shapes


def fits_generator(flat: Flat) -> bool:
    """Whether a state dict is a tri-plane generator's."""
    return (
        has(flat, backbone__synthesis__b4__const=(None, 4, 4), decoder__net__2__weight=(None, None))
        and 'superresolution.block1.conv1.weight' in flat
    )


def sizes(flat: Flat) -> dict[str, Any]:
    """Fields of the configuration that follow from the shapes of a state dict.

    Raises:
        UserError: the shapes are not those of one network.
    """
    try:
        resolutions = sorted({int(m.group(1)) for k in flat if (m := re.match(r'backbone\.synthesis\.b(\d+)\.', k))})
        channels = {r: flat[f'backbone.synthesis.b{r}.conv1.weight'].shape[0] for r in resolutions}
        w_dim = flat['backbone.synthesis.b4.conv1.affine.weight'].shape[1]
        embed = flat.get('backbone.mapping.embed.weight')
        z_dim = flat['backbone.mapping.fc0.weight'].shape[1] - (0 if embed is None else embed.shape[0])
        layers = sum(bool(re.fullmatch(r'backbone\.mapping\.fc\d+\.weight', k)) for k in flat)
        planes = flat['backbone.synthesis.b4.torgb.weight'].shape[0]
        hidden = flat['decoder.net.0.weight'].shape[0]
        outputs = flat['decoder.net.2.weight'].shape[0] - 1
        blocks = tuple(int(flat[f'superresolution.block{i}.conv1.weight'].shape[0]) for i in (0, 1))
        image = flat['superresolution.block1.conv1.noise_const'].shape[0]
    except (KeyError, IndexError) as error:
        raise UserError(f'the state dict of the generator is incomplete ({error})') from error
    base, limit = _channel_rule(channels)
    return {
        'z_dim': int(z_dim),
        'w_dim': int(w_dim),
        'c_dim': 0 if embed is None else int(embed.shape[1]),
        'img_resolution': int(image),
        'plane_resolution': resolutions[-1],
        'plane_channels': int(planes) // 3,
        'channel_base': base,
        'channel_max': limit,
        'mapping_layers': layers,
        'decoder_hidden': int(hidden),
        'decoder_out': int(outputs),
        'sr_channels': blocks,
    }


def _channel_rule(channels: Mapping[int, int]) -> tuple[int, int]:
    """(base, max) with min(base // r, max) channels at every resolution r."""
    limit = int(channels[4])
    for base in (32768, 16384, *(int(c) * r for r, c in channels.items())):
        if all(min(base // r, limit) == c for r, c in channels.items()):
            return base, limit
    raise UserError(f'channels {dict(channels)} of the backbone do not follow the rule of EG3D')


def _class_candidates(flat: Flat, image: int, blocks: tuple[int, int]) -> list[str]:
    """Super-resolution classes with these shapes."""
    # Only one class has no filter of its own; state dicts that were thinned out have none at all.
    filters = any(k.startswith('superresolution.block') and k.endswith('resample_filter') for k in flat)
    own = 'superresolution.resample_filter' in flat
    found = []
    for name, variant in SUPERRESOLUTION.items():
        if variant.img_resolution != image:
            continue
        if filters and own == (name == '8XDC'):
            continue
        found.append(name)
    exact = [name for name in found if SUPERRESOLUTION[name].channels == blocks]
    return exact or found


def from_shapes(flat: Flat, variant: str | None, where: str) -> GeneratorConfig:
    """Configuration of a bare state dict.

    Raises:
        UserError: several released models have these shapes and none was named, or the named one does not fit.
    """
    found = sizes(flat)
    blocks = found.pop('sr_channels')
    classes = _class_candidates(flat, found['img_resolution'], blocks)
    models = {n: c for n, c in released_models().items() if c.superresolution in classes}
    if variant is None:
        if not models:
            raise UserError(
                f'{where}: no known super-resolution class has an image of {found["img_resolution"]} pixels '
                f'and {blocks} channels'
            )
        if len(models) > 1:
            raise UserError(
                f'{where}: a state dict does not say how its planes are rendered, and {", ".join(models)} all '
                'have these shapes; choose with --as'
            )
        variant = next(iter(models))
    if variant not in models:
        hint = f'; it fits {", ".join(models)}' if models else ''
        raise UserError(f'{where}: its shapes are not those of {variant}{hint}')
    base = models[variant]
    same = SUPERRESOLUTION[base.superresolution].channels == blocks
    return base.replace(**found, sr_channels=None if same else blocks)


# -------------------------------------------------------------------------------------------------- network pickles


def from_module(source: Source, role: str, flat: Flat, report: Report) -> GeneratorConfig:
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
    for key, module_name in (('superresolution_module', f'{name}/superresolution'),):
        rendering.setdefault(key, source.raw.modules.get(module_name, {}).get('class', ''))
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


# ----------------------------------------------------------------------------------------------------- discriminators

_D_FIELDS = (
    'c_dim',
    'img_resolution',
    'img_channels',
    'channel_base',
    'channel_max',
    'conv_clamp',
    'cmap_dim',
    'mapping_layers',
    'disc_c_noise',
    'mbstd_group_size',
    'mbstd_num_channels',
    'num_half_res',
)


def fits_discriminator(flat: Flat) -> bool:
    """Whether a state dict is a dual discriminator's: it looks at two colour images at once."""
    return 'b4.conv.weight' in flat and any(
        re.fullmatch(r'b\d+\.fromrgb\.weight', k) and v.ndim == 4 and v.shape[1] == 6 for k, v in flat.items()
    )


def make_discriminator(config: Mapping[str, Any]) -> DualDiscriminator:
    """The module of a stored configuration."""
    return DualDiscriminator(**{k: config[k] for k in _D_FIELDS})


def discriminator_config(flat: Flat, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``DualDiscriminator``, from the shapes and from constructor options where there are any."""
    resolutions = sorted({int(m.group(1)) for k in flat if (m := re.match(r'b(\d+)\.', k)) and int(m.group(1)) > 4})
    channels = {r: int(flat[f'b{r}.conv0.weight'].shape[0]) for r in resolutions}
    channels[4] = int(flat['b4.fc.weight'].shape[0])
    base, limit = _channel_rule(channels)
    embed = flat.get('mapping.embed.weight')
    layers = sum(bool(re.fullmatch(r'mapping\.fc\d+\.weight', k)) for k in flat)
    epilogue = dict(kwargs.get('epilogue_kwargs', {}))
    width = int(flat['b4.out.weight'].shape[0])
    return {
        'c_dim': 0 if embed is None else int(embed.shape[1]),
        'img_resolution': resolutions[-1],
        'img_channels': int(flat[f'b{resolutions[-1]}.fromrgb.weight'].shape[1]) // 2,
        'channel_base': base,
        'channel_max': limit,
        'conv_clamp': kwargs.get('conv_clamp', 256),
        'mapping_layers': layers,
        'cmap_dim': None if width == channels[4] or embed is None else width,
        'disc_c_noise': float(kwargs.get('disc_c_noise', 0)),
        'mbstd_group_size': epilogue.get('mbstd_group_size', 4),
        'mbstd_num_channels': int(flat['b4.conv.weight'].shape[1]) - channels[4],
        'num_half_res': int(kwargs.get('num_fp16_res', 4)),
    }


def abstract_discriminator(config: Mapping[str, Any]):
    """Names and shapes of a discriminator's variables."""
    return _abstract_discriminator(make_discriminator(config))


@functools.lru_cache(maxsize=16)
def _abstract_discriminator(net: DualDiscriminator):
    image = jax.ShapeDtypeStruct((1, net.img_resolution, net.img_resolution, net.img_channels), jnp.float32)
    label = jax.ShapeDtypeStruct((1, net.c_dim), jnp.float32)
    return jax.eval_shape(lambda i, c: net.init(jax.random.key(0), i, i, c), image, label)


def plan_discriminator(source: Source, role: str, report: Report) -> Plan:
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
    return Plan(
        DISCRIMINATOR_FILE,
        DISCRIMINATOR_METHOD,
        dict(config),
        match(flat, template, report, source.places[role], DISCRIMINATOR_FILE),
    )


# ------------------------------------------------------------------------------------------------------------- kinds


@functools.lru_cache(maxsize=16)  # tracing a generator takes seconds, and a file has several of one form
def abstract_generator(config: GeneratorConfig):
    """Names and shapes of a generator's variables."""
    return jax.eval_shape(lambda: init_generator(config, jax.random.key(0)))


def generator_config(source: Source, role: str, report: Report) -> GeneratorConfig:
    """The configuration of the generator at a place, from wherever the file has it."""
    flat = source.flat(role)
    if source.hint:
        return from_plain(GeneratorConfig, source.hint)
    if source.places[role].rstrip('/') in source.raw.modules:
        return from_module(source, role, flat, report)
    return from_shapes(flat, source.variant, str(source.raw.path))


def _plan(source: Source, report: Report) -> list[Plan]:
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
        plans.append(Plan(file, METHOD, to_plain(config), taken))
    return plans


def _plan_d(source: Source, report: Report) -> list[Plan]:
    return [plan_discriminator(source, '', report)]


def _find_d(tensors: Flat) -> list[str]:
    return places(tensors, 'b4.fc.weight', fits_discriminator)


EG3D = (
    Kind(
        'eg3d',
        'tri-plane generator of EG3D (network pickle or state dict), with its discriminator',
        lambda tensors: places(tensors, 'backbone.synthesis.b4.const', fits_generator),
        _plan,
        variants=tuple(released_models()),
    ),
    Kind(DISCRIMINATOR_METHOD, 'dual discriminator of EG3D', _find_d, _plan_d),
)
