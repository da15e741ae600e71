"""The functions of ``avatar_jax.convert`` with all kinds of files that the project knows."""

from __future__ import annotations

from functools import partial

from avatar_jax.convert import convert as _convert
from avatar_jax.convert import export as _export
from avatar_jax.convert import recognise as _recognise
from avatar_jax.convert import verify as _verify
from avatar_jax.methods.foreign_files import all_kinds

convert = partial(_convert.convert, kinds=all_kinds())
export = partial(_export.export, kinds=all_kinds())
verify = partial(_verify.verify, kinds=all_kinds())


def recognise(raw, name=None, prefix=None):
    """``recognise`` among all kinds."""
    return _recognise.recognise(raw, all_kinds(), name, prefix)
