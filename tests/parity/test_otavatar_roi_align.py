"""ROI-Align against reference crops and image gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.ops.roi_align import roi_align, roi_align_indexed
from tests.comparison import close
from tests.parity.golden import handles

ATOL = 5e-5


def _options(name: str) -> tuple[int, dict]:
    size, options = int(re.match(r'pool_(\d+)', name)[1]), {}
    if found := re.search(r'_sr(-?\d+)', name):
        options['sampling_ratio'] = int(found[1])
    if name.endswith('_aligned'):
        options['aligned'] = True
    return size, options


@pytest.mark.slow
@handles('otavatar', 'roi_align')
def test_roi_align(golden):
    image = jnp.asarray(golden.inp['image'].transpose(0, 2, 3, 1))
    boxes = golden.inp['boxes']
    pools = [k for k in golden.out if k.startswith('pool_')]
    for name in pools:
        size, options = _options(name)
        crops = roi_align_indexed(image, boxes, size, **options)
        close(np.asarray(crops).transpose(0, 3, 1, 2), golden.out[name], atol=ATOL, what=name)
        # The same boxes as traced values: matrices are built inside the compiled program.
        jitted = jax.jit(lambda i, b, s=size, o=options: roi_align_indexed(i, b, s, **o))(image, jnp.asarray(boxes))
        close(np.asarray(jitted).transpose(0, 3, 1, 2), golden.out[name], atol=ATOL, what=f'{name} traced')

    plain = [k for k in pools if re.fullmatch(r'pool_\d+', k)]

    def scalar(image):
        return sum(jnp.mean(roi_align_indexed(image, boxes, _options(k)[0]) ** 2) for k in plain)

    value, grad = jax.value_and_grad(scalar)(image)
    close(value, golden.out['scalar'], rtol=1e-5, what='scalar')
    close(np.asarray(grad).transpose(0, 3, 1, 2), golden.grad['image'], atol=ATOL, what='grad')
    golden.check_all_used()


@handles('blocks', 'roi_align')
def test_blocks_roi_align(golden):
    image = jnp.asarray(golden.inp['x'].transpose(0, 2, 3, 1))
    boxes, size = golden.inp['boxes'], tuple(golden.config['output_size'])
    for name in list(golden.out):
        ratio, aligned = re.fullmatch(r'sr(-?\d+)_al([01])', name).groups()
        options = {'sampling_ratio': int(ratio), 'aligned': aligned == '1'}
        crops = roi_align_indexed(image, boxes, size, **options)
        close(np.asarray(crops).transpose(0, 3, 1, 2), golden.out[name], rtol=1e-4, atol=1e-5, what=name)
    one = roi_align(image[:1], boxes[boxes[:, 0] == 0][:1, 1:], size)
    close(np.asarray(one)[0].transpose(2, 0, 1), golden.out['sr-1_al0'][boxes[:, 0] == 0][0], rtol=1e-4, atol=1e-5)
    golden.check_all_used()
