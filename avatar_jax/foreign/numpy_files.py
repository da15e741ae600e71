"""numpy's own files: ``.npy`` and ``.npz``.

Arrays of objects hold a pickle, which is read like any other (``avatar_jax.foreign.pickle_reader``).
"""

from __future__ import annotations

import re
from typing import Any

from avatar_jax.foreign.archives import Archive
from avatar_jax.foreign.limits import Budget, Damaged, Refused, shape_size, shown
from avatar_jax.foreign.pickle_values import Value
from avatar_jax.foreign.records import array_from_bytes, numpy_dtype
from avatar_jax.foreign.torch_files import read_pickle

MAGIC = b'\x93NUMPY'
_MAX_HEADER = 1 << 16
_HEADER = re.compile(
    r"\{\s*'descr':\s*'([<>|=])(\w{1,8})',\s*'fortran_order':\s*(False|True),"
    r"\s*'shape':\s*\(((?:\s*\d{1,15}L?\s*,)*\s*(?:\d{1,15}L?)?)\s*\),?\s*\}\s*",
    re.ASCII,
)


def read_npy(data: memoryview, budget: Budget) -> Value:
    """An array, or for an array of objects what its pickle holds (with references, see ``tree.finish``).

    Args:
        data: all bytes of the file.
        budget: pays for what is allocated.

    Raises:
        Damaged, Refused: see ``avatar_jax.foreign.limits``.
    """
    head = bytes(data[:12])
    if len(head) < 10 or not head.startswith(MAGIC) or head[6] not in (1, 2, 3) or head[7]:
        raise Damaged('is not a numpy file')
    start = 10 if head[6] == 1 else 12
    length = int.from_bytes(head[8:start], 'little')
    if length > min(_MAX_HEADER, len(data) - start):
        raise Damaged('the header of a numpy file is longer than it can be')
    match = _HEADER.fullmatch(bytes(data[start : start + length]).decode('latin-1'))
    if not match:
        raise Refused('the header of a numpy file describes no plain array')
    order, code, fortran, sides = match.groups()
    shape = tuple(int(n.strip().rstrip('L')) for n in sides.split(',') if n.strip())
    shape_size(shape, 'an array')
    dtype = numpy_dtype(code)
    dtype.order = order
    data = data[start + length :]
    if dtype.code == 'O':
        return read_pickle(data, budget).value
    budget.tensor(len(data), 'the arrays in it')
    return array_from_bytes(data, dtype, shape, fortran == 'True', budget, 'the array')


def is_npz(archive: Archive) -> bool:
    """Whether all members of an archive are numpy files."""
    return bool(archive.members) and all(name.endswith('.npy') for name in archive.members)


def read_npz(archive: Archive, budget: Budget) -> dict[str, Any]:
    """The arrays of an archive by name.

    Raises:
        Damaged, Refused: see ``avatar_jax.foreign.limits``.
    """
    found = {}
    for name in archive.members:
        try:
            found[name.removesuffix('.npy')] = read_npy(archive.read(name), budget)
        except (Damaged, Refused) as error:
            raise type(error)(f'{shown(name)}: {error}') from error
    return found
