"""The other way: weight files of this project -> safetensors with the original key names and layouts.

The metadata of the file say what it holds and with which configuration, so importing it again gives the same weight
file. Copies and constant buffers that the original programs expect are written again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.convert.kinds import eg3d, faces, gpavatar, perception
from avatar_jax.convert.kinds.base import EXPORT_KEY, FIR
from avatar_jax.convert.kinds.otavatar import CONTROLLER_METHOD
from avatar_jax.convert.kinds.otavatar import METHOD as OTAVATAR
from avatar_jax.convert.layout import to_torch
from avatar_jax.errors import UserError
from avatar_jax.faces.flame import METHOD as FLAME_METHOD
from avatar_jax.io import atomic
from avatar_jax.io.weights import Weights, load_weights
from avatar_jax.methods.otavatar.controller import ControllerConfig, to_release_keys
from avatar_jax.methods.otavatar.model import ModelConfig, network

_CODES = {
    np.dtype(np.float32): 'F32',
    np.dtype(np.int64): 'I64',
    np.dtype(np.int32): 'I32',
    np.dtype(np.uint8): 'U8',
    np.dtype(np.bool_): 'BOOL',
}
_KIND_OF_METHOD = {
    faces.BFM_METHOD: 'bfm2009-front',
    faces.ICT_METHOD: 'ict',
    FLAME_METHOD: 'flame',
    OTAVATAR: OTAVATAR,
    CONTROLLER_METHOD: CONTROLLER_METHOD,
    eg3d.METHOD: 'eg3d',
    eg3d.DISCRIMINATOR_METHOD: eg3d.DISCRIMINATOR_METHOD,
    perception.RECON_METHOD: perception.RECON_METHOD,
    gpavatar.METHOD: gpavatar.METHOD,
}


def export(path: str | os.PathLike, to: str | os.PathLike) -> Path:
    """Writes ``<name>.original.safetensors`` into the folder ``to``; returns its path.

    Raises:
        UserError: not a weight file of something that has an original form, or the place cannot be written to.
    """
    weights = load_weights(path)
    flat = original(weights)
    target = Path(to) / f'{Path(path).stem}.original.safetensors'
    hint = {'kind': kind_of(weights), 'config': weights.config}
    write_safetensors(target, flat, {'format': 'pt', EXPORT_KEY: json.dumps(hint)})
    return target


def kind_of(weights: Weights) -> str:
    """Name of the kind that a weight file is of. Raises ``UserError`` if it has no original form."""
    method = weights.method
    if method.startswith('perception/'):
        return method.removeprefix('perception/')
    if method not in _KIND_OF_METHOD:
        raise UserError(f"{weights.path}: '{method}' is this project's own; it has no original form to export to")
    return _KIND_OF_METHOD[method]


def original(weights: Weights) -> dict[str, np.ndarray]:
    """All entries under the original key names, in the original layouts."""
    kind_of(weights)
    variables, method = weights.variables, weights.method
    if method == OTAVATAR:
        config = ModelConfig.from_dict(weights.config)
        generator = generator_keys(network(variables, 'generator'), config.generator.superresolution)
        controller = to_release_keys(network(variables, 'controller')['params'], config.method.controller)
        return {f'net_G_ema.{k}': v for k, v in generator.items()} | {
            f'net_Warp_ema.{k}': v for k, v in controller.items()
        }
    if method == CONTROLLER_METHOD:
        from avatar_jax.configure import from_plain

        return to_release_keys(variables['params'], from_plain(ControllerConfig, weights.config))
    if method == gpavatar.METHOD:
        return gpavatar.original(variables)
    if method == eg3d.METHOD:
        return generator_keys(variables, weights.config['superresolution'])
    if method == eg3d.DISCRIMINATOR_METHOD:
        return discriminator_keys(variables)
    if method == perception.RECON_METHOD:
        return {f'net_recon.{k}': v for k, v in to_torch(variables).items()}
    if 'arrays' in variables:
        return dict(variables['arrays'])
    return to_torch(variables)


def generator_keys(variables: Mapping[str, Any], superresolution: str) -> dict[str, np.ndarray]:
    """State dict of a generator, with its constant filters."""
    flat = to_torch(variables)
    layers = {k.rpartition('.')[0] for k in flat if k.endswith('.noise_const')}
    owners = layers | {layer.rpartition('.')[0] for layer in layers}
    owners |= set() if superresolution == '8XDC' else {'superresolution'}
    return flat | {f'{owner}.resample_filter': FIR for owner in sorted(owners)}


def discriminator_keys(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """State dict of a discriminator, with its constant filters."""
    flat = to_torch(variables)
    layers = {k.rpartition('.')[0] for k in flat if re.match(r'b\d+\.(fromrgb|conv0|conv1|skip|conv)\.weight', k)}
    blocks = {k.split('.')[0] for k in layers} - {'b4'}
    filters = ['resample_filter', *(f'{owner}.resample_filter' for owner in sorted(layers | blocks))]
    return flat | dict.fromkeys(filters, FIR)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a ``.safetensors`` file, completely or not at all."""
    table: dict[str, Any] = {'__metadata__': dict(metadata)}
    position = 0
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # keeps every tensor aligned
    for name in order:
        value = tensors[name]
        table[name] = {
            'dtype': _CODES[value.dtype],
            'shape': list(value.shape),
            'data_offsets': [position, position + value.nbytes],
        }
        position += value.nbytes
    header = json.dumps(table).encode()
    header += b' ' * (-len(header) % 8)
    with atomic.atomic_path(path) as temporary, open(temporary, 'wb') as file:
        file.write(len(header).to_bytes(8, 'little') + header)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8))
