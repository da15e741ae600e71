"""The whole tri-plane generator against EG3D's numbers: small networks with stored weights, and the full size."""

import json
import re
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator, init_generator
from avatar_jax.render.sampling import RenderDraws
from tests.comparison import close
from tests.parity.golden import handles, root

VALUE, IMAGE, GRAD = 2e-4, 5e-4, 3e-3  # max abs error / max abs value
NETWORK = (
    'z_dim',
    'c_dim',
    'w_dim',
    'img_resolution',
    'img_channels',
    'sr_num_fp16_res',
    'mapping_kwargs',
    'rendering_kwargs',
    'sr_kwargs',
    'channel_base',
    'channel_max',
    'fused_modconv_default',
    'num_fp16_res',
    'conv_clamp',
)


def config_of(golden):
    """Our configuration of a file's network."""
    kwargs = {k: golden.config[k] for k in NETWORK if k in golden.config}
    config = GeneratorConfig.from_release(kwargs, golden.config['neural_rendering_resolution'])
    tiny = golden.config.get('tiny_superresolution')
    if tiny:
        config = config.replace(sr_channels=(tiny['block0']['out_ch'], tiny['block1']['out_ch']))
    return config.replace(release_image_raw=True)


def draws_of(jitter, u, config, batch):
    """Recorded random numbers in the shapes of the renderer."""
    rays = config.neural_rendering_resolution**2
    options = config.rendering
    jitter = jnp.asarray(jitter).reshape(batch, rays, options.depth_resolution)
    if options.depth_resolution_importance == 0:
        return RenderDraws(jitter)
    return RenderDraws(jitter, jnp.asarray(u).reshape(batch, rays, options.depth_resolution_importance))


def weighted_loss(out):
    """The scalar whose gradients the files hold."""

    def ramp(image):
        height, width, channels = image.shape[1:]
        y, x = jnp.arange(height)[:, None, None] / height, jnp.arange(width)[None, :, None] / width
        return y - x + 0.25 * (jnp.arange(channels) - 1)

    image, raw = out['image'], out['image_raw']
    return (image**2 * (1 + ramp(image))).mean() + (raw**2 * ramp(raw)).mean() + 0.5 * out['image_depth'].mean()


def nchw(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def strided(array, text):
    """``array`` [N, C, H, W] sliced as the description says, e.g. '[:,:,1::4,2::4]'."""
    parts = [slice(*(int(x) if x else None for x in part.split(':'))) for part in text.strip('[]').split(',')]
    return np.asarray(array)[tuple(parts)]


def slicing(golden, name):
    """The slice that a file's description gives for an output."""
    return re.search(rf'{name} ?= ?\w+(\[[\d:,]+\])', golden.config['what']).group(1)


def check_images(golden, out):
    image = nchw(out['image'])
    close(strided(image, slicing(golden, 'image_strided')), golden.out['image_strided'], scale=IMAGE, what='image')
    close(image.mean((2, 3)), golden.out['image_mean'], scale=IMAGE, what='mean')
    close(image.std((2, 3), ddof=1), golden.out['image_std'], scale=IMAGE, what='std')
    close(nchw(out['image_raw']), golden.out['image_raw'], scale=IMAGE, what='raw')
    close(nchw(out['image_depth']), golden.out['image_depth'], scale=IMAGE, what='depth')


def check_planes(golden, planes):
    flat = np.asarray(planes).transpose(0, 1, 4, 2, 3)  # N, plane, channel, H, W
    flat = flat.reshape(flat.shape[0], -1, *flat.shape[3:])
    close(strided(flat, slicing(golden, 'planes_strided')), golden.out['planes_strided'], scale=VALUE, what='planes')
    return flat


@pytest.mark.slow
@handles('eg3d', 'triplane_e2e')
def test_triplane(golden):
    config = config_of(golden)
    model = TriPlaneGenerator(config)
    variables = from_torch(golden.param)
    c = jnp.asarray(golden.inp['c'])
    ws = model.apply(
        variables,
        jnp.asarray(golden.inp['z']),
        jnp.asarray(golden.inp['c_conditioning']),
        golden.config['truncation_psi'],
        golden.config['truncation_cutoff'],
        method='mapping',
    )
    close(ws, golden.out['ws'], scale=VALUE, what='ws')
    draws = draws_of(golden.inp['jitter'], golden.inp.get('u_importance'), config, c.shape[0])
    buffers = {k: v for k, v in variables.items() if k != 'params'}
    noise_mode = golden.config['noise_mode']

    @jax.jit
    def run(ws, params, points):
        def loss(ws, params):
            state = {'params': params, **buffers}
            planes = model.apply(state, ws, noise_mode, method='planes')
            out = model.apply(state, ws, c, draws=draws, planes=planes, method='synthesis')
            return weighted_loss(out), (out, planes, model.apply(state, planes, points, method='sample_density'))

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(ws, params)

    points = jnp.asarray(golden.inp['points'])
    (value, (out, planes, sampled)), grads = run(jnp.asarray(golden.out['ws']), variables['params'], points)
    check_planes(golden, planes)
    check_images(golden, out)
    close(sampled[0], golden.out['points_rgb'], scale=VALUE, what='rgb at points')
    close(sampled[1], golden.out['points_sigma'], scale=VALUE, what='sigma at points')
    close(value, golden.out['loss'], scale=IMAGE, what='loss')
    named = {'ws': grads[0]} | to_torch({'params': grads[1]})
    for name in list(golden.grad):
        close(named[name], golden.grad[name], scale=GRAD, what=f'grad {name}')
    golden.check_all_used()


def formula_weights(template, seed):
    """The full-size network's weights, which follow from their names."""
    out = {}
    for key, spec in to_torch_shapes(template).items():
        state = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
        n = state.standard_normal(spec).astype(np.float32)
        leaf = key.rpartition('.')[2]
        if key.endswith('affine.bias'):
            n = 1 + np.float32(0.1) * n
        elif 'mapping.fc' in key:
            n *= np.float32(100 if leaf == 'weight' else 10)
        elif leaf == 'noise_strength':
            n = np.float32(0.1) * np.abs(n)
        elif leaf == 'w_avg':
            n *= np.float32(0.5)
        elif leaf == 'bias':
            n *= np.float32(0.1)
        out[key] = n
    out['decoder.net.2.weight'][0] *= 3
    out['decoder.net.2.bias'][0] -= 3
    return out


def to_torch_shapes(template):
    """{official key: official shape} of an abstract variable tree, without allocating it."""
    return {
        k: v.shape
        for k, v in to_torch(jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), template)).items()
    }


@pytest.mark.slow
@pytest.mark.usefixtures('little_memory')
@handles('eg3d', 'triplane_full')
def test_triplane_full_size(golden):
    config, seed = config_of(golden), golden.config['SEED']
    # In chunks: all rays at once would take more memory than a test may have.
    config = config.replace(rendering={'ray_chunk': 256}, remat=True)
    model = TriPlaneGenerator(config)
    variables = from_torch(formula_weights(jax.eval_shape(lambda: init_generator(config, jax.random.key(0))), seed))
    z = np.random.RandomState(seed).randn(1, config.z_dim).astype(np.float32)
    ws = model.apply(
        variables,
        jnp.asarray(z),
        jnp.asarray(golden.inp['c_conditioning']),
        golden.config['truncation_psi'],
        golden.config['truncation_cutoff'],
        method='mapping',
    )
    close(ws[:, 0], golden.out['ws_row0'], scale=VALUE, what='ws')
    close(ws, np.broadcast_to(golden.out['ws_row0'][:, None], ws.shape), scale=VALUE, what='all rows')
    rays, options = config.neural_rendering_resolution**2, config.rendering
    jitter = np.random.RandomState(seed + 1).random_sample((1, rays, options.depth_resolution, 1)).astype(np.float32)
    u = np.random.RandomState(seed + 2).random_sample((rays, options.depth_resolution_importance)).astype(np.float32)
    draws, c = draws_of(jitter, u, config, 1), jnp.asarray(golden.inp['c'])

    def make_planes(variables, ws):
        return model.apply(variables, ws, 'const', method='planes')

    @jax.jit
    def show(variables, planes, ws):
        def loss(planes, ws):
            out = model.apply(variables, ws, c, draws=draws, planes=planes, method='synthesis')
            return weighted_loss(out), out

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(planes, ws)

    @jax.jit
    def back(variables, ws, grad):
        return jax.vjp(partial(make_planes, variables), ws)[1](grad)[0]

    # In two programs, for the same reason.
    planes = jax.jit(make_planes)(variables, ws)
    (value, out), (grad_planes, grad) = show(variables, planes, ws)
    grad = grad + back(variables, ws, grad_planes)
    flat = check_planes(golden, planes)
    close(flat.mean((2, 3)), golden.out['planes_mean'], scale=VALUE, what='planes mean')
    close(flat.std((2, 3), ddof=1), golden.out['planes_std'], scale=VALUE, what='planes std')
    check_images(golden, out)
    close(value, golden.out['loss'], scale=IMAGE, what='loss')
    close(
        strided(grad, re.search(r'd ws\)(\[[\d:,]+\])', golden.config['what']).group(1)),
        golden.grad['ws'],
        scale=GRAD,
        what='grad ws',
    )
    golden.check_all_used()


def test_full_size_generator_has_the_released_tensors():
    abstract = jax.eval_shape(lambda: init_generator(GeneratorConfig.ffhq512(), jax.random.key(0)))
    leaves = jax.tree.leaves(abstract['params'])
    assert (sum(a.size for a in leaves), len(leaves)) == (30_662_136, 132)
    path = root() / 'eg3d' / 'state_dict_ffhq512.json'
    entries = json.loads(path.read_text())['G']
    expected = {key: tuple(shape) for key, shape, _, _ in entries if not key.endswith('resample_filter')}
    assert to_torch_shapes(abstract) == expected
