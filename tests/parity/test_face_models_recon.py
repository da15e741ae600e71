"""The coefficient regressor and its losses against reference numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.faces import recon, recon_losses
from tests.comparison import close
from tests.parity.golden import handles

GRADIENT = {'scale': 1e-3}


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def compare_gradients(golden, gradients, prefix=''):
    """All ``grad/param/*`` entries against a gradient tree."""
    flat = to_torch({'params': gradients})
    names = [k for k in golden.grad if k.startswith('param/')]
    assert {k.removeprefix('param/' + prefix) for k in names} == set(flat)
    for name in names:
        key = name.removeprefix('param/' + prefix)
        close(flat[key], golden.grad[name], what=key, atol=1e-5, **GRADIENT)


@handles('face_models', 'bottleneck')
def test_bottleneck(golden):
    cfg = golden.config
    project = any(k.startswith('downsample') for k in golden.param)
    module = recon.Bottleneck(cfg['inplanes'], cfg['planes'], cfg['stride'], project)
    x, cotangent = nhwc(golden.inp['x']), nhwc(golden.inp['cotangent'])
    template = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = from_torch(golden.param, template)

    @jax.jit
    def run(params, x):
        y, pull = jax.vjp(lambda p, v: module.apply({**variables, 'params': p}, v), params, x)
        return y, pull(cotangent)

    y, (grad_params, grad_x) = run(variables['params'], x)
    close(nchw(y), golden.out['y'], rtol=1e-5, atol=1e-5)
    close(nchw(grad_x), golden.grad['x'], **GRADIENT)
    compare_gradients(golden, grad_params)
    golden.check_all_used()


@pytest.mark.slow
@handles('face_models', 'recon_net')
def test_recon_net(golden):
    cfg = golden.config
    config = recon.ReconConfig(cfg['stem'], tuple(cfg['planes']), tuple(cfg['blocks']), tuple(cfg['heads']))
    module = recon.ReconNet(config)
    image, cotangent = nhwc(golden.inp['image']), jnp.asarray(golden.inp['cotangent'])
    template = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = from_torch({k.removeprefix(recon.PREFIX): v for k, v in golden.param.items()}, template)

    @jax.jit
    def run(params, image):
        y, pull = jax.vjp(lambda p, v: module.apply({**variables, 'params': p}, v), params, image)
        features = module.apply({**variables, 'params': params}, image, method='features')
        return y, features, pull(cotangent)

    coefficients, features, (grad_params, grad_image) = run(variables['params'], image)
    for name, value in features.items():
        close(nchw(value), golden.out[name], what=name, rtol=1e-4, scale=1e-5)
    close(coefficients, golden.out['coeffs'], what='coeffs', rtol=1e-4, scale=1e-5)
    close(nchw(grad_image), golden.grad['image'], what='image', **GRADIENT)
    compare_gradients(golden, grad_params, recon.PREFIX)

    trained, updates = jax.jit(lambda v, x: module.apply(v, x, True, mutable=['batch_stats']))(variables, image)
    close(trained, golden.out['train_coeffs'], what='train', rtol=1e-3, scale=1e-4)
    stats = updates['batch_stats']['backbone']['bn1']
    close(stats['running_mean'], golden.out['train_bn1_running_mean'], rtol=1e-5, atol=1e-6)
    close(stats['running_var'], golden.out['train_bn1_running_var'], rtol=1e-5, atol=1e-6)
    golden.check_all_used()


@pytest.mark.slow
@handles('face_models', 'recon_losses')
def test_recon_losses(golden):
    inp, out = golden.inp, golden.out
    given = golden.config['weights']
    weights = recon_losses.ReconLossWeights(**{k.removeprefix('w_'): v for k, v in given.items()})
    eps = golden.config['eps_photo']

    a, b, mask = (nhwc(inp[k]) for k in ('photo_a', 'photo_b', 'photo_mask'))
    value, gradient = jax.value_and_grad(recon_losses.photo_loss)(a, b, mask, eps)
    close(value, out['photo'], rtol=1e-5)
    close(nchw(gradient), golden.grad['photo_a'], **GRADIENT)
    close(recon_losses.photo_loss(a, b, jnp.zeros_like(mask), eps), out['photo_zero_mask'], atol=1e-7)

    value, gradient = jax.value_and_grad(recon_losses.landmark_loss)(jnp.asarray(inp['lm_pred']), inp['lm_gt'])
    close(value, out['landmark'], rtol=1e-5)
    close(gradient, golden.grad['lm_pred'], **GRADIENT)

    coefficients = jnp.asarray(inp['coeffs'])
    reg, gamma = recon_losses.coefficient_loss(coefficients, weights)
    close(reg, out['reg'], rtol=1e-5)
    close(gamma, out['gamma'], rtol=1e-5)
    gradient = jax.grad(lambda c: sum(recon_losses.coefficient_loss(c, weights)))(coefficients)
    close(gradient, golden.grad['coeffs_reg_plus_gamma'], **GRADIENT)

    texture, skin = jnp.asarray(inp['texture']), jnp.asarray(inp['skinmask'])
    value, gradient = jax.value_and_grad(recon_losses.reflectance_loss)(texture, skin)
    close(value, out['reflectance'], rtol=1e-5)
    close(gradient, golden.grad['texture'], **GRADIENT)
    close(recon_losses.perceptual_loss(inp['feat_a'], inp['feat_b']), out['perceptual'], rtol=1e-5)
    golden.check_all_used()
