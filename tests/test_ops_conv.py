"""Convolutions: equal to XLA's own in value and in first and second derivatives, and canonical inside loops."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from avatar_jax.ops.conv import _conv, _Spec, conv1d, conv2d, conv2d_transpose

DIMS = ('NHWC', 'HWIO', 'NHWC')


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision('highest'):
        yield


def arrays(*shapes):
    rng = np.random.RandomState(len(shapes[0]) + sum(shapes[0]))
    return [jnp.asarray(rng.randn(*s), jnp.float32) for s in shapes]


def naive(stride=(1, 1), pads=((0, 0), (0, 0)), input_dilation=(1, 1), dilation=(1, 1), flip=False):
    def run(x, w):
        w = w[::-1, ::-1] if flip else w
        return lax.conv_general_dilated(
            x, w, stride, pads, lhs_dilation=input_dilation, rhs_dilation=dilation, dimension_numbers=DIMS
        )

    return run


def derivatives(f):
    """Value, gradient, and the gradient of a function of the gradient (what R1 and path-length penalties need)."""

    def loss(x, w):
        return jnp.sum(jnp.sin(f(x, w)))

    def penalty(x, w):
        return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1))(x, w))

    return jax.jit(lambda x, w: (f(x, w), jax.grad(loss, (0, 1))(x, w), jax.grad(penalty, (0, 1))(x, w)))


def assert_same(actual, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * max(float(jnp.abs(b).max()), 1e-3))


CASES = [
    # input, kernel, ours, the same with XLA's convolution
    ((2, 7, 6, 3), (3, 3, 3, 4), lambda x, w: conv2d(x, w, 1, 1), naive(pads=((1, 1), (1, 1)))),
    ((2, 6, 7, 5), (3, 2, 5, 2), lambda x, w: conv2d(x, w, 2, (0, 1)), naive((2, 2), ((0, 0), (1, 1)))),
    ((2, 9, 8, 2), (3, 3, 2, 3), lambda x, w: conv2d(x, w, (3, 1), 'VALID'), naive((3, 1))),
    ((2, 6, 6, 3), (1, 1, 3, 2), lambda x, w: conv2d(x, w, 2, 0), naive((2, 2))),
    ((2, 8, 7, 2), (3, 3, 2, 3), lambda x, w: conv2d(x, w, 1, 2, 2), naive(pads=((2, 2), (2, 2)), dilation=(2, 2))),
    ((1, 7, 7, 2), (3, 3, 2, 2), lambda x, w: conv2d(x, w, 1, -1), naive(pads=((-1, -1), (-1, -1)))),
    ((2, 4, 5, 3), (3, 3, 3, 4), conv2d_transpose, naive((1, 1), ((2, 2), (2, 2)), (2, 2), flip=True)),
    (
        (2, 3, 4, 2),
        (4, 4, 2, 3),
        lambda x, w: conv2d_transpose(x, w, 2, 1),
        naive((1, 1), ((2, 2), (2, 2)), (2, 2), flip=True),
    ),
    (
        (1, 3, 4, 2),
        (2, 2, 2, 3),
        lambda x, w: conv2d_transpose(x, w, 3, ((0, 1), (0, 0))),
        naive((1, 1), ((1, 0), (1, 1)), (3, 3), flip=True),
    ),
    (  # a stride and a dilated input: no public function makes this pair
        (1, 5, 4, 2),
        (3, 3, 2, 3),
        lambda x, w: _conv(x, w, _Spec((2, 2), ((1, 1), (0, 2)), (3, 2), (1, 1))),
        naive((2, 2), ((1, 1), (0, 2)), (3, 2)),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(('x_shape', 'w_shape', 'ours', 'reference'), CASES)
def test_derivatives_agree_with_xla(x_shape, w_shape, ours, reference):
    x, w = arrays(x_shape, w_shape)
    assert_same(derivatives(ours)(x, w), derivatives(reference)(x, w))


@pytest.mark.slow
def test_many_pixels_of_few_channels():
    """Large narrow strided convolutions take their kernel gradient from matrix products."""
    x, w = arrays((2, 97, 97, 2), (3, 3, 2, 3))
    assert_same(derivatives(lambda x, w: conv2d(x, w, 2, 0))(x, w), derivatives(naive((2, 2)))(x, w))
    x, w = arrays((2, 48, 48, 2), (3, 3, 2, 3))
    reference = naive((1, 1), ((2, 2), (2, 2)), (2, 2), flip=True)
    assert_same(derivatives(conv2d_transpose)(x, w), derivatives(reference)(x, w))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kernel', 'pads'), [((3, 3), ((1, 1), (1, 1))), ((2, 4), ((0, 1), (3, 0))), ((1, 3), ((0, 0), (0, 2)))]
)
def test_kernel_gradients_of_large_images(kernel, pads):
    """From 1,024 pixels on they are one matrix product per image."""
    x, w = arrays((2, 33, 40, 3), (*kernel, 3, 2))
    ours = lambda x, w: conv2d(x, w, 1, pads)
    assert_same(derivatives(ours)(x, w), derivatives(naive(pads=pads))(x, w))
    text = jax.jit(jax.grad(lambda w: jnp.sum(ours(x, w) ** 2))).lower(w).compile().as_text()
    assert len(re.findall(r' convolution\(.*', text)) == 1  # the forward pass


def test_same_padding_and_groups():
    x, w = arrays((1, 5, 6, 4), (3, 2, 2, 6))
    for stride in (1, 2):
        y = lax.conv_general_dilated(x, w, (stride, stride), 'SAME', dimension_numbers=DIMS, feature_group_count=2)
        assert_same(conv2d(x, w, stride, groups=2), y)
    y = conv2d_transpose(x, w, groups=2)
    halves = [conv2d_transpose(x[..., 2 * i : 2 * i + 2], w[..., 3 * i : 3 * i + 3]) for i in range(2)]
    assert_same(y, jnp.concatenate(halves, axis=-1))


@pytest.mark.parametrize(('stride', 'padding', 'dilation'), [(1, 'SAME', 1), (2, 1, 1), (1, (2, 0), 2)])
def test_conv1d(stride, padding, dilation):
    x, w = arrays((2, 9, 3), (3, 3, 4))
    pads = [(padding, padding)] if isinstance(padding, int) else padding if isinstance(padding, str) else [padding]
    y = lax.conv_general_dilated(
        x, w, (stride,), pads, rhs_dilation=(dilation,), dimension_numbers=('NHC', 'HIO', 'NHC')
    )
    assert_same(conv1d(x, w, stride, padding, dilation), y)


def test_vmap_and_scan():
    x, w = arrays((3, 2, 5, 5, 2), (3, 3, 3, 2, 4))

    def grad(f):
        return jax.grad(lambda x, w: jnp.sum(f(x, w) ** 3), (0, 1))

    ours, reference = grad(lambda x, w: conv2d(x, w, 2, 1)), grad(naive((2, 2), ((1, 1), (1, 1))))
    reference = jax.jit(reference)
    expected = jax.tree.map(lambda *a: jnp.stack(a), *[reference(x[i], w[i]) for i in range(3)])
    assert_same(jax.jit(jax.vmap(ours))(x, w), expected)
    shared = jax.tree.map(lambda *a: jnp.stack(a), *[reference(x[i], w[0]) for i in range(3)])
    assert_same(jax.jit(jax.vmap(ours, (0, None)))(x, w[0]), shared)
    _, scanned = jax.jit(lambda x, w: lax.scan(lambda c, xw: (c, ours(*xw)), 0, (x, w)))(x, w)
    assert_same(scanned, expected)


def test_half_precision_gradients_have_the_dtype_of_their_input():
    x, w = arrays((1, 6, 6, 2), (3, 3, 2, 3))
    half = (x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    for f in (lambda x, w: conv2d(x, w, 2, 1), conv2d_transpose):
        grad = jax.jit(jax.grad(lambda x, w, f=f: jnp.sum(f(x, w).astype(jnp.float32)), (0, 1)))
        gx, gw = grad(*half)
        assert gx.dtype == gw.dtype == jnp.bfloat16
        assert_same((gx.astype(jnp.float32), gw.astype(jnp.float32)), grad(x, w), 0.03)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='about the CPU back end')
@pytest.mark.parametrize('which', ['plain', 'strided', 'transposed', 'pointwise'])
def test_cpu_programs_hold_only_canonical_convolutions(which):
    """Inside loops XLA:CPU runs other layouts and dilated inputs as naive loops, up to 75 times slower."""
    x, w = arrays((1, 8, 8, 4), (1, 1, 4, 5) if which == 'pointwise' else (3, 3, 4, 5))
    f = {
        'plain': lambda x, w: conv2d(x, w),
        'strided': lambda x, w: conv2d(x, w, 2, 1),
        'transposed': conv2d_transpose,
        'pointwise': lambda x, w: conv2d(x, w, 1, 0),
    }[which]

    def programs(f):
        def first(x, w):
            return jax.grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1))(x, w)

        def second(x, w):
            return jax.grad(lambda w: jnp.sum(first(x, w)[0] ** 2))(w)

        def step(carry, _):
            x, w = carry
            gx, gw = first(x, w)
            return (x - gx, w - gw - second(x, w)), None

        text = jax.jit(lambda x, w: lax.scan(step, (x, w), None, length=3)).lower(x, w).compile().as_text()
        return text, re.findall(r' convolution\(.*', text)

    text, convolutions = programs(f)
    assert ' conditional(' not in text
    assert (which == 'pointwise') == (not convolutions)
    for line in convolutions:
        assert 'dim_labels=b01f_01io->b01f' in line and 'lhs_dilate' not in line, line
    # The check can fail: JAX's own gradients are not canonical.
    if which == 'plain':
        _, convolutions = programs(naive(pads=((1, 1), (1, 1))))
        assert any('dim_labels=b01f_01io->b01f' not in line for line in convolutions)


def test_misuse_is_an_error():
    x, w = arrays((1, 4, 4, 3), (3, 3, 2, 3))
    with pytest.raises(ValueError, match='do not fit'):
        conv2d(x, w)
    with pytest.raises(ValueError, match='do not fit'):
        conv2d_transpose(x, w)
    with pytest.raises(ValueError, match='N, H, W, I'):
        conv2d(x[0], w)
    with pytest.raises(ValueError, match='one entry for each'):
        conv2d(x[..., :2], w, padding=(1, 1, 1))
