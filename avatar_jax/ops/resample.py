"""FIR resampling: up-sample by zero insertion, pad, filter, down-sample, as polyphase sums of shifted slices.

Written as a (depthwise) convolution this is 100 to 290 times slower on the CPU, because of the inserted zeros and of
the channel groups; sums of shifted slices fuse into element-wise kernels on every platform. Filters are numpy arrays:
constants of the program, so that rank-one ones are recognised and applied one axis at a time.

Conventions: images [N, H, W, C]; per-axis options are (x, y) and paddings (left, right, top, bottom).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from avatar_jax.ops.conv import conv2d, conv2d_transpose

if TYPE_CHECKING:
    from jaxtyping import Float

Filter = np.ndarray | jax.Array | None


def setup_filter(
    f: Sequence[float] | np.ndarray | None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> np.ndarray:
    """Prepares a FIR filter.

    Args:
        f: taps [t], a 2-D filter [th, tw], or None for the identity.
        normalize: divide by the sum of all entries.
        flip_filter: reverse all axes.
        gain: multiply by ``gain ** (ndim / 2)``.
        separable: keep 1-D taps (applied along x, then y). None: yes from 8 taps on; shorter ones become f f^T.

    Returns:
        float32 [t] or [th, tw].
    """
    f = np.asarray(1.0 if f is None else f, np.float64)
    if f.ndim not in (0, 1, 2) or f.size == 0:
        raise ValueError(f'filter of shape {f.shape}: expected 1-D taps or a 2-D filter')
    f = np.atleast_1d(f)
    if separable is None:
        separable = f.ndim == 1 and f.size >= 8
    if f.ndim == 1 and not separable:
        f = np.outer(f, f)
    if separable and f.ndim != 1:
        raise ValueError('separable=True needs 1-D taps')
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f[(slice(None, None, -1),) * f.ndim]
    return (f * gain ** (f.ndim / 2)).astype(np.float32)


def upfirdn2d(
    x: Float[jax.Array, 'n h w c'],
    f: Filter,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Float[jax.Array, 'n h_out w_out c']:
    """Up-samples, pads, filters and down-samples each channel.

    Args:
        x: [N, H, W, C].
        f: from ``setup_filter``: [th, tw], or [t] applied along both axes, or None (identity).
        up: after every sample, the last one included, ``up - 1`` zeros are inserted.
        down: every ``down``-th filtered sample is kept, starting with the first.
        padding: zeros around the zero-inserted image; negative numbers crop.
        flip_filter: False convolves, True correlates.
        gain: scale of the result.

    Returns:
        [N, (H*up_y + top + bottom - th) // down_y + 1, (W*up_x + left + right - tw) // down_x + 1, C]. Half-precision
        images are filtered in float32 and rounded once.
    """
    if x.ndim != 4:
        raise ValueError(f'upfirdn2d takes [N, H, W, C], got {x.shape}')
    up_x, up_y = _xy(up)
    down_x, down_y = _xy(down)
    left, right, top, bottom = _padding(padding)
    f = np.ones((1, 1), np.float32) if f is None else f
    if f.ndim not in (1, 2):
        raise ValueError(f'filter of shape {f.shape}: expected 1-D taps or a 2-D filter')
    dtype = x.dtype
    if jnp.finfo(dtype).bits < 32:
        x = x.astype(jnp.float32)
    rows, columns = (f, f) if f.ndim == 1 else _factors(f)
    if rows is None:
        taps = f if flip_filter else f[::-1, ::-1]
        x = _fir_full(x, taps * gain, (up_y, up_x), (down_y, down_x), ((top, bottom), (left, right)))
    else:
        step = 1 if flip_filter else -1
        root = math.sqrt(gain)
        x = _fir_axis(x, columns[::step] * root, 2, up_x, down_x, (left, right))
        x = _fir_axis(x, rows[::step] * root, 1, up_y, down_y, (top, bottom))
    return x.astype(dtype)


def filter2d(
    x: Float[jax.Array, 'n h w c'],
    f: Filter,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Float[jax.Array, 'n h_out w_out c']:
    """Filters [N, H, W, C] keeping its size (zeros outside); ``padding`` is added to that."""
    th, tw = _taps(f)
    left, right, top, bottom = _padding(padding)
    pads = (left + tw // 2, right + (tw - 1) // 2, top + th // 2, bottom + (th - 1) // 2)
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Float[jax.Array, 'n h w c'],
    f: Filter,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Float[jax.Array, 'n h_out w_out c']:
    """Up-samples [N, H, W, C] to [N, H*up_y, W*up_x, C] at constant brightness; ``padding`` is added to that."""
    pads = _resample_padding(f, _padding(padding), up=_xy(up), down=(1, 1))
    up_x, up_y = _xy(up)
    return upfirdn2d(x, f, up=up, padding=pads, flip_filter=flip_filter, gain=gain * up_x * up_y)


def downsample2d(
    x: Float[jax.Array, 'n h w c'],
    f: Filter,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Float[jax.Array, 'n h_out w_out c']:
    """Down-samples [N, H, W, C] to [N, H/down_y, W/down_x, C]; ``padding`` is added to that."""
    pads = _resample_padding(f, _padding(padding), up=(1, 1), down=_xy(down))
    return upfirdn2d(x, f, down=down, padding=pads, flip_filter=flip_filter, gain=gain)


def conv2d_resample(
    x: jax.Array,
    w: jax.Array,
    f: Filter = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> jax.Array:
    """Convolution with FIR up-sampling before it or FIR down-sampling after it, in the cheapest equivalent order.

    Args:
        x: [N, H, W, I].
        w: [kh, kw, I // groups, O].
        f: FIR filter for the resampling, from ``setup_filter``; None repeats no sample and filters nothing.
        up: integer factor applied to the image before the convolution.
        down: integer factor applied to the result.
        padding: with respect to the up-sampled image; one number, (x, y) or (left, right, top, bottom).
        groups: channel groups of the convolution.
        flip_weight: True correlates with ``w``, as usual; False convolves (``w`` rotated by 180 degrees).
        flip_filter: passed to ``upfirdn2d``.

    Returns:
        [N, H', W', O]; H' = H * up / down for an odd kernel with padding k // 2.
    """
    if not (isinstance(up, int) and isinstance(down, int) and up >= 1 and down >= 1):
        raise ValueError(f'conv2d_resample: up={up!r} and down={down!r} must be positive integers')
    kh, kw = w.shape[:2]
    pads = _padding(padding)
    pads = _resample_padding(f, pads, up=(up, up) if up > 1 else (1, 1), down=(down, down) if down > 1 else (1, 1))
    left, right, top, bottom = pads

    if up == 1 and down == 1:
        kernel = w if flip_weight else w[::-1, ::-1]
        return conv2d(x, kernel, 1, ((top, bottom), (left, right)), groups=groups)
    if kh == kw == 1 and up == 1:
        return conv2d(upfirdn2d(x, f, 1, down, pads, flip_filter), w, 1, 0, groups=groups)
    if kh == kw == 1 and down == 1:
        return upfirdn2d(conv2d(x, w, 1, 0, groups=groups), f, up, 1, pads, flip_filter, gain=up * up)
    if up == 1:
        kernel = w if flip_weight else w[::-1, ::-1]
        return conv2d(upfirdn2d(x, f, 1, 1, pads, flip_filter), kernel, down, 0, groups=groups)
    # The scatter form needs the kernel of a true convolution. Filtering after it instead of before is the same sum,
    # at the original channel count and without the zeros; its border of kernel - 1 replaces as much padding.
    kernel = w[::-1, ::-1] if flip_weight else w
    y = conv2d_transpose(x, kernel, up, 0, groups=groups)
    rest = (left - (kw - 1), right - (kw - up), top - (kh - 1), bottom - (kh - up))
    y = upfirdn2d(y, f, 1, 1, rest, flip_filter, gain=up * up)
    return y if down == 1 else upfirdn2d(y, f, 1, down, 0, flip_filter)


# ---------------------------------------------------------------------------------------------------------- helpers


def _xy(value: int | Sequence[int]) -> tuple[int, int]:
    x, y = (value, value) if isinstance(value, int) else value
    if x < 1 or y < 1:
        raise ValueError(f'resampling factor {value}: must be at least 1')
    return int(x), int(y)


def _padding(value: int | Sequence[int]) -> tuple[int, int, int, int]:
    if isinstance(value, int):
        return (value,) * 4
    value = tuple(int(v) for v in value)
    if len(value) == 2:
        return value[0], value[0], value[1], value[1]
    if len(value) != 4:
        raise ValueError(f'padding {value}: expected one number, (x, y) or (left, right, top, bottom)')
    return value


def _taps(f: Filter) -> tuple[int, int]:
    """(height, width) of a filter."""
    if f is None:
        return 1, 1
    return f.shape if f.ndim == 2 else (f.shape[0], f.shape[0])


def _resample_padding(f: Filter, pads, *, up: tuple[int, int], down: tuple[int, int]) -> tuple[int, int, int, int]:
    """Adds what keeps the picture centred when it is resampled by (x, y) factors; a factor of 1 adds nothing."""
    out = list(pads)
    for axis, taps in enumerate(reversed(_taps(f))):
        u, d = up[axis], down[axis]
        if u > 1:
            out[2 * axis] += (taps + u - 1) // 2
            out[2 * axis + 1] += (taps - u) // 2
        if d > 1:
            out[2 * axis] += (taps - d + 1) // 2
            out[2 * axis + 1] += (taps - d) // 2
    return tuple(out)


def _factors(f: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Rows and columns of a constant rank-one filter; (None, None) for all others."""
    if not isinstance(f, np.ndarray):
        return None, None
    f = f.astype(np.float64)
    i, j = np.unravel_index(np.abs(f).argmax(), f.shape)
    if f[i, j] == 0:
        return None, None
    # Dividing by the root of the pivot gives both factors of a symmetric filter the same scale.
    root = math.sqrt(abs(f[i, j]))
    rows, columns = f[:, j] / root * np.sign(f[i, j]), f[i] / root
    if np.abs(np.outer(rows, columns) - f).max() > 1e-7 * abs(f[i, j]):
        return None, None
    return rows, columns


def _plan(size: int, taps: int, up: int, down: int, pads: tuple[int, int]):
    """Which input samples meet which taps along one axis.

    Outputs o = period*q + r read inputs q*step + offset_r + m with tap first_r + up*m, m = 0, 1, ...

    Returns (outputs, period, step, [(first_r, offset_r)]).
    """
    outputs = (size * up + sum(pads) - taps) // down + 1
    if outputs < 1:
        raise ValueError(f'upfirdn2d: nothing left of {size} samples with up={up}, padding={pads}, {taps} taps')
    period = up // math.gcd(up, down)
    phases = []
    for r in range(period):
        first = (pads[0] - r * down) % up
        phases.append((first, (r * down + first - pads[0]) // up))
    return outputs, period, period * down // up, phases


def _extend(x: jax.Array, axis: int, taps: int, plan, up: int) -> tuple[jax.Array, int]:
    """Pads (or crops) ``axis`` so that every index of the plan exists; returns the array and the shift of index 0."""
    outputs, period, step, phases = plan
    count = -(-outputs // period)
    reach = [offset + (count - 1) * step + len(range(first, taps, up)) - 1 for first, offset in phases]
    low = min(offset for _, offset in phases)
    high = max(max(reach), low)
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-low, high + 1 - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config), -low


def _is_zero(tap) -> bool:
    return isinstance(tap, np.floating | float) and tap == 0


def _fir_axis(x: jax.Array, taps, axis: int, up: int, down: int, pads: tuple[int, int]) -> jax.Array:
    """Correlation with 1-D taps along one axis, with zero insertion and decimation."""
    if isinstance(taps, np.ndarray):
        return _fir_constant(x, tuple(float(t) for t in taps), axis, up, down, pads)
    return _fir_sum(x, taps, axis, up, down, pads)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _fir_constant(x: jax.Array, taps: tuple[float, ...], axis: int, up: int, down: int, pads) -> jax.Array:
    if taps == (1.0,) and up == down == 1 and pads == (0, 0):
        return x
    return _fir_sum(x, np.asarray(taps), axis, up, down, pads)


def _fir_fwd(x, taps, axis, up, down, pads):
    return _fir_constant(x, taps, axis, up, down, pads), x.shape[axis]


def _fir_bwd(taps, axis, up, down, pads, size, g):
    # The transpose of resampling by up/down is resampling by down/up with the reversed filter: a smaller program than
    # the transposes of all the slices.
    before = len(taps) - 1 - pads[0]
    after = (size - 1) * up + len(taps) - before - g.shape[axis] * down
    return (_fir_constant(g, taps[::-1], axis, down, up, (before, after)),)


_fir_constant.defvjp(_fir_fwd, _fir_bwd)


def _fir_sum(x: jax.Array, taps, axis: int, up: int, down: int, pads: tuple[int, int]) -> jax.Array:
    plan = _plan(x.shape[axis], taps.shape[0], up, down, pads)
    outputs, period, step, phases = plan
    count = -(-outputs // period)
    x, shift = _extend(x, axis, taps.shape[0], plan, up)
    results = []
    for first, offset in phases:
        total = None
        for m, k in enumerate(range(first, taps.shape[0], up)):
            if _is_zero(taps[k]):
                continue
            start = offset + m + shift
            part = lax.slice_in_dim(x, start, start + (count - 1) * step + 1, step, axis)
            part = part * jnp.asarray(taps[k], x.dtype)
            total = part if total is None else total + part
        shape = x.shape[:axis] + (count,) + x.shape[axis + 1 :]
        results.append(jnp.zeros(shape, x.dtype) if total is None else total)
    return lax.slice_in_dim(_interleave(results, axis), 0, outputs, axis=axis)


def _fir_full(x: jax.Array, taps, up, down, pads) -> jax.Array:
    """Correlation with 2-D taps; options are (vertical, horizontal)."""
    plans = [_plan(x.shape[1 + a], taps.shape[a], up[a], down[a], pads[a]) for a in range(2)]
    shifts = []
    for a in range(2):
        x, shift = _extend(x, 1 + a, taps.shape[a], plans[a], up[a])
        shifts.append(shift)
    n, c = x.shape[0], x.shape[3]
    count = [-(-outputs // period) for outputs, period, _, _ in plans]
    steps = [plan[2] for plan in plans]
    rows = []
    for first_y, offset_y in plans[0][3]:
        columns = []
        for first_x, offset_x in plans[1][3]:
            total = jnp.zeros((n, count[0], count[1], c), x.dtype)
            for my, ky in enumerate(range(first_y, taps.shape[0], up[0])):
                for mx, kx in enumerate(range(first_x, taps.shape[1], up[1])):
                    if _is_zero(taps[ky, kx]):
                        continue
                    start = (offset_y + my + shifts[0], offset_x + mx + shifts[1])
                    stop = [s + (q - 1) * t + 1 for s, q, t in zip(start, count, steps)]
                    part = lax.slice(x, (0, *start, 0), (n, *stop, c), (1, *steps, 1))
                    total = total + part * jnp.asarray(taps[ky, kx], x.dtype)
            columns.append(total)
        rows.append(_interleave(columns, 2))
    return _interleave(rows, 1)[:, : plans[0][0], : plans[1][0]]


def _interleave(parts: list[jax.Array], axis: int) -> jax.Array:
    """a0 b0 a1 b1 ... along ``axis``."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return jnp.stack(parts, axis=axis + 1).reshape(shape)
