"""The augmentation pipe against reference numbers: fixed percentiles, and one run with recorded draws."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.methods.eg3d.augment import AugmentConfig, PercentileDraws, augment
from avatar_jax.methods.eg3d.augment.corrupt import BANK
from avatar_jax.methods.eg3d.augment.geometry import FILTER
from tests.comparison import close
from tests.parity.golden import handles
from tests.parity.test_eg3d_networks import VALUE, nchw, nhwc


class Recorded:
    """Draws in the order in which they were recorded; shapes are brought to [N, *shape]."""

    fixed = False

    def __init__(self, golden, num):
        keys = sorted(k for k in golden.inp if k.startswith('random/'))
        self._num, self._left = num, [(k.rpartition('_')[2], golden.inp[k]) for k in keys]

    def _next(self, kind, shape):
        found, value = self._left.pop(0)
        assert found == kind, f'recorded {found}, asked for {kind}'
        if value.shape != (self._num, *shape) and len(shape) == 3:  # pixels are recorded channel-first
            value = np.moveaxis(value, 1, -1)
        return jnp.asarray(value).reshape(self._num, *shape)

    def uniform(self, name, *shape):
        return self._next('uniform', shape)

    def normal(self, name, *shape):
        return self._next('normal', shape)

    def magnitude(self, name):
        return jnp.abs(self._next('normal', ()))

    def chosen(self, name, probability):
        return self._next('uniform', ()) < probability

    def left(self):
        return len(self._left)


@pytest.mark.slow
@handles('eg3d', 'augment')
def test_augment(golden):
    x = nhwc(golden.inp['x'])
    if 'Hz_geom' in golden.out:
        close(FILTER, golden.out['Hz_geom'], scale=1e-6, what='Hz_geom')
    if 'Hz_fbank' in golden.out:
        close(BANK, golden.out['Hz_fbank'], scale=1e-6, what='Hz_fbank')
    transforms = {}
    for name, percentile, kwargs in golden.config['cases']:
        config = AugmentConfig(**kwargs)
        transforms[name] = config
        y = jax.jit(lambda x, q, c=config: augment(c, x, 1.0, PercentileDraws(x.shape[0], q), True))(x, percentile)
        close(nchw(y), golden.out[f'{name}_{percentile}'], scale=VALUE, what=f'{name} {percentile}')
    for key in [k for k in golden.out if k.startswith('random_p')]:
        found = re.search(r'one run of the (\w+) pipe', golden.config['what']).group(1)
        config = transforms.get(found) or AugmentConfig.preset(found)
        draws = Recorded(golden, x.shape[0])
        y = augment(config, x, float(key.removeprefix('random_p')), draws, True)
        close(nchw(y), golden.out[key], scale=VALUE, what=key)
        assert draws.left() == 0
    golden.check_all_used()
