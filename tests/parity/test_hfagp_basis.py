"""HFA-GP's basis, loss, cameras and two-stage schedule against reference numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.methods.hfagp import basis, cameras, losses, release, train
from avatar_jax.methods.hfagp.config import (
    BasisConfig,
    EncoderConfig,
    HFAGPConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
)
from avatar_jax.models.perception.lpips import SCALE, SHIFT, AlexNet, lin_weights, lpips_layers
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.ops.resize import resize
from avatar_jax.train.optimizers import OptimizerConfig
from tests.comparison import close
from tests.parity.golden import handles

NET = {'scale': 3e-6}
GRADIENT = {'scale': 1e-5}


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


@handles('hfagp', 'basis_small', 'basis_official_size')
def test_basis(golden):
    c = golden.config
    bases, delta, alpha = (jnp.asarray(x) for x in (golden.param['bases'], golden.param['delta'], golden.inp['alpha']))
    assert c['eps'] == basis.EPS and bases.shape == (c['k'], c['num_ws'] * c['dim'])
    shape = (alpha.shape[0], c['num_ws'], c['dim'])
    if 'cotangent' in golden.inp:
        cotangent = jnp.asarray(golden.inp['cotangent'])
    else:
        cotangent = jnp.asarray(np.cos(np.float32(0.01) * np.arange(np.prod(shape), dtype=np.float32)).reshape(shape))

    @jax.jit
    def run(bases, delta, alpha):
        def scalar(bases, delta, alpha):
            latent = basis.combine(alpha, basis.directions(bases), delta, c['num_ws'])
            return jnp.sum(latent * cotangent), latent

        (_, latent), grads = jax.value_and_grad(scalar, (0, 1, 2), has_aux=True)(bases, delta, alpha)
        return latent, grads, basis.factorise(bases)

    latent, (d_bases, d_delta, d_alpha), (q, r) = run(bases, delta, alpha)
    close(latent[: len(golden.out['latent'])], golden.out['latent'], **NET, what='latent')
    close(r, golden.out['R'], **NET, what='R')
    close(d_delta, golden.grad['delta'], **GRADIENT)
    close(d_alpha, golden.grad['alpha'], **GRADIENT)
    for name, value, section in (('Q', q, golden.out), ('bases', d_bases, golden.grad)):
        for key in section:
            stem, _, stride = key.partition('_stride')
            if stem == name:
                step = int(stride or 1)
                thin = value[::step] if name == 'Q' else value[:, ::step]
                close(thin, section[key], **(NET if name == 'Q' else GRADIENT), what=key)
    checked, note = basis.checked_directions(bases)
    close(checked, q, **NET)
    assert not note
    golden.check_all_used()


@pytest.mark.slow
@handles('hfagp', 'loss')
def test_loss(golden):
    c, flat = golden.config, golden.param
    close(flat['scaling_layer.shift'].reshape(-1), SHIFT, rtol=1e-6)
    close(flat['scaling_layer.scale'].reshape(-1), SCALE, rtol=1e-6)
    assert (list(c['shift']), list(c['scale'])) == (list(SHIFT), list(SCALE))
    net = AlexNet(tuple(c['widths']))
    features = {}
    for key, value in flat.items():
        if key.startswith('net.slice'):
            features.setdefault(key.split('.')[2], {})[key.split('.')[3]] = (
                value.transpose(2, 3, 1, 0) if key.endswith('weight') else value
            )
    lin = lin_weights({k: v for k, v in flat.items() if k.startswith('lin') and not k.startswith('lins')})
    for k, v in enumerate(lin):
        close(v, flat[f'lins.{k}.model.1.weight'].reshape(-1), rtol=1e-7)
    shift, scale = jnp.asarray(SHIFT), jnp.asarray(SCALE)

    def layers(a, b):
        taps = [net.apply({'params': {'features': features}}, (x - shift) / scale) for x in (a, b)]
        return lpips_layers(*taps, lin)

    def run(weight):
        config = LossConfig(perceptual=weight, network='lpips', size=c['size'])
        distance = ('lpips', lambda a, b: layers(a, b).sum(-1).mean())
        return jax.jit(jax.value_and_grad(lambda image: losses.terms(config, distance, real, image), has_aux=True))

    real, image = nhwc(golden.inp['real']), nhwc(golden.inp['generated'])
    shown = losses.supervised(image, c['size'])
    close(nchw(shown), golden.out['pooled'], scale=3e-7, what='pooled')
    (total, parts), grad = run(c['w_lpips_code'])(image)
    close(total, golden.out['total'], **NET, what='total')
    close(parts['mse'], golden.out['l2'], **NET, what='mse')
    close(parts['lpips'], golden.out['lpips'], **NET, what='lpips')
    close(nchw(grad), golden.grad['generated'], scale=1e-4, what='gradient')
    (paper, _), _ = run(c['w_lpips_paper'])(image)
    close(paper, golden.out['l2'] + c['w_lpips_paper'] * golden.out['lpips'], **NET, what='total of the paper')
    found = jax.jit(layers)(real, shown)
    close(found, golden.out['lpips_layers'], **NET, what='layers')
    close(found.sum(-1), golden.out['lpips_per_image'], **NET, what='per picture')
    golden.check_all_used()


@handles('hfagp', 'camera_labels')
def test_camera_labels(golden):
    from data_pipelines.one_person.labels import smooth_landmarks

    inp, out, c = golden.inp, golden.out, golden.config
    np.testing.assert_array_equal(cameras.flip_axes(inp['label']), out['label_flipped'])
    np.testing.assert_array_equal(cameras.flip_axes(out['label_flipped']), inp['label'])
    points = cameras.sphere_position(inp['theta'], inp['phi'], c['radius'])
    close(points, out['camera_points'], atol=2e-6)
    close(cameras.facing_origin(points, 'opengl'), out['cam2world_opengl'], atol=2e-6)
    flat = cameras.facing_origin(points).reshape(-1, 16)
    close(
        cameras.flip_axes(np.concatenate([flat, flat[:, :9]], -1))[:, :16].reshape(-1, 4, 4),
        out['cam2world_opengl'],
        atol=2e-6,
        what='OpenCV axes',
    )
    for xp in (np, jnp):
        labels = label_from_pose(xp.asarray(inp['angle']), xp.asarray(inp['trans']), 'raw')
        close(labels, out['labels_from_pose'], atol=2e-6, what='labels')
    close(out['labels_from_pose'][:, 16:], np.broadcast_to(c['intrinsics'], (len(labels), 9)), rtol=1e-6)
    close(smooth_landmarks(inp['landmarks']), out['landmarks_smoothed'], scale=1e-6, what='landmarks')
    golden.check_all_used()


@pytest.mark.slow
@handles('hfagp', 'two_stage_training')
def test_two_stages(golden):
    """The training step with a linear generator in the place of the tri-planes."""
    c, param = golden.config, golden.param
    size, side = golden.inp['real'].shape[-1], int((param['generator.b'].size // 3) ** 0.5)
    rows = param['bases'].shape[1] // c['dim']
    generator = {'A': param['generator.A'], 'C': param['generator.C'], 'b': param['generator.b']}
    generator = {k: jnp.asarray(v) for k, v in (generator | {'unused': param['generator.unused']}).items()}
    adam = OptimizerConfig('adam', c['lr'])
    settings = HFAGPConfig(
        drivers=('coefficients',),
        basis=BasisConfig(c['k']),
        encoder=EncoderConfig(c['dim'], 8, (1, 1), c['input_dim']),
        loss=LossConfig(network='none', size=size, pyramid_scales=1),
        train=TrainConfig(c['iters'], c['tune_iter'], golden.inp['params'].shape[1], adam, adam),
    )
    # Of the generator's configuration only the number of style rows is read: 2 log2(resolution) - 2.
    tiny = dataclasses.replace(GeneratorConfig.tiny(), plane_resolution=2 ** (rows // 2 + 1))
    config = ModelConfig(tiny, settings)
    assert config.generator.num_ws == rows

    def render(tuned, extra, ws, labels, keys):
        image = ws.reshape(len(ws), -1) @ tuned['A'] + labels @ tuned['C'] + tuned['b']
        return jnp.moveaxis(image.reshape(-1, 3, side, side), 1, -1)

    table = {f'weights_3dmm.{k}': ('encoder', 'coefficients', 'head', *p) for k, p in release.stack_table(7).items()}
    table |= {k: ('basis', 'shared', k) for k in ('bases', 'delta')}
    state = train.create_state(settings.train, release.to_tree(param, table), generator, {})
    step = jax.jit(
        lambda state, batch: train.update_step(config, 0, state, batch, render, ('none', None)), donate_argnums=()
    )
    for done in range(c['iters']):
        batch = {
            'pictures': nhwc(golden.inp['real'][done]),
            'labels': cameras.flip_axes(golden.inp['label'][done]),
            'coefficients': golden.inp['params'][done],
        }
        state, metrics = step(state, train.with_stage(settings.train, batch, done))
        close(metrics['loss'], golden.out['losses'][done], rtol=2e-4, what=f'loss {done}')
        for name in golden.out:
            if name.startswith(f'after_{done + 1}/'):
                key, _, stride = name.partition('/')[2].partition('_stride')
                if key.startswith('generator.'):
                    value = np.asarray(state.groups['generator'].params[key.removeprefix('generator.')])
                    if done < c['tune_iter']:
                        np.testing.assert_array_equal(value, param[key], err_msg=f'{name}: frozen')
                else:
                    value = release.to_flat(state.groups['personal'].params, table)[key]
                close(value[..., :: int(stride or 1)], golden.out[name], atol=3e-4, what=name)
    assert int(state.groups['generator'].opt_state.count) == c['iters'] - c['tune_iter']
    assert int(state.groups['personal'].opt_state.count) == c['iters']
    golden.check_all_used()


def test_adaptive_pooling_is_the_mean_of_two_by_two():
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    close(resize(jnp.asarray(x), 4, 'area'), x.reshape(1, 4, 2, 4, 2, 3).mean((2, 4)), atol=1e-6)
