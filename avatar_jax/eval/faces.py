"""Face metrics from quantities that were already measured: coefficients, landmarks, embeddings, meshes.

Each takes a sequence of T generated frames first and what they should match second, and gives one number per frame
[T] unless it says otherwise; average over frames first, then over clips. Values of different estimators (of
coefficients, landmarks, identities) cannot be compared.
"""

from __future__ import annotations

import jax.numpy as jnp

from avatar_jax.faces.base import EYE_IMAGE_LEFT, EYE_IMAGE_RIGHT
from avatar_jax.ops.arrays import Array, namespace
from avatar_jax.ops.coefficients import SLICES

REDUCTIONS = ('mean', 'sum', 'l2')
POSE_PARTS = {'angle': ('angle',), 'angle+trans': ('angle', 'trans')}


def _reduce(difference: Array, reduce: str) -> Array:
    xp = namespace(difference)
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce='{reduce}': choose one of {', '.join(REDUCTIONS)}")
    if reduce == 'l2':
        return xp.sqrt((difference**2).sum(-1))
    size = xp.abs(difference)
    return size.mean(-1) if reduce == 'mean' else size.sum(-1)


def expression_distance(prediction: Array, target: Array, reduce: str = 'mean') -> Array:
    """AED between coefficient vectors [T, >=257].

    ``reduce``: 'mean' over the 64 numbers (PIRenderer, NOFA), 'sum', or 'l2' (the size of OTAvatar's figures).
    """
    part = SLICES['exp']
    return _reduce(prediction[..., part] - target[..., part], reduce)


def pose_distance(prediction: Array, target: Array, reduce: str = 'mean', parts: str = 'angle') -> Array:
    """APD between coefficient vectors [T, >=257].

    ``parts``: 'angle' (3 Euler angles, radians; PIRenderer, NOFA) or 'angle+trans' (OTAvatar).
    """
    if parts not in POSE_PARTS:
        raise ValueError(f"parts='{parts}': choose one of {', '.join(POSE_PARTS)}")
    xp = namespace(prediction, target)
    pieces = [prediction[..., SLICES[p]] - target[..., SLICES[p]] for p in POSE_PARTS[parts]]
    return _reduce(xp.concatenate(pieces, -1), reduce)


def keypoint_distance(prediction: Array, target: Array, norm: str = 'l1') -> Array:
    """AKD in pixels between landmarks [T, 68, 2].

    ``norm``: 'l1' mean |difference| over points and both axes (first-order-motion protocol, OTAvatar); 'l2' mean
    Euclidean distance.
    """
    xp = namespace(prediction, target)
    if norm == 'l1':
        return xp.abs(prediction - target).mean((-1, -2))
    if norm == 'l2':
        return xp.sqrt(((prediction - target) ** 2).sum(-1)).mean(-1)
    raise ValueError(f"norm='{norm}': choose 'l1' or 'l2'")


def identity_similarity(prediction: Array, target: Array, eps: float = 1e-12) -> Array:
    """CSIM: cosine of face embeddings [T, D] (targets may be [1, D] or [D])."""
    xp = namespace(prediction, target)
    product = (prediction * target).sum(-1)
    return product / xp.sqrt(((prediction**2).sum(-1) + eps) * ((target**2).sum(-1) + eps))


def pose_rmse(prediction: Array, target: Array) -> Array:
    """PRMSE: root mean square over (pitch, roll, yaw) [T, 3] in degrees.

    NaN rows (no face found) give NaN: drop those frames with ``nanmean``.
    """
    return namespace(prediction, target).sqrt(((prediction - target) ** 2).mean(-1))


def action_unit_agreement(prediction: Array, target: Array, threshold: float = 0.5) -> Array:
    """AUCON: share of action units [T, U] that are present (above ``threshold``) in both or absent in both."""
    return ((prediction > threshold) == (target > threshold)).mean(-1)


def vertex_distance(prediction: Array, target: Array) -> Array:
    """AVD: mean Euclidean distance of corresponding vertices [T, V, 3] (neutral, unposed faces; decimetres)."""
    return namespace(prediction, target).sqrt(((prediction - target) ** 2).sum(-1)).mean(-1)


# --- openings, measured from landmarks -------------------------------------------------------------------------------


def _distance(a: Array, b: Array) -> Array:
    return namespace(a, b).sqrt(((a - b) ** 2).sum(-1))


def mouth_opening(landmarks: Array) -> Array:
    """Gap between the inner lips over the mouth's width, [..., 68, 2 or 3] -> [...]; 0 closed, about 1 wide open."""
    upper, lower = landmarks[..., 61:64, :], landmarks[..., 67:64:-1, :]
    return _distance(upper, lower).mean(-1) / _distance(landmarks[..., 48, :], landmarks[..., 54, :])


def eye_openness(landmarks: Array) -> Array:
    """Gap between the lids over the eye's width, [..., 68, 2 or 3] -> [..., 2] (image left, image right)."""
    values = []
    for part in (EYE_IMAGE_LEFT, EYE_IMAGE_RIGHT):
        p = landmarks[..., part, :]
        gap = _distance(p[..., 1, :], p[..., 5, :]) + _distance(p[..., 2, :], p[..., 4, :])
        values.append(gap / (2 * _distance(p[..., 0, :], p[..., 3, :])))
    return namespace(landmarks).stack(values, -1)


# --- openings, measured from pixels --------------------------------------------------------------------------------


def response(images: Array, closed: Array, opened: Array, mask: Array) -> Array:
    """How far pictures lie on the way from a closed to an open state of the same head: 0 closed, 1 open.

    The least-squares coefficient of ``images - closed`` along ``opened - closed`` inside ``mask``. It needs no
    landmark detector: the two reference pictures show the same person from the same camera, and everything that they
    share cancels.

    Args:
        images, closed, opened: [T, H, W, 3].
        mask: [T, H, W] weights of the region (mouth or eyes).

    Returns:
        [T]; NaN where the references do not differ.
    """
    direction = (opened - closed) * mask[..., None]
    size = (direction * (opened - closed)).sum((-1, -2, -3))
    xp = namespace(images, closed, opened, mask)
    along = (direction * (images - closed)).sum((-1, -2, -3))
    return xp.where(size > 0, along / xp.where(size > 0, size, 1.0), xp.nan)


def region_boxes(landmarks: Array, size: int, padding: float = 10 / 128) -> dict[str, Array]:
    """Pixel masks around mouth and eyes.

    Args:
        landmarks: [T, 68, 2] pixels (x, y), y down, the first pixel's centre at 0.5.
        size: height and width of the pictures.
        padding: added on every side, as a fraction of ``size`` (half of it vertically around the eyes' landmarks).

    Returns:
        'mouth', 'eyes' and their union 'mouth_eyes', each [T, size, size] with 0 or 1.
    """
    xp = namespace(landmarks)
    axis = xp.arange(size) + 0.5

    def box(part, pad_x, pad_y):
        low, high = landmarks[:, part].min(-2), landmarks[:, part].max(-2)
        inside_x = (axis >= low[:, :1] - pad_x) & (axis <= high[:, :1] + pad_x)
        inside_y = (axis >= low[:, 1:] - pad_y) & (axis <= high[:, 1:] + pad_y)
        return inside_y[:, :, None] & inside_x[:, None, :]

    pad = padding * size
    mouth = box(slice(48, 68), pad, pad)
    eyes = box(EYE_IMAGE_LEFT, pad / 2, pad / 2) | box(EYE_IMAGE_RIGHT, pad / 2, pad / 2)
    return {k: v.astype(jnp.float32) for k, v in {'mouth': mouth, 'eyes': eyes, 'mouth_eyes': mouth | eyes}.items()}
