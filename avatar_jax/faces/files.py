"""A head model from a file, whichever it is: BFM front model, FLAME or ICT-FaceKit, original or converted."""

from __future__ import annotations

import os
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM, read_arrays
from avatar_jax.faces.flame import FLAME
from avatar_jax.faces.ict import ICT

_BY_METHOD = {'bfm2009_front': BFM, 'flame': FLAME, 'ict_facekit': ICT}  # as conversions mark their files
_BY_ARRAY = {'identity_deltas': ICT, 'v_template': FLAME, 'meanshape': BFM}


def load_head_model(path: str | os.PathLike) -> BFM | FLAME | ICT:
    """Reads a head model.

    Raises:
        UserError: missing or damaged file, or not a head model.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        from avatar_jax.io.weights import load_weights

        method = load_weights(path).method
        if method not in _BY_METHOD:
            raise UserError(f"{path}: holds weights of '{method}', not a face model")
        return _BY_METHOD[method].load(os.fspath(path))
    names = set(read_arrays(path))
    for mark, kind in _BY_ARRAY.items():
        if mark in names:
            return kind.load(path)
    raise UserError(f'{path}: is not a head model (BFM front model, FLAME or ICT-FaceKit)')
