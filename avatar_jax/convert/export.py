"""The other way: weight files of this project -> safetensors with the original key names and layouts.

The metadata of the file say what it holds and with which configuration, so importing it again gives the same weight
file. Copies and constant buffers that the original programs expect are written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from avatar_jax.convert.base import ForeignFile
from avatar_jax.convert.recognise import EXPORT_KEY
from avatar_jax.errors import UserError
from avatar_jax.io import tensor_files
from avatar_jax.io.weights import Weights, load_weights


def export(path: str | os.PathLike, to: str | os.PathLike, kinds: Sequence[ForeignFile]) -> Path:
    """Writes ``<name>.original.safetensors`` into the folder ``to``; returns its path.

    Raises:
        UserError: not a weight file of something that has an original form, or the place cannot be written to.
    """
    weights = load_weights(path)
    kind = kind_of(weights, kinds)
    target = Path(to) / f'{Path(path).stem}.original.safetensors'
    metadata = {'format': 'pt', EXPORT_KEY: json.dumps({'kind': kind.name, 'config': weights.config})}
    tensor_files.write(target, kind.export(weights), lambda table: metadata)
    return target


def kind_of(weights: Weights, kinds: Sequence[ForeignFile]) -> ForeignFile:
    """The kind of file that a weight file was. Raises ``UserError`` if it has no original form."""
    for kind in kinds:
        if kind.method == weights.method and kind.export is not None:
            return kind
    raise UserError(f"{weights.path}: '{weights.method}' is this project's own; it has no original form to export to")
