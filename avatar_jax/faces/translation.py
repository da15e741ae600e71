"""Head translation as NOFA models it: cameras follow where the head goes in the uncropped driving video.

A tracker's translation is relative to the aligned crop, so a head that moves through the picture seems to stand still.
The offset of the landmarks' mean in the raw frames, divided by the side of the fixed crop window, is the offset that
the picture of the head's pivot is to make; the camera is moved sideways by as much, its rotation stays. Corrections
come after the camera has been brought to its usual distance (``camera_labels.normalise_pose``), which discards
translations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avatar_jax.faces.camera_labels import FOCAL, PIVOT, make_label, pose_matrix, split_label
from avatar_jax.ops.arrays import Array, namespace

if TYPE_CHECKING:
    from jaxtyping import Float


def pixel_offset(
    driving: Float[Array, '*batch points 2'], source: Float[Array, 'points 2'], side: Array | float
) -> Float[Array, '*batch 2']:
    """Offset (x, y) of the head in units of the crop window.

    Args:
        driving: [..., N, 2] landmarks of raw frames, pixels.
        source: [N, 2] landmarks of the frame whose place counts as zero (the first driving frame, when another person
            is driven).
        side: of the crop window in raw pixels.

    Returns:
        [..., 2].
    """
    return (driving.mean(-2) - source.mean(-2)) / side


def pivot_depth(pose: Float[Array, '*batch 4 4'], pivot: tuple = PIVOT) -> Float[Array, '*batch']:
    """Depth of the pivot along the optical axis, [..., 4, 4] camera-to-world -> [...]."""
    xp = namespace(pose)
    offset = xp.asarray(pivot, dtype=pose.dtype) - pose[..., :3, 3]
    return (pose[..., :3, 2] * offset).sum(-1)


def translate_pose(
    pose: Float[Array, '*batch 4 4'],
    offset: Float[Array, '*batch 2'],
    focal: Array | float = FOCAL,
    zoom: Array | None = None,
    pivot: tuple = PIVOT,
) -> Float[Array, '*batch 4 4']:
    """Moves cameras so that the pivot's picture moves by ``offset``.

    Args:
        pose: [..., 4, 4] camera-to-world (OpenCV axes).
        offset: [..., 2] in picture sides, y down (``pixel_offset``).
        focal: in picture sides.
        zoom: [...] size of the driving head over that of the source; None leaves the distance alone.

    Returns:
        [..., 4, 4]; rotations are unchanged.
    """
    xp = namespace(pose, offset)
    depth = pivot_depth(pose, pivot)
    sideways = depth[..., None] * offset / xp.asarray(focal)[..., None]
    forward = xp.zeros_like(depth) if zoom is None else depth / zoom - depth
    # In camera axes; a nearer camera (zoom > 1) moves forwards, and its sideways shift shrinks with the depth.
    if zoom is not None:
        sideways = sideways / xp.asarray(zoom)[..., None]
    shift = xp.concatenate([sideways, forward[..., None]], -1).astype(pose.dtype)
    position = pose[..., :3, 3] - (pose[..., :3, :3] @ shift[..., None])[..., 0]
    return pose_matrix(pose[..., :3, :3], position)


def translate_label(
    label: Float[Array, '*batch 25'], offset: Float[Array, '*batch 2'], zoom: Array | None = None
) -> Float[Array, '*batch 25']:
    """``translate_pose`` for labels [..., 25], with each label's own focal length."""
    pose, camera = split_label(label)
    return make_label(translate_pose(pose, offset, camera[..., 0, 0], zoom), camera)


def pivot_place(
    label: Float[Array, '*batch 25'], pivot: tuple = PIVOT
) -> tuple[Float[Array, '*batch 2'], Float[Array, '*batch']]:
    """Where labels [..., 25] show the pivot: [..., 2] in picture sides (y down), and its depth [...]."""
    pose, camera = split_label(label)
    xp = namespace(pose)
    offset = xp.asarray(pivot, dtype=pose.dtype) - pose[..., :3, 3]
    seen = (xp.swapaxes(pose[..., :3, :3], -1, -2) @ offset[..., None])[..., 0]
    place = (camera @ seen[..., None])[..., 0]
    return place[..., :2] / place[..., 2:], seen[..., 2]


def head_sizes(points: Float[Array, '*batch points 2']) -> Float[Array, '*batch']:
    """Mean distance of landmarks [..., N, 2] from their mean: the size whose ratio is the zoom."""
    xp = namespace(points)
    return xp.sqrt(((points - points.mean(-2, keepdims=True)) ** 2).sum(-1)).mean(-1)
