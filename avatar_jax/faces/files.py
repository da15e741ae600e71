"""A face model from a file, whichever it is: BFM front model, FLAME or ICT-FaceKit, original or converted."""

from __future__ import annotations

import os
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.faces import bfm, flame, ict
from avatar_jax.faces.bfm import BFM, read_arrays
from avatar_jax.faces.flame import FLAME
from avatar_jax.faces.ict import ICT
from avatar_jax.io.weights import load_weights

FACE_MODELS = {bfm.METHOD: BFM, flame.METHOD: FLAME, ict.METHOD: ICT}
"""Method of a weight file -> model."""
_BY_ARRAY = {'identity_deltas': ICT, 'v_template': FLAME, 'meanshape': BFM}


def load_face_model(path: str | os.PathLike) -> BFM | FLAME | ICT:
    """A face model, whichever it is.

    Raises:
        UserError: missing or damaged file, or one of something else.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        method = load_weights(path).method
        if method not in FACE_MODELS:
            raise UserError(f"{path}: holds weights of '{method}', not a face model")
        return FACE_MODELS[method].load(os.fspath(path))
    names = set(read_arrays(path))
    for mark, kind in _BY_ARRAY.items():
        if mark in names:
            return kind.load(path)
    raise UserError(f'{path}: is not a head model (BFM front model, FLAME or ICT-FaceKit)')
