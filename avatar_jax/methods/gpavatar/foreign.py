"""GPAvatar: the released checkpoint (584 entries) with everything that is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import numpy as np

from avatar_jax.convert.base import ForeignFile, ForeignNetwork, NewWeights, has, places
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.methods.gpavatar.config import METHOD, GPAvatarConfig, ModelConfig
from avatar_jax.methods.gpavatar.model import abstract
from avatar_jax.methods.gpavatar.release import collection_of, state_dict, variables_of
from avatar_jax.models.styleunet_files import QUERY

FILE = 'gpavatar.safetensors'
RELEASED_SAMPLES = 128 * 128 * 32  # places of one pass that the weights of the field were normalised over
Flat = Mapping[str, np.ndarray]
_FIELD = 'nerf_mlp.points_querier.'


def fits(flat: Flat) -> bool:
    """Whether a state dict is GPAvatar's."""
    return has(
        flat,
        query_style_tplane=(1, 1, 3, None, None, None),
        attn_module__scale=(1,),
        nerf_mlp__points_querier__points_feature__weight=(None, None),
    ) and ('style_tplane.final_linear.weight' in flat and 'up_renderer.final_linear.weight' in flat)


def config_of(flat: Flat) -> ModelConfig:
    """Configuration by the shapes of the weights; what they do not show is as released."""

    def count(pattern):
        return len({m.group(1) for k in flat if (m := re.match(pattern, k))})

    points, features = flat[f'{_FIELD}points_feature.weight'].shape
    hidden, inputs = flat[f'{_FIELD}point_layers.0.weight'].shape
    plane = flat[QUERY].shape[-1]
    size = 4 * 2 ** count(r'up_renderer\.conv_body_down\.(\d+)\.')
    widest = int(flat['style_tplane.final_conv.weight'].shape[0])
    first = int(flat['up_renderer.conv_body_first.weight'].shape[0])
    settings = GPAvatarConfig.release(
        field__points=points,
        field__feature_dim=features,
        field__hidden=hidden,
        field__octaves=((inputs - features) // 3 - 1) // 2,
        field__reference_samples=RELEASED_SAMPLES,
        head__plane_channels=int(flat[QUERY].shape[3]),
        head__width=flat['nerf_mlp.feature_layers.0.weight'].shape[0],
        head__color_width=flat['nerf_mlp.rgb_layers.0.weight'].shape[0],
        head__out_channels=flat['nerf_mlp.rgb_layers.2.weight'].shape[0],
    )
    return ModelConfig(
        settings,
        image_size=2 * plane,
        plane_size=plane,
        img_resolution=size,
        channel_base=first * size,
        channel_max=widest,
        style_dim=int(flat['style_tplane.final_linear.weight'].shape[0]),
        mapping_layers=count(r'style_tplane\.stylegan_decoder\.style_mlp\.(\d+)\.'),
    )


def wanted_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of all entries that the networks read."""
    zero = np.zeros((), np.bool_)
    blank = jax.tree.map(lambda x: np.broadcast_to(zero, x.shape), abstract(config))
    return {k: v.shape for k, v in state_dict(blank).items()}


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    flat, place = source.flat(), source.places['']
    try:
        config = ModelConfig.from_dict(source.hint) if source.hint else config_of(flat)
        wanted = wanted_shapes(config)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f'{source.raw.path}: the model is incomplete or of an unknown form ({error})') from error
    taken: dict[str, np.ndarray] = {}
    for key, value in flat.items():
        collection = collection_of(key)
        if key not in wanted and collection not in ('perception', 'unused'):
            report.unexpected[place + key] = ''
        elif key in wanted and value.shape != wanted[key]:
            report.wrong.append(f'{place}{key} {value.shape} instead of {wanted[key]}')
        elif value.dtype.kind not in 'fV':
            report.wrong.append(f'{place}{key} has numbers of the type {value.dtype} instead of float32')
        else:
            taken[key] = value
            report.mapped[place + key] = f'{FILE}: {collection}'
    report.missing += [place + key for key in wanted if key not in flat]
    if not any(collection_of(k) == 'perception' for k in taken):
        report.notes.append('the file has no AlexNet (percep_loss.*); it is only needed for training')
    return [NewWeights(FILE, METHOD, config.to_dict(), taken, variables_of)]


FOREIGN = (
    ForeignFile(
        METHOD,
        'checkpoint of GPAvatar',
        METHOD,
        lambda tensors: places(tensors, QUERY, fits),
        _plan,
        export=lambda weights: state_dict(weights.variables),
    ),
)
