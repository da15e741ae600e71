"""HFA-GP's encoders and layers against reference numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.methods.hfagp import release
from avatar_jax.methods.hfagp.encoders import (
    CoefficientEncoder,
    PictureEncoder,
    SoundAttention,
    SoundNet,
    sound_neighbours,
)
from avatar_jax.models.discriminator import DiscriminatorBlock
from avatar_jax.models.layers import Conv2dLayer, fully_connected
from avatar_jax.ops.activations import bias_act
from avatar_jax.ops.conv import conv2d
from avatar_jax.ops.resample import setup_filter, upfirdn2d
from tests.comparison import close
from tests.parity.golden import handles

NET = {'scale': 3e-6}
GRADIENT = {'scale': 1e-5}


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def compare_grads(tree, golden, table, prefix=''):
    """Gradients of a tree against those of the file, in the file's own layout; each must be there."""
    for key, value in release.to_flat(tree, table).items():
        close(value, golden.grad[f'param/{prefix}{key}'], **GRADIENT, what=f'gradient {prefix}{key}')


@pytest.mark.slow
@handles('hfagp', 'layers')
def test_layers(golden):
    inp, out, param = golden.inp, golden.out, golden.param
    x, taps = nhwc(inp['x']), tuple(golden.config['blur_kernel'])
    kernel = setup_filter(taps)
    close(kernel, out['blur_kernel'], rtol=1e-7)
    close(kernel, release.BLUR, rtol=1e-7)
    for before, after in ((2, 2), (1, 1), (2, 1)):
        found = upfirdn2d(x, kernel, padding=(before, after, before, after))
        close(nchw(found), out[f'blur_pad{before}{after}'], **NET, what=f'blur {before}{after}')
    found = upfirdn2d(x, kernel, padding=(2, 1, 2, 1), gain=4.0)  # of a filter that follows an enlargement by two
    close(nchw(found), out['blur_up2_pad21'], **NET, what='blur after enlarging')

    close(nchw(bias_act(x, param['fused_leaky.bias'].reshape(-1), 'lrelu')), out['fused_leaky'], **NET)
    last = jnp.asarray(inp['x'])  # a linear layer acts on the last axis of whatever it gets
    factor = golden.config['equal_linear']['lr_mul']
    for name, act in (('equal_linear', 'linear'), ('equal_linear_act', 'lrelu')):
        weight, bias = jnp.asarray(param[f'{name}.weight'].T), jnp.asarray(param[f'{name}.bias'])
        close(fully_connected(last, weight, bias, act, factor), out[name], **NET, what=name)
    weight = param['equal_conv.weight'].transpose(2, 3, 1, 0)
    scale = np.prod(weight.shape[:3]) ** -0.5
    close(nchw(conv2d(x, weight * scale, 2, 1) + param['equal_conv.bias']), out['equal_conv_s2_p1'], **NET, what='conv')

    def conv(name, size, weight, bias=None, down=1, activation='lrelu'):
        params = {'weight': release.inward('weight', param[f'{name}.{weight}.weight'])}
        if bias is not None:
            params['bias'] = param[f'{name}.{bias}.bias'].reshape(-1)
        layer = Conv2dLayer(
            params['weight'].shape[-1],
            size,
            bias is not None,
            activation if bias is not None else 'linear',
            down=down,
            resample_filter=taps,
        )
        return layer.apply({'params': params}, x)

    close(nchw(conv('conv_k3', 3, 0, 1)), out['conv_k3'], **NET, what='3x3')
    close(nchw(conv('conv_k1', 1, 0, 1)), out['conv_k1'], **NET, what='1x1')
    close(nchw(conv('conv_k3_down', 3, 1, 2, down=2)), out['conv_k3_down'], **NET, what='3x3 down')
    close(nchw(conv('conv_k1_down_noact', 1, 1, down=2)), out['conv_k1_down_noact'], **NET, what='1x1 down')
    plain = conv('conv_k3_nobias', 3, 0)  # without bias the non-linearity has no gain
    close(nchw(bias_act(plain, None, 'lrelu', gain=1.0)), out['conv_k3_nobias'], **NET, what='3x3 without bias')
    table = {k.replace('net_app.convs.1.', ''): p[1:] for k, p in release.picture_table(8).items() if 'convs.1.' in k}
    block = release.to_tree({k.removeprefix('resblock.'): v for k, v in param.items()}, table)
    found = DiscriminatorBlock(out['resblock'].shape[1], x.shape[-1], resample_filter=taps).apply({'params': block}, x)
    close(nchw(found), out['resblock'], **NET, what='residual block')
    golden.check_all_used()


@pytest.mark.slow
@handles('hfagp', 'encoder_rgb')
def test_picture_encoder(golden):
    c = golden.config
    size = c['size']
    channels = tuple(sorted((int(r), n) for r, n in c['channels'].items()))
    module = PictureEncoder(size, c['k'], c['dim'], channels)
    table = release.picture_table(size)
    kernels = release.kernel_keys(size)
    assert set(golden.param) == set(table) | set(kernels)
    for key in kernels:
        close(release.BLUR, golden.param[key], rtol=1e-7)
    params = jax.tree.map(jnp.asarray, release.to_tree(golden.param, table))

    @jax.jit
    def run(params, image):
        weights, state = module.apply({'params': params}, image, capture_intermediates=True, mutable=['intermediates'])
        return weights, state['intermediates']

    image = nhwc(golden.inp['image'])
    weights, inner = run(params, image)
    close(weights, golden.out['weights'], **NET, what='weights')
    names = [f'b{size >> i}' for i in range(size.bit_length() - 3)]
    close(nchw(inner[names[0]]['fromrgb']['__call__'][0]), golden.out['stage_0'], **NET, what='stage 0')
    for i, name in enumerate(names):
        close(nchw(inner[name]['__call__'][0]), golden.out[f'stage_{i + 1}'], **NET, what=f'stage {i + 1}')
    last = golden.out[f'stage_{len(names) + 1}']
    close(last[:, :, 0, 0], golden.out['app_feature'], rtol=1e-7)
    feature = inner[names[-1]]['__call__'][0]
    feature = jnp.einsum('nhwc,hwcd->nd', feature, params['weight']) * (16 * feature.shape[-1]) ** -0.5
    close(feature, golden.out['app_feature'], **NET, what='feature')

    scalar = lambda p, x: jnp.sum(module.apply({'params': p}, x) * golden.inp['cotangent'])
    grads, d_image = jax.jit(jax.grad(scalar, (0, 1)))(params, image)
    compare_grads(grads, golden, table)
    close(nchw(d_image), golden.grad['image'], **GRADIENT, what='gradient of the picture')
    golden.check_all_used()


@handles('hfagp', 'weights_3dmm', 'weights_audio')
def test_coefficient_encoder(golden):
    c = golden.config
    module, table = CoefficientEncoder(c['k'], c['dim']), release.stack_table(7)
    assert set(golden.param) == set(table)
    params = {'head': jax.tree.map(jnp.asarray, release.to_tree(golden.param, table))}
    signal = jnp.asarray(golden.inp['params'])
    assert signal.shape[1] == c['input_dim']

    @jax.jit
    def run(params, signal):
        def scalar(p, x):
            found = module.apply({'params': p}, x)
            return jnp.sum(found * golden.inp['cotangent']), found

        return jax.value_and_grad(scalar, (0, 1), has_aux=True)(params, signal)

    (_, weights), (grads, d_signal) = run(params, signal)
    close(weights, golden.out['weights'], **NET)
    close(jax.nn.softmax(weights), golden.out['weights_softmax'], scale=1e-5)
    compare_grads(grads['head'], golden, table)
    close(d_signal, golden.grad['params'], **GRADIENT)
    golden.check_all_used()


@pytest.mark.slow
@handles('hfagp', 'audio_net')
def test_sound_networks(golden):
    c = golden.config
    net, attention = SoundNet(c['dim_aud']), SoundAttention()
    tables = {'AudNet.': release.sound_table(), 'AudAttNet.': release.attention_table()}
    assert set(golden.param) == {p + k for p, t in tables.items() for k in t}
    first, second = (
        jax.tree.map(
            jnp.asarray, release.to_tree({k.removeprefix(p): v for k, v in golden.param.items() if k.startswith(p)}, t)
        )
        for p, t in tables.items()
    )
    windows, cotangent = jnp.asarray(golden.inp['auds']), jnp.asarray(golden.inp['cotangent'])

    @jax.jit
    def run(params, windows):
        def scalar(p, x):
            codes = net.apply({'params': p}, x)
            return jnp.sum(codes * cotangent), codes

        return jax.value_and_grad(scalar, (0, 1), has_aux=True)(params, windows)

    (_, codes), (grads, d_windows) = run(first, windows)
    close(codes, golden.out['codes'], **NET, what='codes')
    compare_grads(grads, golden, tables['AudNet.'], 'AudNet.')
    close(d_windows, golden.grad['auds'], **GRADIENT, what='gradient of the windows')

    frames = sorted(int(k.removeprefix('smooth_')) for k in golden.out if k.startswith('smooth_'))
    near = sound_neighbours(windows, jnp.asarray(frames))
    assert near.shape[1] == c['smo_size'] == c['att_seq_len']
    sizes = jnp.abs(near).sum((2, 3))
    inner = jax.jit(lambda p, x: jax.vmap(lambda w: net.apply({'params': p}, w))(x))(first, near)
    smooth = jax.jit(lambda p, x: attention.apply({'params': p}, x))
    for row, frame in enumerate(frames):
        rows = golden.out[f'window_{frame}_rows']
        close(sizes[row], rows, rtol=1e-6, what=f'rows around frame {frame}')
        assert ((rows == 0) == (np.asarray(sizes[row]) == 0)).all()
        close(inner[row], golden.out[f'window_codes_{frame}'], **NET, what=f'codes around frame {frame}')
    found = smooth(second, inner)
    for row, frame in enumerate(frames):
        close(found[row], golden.out[f'smooth_{frame}'], **NET, what=f'smoothed code of frame {frame}')
    frame = int(c['scalar_att'].split('smooth_')[1].split('*')[0])
    row = frames.index(frame)
    scalar = lambda p: jnp.sum(attention.apply({'params': p}, inner[row : row + 1])[0] * cotangent[0])
    compare_grads(jax.jit(jax.grad(scalar))(second), golden, tables['AudAttNet.'], 'AudAttNet.')
    golden.check_all_used()


def test_zero_windows_are_not_zero_codes():
    """Padding is done before the sound network: its biases answer to silence."""
    net = SoundNet(32)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 16, 29)))
    assert float(jnp.abs(jax.jit(partial(net.apply, params))(jnp.zeros((1, 16, 29)))).max()) > 0
