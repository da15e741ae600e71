"""Mouth and eye loss on ROI-aligned crops (OTAvatar paper section 3.4, equation 13).

Landmarks are the usual 68 points, (x, y) in pixels of the image that is cropped, y downwards.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.ops.roi_align import apply_roi, roi_matrices

# Range of landmarks, padding in pixels of a 512 image, side of the aligned crop (None: used for masks only).
REGIONS = {
    'mouth': (slice(48, 68), 10, 120),
    'left_eye': (slice(36, 42), 20, 80),
    'right_eye': (slice(42, 48), 20, 80),
    'nose': (slice(27, 36), 10, None),
}


def region_boxes(landmarks: jax.Array, size: int) -> dict[str, jax.Array]:
    """Boxes [B,4] ``(x1, y1, x2, y2)`` of mouth, eyes and nose, not limited to the image.

    The extremes of the landmarks [B,68,2] are cut to whole pixels (towards zero), then padded by ``int(p * size /
    512)`` with p = 20 for the eyes and 10 otherwise.
    """
    boxes = {}
    for name, (points, padding, _) in REGIONS.items():
        p = int(padding / 512 * size)
        low = jnp.trunc(landmarks[:, points].min(1)) - p
        high = jnp.trunc(landmarks[:, points].max(1)) + p
        boxes[name] = jnp.concatenate([low, high], -1)
    return boxes


def region_mask(boxes: dict[str, jax.Array], size: int, outside: float = 1.0) -> jax.Array:
    """[B,size,size,1]: 1 inside any box (upper limits excluded), ``outside`` elsewhere."""
    pixel = jnp.arange(size)
    inside = False
    for box in boxes.values():
        columns = (pixel >= box[:, :1]) & (pixel < box[:, 2:3])  # [B,size]
        rows = (pixel >= box[:, 1:2]) & (pixel < box[:, 3:4])
        inside = inside | (rows[:, :, None] & columns[:, None, :])
    return jnp.where(inside, 1.0, outside)[..., None]


@struct.dataclass
class LocalTarget:
    """Crops of the target by region [B,S,S,3] and the matrices that cut them out."""

    crops: dict[str, jax.Array]
    rows: dict[str, jax.Array]
    columns: dict[str, jax.Array]


def local_target(
    target: jax.Array, landmarks: jax.Array, eyes: bool = True, sizes: dict[str, int] | None = None
) -> LocalTarget:
    """Prepares the regions of targets [B,H,H,3]: the mouth, and with ``eyes`` both eyes.

    ``sizes`` replaces the sides of the aligned crops, by region.
    """
    sizes = {name: side for name, (_, _, side) in REGIONS.items()} | (sizes or {})
    if target.shape[1] != target.shape[2]:
        raise ValueError(f'local loss: images must be square, got {target.shape[1:3]}')
    if landmarks.shape != (target.shape[0], 68, 2):
        raise ValueError(f'local loss: landmarks {landmarks.shape}; expected {(target.shape[0], 68, 2)}')
    boxes = region_boxes(landmarks, target.shape[1])
    crops, rows, columns = {}, {}, {}
    for name in ('mouth', 'left_eye', 'right_eye') if eyes else ('mouth',):
        rows[name], columns[name] = roi_matrices(boxes[name], sizes[name], target.shape[1:3])
        crops[name] = apply_roi(target, rows[name], columns[name])
    return jax.lax.stop_gradient(LocalTarget(crops, rows, columns))


def local_terms(prediction: jax.Array, target: LocalTarget) -> dict[str, jax.Array]:
    """Mean |crop difference| of each prepared region."""
    return {
        name: jnp.mean(jnp.abs(apply_roi(prediction, target.rows[name], target.columns[name]) - crop))
        for name, crop in target.crops.items()
    }


def local_loss(prediction: jax.Array, target: LocalTarget) -> jax.Array:
    """Sum of `local_terms`. Without eyes it equals the released program, whose eye terms are always zero."""
    return sum(local_terms(prediction, target).values())
