"""Portraits, motions and cameras as a model wants them: what ``import avatar_jax`` offers for files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.driving.cameras import camera_labels
from avatar_jax.driving.request import Request
from avatar_jax.errors import UserError
from avatar_jax.types import Avatar, Motion, Portrait

if TYPE_CHECKING:
    from avatar_jax.methods.model import Model


def read_portraits(files: Sequence[str | os.PathLike], model: Model, **options: Any) -> list[Portrait]:
    """Photographs, aligned crops or folders of ``avatar-jax track``, measured and cut as a model's data were.

    Args:
        files: one for each portrait.
        model: whose picture size and camera labels are used.
        options: of ``photo.prepare.prepare``: ``aligned``, ``face``, ``landmarks``, and ``background``: 'weights'
            (default: that of the model's data), 'white', 'black' or 'keep'.

    Raises:
        UserError: a file cannot be used; no face, or several, in a picture.
    """
    from avatar_jax.faces.conventions import background_of, over
    from avatar_jax.photo.prepare import prepare
    from avatar_jax.track.folder import is_track
    from avatar_jax.track.folder import prepared as from_track

    size, mode = model.config.img_resolution, model.config.label_mode
    background = background_of(model.config, options.pop('background', 'weights'))
    options['background'] = 'keep' if background == 'keep' else 'white'
    found = []
    for file in files:
        if is_track(file):
            found.append(from_track(file, size=size, label_mode=mode, **options)[0].portrait())
        else:
            found.append(prepare(file, size=size, label_mode=mode, **options).portrait())
    return [over(portrait, background) for portrait in found]


def read_motion(driver: str | os.PathLike, model: Model, avatar: Avatar | None = None, **options: Any) -> Motion:
    """What drives an avatar, in the model's basis.

    Args:
        driver: a motion file, coefficients of another program, a video, a picture, or ``speech:SEED[:FRAMES]``.
        avatar: whose pose relative motions start from.
        options: of ``driving.request.Request``: ``sliders``, ``plan``, ``face``, ``fps``, ``frames``.
    """

    def no_clips(spec: str) -> Motion:
        raise UserError(f'{spec}: no such file')

    avatar = Avatar({}) if avatar is None else avatar
    return Request(os.fspath(driver), **options).read(model.config.basis, avatar, no_clips)[0]


def cameras(model: Model, motion: Motion, kind: str = 'track', avatar: Avatar | None = None) -> np.ndarray:
    """Camera labels [T,25] for a motion: 'track' follows the head, 'orbit' circles around it, 'fixed' stands still."""
    return camera_labels(kind, model.config, Avatar({}) if avatar is None else avatar, motion)
