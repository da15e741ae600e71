"""A strict reader of zip archives.

Members are found through the table at the end of the archive and checked against the header in front of each of them
and against their checksum. Archives that say one thing in one place and another elsewhere, members that overlap or
share a name, names that lead out of a folder, encryption and compression other than deflate are refused; compressed
members are inflated up to the announced size and no further. Nothing is ever written to the disk.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass

from avatar_jax.foreign.limits import Budget, Damaged, Refused, shown

_END = struct.Struct('<4sHHHHIIH')
_END64 = struct.Struct('<4sQHHIIQQQQ')
_LOCATOR64 = struct.Struct('<4sIQI')
_ENTRY = struct.Struct('<4sHHHHHHIIIHHHHHII')
_LOCAL = struct.Struct('<4sHHHHHIIIHH')
_MAX_MEMBERS = 100_000
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True)
class Member:
    """A file of an archive. ``start`` and ``packed`` are where its bytes are and how many, ``size`` those inflated."""

    name: str
    compression: int
    crc: int
    start: int
    packed: int
    size: int


class Archive:
    """An open archive.

    Args:
        data: all bytes of the file.
        budget: pays for inflated members.

    Raises:
        Damaged: the archive contradicts itself.
        Refused: it has members that are not read.
    """

    def __init__(self, data: memoryview, budget: Budget):
        self.data = data
        self.budget = budget
        self.members: dict[str, Member] = {}
        start, size, number = self._table()
        self._entries(start, size, number)

    def _table(self) -> tuple[int, int, int]:
        """Where the table of members is, its size and how many there are."""
        tail_start = max(len(self.data) - (1 << 16) - _END.size, 0)
        tail = bytes(self.data[tail_start:])
        at = tail.rfind(b'PK\x05\x06')
        if at < 0 or at + _END.size > len(tail):
            raise Damaged('the table at the end of the zip archive is missing')
        _, disk, table_disk, here, number, size, start, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment != len(tail):
            raise Damaged('the zip archive goes on after its end')
        end = tail_start + at
        locator = end - _LOCATOR64.size
        if locator >= 0 and self.data[locator : locator + 4] == b'PK\x06\x07':
            _, disk, end, disks = _LOCATOR64.unpack_from(self.data, locator)
            if end + _END64.size > locator or self.data[end : end + 4] != b'PK\x06\x06' or disks > 1:
                raise Damaged('the table at the end of the zip archive is not valid')
            _, record, _, _, disk, table_disk, here, number, size, start = _END64.unpack_from(self.data, end)
            if end + 12 + record != locator:
                raise Damaged('the table at the end of the zip archive is not valid')
        if disk or table_disk or here != number:
            raise Refused('is one part of a zip archive of several parts')
        if start + size != end:
            raise Damaged('the table at the end of the zip archive is not where it should be')
        if number > _MAX_MEMBERS or number * _ENTRY.size > size:
            raise Damaged(f'the zip archive announces {number} members, which it cannot have')
        return start, size, number

    def _entries(self, start: int, size: int, number: int) -> None:
        position, end = start, start + size
        spans = []
        for _ in range(number):
            if position + _ENTRY.size > end:
                raise Damaged('the table of the zip archive ends too early')
            entry = _ENTRY.unpack_from(self.data, position)
            signature, _, _, flags, compression, _, _, crc, packed, full, names, extras, comment, disk, _, _, at = entry
            name_start = position + _ENTRY.size
            position = name_start + names + extras + comment
            if signature != b'PK\x01\x02' or position > end:
                raise Damaged('the table of the zip archive is not valid')
            raw_name = bytes(self.data[name_start : name_start + names])
            extra = bytes(self.data[name_start + names : name_start + names + extras])
            full, packed, at = _wide(extra, full, packed, at)
            name = _checked_name(raw_name)
            if name in self.members:
                raise Refused(f'the zip archive has two members of the name {shown(name)}')
            if flags & 0x2061 or disk:  # encrypted, patched, strong encryption, hidden headers
                raise Refused(f'the zip archive has an encrypted member ({shown(name)})')
            if compression not in (_STORED, _DEFLATED):
                raise Refused(f'the zip archive has a member with an unusual compression ({shown(name)})')
            begin = self._local(raw_name, flags, compression, crc, packed, full, at, start)
            if compression == _STORED and packed != full:
                raise Damaged(f'the sizes of {shown(name)} in the zip archive disagree')
            # Deflate shrinks at most 1032-fold.
            if full > 1032 * packed + 64:
                raise Damaged(f'{shown(name)} in the zip archive announces more than its bytes can hold')
            if name.endswith('/') and full:
                raise Damaged(f'{shown(name)} in the zip archive is a folder with content')
            self.members[name] = Member(name, compression, crc, begin, packed, full)
            spans.append((at, begin + packed))
        if position != end:
            raise Damaged('the table of the zip archive is longer than its members')
        spans.sort()
        for (_, before), (after, _) in itertools.pairwise(spans):
            if after < before:
                raise Refused('the zip archive has members that overlap')

    def _local(
        self, raw_name: bytes, flags: int, compression: int, crc: int, packed: int, full: int, at: int, table: int
    ) -> int:
        """Checks the header in front of a member; gives where its bytes start."""
        name = shown(raw_name.decode('latin-1'))
        if at + _LOCAL.size > table:
            raise Damaged(f'{name} in the zip archive is not where it should be')
        header = _LOCAL.unpack_from(self.data, at)
        signature, _, local_flags, local_compression, _, _, local_crc, local_packed, local_full, names, extras = header
        begin = at + _LOCAL.size + names + extras
        if signature != b'PK\x03\x04' or begin + packed > table:
            raise Damaged(f'{name} in the zip archive is not where it should be')
        extra_start = at + _LOCAL.size + names
        if bytes(self.data[at + _LOCAL.size : extra_start]) != raw_name or local_compression != compression:
            raise Damaged(f'{name} in the zip archive has another name or kind in its own header')
        if (local_flags ^ flags) & ~0x0800:  # some writers mark names as UTF-8 in one place only
            raise Damaged(f'{name} in the zip archive has another kind in its own header')
        extra = bytes(self.data[extra_start:begin])
        local_full, local_packed, _ = _wide(extra, local_full, local_packed, 0, tolerant=True)
        same = (local_crc, local_packed, local_full) == (crc, packed, full)
        # With flag 8 these numbers follow the member, and stand here as zeros or not at all.
        if not same and not flags & 8:
            raise Damaged(f'{name} in the zip archive has other sizes in its own header')
        return begin

    def read(self, name: str) -> memoryview:
        """The checked content of a member; a view of the file if it is not compressed.

        Raises:
            Damaged: there is no such member, or its bytes do not agree with its checksum.
            Refused: it would take too much memory.
        """
        member = self.members.get(name)
        if member is None:
            raise Damaged(f'the zip archive lacks {shown(name)}')
        content = self.data[member.start : member.start + member.packed]
        if member.compression == _DEFLATED:
            content = memoryview(inflate(content, member.size, -15, self.budget, shown(name)))
        if zlib.crc32(content) != member.crc:
            raise Damaged(f'the checksum of {shown(name)} in the zip archive is wrong')
        return content


def inflate(packed: memoryview, size: int, window: int, budget: Budget, name: str) -> bytes:
    """Inflates ``packed`` to exactly ``size`` bytes.

    Args:
        packed: all of the compressed bytes.
        size: the announced size.
        window: zlib's ``wbits``: -15 for members of zip archives, 15 with zlib's own header and checksum.
        budget: pays for the result.
        name: what it is, for messages.

    Raises:
        Damaged: it is not compressed data, or has another size.
        Refused: it would take too much memory.
    """
    if size > 1032 * len(packed) + 64:
        raise Damaged(f'{name} announces more than its bytes can hold')
    budget.allocate(2 * size, name)  # the pieces, and all of them together
    machine = zlib.decompressobj(window)
    try:
        content = machine.decompress(packed, size + 1)
        if len(content) == size and not machine.eof:
            # The end marker may still be ahead when all bytes are out.
            content += machine.decompress(machine.unconsumed_tail, 1)
    except zlib.error as error:
        raise Damaged(f'{name} is not valid compressed data') from error
    if len(content) != size or not machine.eof or machine.unused_data:
        raise Damaged(f'{name} has another size than it announces')
    return content


def _wide(extra: bytes, full: int, packed: int, at: int, tolerant: bool = False) -> tuple[int, int, int]:
    """Sizes and place of a member, from the 64-bit field where the 32-bit ones are full."""
    position, fields = 0, None
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from('<HH', extra, position)
        if kind == 1 and position + 4 + size <= len(extra):
            if fields is not None:
                raise Damaged('a member of the zip archive has two sizes')
            fields = extra[position + 4 : position + 4 + size]
        position += 4 + size
    values = [full, packed, at]
    wanted = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
    if not wanted or (fields is None and tolerant):
        return full, packed, at
    if fields is None or len(fields) < 8 * len(wanted):
        raise Damaged('a member of the zip archive lacks its size')
    for place, index in enumerate(wanted):
        values[index] = int.from_bytes(fields[8 * place : 8 * place + 8], 'little')
    return values[0], values[1], values[2]


def _checked_name(raw: bytes) -> str:
    """The name of a member.

    Raises:
        Refused: it would lead out of a folder, or is no plain name.
    """
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise Refused('the zip archive has a member whose name is not a text') from error
    parts = name.split('/')
    if not name or name[0] == '/' or '\\' in name or '\0' in name or '..' in parts or '.' in parts or ':' in parts[0]:
        raise Refused(f'the zip archive has a member with a name that leads elsewhere ({shown(repr(name))})')
    return name
