"""Motion controller and code book against reference numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from avatar_jax.methods.otavatar.controller import (
    Controller,
    ControllerConfig,
    MotionCode,
    clamp_codes,
    combine_codes,
    from_release_keys,
    orthogonal_directions,
    to_release_keys,
)
from tests.comparison import close
from tests.parity.golden import handles
from tests.parity.slices import thinned


def build(golden) -> tuple[Controller, dict]:
    """The controller that the file describes, with its parameters."""
    hyper = golden.config['hyper']
    config = ControllerConfig(
        num_ws=golden.out['ws_trans'].shape[1],
        w_dim=golden.param['direction.weight'].shape[0],
        directions=hyper['directions'],
        channels=hyper['descriptor_nc'],
        temporal_layers=hyper['mapping_layers'],
        mlp_layers=hyper['mlp_layers'],
        use_pose=hyper['if_use_pose'],
        scaling=hyper['if_plus_scaling'],
        short_cut=hyper['if_short_cut'],
        leaky_slope=hyper.get('leaky_slope', 0.1),
    )
    return Controller(config), from_release_keys(golden.param, config)


@pytest.mark.slow
@handles('otavatar', 'controller_full')
def test_controller_full(golden):
    module, params = build(golden)
    if golden.config['hyper'] == {
        'descriptor_nc': 256,
        'mapping_layers': 3,
        'mlp_layers': 5,
        'if_use_pose': True,
        'if_plus_scaling': False,
        'if_short_cut': True,
        'directions': 20,
        'leaky_slope': 0.1,
    }:
        assert sum(x.size for x in jax.tree.leaves(params)) == 869_420
    motion = jnp.asarray(golden.inp['driving'].transpose(0, 2, 1))
    target = jnp.asarray(golden.inp['target'])

    (w_x, alpha), state = module.apply({'params': params}, motion, mutable='intermediates')
    close(w_x, golden.out['ws_trans'], atol=1e-5, what='ws_trans')
    close(alpha, golden.out['alpha'], atol=1e-5, what='alpha')
    inner = state['intermediates']['mapping_3DMM']
    for name in list(golden.out):
        if name == 'first' or name.startswith('encoder'):
            value = np.asarray(inner[f'after_{name}'][0]).transpose(0, 2, 1)
            close(thinned(value, golden.out[name]), golden.out[name], atol=1e-5, what=name)
    close(np.asarray(inner['pooled'][0])[:, :, None], golden.out['pooled'], atol=1e-5, what='pooled')
    book = module.apply({'params': params}, method='code_book')
    close(book, golden.out['Q'], atol=1e-5, what='Q')
    close(module.apply({'params': params}, motion, book)[0], golden.out['ws_trans'], atol=1e-5, what='given code book')

    def scalar(params, motion):
        w_x, alpha = module.apply({'params': params}, motion)
        return jnp.sum(w_x * target) / 100 + jnp.mean(alpha**2)

    value, (grads, motion_grad) = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1)))(params, motion)
    close(value, golden.out['scalar'], rtol=1e-4, atol=1e-5, what='scalar')
    close(np.asarray(motion_grad).transpose(0, 2, 1), golden.grad['in_driving'], scale=1e-4, what='grad in_driving')
    grads = to_release_keys(grads, module.config)
    for name in list(golden.grad):
        if name != 'in_driving':
            close(thinned(grads[name], golden.grad[name]), golden.grad[name], scale=1e-4, what=f'grad {name}')
    for name, (norm, total, absolute) in golden.config.get('grad_stats', {}).items():
        g = np.asarray(grads[name], np.float64)
        assert abs(np.linalg.norm(g) - norm) <= 1e-4 * norm, name
        assert abs(g.sum() - total) <= 1e-4 * absolute, name
        assert abs(np.abs(g).sum() - absolute) <= 1e-4 * absolute, name
    golden.check_all_used()


@handles('otavatar', 'controller_variant')
def test_controller_variant(golden):
    module, params = build(golden)
    motion = jnp.asarray(golden.inp['driving'].transpose(0, 2, 1))
    code = jax.jit(lambda p, m: module.apply({'params': p}, m, method='codes'))(params, motion)
    close(code.w_x, golden.out['ws_trans'], atol=1e-5, what='ws_trans')
    close(code.alpha, golden.out['alpha'], atol=1e-5, what='alpha')
    if 'ws_scaling' in golden.out:
        close(code.scaling, golden.out['ws_scaling'], atol=1e-5, what='ws_scaling')
    else:
        assert code.scaling is None
        w_x, alpha = jax.jit(module.apply)({'params': params}, motion)
        close(w_x, code.w_x, scale=1e-6, what='codes alone'), close(alpha, code.alpha, scale=1e-6, what='alpha alone')
    golden.check_all_used()

    exported = to_release_keys(params, module.config)
    assert set(exported) == set(golden.param)
    for name, value in golden.param.items():
        close(exported[name], value, what=name)
    assert not [p for p in flatten_dict(params) if re.fullmatch(r'[2468]', p[1])], 'the shared layer is one parameter'


@handles('otavatar', 'codebook_qr')
def test_codebook(golden):
    weight, alpha, target = (
        jnp.asarray(a) for a in (golden.param['weight'], golden.inp['alpha'], golden.inp['target'])
    )
    close(orthogonal_directions(weight), golden.out['Q'], atol=1e-5, what='Q')
    close(orthogonal_directions(weight).T @ (weight + 1e-8), golden.out['R'], atol=1e-5, scale=1e-6, what='R')

    def scalar(weight, alpha):
        motion = jnp.einsum('lk,dk->ld', alpha, orthogonal_directions(weight))
        return jnp.sum(motion * target), motion

    (value, motion), grads = jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)(weight, alpha)
    close(motion, golden.out['motion'], atol=1e-5, what='motion')
    close(value, golden.out['scalar'], atol=1e-5, rtol=1e-5, what='scalar')
    close(grads[0], golden.grad['weight'], atol=1e-5, what='grad weight')
    close(grads[1], golden.grad['alpha'], atol=1e-5, what='grad alpha')
    golden.check_all_used()


@handles('otavatar', 'ws_std')
def test_ws_std(golden):
    """The stored deviations scale the offset and the clamp when they are asked for; None means ones."""
    sigma = jnp.asarray(golden.inp['ws_std'])
    width = sigma.shape[-1]
    assert sigma.shape == (1, 1, width) and (sigma > 0).all()
    rng = np.random.default_rng(0)
    w, w_x = (jnp.asarray(rng.normal(size=(2, n, width)), jnp.float32) for n in (1, 3))
    code = MotionCode(w_x, jnp.zeros((2, 3, 1)))
    close(combine_codes(w, code, sigma), np.asarray(w) + np.asarray(sigma) * np.asarray(w_x), atol=1e-6)
    close(combine_codes(w, code), np.asarray(w) + np.asarray(w_x), atol=1e-6)
    w_avg = jnp.asarray(rng.normal(size=width), jnp.float32)
    for given, reach in ((sigma, 5 * np.asarray(sigma)), (None, 5.0)):
        clamped = np.asarray(clamp_codes(w_avg + 1000 * jnp.sign(w_x), w_avg, 5.0, given))
        close(clamped, np.asarray(w_avg) + reach * np.sign(np.asarray(w_x)), atol=1e-5)
    assert (clamp_codes(100 * w_x, w_avg, None) == 100 * w_x).all()
