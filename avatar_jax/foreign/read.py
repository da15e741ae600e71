"""One function for all files that weights come in; nothing in them is ever run.

    raw = read('ffhq512-128.pkl')
    raw.kind                                          # 'network-pickle'
    raw.tensors['G_ema/backbone.synthesis.b4.const']  # read-only numpy array, a view of the file
    raw.modules['G_ema']['init_kwargs']

| kind | files |
|---|---|
| ``network-pickle`` | pickles of modules with their source text (StyleGAN family) |
| ``torch-zip``, ``torch-stream`` | what ``torch.save`` writes since version 1.6, and before |
| ``pickle`` | numpy, scipy and chumpy arrays, torch tensors, plain values |
| ``npz``, ``npy``, ``mat``, ``safetensors`` | these |
| ``dlib`` | networks that the dlib library saved |

What a file is, is found out from its content; its name does not matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.foreign import dlib_files, mat_files, numpy_files, safetensors_files, torch_files, tree
from avatar_jax.foreign.archives import Archive
from avatar_jax.foreign.limits import MAX_BYTES, Budget, Damaged, Refused, Unreadable, shown


@dataclass
class RawFile:
    """The content of a file, unchanged: names, layouts and types are those of the file.

    Attributes:
        path: the file.
        kind: what it is, see above.
        tensors: every array by name. Names of nested containers are joined by ``/``, names inside of a module by ``.``
            (its state-dict key). Read-only; most are views of the file, some of each other (``np.shares_memory``), and
            they need not be contiguous or aligned. Keep a copy of what is to outlive the file.
        tree: the same arrays and all other values as nested dicts, lists, tuples and sets. Objects of classes that are
            not loaded are ``records.Record``, names ``pickle_values.Global``.
        modules: network pickles: module name (``G_ema``, ``G_ema/backbone.mapping``) -> ``class``, ``persistent``,
            ``init_args``, ``init_kwargs`` and ``attributes``.
        facts: what the container says about itself: ``version`` and ``byteorder`` (torch), the metadata of safetensors.
        partial: names of tensors that are views of only a part of the numbers stored for them, or use some of them more
            than once. Rare, and the sign of a damaged file where no other tensor uses the rest.
        notes: what is unusual, one line each: partial tensors, objects left out or that are not modules.
        sha256: of the file's bytes.
        size: of the file, in bytes.
    """

    path: Path
    kind: str
    tensors: dict[str, np.ndarray]
    tree: Any
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    partial: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: str = ''
    size: int = 0


def read(path: str | os.PathLike, *, max_bytes: int | None = None, many: int = 1) -> RawFile:
    """Reads a file of weights, of whatever kind, without running anything in it.

    Args:
        path: the file. It is mapped into memory; do not change it while its arrays are in use.
        max_bytes: the most that its tensors together may take up; None means 8 GiB.
        many: factor on the limits of how many values a file may have, for tables of many small records.

    Raises:
        Unreadable: it is of an unknown kind, damaged, too large, or holds something that is not data; one line that
            names the file and says what to do.
        OSError: it cannot be opened.
    """
    path = Path(path)
    data = _map(path)
    budget = Budget(len(data), MAX_BYTES if max_bytes is None else max_bytes, many)
    try:
        raw = _read(path, data, budget)
    except Damaged as error:
        raise Unreadable(f'{path}: {error}; the file is damaged or incomplete, get it again') from error
    except Refused as error:
        raise Unreadable(f'{path}: {error}; the file is not read, and nothing in it was run') from error
    raw.size = len(data)
    raw.sha256 = hashlib.sha256(data).hexdigest()
    return raw


def _map(path: Path) -> memoryview:
    """All bytes of a file, as they are needed."""
    with open(path, 'rb') as file:
        with contextlib.suppress(OSError, ValueError):  # file systems without mapping
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return memoryview(file.read())


_FOREIGN = (
    (b'\x89HDF\r\n\x1a\n', 'is an HDF5 file (MATLAB -v7.3 files are); save it with -v7, or as .npz'),
    (b'version https://git-lfs', 'is a placeholder of git-lfs, not the file itself; fetch it with "git lfs pull"'),
    (b'\x1f\x8b', 'is compressed with gzip; unpack it first'),
    (b'BZh', 'is compressed with bzip2; unpack it first'),
    (b'\xfd7zXZ', 'is compressed with xz; unpack it first'),
    (b'(\xb5/\xfd', 'is compressed with zstd; unpack it first'),
    (b'7z\xbc\xaf', 'is a 7z archive; unpack it first'),
    (b'Rar!', 'is a RAR archive; unpack it first'),
)


def _read(path: Path, data: memoryview, budget: Budget) -> RawFile:
    head = bytes(data[:512])
    for start, message in _FOREIGN:
        if head.startswith(start):
            raise Unreadable(f'{path}: {message}')
    if head.lstrip()[:9].lower() in (b'<!doctype', b'<html>') or head.lstrip().lower().startswith(b'<html'):
        raise Unreadable(f'{path}: is a web page, probably what a server sent instead of the file; download it again')
    if head[257:262] == b'ustar':
        raise Unreadable(
            f'{path}: is a tar archive; if it is a torch file from before version 0.1.10, save it again with a newer '
            'torch'
        )
    if head[:7] == b'MATLAB ' and head[7:10] == b'7.3':
        raise Unreadable(f'{path}: {_FOREIGN[0][1]}')
    if head.startswith(b'PK'):
        return _archive(path, data, budget)
    if head.startswith(numpy_files.MAGIC):
        return _plain(path, 'npy', numpy_files.read_npy(data, budget), budget)
    if mat_files.is_mat(data):
        return _plain(path, 'mat', mat_files.read_mat(data, budget), budget)
    if safetensors_files.is_safetensors(data):
        tensors, metadata = safetensors_files.read_safetensors(path, data, budget)
        return RawFile(path, 'safetensors', tensors, dict(tensors), facts=metadata)
    if dlib_files.is_dlib(data):
        tensors = dlib_files.read_dlib(data, budget)
        return RawFile(path, 'dlib', tensors, dict(tensors))
    if torch_files.is_stream(data):
        content = torch_files.read_stream(data, budget)
        return _plain(path, 'torch-stream', content.value, budget, content.facts)
    if not _maybe_pickle(head):
        raise Unreadable(
            f'{path}: is none of the files that weights come in; known are torch files, pickles, .npz, .npy, .mat, '
            '.safetensors and networks of dlib'
        )
    content = torch_files.read_pickle(data, budget)
    return _plain(path, 'network-pickle' if content.persistence else 'pickle', content.value, budget)


def _archive(path: Path, data: memoryview, budget: Budget) -> RawFile:
    archive = Archive(data, budget)
    if torch_files.is_torch_archive(archive):
        content = torch_files.read_archive(archive, budget)
        return _plain(path, 'torch-zip', content.value, budget, content.facts)
    if numpy_files.is_npz(archive):
        return _plain(path, 'npz', numpy_files.read_npz(archive, budget), budget)
    first = ', '.join(shown(name, 40) for name in list(archive.members)[:3])
    raise Unreadable(f'{path}: is a zip archive, but neither a torch file nor an .npz ({first}); unpack it first')


def _plain(path: Path, kind: str, value: Any, budget: Budget, facts: dict[str, str] | None = None) -> RawFile:
    """Finishes what a reader built and names the tensors."""
    finished = tree.finish(value, budget)
    flat = tree.flatten(finished.tree)
    notes = list(finished.notes)
    partial = {id(array) for array in finished.partial}
    named = [name for name, array in flat.tensors.items() if id(array) in partial]
    if named:
        more = ', ...' if len(named) > 5 else ''
        listed = ', '.join(shown(name) for name in named[:5])
        notes.append(f'{len(named)} tensors use only a part of the numbers stored for them: {listed}{more}')
    if flat.others:
        more = ', ...' if len(flat.others) > 5 else ''
        notes.append(f'{len(flat.others)} objects are not modules: {shown(", ".join(flat.others[:5]), 400)}{more}')
    return RawFile(path, kind, flat.tensors, finished.tree, flat.modules, facts or {}, named, notes)


def _maybe_pickle(head: bytes) -> bool:
    """Whether a file may be a pickle: it starts with the instruction that every protocol from 2 on starts with, or with
    one of those that start a container, a name or an array in the older ones."""
    if head[:1] == b'\x80':
        return head[1:2] in (b'\2', b'\3', b'\4', b'\5')
    return head[:1] in (b'(', b']', b'}', b'c')
