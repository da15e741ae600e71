"""ROI-Align (He et al. 2017) as two matrix products per box: ``crop = A_y . image . A_x^T``.

The bilinear weight of a sample at ``s`` on pixel ``i`` is the hat ``max(0, 1 - |s - i|)``, and a sample outside the
image is dropped on either axis independently, so the operation separates into one matrix per axis. The matrices depend
on the box alone; the image and its gradient only ever see dense matrix products, which are fast on every backend and
inside ``lax.scan``.

Letters: B images, K boxes per image, H W size of the image, O output size, G samples per bin and axis.
Boxes are ``(x1, y1, x2, y2)`` in pixels of the image and may leave it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def samples_needed(extent: Array, out: int) -> int:
    """Samples per bin that the adaptive rule ``ceil(extent / out)`` asks for, at most over concrete ``extent``."""
    return max(1, math.ceil(float(np.max(np.asarray(extent))) / out)) if np.size(extent) else 1


def _is_traced(*arrays: Any) -> bool:
    return any(isinstance(a, jax.core.Tracer) for a in arrays)


def roi_matrix(
    low: Array,
    high: Array,
    out: int,
    size: int,
    *,
    sampling_ratio: int = -1,
    aligned: bool = False,
    max_samples: int | None = None,
) -> Array:
    """Sampling matrices of one axis.

    Args:
        low, high: [...] box limits in pixels.
        out: number of bins O.
        size: length of the image axis.
        sampling_ratio: samples per bin; -1 is the adaptive ``ceil((high - low) / out)``.
        aligned: shift by half a pixel and allow boxes thinner than one pixel (the corrected convention). The released
            OTAvatar uses False.
        max_samples: upper bound of the adaptive number, needed only when the boxes are traced; by default enough for
            boxes four times as long as the image. Longer ones are sampled ``max_samples`` times per bin.

    Returns:
        [..., O, size] float32; rows sum to 1 minus the share of samples that fall outside ``[-1, size]``.
    """
    if out < 1 or size < 1:
        raise ValueError(f'roi_matrix: out and size must be positive, got {out} and {size}')
    if sampling_ratio == 0 or sampling_ratio < -1:
        raise ValueError(f'roi_matrix: sampling_ratio must be -1 (adaptive) or positive, got {sampling_ratio}')
    traced = _is_traced(low, high)
    # Concrete boxes are worked out on the host in float64 and with the exact number of samples.
    xnp, dtype = (jnp, jnp.float32) if traced else (np, np.float64)
    low, high = xnp.asarray(low, dtype), xnp.asarray(high, dtype)
    if aligned:
        low, high = low - 0.5, high - 0.5
    extent = high - low if aligned else xnp.maximum(high - low, 1.0)

    if sampling_ratio > 0:
        grid, count = sampling_ratio, xnp.full(extent.shape, sampling_ratio, dtype)
    else:
        if traced:
            grid = max_samples if max_samples is not None else max(2, math.ceil(4 * size / out))
        else:
            grid = samples_needed(extent, out)
        count = xnp.clip(xnp.ceil(extent / out), 0, grid)  # 0: an empty box of the aligned kind, all zeros

    bin_size = extent / out
    step = xnp.arange(grid, dtype=dtype)  # [G]
    divisor = xnp.maximum(count, 1.0)
    offset = (step + 0.5) * (bin_size / divisor)[..., None]  # [..., G] within a bin
    bins = xnp.arange(out, dtype=dtype) * bin_size[..., None]  # [..., O]
    position = low[..., None, None] + bins[..., :, None] + offset[..., None, :]  # [..., O, G]
    valid = (position >= -1) & (position <= size) & (step < count[..., None])[..., None, :]
    position = xnp.clip(position, 0, size - 1)
    matrix = 0.0
    pixel = xnp.arange(size, dtype=dtype)
    for g in range(grid):  # a loop keeps the largest array at [..., O, size]
        hat = xnp.maximum(0.0, 1.0 - xnp.abs(position[..., g, None] - pixel))
        matrix = matrix + hat * valid[..., g, None]
    return (matrix / divisor[..., None, None]).astype(xnp.float32)


def roi_matrices(boxes: Array, output_size: int | tuple[int, int], image_size: tuple[int, int], **options):
    """Both matrices of boxes [..., 4]: ``(A_y [..., O_y, H], A_x [..., O_x, W])``. Options as `roi_matrix`."""
    out_h, out_w = (output_size, output_size) if isinstance(output_size, int) else output_size
    height, width = image_size
    a_y = roi_matrix(boxes[..., 1], boxes[..., 3], out_h, height, **options)
    a_x = roi_matrix(boxes[..., 0], boxes[..., 2], out_w, width, **options)
    return a_y, a_x


def apply_roi(images: jax.Array, a_y: Array, a_x: Array) -> jax.Array:
    """Crops [B,O_y,O_x,C] of images [B,H,W,C] through matrices [B,O_y,H] and [B,O_x,W]."""
    rows = jnp.einsum('boh,bhwc->bowc', a_y, images)
    return jnp.einsum('bpw,bowc->bopc', a_x, rows)


def roi_align(images: jax.Array, boxes: Array, output_size: int | tuple[int, int], **options) -> jax.Array:
    """One crop per image: images [B,H,W,C], boxes [B,4] -> [B,O,O,C]. Options as `roi_matrix`.

    No gradient flows to the boxes.
    """
    if boxes.shape != (images.shape[0], 4):
        raise ValueError(f'roi_align: boxes {boxes.shape} do not match images {images.shape}: expected [B,4]')
    boxes = jax.lax.stop_gradient(boxes) if _is_traced(boxes) else boxes
    return apply_roi(images, *roi_matrices(boxes, output_size, images.shape[1:3], **options))


def roi_align_indexed(images: jax.Array, boxes: Array, output_size: int | tuple[int, int], **options) -> jax.Array:
    """Several crops per image: boxes [K,5] rows ``(image index, x1, y1, x2, y2)`` -> [K,O,O,C]."""
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise ValueError(f'roi_align_indexed: boxes must be [K,5], got {boxes.shape}')
    if not _is_traced(boxes):
        index = np.asarray(boxes[:, 0])
        if index.size and (index.min() < 0 or index.max() >= images.shape[0] or (index != np.floor(index)).any()):
            raise ValueError(f'roi_align_indexed: image index outside 0..{images.shape[0] - 1}')
    chosen = images[jnp.asarray(boxes[:, 0]).astype(jnp.int32)]
    return roi_align(chosen, boxes[:, 1:], output_size, **options)
