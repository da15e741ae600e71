"""Perception networks: VGG, AlexNet, LPIPS channel weights, face recognition, Inception, and the face regressor."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import to_plain
from avatar_jax.convert.kinds.base import Kind, Plan, Source, has, match, places
from avatar_jax.convert.report import Report
from avatar_jax.faces.recon import ReconConfig, ReconNet
from avatar_jax.losses.perception import NETWORKS, abstract_variables
from avatar_jax.models.perception.arcface import IRESNET_LAYERS
from avatar_jax.models.perception.lpips import CHECKSUM_LIN0, TAP_CHANNELS

RECON_METHOD = 'deep3d_recon'
Flat = Mapping[str, np.ndarray]


def _iresnet(depth: int, flat: Flat) -> bool:
    counts = tuple(
        len({m.group(1) for k in flat if (m := re.match(rf'layer{stage}\.(\d+)\.', k))}) for stage in (1, 2, 3, 4)
    )
    return counts == IRESNET_LAYERS[depth] and has(flat, conv1__weight=(64, 3, 3, 3), prelu__weight=(64,))


def _arcface(use_se: bool, flat: Flat) -> bool:
    return has(flat, conv1__weight=(64, 1, 3, 3), layer1__0__bn0__weight=(64,)) and use_se == any(
        k.startswith('layer1.0.se.') for k in flat
    )


def _ir(use_se: bool, flat: Flat) -> bool:
    return has(flat, input_layer__0__weight=(64, 3, 3, 3)) and use_se == ('body.0.res_layer.5.fc1.weight' in flat)


# name -> (a key that few other networks have, what must hold about the entries beside it)
_SIGNATURES: dict[str, tuple[str, Callable[[Flat], bool]]] = {
    'vgg19': (
        'features.34.weight',
        lambda f: has(f, features__34__weight=(512, 512, 3, 3), features__0__weight=(64, 3, 3, 3)),
    ),
    'vgg16': (
        'features.24.weight',
        lambda f: (
            'features.34.weight' not in f
            and has(f, features__24__weight=(512, 512, 3, 3), features__0__weight=(64, 3, 3, 3))
        ),
    ),
    'alexnet': ('features.10.weight', lambda f: has(f, features__0__weight=(64, 3, 11, 11))),
    'squeezenet': ('features.12.squeeze.weight', lambda f: has(f, features__0__weight=(64, 3, 3, 3))),
    'arcface18': ('fc5.weight', partial(_arcface, False)),
    'arcface18_se': ('fc5.weight', partial(_arcface, True)),
    **{f'iresnet{d}': ('features.running_mean', partial(_iresnet, d)) for d in IRESNET_LAYERS},
    'ir50': ('output_layer.3.weight', partial(_ir, False)),
    'irse50': ('output_layer.3.weight', partial(_ir, True)),
    'inception': ('Mixed_7c.branch_pool.conv.weight', lambda f: has(f, Conv2d_1a_3x3__conv__weight=(32, 3, 3, 3))),
}
_UNUSED = {'classifier.': 'the classifier is not used', 'fc.': 'the classifier is not used'}


def _network(name: str) -> Kind:
    anchor, fits = _SIGNATURES[name]
    unused = {k: v for k, v in _UNUSED.items() if k in NETWORKS[name].unused or (k, name) == ('fc.', 'inception')}
    if name == 'inception':
        unused['AuxLogits.'] = 'the auxiliary classifier is not used'

    def plan(source: Source, report: Report) -> list[Plan]:
        file, place = f'{name}.safetensors', source.places['']
        template, flat = abstract_variables(name), source.flat()
        if name in ('ir50', 'irse50'):
            flat = _plain_output_norm(flat, report, place)
        dropped = {k: w for k, w in unused.items() if not any(p.startswith(k) for p in _first_names(template))}
        taken = match(flat, template, report, place, file, unused=dropped)
        return [Plan(file, f'perception/{name}', {}, taken)]

    return Kind(name, f'{name}: {NETWORKS[name].purpose}', lambda tensors: places(tensors, anchor, fits), plan)


def _first_names(template) -> set[str]:
    return {f'{name}.' for tree in template.values() for name in tree}


def _plain_output_norm(flat: dict[str, np.ndarray], report: Report, place: str) -> dict[str, np.ndarray]:
    """Some builds normalise the embedding without weight and bias: ones and zeros."""
    for leaf, value in (('weight', 1.0), ('bias', 0.0)):
        key = f'output_layer.4.{leaf}'
        if key not in flat and 'output_layer.4.running_mean' in flat:
            flat[key] = np.full(flat['output_layer.4.running_mean'].shape, value, np.float32)
            report.notes.append(f'{place}{key} is not in the file: the build without it has {value:g} everywhere')
    return flat


# --------------------------------------------------------------------------------------------- LPIPS channel weights


def _lin(net: str) -> Kind:
    channels = TAP_CHANNELS[net]
    keys = {f'lin{k}.model.1.weight': (1, c, 1, 1) for k, c in enumerate(channels)}

    def fits(flat: Flat) -> bool:
        layers = {k for k in flat if re.fullmatch(r'lin\d+\.model\.1\.weight', k)}
        return layers == set(keys) and all(flat[k].shape == s for k, s in keys.items())

    def plan(source: Source, report: Report) -> list[Plan]:
        name, place, flat = f'lpips_{net}', source.places[''], source.flat()
        for key in flat:
            full = place + key
            if key in keys:
                report.mapped[full] = f'{name}.safetensors: params.{key}'
            else:
                report.unexpected[full] = ''
        total = float(flat['lin0.model.1.weight'].astype(np.float64).sum())
        if abs(total - CHECKSUM_LIN0[net]) > 1e-3:
            report.wrong.append(
                f'{place}lin0.model.1.weight sums to {total:.5f}, version 0.1 to {CHECKSUM_LIN0[net]:.5f} (version 0.0 '
                'forgot the scaling of the input and is not supported)'
            )
        taken = {k: flat[k] for k in keys}
        return [Plan(f'{name}.safetensors', f'perception/{name}', {}, taken)]

    return Kind(
        f'lpips_{net}',
        f'channel weights of LPIPS ({net}, version 0.1)',
        lambda tensors: places(tensors, 'lin0.model.1.weight', fits),
        plan,
    )


# ------------------------------------------------------------------------------------------------- the face regressor


def recon_config(flat: Flat) -> ReconConfig:
    """Widths of a regressor by the shapes of its weights."""
    planes, blocks = [], []
    for stage in range(1, 10):
        if f'backbone.layer{stage}.0.conv1.weight' not in flat:
            break
        planes.append(int(flat[f'backbone.layer{stage}.0.conv1.weight'].shape[0]))
        blocks.append(sum(bool(re.fullmatch(rf'backbone\.layer{stage}\.\d+\.conv1\.weight', k)) for k in flat))
    heads = [k for k in flat if re.fullmatch(r'final_layers\.\d+\.bias', k)]
    sizes = tuple(int(flat[k].shape[0]) for k in sorted(heads, key=lambda k: int(k.split('.')[1])))
    return ReconConfig(int(flat['backbone.conv1.weight'].shape[0]), tuple(planes), tuple(blocks), sizes)


@lru_cache(maxsize=4)
def abstract_recon(config: ReconConfig):
    """Names and shapes of the regressor's variables."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(lambda x: ReconNet(config).init(jax.random.key(0), x), image)


def _plan_recon(source: Source, report: Report) -> list[Plan]:
    flat, file = source.flat(), f'{RECON_METHOD}.safetensors'
    config = recon_config(flat)
    taken = match(flat, abstract_recon(config), report, source.places[''], file)
    return [Plan(file, RECON_METHOD, to_plain(config), taken)]


def _fits_recon(flat: Flat) -> bool:
    return has(flat, backbone__conv1__weight=(None, 3, 7, 7), backbone__layer1__0__conv3__weight=(None, None, 1, 1))


PERCEPTION = (
    *(_network(name) for name in _SIGNATURES),
    *(_lin(net) for net in TAP_CHANNELS),
    Kind(
        RECON_METHOD,
        'coefficient regressor of Deep3DFaceRecon (ResNet-50)',
        lambda tensors: places(tensors, 'final_layers.6.weight', _fits_recon),
        _plan_recon,
    ),
)
