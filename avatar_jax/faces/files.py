"""Weight files of face models, whichever model they hold."""

from __future__ import annotations

import os

from avatar_jax.errors import UserError
from avatar_jax.faces import bfm, flame, ict
from avatar_jax.faces.bfm import BFM
from avatar_jax.faces.flame import FLAME
from avatar_jax.faces.ict import ICT
from avatar_jax.io.weights import load_weights

FACE_MODELS = {bfm.METHOD: BFM, flame.METHOD: FLAME, ict.METHOD: ICT}
"""Method of a weight file -> model."""


def load_face_model(path: str | os.PathLike) -> BFM | FLAME | ICT:
    """A face model, whichever it is.

    Raises:
        UserError: missing, damaged or foreign file, or one of something else.
    """
    method = load_weights(path).method
    if method not in FACE_MODELS:
        raise UserError(f"{os.fspath(path)}: holds weights of '{method}', not a face model")
    return FACE_MODELS[method].load(os.fspath(path))
