"""Cameras: poses, intrinsics, the 25-number label, mirrored and orbiting views.

World axes: y up, z towards the camera of a frontal face, x to that camera's right. Cameras are OpenCV (x right, y down,
z forward) and matrices are cam2world. A label is the cam2world matrix (16 numbers, row by row) followed by the 3x3
intrinsics in units of the image size (9 numbers).

Angles follow EG3D: yaw h and polar angle v in radians; h = v = pi/2 looks along -z from (0, 0, radius), h > pi/2 moves
the camera to +x, v < pi/2 to +y. The polar angle is spread evenly over its *cosine* (phi = arccos(1 - 2v/pi)), so a
small pitch offset comes out 2/pi as large.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

FFHQ_FOCAL = 2985.29 / 700  # focal length of the FFHQ labels in image sizes
SAMPLE_FOV = 18.837  # degrees; the field of view of EG3D's sampling script
MIRRORED_ENTRIES = ((0, 1), (0, 2), (0, 3), (1, 0), (2, 0))


def _normalize(vector: jax.Array) -> jax.Array:
    return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)


def create_cam2world(forward: Float[jax.Array, '*batch 3'], origin: jax.Array) -> Float[jax.Array, '*batch 4 4']:
    """Upright cameras [..., 4, 4] at ``origin`` [..., 3] looking along ``forward`` [..., 3] (not straight up or
    down).
    """
    forward = _normalize(jnp.asarray(forward, jnp.float32))
    origin = jnp.broadcast_to(jnp.asarray(origin, jnp.float32), forward.shape)
    up = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), forward.shape)
    right = -_normalize(jnp.cross(up, forward))
    down = _normalize(jnp.cross(forward, right))
    top = jnp.stack([right, down, forward, origin], axis=-1)
    bottom = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, bottom], axis=-2)


def camera_origin(h: jax.Array, v: jax.Array, radius: float) -> jax.Array:
    """Camera centre [..., 3] on the sphere of this radius around the world origin; ``h``, ``v`` [...] in radians."""
    # float32 throughout: pi - 1e-5 rounds as it does in the reference.
    v = jnp.clip(jnp.asarray(v, jnp.float32), 1e-5, math.pi - 1e-5)
    h, v = jnp.broadcast_arrays(jnp.asarray(h, jnp.float32), v)
    phi = jnp.arccos(1 - 2 * (v / math.pi))
    return radius * jnp.stack(
        [jnp.sin(phi) * jnp.cos(math.pi - h), jnp.cos(phi), jnp.sin(phi) * jnp.sin(math.pi - h)], axis=-1
    )


def look_at_pose(h: jax.Array, v: jax.Array, pivot=(0.0, 0.0, 0.0), radius: float = 2.7) -> jax.Array:
    """Cameras [..., 4, 4] that orbit the world *origin* and look at ``pivot`` [3] or [..., 3]; ``h``, ``v`` [...]."""
    origin = camera_origin(h, v, radius)
    return create_cam2world(jnp.asarray(pivot, jnp.float32) - origin, origin)


def _offset_angles(sampler, key, h_mean, v_mean, h_std, v_std, count, draws):
    """Mean angles plus scaled draws; ``draws`` are the two raw arrays [count] instead of a key."""
    if draws is None:
        if key is None:
            raise ValueError('give a key or the two arrays of raw draws')
        draws = [sampler(k, (count,)) for k in jax.random.split(key)]
    h, v = (jnp.asarray(d, jnp.float32).reshape(count) for d in draws)
    return h_mean + h_std * h, v_mean + v_std * v


def sample_look_at(
    key: jax.Array | None,
    h_mean: float,
    v_mean: float,
    pivot=(0.0, 0.0, 0.0),
    *,
    h_std: float = 0.0,
    v_std: float = 0.0,
    radius: float = 2.7,
    count: int = 1,
    draws=None,
) -> jax.Array:
    """``count`` cameras [count, 4, 4] with normally distributed angles that look at ``pivot``.

    ``draws``: the two arrays of standard normals (for h and v), instead of ``key``.
    """
    h, v = _offset_angles(jax.random.normal, key, h_mean, v_mean, h_std, v_std, count, draws)
    return look_at_pose(h, v, pivot, radius)


def sample_gaussian(key: jax.Array | None, h_mean: float, v_mean: float, **options) -> jax.Array:
    """Like `sample_look_at`, looking at the world origin."""
    return sample_look_at(key, h_mean, v_mean, (0.0, 0.0, 0.0), **options)


def sample_uniform(
    key: jax.Array | None,
    h_mean: float,
    v_mean: float,
    *,
    h_std: float = 0.0,
    v_std: float = 0.0,
    radius: float = 2.7,
    count: int = 1,
    draws=None,
) -> jax.Array:
    """``count`` cameras with angles uniform in mean +- std, looking at the origin; ``draws``: uniforms in [0, 1)."""
    if draws is not None:
        draws = [2 * jnp.asarray(d, jnp.float32) - 1 for d in draws]

    def symmetric(key, shape):
        return 2 * jax.random.uniform(key, shape) - 1

    h, v = _offset_angles(symmetric, key, h_mean, v_mean, h_std, v_std, count, draws)
    return look_at_pose(h, v, (0.0, 0.0, 0.0), radius)


def fov_to_intrinsics(degrees: jax.Array) -> jax.Array:
    """Intrinsics [..., 3, 3] from a field of view [...] in degrees, with the release's rounded constants (pi and
    √2).
    """
    focal = 1 / (jnp.tan(jnp.asarray(degrees, jnp.float32) * (3.14159 / 360)) * 1.414)
    return focal_to_intrinsics(focal)


def focal_to_intrinsics(focal: jax.Array = FFHQ_FOCAL) -> jax.Array:
    """Intrinsics [..., 3, 3] with a centred principal point; ``focal`` [...] in image sizes."""
    focal = jnp.asarray(focal, jnp.float32)
    zero, half, one = jnp.zeros_like(focal), jnp.full_like(focal, 0.5), jnp.ones_like(focal)
    rows = [[focal, zero, half], [zero, focal, half], [zero, zero, one]]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def pack_label(cam2world: jax.Array, intrinsics: jax.Array) -> jax.Array:
    """[..., 4, 4] and [..., 3, 3] (leading shapes broadcast) -> labels [..., 25]."""
    cam2world, intrinsics = jnp.asarray(cam2world), jnp.asarray(intrinsics)
    lead = jnp.broadcast_shapes(cam2world.shape[:-2], intrinsics.shape[:-2])
    pose = jnp.broadcast_to(cam2world, (*lead, 4, 4)).reshape(*lead, 16)
    return jnp.concatenate([pose, jnp.broadcast_to(intrinsics, (*lead, 3, 3)).reshape(*lead, 9)], -1)


def unpack_label(
    label: Float[jax.Array, '*batch 25'],
) -> tuple[Float[jax.Array, '*batch 4 4'], Float[jax.Array, '*batch 3 3']]:
    """Labels [..., 25] -> cam2world [..., 4, 4], intrinsics [..., 3, 3]."""
    if label.shape[-1] != 25:
        raise ValueError(f'a camera label has 25 numbers, got an array of shape {label.shape}')
    lead = label.shape[:-1]
    return label[..., :16].reshape(*lead, 4, 4), label[..., 16:].reshape(*lead, 3, 3)


def mirror_pose(cam2world: Float[jax.Array, '*batch 4 4']) -> Float[jax.Array, '*batch 4 4']:
    """The camera [..., 4, 4] that sees the horizontally flipped image: the world mirrored at x = 0."""
    sign = np.ones((4, 4), np.float32)
    for entry in MIRRORED_ENTRIES:
        sign[entry] = -1
    return jnp.asarray(cam2world) * sign


def mirror_label(label: Float[jax.Array, '*batch 25']) -> Float[jax.Array, '*batch 25']:
    """Labels [..., 25] for horizontally flipped images; the principal point must be centred (it is not moved)."""
    cam2world, intrinsics = unpack_label(jnp.asarray(label))
    return pack_label(mirror_pose(cam2world), intrinsics)


def frontal_label(radius: float = 2.7, pivot=(0.0, 0.0, 0.2), focal: float = FFHQ_FOCAL) -> Float[jax.Array, '1 25']:
    """The camera straight in front, [1, 25]."""
    return pack_label(look_at_pose(jnp.full((1,), math.pi / 2), math.pi / 2, pivot, radius), focal_to_intrinsics(focal))


def sample_sheet_labels(radius: float = 2.7, pivot=(0.0, 0.0, 0.2)) -> tuple[jax.Array, jax.Array]:
    """EG3D's picture sheet: the three views [3, 25] (yaw +0.4, 0, -0.4, slightly from above) and the conditioning [1,
    25].
    """
    intrinsics = fov_to_intrinsics(SAMPLE_FOV)
    yaw = jnp.array([0.4, 0.0, -0.4])
    views = look_at_pose(math.pi / 2 + yaw, math.pi / 2 - 0.2, pivot, radius)
    frontal = look_at_pose(jnp.full((1,), math.pi / 2), math.pi / 2, pivot, radius)
    return pack_label(views, intrinsics), pack_label(frontal, intrinsics)


def orbit_poses(
    frames: int,
    radius: float = 2.7,
    pivot=(0.0, 0.0, 0.2),
    *,
    yaw: float = 0.35,
    pitch: float = 0.25,
    pitch_offset: float = -0.05,
) -> Float[jax.Array, 'frames 4 4']:
    """A closed swing around the face, [frames, 4, 4]: an ellipse of ``yaw`` by ``pitch`` radians (EG3D's video path).

    Like the release it uses 3.14 for pi.
    """
    phase = 2 * 3.14 * np.arange(frames) / frames
    h = 3.14 / 2 + yaw * np.sin(phase)
    v = 3.14 / 2 + pitch_offset + pitch * np.cos(phase)
    return look_at_pose(h, v, pivot, radius)


def orbit_labels(
    frames: int, radius: float = 2.7, pivot=(0.0, 0.0, 0.2), focal: float = 4.2647, **swing
) -> Float[jax.Array, 'frames 25']:
    """Labels [frames, 25] of `orbit_poses`; ``swing``: its yaw, pitch and pitch_offset."""
    return pack_label(orbit_poses(frames, radius, pivot, **swing), focal_to_intrinsics(focal))
