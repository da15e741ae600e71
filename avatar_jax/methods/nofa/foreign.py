"""Files that NOFA's training starts from, for ``avatar-jax convert``: GFPGAN, and encoders of e4e and pSp.

(ArcFace's IR-SE-50 is a network of the losses as well: ``losses.foreign``.) Training takes the files as they are, or
what they were converted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.convert.base import ForeignFile, ForeignNetwork, NewWeights, has, match, places, under
from avatar_jax.convert.layout import to_torch
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.io.foreign import read
from avatar_jax.io.weights import Weights, load_weights
from avatar_jax.methods.nofa.release import (
    CONTAINERS,
    gfpgan_collection,
    gfpgan_config_of,
    gfpgan_state_dict,
    gfpgan_variables,
)
from avatar_jax.models.e4e import EncoderConfig, abstract_encoder
from avatar_jax.models.e4e_files import PREFIX, config_of, encoder_state_dict, encoder_variables

GFPGAN, ENCODER = 'gfpgan', 'e4e'
BACKBONES = (ENCODER, 'perception/irse50')  # kinds of weight files with an IR-SE-50
COLLECTIONS = ('params', 'batch_stats', 'noise', 'unused')
Flat = Mapping[str, np.ndarray]
_GFPGAN_MARK, _BACKBONE_MARK = 'stylegan_decoder.constant_input.weight', 'input_layer.0.weight'


def state_dict(path: str | Path, kinds: tuple[str, ...]) -> Flat:
    """A network's entries under their original names: of another program's file, or of a weight file of one of the
    kinds.

    Raises:
        UserError: weights of another kind.
    """
    tensors = read(path).tensors
    if all(k.split('.')[0] in COLLECTIONS for k in tensors):
        weights = load_weights(path)
        if weights.method not in kinds:
            raise UserError(f'{path}: these are weights of {weights.method!r}; give a file of {" or ".join(kinds)}')
        return gfpgan_state_dict(weights.variables) if weights.method == GFPGAN else to_torch(weights.variables)
    found = places(tensors, _GFPGAN_MARK if GFPGAN in kinds else _BACKBONE_MARK, lambda flat: True)
    averaged = [p for p in found if CONTAINERS[0] in p]
    return under(tensors, (averaged or found)[0]) if found else tensors


# --------------------------------------------------------------------------------------------------------------- GFPGAN


def _is_gfpgan(flat: Flat) -> bool:
    return has(flat, final_linear__weight=(None, None), conv_body_first__weight=(None, None, None, None))


def _find_gfpgan(tensors: Flat) -> list[str]:
    found = places(tensors, _GFPGAN_MARK, _is_gfpgan)
    # Other networks have such a decoder inside; GFPGAN's file holds nothing else.
    return [p for p in found if p.rstrip('./') in ('', *CONTAINERS)]


def _plan_gfpgan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    flat, place, file = source.flat(), source.places[''], f'{GFPGAN}.safetensors'
    try:
        _, config = gfpgan_variables(flat, str(source.raw.path))
    except UserError:
        config = gfpgan_config_of(flat)
        _compare(flat, _wanted(config), report, place, file)
        return []
    _compare(flat, {k: v.shape for k, v in flat.items()}, report, place, file)
    return [NewWeights(file, GFPGAN, to_plain(config), dict(flat), lambda flat: gfpgan_variables(flat)[0])]


def _wanted(config) -> dict[str, tuple[int, ...]]:
    from avatar_jax.models.gfpgan import abstract_gfpgan

    zero = np.zeros((), np.float32)
    blank = {'params': jax.tree.map(lambda x: np.broadcast_to(zero, x.shape), abstract_gfpgan(config))}
    return {k: v.shape for k, v in gfpgan_state_dict(blank).items()}


def _compare(flat: Flat, wanted: Mapping[str, tuple[int, ...]], report: Report, place: str, file: str) -> None:
    for key, value in flat.items():
        if key in wanted and value.shape != wanted[key]:
            report.wrong.append(f'{place}{key} {value.shape} instead of {wanted[key]}')
        elif key in wanted or gfpgan_collection(key) != 'params':
            report.mapped[place + key] = f'{file}: {gfpgan_collection(key)}'
        else:
            report.unexpected[place + key] = ''
    report.missing += [place + key for key in wanted if key not in flat]


# ------------------------------------------------------------------------------------------------------------ encoders


def _is_encoder(flat: Flat) -> bool:
    return has(flat, input_layer__0__weight=(None, 3, 3, 3), body__0__res_layer__5__fc1__weight=(None, None, 1, 1))


def _plan_encoder(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    flat, place, file = source.flat(), source.places[''], f'{ENCODER}.safetensors'
    try:
        config = from_plain(EncoderConfig, source.hint) if source.hint else config_of(flat)
    except (UserError, KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f'{source.raw.path}: the encoder is incomplete or of an unknown form ({error})') from error
    taken = match(flat, abstract_encoder(config), report, place, file)
    return [NewWeights(file, ENCODER, to_plain(config), taken, lambda flat: encoder_variables(flat, config))]


def _export_encoder(weights: Weights) -> dict[str, np.ndarray]:
    return encoder_state_dict(weights.variables)


_TRAINING = {'opts*': 'options of its training, no weights', 'latent_avg*': 'the mean code of its own generator'}

FOREIGN = (
    ForeignFile(
        GFPGAN,
        'GFPGAN v1.4 ("clean"), which restores faces: the teacher of the teeth stage',
        GFPGAN,
        _find_gfpgan,
        _plan_gfpgan,
        export=lambda weights: gfpgan_state_dict(weights.variables),
        containers=CONTAINERS,
        preferred=CONTAINERS[0],
        left_out={f'{CONTAINERS[1]}/*': 'the network before averaging'},
    ),
    ForeignFile(
        ENCODER,
        'encoder of e4e or pSp (a picture to style rows of a generator)',
        ENCODER,
        lambda tensors: places(tensors, 'styles.0.linear.weight', _is_encoder),
        _plan_encoder,
        export=_export_encoder,
        containers=(PREFIX.rstrip('.'),),
        left_out={**_TRAINING, '*decoder.*': 'the StyleGAN2 of the checkpoint, which renders no heads'},
    ),
)
