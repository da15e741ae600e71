"""SPADE layers, SPADE residual blocks and the plain residual block against reference numbers."""

import jax
import jax.numpy as jnp

from avatar_jax.models.spade import Spade, SpadeResBlock, fitted
from avatar_jax.models.styleunet import ResBlock
from tests.parity.golden import handles
from tests.parity.layouts import block_close, grad_close, loaded, nchw, nhwc, part, same_gradients


@handles('blocks', 'spade')
def test_spade(golden):
    c = golden.config
    x, seg, probe = (nhwc(golden.inp[k]) for k in ('x', 'seg', 'probe'))
    block_close(nchw(fitted(seg, x.shape[1:3], 'nearest')), golden.out['seg_resized'], 'resized map')
    for norm in ('instance', 'none'):
        module = Spade(c['C'], c['label_nc'], c['nhidden'], norm, 'nearest', c['ks'])
        variables = loaded(golden.param, module, x, seg)

        def scalar(params, x, seg, module=module):
            y = module.apply({'params': params}, x, seg)
            return jnp.sum(y * probe), (y, module.apply({'params': params}, seg, x.shape[1:3], method='modulation'))

        gradient = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))
        (_, (y, (gamma, beta))), (params_grad, x_grad, seg_grad) = gradient(variables['params'], x, seg)
        block_close(nchw(y), golden.out[f'y_{norm}'], norm)
        block_close(nchw(gamma), golden.out['gamma'], 'gamma')
        block_close(nchw(beta), golden.out['beta'], 'beta')
        grad_close(nchw(x_grad), golden.grad[f'{norm}/x'], f'{norm} gradient of x')
        grad_close(nchw(seg_grad), golden.grad[f'{norm}/seg'], f'{norm} gradient of the map')
        same_gradients(params_grad, golden.grad, f'{norm}/')
    golden.check_all_used()


@handles('blocks', 'spade_resblk')
def test_spade_residual_block(golden):
    c = golden.config
    x, seg, probe = (nhwc(golden.inp[k]) for k in ('x', 'seg', 'probe'))
    shapes = {'learned': (c['fin'], c['fout']), 'same': (c['fout'], c['fout'])}
    assert min(shapes['learned']) == c['fmiddle']

    def block(name, norm, resize):
        return SpadeResBlock(*shapes[name], c['label_nc'], c['nhidden'], norm, resize)

    narrow = jnp.zeros((*x.shape[:3], c['fout']))
    params = {
        name: loaded(part(golden.param, name), block(name, 'none', 'nearest'), inputs, seg)['params']
        for name, inputs in (('learned', x), ('same', narrow))
    }

    def both(params, x, seg):
        y = block('learned', 'none', 'nearest').apply({'params': params['learned']}, x, seg)
        z = block('same', 'none', 'nearest').apply({'params': params['same']}, y, seg)
        return jnp.sum(z * probe), (y, z)

    gradient = jax.jit(jax.value_and_grad(both, argnums=(0, 1, 2), has_aux=True))
    (_, (y, z)), (params_grad, x_grad, seg_grad) = gradient(params, x, seg)
    block_close(nchw(y), golden.out['y_learned_none'], 'learned shortcut')
    block_close(nchw(z), golden.out['y_same_none'], 'identity shortcut')
    grad_close(nchw(x_grad), golden.grad['x'], 'gradient of x')
    grad_close(nchw(seg_grad), golden.grad['seg'], 'gradient of the map')
    for name in shapes:
        same_gradients(params_grad[name], golden.grad, f'{name}.')

    # In the file, the second block is always given what the first one makes without norm.
    def others(params, x, seg, y):
        apply = {
            name: lambda norm, resize, x, name=name: block(name, norm, resize).apply({'params': params[name]}, x, seg)
            for name in shapes
        }
        first, second = apply['learned'], apply['same']
        return first('instance', 'nearest', x), second('instance', 'nearest', y), first('none', 'antialiased', x)

    for value, key in zip(
        jax.jit(others)(params, x, seg, y),
        ('y_learned_instance', 'y_same_instance', 'y_learned_none_aa'),
        strict=True,
    ):
        block_close(nchw(value), golden.out[key], key)
    golden.check_all_used()


@handles('blocks', 'resblk_plain')
def test_plain_residual_block(golden):
    x, probe = nhwc(golden.inp['x']), nhwc(golden.inp['probe'])
    blocks, params, inputs = {}, {}, x
    for name, up in (('down', False), ('up', True)):
        flat = part(golden.param, name)
        features, width = flat['conv2.weight'].shape[:2]
        blocks[name] = ResBlock(width, features, up)
        params[name] = loaded(flat, blocks[name], inputs)['params']
        inputs = jnp.zeros((*golden.out[f'y_{name}'].shape[:1], *golden.out[f'y_{name}'].shape[2:], features))

    def both(x, params):
        y = blocks['down'].apply({'params': params['down']}, x)
        z = blocks['up'].apply({'params': params['up']}, y)
        return jnp.sum(z * probe), (y, z)

    (_, (y, z)), grad = jax.jit(jax.value_and_grad(both, has_aux=True))(x, params)
    block_close(nchw(y), golden.out['y_down'], 'half the size')
    block_close(nchw(z), golden.out['y_up'], 'twice the size')
    grad_close(nchw(grad), golden.grad['x'], 'gradient')
    golden.check_all_used()
