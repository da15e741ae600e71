"""Everything that ``avatar-jax convert`` knows: the files of the networks and of the methods."""

from __future__ import annotations

import importlib

from avatar_jax.convert.base import ForeignFile

_MODULES = (
    'avatar_jax.methods.eg3d.foreign',
    'avatar_jax.methods.otavatar.foreign',
    'avatar_jax.methods.gpavatar.foreign',
    'avatar_jax.losses.foreign',
    'avatar_jax.faces.foreign',
)


def all_kinds() -> tuple[ForeignFile, ...]:
    """The kinds of files, in the order in which ``--as`` lists them."""
    return tuple(kind for module in _MODULES for kind in importlib.import_module(module).FOREIGN)
