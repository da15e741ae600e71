"""The four training phases against reference numbers: logits, penalties, gradients, the moved mean style row."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.methods.eg3d import phases, schedules
from avatar_jax.methods.eg3d.config import DiscriminatorConfig, LossConfig
from avatar_jax.methods.eg3d.losses import DensityDraws, Pair, PoseDraws, SynthesisDraws, real_pair
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator, init_generator
from tests.comparison import close
from tests.parity.golden import handles
from tests.parity.test_eg3d_networks import GRADIENT, VALUE, nchw, nhwc
from tests.parity.test_eg3d_triplane import NETWORK, draws_of, to_torch_shapes


def generator_config(cfg):
    kwargs = {k: cfg[k] for k in NETWORK if k in cfg}
    initial = cfg['loss_kwargs']['neural_rendering_resolution_initial']
    config = GeneratorConfig.from_release(kwargs, initial)
    tiny = cfg.get('tiny_superresolution')
    return config.replace(sr_channels=(tiny['block0']['out_ch'], tiny['block1']['out_ch'])) if tiny else config


def discriminator_config(cfg):
    d, epilogue = cfg['D_kwargs'], cfg['D_kwargs']['epilogue_kwargs']
    assert d['disc_c_noise'] == 0 and set(d['mapping_kwargs']) <= {'num_layers'}
    assert d['img_resolution'] == cfg['img_resolution']
    return DiscriminatorConfig(
        kind='dual' if cfg['loss_kwargs']['dual_discrimination'] else 'single',
        channel_base=d['channel_base'],
        channel_max=d['channel_max'],
        conv_clamp=d['conv_clamp'],
        num_half_res=d['num_fp16_res'],
        mapping_layers=d['mapping_kwargs'].get('num_layers', 8),
        mbstd_group_size=epilogue['mbstd_group_size'],
        mbstd_num_channels=epilogue.get('mbstd_num_channels', 1),
        mbstd_grouping='strided',
    )


def loss_config(cfg):
    k = cfg['loss_kwargs']
    return LossConfig(
        r1_gamma=k['r1_gamma'],
        style_mixing_prob=k['style_mixing_prob'],
        blur_init_sigma=k['blur_init_sigma'],
        blur_fade_kimg=k['blur_fade_kimg'],
        gpc_reg_fade_kimg=k['gpc_reg_fade_kimg'],
        resolution_final=k['neural_rendering_resolution_final'],
        resolution_fade_kimg=k['neural_rendering_resolution_fade_kimg'],
        filter_mode=k['filter_mode'],
    )


@pytest.mark.slow
@handles('eg3d', 'training_loss')
def test_training_loss(golden):
    cfg, inp = golden.config, golden.inp
    gen, loss = generator_config(cfg), loss_config(cfg)
    shown = cfg['cur_nimg']
    size = schedules.raw_resolution(
        shown, gen.neural_rendering_resolution, loss.resolution_final, loss.resolution_fade_kimg
    )
    sigma = schedules.blur_sigma(shown, loss.blur_init_sigma, loss.blur_fade_kimg)
    probability = schedules.swap_probability(shown, cfg['loss_kwargs']['gpc_reg_prob'], loss.gpc_reg_fade_kimg)
    assert size == cfg['neural_rendering_resolution_used']
    close(sigma, cfg['blur_sigma'], rtol=1e-6), close(probability, cfg['swapping_prob'], rtol=1e-6)
    model = TriPlaneGenerator(gen.replace(neural_rendering_resolution=size))
    net = discriminator_config(cfg).module(gen.img_resolution, cfg['D_kwargs']['c_dim'])
    setting = phases.Setting(model, net, loss, size)
    gains = {k: float(v) for k, v in re.findall(r'(\w+) gain (\d+)', cfg['what'])}
    c, z, batch = jnp.asarray(inp['gen_c']), jnp.asarray(inp['gen_z']), cfg['batch']
    real = real_pair(nhwc(inp['real_uint8'].astype(np.float32) / 127.5 - 1), size, sigma, loss.filter_mode)
    real_c = jnp.asarray(inp['real_c'])

    def part(prefix, defaults=()):
        named = {k.removeprefix(prefix): v for k, v in golden.param.items() if k.startswith(prefix)}
        return from_torch(dict(defaults) | named)

    template = to_torch_shapes(jax.eval_shape(lambda: init_generator(model.config, jax.random.key(0))))
    # Left out of the files: noise, whose strength is zero.
    silent = {k: np.zeros(s, np.float32) for k, s in template.items() if k.rpartition('.')[2].startswith('noise_')}
    g, d = part('G.', silent), part('D.')['params']
    buffers = {k: v for k, v in g.items() if k != 'params'}

    def pose(swap):
        return PoseDraws(jnp.asarray(swap), jnp.roll(c, 1, axis=0))

    def generated(phase):
        draws = draws_of(inp[f'{phase}/jitter'], inp.get(f'{phase}/u_importance'), model.config, batch)
        return phases.GeneratedDraws(z, c, pose(inp[f'{phase}/swap']), SynthesisDraws(draws))

    def check(phase, prefix, grads):
        flat = to_torch({'params': grads})
        keys = [k for k in golden.grad if k.startswith(f'{phase}/')]
        assert keys or gains[phase]
        for key in keys:
            mine = gains[phase] * flat[key.removeprefix(f'{phase}/{prefix}')]
            close(mine, golden.grad[key], scale=GRADIENT, what=f'grad {key}')

    # All numbers are arguments: XLA works out what follows from constants while it compiles, and slowly.
    def run(phase, *args):
        return jax.jit(jax.value_and_grad(partial(phase, setting), has_aux=True))(*args)

    (_, terms), grads = run(phases.generator_main, g['params'], d, buffers, generated('Gmain'), probability, sigma)
    close(terms['logits'], golden.out['Gmain/logits0'], scale=VALUE, what='Gmain logits')
    check('Gmain', 'G.', grads)

    points = jnp.asarray(inp['Greg/coords_uniform']) * 2 - 1 if 'Greg/coords_uniform' in inp else None
    if points is not None:
        second = None
        if 'Greg/coords2_uniform' in inp:
            again = (jnp.asarray(inp[f'Greg/{k}']) for k in ('coords2_uniform', 'perturb2_normal'))
            second = DensityDraws(next(again) * 2 - 1, next(again))
        steps = jnp.asarray(inp['Greg/perturb_normal']) if 'Greg/perturb_normal' in inp else None
        draws = phases.RegularDraws(
            z,
            c,
            pose(inp['Greg/swap']),
            pose(inp.get('Greg/swap2', inp['Greg/swap'])),
            DensityDraws(points, steps, second),
        )
        (_, terms), grads = run(phases.generator_reg, g['params'], buffers, draws, probability, jnp.zeros(()))
        close(terms['l1'] / gen.rendering.density_reg, golden.out['Greg/l1_0'], rtol=VALUE, what='l1')
        check('Greg', 'G.', grads)

    (_, terms), grads = run(phases.discriminator_main, d, g, real, real_c, generated('Dmain'), probability, sigma)
    close(terms['logits_fake'], golden.out['Dmain/logits0'], scale=VALUE, what='Dmain fake')
    close(terms['logits_real'], golden.out['Dmain/logits1'], scale=VALUE, what='Dmain real')
    w_avg = terms['ema_stats']['backbone']['mapping']['w_avg']
    close(w_avg, golden.out['Dmain/w_avg_after'], scale=VALUE, what='w_avg')
    check('Dmain', 'D.', grads)

    (_, terms), grads = run(phases.discriminator_reg, d, real, real_c, sigma)
    close(terms['logits'], golden.out['Dreg/logits0'], scale=VALUE, what='Dreg logits')
    close(terms['penalty'], golden.out['Dreg/r1_penalty'], scale=VALUE, what='penalty')
    stored = golden.out['Dreg/r1_grad_raw_strided']
    step = -(-size // stored.shape[2])
    close(nchw(terms['grads'].raw)[:, :, ::step, ::step], stored, scale=GRADIENT, what='R1 gradient')
    check('Dreg', 'D.', grads)
    golden.check_all_used()


def test_pair_is_two_pictures():
    pair = real_pair(jnp.ones((1, 8, 8, 3)), 4, None)
    assert isinstance(pair, Pair) and pair.raw.shape == (1, 4, 4, 3)
