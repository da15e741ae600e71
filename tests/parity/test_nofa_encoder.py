"""The e4e encoder and its extra training terms against reference numbers; keys and sizes of the full network."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import from_torch, torch_shapes
from avatar_jax.losses import codes
from avatar_jax.models.e4e import E4eEncoder, EncoderConfig, LatentDiscriminator, abstract_encoder
from avatar_jax.models.e4e_files import config_of, encoder_state_dict, encoder_variables
from tests.comparison import close
from tests.parity import golden as g
from tests.parity.formula_weights import hashed
from tests.parity.golden import handles
from tests.parity.layouts import block_close, grad_close, loaded, nchw, nhwc, same_gradients
from tests.parity.slices import stored_slices


def _config(golden, **changes):
    c = golden.config
    return EncoderConfig(
        image_size=golden.inp['x'].shape[-1],
        num_ws=c['n_styles'],
        w_dim=c['wdim'],
        stem=c['stem'],
        widths=tuple(c['chs']),
        units=tuple(c['units']),
        reduction=c['se_reduction'],
        coarse=c['coarse'],
        middle=c['middle'],
        **changes,
    )


@pytest.mark.slow
@handles('blocks', 'e4e_mini')
def test_encoder(golden):
    config, x, probe = _config(golden), nhwc(golden.inp['x']), jnp.asarray(golden.inp['probe'])
    assert config_of(golden.param) == config, 'the sizes follow from the file'
    variables = encoder_variables(golden.param, config)
    back = encoder_state_dict(variables)
    assert sorted(back) == sorted(golden.param)
    for key, value in back.items():
        np.testing.assert_array_equal(value, golden.param[key], err_msg=key)
    module = E4eEncoder(config)

    def scalar(params, x):
        y = module.apply({**variables, 'params': params}, x)
        return jnp.sum(y * probe), y

    gradient = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))
    (_, full), (params_grad, x_grad) = gradient(variables['params'], x)
    block_close(full, golden.out['w_full'], 'all deltas')
    grad_close(nchw(x_grad), golden.grad['x'], 'gradient of the picture')
    same_gradients(params_grad, golden.grad)

    stages = sorted(int(k.removeprefix('w_stage')) for k in golden.out if k.startswith('w_stage'))

    # The number of the stage as an argument is what training uses; a static one leaves heads out.
    def rest(variables, x, stage):
        psp = E4eEncoder(_config(golden, shared=False)).apply(variables, x)
        maps = module.apply(variables, x, method='pyramid')
        return psp, maps, module.apply(variables, x, stages[1]), module.apply(variables, x, stage)

    rest = jax.jit(rest)
    for stage in stages:
        psp, maps, static, traced = rest(variables, x, jnp.int32(stage))
        block_close(traced, golden.out[f'w_stage{stage}'], f'stage {stage}')
    block_close(static, golden.out[f'w_stage{stages[1]}'], 'static stage')
    block_close(psp, golden.out['psp'], 'independent heads')
    for name, value in maps.items():
        block_close(nchw(value), golden.out[name], name)
    golden.check_all_used()


@pytest.mark.slow
@pytest.mark.usefixtures('little_memory')
@handles('blocks', 'e4e_full')
def test_full_encoder(golden):
    c = golden.config
    config = EncoderConfig(num_ws=c['n_styles'])
    module, template = E4eEncoder(config), abstract_encoder(config)
    leaves, structure = jax.tree.flatten(
        from_torch(hashed(torch_shapes(template), c['hash_seed'], c['gain']), template)
    )
    for i in range(len(leaves)):  # one after the other, so that 0.8 GB are not there twice
        leaves[i] = jnp.asarray(leaves[i])
    variables = jax.tree.unflatten(structure, leaves)
    x = nhwc(np.asarray(golden.inp['x_u8'], np.float32) / 127.5 - 1)

    def run(variables, x, stage):
        return module.apply(variables, x, stage), module.apply(variables, x, method='pyramid')

    run = jax.jit(run)
    slices = stored_slices(
        c['note'].replace('c1[', 'c1 [').replace('c2[', 'c2 [').replace('c3[', 'c3 [').replace('p1[', 'p1 [')
    )
    codes_full, maps = run(variables, x, jnp.int32(config.num_ws))
    bound = {'rtol': 1e-3, 'scale': 1e-4}
    close(codes_full, golden.out['w_full'], **bound, what='all deltas')
    for name in sorted(set(golden.out) & set(maps)):
        close(nchw(maps[name])[slices[name]], golden.out[name], **bound, what=name)
    for key in [k for k in golden.out if k.startswith('w_stage')]:
        stage = int(key.removeprefix('w_stage'))
        close(run(variables, x, jnp.int32(stage))[0], golden.out[key], **bound, what=key)
    golden.check_all_used()


@handles('blocks', 'e4e_losses')
def test_terms_of_codes(golden):
    width = golden.inp['real'].shape[-1]
    rows, real, fake = (jnp.asarray(golden.inp[k]) for k in ('latents', 'real', 'fake'))
    module = LatentDiscriminator(width)
    variables = loaded(golden.param, module, real)

    def everything(variables, rows, real, fake):
        def score(w):
            return module.apply(variables, w)

        deltas = {
            k: codes.delta_regularizer(rows, int(k.removeprefix('delta_stage'))) for k in golden.out if 'delta' in k
        }
        return deltas | {
            'd_real': score(real),
            'd_loss': codes.discriminator_loss(score, real, fake),
            'r1': codes.r1_penalty(score, real),
            'g_adv': codes.encoder_adversarial(score, rows, 3),
        }

    found = jax.jit(everything)(variables, rows, real, fake)
    for key, value in found.items():
        block_close(value, golden.out[key], key)
    block_close(codes.delta_regularizer(rows), golden.out[f'delta_stage{rows.shape[1] - 1}'], 'all rows')
    golden.check_all_used()


@pytest.mark.parametrize('heads', [14, 18])
def test_keys_and_number_of_parameters(heads):
    path = g.root() / 'blocks' / 'manifests' / f'e4e_encoder_{heads}.json'
    if not path.exists():
        pytest.skip(f'no {path}')
    manifest, template = json.loads(path.read_text()), abstract_encoder(EncoderConfig(num_ws=heads))
    expected = {k: tuple(s) for k, s in manifest['keys'].items() if not k.endswith('num_batches_tracked')}
    assert torch_shapes(template) == expected
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(template['params']))
    assert count == manifest['n_parameters']
    if heads == 14:
        assert count == 209_450_688
