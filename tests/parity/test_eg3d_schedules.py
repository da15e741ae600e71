"""Schedules of training against reference numbers."""

import re

import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.eg3d import schedules as s
from avatar_jax.train.optimizers import OptimizerConfig
from tests.comparison import close
from tests.parity.golden import handles


@handles('eg3d', 'schedules')
def test_schedules(golden):
    cfg, shown = golden.config, golden.inp['cur_nimg']
    what = cfg['what']
    rampup = float(re.search(r'rampup ([\d.]+)', what).group(1))
    intervals = re.search(r'G interval (\d+), D interval (\d+)', what).groups()

    def curve(function):
        return np.asarray([function(int(n)) for n in shown])

    rules = {
        'blur_sigma': lambda n: s.blur_sigma(n, cfg['blur_init_sigma'], cfg['blur_fade_kimg']),
        'swapping_prob': lambda n: s.swap_probability(n, cfg['gpc_reg_prob'], cfg['gpc_reg_fade_kimg']),
        'ema_beta': lambda n: s.ema_decay(n, cfg['batch_size'], cfg['ema_kimg'], rampup),
        'ema_beta_no_rampup': lambda n: s.ema_decay(n, cfg['batch_size'], cfg['ema_kimg'], None),
    }
    for name, rule in rules.items():
        close(curve(rule), golden.out[name], rtol=1e-6, atol=1e-7, what=name)
        traced = np.asarray([rule(jnp.int32(n)) for n in shown])  # as the compiled step computes them
        close(traced, golden.out[name], rtol=1e-5, atol=1e-6, what=f'{name} in float32')
    sizes = curve(lambda n: s.raw_resolution(n, cfg['nrr_initial'], cfg['nrr_final'], cfg['nrr_fade_kimg']))
    np.testing.assert_array_equal(sizes, golden.out['neural_rendering_resolution'])
    for who, interval in zip('gd', intervals, strict=True):
        beta1, beta2 = cfg['betas']
        found = s.lazy_optimizer(OptimizerConfig(lr=cfg[f'{who}_lr'], beta1=float(beta1), beta2=beta2), int(interval))
        close([found.lr, found.beta1, found.beta2], golden.out[f'adam_{who}'], rtol=1e-6, what=f'adam_{who}')
    golden.check_all_used()


def test_schedules_without_fades():
    assert s.blur_sigma(5, 10, 0) == 0 and s.swap_probability(5, None, 10) is None
    assert s.swap_probability(0, 0.5, 0) == 0.5 and s.raw_resolution(10**6, 64, None, 0) == 64
    assert s.raw_resolution(500_000, 64, 128, 1000, multiple=8) == 96
    assert s.raw_resolution(510_000, 64, 128, 1000, multiple=8) == 96
    assert s.raw_resolution(0, 64, 128, 1000, 8) == 64 and s.raw_resolution(10**7, 64, 128, 1000, 8) == 128
    assert s.lazy_optimizer(OptimizerConfig(lr=1.0), 0).lr == 1.0
