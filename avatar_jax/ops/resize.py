"""Changing the size of images: interpolation, averaging, and the filter modes of the EG3D discriminator.

Every one is linear and separable, so it is one small constant matrix per axis. The matrices follow the conventions
of the image-processing libraries that the published networks were trained with.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from avatar_jax.ops.resample import Filter, downsample2d, upsample2d

if TYPE_CHECKING:
    from jaxtyping import Float

INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest', 'area')


def resize(
    x: Float[jax.Array, '*batch h w c'],
    size: int | Sequence[int],
    interpolation: str = 'bilinear',
    antialias: bool = False,
    align_corners: bool = False,
) -> Float[jax.Array, '*batch h_out w_out c']:
    """Resizes images.

    Args:
        x: [..., H, W, C].
        size: new height and width, or one number for both.
        interpolation: 'bilinear'; 'bicubic' (a = -0.75, with antialias a = -0.5); 'nearest' (index floor(i * in /
            out)); 'area' (mean over [floor(i*in/out), ceil((i+1)*in/out)), also known as adaptive average pooling).
        antialias: widen the kernel by the reduction factor (bilinear and bicubic); no effect when enlarging bilinearly.
        align_corners: map the centres of the corner pixels onto each other (without antialias only).

    Returns:
        [..., h, w, C] in the dtype of ``x`` (computed in float32).
    """
    height, width = (size, size) if isinstance(size, int) else (int(s) for s in size)
    dtype = x.dtype
    if (height, width) == x.shape[-3:-1]:
        return x
    if interpolation == 'nearest':
        if antialias or align_corners:
            raise ValueError('nearest takes neither antialias nor align_corners')
        rows = np.arange(height) * x.shape[-3] // height
        columns = np.arange(width) * x.shape[-2] // width
        return jnp.take(jnp.take(x, rows, axis=-3, mode='clip'), columns, axis=-2, mode='clip')
    dot = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    y = x.astype(jnp.float32) if jnp.finfo(dtype).bits < 32 else x
    if height != x.shape[-3]:
        y = dot('oh,...hwc->...owc', axis_matrix(x.shape[-3], height, interpolation, antialias, align_corners), y)
    if width != x.shape[-2]:
        y = dot('ow,...hwc->...hoc', axis_matrix(x.shape[-2], width, interpolation, antialias, align_corners), y)
    return y.astype(dtype)


@jax.custom_vjp
def double(x: Float[jax.Array, '*batch h w c']) -> Float[jax.Array, '*batch 2*h 2*w c']:
    """``resize`` of [..., H, W, C] to twice its size, bilinear: weighted sums of neighbours instead of matrix
    products.
    """
    for axis in (-3, -2):
        size = x.shape[axis]
        before = jnp.concatenate(
            [lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis
        )
        after = jnp.concatenate(
            [lax.slice_in_dim(x, 1, size, axis=axis), lax.slice_in_dim(x, size - 1, size, axis=axis)], axis
        )
        pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis)
        # The stack's new axis is behind the old one: interleave.
        shape = list(x.shape)
        shape[axis] = 2 * size
        x = pair.reshape(shape)
    return x


def _double_transposed(g: jax.Array) -> jax.Array:
    # JAX's own transpose is a nest of paddings, which XLA's CPU back end evaluates again for every use.
    for axis in (-2, -3):
        size = g.shape[axis] // 2
        even = lax.slice_in_dim(g, 0, 2 * size, 2, axis=axis)
        odd = lax.slice_in_dim(g, 1, 2 * size, 2, axis=axis)
        first, last = lax.slice_in_dim(even, 0, 1, axis=axis), lax.slice_in_dim(odd, size - 1, size, axis=axis)
        from_odd = jnp.concatenate([first, lax.slice_in_dim(odd, 0, size - 1, axis=axis)], axis)
        from_even = jnp.concatenate([lax.slice_in_dim(even, 1, size, axis=axis), last], axis)
        g = 0.75 * (even + odd) + 0.25 * (from_odd + from_even)
    return g


double.defvjp(lambda x: (double(x), None), lambda _, g: (_double_transposed(g),))


@functools.lru_cache(maxsize=256)
def axis_matrix(
    size: int, new_size: int, interpolation: str, antialias: bool = False, align_corners: bool = False
) -> np.ndarray:
    """The float32 matrix [new_size, size] of one axis for 'bilinear', 'bicubic' or 'area'; its rows sum to one."""
    if interpolation not in INTERPOLATIONS or interpolation == 'nearest':
        raise ValueError(f'interpolation {interpolation!r} is unknown; use one of {", ".join(INTERPOLATIONS)}')
    if antialias and align_corners:
        raise ValueError('antialias and align_corners exclude each other')
    out = np.zeros((new_size, size))
    if interpolation == 'area':
        if antialias or align_corners:
            raise ValueError('area takes neither antialias nor align_corners')
        for i in range(new_size):
            first, last = i * size // new_size, -((-(i + 1) * size) // new_size)
            out[i, first:last] = 1 / (last - first)
        return _frozen(out)
    kernel, radius = (_triangle, 1) if interpolation == 'bilinear' else (_cubic(-0.5 if antialias else -0.75), 2)
    if antialias:
        # The kernel is truncated at the border and its weights are normalised to sum to one.
        scale = size / new_size
        stretch = max(scale, 1.0)
        centres = (np.arange(new_size) + 0.5) * scale
        out = kernel((np.arange(size)[None] + 0.5 - centres[:, None]) / stretch)
        return _frozen(out / out.sum(axis=1, keepdims=True))
    if align_corners:
        position = np.arange(new_size) * ((size - 1) / (new_size - 1) if new_size > 1 else 0.0)
    else:
        position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
        if interpolation == 'bilinear':
            position = np.maximum(position, 0.0)
    base = np.floor(position).astype(int)
    for k in range(1 - radius, radius + 1):
        index = np.clip(base + k, 0, size - 1)  # the border pixel continues outside
        np.add.at(out, (np.arange(new_size), index), kernel(position - (base + k)))
    return _frozen(out)


FILTER_MODES = ('antialiased', 'none', 'classic')


def filtered_resizing(
    x: Float[jax.Array, 'n h w c'], size: int, f: Filter = None, filter_mode: str | float = 'antialiased'
) -> Float[jax.Array, 'n size size c']:
    """Resizes the raw image for the discriminator (square output).

    Args:
        x: [N, H, W, C].
        size: new height and width.
        f: FIR filter for 'classic', from ``ops.resample.setup_filter``.
        filter_mode: 'antialiased', 'none' (plain bilinear), 'classic' (FIR up-sampling, bilinear, FIR down-sampling),
            or a number t in (0, 1): (1 - t) * 'none' + t * 'antialiased'.

    Returns:
        [N, size, size, C].
    """
    if filter_mode == 'antialiased':
        return resize(x, size, antialias=True)
    if filter_mode == 'none':
        return resize(x, size)
    if filter_mode == 'classic':
        if f is None:
            raise ValueError("filter_mode='classic' needs a filter")
        y = resize(upsample2d(x, f, up=2), 2 * size + 2)
        return downsample2d(y, f, down=2, padding=-1, flip_filter=True)
    if isinstance(filter_mode, float) and 0 < filter_mode < 1:
        return (1 - filter_mode) * resize(x, size) + filter_mode * resize(x, size, antialias=True)
    raise ValueError(f"filter_mode {filter_mode!r}: use 'antialiased', 'none', 'classic' or a number between 0 and 1")


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)  # shared through the cache
    return matrix


def _triangle(t: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(t), 0)


def _cubic(a: float):
    def kernel(t: np.ndarray) -> np.ndarray:
        t = np.abs(t)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((t - 5) * t + 8) * a * t - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0))

    return kernel


def halve(image: jax.Array) -> jax.Array:
    """Half the size by 2x2 means (bilinear x0.5 without antialiasing); a last odd row or column is dropped."""
    height, width = image.shape[1] // 2 * 2, image.shape[2] // 2 * 2
    rows = image[:, 0:height:2, :width] + image[:, 1:height:2, :width]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * 0.25


def match_size(target: Float[jax.Array, 'n h w c'], size: int) -> Float[jax.Array, 'n h_out w_out c']:
    """The target [B,H,W,C] averaged over areas to ``size`` x ``size`` (512 to 64: means of 8x8 pixels)."""
    return resize(target, size, 'area')
