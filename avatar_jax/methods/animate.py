"""From an avatar and a driving motion to a video's frames: cameras, checks, and rendering in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import (
    intrinsics,
    label_from_pose,
    make_label,
    orbit_pose,
)
from avatar_jax.faces.windows import windows
from avatar_jax.methods.registry import method
from avatar_jax.types import Avatar, Frames, Motion

CAMERAS = ('track', 'orbit', 'fixed')


def camera_labels(kind: str, config: Any, avatar: Avatar, motion: Motion) -> np.ndarray:
    """Camera labels [T,25] of a video.

    Args:
        kind: 'track' follows the driver's head, as the paper does (the head stands still in the world, so its pose is
            the camera's); 'orbit' circles around the head (the released program's ``--rotate``); 'fixed' is the
            camera of the portrait, or a frontal one if the avatar has none.
    """
    if kind not in CAMERAS:
        raise UserError(f'camera {kind!r}: use one of {", ".join(CAMERAS)}')
    frames = motion.num_frames
    if kind == 'track':
        return np.asarray(
            label_from_pose(
                np.asarray(motion.angle, np.float32), np.asarray(motion.translation, np.float32), config.label_mode
            ),
            np.float32,
        )
    if kind == 'orbit':
        return np.asarray(make_label(orbit_pose(np.arange(frames, dtype=np.float64)), intrinsics()), np.float32)
    if avatar.camera is not None:
        label = np.asarray(avatar.camera.label, np.float32)
    else:
        zero = np.zeros(3, np.float32)
        label = np.asarray(label_from_pose(zero, zero, config.label_mode), np.float32)
    return np.broadcast_to(label, (frames, 25))


def check_drivable(config: Any, avatar: Avatar, motion: Motion, weights: str = '') -> None:
    """Raises ``UserError`` when motion, avatar and weights do not belong together."""
    if motion.basis != config.basis:
        raise UserError(
            f"motion: its coefficients belong to the basis '{motion.basis}', the avatar is driven by "
            f"'{config.basis}'; give a motion tracked with '{config.basis}'"
        )
    if weights and avatar.weights and avatar.weights != weights:
        raise UserError(
            f'avatar: was made with other weights ({avatar.weights[:12]}, these are {weights[:12]}); '
            'give those weights or make the avatar again'
        )


@partial(jax.jit, static_argnames=('name', 'config', 'chunk', 'sr'))
def _render(variables, identity, windows, labels, basis, key, *, name, config, chunk, sr):
    return method(name).animate(
        variables, config, Avatar(identity), windows, labels, basis=basis, chunk=chunk, key=key, sr=sr
    )


def render_motion(
    variables: Mapping[str, Any],
    config: Any,
    avatar: Avatar,
    motion: Motion,
    labels: np.ndarray,
    *,
    per_call: int = 8,
    chunk: int = 1,
    sr: bool = True,
    key: jax.Array | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> Iterator[Frames]:
    """Renders all frames of a motion, ``per_call`` at a time: memory does not grow with the length.

    Args:
        config: the method's ``ModelConfig``; ``avatar.method`` says which method it is.
        labels: [T,25] from ``camera_labels``.
        per_call: frames handed to the device at once (all calls have one shape, so there is one compilation).
        chunk: of these, so many side by side. sr, key: see ``model.animate``.
        on_frames: called with the number of frames after each call.

    Yields:
        ``Frames`` of numpy arrays, up to ``per_call`` frames each, in order.
    """
    rows = np.asarray(motion.coefficients, np.float32)
    total = len(rows)
    per_video = method(avatar.method).per_video
    basis = None if per_video is None else jax.jit(partial(per_video, config=config))(variables)
    per_call = min(per_call, total)
    for start in range(0, total, per_call):
        index = np.minimum(np.arange(start, start + per_call), total - 1)
        step_key = None if key is None else jax.random.fold_in(key, start)
        frames = _render(
            variables,
            avatar.identity,
            jnp.asarray(windows(rows, index)),
            jnp.asarray(labels[index]),
            basis,
            step_key,
            name=avatar.method,
            config=config,
            chunk=chunk,
            sr=sr,
        )
        count = min(per_call, total - start)
        yield jax.tree.map(lambda x, count=count: np.asarray(x)[:count], frames)
        if on_frames is not None:
            on_frames(count)
