"""What a run writes down: one JSON line per record, TensorBoard if installed, a progress line, finite checks.

``metrics.jsonl`` has one object per line: ``{"step": 120, "loss/percept": 0.41, ...}``. Values that are not finite
appear as null. When a run resumes at step N, lines of later steps (written after the checkpoint by the process that
died) and a half-written last line are removed, so the file reads like that of one uninterrupted run.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from avatar_jax.progress import Console


class NonFiniteError(Exception):
    """A term of a run became NaN or infinite. ``names``: the terms; ``step``: the iteration."""

    def __init__(self, names: list[str], step: int, detail: str = ''):
        self.names, self.step = list(names), step
        shown = ', '.join(self.names[:5]) + (f' and {len(self.names) - 5} more' if len(self.names) > 5 else '')
        super().__init__(f'step {step}: not finite: {shown}{detail}')


def metrics_to_host(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Metrics as numpy arrays (waits for the device)."""
    import jax

    return {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}


def nonfinite_terms(metrics: Mapping[str, np.ndarray], phases: Sequence[str] = ()) -> list[str]:
    """Names of the metrics that hold NaN or infinity; a curve ``[n]`` is reported with the first bad index.

    The term that broke first leads the list: ordered by phase (the name's part before the first '/', in the order of
    ``phases``; other names last), then by index, terms before totals (``.../loss``) and single numbers.
    """
    found = []
    for name, value in metrics.items():
        bad = ~np.isfinite(np.asarray(value, np.float64))
        if bad.any():
            phase = name.partition('/')[0]
            place = phases.index(phase) if phase in phases else len(phases)
            index = int(np.argmax(bad.reshape(-1))) if bad.ndim else sys.maxsize
            found.append((place, index, name.endswith('loss'), f'{name}[{index}]' if bad.ndim else name))
    return [item[-1] for item in sorted(found, key=lambda item: item[:3])]


def check_finite(metrics: Mapping[str, np.ndarray], step: int) -> None:
    """Raises ``NonFiniteError`` naming the terms that are not finite."""
    names = nonfinite_terms(metrics)
    if names:
        raise NonFiniteError(names, step)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """One number per metric: scalars as they are; of a curve its last value, and its mean as ``<name>/mean``."""
    flat = {}
    for name, value in metrics.items():
        value = np.asarray(value, np.float64)
        if value.ndim == 0:
            flat[name] = float(value)
        elif value.size:
            flat[name], flat[f'{name}/mean'] = float(value.reshape(-1)[-1]), float(value.mean())
    return flat


class JsonlLog:
    """Appends records to a ``.jsonl`` file; see the module text for what happens on resume."""

    def __init__(self, path: str | os.PathLike, *, resume_step: int | None = None):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            self.path.write_text('')
        elif self.path.exists():
            keep = [line for line in self.path.read_text().splitlines() if _step_of(line, math.inf) <= resume_step]
            temporary = self.path.with_name(self.path.name + '.part')
            temporary.write_text(''.join(line + '\n' for line in keep))
            os.replace(temporary, self.path)
        self._file: TextIO = self.path.open('a')

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line and flushes it."""
        record = {'step': int(step)}
        for name, value in values.items():
            value = value.item() if hasattr(value, 'item') else value
            record[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All complete records of a log."""
    lines = Path(path).read_text().splitlines()
    return [json.loads(line) for line in lines if _step_of(line, None) is not None]


def _step_of(line: str, otherwise: Any) -> Any:
    try:
        return json.loads(line)['step']
    except (ValueError, KeyError, TypeError):
        return otherwise


class MetricWriter:
    """JSONL always; TensorBoard event files as well when the package ``tensorboardX`` is installed."""

    def __init__(self, folder: str | os.PathLike, *, resume_step: int | None = None, tensorboard: bool = True):
        folder = Path(folder)
        self._jsonl = JsonlLog(folder / 'metrics.jsonl', resume_step=resume_step)
        self._board = None
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                pass
            else:
                purge = None if resume_step is None else resume_step + 1
                self._board = SummaryWriter(str(folder / 'tensorboard'), purge_step=purge, max_queue=1000)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars (and text or None, which only the JSON file gets)."""
        self._jsonl.write(step, values)
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture ``[H, W, 3]`` uint8 to TensorBoard, if there is one."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats='HWC')

    def close(self) -> None:
        """Flushes and closes all files."""
        self._jsonl.close()
        if self._board is not None:
            self._board.close()


class RunProgress:
    """One line that says how far a run is: ``train 120/2000  3.1 steps/s  left 10:06  loss 0.412``.

    On a terminal the line is rewritten in place at most five times a second; elsewhere (a log file, CI) a new line is
    printed at most every ``every_seconds``. The rate is that of the last half minute; the first step of the process,
    which compiles, is left out.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        label: str = 'train',
        stream: TextIO | None = None,
        every_seconds: float = 10.0,
    ):
        self.total, self.label = total, label
        self.stream = Console(stream)
        self.tty = self.stream.isatty()
        self.every = 0.2 if self.tty else every_seconds
        self._shown, self._width = -math.inf, 0
        self._marks: list[tuple[float, int]] = []
        self._start = start

    def rate(self) -> float | None:
        """Steps per second over the last half minute; None before the second step."""
        if len(self._marks) < 2:
            return None
        (t0, s0), (t1, s1) = self._marks[0], self._marks[-1]
        return (s1 - s0) / max(t1 - t0, 1e-9)

    def update(self, step: int, text: str = '') -> None:
        """``step`` steps are done; ``text`` is shown at the end of the line."""
        now = time.monotonic()
        if step > self._start:
            self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[0][0] > 30:
            self._marks.pop(0)
        if now - self._shown < self.every and step < self.total:
            return
        self._shown = now
        self._print(f'{self.label} {step}/{self.total}  {self._speed(step)}{text}')

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        self._clear()
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Ends the line."""
        if self.tty and self._width:
            print(file=self.stream, flush=True)
            self._width = 0

    def _speed(self, step: int) -> str:
        rate = self.rate()
        if not rate:
            return 'compiling  ' if step == self._start else ''
        speed = f'{rate:.1f} steps/s' if rate >= 1 else f'{1 / rate:.1f} s/step'
        return f'{speed}  left {duration((self.total - step) / rate)}  '

    def _print(self, line: str) -> None:
        if self.tty:
            self.stream.write('\r' + line.ljust(self._width))
            self._width = len(line)
            self.stream.flush()
        else:
            print(line.rstrip(), file=self.stream, flush=True)

    def _clear(self) -> None:
        if self.tty and self._width:
            self.stream.write('\r' + ' ' * self._width + '\r')
            self._width = 0


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``; ``3700`` -> ``1:01:40``."""
    seconds = max(round(seconds), 0)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
