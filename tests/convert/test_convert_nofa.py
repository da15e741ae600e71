"""GFPGAN and encoders of e4e: every entry in, every entry back, and what training takes of them."""

import jax
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io.weights import load_weights
from avatar_jax.methods.nofa.foreign import BACKBONES, state_dict
from avatar_jax.methods.nofa.release import gfpgan_state_dict
from avatar_jax.models.e4e import EncoderConfig, abstract_encoder
from avatar_jax.models.e4e_files import encoder_state_dict
from avatar_jax.models.gfpgan import GFPGANConfig, abstract_gfpgan
from tests.convert import writers as w
from tests.convert.known import convert, export

ENCODER = EncoderConfig(16, 6, 16, 4, (4, 8, 12, 16), (1, 1, 1, 1), 2, 1, 3, head_width=6)
RESTORER = GFPGANConfig(32, 8, 2, 1 / 64)


def drawn(abstract):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract)


def encoder_flat():
    return encoder_state_dict(drawn(abstract_encoder(ENCODER)))


def gfpgan_flat():
    params = drawn(abstract_gfpgan(RESTORER))
    rng, noises = np.random.default_rng(1), {}
    for k in range(2 * RESTORER.levels + 1):
        side = 2 ** ((k + 5) // 2)
        noises[f'noise{k}'] = rng.normal(size=(1, 1, side, side)).astype(np.float32)
    flat = gfpgan_state_dict({'params': params})
    return flat | {f'stylegan_decoder.noises.{k}': v for k, v in noises.items()}


def same(a, b):
    assert sorted(a) == sorted(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_an_encoder_goes_in_and_out(tmp_path):
    flat = encoder_flat()
    whole = {f'encoder.{k}': v for k, v in flat.items()} | {'decoder.input.input': np.zeros((1, 4), np.float32)}
    path = w.write(tmp_path, 'e4e.pt', w.torch_zip({'state_dict': whole, 'latent_avg': np.zeros((6, 16), np.float32)}))
    (file,) = convert(path, tmp_path / 'a').files
    weights = load_weights(file)
    assert weights.method == 'e4e' and weights.config['num_ws'] == 6
    same(state_dict(file, BACKBONES), flat)
    same(state_dict(path, BACKBONES), flat)  # as it is
    back = export(file, tmp_path / 'b')
    (again,) = convert(back, tmp_path / 'c').files
    assert load_weights(again).sha256 == weights.sha256
    with pytest.raises(UserError, match="weights of 'e4e'; give a file of gfpgan"):
        state_dict(file, ('gfpgan',))
    short = {k: v for k, v in whole.items() if 'styles.5.convs.0.weight' not in k}
    with pytest.raises(UserError, match=r'styles\.5\.convs'):
        convert(w.write(tmp_path, 'short.pt', w.torch_zip({'state_dict': short})), tmp_path / 'd')


@pytest.mark.slow
def test_gfpgan_goes_in_and_out(tmp_path):
    flat = gfpgan_flat()
    other = {k: v + 1 for k, v in flat.items()}
    path = w.write(tmp_path, 'GFPGANv1.4.pth', w.torch_zip({'params_ema': flat, 'params': other}))
    (file,) = convert(path, tmp_path / 'a', kind='gfpgan').files
    same(state_dict(file, ('gfpgan',)), flat)
    same(state_dict(path, ('gfpgan',)), flat)
    del flat['final_linear.bias']
    with pytest.raises(UserError, match=r'final_linear\.bias'):
        convert(w.write(tmp_path, 'short.pth', w.torch_zip({'params_ema': flat})), tmp_path / 'b', kind='gfpgan')
