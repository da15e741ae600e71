"""Resampling, layers, mapping, synthesis and super-resolution against reference numbers."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.models.layers import (
    Conv2dLayer,
    FullyConnected,
    SynthesisBlock,
    SynthesisBlockNoUp,
)
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.models.superresolution import VARIANTS, SuperResolution
from avatar_jax.models.synthesis import SynthesisNetwork
from avatar_jax.ops import resample
from avatar_jax.ops.activations import bias_act
from avatar_jax.ops.modulated import modulated_conv2d
from avatar_jax.ops.resize import filtered_resizing
from tests.comparison import close
from tests.parity.golden import handles

VALUE, GRADIENT = 2e-4, 3e-3  # of the largest magnitude


def nhwc(x):
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def hwio(w):
    return jnp.asarray(np.asarray(w).transpose(2, 3, 1, 0))


def oihw(w):
    return np.asarray(w).transpose(3, 2, 0, 1)


def ramp(height, width, channels):
    """y/H - x/W + 0.25*(c-1), channel-last."""
    y, x = np.arange(height)[:, None, None] / height, np.arange(width)[None, :, None] / width
    return jnp.asarray(y - x + 0.25 * (np.arange(channels) - 1), jnp.float32)


def ramp_loss(y):
    return jnp.mean(jnp.square(y) * ramp(*y.shape[1:]))


def described_slice(golden, text):
    """The index that the file's description gives in brackets after ``text``: 'planes = x' for 'planes =
    x[:,:,::2]'.
    """
    described = golden.config.get('what') or golden.config['note']
    inside = re.search(re.escape(text) + r'\[([^\]]*)\]', described).group(1)
    parts = [part.strip().split(':') for part in inside.split(',')]
    return tuple(slice(*(int(n) if n else None for n in part)) for part in parts)


def child(tree, name):
    """Variables of one sub-module out of the variables of its parent."""
    return {collection: values[name] for collection, values in tree.items() if name in values}


def compare_gradients(golden, prefix, grads):
    """Compares the parameter gradients that the file has below ``grad/<prefix>`` under dotted keys; returns how
    many.
    """
    flat = to_torch(grads)
    keys = [k for k in golden.grad if k.startswith(prefix) and k[len(prefix) :] in flat]
    for key in keys:
        close(flat[key[len(prefix) :]], golden.grad[key], scale=GRADIENT, what=f'grad/{key}')
    return len(keys)


FILTERS = {
    'f1331': {'f': [1, 3, 3, 1]},
    'f_1d_short_to2d': {'f': [1, 2, 4, 1]},
    'f_gain3_flip': {'f': [1, 2, 4, 1], 'flip_filter': True, 'gain': 3},
    'f_nonorm': {'f': [1, 2, 1], 'normalize': False},
    'f_none': {'f': None},
}


@pytest.mark.slow
@handles('eg3d', 'upfirdn2d')
def test_upfirdn2d(golden):
    for name, options in FILTERS.items():
        if name in golden.inp:
            close(resample.setup_filter(**options), golden.inp[name], rtol=1e-6, what=name)
    x = nhwc(golden.inp['x'])
    for i, case in enumerate(golden.config['cases']):
        options = dict(case)
        op, f = getattr(resample, options.pop('op')), options.pop('f')
        f = None if f is None else golden.inp[f]
        expected = golden.out[f'case{i:02d}']
        y = jax.jit(lambda x: op(x, f, **options))(x)  # noqa: B023 - called at once
        close(nchw(y), expected, scale=VALUE, what=f'case {i} {case}')
        if f is not None:  # a filter that is not a constant takes the general path
            y = jax.jit(lambda x, f: op(x, f, **options))(x, f)  # noqa: B023 - called at once
            close(nchw(y), expected, scale=VALUE, what=f'case {i} {case}, traced filter')
    golden.check_all_used()


@handles('eg3d', 'conv2d_resample')
def test_conv2d_resample(golden):
    x = nhwc(golden.inp['x'])
    for i, case in enumerate(golden.config['cases']):
        options = dict(case)
        w, f = hwio(golden.inp[options.pop('w')]), golden.inp[options.pop('f')]
        y = jax.jit(lambda x, w: resample.conv2d_resample(x, w, f, **options))(x, w)  # noqa: B023 - called at once
        close(nchw(y), golden.out[f'case{i:02d}'], scale=VALUE, what=f'case {i} {case}')
    golden.check_all_used()


@handles('eg3d', 'filtered_resizing')
def test_filtered_resizing(golden):
    f = resample.setup_filter([1, 3, 3, 1])
    for key, expected in golden.out.items():
        name, size, mode = key.split('_')
        mode = mode if mode.isalpha() else float(mode)
        y = filtered_resizing(nhwc(golden.inp[name]), int(size), f, mode)
        close(nchw(y), expected, scale=VALUE, what=key)
    golden.check_all_used()


def parse_activation(name):
    """'lrelu_alpha.1_gain3_clamp1' -> ('lrelu', {'alpha': .1, 'gain': 3., 'clamp': 1.})."""
    act, *rest = name.split('_')
    options = {}
    for part in rest:
        key = part.rstrip('0123456789.-')
        options[key] = float(part[len(key) :])
    return act, options


@pytest.mark.slow
@handles('eg3d', 'layers')
def test_layers(golden):
    tree = from_torch(golden.param)
    for name, kwargs in golden.config['layers']:
        kwargs = dict(kwargs)
        fields = {'use_bias': kwargs.pop('bias', True)}
        variables = child(tree, name)
        if 'in_features' in kwargs:
            assert kwargs.pop('in_features') == golden.inp['x_fc'].shape[1]
            layer = FullyConnected(kwargs.pop('out_features'), **fields, **kwargs)
            y = layer.apply(variables, jnp.asarray(golden.inp['x_fc']))
            init_x = jnp.asarray(golden.inp['x_fc'])
        else:
            assert kwargs.pop('in_channels') == golden.inp['x_conv'].shape[1]
            gain = kwargs.pop('forward_gain', 1.0)
            layer = Conv2dLayer(kwargs.pop('out_channels'), **fields, **kwargs)
            init_x = nhwc(golden.inp['x_conv'])
            y = nchw(layer.apply(variables, init_x, gain))
        close(y, golden.out[name], scale=VALUE, what=name)
        shapes = jax.eval_shape(layer.init, jax.random.key(0), init_x)
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    for key, expected in golden.out.items():
        if key.startswith('bias_act_'):
            act, options = parse_activation(key.removeprefix('bias_act_'))
            y = bias_act(nhwc(golden.inp['x_act']), jnp.asarray(golden.inp['b_act']), act, **options)
            close(nchw(y), expected, scale=VALUE, what=key)
    golden.check_all_used()


@handles('eg3d', 'mapping')
def test_mapping(golden):
    cfg = golden.config
    tree = from_torch(golden.param)
    variables = child({k: v.get('backbone', {}) for k, v in tree.items()}, 'mapping')
    net = MappingNetwork(
        cfg['z_dim'],
        cfg['c_dim'],
        cfg['w_dim'],
        cfg['num_ws'],
        cfg['num_layers'],
        cfg['lr_multiplier'],
        cfg['w_avg_beta'],
    )
    z, c = jnp.asarray(golden.inp['z']), jnp.asarray(golden.inp['c']) if cfg['c_dim'] else None
    for key in [k for k in golden.out if k.startswith('ws_psi')]:
        psi, _, cutoff = key.removeprefix('ws_psi').partition('_cutoff')
        ws = net.apply(variables, z, c, float(psi), int(cutoff) if cutoff else None)
        close(ws, golden.out[key], scale=VALUE, what=key)
    _, state = net.apply(variables, z, c, update_emas=True, mutable=['ema_stats'])
    close(state['ema_stats']['w_avg'], golden.out['w_avg_after_one_update'], scale=VALUE, what='w_avg')

    def loss(params, z, c):
        ws = net.apply({**variables, 'params': params}, z, c, 0.7)
        return jnp.mean(jnp.square(ws) * jnp.arange(1, cfg['num_ws'] + 1, dtype=jnp.float32)[:, None])

    grads, gz, gc = jax.jit(jax.grad(loss, (0, 1, 2)))(variables['params'], z, c)
    close(gz, golden.grad['z'], scale=GRADIENT, what='grad z')
    if c is not None:
        close(gc, golden.grad['c'], scale=GRADIENT, what='grad c')
    assert compare_gradients(golden, 'backbone.mapping.', {'params': grads})

    if 'cmap' in golden.out:
        variables = child(tree, 'mapping')
        layers = sum(name.startswith('fc') for name in variables['params'])
        net = MappingNetwork(0, cfg['c_dim'], cfg['w_dim'], None, layers)
        close(net.apply(variables, None, c), golden.out['cmap'], scale=VALUE, what='cmap')
    golden.check_all_used()


@cache
def float16_compiles() -> bool:
    """Whether XLA can convert to float16: on processors without F16C it ends with an unknown symbol."""
    try:
        jax.jit(lambda x: x.astype(jnp.float16))(jnp.ones(2))
    except jax.errors.JaxRuntimeError as error:
        assert 'Failed to materialize symbols' in str(error)
        return False
    return True


@pytest.mark.slow
@handles('eg3d', 'modulated_conv2d')
def test_modulated_conv2d(golden):
    x, styles = nhwc(golden.inp['x']), jnp.asarray(golden.inp['styles'])
    f = golden.inp['resample_filter']
    for i, case in enumerate(golden.config['cases']):
        options = dict(case)
        options.pop('fused_modconv')  # two ways to the same numbers
        w, noise = hwio(golden.inp[options.pop('weight')]), options.pop('noise')
        if noise is not None:
            noise = golden.inp[noise]
            noise = jnp.asarray(noise) if noise.ndim == 2 else nhwc(noise)

        def run(x, w, s):
            return modulated_conv2d(x, w, s, noise, resample_filter=f, **options)  # noqa: B023 - called at once

        close(nchw(jax.jit(run)(x, w, styles)), golden.out[f'case{i:02d}'], scale=VALUE, what=f'case {i}')
        if f'case{i:02d}/x' in golden.grad:
            gx, gw, gs = jax.jit(jax.grad(lambda *a: ramp_loss(run(*a)), (0, 1, 2)))(x, w, styles)
            for name, g in (('x', nchw(gx)), ('weight', oihw(gw)), ('styles', gs)):
                close(g, golden.grad[f'case{i:02d}/{name}'], scale=GRADIENT, what=f'grad case {i} {name}')
    if 'fp16_case' in golden.out and float16_compiles():
        y = modulated_conv2d(
            (100 * x).astype(jnp.float16),
            50 * hwio(golden.inp['weight3']),
            30 * styles,
            up=2,
            padding=1,
            resample_filter=f,
            flip_weight=False,
        )
        assert y.dtype == jnp.float16
        close(nchw(y).astype(np.float32), golden.out['fp16_case'], scale=1e-2, what='fp16')
    golden.check_all_used(ignore=() if float16_compiles() else ('out/fp16_case',))


@pytest.mark.slow
@handles('eg3d', 'synthesis_block')
def test_synthesis_block(golden):
    cfg = golden.config
    tree = from_torch(golden.param)
    ws = jnp.asarray(golden.inp['ws'])
    summed = re.findall(r'mean\((\w+)\.img\^2', cfg['what'])
    assert summed and set(summed) <= set(cfg['blocks'])
    blocks, rows, first = {}, {}, 0
    for name, b in cfg['blocks'].items():
        cls = SynthesisBlockNoUp if 'noup' in name else SynthesisBlock
        blocks[name] = cls(b['in_ch'], b['out_ch'], b['res'], cfg['img_channels'], conv_clamp=b['conv_clamp'])
        rows[name] = slice(first, first + blocks[name].num_conv + 1)
        first += blocks[name].num_conv + 1

    def run(variables, ws, mode):
        x = img = None
        out = {}
        for name, block in blocks.items():
            x, img = block.apply(child(variables, name), x, img, ws[:, rows[name]], mode)
            out[f'{name}.x'], out[f'{name}.img'] = x, img
        return out

    def compare(out, mode):
        for name, y in out.items():
            close(nchw(y), golden.out[f'{mode}/{name}'], scale=VALUE, what=f'{mode} {name}')

    compare(jax.jit(run, static_argnums=2)(tree, ws, 'const'), 'const')
    compare(jax.jit(run, static_argnums=2)(tree, ws, 'none'), 'none')
    # Recorded random noise: one draw per sample takes the place of the buffer.
    flat = {tuple(k.split('/')[1].split('.')) + ('noise_const',): v for k, v in golden.inp.items() if 'random' in k}
    draws = traverse_util.unflatten_dict({k: jnp.asarray(v[:, 0]) for k, v in flat.items()})
    assert jax.tree.structure(draws) == jax.tree.structure(tree['noise'])
    per_sample = jax.jit(jax.vmap(lambda w, n: run({**tree, 'noise': n}, w[None], 'const')))(ws, draws)
    compare({k: v[:, 0] for k, v in per_sample.items()}, 'random')

    def loss(params, ws):
        out = run({**tree, 'params': params}, ws, 'const')
        return sum(ramp_loss(out[f'{name}.img']) for name in summed)

    value, (grads, gws) = jax.jit(jax.value_and_grad(loss, (0, 1)))(tree['params'], ws)
    close(value, golden.out['const/loss'], rtol=VALUE, what='loss')
    close(gws, golden.grad['ws'], scale=GRADIENT, what='grad ws')
    assert compare_gradients(golden, '', {'params': grads})
    golden.check_all_used()


@pytest.mark.slow
@handles('eg3d', 'backbone')
def test_backbone(golden):
    cfg = golden.config
    net = SynthesisNetwork(
        cfg['img_resolution'], cfg['img_channels'], cfg['channel_base'], cfg['channel_max'], cfg['conv_clamp']
    )
    assert net.num_ws == cfg['num_ws']
    ws = jnp.asarray(golden.inp['ws'])
    shapes = jax.eval_shape(net.init, jax.random.key(0), ws)
    flat = {k.removeprefix('backbone.synthesis.'): v for k, v in golden.param.items() if '.synthesis.' in k}
    tree = from_torch(flat, shapes)

    strided = described_slice(golden, 'planes_strided = planes')
    patch = described_slice(golden, 'planes_patch = planes')

    def loss(params, ws):
        planes = net.apply({**tree, 'params': params}, ws, 'const')
        return ramp_loss(planes), planes

    (value, planes), (grads, gws) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(tree['params'], ws)
    close(value, golden.out['loss'], rtol=VALUE, what='loss')
    close(nchw(planes)[strided], golden.out['planes_strided'], scale=VALUE, what='planes')
    close(nchw(planes)[patch], golden.out['planes_patch'], scale=VALUE, what='patch')
    close(np.mean(planes, (1, 2)), golden.out['planes_mean'], scale=VALUE, what='mean')
    close(np.std(planes, (1, 2), ddof=1), golden.out['planes_std'], scale=VALUE, what='std')
    none = jax.jit(lambda ws: net.apply(tree, ws, 'none'))(ws)
    close(nchw(none)[strided], golden.out['none_planes_strided'], scale=VALUE, what='none')
    close(gws, golden.grad['ws'], scale=GRADIENT, what='grad ws')
    assert compare_gradients(golden, 'backbone.synthesis.', {'params': grads})
    golden.check_all_used()


@pytest.mark.slow
@handles('eg3d', 'sr')
def test_superresolution(golden):
    cfg = golden.config
    variant = {k.lower(): k for k in VARIANTS}[cfg['class_name'].removeprefix('SuperresolutionHybrid').lower()]
    net = SuperResolution(
        variant,
        cfg['img_resolution'],
        (cfg['block0_out'], cfg['block1_out']),
        conv_clamp=cfg['conv_clamp'],
        sr_antialias=bool(cfg['sr_antialias']),
    )
    ws = jnp.asarray(golden.inp['ws'])
    flat = {k.removeprefix('superresolution.'): v for k, v in golden.param.items()}
    feat = nhwc(golden.inp[f'feat_{cfg["sizes"][0]}'])
    shapes = jax.eval_shape(net.init, jax.random.key(0), feat[..., :3], feat, ws)
    tree = from_torch(flat, shapes, optional=('noise',))

    def loss(params, feat, ws):
        img = net.apply({**tree, 'params': params}, feat[..., :3], feat, ws)
        return ramp_loss(img), img

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    for size in cfg['sizes']:
        (value, img), (grads, gf, gws) = run(tree['params'], nhwc(golden.inp[f'feat_{size}']), ws)
        strided = described_slice(golden, 'img_<size> = image')
        close(nchw(img)[strided], golden.out[f'img_{size}'], scale=VALUE, what=f'image {size}')
        close(np.mean(img, (1, 2)), golden.out[f'img_{size}_mean'], scale=VALUE, what='mean')
        close(np.std(img, (1, 2), ddof=1), golden.out[f'img_{size}_std'], scale=VALUE, what='std')
        close(value, golden.out[f'loss_{size}'], rtol=VALUE, what='loss')
        close(nchw(gf), golden.grad[f'{size}/feat'], scale=GRADIENT, what=f'grad features {size}')
        close(gws, golden.grad[f'{size}/ws'], scale=GRADIENT, what=f'grad ws {size}')
        assert compare_gradients(golden, f'{size}/superresolution.', {'params': grads})
    golden.check_all_used()


def test_parsing_of_activation_names():
    assert parse_activation('lrelu_alpha.1_gain3_clamp1') == ('lrelu', {'alpha': 0.1, 'gain': 3.0, 'clamp': 1.0})
    assert parse_activation('relu') == ('relu', {})
