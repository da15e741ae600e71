"""Records of another program's computation, and the comparison of imported weights with them.

The records are ``.npz`` files with ``in/*``, ``out/*``, maybe ``param/*`` (the original weights), and a JSON ``config``
that says how the computation was made; whoever has the original program can export them. The name of the file, or
``kind`` in its configuration, says which computation it is: ``triplane_e2e_mine.npz`` is of kind ``triplane_e2e``.

Errors are the largest absolute difference divided by the largest absolute recorded value. Gradients (``grad/*``) are
not compared: the outputs already depend on every imported number.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.convert.report import some
from avatar_jax.errors import UserError
from avatar_jax.io.inputs import input_file
from avatar_jax.io.weights import Weights, load_weights

MAX_CONFIG = 16 << 20

VALUE, IMAGE, NET, GEOMETRY = 2e-4, 5e-4, 1e-3, 1e-4
"""Limits of relative errors: numbers of one network, rendered images, deep perception networks, meshes."""


@dataclass
class Recorded:
    """A file of recorded numbers: ``config``, and arrays by name in each section."""

    path: Path
    config: dict[str, Any]
    param: dict[str, np.ndarray]
    inp: dict[str, np.ndarray]
    out: dict[str, np.ndarray]
    gradients: int


@dataclass
class Line:
    """One compared array: its relative error and the limit."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


@dataclass
class Comparison:
    """What came out of a verification.

    Attributes:
        lines: compared outputs. params: compared weights, where they are recorded.
        skipped: recorded outputs that were not compared.
        notes: remarks.
    """

    kind: str
    lines_out: list[Line] = field(default_factory=list)
    params: list[Line] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.lines_out) and all(line.passed for line in (*self.lines_out, *self.params))

    def lines(self) -> list[str]:
        """For people."""
        out = [f'{self.kind}: largest error of each output, relative to its largest value']
        for line in self.lines_out:
            out.append(
                f'  {line.name:28} {line.error:9.2e}  limit {line.limit:.0e}  {"ok" if line.passed else "TOO LARGE"}'
            )
        if self.params:
            worst = max(self.params, key=lambda line: line.error)
            bad = [line.name for line in self.params if not line.passed]
            text = f'{len(bad)} differ: {some(bad)}' if bad else 'all equal'
            out.append(f'  weights: {len(self.params)} recorded, {text} (largest error {worst.error:.2e})')
        if self.skipped:
            out.append(f'  not compared: {some(self.skipped, 12)}')
        out += [f'  note: {note}' for note in self.notes]
        return [*out, 'passed' if self.passed else 'FAILED']


def read_recorded(path: str | os.PathLike) -> Recorded:
    """Reads recorded numbers; nothing in the file is run.

    Raises:
        UserError: not such a file, or damaged.
    """
    path = input_file(path)
    sections: dict[str, dict[str, np.ndarray]] = {'param': {}, 'in': {}, 'out': {}, 'grad': {}}
    try:
        with np.load(path, allow_pickle=False) as data:
            text = str(data['config']) if 'config' in data.files else '{}'
            for key in data.files:
                section, _, rest = key.partition('/')
                if section in sections:
                    sections[section][rest] = data[key]
        config = json.loads(text) if len(text) <= MAX_CONFIG else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, RecursionError) as error:
        raise UserError(f'{path}: is no file of recorded numbers (.npz), or damaged ({error})') from error
    if not isinstance(config, dict) or not sections['out']:
        raise UserError(f'{path}: has no outputs (out/*) or no configuration to compare with')
    return Recorded(path, config, sections['param'], sections['in'], sections['out'], len(sections['grad']))


class Verification:
    """One verification: the record, the imported files, and what has been compared."""

    def __init__(self, golden: Recorded, folder: Path, kind: str):
        self.golden, self.folder, self.kind = golden, folder, kind
        self.result = Comparison(kind)
        self.files = _imported(folder)
        self._seen: set[str] = set()

    def find(self, *methods: str) -> Weights:
        """The imported weights of the first of the methods that is there. Raises ``UserError`` if none is."""
        for method in methods:
            if method in self.files:
                return load_weights(self.files[method])
        there = ', '.join(sorted(self.files)) or 'no weight files'
        raise UserError(
            f"{self.folder}: has nothing of '{methods[0]}', which {self.golden.path.name} is about; it has {there}"
        )

    def path(self, *methods: str) -> Path:
        """The file of the first of the methods that is there. Raises like ``find``."""
        return self.find(*methods).path

    def compare(self, name: str, actual: jax.Array | np.ndarray, limit: float) -> None:
        """Compares with ``out/<name>`` if the record has it."""
        if name not in self.golden.out:
            return
        self._seen.add(name)
        self.result.lines_out.append(Line(name, relative_error(np.asarray(actual), self.golden.out[name]), limit))

    def weights(self, flat: dict[str, np.ndarray], recorded: dict[str, np.ndarray] | None = None) -> None:
        """Compares imported weights, in the original layout, with those recorded."""
        for name, value in (self.golden.param if recorded is None else recorded).items():
            if name.endswith(('num_batches_tracked', 'resample_filter')):
                continue
            error = relative_error(flat[name], value) if name in flat else float('inf')
            self.result.params.append(Line(name, error, 1e-6))

    def done(self) -> Comparison:
        """The result; outputs that nothing was compared with are listed."""
        self.result.skipped = [k for k in self.golden.out if k not in self._seen]
        if self.golden.gradients:
            self.result.notes.append(f'{self.golden.gradients} recorded gradients are not compared')
        if not self.golden.param:
            self.result.notes.append(
                'the record does not hold the weights: it proves the import only if it was made with them'
            )
        return self.result


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite if shapes or NaNs differ."""
    if actual.shape != expected.shape:
        return float('inf')
    if not expected.size:
        return 0.0
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(e)):
        return float('inf')
    finite = np.isfinite(e)
    scale = np.abs(e[finite]).max(initial=0.0)
    error = np.abs(a[finite] - e[finite]).max(initial=0.0)
    return float(error / scale) if scale > 0 else float(error)


def _imported(folder: Path) -> dict[str, Path]:
    """Method -> weight file, of everything in a folder (or of one file)."""
    if folder.is_file():
        return {load_weights(folder).method: folder}
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; give the one that the import was written to')
    found: dict[str, Path] = {}
    for path in sorted(folder.glob('*.safetensors')):
        if path.name.endswith(('_training.safetensors', '.original.safetensors')):
            continue  # copies of what is compared
        try:
            method = load_weights(path).method
        except UserError:
            continue  # files of other programs may lie beside it
        if method in found:
            raise UserError(
                f'{folder}: {found[method].name} and {path.name} both hold {method!r}; give the file instead'
            )
        found[method] = path
    return found


def nhwc(x) -> jax.Array:
    """[N, C, H, W] -> [N, H, W, C]."""
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def nchw(x) -> np.ndarray:
    """[N, H, W, C] -> [N, C, H, W]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def picture(x) -> jax.Array:
    """Bytes [N, C, H, W] -> [N, H, W, C] in [-1, 1]."""
    return nhwc(np.asarray(x, np.float32) / 127.5 - 1)


def thinned(value: np.ndarray, expected: np.ndarray, offsets: tuple[int, ...] | None = None) -> np.ndarray:
    """Every n-th entry of each axis of which a part is recorded; n follows from the two lengths."""
    index = []
    for axis, (full, part) in enumerate(zip(value.shape, expected.shape, strict=True)):
        step = next((s for s in range(1, full + 1) if -(-full // s) == part), 1)
        index.append(slice(offsets[axis] if offsets else 0, None, step))
    return value[tuple(index)]


def described(run: Verification, name: str, value: np.ndarray) -> np.ndarray:
    """The part of an output that the record's description says: ``name = something[:,::2,5::32]``."""
    found = re.search(rf'{re.escape(name)} ?= ?\w+(\[[\d:,]+\])', str(run.golden.config.get('what', '')))
    if not found:
        return value
    parts = [slice(*(int(x) if x else None for x in part.split(':'))) for part in found.group(1).strip('[]').split(',')]
    return value[tuple(parts)]
