"""Discriminators against reference numbers, including second derivatives (R1)."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.models.discriminator import DualDiscriminator
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.ops.resize import filtered_resizing
from tests.parity.golden import close, handles
from tests.parity.test_eg3d_networks import GRADIENT, VALUE, compare_gradients, nchw, nhwc


def build(cfg):
    """The module of a file's configuration. Reference runs are float32; ``num_fp16_res`` had no effect on them."""
    assert not cfg['mapping_kwargs'] and cfg['img_channels'] == 3
    assert set(cfg['block_kwargs']) <= {'freeze_layers'} and set(cfg['epilogue_kwargs']) <= {'mbstd_group_size'}
    return DualDiscriminator(
        c_dim=cfg['c_dim'],
        img_resolution=cfg['img_resolution'],
        channel_base=cfg['channel_base'],
        channel_max=cfg['channel_max'],
        conv_clamp=cfg['conv_clamp'],
        disc_c_noise=cfg['disc_c_noise'],
        mbstd_group_size=cfg['epilogue_kwargs'].get('mbstd_group_size', 4),
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


@handles('eg3d', 'dual_discriminator')
def test_dual_discriminator(golden):
    cfg = golden.config
    net = build(cfg)
    image, raw, c = nhwc(golden.inp['image']), nhwc(golden.inp['image_raw']), jnp.asarray(golden.inp['c'])
    tree = from_torch(golden.param, jax.eval_shape(net.init, jax.random.key(0), image, raw, c))
    params = tree['params']
    resized = filtered_resizing(raw, cfg['img_resolution'])
    close(nchw(resized)[:, :, ::4, ::4], golden.out['image_raw_resized_strided'], scale=VALUE, what='resized')

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
    close(nchw(gi)[:, :, ::4, ::4], golden.out['r1_grad_image_strided'], scale=GRADIENT, what='grad image')
    close(nchw(gr), golden.out['r1_grad_image_raw'], scale=GRADIENT, what='grad raw')
    close(value, golden.out['loss_r1'], rtol=VALUE, what='loss_r1')
    assert compare_gradients(golden, 'loss_r1/', {'params': grads})
    golden.check_all_used()


@handles('eg3d', 'dual_discriminator_full512')
def test_dual_discriminator_by_formula(golden):
    cfg = golden.config
    net, seed, size = build(cfg), cfg['SEED'], cfg['img_resolution']
    c = jnp.asarray(golden.inp['c'])

    def picture(offset, size):
        x = np.random.RandomState(seed + offset).randint(0, 256, (len(c), 3, size, size)) / 127.5 - 1
        return nhwc(x.astype(np.float32))

    image, raw = picture(3, size), picture(4, 64)
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
