"""From an avatar, a drive and cameras to frames: the only renderer, as a pure function and as a stream.

``animate`` is the pure function, for ``jit``, ``vmap`` and ``grad``. ``stream`` is what commands use: one compiled
program for all frames of all avatars, a few frames at a time, over all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import yaw_label
from avatar_jax.methods.base import Method, method
from avatar_jax.parallel import in_loop, on_all, on_rows, over_devices
from avatar_jax.types import Array, Avatar, Config, Drive, Frames, Portrait, PyTree

if TYPE_CHECKING:
    from jaxtyping import Float

SIDE_VIEWS = np.deg2rad([-30.0, 30.0])


def side_labels(portrait: Portrait) -> np.ndarray:
    """Cameras [3,25] of a portrait's own view and of those from 30 degrees to either side."""
    label = np.asarray(portrait.camera.label, np.float32)
    return np.stack([label, *(np.asarray(yaw_label(label, angle), np.float32) for angle in SIDE_VIEWS)])


def animate(
    owner: Method,
    variables: Mapping[str, Any],
    config: Config,
    avatar: Avatar,
    drive: Drive,
    labels: Float[jax.Array, 'frames 25'],
    *,
    prepared: PyTree = None,
    chunk: int = 1,
    key: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """Renders all frames of a drive; a pure function of arrays.

    Args:
        owner: the method. variables, config: its model (``config`` static under ``jit``).
        avatar: of one person; for many, ``vmap``. drive: T frames. labels: [T,25] cameras.
        prepared: of ``owner.prepare``; None computes it here.
        chunk: frames that are computed as one batch; memory grows with it, not with T.
        key: draws what is random in a frame; None is deterministic, without flicker.
        sr: False leaves super-resolution out; ``rgb`` is then the raw rendering.
    """
    if prepared is None and owner.prepare is not None:
        prepared = owner.prepare(variables, config, avatar.identity)
    keys = None if key is None else jax.random.split(key, labels.shape[0])

    def some(part):
        signals, labels, keys = part
        return owner.frame(variables, config, avatar.identity, prepared, signals, labels, keys, sr)

    return _in_chunks(some, (drive.signals, labels, keys), labels.shape[0], chunk)


def _in_chunks(function: Callable, inputs: PyTree, total: int, chunk: int) -> PyTree:
    """``function`` of [total, ...] arrays, ``chunk`` rows at a time and one after the other."""
    if total <= chunk:
        return function(inputs)
    whole = total // chunk * chunk
    parts = jax.tree.map(lambda x: x[:whole].reshape(whole // chunk, chunk, *x.shape[1:]), inputs)
    outputs = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), jax.lax.map(function, parts))
    if whole == total:
        return outputs
    rest = function(jax.tree.map(lambda x: x[whole:], inputs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, rest)


@partial(jax.jit, static_argnames=('name', 'config'))
def _prepare(variables, identity, *, name, config):
    return method(name).prepare(variables, config, identity)


@partial(jax.jit, static_argnames=('name', 'config', 'chunk', 'sr', 'devices'))
def _render(shared, rows, *, name, config, chunk, sr, devices):
    def some(shared, rows):
        variables, identity, other, prepared = shared

        def part(inputs):
            *inputs, amounts = inputs
            shown = identity
            if amounts is not None:  # one frame at a time
                shown = method(name).interpolate(identity, other, amounts[0])
            return method(name).frame(variables, config, shown, prepared, *inputs, sr)

        return _in_chunks(part, rows, rows[1].shape[0], chunk)

    return over_devices(some, devices)(shared, rows)


def stream(
    owner: Method,
    variables: Mapping[str, Any],
    config: Config,
    avatar: Avatar,
    drive: Drive,
    labels: Float[Array, 'frames 25'],
    *,
    per_call: int = 8,
    chunk: int = 1,
    sr: bool = True,
    key: jax.Array | None = None,
    devices: Sequence[jax.Device] | None = None,
    towards: tuple[Avatar, Any] | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> Iterator[Frames]:
    """Renders all frames of a drive, some at a time: memory does not grow with the length.

    All calls have one shape, so there is one compilation; the last one is filled up with copies of the last frame. The
    next call is computed while the one before is used.

    Args:
        labels: [T,25].
        per_call: frames handed to the devices at once; rounded up to a multiple of ``chunk`` on all devices.
        chunk: frames of a call that each device computes as one batch.
        sr, key: as in ``animate``.
        devices: over which the frames of a call are spread; None: all of this process.
        towards: another avatar, and how much of it is in each frame [T], 0 to 1 (needs ``chunk=1``).
        on_frames: called with the number of frames after each call.

    Yields:
        ``Frames`` of numpy arrays, in order.

    Raises:
        UserError: the method cannot mix these two avatars.
    """
    other, amounts = (None, None) if towards is None else (towards[0].identity, np.asarray(towards[1], np.float32))
    if towards is not None:
        check_mixable(owner, avatar, towards[0], chunk)
    devices = tuple(jax.local_devices() if devices is None else devices)
    labels = np.asarray(labels, np.float32)
    total, unit = len(labels), chunk * len(devices)
    per_call = -(-min(per_call, max(total, 1)) // unit) * unit
    variables, identity, other = on_all((variables, avatar.identity, other), devices)
    prepared = None
    if owner.prepare is not None:
        prepared = _prepare(variables, identity, name=owner.name, config=config)
    # Fetched once: each call takes its frames on the host.
    drive = drive.replace(signals={k: _on_host(v) for k, v in drive.signals.items()})

    def call(start: int) -> tuple[int, Frames]:
        index = np.minimum(np.arange(start, start + per_call), total - 1)
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, jax.device_put(start)), per_call)
        signals = jax.tree.map(np.asarray, drive.frames(index).signals)
        shares = None if amounts is None else amounts[index]
        rendered = _render(
            (variables, identity, other, prepared),
            on_rows((signals, labels[index], keys, shares), devices),
            name=owner.name,
            config=config,
            chunk=chunk,
            sr=sr,
            devices=devices,
        )
        return min(per_call, total - start), rendered

    waiting = None
    for start in (*range(0, total, per_call), None):
        with in_loop():
            following = None if start is None else call(start)
            shown = None if waiting is None else jax.device_get(waiting[1])
        if waiting is not None:
            count = waiting[0]
            yield jax.tree.map(lambda x, count=count: x[:count], shown)
            if on_frames is not None:
                on_frames(count)
        waiting = following


def _on_host(signal: Any) -> Any:
    """A signal that lies on a device as a numpy array; one that is read frame by frame stays as it is."""
    return jax.device_get(signal) if isinstance(signal, jax.Array) else signal


def check_mixable(owner: Method, avatar: Avatar, other: Avatar, chunk: int = 1) -> None:
    """Raises ``UserError`` unless two avatars can be mixed."""
    if owner.interpolate is None:
        raise UserError(f'--towards: avatars of {owner.title} cannot be mixed')
    if other.method != avatar.method or other.weights != avatar.weights:
        raise UserError('--towards: the two avatars belong to different weights; make both with the same')
    if jax.tree.structure(avatar.identity) != jax.tree.structure(other.identity) or 'generator' in avatar.identity:
        raise UserError('--towards: avatars with networks of their own cannot be mixed; make them without tuning')
    if chunk != 1:
        raise UserError('--side-by-side: must be 1 with --towards')
