"""Camera labels: from tracked head pose to the 25 numbers that EG3D-style generators read.

A label is a camera-to-world matrix (16 numbers, row-major; OpenCV axes: x right, y down, z forward) followed by
intrinsics normalised by the image size (9 numbers, row-major). The world is the head frame scaled into the EG3D
volume: y up, z out of the face, x towards image right.

numpy in, numpy out; JAX in, JAX out (differentiable).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from avatar_jax.faces.pose import CAMERA_DISTANCE, EG3D_OFFSET, EG3D_SCALE, euler_angles, rotation_matrix, world_to_head
from avatar_jax.ops.arrays import Array, namespace

if TYPE_CHECKING:
    from jaxtyping import Float

LABEL_SIZE = 25
FOCAL_1024 = 2985.29  # pixels in the 1024 frame, about 1015 * 1024/224 * 300/466.285
CROP = 700  # centre crop of the 1024 frame
FOCAL = 4.2647  # FOCAL_1024 / CROP, as written into released labels
RADIUS = 2.7
COR_CENTER = (0.0, 0.0, 0.175)
PIVOT = (0.0, 0.0, 0.2)
MODES = ('raw', 'orig', 'cor', 'simplify', 'hdtf')
# OTAvatar's own variant of the label constants.
OTAVATAR_OFFSET = (0.0, 0.015, 0.161)
OTAVATAR_POSITION_SCALE = RADIUS / 4
OTAVATAR_FOCAL = 1050.0
_OPENCV = np.array([1.0, -1.0, -1.0])  # head axes to OpenCV camera axes, applied to matrix columns
_MIRROR = np.array([[1, -1, -1, -1], [-1, 1, 1, 1], [-1, 1, 1, 1], [1, 1, 1, 1]], np.float32)


# --- putting matrices and labels together -------------------------------------------------------------------------


def pose_matrix(rotation: Float[Array, '*batch 3 3'], position: Float[Array, '*batch 3']) -> Float[Array, '*batch 4 4']:
    """[..., 3, 3] and [..., 3] -> camera-to-world [..., 4, 4]."""
    xp = namespace(rotation, position)
    top = xp.concatenate([rotation, position[..., None]], axis=-1)
    bottom = xp.broadcast_to(xp.asarray([0, 0, 0, 1], dtype=top.dtype), (*top.shape[:-2], 1, 4))
    return xp.concatenate([top, bottom], axis=-2)


def intrinsics(focal: Float[Array, '*batch'] | float = FOCAL, center: float = 0.5) -> Float[Array, '*batch 3 3']:
    """Normalised intrinsics [..., 3, 3] of one focal length (in image sizes)."""
    xp = namespace(focal)
    focal = xp.asarray(focal)
    one = xp.ones_like(focal)
    zero, center = xp.zeros_like(focal), center * one
    rows = [[focal, zero, center], [zero, focal, center], [zero, zero, one]]
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def intrinsics_from_fov(degrees: float) -> Float[np.ndarray, '3 3']:
    """Normalised intrinsics [3, 3] from a field of view, with the constants of the released scripts."""
    return intrinsics(np.float64(1 / (math.tan(degrees * 3.14159 / 360) * 1.414)))


def make_label(
    pose: Float[Array, '*batch 4 4'], camera: Float[Array, '*camera 3 3'] | None = None
) -> Float[Array, '*batch 25']:
    """Camera-to-world [..., 4, 4] and intrinsics [..., 3, 3] (default FFHQ) -> label [..., 25] float32."""
    xp = namespace(pose, camera)
    camera = xp.asarray(intrinsics(np.float64(FOCAL)) if camera is None else camera)
    camera = xp.broadcast_to(camera, (*pose.shape[:-2], 3, 3))
    flat = [pose.reshape(*pose.shape[:-2], 16), camera.reshape(*camera.shape[:-2], 9)]
    return xp.concatenate(flat, axis=-1).astype(np.float32)


def split_label(label: Float[Array, '*batch 25']) -> tuple[Float[Array, '*batch 4 4'], Float[Array, '*batch 3 3']]:
    """Label [..., 25] -> camera-to-world [..., 4, 4], intrinsics [..., 3, 3]."""
    if label.shape[-1] != LABEL_SIZE:
        raise ValueError(f'a camera label has 25 numbers, got shape {tuple(label.shape)}')
    return label[..., :16].reshape(*label.shape[:-1], 4, 4), label[..., 16:].reshape(*label.shape[:-1], 3, 3)


def mirror_pose(pose: Float[Array, '*batch 4 4']) -> Float[Array, '*batch 4 4']:
    """Pose [..., 4, 4] of the horizontally mirrored picture."""
    return pose * _MIRROR.astype(pose.dtype)


def mirror_label(label: Float[Array, '*batch 25']) -> Float[Array, '*batch 25']:
    """Label [..., 25] of the horizontally mirrored picture; intrinsics are unchanged."""
    pose, camera = split_label(label)
    return make_label(mirror_pose(pose), camera)


# --- from the coefficient regressor's pose (FFHQ labels) -------------------------------------------------------------


def raw_pose(
    angle: Float[Array, '*batch 3'],
    trans: Float[Array, '*batch 3'],
    scale: float = EG3D_SCALE,
    offset: tuple = EG3D_OFFSET,
) -> Float[Array, '*batch 4 4']:
    """Deep3DFaceRecon angle [..., 3] (radians) and translation [..., 3] (dm) -> camera-to-world [..., 4, 4].

    Not normalised: the camera keeps its distance. At zero angle and translation it sits at (0, 0.006, 2.861) and
    looks along -z. ``scale`` and ``offset`` place the head in the world: ``scale * decimetres + offset``.
    """
    xp = namespace(angle, trans)
    rotation = rotation_matrix(angle)
    shifted = trans - xp.asarray([0, 0, CAMERA_DISTANCE], dtype=trans.dtype)
    center = -(rotation @ shifted[..., None])[..., 0]
    return pose_matrix(
        rotation * _OPENCV.astype(rotation.dtype), scale * center + xp.asarray(offset, dtype=center.dtype)
    )


def normalise_pose(
    pose: Float[Array, '*batch 4 4'], mode: str = 'orig', radius: float = RADIUS, center: tuple = COR_CENTER
) -> Float[Array, '*batch 4 4']:
    """Puts the camera at the distance that a generator was trained with.

    Args:
        pose: [..., 4, 4] from ``raw_pose``.
        mode: 'orig' distance 2.7 from the origin (released FFHQ models), 'cor' distance 2.7 from (0, 0, 0.175),
            'simplify' the position of 'cor' looking at that point without roll, 'raw' unchanged (HFA-GP), 'hdtf' as
            'orig': the nearest to OTAvatar's own labels, which are made of another tracker's numbers
            (``labels_from_conditions``) and have distances of 2.7 to 2.9.
        radius, center: the distance, and the point that 'cor' and 'simplify' measure it from.
    """
    xp = namespace(pose)
    if mode not in MODES:
        raise ValueError(f"mode='{mode}': choose one of {', '.join(MODES)}")
    if mode == 'raw':
        return pose
    position = pose[..., :3, 3]
    center = xp.zeros(3, pose.dtype) if mode in ('orig', 'hdtf') else xp.asarray(center, dtype=pose.dtype)
    offset = position - center
    position = center + offset * (radius / xp.sqrt((offset**2).sum(-1, keepdims=True)))
    rotation = _facing(center - position) if mode == 'simplify' else pose[..., :3, :3]
    return pose_matrix(rotation, position)


def label_from_pose(
    angle: Float[Array, '*batch 3'], trans: Float[Array, '*batch 3'], mode: str = 'orig'
) -> Float[Array, '*batch 25']:
    """Regressor pose -> label [..., 25] with FFHQ intrinsics; see ``normalise_pose`` for ``mode``."""
    return make_label(normalise_pose(raw_pose(angle, trans), mode))


def pose_from_label(label: Float[Array, '*batch 25']) -> tuple[Float[Array, '*batch 3'], Float[Array, '*batch 3']]:
    """Inverse of ``label_from_pose(mode='raw')``: label [..., 25] -> (angle [..., 3] rad, trans [..., 3] dm).

    Of a normalised label it gives the translation that the normalised camera stands for.
    """
    pose, _ = split_label(label)
    xp = namespace(label)
    rotation = pose[..., :3, :3] * _OPENCV.astype(label.dtype)
    center = world_to_head(pose[..., :3, 3])
    shifted = -(xp.swapaxes(rotation, -1, -2) @ center[..., None])[..., 0]
    return euler_angles(rotation), shifted + xp.asarray([0, 0, CAMERA_DISTANCE], dtype=label.dtype)


# --- look-at cameras ---------------------------------------------------------------------------------------------


def _facing(forward: Array) -> Array:
    """Rotation [..., 3, 3] with columns right, image-down, forward for a camera without roll."""
    xp = namespace(forward)

    def unit(v):
        return v / xp.sqrt((v**2).sum(-1, keepdims=True))

    forward = unit(forward)
    up = xp.broadcast_to(xp.asarray([0, 1, 0], dtype=forward.dtype), forward.shape)
    right = -unit(xp.cross(up, forward))
    return xp.stack([right, unit(xp.cross(forward, right)), forward], axis=-1)


def look_at(
    horizontal: Float[Array, '*batch'], vertical: Float[Array, '*batch'], point: tuple = PIVOT, radius: float = RADIUS
) -> Float[Array, '*batch 4 4']:
    """Camera on a sphere around the **origin**, looking at ``point``.

    Args:
        horizontal: [...] azimuth, pi/2 is frontal, larger moves the camera to +x.
        vertical: [...] pi/2 is level, smaller moves the camera up; mapped uniformly in cosine, so that offsets from
            pi/2 are scaled by about 2/pi.

    Returns:
        Camera-to-world [..., 4, 4].
    """
    xp = namespace(horizontal, vertical)
    vertical = xp.clip(vertical, 1e-5, math.pi - 1e-5)
    phi, theta = xp.arccos(1 - 2 * vertical / math.pi), math.pi - horizontal
    origin = xp.stack([xp.sin(phi) * xp.cos(theta), xp.cos(phi), xp.sin(phi) * xp.sin(theta)], -1) * radius
    return pose_matrix(_facing(xp.asarray(point, dtype=origin.dtype) - origin), origin)


def orbit_pose(frame: Array, period: float = 100.0, amplitude: float = 0.5) -> Float[Array, '*batch 4 4']:
    """OTAvatar's circling camera: frame numbers [...] -> camera-to-world [..., 4, 4] (pi is 3.14, as released)."""
    xp = namespace(frame)
    phase = 2 * 3.14 * xp.asarray(frame) / period
    return look_at(3.14 / 2 + amplitude * xp.sin(phase), 3.14 / 2 - 0.05 + amplitude * xp.cos(phase))


def canonical_label() -> Float[np.ndarray, ' 25']:
    """The frontal label [25] at radius 2.7, with the release's 3.14 for pi."""
    return make_label(look_at(np.float64(3.14 / 2), np.float64(3.14 / 2)))


def unknown_label(mode: str = 'orig') -> Float[np.ndarray, ' 25']:
    """The frontal label [25] float32 for a picture whose camera is not known, as far away as usual in a ``mode`` of
    ``normalise_pose``.
    """
    label = canonical_label() if mode == 'orig' else label_from_pose(np.zeros(3), np.zeros(3), mode)
    return label.astype(np.float32)


# --- OTAvatar ------------------------------------------------------------------------------------------------------


def condition_rotation(condition: Float[Array, '*batch numbers']) -> Float[Array, '*batch 3 3']:
    """Rotation [..., 3, 3] of a stored condition [..., >=7] (angle x and y negated), before temporal averaging."""
    xp = namespace(condition)
    return rotation_matrix(condition[..., :3] * xp.asarray([-1, -1, 1], dtype=condition.dtype))


def labels_from_conditions(
    condition: Float[Array, 'frames numbers'], release: bool = False
) -> Float[Array, 'frames 25']:
    """Labels of one clip from the tracker's conditions (angle 3, translation 3, ..., focal).

    Rotation (a plain mean of matrices) and translation are averaged over frames [max(i-1, 0), min(i+2, T-1)), end
    exclusive: the last frame uses only the one before it, as released.

    Args:
        condition: [T, >=7]; columns 0:3, 3:6 and the last one are read.
        release: a clip of one frame has an empty window; True gives the released NaN, False uses the frame itself.

    Returns:
        [T, 25] float32.
    """
    xp = namespace(condition)
    length = condition.shape[0]
    index = np.arange(length)
    low, high = np.maximum(index - 1, 0), np.minimum(index + 2, length - 1)
    if length == 1 and not release:
        high = np.ones_like(high)
    member = (index[None] >= low[:, None]) & (index[None] < high[:, None])
    with np.errstate(invalid='ignore'):
        weights = (member / member.sum(-1, keepdims=True)).astype(condition.dtype)
    rotation = xp.einsum('ij,jab->iab', weights, condition_rotation(condition))
    trans = weights @ condition[:, 3:6] - xp.asarray([0, 0, CAMERA_DISTANCE], dtype=condition.dtype)
    center = -(rotation @ trans[..., None])[..., 0]
    world = 0.27 * center + xp.asarray(OTAVATAR_OFFSET, dtype=condition.dtype)
    pose = pose_matrix(rotation * _OPENCV.astype(condition.dtype), OTAVATAR_POSITION_SCALE * world)
    return make_label(pose, intrinsics(FOCAL_1024 / CROP * condition[:, -1] / OTAVATAR_FOCAL))


def correct_intrinsics(
    label: Float[Array, '*labels 25'], bias: Float[Array, '*biases 18']
) -> Float[Array, '*batch 25']:
    """Learnable correction: K <- K (1 + tanh s) + t on all nine entries.

    Args:
        label: [..., 25]; treated as data.
        bias: [..., 18] = s (9), t (9); zeros leave the label unchanged.
    """
    xp = namespace(label, bias)
    corrected = label[..., 16:] * (1 + xp.tanh(bias[..., :9])) + bias[..., 9:]
    return xp.concatenate([xp.broadcast_to(label[..., :16], (*corrected.shape[:-1], 16)), corrected], axis=-1)


def correct_rotation(label: Float[Array, '*labels 25'], bias: Float[Array, '*biases 18']) -> Float[Array, '*batch 25']:
    """The same correction of the nine rotation entries of the pose (off in the released system)."""
    xp = namespace(label, bias)
    pose, camera = split_label(label)
    flat = pose[..., :3, :3].reshape(*label.shape[:-1], 9)
    rotation = (flat * (1 + xp.tanh(bias[..., :9])) + bias[..., 9:]).reshape(*label.shape[:-1], 3, 3)
    return make_label(pose_matrix(rotation, pose[..., :3, 3]), camera)


# --- views of a known head ---------------------------------------------------------------------------------------


def yaw_label(
    label: Float[Array, '*labels 25'], radians: Array | float, center: tuple = PIVOT
) -> Float[Array, '*batch 25']:
    """Moves a camera around the vertical axis through ``center``; >0 moves it towards +x. Shapes broadcast."""
    pose, camera = split_label(label)
    xp = namespace(label, radians)
    angle = xp.asarray(radians, dtype=label.dtype)
    zero = xp.zeros_like(angle)
    # rotation_matrix is for rows; its transpose maps columns (+z towards +x for a positive angle).
    turn = xp.swapaxes(rotation_matrix(xp.stack([zero, angle, zero], -1)), -1, -2)
    center = xp.asarray(center, dtype=label.dtype)
    rotation = turn @ pose[..., :3, :3]
    position = (turn @ (pose[..., :3, 3] - center)[..., None])[..., 0] + center
    return make_label(pose_matrix(rotation, position), camera)


_FLIPPED = [1, 2, 5, 6, 9, 10]  # second and third columns of the rotation, rows 0 to 2


def flip_axes(label: Float[np.ndarray, '*batch 25']) -> Float[np.ndarray, '*batch 25']:
    """Labels [..., 25] with OpenCV axes from those with OpenGL axes (x right, y up, z backward), or the other way."""
    flipped = np.array(label)
    flipped[..., _FLIPPED] *= -1
    return flipped
