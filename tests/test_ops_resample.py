"""FIR resampling, resizing and modulated convolution against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.ops import resample
from avatar_jax.ops.activations import ACTIVATIONS, bias_act, normalize_2nd_moment
from avatar_jax.ops.modulated import modulated_conv2d
from avatar_jax.ops.resize import axis_matrix, double, filtered_resizing, resize

RNG = np.random.RandomState(7)


def brute_upfirdn(x, f, up, down, pads, flip, gain):
    """The definition, in numpy: insert zeros, pad or crop, correlate or convolve, keep every n-th sample."""
    (ux, uy), (dx, dy), (x0, x1, y0, y1) = up, down, pads
    n, h, w, c = x.shape
    z = np.zeros((n, h * uy, w * ux, c))
    z[:, ::uy, ::ux] = x
    big = np.zeros((n, h * uy + 80, w * ux + 80, c))
    big[:, 40:-40, 40:-40] = z
    z = big[:, 40 - y0 : big.shape[1] - 40 + y1, 40 - x0 : big.shape[2] - 40 + x1]
    f = np.outer(f, f) if f.ndim == 1 else f
    f = f if flip else f[::-1, ::-1]
    th, tw = f.shape
    y = np.zeros((n, z.shape[1] - th + 1, z.shape[2] - tw + 1, c))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            y[:, i, j] = np.einsum('nhwc,hw->nc', z[:, i : i + th, j : j + tw], f)
    return gain * y[:, ::dy, ::dx]


def random_cases():
    rng = np.random.RandomState(3)
    for i in range(12):
        up, down = tuple(rng.randint(1, 4, 2)), tuple(rng.randint(1, 4, 2))
        shape = (int(rng.randint(1, 6)),) if i % 3 == 0 else tuple(rng.randint(1, 5, 2))
        f = rng.randn(*shape)
        if i % 3 == 1:  # rank one
            f = np.outer(rng.randn(shape[0]), rng.randn(shape[1]))
        yield f, tuple(map(int, up)), tuple(map(int, down)), tuple(map(int, rng.randint(-2, 6, 4))), bool(i % 2), i


@pytest.mark.slow
@pytest.mark.parametrize(('f', 'up', 'down', 'pads', 'flip', 'seed'), list(random_cases()))
def test_upfirdn_is_its_definition(f, up, down, pads, flip, seed):
    x = np.random.RandomState(seed).randn(2, 6, 7, 2)
    expected = brute_upfirdn(x, f, up, down, pads, flip, 1.5)

    def run(x):
        return resample.upfirdn2d(x, f, up, down, pads, flip, 1.5)

    x = jnp.asarray(x, jnp.float32)
    y = jax.jit(run)(x)
    np.testing.assert_allclose(y, expected, atol=1e-5 * max(np.abs(expected).max(), 1))
    # The gradient is the transpose: <A x, g> == <x, A' g>, also of the transpose itself.
    g = jnp.asarray(np.random.RandomState(seed + 1).randn(*y.shape), jnp.float32)
    transposed, back = jax.vjp(lambda g: jax.vjp(run, x)[1](g)[0], g)
    np.testing.assert_allclose(jnp.vdot(y, g), jnp.vdot(x, transposed), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(back(x)[0], y, atol=1e-5 * max(np.abs(expected).max(), 1))


def test_setup_filter():
    f = resample.setup_filter([1, 3, 3, 1])
    np.testing.assert_allclose(f, np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64)
    assert resample.setup_filter(None).shape == (1, 1)
    assert resample.setup_filter(np.ones(8)).shape == (8,)
    np.testing.assert_allclose(resample.setup_filter(np.ones(8), gain=4), np.ones(8) / 4)
    np.testing.assert_allclose(resample.setup_filter([[1, 2]], flip_filter=True, normalize=False, gain=3), [[6, 3]])
    with pytest.raises(ValueError, match='1-D'):
        resample.setup_filter(np.ones((2, 2, 2)))


@pytest.mark.slow
def test_resampling_keeps_a_constant_image_constant():
    f = resample.setup_filter([1, 3, 3, 1])
    x = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(resample.upsample2d(x, f)[0, 3:-3, 3:-3], 1, rtol=1e-6)
    np.testing.assert_allclose(resample.downsample2d(x, f)[0, 1:-1, 1:-1], 1, rtol=1e-6)
    np.testing.assert_allclose(resample.filter2d(x, f, gain=2)[0, 3:-3, 3:-3], 2, rtol=1e-6)


def test_half_precision_is_rounded_once():
    x = jnp.asarray(RNG.randn(1, 9, 9, 2), jnp.bfloat16)
    f = resample.setup_filter(np.arange(1, 10.0))
    y = resample.filter2d(x, f)
    assert y.dtype == jnp.bfloat16
    whole = resample.filter2d(x.astype(jnp.float32), f).astype(jnp.bfloat16)
    # In float32 the two may differ in the last place; of what then lies between two halves, hardly anything is.
    a, b = (np.asarray(v, np.float32) for v in (y, whole))
    np.testing.assert_allclose(a, b, rtol=2**-7)
    assert (a != b).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ('up', 'down', 'k', 'flip'), [(2, 1, 3, False), (1, 2, 3, True), (2, 2, 3, True), (3, 1, 5, True)]
)
def test_conv2d_resample_is_resampling_and_convolution(up, down, k, flip):
    x = jnp.asarray(RNG.randn(1, 6, 6, 2), jnp.float32)
    w = jnp.asarray(RNG.randn(k, k, 2, 3), jnp.float32)
    f = resample.setup_filter([1, 2, 3, 1])
    y = resample.conv2d_resample(x, w, f, up, down, k // 2, flip_weight=flip)
    pad = k // 2
    z = x
    before, after = pad, pad
    if up > 1:
        before, after = before + (4 + up - 1) // 2, after + (4 - up) // 2
    if down > 1:
        before, after = before + (4 - down + 1) // 2, after + (4 - down) // 2
    if up > 1:
        z = resample.upfirdn2d(z, f, up, 1, [before, after] * 2, gain=up * up)
    else:
        z = jnp.pad(z, ((0, 0), (before, after), (before, after), (0, 0)))
    kernel = w if flip else w[::-1, ::-1]
    z = jax.lax.conv_general_dilated(z, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    if down > 1:
        z = resample.upfirdn2d(z, f, 1, down, 0)
    assert y.shape == (1, 6 * up // down, 6 * up // down, 3)
    np.testing.assert_allclose(y, z, atol=2e-5)


def test_modulated_convolution_is_a_convolution_per_sample():
    x = jnp.asarray(RNG.randn(3, 5, 5, 4), jnp.float32)
    w = jnp.asarray(RNG.randn(3, 3, 4, 6), jnp.float32)
    s = jnp.asarray(RNG.randn(3, 4), jnp.float32)
    noise = jnp.asarray(RNG.randn(3, 5, 5, 1), jnp.float32)
    for demodulate in (True, False):
        y = modulated_conv2d(x, w, s, noise, padding=1, demodulate=demodulate)
        for n in range(3):
            kernel = w * s[n][None, None, :, None]
            if demodulate:
                kernel = kernel / jnp.sqrt(jnp.sum(kernel**2, (0, 1, 2)) + 1e-8)
            z = jax.lax.conv_general_dilated(
                x[n : n + 1], kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
            np.testing.assert_allclose(y[n], z[0] + noise[n], atol=2e-5)
    with pytest.raises(ValueError, match='styles'):
        modulated_conv2d(x, w, s[:1])


@pytest.mark.usefixtures('float16')
def test_large_styles_stay_finite_in_half_precision():
    x = jnp.asarray(100 * RNG.randn(1, 4, 4, 4), jnp.float16)
    w, s = jnp.asarray(100 * RNG.randn(3, 3, 4, 4), jnp.float32), jnp.asarray(100 * RNG.randn(1, 4), jnp.float32)
    y = modulated_conv2d(x, w, s, padding=1)
    z = modulated_conv2d(x.astype(jnp.float32), w, s, padding=1)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y.astype(jnp.float32), z, atol=1e-2 * float(jnp.abs(z).max()))


@pytest.mark.parametrize('name', list(ACTIVATIONS))
def test_bias_act(name):
    x, b = jnp.asarray(3 * RNG.randn(4, 5), jnp.float32), jnp.asarray(RNG.randn(5), jnp.float32)
    reference = {
        'linear': lambda v: v,
        'relu': lambda v: np.maximum(v, 0),
        'lrelu': lambda v: np.where(v >= 0, v, 0.2 * v),
        'tanh': np.tanh,
        'sigmoid': lambda v: 1 / (1 + np.exp(-v)),
        'elu': lambda v: np.where(v >= 0, v, np.expm1(v)),
        'selu': lambda v: 1.0507009873554805 * np.where(v >= 0, v, 1.6732632423543772 * np.expm1(v)),
        'softplus': lambda v: np.log1p(np.exp(v)),
        'swish': lambda v: v / (1 + np.exp(-v)),
    }[name]
    v = reference(np.asarray(x + b, np.float64))
    gain = np.sqrt(2) if name in ('relu', 'lrelu', 'swish') else 1
    np.testing.assert_allclose(bias_act(x, b, name), v * gain, atol=1e-5)
    np.testing.assert_allclose(bias_act(x, b, name, gain=2, clamp=0.5), np.clip(2 * v, -0.5, 0.5), atol=1e-5)


def test_activation_misuse():
    with pytest.raises(ValueError, match='unknown'):
        bias_act(jnp.ones(3), act='gelu')
    with pytest.raises(ValueError, match='no alpha'):
        bias_act(jnp.ones(3), act='relu', alpha=0.1)


def test_normalize_2nd_moment():
    x = jnp.asarray(5 * RNG.randn(3, 8), jnp.float32)
    np.testing.assert_allclose(jnp.mean(normalize_2nd_moment(x) ** 2, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
@pytest.mark.parametrize(('size', 'new_size'), [(8, 5), (5, 8), (7, 7), (16, 3)])
def test_antialiased_resizing_is_the_one_of_jax(method, size, new_size):
    """Both normalise a widened, truncated kernel; jax.image is an independent implementation (a = -0.5)."""
    x = jnp.asarray(RNG.randn(size, 4, 1), jnp.float32)
    name = {'bilinear': 'linear', 'bicubic': 'cubic'}[method]
    y = jax.image.resize(x, (new_size, 4, 1), name, antialias=True)
    np.testing.assert_allclose(resize(x, (new_size, 4), method, antialias=True), y, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(2, 5, 7, 3), (1, 2, 2), (4, 1, 1)])
def test_doubling_is_resizing_with_its_derivatives(shape):
    x = jnp.asarray(RNG.randn(*shape), jnp.float32)

    def derivatives(f):
        value = lambda x: jnp.sum(jnp.sin(f(x)))
        return f(x), jax.grad(value)(x), jax.grad(lambda x: jnp.sum(jax.grad(value)(x) ** 2))(x)

    for a, b in zip(derivatives(double), derivatives(lambda x: resize(x, (2 * shape[-3], 2 * shape[-2]))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_resize_rows_sum_to_one():
    for method in ('bilinear', 'bicubic', 'area'):
        np.testing.assert_allclose(axis_matrix(9, 5, method).sum(axis=1), 1, rtol=1e-6)
    corners = axis_matrix(5, 9, 'bilinear', align_corners=True)
    np.testing.assert_allclose(corners[[0, -1]], np.eye(5)[[0, -1]], atol=1e-7)


def test_resize_misuse():
    x = jnp.ones((1, 4, 4, 1))
    with pytest.raises(ValueError, match='unknown'):
        resize(x, 2, 'lanczos')
    with pytest.raises(ValueError, match='neither'):
        resize(x, 2, 'nearest', antialias=True)
    with pytest.raises(ValueError, match='exclude'):
        resize(x, 2, antialias=True, align_corners=True)
    with pytest.raises(ValueError, match='filter_mode'):
        filtered_resizing(x, 2, filter_mode='sharp')
    with pytest.raises(ValueError, match='needs a filter'):
        filtered_resizing(x, 2, filter_mode='classic')
