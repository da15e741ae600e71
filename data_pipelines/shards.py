"""Samples that are functions of a configuration and their number, in compressed files that resume.

Each sample depends on (configuration, number) alone, so ranges made on different machines fit together. A file is
written under another name and renamed when it is complete; complete files are skipped. ``config.json`` beside them says
what they are samples of.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.options import add_options, from_arguments
from data_pipelines.fingerprint import head_fingerprint, same_head
from data_pipelines.workers import worker_pool

DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def _looks_of(config: Any) -> int:
    """The version of the looks that a configuration names; 1 for those that know one only."""
    return getattr(config, 'looks', 1)


C = TypeVar('C')  # the configuration, a dataclass


@dataclass(frozen=True)
class Shards(Generic[C]):
    """One kind of samples.

    Attributes:
        name: of the kind, in words. module: whose command makes them. stem: of the files' names.
        config: dataclass of what decides the samples; its options are those of the command.
        sample: (configuration, number) -> name -> array. fields: of these, the ones that are stored.
        shard: samples per file, if none is said.
    """

    name: str
    module: str
    stem: str
    config: type[C]
    sample: Callable[[C, int], dict[str, np.ndarray]]
    fields: tuple[str, ...]
    shard: int = 256

    def path(self, folder: Path, first: int, count: int) -> Path:
        """File of the samples ``first .. first + count - 1``."""
        return folder / f'{self.stem}-{first:09d}-{count:05d}.npz'

    def write(self, config: C, folder: Path, first: int, count: int) -> Path:
        """Makes and writes one file; it appears under its name only when complete."""
        samples = [self.sample(config, i) for i in range(first, first + count)]
        path = self.path(folder, first, count)
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            with open(temporary, 'wb') as f:
                np.savez_compressed(f, **{k: np.stack([s[k] for s in samples]) for k in self.fields})
            os.replace(temporary, path)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise UserError(f'{path}: cannot write ({e.strerror or e}); free some space or choose another --out') from e
        return path

    def generate(
        self,
        config: C,
        folder: str | os.PathLike,
        start: int,
        count: int,
        shard: int | None = None,
        workers: int = 1,
        progress: bool = True,
    ) -> list[Path]:
        """Makes the samples ``start .. start + count - 1`` that are not there yet; returns the files in order.

        Raises:
            UserError: the folder holds samples of another configuration, or cannot be written.
        """
        folder, shard = Path(folder), self.shard if shard is None else shard
        check = Check.values(OPTION, start=start, count=count, shard=shard, workers=workers)
        check.at_least(0, 'start')
        check.at_least(1, 'count', 'shard', 'workers')
        self._claim(config, folder)
        wanted = [(first, min(shard, start + count - first)) for first in range(start, start + count, shard)]
        missing = [w for w in wanted if not self.path(folder, *w).exists()]
        done, total, began = 0, sum(n for _, n in missing), time.perf_counter()
        if progress and len(missing) < len(wanted):
            print(f'{len(wanted) - len(missing)} of {len(wanted)} shards are there already', flush=True)
        for n in self._written(config, folder, missing, min(workers, len(missing))):
            done += n
            if progress:
                rate = done / (time.perf_counter() - began)
                print(f'{done}/{total} samples, {rate:.1f}/s, {(total - done) / rate / 60:.1f} min left', flush=True)
        return [self.path(folder, *w) for w in wanted]

    def _written(self, config: Any, folder: Path, shards: Sequence[tuple[int, int]], workers: int) -> Iterator[int]:
        """Writes files; yields the number of samples in each that is complete."""
        if workers <= 1:
            for first, n in shards:
                self.write(config, folder, first, n)
                yield n
            return
        with worker_pool(workers) as pool:
            jobs = {pool.submit(self.write, config, folder, first, n): n for first, n in shards}
            try:
                for job in as_completed(jobs):
                    job.result()
                    yield jobs[job]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _claim(self, config: Any, folder: Path) -> None:
        """Writes or checks ``config.json`` of the folder."""
        path = folder / 'config.json'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                temporary = folder / f'.config.{os.getpid()}.tmp'
                temporary.write_text(json.dumps({**asdict(config), 'head': head_fingerprint(_looks_of(config))}))
                os.replace(temporary, path)
        except OSError as e:
            raise UserError(f'{folder}: cannot write ({e.strerror or e}); choose another --out') from e
        stored = asdict(self.read_config(folder))
        if different := [k for k, v in asdict(config).items() if stored[k] != v]:
            raise UserError(
                f'{folder}: holds samples of another configuration (different: {", ".join(different)}); choose another '
                '--out or the same options'
            )

    def read_config(self, folder: str | os.PathLike) -> C:
        """The configuration of a folder.

        Raises:
            UserError: ``config.json`` is missing, damaged, or of another head model.
        """
        path = Path(folder) / 'config.json'
        try:
            stored = json.loads(path.read_text())
            head = stored.pop('head')  # the fingerprint of the head model
            config = self.config(**stored)
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise UserError(f'{path}: not a configuration of {self.name} ({e}); make the shards again') from e
        if not same_head(head, _looks_of(config)):
            raise UserError(
                f'{folder}: holds pictures of another version of the head model; make the shards again in another '
                'folder'
            )
        return config

    def load(
        self, folder: str | os.PathLike, fields: Sequence[str] | None = None, limit: int | None = None
    ) -> dict[str, np.ndarray]:
        """All samples of a folder in memory, in order of their numbers: name -> [N, ...].

        Args:
            fields: which arrays; None: all. limit: the first ``limit`` samples only.

        Raises:
            UserError: no files, a damaged one, or no such field.
        """
        self.read_config(folder)
        fields = self.fields if fields is None else tuple(fields)
        if unknown := set(fields) - set(self.fields):
            raise UserError(f'fields {sorted(unknown)}: unknown; there are {", ".join(self.fields)}')
        files = sorted(Path(folder).glob(f'{self.stem}-*.npz'))
        if not files:
            raise UserError(f'{folder}: no shards ({self.stem}-*.npz); make some with python -m {self.module}')
        parts: dict[str, list[np.ndarray]] = {k: [] for k in fields}
        for path in files:
            try:
                with np.load(path) as z:
                    for k, part in parts.items():
                        part.append(z[k])
            except DAMAGED as e:
                raise UserError(f'{path}: damaged shard ({e}); delete it and make it again') from e
            if limit is not None and sum(map(len, parts[fields[0]])) >= limit:
                break
        return {k: np.concatenate(v)[:limit] for k, v in parts.items()}

    def main(self, doc: str, argv: Sequence[str] | None = None) -> int:
        """The command of the kind's module; returns the exit status."""
        parser = argparse.ArgumentParser(prog=f'python -m {self.module}', description=doc.splitlines()[0])
        add = parser.add_argument
        add('--out', type=Path, required=True, metavar='DIR', help='folder for the files')
        add('--start', type=int, default=0, metavar='N', help='number of the first sample (default: 0)')
        add('--count', type=int, required=True, metavar='N', help='number of samples')
        add('--workers', type=int, default=1, metavar='N', help='processes that draw (default: 1)')
        text = f'samples per file (default: {self.shard})'
        add('--shard', type=int, default=self.shard, metavar='N', help=text)
        add_options(parser, self.config)
        args = parser.parse_args(argv)
        try:
            config = from_arguments(self.config, args)
            self.generate(config, args.out, args.start, args.count, args.shard, args.workers)
        except UserError as e:
            print(f'error: {e}', file=sys.stderr)
            return 2
        return 0
