"""The released checkpoints' names and layouts <-> this method's variables, exactly and both ways.

A checkpoint is of one driver and has up to three state dicts: ``gen`` (basis, encoder, generator) and, for sound,
``AudNet`` and ``AudAttNet``. Names there, and here below ``params``:

| ``gen`` | here |
|---|---|
| ``bases``, ``delta`` | ``basis / shared`` |
| ``encoder.net_app.convs.0.0.weight``, ``.0.1.bias`` | ``encoder / picture / bSIZE / fromrgb`` |
| ``encoder.net_app.convs.I.conv1.0.weight``, ``.conv1.1.bias`` | ``... / bR / conv0`` |
| ``encoder.net_app.convs.I.conv2.1.weight``, ``.conv2.2.bias`` | ``... / bR / conv1`` |
| ``encoder.net_app.convs.I.skip.1.weight`` | ``... / bR / skip`` |
| ``encoder.net_app.convs.N.weight`` | ``encoder / picture / weight`` |
| ``encoder.fc.J.*`` | ``encoder / picture / head / fc_J`` |
| ``weights_3dmm.fc.J.*`` | ``encoder / coefficients / head / fc_J``, ``encoder / sound / weights / head / fc_J`` |
| ``generator.*`` | ``generator`` of all collections |

Convolutions [O,I,h,w] become [h,w,I,O], those in time [O,I,t] become [t,I,O], linear layers [O,I] become [I,O], biases
[1,C,1,1] become [C]. The blur kernels (buffers) follow from the architecture: they are checked when read and written
again on export. Optimizer states, arguments and a second person's basis (``bases_2``, unless asked for) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.errors import UserError
from avatar_jax.methods.hfagp.config import BasisConfig, EncoderConfig, HFAGPConfig, ModelConfig
from avatar_jax.methods.hfagp.encoders import PICTURE_CHANNELS
from avatar_jax.models.triplane import GeneratorConfig

SECTIONS = {'picture': ('gen',), 'coefficients': ('gen',), 'sound': ('gen', 'AudNet', 'AudAttNet')}
IGNORED = ('g_optim', 'w_optim', 'optimizer_Aud', 'optimizer_AudAtt', 'args')
"""Entries of a checkpoint that are no weights."""

BLUR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
Path = tuple[str, ...]


def personal_table(driver: str, picture_size: int = 256) -> dict[tuple[str, str], Path]:
    """(section, key) -> path below ``params`` of everything but the generator."""
    table: dict[tuple[str, str], Path] = {}
    for name in ('bases', 'delta'):
        table['gen', name] = ('basis', 'shared', name)
    encoder: Path = ('encoder', driver)
    if driver == 'picture':
        table |= {('gen', f'encoder.{k}'): (*encoder, *p) for k, p in picture_table(picture_size).items()}
    else:
        head = (*encoder, 'head') if driver == 'coefficients' else (*encoder, 'weights', 'head')
        table |= {('gen', f'weights_3dmm.{k}'): (*head, *p) for k, p in stack_table(7).items()}
    if driver == 'sound':
        table |= {('AudNet', k): (*encoder, 'net', *p) for k, p in sound_table().items()}
        table |= {('AudAttNet', k): (*encoder, 'attention', *p) for k, p in attention_table().items()}
    return table


def stack_table(layers: int) -> dict[str, Path]:
    """Keys of a stack of linear layers -> paths inside ``LinearStack``."""
    return {f'fc.{i}.{leaf}': (f'fc_{i}', leaf) for i in range(layers) for leaf in ('weight', 'bias')}


def picture_table(size: int) -> dict[str, Path]:
    """Keys of the image encoder (its blur kernels left out) -> paths inside ``PictureEncoder``."""
    table: dict[str, Path] = {
        'net_app.convs.0.0.weight': (f'b{size}', 'fromrgb', 'weight'),
        'net_app.convs.0.1.bias': (f'b{size}', 'fromrgb', 'bias'),
    }
    resolution, index = size, 1
    while resolution > 4:
        place, block = f'net_app.convs.{index}', f'b{resolution}'
        table |= {
            f'{place}.conv1.0.weight': (block, 'conv0', 'weight'),
            f'{place}.conv1.1.bias': (block, 'conv0', 'bias'),
            f'{place}.conv2.1.weight': (block, 'conv1', 'weight'),
            f'{place}.conv2.2.bias': (block, 'conv1', 'bias'),
            f'{place}.skip.1.weight': (block, 'skip', 'weight'),
        }
        resolution, index = resolution // 2, index + 1
    table[f'net_app.convs.{index}.weight'] = ('weight',)
    return table | {k: ('head', *p) for k, p in stack_table(5).items()}


def kernel_keys(size: int) -> list[str]:
    """Keys of the image encoder's blur kernels."""
    blocks = size.bit_length() - 3
    return [f'net_app.convs.{i}.{part}.0.kernel' for i in range(1, blocks + 1) for part in ('conv2', 'skip')]


def sound_table() -> dict[str, Path]:
    """Keys of ``AudNet`` -> paths inside ``SoundNet``."""
    layers = [('encoder_conv', i) for i in (0, 2, 4, 6)] + [('encoder_fc1', i) for i in (0, 2)]
    return {f'{n}.{i}.{leaf}': (f'{n}_{i}', leaf) for n, i in layers for leaf in ('weight', 'bias')}


def attention_table() -> dict[str, Path]:
    """Keys of ``AudAttNet`` -> paths inside ``SoundAttention``."""
    layers = [('attentionConvNet', i) for i in (0, 2, 4, 6, 8)] + [('attentionNet', 0)]
    return {f'{n}.{i}.{leaf}': (f'{n}_{i}', leaf) for n, i in layers for leaf in ('weight', 'bias')}


# ------------------------------------------------------------------------------------------------------------- layouts

_INWARD = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}


def inward(key: str, value: np.ndarray) -> np.ndarray:
    """An array of a checkpoint in this project's layout."""
    leaf = key.rpartition('.')[2]
    if leaf == 'weight':
        return np.ascontiguousarray(value.transpose(_INWARD[value.ndim]))
    return value.reshape(-1) if leaf == 'bias' else value


def outward(key: str, value: np.ndarray) -> np.ndarray:
    """The inverse of ``inward``; biases of the image encoder's trunk have four axes there."""
    leaf = key.rpartition('.')[2]
    if leaf == 'weight':
        return np.ascontiguousarray(value.transpose(np.argsort(_INWARD[value.ndim])))
    return value.reshape(1, -1, 1, 1) if leaf == 'bias' and 'net_app.' in key else value


def to_tree(flat: Mapping[str, np.ndarray], table: Mapping[str, Path]) -> dict[str, Any]:
    """Nested arrays of a part of a checkpoint by its table; keys that are not there are left out."""
    tree: dict[str, Any] = {}
    for key, path in table.items():
        if key in flat:
            node = tree
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = inward(key, np.asarray(flat[key]))
    return tree


def to_flat(tree: Mapping[str, Any], table: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """The inverse of ``to_tree``."""
    flat = {}
    for key, path in table.items():
        node: Any = tree
        for part in path:
            node = node[part] if isinstance(node, Mapping) and part in node else None
        if node is not None:
            flat[key] = outward(key, np.asarray(node))
    return flat


# ------------------------------------------------------------------------------------------------- whole checkpoints


def sections_of(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """State dicts of a checkpoint, from its arrays under names like ``gen.bases`` or ``gen/bases``.

    Raises:
        UserError: there is an entry that no checkpoint of HFA-GP has.
    """
    sections: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        place, key = (re.split(r'[./]', name, maxsplit=1) + [''])[:2]
        if place in SECTIONS['sound']:
            sections.setdefault(place, {})[key] = value
        elif place not in IGNORED:
            raise UserError(f'checkpoint: {name} is no entry of a checkpoint of HFA-GP')
    return sections


def driver_of(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Which driver a checkpoint is of.

    Raises:
        UserError: it is none of the three.
    """
    gen = sections.get('gen', {})
    if any(k.startswith('encoder.net_app.') for k in gen):
        return 'picture'
    if any(k.startswith('weights_3dmm.') for k in gen):
        return 'sound' if 'AudNet' in sections else 'coefficients'
    raise UserError('checkpoint: has neither an image encoder nor weights_3dmm in `gen`; it is not one of HFA-GP')


def config_of(sections: Mapping[str, Mapping[str, np.ndarray]], generator: GeneratorConfig) -> ModelConfig:
    """The configuration that a checkpoint's shapes stand for; the generator's does not follow from them."""
    driver, gen = driver_of(sections), sections['gen']
    try:
        k = gen['bases'].shape[0]
        if driver == 'picture':
            size = 4 << (sum(key.endswith('.conv1.0.weight') for key in gen if key.startswith('encoder.net_app.')))
            channels = {size: gen['encoder.net_app.convs.0.0.weight'].shape[0]}
            for i in range(1, size.bit_length() - 2):
                channels[size >> i] = gen[f'encoder.net_app.convs.{i}.conv2.1.weight'].shape[0]
            trunk = tuple(int(channels[r]) for r in sorted(channels))
            released = trunk == tuple(PICTURE_CHANNELS[r] for r in sorted(channels))
            encoder = EncoderConfig(int(gen['encoder.fc.0.weight'].shape[0]), size, () if released else trunk)
        else:
            width, inputs = (int(n) for n in gen['weights_3dmm.fc.0.weight'].shape)
            encoder = EncoderConfig(width)
            if driver == 'coefficients':
                encoder = replace(encoder, coefficients=inputs)
            else:
                channels = int(sections['AudNet']['encoder_conv.0.weight'].shape[1])
                encoder = replace(encoder, sound_code=inputs, sound_channels=channels)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(f'checkpoint: the {driver} encoder is incomplete ({error}); get the file again') from error
    settings = HFAGPConfig.release(driver)
    settings = replace(settings, basis=BasisConfig(size=int(k)), encoder=encoder)
    settings = replace(settings, loss=replace(settings.loss, size=min(256, generator.img_resolution)))
    return ModelConfig(generator, settings)


def variables_of(
    sections: Mapping[str, Mapping[str, np.ndarray]], config: ModelConfig, person: int = 1
) -> tuple[dict[str, Any], list[str]]:
    """All variables of a checkpoint of one driver.

    Args:
        sections: ``gen`` and, for sound, ``AudNet`` and ``AudAttNet``: key -> array.
        config: from ``config_of``.
        person: 2 takes the basis of the second person (``bases_2``, ``delta_2``) where there is one.

    Returns:
        the variables, and the keys ``SECTION:KEY`` that were not taken over.

    Raises:
        UserError: entries are missing, unknown or of another shape (also: another k than the configuration's).
    """
    from avatar_jax.io.weights import check_tree
    from avatar_jax.methods.hfagp.model import abstract

    (driver,) = config.settings.drivers
    size = config.settings.encoder.picture_size
    table = personal_table(driver, size)
    if person not in (1, 2):
        raise UserError(f'person {person}: a checkpoint has a first and perhaps a second one; use 1 or 2')
    here = {(s, k): np.asarray(v) for s in SECTIONS[driver] for k, v in sections.get(s, {}).items()}
    second = {k: here.pop(('gen', k)) for k in ('bases_2', 'delta_2') if ('gen', k) in here}
    unused = [f'gen:{k}' for k in second]
    if person == 2:
        if len(second) != 2:
            raise UserError('person 2: this checkpoint has no second basis; use person 1')
        unused = ['gen:bases', 'gen:delta']
        here['gen', 'bases'], here['gen', 'delta'] = second['bases_2'], second['delta_2']
    kernels = {('gen', f'encoder.{k}') for k in kernel_keys(size)} if driver == 'picture' else set()
    tree: dict[str, Any] = {'params': {}}
    for key in sorted(kernels & set(here)):
        if not np.allclose(here[key], BLUR, atol=1e-6):
            raise UserError(f'checkpoint: {key[1]} is not the blur kernel [1, 3, 3, 1] of the published encoder')
    generator = {k.removeprefix('generator.'): v for (s, k), v in here.items() if k.startswith('generator.')}
    unknown = [f'{s}:{k}' for s, k in here if (s, k) not in table and (s, k) not in kernels]
    unknown = [k for k in unknown if not k.startswith('gen:generator.')]
    missing = [f'{s}:{k}' for s, k in table if (s, k) not in here]
    if unknown or missing:
        some = ', '.join((missing or unknown)[:4])
        raise UserError(
            f'checkpoint: {len(missing)} entries are missing and {len(unknown)} unknown ({some}, ...); it does not fit '
            f'the {driver} encoder'
        )
    for section in SECTIONS[driver]:
        part = {k: p for (s, k), p in table.items() if s == section}
        flat = {k: v for (s, k), v in here.items() if s == section}
        tree['params'] = merged(tree['params'], to_tree(flat, part))
    for collection, values in from_torch(generator).items():
        tree.setdefault(collection, {})['generator'] = values
    check_tree('checkpoint', tree, abstract(config))
    return tree, unused


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """One nested dict of two without common leaves."""
    out = dict(a)
    for key, value in b.items():
        out[key] = merged(out[key], value) if key in out and isinstance(value, Mapping) else value
    return out


def state_dicts(variables: Mapping[str, Any], config: ModelConfig) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of ``variables_of``: the sections of a checkpoint, blur kernels and constant filters included.

    Raises:
        UserError: several drivers, no offset, or a basis of its own for the driver is nothing that a checkpoint holds.
    """
    if len(config.settings.drivers) != 1 or not config.settings.basis.offset:
        raise UserError(
            f'export: a released checkpoint has one driver and an offset; these weights have the drivers '
            f'{", ".join(config.settings.drivers)} and offset={config.settings.basis.offset}'
        )
    (driver,) = config.settings.drivers
    size = config.settings.encoder.picture_size
    params = dict(variables['params'])
    params['basis'] = {'shared': next(iter(params['basis'].values()))}
    table = personal_table(driver, size)
    sections: dict[str, dict[str, np.ndarray]] = {}
    for section in SECTIONS[driver]:
        sections[section] = to_flat(params, {k: p for (s, k), p in table.items() if s == section})
    if driver == 'picture':
        sections['gen'] |= {f'encoder.{k}': BLUR for k in kernel_keys(size)}
    own = {c: tree['generator'] for c, tree in variables.items() if 'generator' in tree}
    flat = to_torch(own)
    layers = {k.rpartition('.')[0] for k in flat if k.endswith('.noise_const')}
    filtered = layers | {layer.rpartition('.')[0] for layer in layers}  # layers and their blocks
    filtered |= set() if config.generator.superresolution == '8XDC' else {'superresolution'}
    flat |= {f'{owner}.resample_filter': BLUR for owner in filtered}
    sections['gen'] |= {f'generator.{k}': v for k, v in flat.items()}
    return sections
