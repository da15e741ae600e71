"""A strict reader of ``.safetensors`` files.

A header in JSON gives type, shape and place of every tensor. The safetensors library checks that the places fit the
shapes, follow each other without gap or overlap and end with the file. What it lets pass is checked here: headers of up
to 100 MB, names that occur twice, entries that mean nothing, empty tensors of absurd shapes, truth values of 2 to 255,
and more numbers than the caller allows. The tensors are views of the file, where the library would copy them. Weight
files of this project, which have this format too, also carry a checksum, which is compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import ml_dtypes
import numpy as np

from avatar_jax.foreign.limits import Budget, Damaged, Refused, shape_size, shown
from avatar_jax.foreign.records import check_values

_MAX_HEADER = 8 << 20  # about 80,000 tensors
_DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
    'C64': np.complex64,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U64': np.uint64,
    'U32': np.uint32,
    'U16': np.uint16,
    'U8': np.uint8,
    'BOOL': np.bool_,
}


def is_safetensors(data: memoryview) -> bool:
    """Whether bytes start like the length of a header and the header."""
    return len(data) > 9 and data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < 1 << 40


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Damaged('the header names something twice')
    return found


def _no_constant(text: str) -> None:
    raise Damaged(f'the header holds {text}')


def _header(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(data[:8], 'little')
    if length > len(data) - 8:
        raise Damaged(f'announces a header of {length} bytes where {len(data) - 8} are left')
    if length > _MAX_HEADER:
        raise Refused(f'has a header of {length} bytes, far more than weights need')
    try:
        table = json.loads(bytes(data[8 : 8 + length]).decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged('the header is not valid JSON') from error
    if not isinstance(table, dict):
        raise Damaged('the header is not a table')
    return table, data[8 + length :]


def _verify_own(metadata: dict[str, str], table: dict[str, Any], data: memoryview) -> None:
    """Compares the checksum that ``avatar_jax.io.weights`` stores, if there is one."""
    if 'avatar_jax' not in metadata:
        return
    try:
        record = json.loads(metadata['avatar_jax'])
    except (ValueError, RecursionError) as error:
        raise Damaged('the record of avatar_jax is not valid JSON') from error
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    digest.update(data)
    if not isinstance(record, dict) or record.get('sha256') != digest.hexdigest():
        raise Damaged('the checksum is wrong')


def _validate(path: str | os.PathLike) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='np', backend='pread'):  # reads the header alone
            pass
    except SafetensorError as error:
        reason = str(error).removeprefix('Error while deserializing header: ')
        raise Damaged(f'does not keep to the safetensors format ({shown(reason)})') from error


def read_safetensors(
    path: str | os.PathLike, data: memoryview, budget: Budget
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, in the order of the header, and the metadata.

    Args:
        path: the file.
        data: all of its bytes.
        budget: pays for what is allocated.

    Raises:
        Damaged, Refused: see ``avatar_jax.foreign.limits``.
        OSError: the file cannot be opened.
    """
    table, data = _header(data)
    for name, entry in table.items():
        if name != '__metadata__' and (not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}):
            raise Damaged(f'{shown(name)} is not described as a tensor')
    _validate(path)
    metadata = table.pop('__metadata__', None) or {}
    _verify_own(metadata, table, data)
    tensors = {}
    for name, entry in table.items():
        code, shape, (start, stop) = entry['dtype'], entry['shape'], entry['data_offsets']
        if not isinstance(code, str) or code not in _DTYPES:
            raise Refused(f'{shown(name)} has the type {shown(repr(code), 40)}, which is not read')
        shape_size(shape, shown(name))
        budget.tensor(stop - start, 'the tensors in it')
        raw = np.frombuffer(data[start:stop], np.uint8) if stop > start else np.zeros(0, np.uint8)
        flat = raw.view(_DTYPES[code])
        check_values(flat, shown(name))
        tensors[name] = flat.reshape(shape)
        tensors[name].flags.writeable = False
    return tensors, metadata
