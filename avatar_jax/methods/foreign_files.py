"""Everything that ``avatar-jax convert`` knows: the files of the methods and of the networks that they share."""

from __future__ import annotations

import importlib

from avatar_jax.convert.base import ForeignFile
from avatar_jax.methods.base import methods

_SHARED = ('avatar_jax.losses.foreign', 'avatar_jax.faces.foreign')


def all_kinds() -> tuple[ForeignFile, ...]:
    """The kinds of files, in the order in which ``--as`` lists them."""
    own = [kind for m in methods() if m.foreign is not None for kind in m.foreign()]
    shared = [kind for module in _SHARED for kind in importlib.import_module(module).FOREIGN]
    return (*own, *shared)
