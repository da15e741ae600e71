"""The loop around a train step: resume, log, sample, checkpoint, stop.

A train file builds its state, its step and its stream of batches, and calls ``fit``. What happens then, in order:

1. the folder is held (``io.lock``), so a second run in it is refused; an existing run in it is resumed at its last
   complete checkpoint (``resume=True``) or refused;
2. batches are drawn from ``batches(step)``, a stream that starts at any step: data, like random keys, is a function of
   (seed, step), so the resumed run repeats the uninterrupted one bit for bit on the same devices;
3. every metric is checked before the state that came with it can reach a checkpoint; a term that is not finite stops
   the run (or, with ``nonfinite='skip'`` and a step wrapped by ``skip_nonfinite``, leaves the state as it was);
4. SIGTERM and Ctrl-C finish the step, write a checkpoint and leave with ``PREEMPTED_STATUS`` (75: try again later).

With several processes (``avatar_jax.processes``) all of them run this loop; the first one writes. A signal to any of
them is passed on by ``jax.distributed``, which agrees on one step at which all stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.configure import to_plain
from avatar_jax.errors import UserError
from avatar_jax.io.lock import FolderLock
from avatar_jax.parallel import as_arrays, in_loop, to_host
from avatar_jax.processes import agree, is_first, several, told_by_first
from avatar_jax.train.checkpoints import Checkpoints
from avatar_jax.train.logging import (
    MetricWriter,
    NonFiniteError,
    RunProgress,
    metrics_to_host,
    nonfinite_terms,
    scalars,
)
from avatar_jax.train.state import TrainState

PREEMPTED_STATUS = 75  # EX_TEMPFAIL: the same command continues the run

Batches = Callable[[int], Iterable[Any]]  # first step -> batches of that step, the next one, ...
Sample = np.ndarray | tuple[np.ndarray, Mapping[str, float]]  # uint8 [H, W, 3], alone or with scores
StepFn = Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]]


class Preempted(SystemExit):
    """The run was asked to stop and wrote a checkpoint; exits with ``PREEMPTED_STATUS`` if nobody catches it."""

    def __init__(self, step: int):
        super().__init__(PREEMPTED_STATUS)
        self.step = step


@dataclass(frozen=True)
class LoopConfig:
    """When a run logs, samples, checkpoints and stops. All counts are steps.

    Attributes:
        total_steps: length of the run.
        log_every, sample_every, checkpoint_every: intervals; 0 switches samples or checkpoints (but the last) off.
        keep, keep_every: the ``keep`` latest checkpoints stay, and those of every ``keep_every``-th step (0: none).
        nonfinite: 'stop' or 'skip' (needs a step made with ``skip_nonfinite``).
        max_skipped: number of skipped steps in a row that stop the run even with 'skip'.
        tensorboard: write event files when ``tensorboardX`` is installed.
    """

    total_steps: int
    log_every: int = 10
    sample_every: int = 100
    checkpoint_every: int = 100
    keep: int = 2
    keep_every: int = 0
    nonfinite: str = 'stop'
    max_skipped: int = 20
    tensorboard: bool = True

    # Fields of this class that a resumed run may change.
    MAY_DIFFER = (
        'total_steps',
        'log_every',
        'sample_every',
        'checkpoint_every',
        'keep',
        'keep_every',
        'tensorboard',
        'max_skipped',
    )

    def __post_init__(self):
        check = Check(self, 'loop')
        check.at_least(1, 'total_steps', 'log_every', 'keep')
        check.at_least(0, 'sample_every', 'checkpoint_every', 'keep_every')
        check.one_of('nonfinite', 'stop', 'skip')


def skip_nonfinite(step_fn: StepFn) -> StepFn:
    """A step that keeps the old state (but counts on) when a metric is not finite; adds the metric ``skipped`` (0/1).

    Wrap before ``jit``; metrics must be equal on all devices (averaged over the axis).
    """

    def step(state, batch):
        new, metrics = step_fn(state, batch)
        good = jnp.stack([jnp.isfinite(m).all() for m in jax.tree.leaves(metrics)]).all()
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state).replace(step=new.step)
        return kept, {**metrics, 'skipped': 1.0 - good.astype(jnp.float32)}

    return step


class Preemption:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop reads; restores the old handlers on exit.

    Only the main thread of a process can install handlers; elsewhere the flag can still be set by ``request()``.
    Under ``jax.distributed`` SIGTERM stays with its handler, which tells all processes; Ctrl-C is turned into SIGTERM.
    """

    def __init__(self):
        self.requested = False
        self.shared = jax.distributed.is_initialized()
        self._old: dict[int, Any] = {}

    def reached(self, done: int) -> bool:
        """Whether to stop after ``done`` steps; every process gets the same answer. Ask once after every step."""
        if not self.shared:
            return self.requested
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(done)

    def request(self, signum: int | None = None, frame: FrameType | None = None) -> None:
        """Sets the flag; a second Ctrl-C interrupts at once."""
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self.shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self.shared else (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self.request)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class _Interval:
    """Means of scalar metrics since the last log line."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.began = time.monotonic()

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.__init__()
        return means


def fit(
    state: TrainState,
    step_fn: StepFn,
    batches: Batches,
    *,
    folder: str | os.PathLike,
    loop: LoopConfig,
    config: object = None,
    resume: bool = False,
    may_differ: Iterable[str] = (),
    current_names: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    label: str = 'train',
    headline: str = 'loss',
    sample_fn: Callable[[TrainState, int], Sample] | None = None,
    place_state: Callable[[TrainState], TrainState] | None = None,
    images_per_step: int = 0,
    phases: Sequence[str] = (),
    announce: Callable[[TrainState, Any], str] | None = None,
    quiet: bool = False,
) -> TrainState:
    """Runs ``step_fn`` until ``loop.total_steps`` steps are done; returns the final state.

    Args:
        state: the state before step 0 (its structure is also the template for resuming).
        step_fn: compiled ``(state, batch) -> (state, metrics)``; adds 1 to ``state.step``. Metrics: scalars or curves.
        batches: ``batches(step)`` gives the stream of batches from that step on.
        folder: output folder: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``samples/``, ``tensorboard/``.
        loop: when to do what.
        config: what the checkpoint is bound to (dataclass, dict, ConfigDict).
        resume: continue an existing run; without one, start. False refuses a folder that holds a run.
        may_differ: names in ``config`` that a resumed run may change (patterns).
        current_names: see ``Checkpoints``.
        headline: the metric that the progress line shows.
        sample_fn: ``(state, step) -> uint8 [H, W, 3]``, a picture of what the state makes, or (picture, scores); the
            scores become a log line of that step.
        place_state: puts a restored (numpy) state on its devices.
        images_per_step: for the ``images_per_second`` figure.
        phases: first parts of metric names in the order in which a step computes them; a report of values that are
            not finite begins with the earliest.
        announce: ``(state, first batch) -> text`` that is printed before the first step: what it will cost.
        quiet: no progress line.

    Raises:
        UserError: the folder holds another run, or cannot be written.
        NonFiniteError: a metric became NaN or infinite; the last checkpoint is older than that step.
        Preempted: SIGTERM or Ctrl-C; a checkpoint of the last finished step has been written.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        # One run in a folder. Process 0 of a job holds it; the others hear from it.
        lock = stack.enter_context(_held(folder))
        # What is there already?
        checkpoints = stack.enter_context(
            Checkpoints(
                folder / 'checkpoints',
                config=config,
                keep=loop.keep,
                keep_every=loop.keep_every,
                may_differ=tuple(may_differ),
                current_names=current_names,
            )
        )
        latest = checkpoints.latest_step()
        agree(f'the last checkpoint in {folder}', latest)
        if latest is not None and not resume:
            raise UserError(f'{folder}: holds a run at step {latest}; resume it (--resume) or choose another --out')
        start = 0
        if latest is not None:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), state)
            state, start = checkpoints.restore(shapes)
            state = place_state(state) if place_state else as_arrays(state)
        first = is_first()
        if first:
            _write_run_files(folder, config, loop)

        # Where does it go?
        writer: MetricWriter | _NoWriter = _NoWriter()
        if first:
            writer = MetricWriter(
                folder, resume_step=start if latest is not None else None, tensorboard=loop.tensorboard
            )
        stack.callback(writer.close)
        progress = RunProgress(
            loop.total_steps, start=start, label=label, stream=None if first and not quiet else _Silent()
        )
        stack.callback(progress.close)
        if latest is not None:
            progress.note(f'{label}: resuming {folder} at step {start}')
        interval, skipped_in_a_row = _Interval(), 0

        def account(step: int, metrics: Mapping[str, Any]) -> None:
            """Everything that needs the numbers of a step: finite check, log line, progress."""
            nonlocal skipped_in_a_row
            values = metrics_to_host(metrics)
            bad = nonfinite_terms(values, phases)
            skipped_in_a_row = skipped_in_a_row + 1 if bad else 0
            if bad and (loop.nonfinite == 'stop' or 'skipped' not in values):
                raise NonFiniteError(bad, step)
            if skipped_in_a_row > loop.max_skipped:
                raise NonFiniteError(bad, step, f' (the {skipped_in_a_row}th step in a row; nothing more was skipped)')
            if bad:
                progress.note(f'step {step}: skipped, not finite: {", ".join(bad[:5])}')
                interval.add({'skipped': 1.0})
            else:
                interval.add(scalars(values))
            done = step + 1
            if done % loop.log_every == 0 or done == loop.total_steps:
                record = interval.take()
                record.update(_throughput(progress.rate(), images_per_step))
                writer.write(done, record)
            shown = values.get(headline)
            last = '' if shown is None else f'{headline} {float(np.ravel(shown)[-1]):.4g}'
            progress.update(done, last)

        # The loop itself. The numbers of a step are looked at after the next one has been dispatched, or before its
        # state is shown, stored or returned.
        preemption = stack.enter_context(Preemption())
        pending: tuple[int, Mapping[str, Any]] | None = None
        stream: Iterator[Any] = iter(batches(start)) if start < loop.total_steps else iter(())
        stack.callback(lambda: getattr(stream, 'close', lambda: None)())
        progress.update(start)
        for step in range(start, loop.total_steps):
            try:
                batch = next(stream)
            except StopIteration:
                raise UserError(
                    f'{folder}: the data ended at step {step} of {loop.total_steps}; give more data or fewer steps'
                ) from None
            if step == start and announce is not None:
                progress.note(announce(state, batch))
            with in_loop():
                state, metrics = step_fn(state, batch)
                if pending is not None:
                    account(*pending)
            pending = (step, metrics)
            done = step + 1
            stop = preemption.reached(done)
            last = done == loop.total_steps or stop
            save = last or (loop.checkpoint_every and done % loop.checkpoint_every == 0)
            sample = sample_fn is not None and loop.sample_every and (done % loop.sample_every == 0 or last)
            if save or sample:
                account(*pending)
                pending = None
            if sample:
                host = to_host(state) if several() else state
                if first:
                    found = sample_fn(host, done)
                    picture, scores = found if isinstance(found, tuple) else (found, {})
                    _write_sample(folder, writer, done, picture)
                    if scores:
                        writer.write(done, scores)
            if save:
                if lock is not None:
                    lock.check()
                checkpoints.save(done, state)
            if stop and done < loop.total_steps:
                progress.note(
                    f'{label}: asked to stop; step {done} is in {folder / "checkpoints"}; run the same '
                    'command with --resume to continue'
                )
                raise Preempted(done)
        return state


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[FolderLock | None]:
    """Holds the run's folder in process 0; the other processes of the job get None, or process 0's error."""
    with contextlib.ExitStack() as stack:
        lock, error = None, ''
        if is_first():
            try:
                lock = stack.enter_context(FolderLock(folder, 'training'))
            except UserError as refusal:
                error = str(refusal)
        error = told_by_first(error)
        if error:
            raise UserError(error)
        yield lock


class _NoWriter:
    """The logs of processes other than the first."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _Silent:
    """A stream that swallows the progress line."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


def _throughput(rate: float | None, images_per_step: int) -> dict[str, float]:
    values: dict[str, float] = {}
    if rate:
        values['steps_per_second'] = rate
        if images_per_step:
            values['images_per_second'] = rate * images_per_step
    stats = jax.local_devices()[0].memory_stats()  # None on CPU
    if stats and 'peak_bytes_in_use' in stats:
        values['device_memory_mib'] = stats['peak_bytes_in_use'] / 2**20
    return values


def _write_run_files(folder: Path, config: Any, loop: LoopConfig) -> None:
    """``config.json``: configuration, loop settings, versions and devices of the (last) start."""
    import flax
    import jaxlib

    import avatar_jax
    from avatar_jax.io.atomic import write_json

    versions = {
        'avatar_jax': avatar_jax.__version__,
        'jax': jax.__version__,
        'jaxlib': jaxlib.__version__,
        'flax': flax.__version__,
        'numpy': np.__version__,
    }
    devices = [f'{d.platform}: {d.device_kind}' for d in jax.devices()]
    write_json(
        folder / 'config.json',
        {
            'config': to_plain(config if config is not None else {}),
            'loop': to_plain(loop),
            'versions': versions,
            'devices': devices,
            'processes': jax.process_count(),
        },
    )


def _write_sample(folder: Path, writer: MetricWriter, step: int, image: np.ndarray) -> None:
    from PIL import Image

    from avatar_jax.io.atomic import atomic_path

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f'a sample picture is uint8 [H, W, 3], got {image.dtype} {image.shape}')
    with atomic_path(folder / 'samples' / f'step_{step:08d}.png') as path:
        Image.fromarray(image).save(path, format='PNG')
    writer.image(step, 'samples', image)
