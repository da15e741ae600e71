"""From one portrait to an avatar: one forward pass, and the checks of what it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.methods.base import Built, NoOptions, Source
from avatar_jax.methods.hidenerf import cameras, model, secc
from avatar_jax.methods.hidenerf.config import METHOD, ModelConfig
from avatar_jax.ops.resize import resize
from avatar_jax.types import Avatar, Camera, Portrait

if TYPE_CHECKING:
    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.methods.model import Model

BEHIND = 100.0  # degrees from the front beyond which a portrait shows no face
TURNED = 50.0  # degrees beyond which half of the face is hidden
FLAT = 60.0  # degrees from which planes that are not looked up in the camera's frame collapse
HEAD = 0.2  # from its centre to the face, world units


def check_camera(config: ModelConfig, portrait: Portrait, name: str) -> None:
    """Refuses cameras that see no face, and turned portraits that the configured transform cannot hold.

    A portrait in profile is fine with ``appearance.transform='exact'``.

    Raises:
        UserError: one line each.
    """
    pivot = config.volume.pivot
    pose = np.asarray(portrait.camera.cam2world, np.float32)
    if not np.isfinite(pose).all():
        raise UserError(f'{name}: its camera has NaN or infinite numbers; estimate the camera again')
    if float(cameras.head_depth(jnp.asarray(pose), pivot)) <= 0:
        raise UserError(f'{name}: the head is behind its camera; estimate the camera again')
    angle = cameras.view_angle(pose, pivot)
    if angle > BEHIND:
        raise UserError(
            f'{name}: its camera is behind the head ({angle:.0f} degrees from the front); give a portrait that shows '
            'the face'
        )
    mode = config.appearance.transform
    if angle > FLAT and mode != 'exact':
        raise UserError(
            f"{name}: is seen at {angle:.0f} degrees from the front, where weights with appearance.transform='{mode}' "
            f"have no depth; give a portrait within {FLAT:.0f} degrees, or weights with 'exact'"
        )


def cut_off(config: ModelConfig, portrait: Portrait) -> str:
    """One line where the head is so near or so far that rays of the weights end within it; '' elsewhere."""
    volume = config.volume
    depth = float(cameras.head_depth(jnp.asarray(portrait.camera.cam2world, jnp.float32), volume.pivot))
    if volume.near + HEAD <= depth <= volume.far - HEAD:
        return ''
    return (
        f'its camera is {depth:.2f} from the head, and rays of these weights run from {volume.near:g} to '
        f'{volume.far:g}: parts of the head are cut off in views from there; crop the picture otherwise, or give '
        'weights that know such cameras'
    )


def notes_of(config: ModelConfig, portrait: Portrait) -> list[str]:
    """What to know of the avatar of a portrait, one line each."""
    lines = [line] if (line := cut_off(config, portrait)) else []
    angle = cameras.view_angle(np.asarray(portrait.camera.cam2world, np.float32), config.volume.pivot)
    if angle > TURNED:
        lines.append(
            f'is seen at {angle:.0f} degrees from the front, where much of the face is hidden: expect a poor likeness, '
            'or give a portrait that looks ahead'
        )
    if config.shape == 'own' and portrait.shape is None:
        lines.append(f"its shape was not measured in the basis '{config.basis}': the mean head's is taken")
    image, mask = np.asarray(portrait.image, np.float32), np.asarray(portrait.mask, np.float32)[..., None]
    if (np.abs(image - config.fill) * (1 - mask)).mean() > 0.02:
        lines.append(f'its background was made {config.background}, as these weights know heads')
    return lines


def picture_of(config: ModelConfig, portrait: Portrait, name: str) -> jax.Array:
    """The portrait [R,R,3] before the background of the weights.

    Raises:
        UserError: no mask of the head, or one that covers all of the picture.
    """
    if portrait.mask is None or np.asarray(portrait.mask).min() > 0.5:  # nothing was separated
        raise UserError(
            f'{name}: has no mask of the head, and HiDe-NeRF sees heads before a plain {config.background} background; '
            'give a picture with transparency, let avatar-jax invert separate it (--background white), or set '
            'Portrait.mask'
        )
    image = jnp.asarray(portrait.image, jnp.float32)
    mask = jnp.asarray(portrait.mask, jnp.float32)
    if mask.shape != image.shape[:2]:
        raise UserError(f'{name}: its mask is {mask.shape}, the picture {image.shape[:2]}; both must have one size')
    return resize(model.masked(image, mask, config.fill), config.image_size, antialias=True)


def shape_of(config: ModelConfig, mesh: secc.HeadMesh, portrait: Portrait, name: str) -> np.ndarray:
    """[K] shape coefficients: those of the portrait with ``shape='own'``, where it has some, else the mean head's.

    Raises:
        UserError: they are of another basis, or too few.
    """
    if config.shape == 'mean' or portrait.shape is None:
        return np.zeros(mesh.num_shape, np.float32)
    if portrait.basis:
        secc.check_basis(mesh, portrait.basis, name)
    shape = np.asarray(portrait.shape, np.float32).reshape(-1)
    if len(shape) < min(mesh.num_shape, 80):
        raise UserError(
            f'{name}: has {len(shape)} shape coefficients, the {config.basis} head has {mesh.num_shape}; fit it with '
            f"'{config.basis}'"
        )
    return np.pad(shape, (0, max(mesh.num_shape - len(shape), 0)))[: mesh.num_shape]


@partial(jax.jit, static_argnames='config')
def _encode(params, mesh, image, label, shape, *, config):
    source = model.encode(params, config, mesh, image[None], label[None], shape[None])
    return jax.tree.map(lambda x: x[0], source)


def build(variables: Mapping[str, Any], config: ModelConfig, portrait: Portrait, *, weights: str = '') -> Avatar:
    """The avatar of one portrait: its planes, identity features and canonical code (slow the first time: compiles).

    Args:
        variables: with ``mesh``. weights: SHA-256 of the weights, stored in the avatar.

    Raises:
        UserError: see ``check_camera``, ``picture_of``, ``shape_of``.
    """
    name, mesh = portrait.source or 'portrait', variables['mesh']
    check_camera(config, portrait, name)
    image, shape = picture_of(config, portrait, name), shape_of(config, mesh, portrait, name)
    label = jnp.asarray(portrait.camera.label, jnp.float32)
    source = _encode(variables['params'], mesh, image, label, jnp.asarray(shape), config=config)
    return Avatar(
        model.identity_of(source),
        camera=Camera.from_label(np.asarray(label)),
        method=METHOD,
        config=config,
        basis=config.basis,
        weights=weights,
        source=portrait.source,
    )


def build_avatar(
    model_: Model,
    source: Source,
    options: NoOptions,
    *,
    bank: PerceptionBank | None,
    key: jax.Array | None,
    on_step: Callable[..., None],
) -> Built:
    """``build`` behind the interface of all methods: one portrait, one forward pass."""
    del options, bank, key
    began = time.monotonic()
    avatar = build(model_.variables, model_.config, source.portraits[0], weights=model_.sha256)
    jax.block_until_ready(avatar.identity)
    on_step(1)
    report = {
        'seconds_with_compilation': time.monotonic() - began,
        'limit': 'the likeness is bounded by what the weights have seen in training',
    }
    portrait = source.portraits[0]
    notes = tuple(f'{portrait.source or "portrait"}: {line}' for line in notes_of(model_.config, portrait))
    return Built(avatar, report=report, notes=notes)
