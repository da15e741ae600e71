"""LMDB environments, read-only: opened on first use in every process, with one-line errors.

The ``lmdb`` package is an extra (``pip install 'avatar-jax[lmdb]'``). Values are bytes; nothing in them is run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.images import decode_image

_ENVIRONMENTS: dict[tuple[int, str], Any] = {}


class LmdbFile:
    """Bytes by key.

    Args:
        folder: the environment's folder (with ``data.mdb``), or the file itself.

    Raises:
        UserError: nothing there, or not an LMDB environment.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._transaction: Any = None
        if not (self.folder.is_file() or (self.folder / 'data.mdb').is_file()):
            raise UserError(f'{folder}: holds no LMDB environment (data.mdb); give the folder that does')
        self._open()

    def _open(self) -> Any:
        if self._transaction is None:
            import lmdb

            # A process may open an environment only once, and a forked one must open it anew.
            key = (os.getpid(), os.path.realpath(self.folder))
            try:
                if key not in _ENVIRONMENTS:
                    # Without a lock file the data may lie on a read-only disk; nobody writes to it.
                    _ENVIRONMENTS[key] = lmdb.open(
                        str(self.folder),
                        subdir=self.folder.is_dir(),
                        readonly=True,
                        lock=False,
                        readahead=False,
                        meminit=False,
                        max_readers=64,
                    )
                self._transaction = _ENVIRONMENTS[key].begin(buffers=False)
            except lmdb.Error as e:
                raise UserError(f'{self.folder}: is not a readable LMDB environment ({e}); get the file again') from e
        return self._transaction

    def __getstate__(self):
        return {**self.__dict__, '_transaction': None}

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        import lmdb

        try:
            return self._open().get(key.encode())
        except lmdb.Error as e:
            raise UserError(f'{self.folder}: {key} cannot be read ({e}); the file is damaged, get it again') from e

    def need(self, key: str) -> bytes:
        """The value of a key. Raises ``UserError`` when it is not there."""
        value = self.get(key)
        if value is None:
            raise UserError(f'{self.folder}: has no entry {key!r}; the data are incomplete, or of another kind')
        return value

    def picture(self, key: str) -> np.ndarray:
        """[H,W,3] uint8 of an encoded picture. Raises ``UserError`` when it is missing or damaged."""
        return decode_image(self.need(key), f'{self.folder}: {key}').pixels

    def floats(self, key: str, columns: tuple[int, ...], rows: int | None = None) -> np.ndarray:
        """float32 array [rows, *columns] of raw bytes.

        Raises:
            UserError: missing, not that many numbers, or not finite.
        """
        data = self.need(key)
        width = 4 * int(np.prod(columns, dtype=np.int64))
        if not data or len(data) % width or (rows is not None and len(data) != rows * width):
            expected = f'{rows} x {width // 4}' if rows is not None else f'a multiple of {width // 4}'
            raise UserError(
                f'{self.folder}: {key} has {len(data) / 4:g} numbers, expected {expected}; the data are damaged'
            )
        array = np.frombuffer(data, np.float32).reshape(-1, *columns)
        if not np.isfinite(array).all():
            raise UserError(f'{self.folder}: {key} has values that are not finite; the data are damaged')
        return array
