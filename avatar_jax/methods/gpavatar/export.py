"""The per-frame function of an avatar as a portable program (``jax.export``).

Weights, tri-planes and the head model are arguments: the program itself has some hundred kilobytes, serves every avatar
of the same weights, and runs without this package's code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.methods.gpavatar.config import ModelConfig
from avatar_jax.methods.gpavatar.model import frame
from avatar_jax.types import Avatar


def frame_function(config: ModelConfig):
    """(variables, identity, expression [N,64], labels [N,25]) -> pictures [N,S,S,3] in [-1,1], without host
    callbacks.
    """
    # The tree on the host cannot leave this process.
    field = dataclasses.replace(config.settings.field, knn='brute')
    config = dataclasses.replace(config, settings=dataclasses.replace(config.settings, field=field))

    def picture(variables, identity, expression, labels):
        return frame(variables, config, identity, None, {'expression': expression}, labels).rgb

    return picture


def export_frame(
    variables: Mapping[str, Any],
    config: ModelConfig,
    avatar: Avatar,
    frames: int = 1,
    platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
) -> tuple[jax.export.Exported, dict[str, Any]]:
    """The exported program for ``frames`` frames at once, and the variables to call it with.

    Returns:
        ``exported`` (``exported.call(variables, identity, expression, labels)``, ``exported.serialize()``) and the
        part of the variables that it reads.
    """
    needed = {k: variables[k] for k in ('params', 'noise', 'constants', 'mesh')}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (needed, dict(avatar.identity)))
    numbers = [jax.ShapeDtypeStruct((frames, n), jnp.float32) for n in (64, 25)]
    exported = jax.export.export(jax.jit(frame_function(config)), platforms=list(platforms))(*shapes, *numbers)
    return exported, needed
