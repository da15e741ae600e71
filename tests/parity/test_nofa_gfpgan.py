"""GFPGAN against reference numbers: the miniature network, and the keys and sizes of the full one."""

import json

import jax
import numpy as np
import pytest

from avatar_jax.methods.nofa.release import count, gfpgan_state_dict, gfpgan_variables
from avatar_jax.models.gfpgan import GFPGAN, GFPGANConfig, abstract_gfpgan, stored_noise
from tests.parity import golden as g
from tests.parity.golden import handles
from tests.parity.layouts import block_close, nchw, nhwc


@pytest.mark.slow
@handles('blocks', 'gfpgan_tiny')
def test_gfpgan(golden):
    c = golden.config
    variables, config = gfpgan_variables(golden.param)
    assert config == GFPGANConfig(c['out_size'], c['num_style_feat'], c['channel_multiplier'], c['narrow'])
    back = gfpgan_state_dict(variables)
    assert sorted(back) == sorted(golden.param)
    for key, value in back.items():
        np.testing.assert_array_equal(value, golden.param[key], err_msg=key)
    run = jax.jit(lambda params, x, noise: GFPGAN(config).apply({'params': params}, x, noise, True))
    image, pictures = run(variables['params'], nhwc(golden.inp['x']), stored_noise(variables))
    block_close(nchw(image), golden.out['image'], 'image')
    for i, picture in enumerate(pictures):
        block_close(nchw(picture), golden.out[f'rgb_{i}'], f'picture of level {i}')
    golden.check_all_used()


@pytest.mark.slow
def test_keys_and_number_of_parameters():
    path = g.root() / 'blocks' / 'manifests' / 'gfpgan_v1_clean_512.json'
    if not path.exists():
        pytest.skip(f'no {path}')
    manifest, zero = json.loads(path.read_text()), np.zeros((), np.float32)
    flat = {k: np.broadcast_to(zero, tuple(s)) for k, s in manifest['keys'].items()}
    variables, config = gfpgan_variables(flat)
    assert config == GFPGANConfig()
    assert count(abstract_gfpgan(config)) + count(variables['unused']) == manifest['n_parameters']
    back = gfpgan_state_dict(variables)
    assert {k: list(v.shape) for k, v in back.items()} == manifest['keys']
