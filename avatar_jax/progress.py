"""Progress on stderr: a bar with rate and remaining time on a terminal, one line every few seconds in a log file.

While JAX compiles, which may take longer than the steps, bars say so.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TextIO, TypeVar

T = TypeVar('T')
LOG_INTERVAL = 10.0  # seconds between lines when stderr is not a terminal


class Console:
    """Stderr, or another stream, that never ends the work: it may be missing (services), closed or full.

    Args:
        stream: where to write; stderr by default.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream

    def __getattr__(self, name: str) -> Any:  # encoding, fileno and the like
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        with contextlib.suppress(AttributeError, ValueError):
            return bool(self._stream.isatty())
        return False

    def write(self, text: str) -> None:
        """Writes what can be written."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()


class _Lines:
    """Stands between tqdm and a log file: every redraw becomes one line."""

    def __init__(self, stream: Console):
        self._stream, self._last = stream, ''

    def write(self, text: str) -> None:
        line = text.replace('\r', '').strip()
        if line and line != self._last:
            self._stream.write(line + '\n')
            self._last = line

    def flush(self) -> None:
        self._stream.flush()


class _Compiler:
    """Whether JAX is compiling at the moment (tracing included), by its own events."""

    _PREFIX = '/jax/core/compile/'  # each event comes as a scalar when it begins and as a duration when it ends

    def __init__(self):
        self._depth, self._watching = 0, False

    def watch(self) -> None:
        """Listens from now on, where JAX is in use."""
        monitoring = getattr(sys.modules.get('jax'), 'monitoring', None)
        if self._watching or monitoring is None:
            return
        self._watching = True
        monitoring.register_scalar_listener(lambda event, *_, **__: self._count(event, 1))
        monitoring.register_event_duration_secs_listener(lambda event, *_, **__: self._count(event, -1))

    def _count(self, event: str, by: int) -> None:
        if event.startswith(self._PREFIX):
            self._depth = max(0, self._depth + by)

    def __bool__(self) -> bool:
        return self._depth > 0


_COMPILER = _Compiler()


class Progress:
    """A bar of ``total`` steps with rate and remaining time.

    with Progress(100, 'inversion') as bar:
        for step in range(100):
            bar.update(1, loss=0.1)

    Args:
        total: number of steps, or None when unknown.
        description: what is counted.
        unit: name of one step.
        stream: where to write; stderr by default.
    """

    def __init__(self, total: int | None, description: str, *, unit: str = 'step', stream: TextIO | None = None):
        from tqdm import tqdm

        stream = Console(stream)
        terminal = stream.isatty()
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=unit,
            file=stream if terminal else _Lines(stream),
            mininterval=0.2 if terminal else LOG_INTERVAL,
            ncols=None if terminal else 100,
            dynamic_ncols=terminal,
            ascii=not terminal,
        )
        self._title = description
        _COMPILER.watch()
        # A step may take minutes: the clock of the bar goes on meanwhile.
        self._closed, self._moved = threading.Event(), time.monotonic()
        self._interval = 1.0 if terminal else LOG_INTERVAL
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self._closed.wait(self._interval):
            if time.monotonic() - self._moved >= self._interval:
                self._say()
                self._bar.refresh()

    def _say(self) -> None:
        self._bar.set_description(f'{self._title} (compiling)' if _COMPILER else self._title, refresh=False)

    def describe(self, description: str) -> None:
        """Says what is done from now on."""
        self._title = description
        self._say()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, steps: int = 1, **numbers: Any) -> None:
        """Advances by ``steps``; ``numbers`` (losses, scores) are shown behind the bar."""
        if numbers:
            self._bar.set_postfix({k: f'{float(v):.4g}' for k, v in numbers.items()}, refresh=False)
        self._moved = time.monotonic()
        self._say()
        self._bar.update(steps)

    def note(self, text: str) -> None:
        """Prints a line of text above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def close(self) -> None:
        """Ends the bar; it stays on the screen."""
        self._closed.set()
        self._bar.close()


def progress(items: Iterable[T], description: str, *, total: int | None = None, unit: str = 'it') -> Iterator[T]:
    """Iterates over ``items`` with a bar; ``total`` defaults to their number where they have one."""
    total = len(items) if total is None and hasattr(items, '__len__') else total
    with Progress(total, description, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


@contextlib.contextmanager
def activity(description: str, *, stream: TextIO | None = None, interval: float | None = None) -> Iterator[None]:
    """Shows that one long step without a countable progress (a compilation) is alive, and how long it took.

    A terminal gets a running clock, a log file a line at the start, every ``interval`` seconds, and at the end.
    """
    stream = Console(stream)
    terminal = stream.isatty()
    interval = interval or (1.0 if terminal else LOG_INTERVAL)
    start, done = time.monotonic(), threading.Event()

    def show(text: str, last: bool) -> None:
        stream.write(f'\r\033[K{text}' + ('\n' if last else '') if terminal else text + '\n')
        stream.flush()

    def tick() -> None:
        while not done.wait(interval):
            show(f'{description} ... {time.monotonic() - start:.0f} s', last=False)

    show(f'{description} ...', last=False)
    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    outcome = 'failed after'
    try:
        yield
        outcome = 'done in'
    finally:
        done.set()
        clock.join()
        show(f'{description}: {outcome} {time.monotonic() - start:.1f} s', last=True)
