"""Convolutions that are fast everywhere, also in gradients and inside loops on the CPU.

XLA's CPU back end runs a convolution through its fast kernel only in the canonical layout (NHWC activations, HWIO
kernel). The gradient convolutions that JAX derives have permuted dimension numbers, and inside ``scan``, ``while``,
``cond`` or ``remat`` bodies they become naive loops, up to 75 times slower. Here the backward pass states both
gradients as canonical convolutions, with explicit flips and transposes, and convolutions with a dilated input are
split into their phases instead of multiplying by the inserted zeros. Accelerators keep JAX's own gradients.

The gradient of a convolution is again a convolution of the same family, so derivatives of any order work. The price
of ``custom_vjp``: no forward-mode differentiation (``jax.jvp``, ``jax.jacfwd``). ``vmap`` over images merges them with
the batch; ``vmap`` over kernels makes grouped convolutions, which are several times slower than ``lax.map`` on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Float

Pads = tuple[tuple[int, int], tuple[int, int]]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]

_CANONICAL = ('NHWC', 'HWIO', 'NHWC')


class _Spec(NamedTuple):
    """Static description of y[o] = sum_k dilate(x)[o*stride + k*kernel_dilation - lo] * w[k], per axis."""

    stride: tuple[int, int]
    padding: Pads
    input_dilation: tuple[int, int]
    kernel_dilation: tuple[int, int]


_ONE = (1, 1)
_MAX_TAPS = 25  # above, one matrix product per tap makes the program too large
_NARROW = 48  # kernels with fewer output channels are slow in Eigen ...
_LARGE = 4096  # ... which matters from that many pixels on
_OUTER = 1024  # pixels per image from which on kernel gradients are matrix products


def conv2d(
    x: Float[jax.Array, 'n h w i'],
    w: Float[jax.Array, 'kh kw i_group o'],
    stride: int | tuple[int, int] = 1,
    padding: Padding = 'SAME',
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Float[jax.Array, 'n h_out w_out o']:
    """2-D convolution in the deep-learning sense (correlation).

    Args:
        x: [N, H, W, I].
        w: [kh, kw, I // groups, O].
        stride: step of the output grid, one number or (vertical, horizontal).
        padding: zeros around x. One number for all sides, (vertical, horizontal), ((top, bottom), (left, right)),
            'VALID' (none) or 'SAME' (output ceil(size / stride)). Negative numbers crop.
        dilation: spacing of the kernel taps.
        groups: channels are split into that many independent groups (meant for few groups: one call per group).

    Returns:
        [N, H', W', O] with H' = (H + top + bottom - dilation*(kh - 1) - 1) // stride + 1.
    """
    stride, dilation = _pair(stride), _pair(dilation)
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f'conv2d takes x [N, H, W, I] and w [kh, kw, I, O], got {x.shape} and {w.shape}')
    if x.shape[3] != w.shape[2] * groups or w.shape[3] % groups:
        raise ValueError(f'conv2d: x {x.shape} and w {w.shape} do not fit together with groups={groups}')
    pads = _pads(padding, x.shape[1:3], w.shape[:2], stride, dilation)
    spec = _Spec(stride, pads, _ONE, dilation)
    return _grouped(x, w, groups, spec)


def conv2d_transpose(
    x: Float[jax.Array, 'n h w i'],
    w: Float[jax.Array, 'kh kw i_group o'],
    stride: int | tuple[int, int] = 2,
    padding: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
    groups: int = 1,
) -> Float[jax.Array, 'n h_out w_out o']:
    """Transposed convolution in scatter form: full[i*stride + k] += x[i] w[k], then ``padding`` rows are cut off.

    Args:
        x: [N, H, W, I].
        w: [kh, kw, I // groups, O]; not flipped, input channels third (as for ``conv2d``).
        stride: spacing of the scattered samples.
        padding: rows and columns removed from the full result; same forms as for ``conv2d``, no strings.
        groups: channels are split into that many independent groups.

    Returns:
        [N, H', W', O] with H' = (H - 1) * stride + kh - top - bottom.
    """
    stride = _pair(stride)
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f'conv2d_transpose takes x [N, H, W, I] and w [kh, kw, I, O], got {x.shape} and {w.shape}')
    if x.shape[3] != w.shape[2] * groups or w.shape[3] % groups:
        raise ValueError(f'conv2d_transpose: x {x.shape} and w {w.shape} do not fit together with groups={groups}')
    cut = _pads(padding, x.shape[1:3], w.shape[:2], _ONE, _ONE)
    pads = tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(w.shape[:2], cut))
    return _grouped(x, w[::-1, ::-1], groups, _Spec(_ONE, pads, stride, _ONE))


def conv1d(
    x: Float[jax.Array, 'n t i'],
    w: Float[jax.Array, 'k i o'],
    stride: int = 1,
    padding: str | int | tuple[int, int] = 'SAME',
    dilation: int = 1,
) -> Float[jax.Array, 'n t_out o']:
    """1-D convolution (correlation) of x [N, L, I] with w [k, I, O]; same options as ``conv2d``. Returns [N, L', O]."""
    if x.ndim != 3 or w.ndim != 3:
        raise ValueError(f'conv1d takes x [N, L, I] and w [k, I, O], got {x.shape} and {w.shape}')
    pads = _pads(padding, x.shape[1:2], w.shape[:1], (stride,), (dilation,))
    # The sequence goes along the width: one row, so that the fast kernel sees an ordinary image.
    y = conv2d(x[:, None], w[None], (1, stride), ((0, 0), pads[0]), (1, dilation))
    return y[:, 0]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    a, b = value
    return int(a), int(b)


def _pads(padding: Padding, sizes, kernel, stride, dilation) -> tuple[tuple[int, int], ...]:
    """Explicit (before, after) pairs per axis for every accepted form of ``padding``."""
    axes = len(sizes)
    if isinstance(padding, str):
        extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
        return tuple((int(a), int(b)) for a, b in lax.padtype_to_pads(sizes, extent, stride, padding))
    if isinstance(padding, int):
        return ((padding, padding),) * axes
    padding = tuple(padding)
    if axes == 1 and len(padding) == 2 and isinstance(padding[0], int):
        return ((int(padding[0]), int(padding[1])),)
    if len(padding) != axes:
        raise ValueError(f'padding {padding}: expected one entry for each of {axes} axes')
    return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)


def _grouped(x: jax.Array, w: jax.Array, groups: int, spec: _Spec) -> jax.Array:
    if groups == 1:
        return _conv(x, w, spec)
    xs, ws = jnp.split(x, groups, axis=3), jnp.split(w, groups, axis=3)
    return jnp.concatenate([_conv(a, b, spec) for a, b in zip(xs, ws)], axis=3)


# ------------------------------------------------------------------------------------------------ the closed family


def _conv(x: jax.Array, w: jax.Array, spec: _Spec) -> jax.Array:
    if w.shape[:2] == _ONE and spec == _Spec(_ONE, ((0, 0), (0, 0)), _ONE, spec.kernel_dilation):
        # A 1x1 convolution is a matrix product, whose derivatives are matrix products.
        return jnp.einsum('nhwi,io->nhwo', x, w[0, 0])
    return _conv_vjp(*_varying_alike(x, w), spec)


def _varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Inside ``shard_map(check_vma=True)``: lets each array vary over the axes of all, as custom gradients
    presuppose.
    """
    axes = [_varying_axes(a) for a in arrays]
    missing = [tuple(sorted(frozenset().union(*axes) - own)) for own in axes]
    return [lax.pcast(a, m, to='varying') if m else a for a, m in zip(arrays, missing)]


def _varying_axes(x: jax.Array) -> frozenset:
    """Mesh axes over which a value may differ; the attribute has moved between JAX versions."""
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, 'mat') else getattr(kind, 'vma', frozenset())


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_vjp(x: jax.Array, w: jax.Array, spec: _Spec) -> jax.Array:
    if spec.input_dilation == _ONE and all(p >= 0 for side in spec.padding for p in side):
        return _lax_conv(x, w, spec)  # canonical already
    return lax.platform_dependent(
        x, w, cpu=lambda x, w: _conv_cpu(x, w, spec), default=lambda x, w: _lax_conv(x, w, spec)
    )


def _conv_fwd(x, w, spec):
    return _conv_vjp(x, w, spec), (x, w)


def _conv_bwd(spec, saved, g):
    x, w = saved
    gx = lax.platform_dependent(
        x,
        w,
        g,
        cpu=lambda x, w, g: _input_gradient(w, g, x.shape[1:3], spec),
        default=lambda x, w, g: jax.vjp(lambda x: _lax_conv(x, w, spec), x)[1](g)[0],
    )
    gw = lax.platform_dependent(
        x,
        w,
        g,
        cpu=lambda x, w, g: _kernel_gradient(x, g, w.shape[:2], spec),
        default=lambda x, w, g: jax.vjp(lambda w: _lax_conv(x, w, spec), w)[1](g)[0],
    )
    return gx, gw


_conv_vjp.defvjp(_conv_fwd, _conv_bwd)


def _lax_conv(x: jax.Array, w: jax.Array, spec: _Spec) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        spec.stride,
        spec.padding,
        lhs_dilation=spec.input_dilation,
        rhs_dilation=spec.kernel_dilation,
        dimension_numbers=_CANONICAL,
    )


def _conv_cpu(x: jax.Array, w: jax.Array, spec: _Spec) -> jax.Array:
    """The same sum without negative padding and, where possible, without inserted zeros."""
    if spec.input_dilation != _ONE and spec.stride == _ONE and spec.kernel_dilation == _ONE:
        return _by_phases(x, w, spec)
    if spec.input_dilation == _ONE:
        crop = [(min(lo, 0), min(hi, 0), 0) for lo, hi in spec.padding]
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *crop, (0, 0, 0)))
        spec = spec._replace(padding=tuple((max(lo, 0), max(hi, 0)) for lo, hi in spec.padding))
    return _lax_conv(x, w, spec)


def _by_phases(x: jax.Array, w: jax.Array, spec: _Spec) -> jax.Array:
    """Dilated input, stride 1: output rows o = d*q + r only meet the taps k = (lo - r) mod d, + d, + 2d, ...

    Each residue r is an ordinary convolution of the undilated input with those taps; the results are interleaved.
    """
    n, o_channels = x.shape[0], w.shape[3]
    d = spec.input_dilation
    size = [
        (x.shape[1 + a] - 1) * d[a] + 1 + sum(spec.padding[a]) - (w.shape[a] - 1) for a in range(2)
    ]  # of the result
    count = [-(-size[a] // d[a]) for a in range(2)]  # of every residue, the last row may be surplus

    def plan(axis: int, residue: int) -> tuple[int, tuple[int, int]]:
        lo = spec.padding[axis][0]
        first = (lo - residue) % d[axis]
        taps = len(range(first, w.shape[axis], d[axis]))
        before = (lo - residue - first) // d[axis]
        return first, (before, count[axis] - x.shape[1 + axis] - before + taps - 1)

    rows = []
    for r in range(d[0]):
        top, pad_h = plan(0, r)
        columns = []
        for c in range(d[1]):
            left, pad_w = plan(1, c)
            taps = w[top :: d[0], left :: d[1]]
            if taps.shape[0] and taps.shape[1]:
                columns.append(_conv_cpu(x, taps, _Spec(_ONE, (pad_h, pad_w), _ONE, _ONE)))
            else:
                columns.append(jnp.zeros((n, count[0], count[1], o_channels), x.dtype))
        rows.append(jnp.stack(columns, axis=3).reshape(n, count[0], count[1] * d[1], o_channels))
    full = jnp.stack(rows, axis=2).reshape(n, count[0] * d[0], count[1] * d[1], o_channels)
    return full[:, : size[0], : size[1]]


def _input_gradient(w: jax.Array, g: jax.Array, size: Sequence[int], spec: _Spec) -> jax.Array:
    """d/dx: dilate g by the stride, convolve with the flipped, transposed kernel, step by the input dilation."""
    pads = []
    for a in range(2):
        reach = (w.shape[a] - 1) * spec.kernel_dilation[a]
        lo = reach - spec.padding[a][0]
        last = (size[a] - 1) * spec.input_dilation[a]  # where the window of the last input sample starts
        hi = last + reach + 1 - lo - ((g.shape[1 + a] - 1) * spec.stride[a] + 1)
        pads.append((lo, hi))
    flipped = jnp.transpose(w[::-1, ::-1], (0, 1, 3, 2))
    return _conv(g, flipped, _Spec(spec.input_dilation, tuple(pads), spec.stride, spec.kernel_dilation))


def _kernel_gradient(x: jax.Array, g: jax.Array, taps: Sequence[int], spec: _Spec) -> jax.Array:
    """d/dw: the batch becomes the contracted channel, one operand slides over the other."""
    plain = spec == _Spec(_ONE, spec.padding, _ONE, _ONE) and all(p >= 0 for side in spec.padding for p in side)
    if plain and g.shape[1] * g.shape[2] >= _OUTER and taps[0] * taps[1] <= _MAX_TAPS:
        return _kernel_gradient_by_shifts(x, g, taps, spec.padding)
    if spec.stride != _ONE and spec.input_dilation != _ONE:  # a rare pair: the zeros are written out
        gaps = [d - 1 for d in spec.input_dilation]
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, gaps[0]), (0, 0, gaps[1]), (0, 0, 0)))
        spec = spec._replace(input_dilation=_ONE)
    dilated = spec.input_dilation != _ONE
    # Whose grid is the finer one is the image; on equal grids, the operand with fewer channels, since Eigen is slow
    # with kernels of few output channels. If g is the image, the taps come out in reverse order.
    swap = dilated if spec.stride != _ONE or dilated else x.shape[3] > g.shape[3]
    spread = spec.input_dilation if dilated else spec.stride
    step = spec.kernel_dilation
    image, kernel = (g, x) if swap else (x, g)
    pads = []
    for a in range(2):
        lo = spec.padding[a][0]
        before = (taps[a] - 1) * step[a] - lo if swap else lo
        extent = (kernel.shape[1 + a] - 1) * spread[a] + 1
        pads.append((before, (taps[a] - 1) * step[a] + extent - before - image.shape[1 + a]))
    narrow = kernel.shape[3] < _NARROW and kernel.size // kernel.shape[3] >= _LARGE
    if spread != _ONE and narrow and taps[0] * taps[1] <= _MAX_TAPS:
        y = _correlate_by_taps(image, kernel, taps, spread, step, pads)
    else:
        y = _conv(
            jnp.transpose(image, (3, 1, 2, 0)),
            jnp.transpose(kernel, (1, 2, 0, 3)),
            _Spec(step, tuple(pads), _ONE, spread),
        )
        y = jnp.transpose(y, (1, 2, 0, 3))  # [kh, kw, channels of image, channels of kernel]
    return jnp.transpose(y, (0, 1, 3, 2))[::-1, ::-1] if swap else y


def _kernel_gradient_by_shifts(x: jax.Array, g: jax.Array, taps: Sequence[int], pads: Pads) -> jax.Array:
    """All taps in one matrix product per image: x shifted vertically against g shifted horizontally.

    Two to four times faster than a convolution whose kernel is as large as the image, which would copy x once per tap.
    """
    (n, height, _, _), (kh, kw) = g.shape, taps
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    width = x.shape[2]
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), (0, 0, 0), (kw - 1, kw - 1, 0), (0, 0, 0)))
    rows = jnp.stack([x[:, i : i + height] for i in range(kh)], 3).reshape(n, height * width, -1)
    columns = jnp.stack([g[:, :, kw - 1 - j : kw - 1 - j + width] for j in range(kw)], 3).reshape(n, height * width, -1)
    exact = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.einsum('npi,npo->nio', rows, columns, preferred_element_type=exact).sum(0).astype(x.dtype)
    return rearrange(y, '(kh i) (kw o) -> kh kw i o', kh=kh, kw=kw)


def _correlate_by_taps(image, kernel, taps, spread, step, pads) -> jax.Array:
    """One matrix product per tap: [kh, kw, channels of image, channels of kernel]."""
    zero = jnp.zeros((), image.dtype)
    image = lax.pad(image, zero, ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    n, height, width, _ = kernel.shape
    span = ((height - 1) * spread[0] + 1, (width - 1) * spread[1] + 1)
    products = []
    for i in range(taps[0]):
        for j in range(taps[1]):
            start = (0, i * step[0], j * step[1], 0)
            stop = (n, start[1] + span[0], start[2] + span[1], image.shape[3])
            part = lax.slice(image, start, stop, (1, *spread, 1))
            products.append(jnp.einsum('nhwi,nhwo->io', part, kernel))
    return jnp.stack(products).reshape(*taps, image.shape[3], kernel.shape[3])
