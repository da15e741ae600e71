"""State dicts of EG3D's networks: the configuration that their shapes show, and the way back to their names.

A state dict says only what its shapes say: the sizes and the super-resolution class, but not the rendering options, so
the released model has to be named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from avatar_jax.convert.base import FIR, has
from avatar_jax.convert.layout import to_torch
from avatar_jax.errors import UserError
from avatar_jax.models.superresolution import VARIANTS as SUPERRESOLUTION
from avatar_jax.models.triplane import GeneratorConfig

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


def generator_keys(variables: Mapping[str, Any], superresolution: str) -> dict[str, np.ndarray]:
    """State dict of a generator, with its constant filters."""
    flat = to_torch(variables)
    layers = {k.rpartition('.')[0] for k in flat if k.endswith('.noise_const')}
    owners = layers | {layer.rpartition('.')[0] for layer in layers}
    owners |= set() if superresolution == '8XDC' else {'superresolution'}
    return flat | {f'{owner}.resample_filter': FIR for owner in sorted(owners)}


def fits_discriminator(flat: Flat) -> bool:
    """Whether a state dict is a dual discriminator's: it looks at two colour images at once."""
    return 'b4.conv.weight' in flat and any(
        re.fullmatch(r'b\d+\.fromrgb\.weight', k) and v.ndim == 4 and v.shape[1] == 6 for k, v in flat.items()
    )


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


def discriminator_keys(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """State dict of a discriminator, with its constant filters."""
    flat = to_torch(variables)
    layers = {k.rpartition('.')[0] for k in flat if re.match(r'b\d+\.(fromrgb|conv0|conv1|skip|conv)\.weight', k)}
    blocks = {k.split('.')[0] for k in layers} - {'b4'}
    filters = ['resample_filter', *(f'{owner}.resample_filter' for owner in sorted(layers | blocks))]
    return flat | dict.fromkeys(filters, FIR)
