"""Files of named arrays in the safetensors format: the one place of the project that writes and opens them.

The safetensors library does both; this module adds what it leaves to its callers. Files of other programs are read by
``avatar_jax.foreign``, which uses the library too and trusts a header less.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from avatar_jax.io import atomic

CODES = {
    np.dtype(np.int64): 'I64',
    np.dtype(np.float64): 'F64',
    np.dtype(np.float32): 'F32',
    np.dtype(np.int32): 'I32',
    np.dtype(ml_dtypes.bfloat16): 'BF16',
    np.dtype(np.float16): 'F16',
    np.dtype(np.int16): 'I16',
    np.dtype(np.int8): 'I8',
    np.dtype(np.uint8): 'U8',
    np.dtype(np.bool_): 'BOOL',
}
"""Types that are written, in the order in which the library puts them into a file, and their names there."""

Table = dict[str, dict[str, Any]]
"""Name -> ``dtype``, ``shape`` and ``data_offsets`` (first byte and end, counted behind the header), as in a header."""


class Damaged(Exception):
    """The file is incomplete, contradicts itself, or has another format."""


@dataclass(frozen=True)
class TensorFile:
    """The content of a file.

    Attributes:
        tensors: name -> array, in the order of the header.
        metadata: texts by name.
        table: the header.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    table: Table


def layout(tensors: Mapping[str, np.ndarray]) -> Table:
    """Where the library puts arrays: by type, and by name within a type.

    Raises:
        ValueError: an array of a type that is not written.
    """
    rank = {dtype: i for i, dtype in enumerate(CODES)}
    for name, value in tensors.items():
        if value.dtype not in rank:
            raise ValueError(f'{name}: {value.dtype} cannot be stored in a safetensors file')
    table, position = {}, 0
    for name in sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name)):
        value = tensors[name]
        table[name] = {
            'dtype': CODES[value.dtype],
            'shape': list(value.shape),
            'data_offsets': [position, position + value.nbytes],
        }
        position += value.nbytes
    return table


def write(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Callable[[Table], Mapping[str, str]]
) -> None:
    """Writes a file, completely or not at all.

    Args:
        path: the file.
        tensors: arrays of the types in ``CODES``.
        metadata: gives the texts to be stored for the table of the file, which they may be a checksum of.

    Raises:
        UserError: the place cannot be written to.
        ValueError: an array of another type.
    """
    # The library writes the memory of an array as it lies there, also where a view of it has another order.
    tensors = {name: np.asarray(value, order='C') for name, value in tensors.items()}
    table = layout(tensors)
    with atomic.atomic_path(path) as temporary:
        _save(temporary, tensors, metadata(table))
        written = _table(temporary)
        if written != table:  # a version of the library that orders arrays otherwise
            _save(temporary, tensors, metadata(written))


def _save(path: Path, tensors: dict[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, dict(metadata))
    except SafetensorError as error:  # the library has no other class for a full disk
        number = re.search(r'os error (\d+)', str(error))
        raise OSError(int(number.group(1)) if number else errno.EIO, str(error), str(path)) from error
    path.chmod(mode)  # the library replaces the file by one that only its owner may read


def _table(path: Path) -> Table:
    """The header of a file that the library has opened: it does not tell the places of arrays."""
    with open(path, 'rb') as file:
        table = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
    table.pop('__metadata__', None)
    return table


def read(path: str | os.PathLike) -> TensorFile:
    """Reads a whole file.

    Raises:
        Damaged: it is incomplete, contradicts itself, or has another format.
        OSError: it cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='np', backend='pread') as file:
            table = _table(Path(path))
            return TensorFile({name: file.get_tensor(name) for name in table}, file.metadata() or {}, table)
    except SafetensorError as error:
        raise Damaged(str(error)) from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts in a file, from its header alone. Raises like ``read``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='np', backend='pread') as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise Damaged(str(error)) from error
