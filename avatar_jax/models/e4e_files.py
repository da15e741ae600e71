"""Foreign files of the encoder: released e4e / pSp checkpoints, and ArcFace's IR-SE-50 as a first backbone.

Names of this encoder are the dotted keys of the files, so the mapping is ``convert.layout``; here is what must be known
besides: where the encoder is in a checkpoint, its sizes, and what can be used of a file that does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.errors import UserError
from avatar_jax.models.e4e import EncoderConfig, abstract_encoder

Flat = Mapping[str, np.ndarray]
PREFIX = 'encoder.'
BACKBONE = ('input_layer.', 'body.')
IGNORED = ('output_layer.',)
"""Parts of an ArcFace file that the encoder does not have."""


def encoder_part(flat: Flat) -> dict[str, np.ndarray]:
    """The encoder's entries of a checkpoint's ``state_dict``, or all of a file that holds the encoder alone."""
    inside = {k.removeprefix(PREFIX): v for k, v in flat.items() if k.startswith(PREFIX)}
    found = inside or dict(flat)
    return {k: v for k, v in found.items() if not k.endswith('num_batches_tracked')}


def number_of_heads(flat: Flat) -> int:
    """Style heads in a state dict: 14 for a generator of 256, 18 for one of 1024; 0 in an ArcFace file."""
    return len({m.group(1) for k in flat if (m := re.match(r'styles\.(\d+)\.', k))})


def config_of(flat: Flat, shared: bool = True) -> EncoderConfig:
    """The sizes of an encoder from its entries. ``shared``: whether it is an e4e (a file does not say it).

    Raises:
        UserError: it is not an encoder of this family.
    """
    if 'input_layer.0.weight' not in flat or 'body.0.res_layer.5.fc1.weight' not in flat or not number_of_heads(flat):
        raise UserError('encoder file: it has no IR-SE backbone with style heads; give a checkpoint of e4e or pSp')
    units: list[int] = []
    widths: list[int] = []
    inputs = flat['input_layer.0.weight'].shape[0]
    body = sorted({int(m.group(1)) for k in flat if (m := re.match(r'body\.(\d+)\.', k))})
    for i in body:
        width = flat[f'body.{i}.res_layer.1.weight'].shape[0]
        if i == 0 or width != widths[-1]:
            widths.append(width)
            units.append(0)
        units[-1] += 1
    heads = number_of_heads(flat)
    depths = [sum(k.startswith(f'styles.{j}.convs.') and k.endswith('.weight') for k in flat) for j in range(heads)]
    width_of_rows, inner = flat[f'styles.{heads - 1}.linear.weight'].shape  # the last head has convolutions
    return EncoderConfig(
        image_size=16 * 2 ** depths[0],
        num_ws=heads,
        w_dim=width_of_rows,
        stem=inputs,
        widths=tuple(widths),
        units=tuple(units),
        reduction=widths[0] // flat['body.0.res_layer.5.fc1.weight'].shape[0],
        coarse=depths.count(depths[0]),
        middle=depths.count(depths[0]) + depths.count(depths[0] + 1),
        shared=shared,
        head_width=None if inner == width_of_rows else inner,
    )


def encoder_variables(flat: Flat, config: EncoderConfig, source: str = 'encoder file') -> dict[str, Any]:
    """Variables of an encoder from a state dict.

    Raises:
        UserError: another number of style heads, or other sizes.
    """
    flat, heads = encoder_part(flat), number_of_heads(encoder_part(flat))
    if heads != config.num_ws:
        raise UserError(
            f'{source}: it has {heads} style heads, but the generator takes {config.num_ws} style rows; only its '
            f'backbone can be used (with_backbone)'
        )
    try:
        return from_torch(flat, abstract_encoder(config))
    except UserError as error:
        raise UserError(f'{source}: {error}') from error


def encoder_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``encoder_variables``: official keys and layouts (without counters)."""
    return to_torch(variables)


def backbone_part(flat: Flat) -> dict[str, np.ndarray]:
    """IR-SE entries of an ArcFace file or of an encoder."""
    return {k: v for k, v in encoder_part(flat).items() if k.startswith(BACKBONE)}


def with_backbone(variables: Mapping[str, Any], flat: Flat, source: str = 'backbone file') -> dict[str, Any]:
    """The encoder's variables with the backbone of an ArcFace IR-SE-50 file, or of an e4e / pSp encoder of any number
    of heads; heads and lateral layers stay.

    Raises:
        UserError: the backbone has other sizes.
    """
    template = {c: {k: v for k, v in tree.items() if f'{k}.' in BACKBONE} for c, tree in variables.items()}
    try:
        found = from_torch(backbone_part(flat), jax.eval_shape(lambda: template))
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    return {c: {**tree, **jax.tree.map(jax.numpy.asarray, found[c])} for c, tree in variables.items()}
