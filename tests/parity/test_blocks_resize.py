"""Interpolation and pooling against reference numbers."""

import jax.numpy as jnp
import numpy as np

from avatar_jax.ops.resize import resize
from tests.comparison import close
from tests.parity.golden import handles
from tests.parity.test_eg3d_networks import described_slice, nchw, nhwc


@handles('blocks', 'interp')
def test_interpolation(golden):
    for key in list(golden.out):
        expected = golden.out[key]
        if key.startswith('adaptive_'):
            source, target = (int(n) for n in key.removeprefix('adaptive_').split('to'))
            big = golden.inp['big_u8'].astype(np.float32) / 255  # stored as bytes
            assert big.shape[-1] == source
            index = (..., *described_slice(golden, f'to {target}, slice '))
            close(nchw(resize(nhwc(big), target, 'area'))[index], expected, rtol=1e-4, atol=1e-5, what=key)
            continue
        method, size, *flags = key.split('_')
        height, width = (int(n) for n in size.split('x'))
        y = resize(
            jnp.asarray(nhwc(golden.inp['x'])),
            (height, width),
            method,
            antialias='aa' in flags,
            align_corners='ac' in flags,
        )
        close(nchw(y), expected, rtol=1e-4, atol=1e-5, what=key)
    golden.check_all_used()
