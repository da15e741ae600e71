"""Torch files: the zip archive, the older stream of pickles, and network pickles that hold such files per tensor.

| container | recognised by | numbers |
|---|---|---|
| zip archive | members ``<name>/data.pkl`` and ``<name>/data/<key>`` | one member per storage, with checksum |
| stream | a pickle of a magic number first | behind the pickles, each after its count |
| plain pickle | tensors as byte strings that are streams or archives themselves | within the pickle |

A tensor is a view (offset, shape, strides) of a storage, and several tensors may be views of one; they share their
numbers here too. Numbers become native byte order; their type is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from avatar_jax.foreign.archives import Archive
from avatar_jax.foreign.constructors import Inert
from avatar_jax.foreign.limits import Budget, Damaged, Refused, is_count, shown
from avatar_jax.foreign.pickle_reader import PickleReader
from avatar_jax.foreign.pickle_values import Global, Value
from avatar_jax.foreign.records import Storage, check_values, storage_dtype

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


@dataclass
class Content:
    """What a torch file or a pickle holds: the value, still with references, and facts about the container."""

    value: Any
    facts: dict[str, Any]
    persistence: bool = False


def _fill(storage: Storage, raw: memoryview, little: bool, budget: Budget) -> None:
    """Gives a storage its numbers, in native byte order."""
    width = storage.dtype.itemsize
    if len(raw) != storage.count * width:
        raise Damaged(f'{storage.count} numbers of {width} bytes are announced, and {len(raw)} bytes stored')
    data = np.frombuffer(raw, np.uint8) if len(raw) else np.zeros(0, np.uint8)
    part = width // 2 if storage.dtype.kind == 'c' else width
    if not little and part > 1:
        budget.allocate(len(raw), 'the tensors in it')
        data = data.view(f'>u{part}').astype(f'=u{part}').view(np.uint8)
    check_values(data.view(storage.dtype), 'a tensor')
    data.flags.writeable = False
    storage.data = data


class _Referring(Inert):
    """Constructors of a pickle whose tensors are stored beside it, under keys."""

    def __init__(self, budget: Budget, load_storage: Any = None, only_storage: bool = False):
        super().__init__(budget, load_storage)
        self.only_storage = only_storage
        self.storages: dict[str, Storage] = {}
        self.views: dict[tuple[str, str], Storage] = {}
        self.pending: list[tuple[Storage, Storage, int]] = []  # a view, what it is of, its offset in bytes

    def call(self, what: Global, arguments: tuple) -> Value:
        if self.only_storage:
            raise Refused(f'calls {what} where only numbers can be')
        return super().call(what, arguments)

    def persistent(self, identifier: Value) -> Storage:
        if type(identifier) is not tuple or not identifier or type(identifier[0]) is not str:
            raise Damaged('refers to data outside of the pickle in an unknown way')
        if identifier[0] == 'module':
            raise Refused('holds whole modules, with source text to run; save the state dict instead')
        if identifier[0] != 'storage' or len(identifier) not in (5, 6):
            raise Damaged(f'refers to data outside of the pickle in an unknown way ({shown(repr(identifier[0]))})')
        kind, key, location, count, *view = identifier[1:]
        dtype = storage_dtype(kind)
        if type(key) is not str or type(location) is not str or not is_count(count) or len(key) > 200:
            raise Damaged('a tensor refers to its numbers in an impossible way')
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(dtype, count)
            self.found(key, storage)
        if (storage.dtype, storage.count) != (dtype, count):
            raise Damaged(f'the numbers {shown(key)} are announced in two ways')
        return storage if not view or view[0] is None else self._view(key, storage, view[0])

    def found(self, key: str, storage: Storage) -> None:
        """Called when a key occurs for the first time."""

    def _view(self, key: str, storage: Storage, view: Any) -> Storage:
        """A storage that is a part of another one (files of the first torch versions)."""
        if type(view) is not tuple or len(view) != 3 or type(view[0]) is not str:
            raise Damaged('a tensor refers to its numbers in an impossible way')
        name, offset, size = view
        if not is_count(offset) or not is_count(size) or offset + size > storage.count:
            raise Damaged(f'a part of the numbers {shown(key)} reaches beyond them')
        part = self.views.get((key, name))
        if part is None:
            part = self.views[key, name] = Storage(storage.dtype, size)
            self.pending.append((part, storage, offset * storage.dtype.itemsize))
        elif part.count != size:
            raise Damaged(f'a part of the numbers {shown(key)} is announced in two ways')
        return part

    def fill_views(self) -> None:
        for part, storage, start in self.pending:
            part.data = storage.data[start : start + part.count * part.dtype.itemsize]


# The zip archive.


def is_torch_archive(archive: Archive) -> bool:
    """Whether an archive has the members of a torch file."""
    return any(name == 'data.pkl' or name.endswith('/data.pkl') for name in archive.members)


class _Zipped(_Referring):
    def __init__(self, archive: Archive, prefix: str, little: bool, budget: Budget, only_storage: bool):
        super().__init__(budget, None if only_storage else embedded_storage(budget), only_storage)
        self.archive, self.prefix, self.little = archive, prefix, little

    def found(self, key: str, storage: Storage) -> None:
        name = f'{self.prefix}data/{key}'
        member = self.archive.members.get(name)
        if member is not None and member.compression:
            raise Refused(f'{shown(name)} in the zip archive is compressed; torch never does that')
        _fill(storage, self.archive.read(name), self.little, self.budget)


def read_archive(archive: Archive, budget: Budget, only_storage: bool = False) -> Content:
    """Reads a torch zip archive.

    Args:
        archive: the archive.
        budget: pays for what is allocated.
        only_storage: it is the numbers of one tensor, and must not hold anything else.

    Raises:
        Damaged, Refused: see ``avatar_jax.foreign.limits``.
    """
    pickles = [name for name in archive.members if name == 'data.pkl' or name.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise Refused('the zip archive holds several torch files')
    prefix = pickles[0].removesuffix('data.pkl')
    if f'{prefix}constants.pkl' in archive.members or any(n.startswith(f'{prefix}code/') for n in archive.members):
        raise Refused('is a TorchScript program, not a file of weights; save its state dict instead')
    facts = {}
    for fact in ('version', 'byteorder'):
        if f'{prefix}{fact}' in archive.members:
            raw = bytes(archive.read(f'{prefix}{fact}')[:32])
            facts[fact] = raw.decode('ascii', 'replace').strip()
    if facts.get('byteorder', 'little') not in ('little', 'big'):
        raise Damaged(f'has an unknown byte order ({shown(facts["byteorder"])})')
    little = facts.get('byteorder', 'little') == 'little'
    constructors = _Zipped(archive, prefix, little, budget, only_storage)
    program = archive.read(pickles[0])
    machine = PickleReader(program, constructors, budget)
    value = machine.run()
    if machine.position != len(program):
        raise Damaged('data.pkl in the zip archive goes on after its end')
    constructors.fill_views()
    return Content(value, facts)


# The stream.


def is_stream(data: memoryview) -> bool:
    """Whether bytes start with the magic number of torch's older format."""
    for head in (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05', b''):
        pickled = head + b'\x8a\x0a' + MAGIC.to_bytes(10, 'little') + b'.'
        if bytes(data[: len(pickled)]) == pickled:
            return True
    framed = bytes(data[:32])
    return framed[:1] == b'\x80' and framed[2:3] == b'\x95' and MAGIC.to_bytes(10, 'little') in framed


def _simple(data: memoryview, budget: Budget) -> tuple[Any, memoryview]:
    """A pickle of plain values at the start of ``data``, and what follows it."""
    machine = PickleReader(data, Inert(budget), budget)
    return machine.run(), data[machine.position :]


def read_stream(data: memoryview, budget: Budget, only_storage: bool = False) -> Content:
    """Reads torch's older format: five pickles, then for each storage its count and its numbers.

    Args:
        data: all of its bytes.
        budget: pays for what is allocated.
        only_storage: it is the numbers of one tensor, and must not hold anything else.

    Raises:
        Damaged, Refused: see ``avatar_jax.foreign.limits``.
    """
    magic, data = _simple(data, budget)
    protocol, data = _simple(data, budget)
    if magic != MAGIC or type(magic) is not int or protocol != _PROTOCOL:
        raise Damaged('does not start with the numbers of a torch file')
    system, data = _simple(data, budget)
    if not isinstance(system, dict) or type(system.get('little_endian')) is not bool:
        raise Damaged('does not tell its byte order')
    if not system['little_endian']:
        raise Refused('was written on a machine with another byte order; save it again with a newer torch')
    constructors = _Referring(budget, None if only_storage else embedded_storage(budget), only_storage)
    machine = PickleReader(data, constructors, budget)
    value = machine.run()
    keys, data = _simple(data[machine.position :], budget)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise Damaged('lacks the list of its tensors')
    if len(set(keys)) != len(keys) or set(keys) != set(constructors.storages):
        raise Damaged('the list of its tensors differs from the tensors')
    for key in keys:
        storage = constructors.storages[key]
        if len(data) < 8:
            raise Damaged(f'ends before the numbers {shown(key)}')
        count = int.from_bytes(data[:8], 'little')
        size = storage.count * storage.dtype.itemsize
        if count != storage.count:
            raise Damaged(f'the numbers {shown(key)} are {storage.count} in one place and {count} in another')
        if size > len(data) - 8:
            raise Damaged(f'ends within the numbers {shown(key)}')
        _fill(storage, data[8 : 8 + size], True, budget)
        data = data[8 + size :]
    if len(data):
        raise Damaged(f'goes on for {len(data)} bytes after its last tensor')
    constructors.fill_views()
    return Content(value, {'byteorder': 'little'})


# Pickles with tensors in them.


def embedded_storage(budget: Budget) -> Callable[[memoryview], Storage]:
    """A function that reads the numbers of one tensor from the torch file that a pickle holds for it."""

    def load(raw: memoryview) -> Storage:
        if bytes(raw[:4]) == b'PK\x03\x04':
            content = read_archive(Archive(raw, budget), budget, only_storage=True)
        else:
            content = read_stream(raw, budget, only_storage=True)
        if type(content.value) is not Storage:
            raise Refused('holds a torch file where only numbers can be')
        return content.value

    return load


def read_pickle(data: memoryview, budget: Budget) -> Content:
    """Reads a plain pickle, also one with tensors or with the persistent modules of a network file.

    Raises:
        Damaged, Refused: see ``avatar_jax.foreign.limits``.
    """
    constructors = Inert(budget, embedded_storage(budget))
    machine = PickleReader(data, constructors, budget)
    value = machine.run()
    if machine.position != len(data):
        raise Damaged(f'goes on for {len(data) - machine.position} bytes after the end of its pickle')
    return Content(value, {}, constructors.persistence)
