"""Alignment and metric building blocks against reference numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.eval import distributions
from avatar_jax.faces import alignment
from avatar_jax.ops import image_metrics as image
from avatar_jax.ops.warp import warp_affine
from tests.comparison import close
from tests.parity.golden import handles

BLOCK = {'rtol': 1e-4, 'atol': 1e-5}


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.mark.slow
@handles('blocks', 'align5')
def test_align5(golden):
    inp, out = golden.inp, golden.out
    matrix = alignment.template_matrix(inp['src5'])
    close(matrix, out['M'], **BLOCK)
    close(alignment.RECOGNITION_TEMPLATE, out['template'], atol=1e-5)
    close(alignment.five_points(inp['lm68']), out['lm5_eyecorners'], **BLOCK)
    size = 4 * out['warped_slice'].shape[-1]
    pictures = nhwc(inp['img_u8'] / np.float32(127.5) - 1)
    warped = np.moveaxis(np.asarray(warp_affine(pictures, jnp.asarray(out['M'])[None], size)), -1, 1)
    close(warped[:, :, ::4, ::4], out['warped_slice'], what='warp', rtol=1e-4, atol=1e-4)
    golden.check_all_used()


@handles('blocks', 'fid_math')
def test_fid_math(golden):
    inp, out = golden.inp, golden.out
    mean, covariance = distributions.moments(inp['a'], ddof=1)
    close(mean, out['mu_a'], rtol=1e-6, atol=1e-9)
    close(covariance, out['sigma_a'], rtol=1e-6, atol=1e-9)
    for pair in ('ab', 'cd'):
        value = distributions.frechet_distance(inp[pair[0]], inp[pair[1]], ddof=1)
        close(value, out[f'fid_{pair}'], what=pair, rtol=1e-6)
    golden.check_all_used()


@handles('blocks', 'ssim_psnr')
def test_ssim_psnr(golden):
    inp, out, peak = golden.inp, golden.out, golden.config['data_range']
    options = {'data_range': peak, 'k1': golden.config['K1'], 'k2': golden.config['K2']}
    a, b, mask = (nhwc(inp[k]) for k in ('a', 'b', 'mask'))
    close(image.ssim(a, b, **options), out['ssim_gauss'], **BLOCK)
    uniform = image.ssim(a, b, window='uniform', covariance='sample', **options)
    close(uniform, out['ssim_uniform'], **BLOCK)
    full = np.moveaxis(np.asarray(image.ssim_map(a, b, **options)), -1, 1)
    close(full[:, :, ::4, ::4], out['map_gauss_slice'], **BLOCK)
    close(image.psnr(a, b, data_range=peak), out['psnr'], **BLOCK)
    close(image.psnr(a, b, data_range=peak, over='batch'), out['psnr_batch'], **BLOCK)
    close(image.psnr(a, b, data_range=peak, mask=mask), out['psnr_masked'], **BLOCK)
    golden.check_all_used()
