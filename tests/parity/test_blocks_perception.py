"""Perception networks and loss arithmetic against reference numbers of the building blocks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from avatar_jax.convert.layout import from_torch
from avatar_jax.losses.perception import NETWORKS, abstract_variables
from avatar_jax.losses.perceptual import gram, perceptual_layers, perceptual_target
from avatar_jax.models.perception.arcface import (
    ArcFaceBlock,
    IBasicBlock,
    IRBackbone,
    IResNet,
    IRUnit,
    ResNetArcFace,
    embedding_head,
    ffhq_face_crop,
    l2_normalize,
    to_gray,
)
from avatar_jax.models.perception.inception import fid_features
from avatar_jax.models.perception.layers import batch_statistics, normalize_batch
from avatar_jax.models.perception.lpips import lin_weights, lpips_features, lpips_layers
from tests.comparison import close, close_l2, with_moved, within_spread
from tests.parity import golden as g
from tests.parity.formula_weights import hashed_unit, network, torch_keys
from tests.parity.golden import handles
from tests.parity.slices import stored_slices, thinned


def nhwc(x):
    return jnp.asarray(np.asarray(x).transpose(0, 2, 3, 1))


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def image(x_u8):
    """Bytes [B,3,H,W] -> [B,H,W,3] in [-1,1]."""
    return nhwc(np.asarray(x_u8, np.float32) / 127.5 - 1)


def part(flat: dict, name: str) -> dict:
    """Entries below ``name.`` without that prefix."""
    return {k.removeprefix(f'{name}.'): v for k, v in flat.items() if k.startswith(f'{name}.')}


def block_close(actual, expected, what):
    close(actual, expected, rtol=1e-4, atol=1e-5, what=what)


def grad_close(actual, expected, what):
    close(actual, expected, rtol=1e-3, scale=1e-4, what=what)


def net_close(actual, expected, what):
    close(actual, expected, rtol=1e-3, scale=1e-4, what=what)


# ------------------------------------------------------------------------------------------------------------- blocks


def _run_block(module: nn.Module, golden, name: str, probe: str):
    """One residual block: output, gradient of sum(y * probe) with respect to the input and the PReLU slopes."""
    variables = from_torch(part(golden.param, name))
    x, weight = nhwc(golden.inp[f'{name}.x']), nhwc(golden.inp[f'{name}.{probe}'])
    template = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
    from_torch(part(golden.param, name), template)  # every stored tensor belongs to the block

    def scalar(params, x):
        y = module.apply({**variables, 'params': params}, x)
        return jnp.sum(y * weight), y

    # Compiled as one program: operation by operation the tests would spend most of their time compiling.
    gradient = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))
    (_, y), (params_grad, x_grad) = gradient(variables['params'], x)
    block_close(nchw(y), golden.out[f'{name}.y'], f'{name}.y')
    grad_close(nchw(x_grad), golden.grad[f'{name}.x'], f'{name} input gradient')
    for key in [k for k in golden.grad if k.startswith(f'{name}.') and k != f'{name}.x']:
        node = params_grad
        for step in key.removeprefix(f'{name}.').split('.'):
            node = node[step]
        grad_close(node, golden.grad[key], key)


def _names(golden):
    return sorted({k.partition('.')[0] for k in golden.inp})


@pytest.mark.slow
@handles('blocks', 'ir_se')
def test_ir_se(golden):
    for name in _names(golden):
        params = part(golden.param, name)
        features, inputs = params['res_layer.1.weight'].shape[:2]
        stride = round(golden.inp[f'{name}.x'].shape[2] / golden.out[f'{name}.y'].shape[2])
        module = IRUnit(inputs, features, stride, 'res_layer.5.fc1.weight' in params)
        _run_block(module, golden, name, 'probe')
    golden.check_all_used()


def _arcface_block(golden, name):
    params = part(golden.param, name)
    features, inputs = params['conv2.weight'].shape[:2]
    stride = round(golden.inp[f'{name}.x'].shape[2] / golden.out[f'{name}.y'].shape[2])
    return ArcFaceBlock(inputs, features, stride, 'se.fc.0.weight' in params)


@pytest.mark.slow
@handles('blocks', 'iresnet_blocks')
def test_iresnet_blocks(golden):
    for name in _names(golden):
        params = part(golden.param, name)
        if 'bn0.weight' in params:
            module = _arcface_block(golden, name)
        else:
            features, inputs = params['conv1.weight'].shape[:2]
            stride = round(golden.inp[f'{name}.x'].shape[2] / golden.out[f'{name}.y'].shape[2])
            module = IBasicBlock(inputs, features, stride)
        _run_block(module, golden, name, 'probe')
    golden.check_all_used()


class _Head(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return embedding_head(x, self.features)


@handles('otavatar', 'arcface_blocks')
def test_arcface_blocks(golden):
    for name in _names(golden):
        if f'{name}.target' in golden.inp:
            _run_block(_arcface_block(golden, name), golden, name, 'target')
        else:
            params = part(golden.param, name)
            module, x = _Head(params['fc5.weight'].shape[0]), nhwc(golden.inp[f'{name}.x'])
            variables = from_torch(params, jax.eval_shape(lambda x, m=module: m.init(jax.random.key(0), x), x))
            close(jax.jit(module.apply)(variables, x), golden.out[f'{name}.y'], atol=1e-5, rtol=1e-5, what=name)
    golden.check_all_used()


@handles('blocks', 'batchnorm')
def test_batchnorm(golden):
    momentum, eps = golden.config['momentum'], golden.config['eps']
    for name in sorted({k.partition('.')[0] for k in golden.param}):
        p = {k: jnp.asarray(v) for k, v in part(golden.param, name).items()}
        stored = golden.inp[f'x{name[1:]}']
        x = nhwc(stored) if stored.ndim == 4 else jnp.asarray(stored)

        def same(value, key, stored=stored):
            block_close(nchw(value) if stored.ndim == 4 else value, golden.out[key], key)

        def apply(mean, var, x=x, p=p):
            return normalize_batch(x, p['weight'], p['bias'], mean, var, eps)

        before = p['running_mean'], p['running_var']
        zero = jnp.zeros_like(before[0])
        if np.array_equal(before[0], golden.out[f'{name}_running_mean']):
            # The file's parameters were stored after its training step: undo the step. The outputs with running
            # statistics, which are from before it, show whether the update is the right one.
            _, _, mean_part, var_part = batch_statistics(x, zero, zero, momentum)
            before = tuple((b - part) / (1 - momentum) for b, part in zip(before, (mean_part, var_part)))
        same(apply(*before), f'{name}_eval')
        mean, var, new_mean, new_var = batch_statistics(x, *before, momentum)
        same(apply(mean, var), f'{name}_train')
        block_close(new_mean, golden.out[f'{name}_running_mean'], 'running mean')
        block_close(new_var, golden.out[f'{name}_running_var'], 'running variance')
    golden.check_all_used()


@handles('blocks', 'gram')
def test_blocks_gram(golden):
    f, h = nhwc(golden.inp['f']), nhwc(golden.inp['h'])
    block_close(gram(f), golden.out['G_f'], 'G_f')
    block_close(gram(h), golden.out['G_h'], 'G_h')
    block_close(jnp.mean(jnp.abs(gram(f) - gram(h))), golden.out['l1'], 'l1')
    value, grad = jax.value_and_grad(lambda h: jnp.mean((gram(f) - gram(h)) ** 2))(h)
    block_close(value, golden.out['l2'], 'l2')
    grad_close(nchw(grad), golden.grad['h'], 'gradient')
    golden.check_all_used()


# ----------------------------------------------------------------------------------------------------------- networks


@pytest.mark.slow
@handles('blocks', 'vgg19_perceptual')
def test_vgg19_perceptual(golden):
    variables = network('vgg19', golden)
    a, b = image(golden.inp['a_u8']), image(golden.inp['b_u8'])
    totals = sorted(int(k.removeprefix('total_')) for k in golden.out if k.startswith('total_'))
    layers, weight = golden.config['layers'], golden.config['style_weight']

    def loss(a, variables, b, scales):
        content, style = perceptual_layers(variables, a, perceptual_target(variables, b, scales, taps=tuple(layers)))
        return content.sum() + weight * style.sum(), (content, style)

    for scales in totals:
        wanted = f'a_{scales}' in golden.grad
        function = jax.value_and_grad(loss, has_aux=True) if wanted else loss
        out = jax.jit(function, static_argnums=3)(a, variables, b, scales)
        ((value, (content, style)), grad) = out if wanted else (out, None)
        net_close(value, golden.out[f'total_{scales}'], f'total of {scales} scales')
        if wanted:
            # Activations near zero switch between implementations, so single entries may differ.
            close_l2(nchw(grad), golden.grad[f'a_{scales}'], 1e-2, f'gradient of {scales} scales')
    for i, layer in enumerate(layers):
        net_close(style[0, i], golden.out[f'style_{layer}'], f'style {layer}')
        for s in range(totals[-1]):
            net_close(content[s, i], golden.out[f'l1_s{s}_{layer}'], f'scale {s} {layer}')
    golden.check_all_used()


@pytest.mark.slow
@handles('blocks', 'lpips_maths')
def test_lpips_maths(golden):
    layers = sorted(k.removeprefix('layer_') for k in golden.out if k.startswith('layer_'))
    fa, fb = ([nhwc(golden.inp[f'{x}_{k}']) for k in layers] for x in ('f0', 'f1'))
    lin = lin_weights(golden.param)

    def scalar(fa):
        values = lpips_layers(fa, fb, lin)
        return values.sum(), values

    gradient = jax.jit(jax.value_and_grad(scalar, has_aux=True))
    (_, values), grads = gradient(fa)
    for i, k in enumerate(layers):
        block_close(np.asarray(values[:, i])[:, None, None, None], golden.out[f'layer_{k}'], f'layer {k}')
        grad_close(nchw(grads[i]), golden.grad[f'f0_{k}'], f'gradient {k}')
    block_close(np.asarray(values.sum(-1))[:, None, None, None], golden.out['total'], 'total')
    block_close(lpips_layers(fa, fb, None).sum(-1).mean(), golden.out['baseline'], 'baseline')
    zeroed = [fa[0].at[0, 0, 0].set(0.0), *fa[1:]]
    (_, values), grads = gradient(zeroed)
    block_close(np.asarray(values.sum(-1))[:, None, None, None], golden.out['z_total'], 'with a zero vector')
    assert all(np.isfinite(x).all() for x in grads), 'the gradient at a zero vector is finite'
    golden.check_all_used()


@pytest.mark.slow
@handles('blocks', 'lpips_nets')
def test_lpips_nets(golden):
    a, b = image(golden.inp['a_u8']), image(golden.inp['b_u8'])
    for net in sorted({k.partition('.')[0] for k in golden.param}):
        variables = network({'alex': 'alexnet', 'vgg': 'vgg16', 'squeeze': 'squeezenet'}[net], golden)
        lin = lin_weights(part(golden.param, net))

        def scalar(a, variables, lin, b, net=net):
            taps = lpips_features(net, variables, a)
            layers = lpips_layers(taps, lpips_features(net, variables, b), lin)
            return layers.sum(), (layers, [t.mean((1, 2)) for t in taps])

        (_, (layers, means)), grad = jax.jit(jax.value_and_grad(scalar, has_aux=True))(a, variables, lin, b)
        for k in range(len(lin)):
            net_close(means[k], golden.out[f'{net}.tap_{k}_mean'], f'{net} tap {k}')
            net_close(np.asarray(layers[:, k])[:, None, None, None], golden.out[f'{net}.layer_{k}'], f'{net} layer {k}')
        net_close(np.asarray(layers.sum(-1))[:, None, None, None], golden.out[f'{net}.total'], f'{net} total')
        if f'{net}.in0' in golden.grad:
            close_l2(nchw(grad), golden.grad[f'{net}.in0'], 1e-2, f'{net} gradient')
    golden.check_all_used()


_FACE_NETS = {
    'irse50': ('irse50', IRBackbone(True)),
    'ir50': ('ir50', IRBackbone(False)),
    'iresnet18': ('iresnet18', IResNet(18)),
    'iresnet34': ('iresnet34', IResNet(34)),
    'iresnet50': ('iresnet50', IResNet(50)),
    'iresnet100': ('iresnet100', IResNet(100)),
    'arc18': ('arcface18', ResNetArcFace()),
    'arc18_se': ('arcface18_se', ResNetArcFace(use_se=True)),
}


@pytest.mark.slow
@handles('blocks', 'arcface_nets')
def test_arcface_nets(golden):
    kept = {}  # one network at a time: they are large

    def run(net, x):
        name, module = _FACE_NETS[net]
        if net not in kept:
            kept.clear()
            kept[net] = network(name, golden)
        return jax.jit(module.apply)(kept[net], x)

    for key in sorted(golden.out):
        net, _, variant = key.partition('_')
        if key.startswith('psp_crop'):
            crop = ffhq_face_crop(image(golden.inp['big_u8']))
            if variant.endswith('slice'):
                net_close(thinned(nchw(crop), golden.out[key]), golden.out[key], key)
            else:
                net_close(l2_normalize(run('irse50', crop)), golden.out[key], key)
            continue
        gray = net.startswith('arc18')
        x = to_gray(image(golden.inp['g_u8'])) if gray else image(golden.inp['x_u8'])
        y = run(net if variant in ('', 'raw', 'norm') else key, x)
        net_close(l2_normalize(y) if variant == 'norm' else y, golden.out[key], key)
    golden.check_all_used()


@pytest.mark.slow
@handles('otavatar', 'arcface_full')
def test_arcface_full(golden):
    variables = network('arcface18', golden)
    gray, target = nhwc(golden.inp['gray']), jnp.asarray(golden.inp['target'])

    def scalar(gray, variables):
        embedding, stages = ResNetArcFace().apply(variables, gray, stages=True)
        return jnp.mean(embedding * target), (embedding, stages)

    results = with_moved(jax.jit(jax.value_and_grad(scalar, has_aux=True)), gray, variables)
    value, (embedding, stages) = results[0][0]
    strides = stored_slices(golden.config['slices'])
    for name, stage in zip(('stem', 'layer1', 'layer2', 'layer3', 'layer4'), stages, strict=True):
        close(nchw(stage)[strides[name]], golden.out[name], scale=1e-4, what=name)
    close(embedding, golden.out['embedding'], scale=1e-4, what='embedding')
    expected = float(golden.out['scalar'])
    size = float(jnp.linalg.norm(embedding) * jnp.linalg.norm(target)) / embedding.size
    assert abs(float(value) - expected) <= 1e-4 * max(abs(expected), size), 'scalar'
    # Rounding moves activations across the kink of a PReLU: the program's own spread says how much that is.
    expected = golden.grad['gray']
    within_spread([thinned(nchw(grad), expected) for _, grad in results], expected, what='input gradient')
    golden.check_all_used()


@pytest.mark.slow
@handles('blocks', 'inception_fid')
def test_inception_fid(golden):
    variables = network('inception', golden)
    x = nhwc(np.asarray(golden.inp['x_u8'], np.float32) / 255)
    features, blocks = jax.jit(fid_features, static_argnums=2)(variables, x, True)
    strides = stored_slices(golden.config['note'])
    for i, block in enumerate(blocks):
        net_close(nchw(block)[strides[f'block{i}']], golden.out[f'block{i}'], f'block {i}')
    net_close(features, golden.out['pool3'], 'pool3')
    golden.check_all_used()


# --------------------------------------------------------------------------------------------------------- key tables

_MANIFESTS = {
    'vgg19': 'vgg19_torchvision',
    'vgg16': 'vgg16_torchvision',
    'alexnet': 'alexnet_torchvision',
    'arcface18': 'resnetarcface18_gray',
    'arcface18_se': 'resnetarcface18_gray_se',
    'ir50': 'arcface_ir50',
    'irse50': 'arcface_irse50',
    'inception': 'fid_inception_v3',
    'iresnet18': 'insightface_iresnet18',
    'iresnet34': 'insightface_iresnet34',
    'iresnet50': 'insightface_iresnet50',
    'iresnet100': 'insightface_iresnet100',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(_MANIFESTS))
def test_keys_and_shapes(name):
    """Every key and shape of the public file, but for counters and classifiers that nothing here uses."""
    path = g.root() / 'blocks' / 'manifests' / f'{_MANIFESTS[name]}.json'
    if not path.exists():
        pytest.skip(f'no {path}')
    keys = json.loads(path.read_text())['keys']
    unused = NETWORKS[name].unused
    expected = {
        k: tuple(s) for k, s in keys.items() if not k.endswith('num_batches_tracked') and not k.startswith(unused)
    }
    assert torch_keys(name) == expected


def test_hash_formula():
    path = g.root() / 'blocks' / 'hash_check.json'
    if not path.exists():
        pytest.skip(f'no {path}')
    for name, values in json.loads(path.read_text()).items():
        seed, _, key = name.partition(':')
        close(hashed_unit(int(seed), key, len(values)), np.asarray(values), atol=1e-12, what=name)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(NETWORKS))
def test_every_network_of_the_bank_builds(name):
    assert abstract_variables(name)['params']
