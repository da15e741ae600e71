"""Reference numbers for the parity tests: where they are, how a file is read, which test owns which kind of file.

Every ``.npz`` holds ``param/*``, ``in/*``, ``out/*``, ``grad/*`` and a JSON ``config`` that says how to rebuild the
computation. A file's *kind* is its name up to the variant: ``triplane_e2e_8xdc.npz`` is of kind ``triplane_e2e``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

_COMMITTED = Path(__file__).parent / 'data'
_SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'golden'

KINDS: dict[str, dict[str, str]] = {}  # folder -> kind -> test name


def root() -> Path:
    """Folder with the reference numbers: ``$AVATAR_GOLDEN``, else ``../shared/golden``, else the committed subset."""
    override = os.environ.get('AVATAR_GOLDEN')
    if override:
        path = Path(override)
        if not path.is_dir():
            raise pytest.UsageError(f'AVATAR_GOLDEN={override}: no such folder')
        return path
    return _SHARED if _SHARED.is_dir() else _COMMITTED


def golden_files(folder: str, suffix: str = '.npz') -> list[Path]:
    """All reference files of one folder, sorted by name; empty when the folder is absent."""
    path = root() / folder
    return sorted(path.glob(f'*{suffix}')) if path.is_dir() else []


def kind_of(folder: str, stem: str) -> str | None:
    """The longest registered kind that ``stem`` equals or extends by ``_variant``; None if no test knows it."""
    known = [k for k in KINDS.get(folder, {}) if stem == k or stem.startswith(k + '_')]
    return max(known, key=len, default=None)


class _Tracked(dict):
    """A dict that remembers which entries were read, so that a test cannot silently skip one."""

    def __init__(self, *args):
        super().__init__(*args)
        self.used: set[str] = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        return self[key] if key in self else default  # noqa: SIM401 (it would call itself)

    def items(self) -> Iterator:  # reading all is using all
        self.used.update(self)
        return super().items()

    def unused(self) -> list[str]:
        return sorted(set(self) - self.used)


class Golden:
    """One reference file: ``config`` (dict) and the arrays of its four sections, keyed without the prefix."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        self.param, self.inp, self.out, self.grad = {}, {}, _Tracked(), _Tracked()
        sections = {'param': self.param, 'in': self.inp, 'out': self.out, 'grad': self.grad}
        self.other: dict[str, np.ndarray] = {}
        with np.load(path) as data:
            self.config = json.loads(str(data['config'])) if 'config' in data.files else {}
            for key in data.files:
                section, _, rest = key.partition('/')
                if section in sections:
                    dict.__setitem__(sections[section], rest, data[key])
                elif key != 'config':
                    self.other[key] = data[key]

    def check_all_used(self, *, ignore: tuple[str, ...] = ()) -> None:
        """Fails when an ``out/`` or ``grad/`` array of the file was never compared."""
        left = [f'out/{k}' for k in self.out.unused()] + [f'grad/{k}' for k in self.grad.unused()]
        left = [k for k in left if k not in ignore]
        assert not left, f'{self.name}: never compared: {left}'

    def __repr__(self) -> str:
        return f'Golden({self.name})'


def load(path: Path) -> Golden:
    """Reads one reference file."""
    return Golden(path)


def handles(folder: str, *kinds: str):
    """Marks a test as the owner of all files of these kinds; it is run once per file with a ``golden`` argument."""

    def decorate(test):
        for kind in kinds:
            KINDS.setdefault(folder, {})[kind] = test.__name__
        test.golden_folder, test.golden_kinds = folder, kinds
        return test

    return decorate
