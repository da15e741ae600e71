"""Discriminators against reference numbers, including second derivatives (R1)."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.models.discriminator import DualDiscriminator
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.ops.resize import filtered_resizing
from tests.comparison import close
from tests.parity.golden import handles
from tests.parity.test_eg3d_networks import GRADIENT, VALUE, compare_gradients, described_slice, nchw, nhwc


def build(cfg):
    """The module of a file's configuration. Reference runs are float32; ``num_fp16_res`` had no effect on them."""
    assert set(cfg['block_kwargs']) <= {'freeze_layers'} and set(cfg['mapping_kwargs']) <= {'num_layers'}
    assert set(cfg['epilogue_kwargs']) <= {'mbstd_group_size', 'mbstd_num_channels'}
    return DualDiscriminator(
        c_dim=cfg['c_dim'],
        img_resolution=cfg['img_resolution'],
        channel_base=cfg['channel_base'],
        channel_max=cfg['channel_max'],
        conv_clamp=cfg['conv_clamp'],
        disc_c_noise=cfg['disc_c_noise'],
        img_channels=cfg['img_channels'],
        mapping_layers=cfg['mapping_kwargs'].get('num_layers', 8),
        **cfg['epilogue_kwargs'],
        num_half_res=cfg['num_fp16_res'],
    )


def formula(key, shape, seed):
    """Weights of the full-size files, from the name of the entry."""
    n = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape).astype(np.float32)
    name = key.rpartition('.')[2]
    if key.endswith('affine.bias'):
        return 1 + np.float32(0.1) * n
    if 'mapping.fc' in key:
        return np.float32(100 if name == 'weight' else 10) * n
    if name == 'noise_strength':
        return np.float32(0.1) * np.abs(n)
    if name == 'w_avg':
        return np.float32(0.5) * n
    return np.float32(0.1) * n if name == 'bias' else n


@pytest.mark.slow
@handles('eg3d', 'dual_discriminator')
def test_dual_discriminator(golden):
    cfg = golden.config
    net = build(cfg)
    image, raw, c = nhwc(golden.inp['image']), nhwc(golden.inp['image_raw']), jnp.asarray(golden.inp['c'])
    tree = from_torch(golden.param, jax.eval_shape(net.init, jax.random.key(0), image, raw, c))
    params = tree['params']
    resized = filtered_resizing(raw, cfg['img_resolution'])
    strided = described_slice(golden, '*_strided = ')
    close(nchw(resized)[strided], golden.out['image_raw_resized_strided'], scale=VALUE, what='resized')

    def logits(params, image, raw):
        return net.apply({'params': params}, image, raw, c)

    def loss_real(params):
        y = logits(params, image, raw)
        return jnp.mean(jax.nn.softplus(-y)), y

    (value, y), grads = jax.jit(jax.value_and_grad(loss_real, has_aux=True))(params)
    close(y, golden.out['logits'], scale=VALUE, what='logits')
    close(jnp.mean(jax.nn.softplus(y)), golden.out['loss_gen'], rtol=VALUE, what='loss_gen')
    close(value, golden.out['loss_real'], rtol=VALUE, what='loss_real')
    assert compare_gradients(golden, 'loss_real/', {'params': grads})

    def loss_r1(params):
        gi, gr = jax.grad(lambda i, r: jnp.sum(logits(params, i, r)), (0, 1))(image, raw)
        penalty = jnp.sum(jnp.square(gi), (1, 2, 3)) + jnp.sum(jnp.square(gr), (1, 2, 3))
        return jnp.mean(penalty) * (cfg['gamma'] / 2), (penalty, gi, gr)

    (value, (penalty, gi, gr)), grads = jax.jit(jax.value_and_grad(loss_r1, has_aux=True))(params)
    close(penalty, golden.out['r1_penalty'], scale=VALUE, what='penalty')
    close(nchw(gi)[strided], golden.out['r1_grad_image_strided'], scale=GRADIENT, what='grad image')
    close(nchw(gr), golden.out['r1_grad_image_raw'], scale=GRADIENT, what='grad raw')
    close(value, golden.out['loss_r1'], rtol=VALUE, what='loss_r1')
    assert compare_gradients(golden, 'loss_r1/', {'params': grads})
    golden.check_all_used()


@pytest.mark.slow
@handles('eg3d', 'dual_discriminator_full512')
def test_dual_discriminator_by_formula(golden):
    cfg = golden.config
    net, seed = build(cfg), cfg['SEED']
    c = jnp.asarray(golden.inp['c'])

    def picture(name):
        """Uniform bytes; the seed offset and the shape are in the description of the file."""
        found = re.search(name + r' = RandomState\(SEED\+(\d+)\)\.randint\(0,256,\(([\d,]+)\)\)', cfg['what'])
        shape = tuple(int(n) for n in found.group(2).split(','))
        x = np.random.RandomState(seed + int(found.group(1))).randint(0, 256, shape) / 127.5 - 1
        return nhwc(x.astype(np.float32))

    image, raw = picture('image'), picture('image_raw')
    shapes = jax.eval_shape(net.init, jax.random.key(0), image, raw, c)
    names = to_torch(jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes))
    tree = from_torch({key: formula(key, value.shape, seed) for key, value in names.items()}, shapes)
    close(jax.jit(net.apply)(tree, image, raw, c), golden.out['logits'], scale=VALUE, what='logits')
    layers = sum(k.startswith('fc') for k in tree['params']['mapping'])
    width = golden.out['cmap'].shape[1]
    mapping = MappingNetwork(0, cfg['c_dim'], width, None, layers)
    cmap = mapping.apply({'params': tree['params']['mapping']}, None, c)
    close(cmap, golden.out['cmap'], scale=VALUE, what='cmap')
    golden.check_all_used()
