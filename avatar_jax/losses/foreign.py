"""Public files of the perception networks: VGG, AlexNet, LPIPS channel weights, face recognition, Inception.

They are here and not beside the modules in ``models.perception``, because the table of the networks and the losses that
records are made of are here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.convert.base import ForeignFile, ForeignNetwork, NewWeights, has, match, places
from avatar_jax.convert.comparison import NET, VALUE, Verification, nchw, nhwc, picture, thinned
from avatar_jax.convert.layout import to_torch
from avatar_jax.convert.report import Report
from avatar_jax.losses.perception import NETWORKS, abstract_variables
from avatar_jax.losses.perceptual import perceptual_layers, perceptual_target
from avatar_jax.models.perception.arcface import IRESNET_LAYERS, ffhq_face_crop, l2_normalize, to_gray
from avatar_jax.models.perception.inception import fid_features
from avatar_jax.models.perception.lpips import (
    CHECKSUM_LIN0,
    TAP_CHANNELS,
    lin_weights,
    lpips_features,
    lpips_layers,
)
from avatar_jax.parallel import as_arrays

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
    'dlib_face': ('affine28.weight', lambda f: has(f, conv0__weight=(32, 3, 7, 7), fc__weight=(128, 256))),
    'inception': ('Mixed_7c.branch_pool.conv.weight', lambda f: has(f, Conv2d_1a_3x3__conv__weight=(32, 3, 3, 3))),
}
_UNUSED = {'classifier.': 'the classifier is not used', 'fc.': 'the classifier is not used'}


def _network(name: str) -> ForeignFile:
    anchor, fits = _SIGNATURES[name]
    unused = {k: v for k, v in _UNUSED.items() if k in NETWORKS[name].unused or (k, name) == ('fc.', 'inception')}
    if name == 'inception':
        unused['AuxLogits.'] = 'the auxiliary classifier is not used'

    def plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
        file, place = f'{name}.safetensors', source.places['']
        template, flat = abstract_variables(name), source.flat()
        if name in ('ir50', 'irse50'):
            flat = _plain_output_norm(flat, report, place)
        dropped = {k: w for k, w in unused.items() if not any(p.startswith(k) for p in _first_names(template))}
        taken = match(flat, template, report, place, file, unused=dropped)
        return [NewWeights(file, f'perception/{name}', {}, taken)]

    return ForeignFile(
        name,
        f'{name}: {NETWORKS[name].purpose}',
        f'perception/{name}',
        lambda tensors: places(tensors, anchor, fits),
        plan,
        verify=_RECORDS.get(name, {}),
    )


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


def _lin(net: str) -> ForeignFile:
    channels = TAP_CHANNELS[net]
    keys = {f'lin{k}.model.1.weight': (1, c, 1, 1) for k, c in enumerate(channels)}

    def fits(flat: Flat) -> bool:
        layers = {k for k in flat if re.fullmatch(r'lin\d+\.model\.1\.weight', k)}
        return layers == set(keys) and all(flat[k].shape == s for k, s in keys.items())

    def plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
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
        return [NewWeights(f'{name}.safetensors', f'perception/{name}', {}, taken)]

    return ForeignFile(
        f'lpips_{net}',
        f'channel weights of LPIPS ({net}, version 0.1)',
        f'perception/lpips_{net}',
        lambda tensors: places(tensors, 'lin0.model.1.weight', fits),
        plan,
        verify=_LPIPS,
    )


# ------------------------------------------------------------------------------------------------------- verification

_FACE_NETS = {'arc18': 'arcface18', 'arc18_se': 'arcface18_se'}


def _variables(run: Verification, name: str):
    weights = run.find(f'perception/{name}')
    if name in NETWORKS and run.golden.param:
        flat = to_torch(weights.variables)
        run.weights(flat, {k: v for k, v in run.golden.param.items() if k in flat})
    return as_arrays(weights.variables)


def _apply(name: str):
    return jax.jit(NETWORKS[name].build().apply)


def _compare_arcface(run: Verification) -> None:
    golden, variables = run.golden, _variables(run, 'arcface18')
    module = NETWORKS['arcface18'].build()
    embedding, stages = jax.jit(lambda v, x: module.apply(v, x, stages=True))(variables, nhwc(golden.inp['gray']))
    for name, stage in zip(('stem', 'layer1', 'layer2', 'layer3', 'layer4'), stages, strict=True):
        if name in golden.out:
            run.compare(name, thinned(nchw(stage), golden.out[name]), VALUE)
    run.compare('embedding', embedding, VALUE)
    if 'target' in golden.inp:
        # A mean of numbers of both signs: its error is measured against the numbers, not against what is left of them.
        run.compare('scalar', jnp.mean(embedding * jnp.asarray(golden.inp['target'])), 1e-2)


def _compare_face_nets(run: Verification) -> None:
    """Compares the embeddings of those networks that were imported."""
    golden, kept = run.golden, {}

    def embed(name, x):
        if name not in kept:
            kept.clear()  # they are large
            kept[name] = _variables(run, name)
        return _apply(name)(kept[name], x)

    for key in sorted(golden.out):
        net, _, variant = key.partition('_')
        if key.startswith('psp_crop'):
            crop = ffhq_face_crop(picture(golden.inp['big_u8']))
            if variant.endswith('slice'):
                run.compare(key, thinned(nchw(crop), golden.out[key]), NET)
            elif 'perception/irse50' in run.files:
                run.compare(key, l2_normalize(embed('irse50', crop)), NET)
            continue
        net = net if variant in ('', 'raw', 'norm') else key
        name = _FACE_NETS.get(net, net)
        if f'perception/{name}' not in run.files:
            continue
        x = to_gray(picture(golden.inp['g_u8'])) if name.startswith('arcface18') else picture(golden.inp['x_u8'])
        y = embed(name, x)
        run.compare(key, l2_normalize(y) if variant == 'norm' else y, NET)


def _compare_vgg(run: Verification) -> None:
    golden, variables = run.golden, _variables(run, 'vgg19')
    a, b = picture(golden.inp['a_u8']), picture(golden.inp['b_u8'])
    layers, weight = golden.config['layers'], golden.config['style_weight']
    scales = max(int(k.removeprefix('total_')) for k in golden.out if k.startswith('total_'))
    content, style = jax.jit(lambda v, a, b: perceptual_layers(v, a, perceptual_target(v, b, scales)))(variables, a, b)
    for i, layer in enumerate(layers):
        run.compare(f'style_{layer}', style[0, i], NET)
        for s in range(scales):
            run.compare(f'l1_s{s}_{layer}', content[s, i], NET)
    for count in range(1, scales + 1):
        run.compare(f'total_{count}', content[:count].sum() + weight * style[0].sum(), NET)


def _compare_perceptual(run: Verification) -> None:
    golden, variables = run.golden, _variables(run, 'vgg19')
    scales, weight = golden.config['num_scales'], golden.config['style_to_perceptual']
    pred, target = nhwc(golden.inp['pred']), nhwc(golden.inp['target'])
    mask = nhwc(golden.inp['mask']) if 'mask' in golden.inp else None

    @jax.jit
    def terms(variables, pred, target, mask):
        return perceptual_layers(variables, pred, perceptual_target(variables, target, scales, mask=mask))

    content, style = terms(variables, pred, target, mask)
    run.compare('loss', content.sum() + weight * style.sum(), NET)
    run.compare('per_layer_l1', content, NET)
    run.compare('gram_l1', style[0], NET)


def _compare_lpips(run: Verification) -> None:
    """Compares those variants whose trunk was imported; recorded channel weights are used where there are any."""
    golden = run.golden
    a, b = picture(golden.inp['a_u8']), picture(golden.inp['b_u8'])
    for net, trunk in (('alex', 'alexnet'), ('vgg', 'vgg16'), ('squeeze', 'squeezenet')):
        if f'{net}.total' not in golden.out or f'perception/{trunk}' not in run.files:
            continue
        variables = _variables(run, trunk)
        stored = {k.partition('.')[2]: v for k, v in golden.param.items() if k.startswith(f'{net}.lin')}
        lin = lin_weights(stored or to_torch(run.find(f'perception/lpips_{net}').variables))

        @jax.jit
        def layers(variables, a, b, net=net, lin=lin):
            taps = lpips_features(net, variables, a)
            return taps, lpips_layers(taps, lpips_features(net, variables, b), lin)

        taps, values = layers(variables, a, b)
        for k in range(len(lin)):
            run.compare(f'{net}.tap_{k}_mean', taps[k].mean((1, 2)), NET)
            run.compare(f'{net}.layer_{k}', np.asarray(values[:, k])[:, None, None, None], NET)
        run.compare(f'{net}.total', np.asarray(values.sum(-1))[:, None, None, None], NET)
        if stored:
            run.result.notes.append(f'{net}: channel weights of the record, not imported ones')


def _compare_inception(run: Verification) -> None:
    golden, variables = run.golden, _variables(run, 'inception')
    x = nhwc(np.asarray(golden.inp['x_u8'], np.float32) / 255)
    features, blocks = jax.jit(fid_features, static_argnums=2)(variables, x, True)
    for i, block in enumerate(blocks):
        if f'block{i}' in golden.out:
            run.compare(f'block{i}', thinned(nchw(block), golden.out[f'block{i}']), NET)
    run.compare('pool3', features, NET)


_FACE_RECORDS = {'arcface_nets': _compare_face_nets}
_LPIPS = {'lpips_nets': _compare_lpips}
_RECORDS: dict[str, dict[str, Callable[[Verification], None]]] = {
    'vgg19': {'vgg19_perceptual': _compare_vgg, 'perceptual': _compare_perceptual},
    **dict.fromkeys(('vgg16', 'alexnet', 'squeezenet'), _LPIPS),
    'inception': {'inception_fid': _compare_inception},
    'arcface18': _FACE_RECORDS | {'arcface_full': _compare_arcface},
    **dict.fromkeys(('arcface18_se', *(f'iresnet{d}' for d in IRESNET_LAYERS), 'ir50', 'irse50'), _FACE_RECORDS),
}

FOREIGN = (*(_network(name) for name in _SIGNATURES), *(_lin(net) for net in TAP_CHANNELS))
