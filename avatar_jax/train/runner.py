"""Runs any method's training: devices, the loop, checkpoints, export; a method hands in a ``Run``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from avatar_jax import processes
from avatar_jax.configure import current_names, to_plain
from avatar_jax.errors import UserError
from avatar_jax.parallel import Parallel, StepFn, device_order, parallelise, to_host
from avatar_jax.train.costs import estimate
from avatar_jax.train.loop import LoopConfig, Sample, fit, skip_nonfinite
from avatar_jax.train.state import TrainState
from avatar_jax.types import PyTree


class RunConfig(Protocol):
    """A run's configuration, as everything outside its method knows it: a frozen dataclass.

    Attributes:
        seed: of everything that is drawn. data: where the pictures come from. output: ``train.run``.
        parallel: one of ``parallel.KINDS``. MAY_DIFFER: names or patterns of the fields that a resumed run may change.
    """

    seed: int
    data: object
    output: object
    parallel: str
    MAY_DIFFER: ClassVar[tuple[str, ...]]

    def loop(self) -> LoopConfig:
        """When to do what."""


def one_kind(number: int) -> Hashable:
    """Of runs whose steps are all alike."""
    del number
    return None


@dataclass(frozen=True)
class Run:
    """A training that is ready to begin.

    Attributes:
        state: before the first step.
        step: kind -> ``step(state, batch, constants, axis_name) -> (state, metrics)``, for one device's share of the
            batch; it averages over the named axis (``avatar_jax.parallel``).
        batches: number of a step -> the stream of batches from there on, dicts of arrays with this process's rows.
        export: (final state on the host, folder, provenance) -> writes the weight files; on the first process only.
        batch_size: rows of a whole batch. unit: what a row is, in the plural, for messages.
        images_per_step: for the ``images_per_second`` figure.
        kind_of: number of a step -> kind, for trainings whose steps differ; there is one program for each kind.
        constants: arrays that never change, e.g. frozen networks.
        bound: what a checkpoint is bound to besides the configuration, plain values.
        provenance: what the weight files say of their origin besides command, seed and iterations.
        sample: (state, number of steps done) -> picture or (picture, scores); None draws none.
        headline: the metric that the progress line shows. phases: see ``train.loop.fit``.
        bf16: whether most arithmetic is in bfloat16, for estimates.
        devices: None: all. model_shards: of 'sharded'.
        on_start: called with the folder on the first process once the folder has been accepted.
        notes: sentences for the person who starts the run, e.g. on terms that cannot be computed.
        check: called with the number of devices before anything is compiled; raises ``UserError``.
    """

    state: TrainState
    step: Callable[[Hashable], StepFn]
    batches: Callable[[int], Iterator[Any]]
    export: Callable[[TrainState, Path, dict[str, Any]], None]
    batch_size: int
    unit: str
    images_per_step: int
    kind_of: Callable[[int], Hashable] = one_kind
    constants: PyTree = ()
    bound: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sample: Callable[[TrainState, int], Sample] | None = None
    headline: str = 'loss'
    phases: Sequence[str] = ()
    bf16: bool = False
    devices: Sequence[jax.Device] | None = None
    model_shards: int = 0
    on_start: Callable[[Path], None] | None = None
    notes: Sequence[str] = ()
    check: Callable[[int], None] | None = None


def train(
    start: Callable,
    config: RunConfig,
    out: str | Path,
    streams: ModuleType,
    *,
    resume: bool = False,
    quiet: bool = False,
    programs: dict[Hashable, Parallel] | None = None,
) -> TrainState:
    """Trains and exports; returns the final ``TrainState``.

    Args:
        start: (configuration, streams, quiet) -> ``Run``, of a ``Training``.
        config: the run's configuration.
        out: folder of the run.
        streams: by which batches are read (the module ``data_pipelines.streams``).
        resume: continue the run that is there, or start. quiet: no progress.
        programs: the steps by kind, which are added here as they come up. Give a second training of the same
            configuration in one process the first one's, and nothing is traced or compiled again.

    Raises:
        UserError: data, weights, batch or folder cannot be used; another run is there.
        avatar_jax.train.logging.NonFiniteError: a term became NaN or infinite.
        avatar_jax.train.loop.Preempted: asked to stop; the checkpoint is written.
    """
    run = start(config, streams, quiet)
    if processes.is_first():
        for note in run.notes:
            print(f'avatar-jax: {note}', file=sys.stderr)
    out = Path(out)
    programs = {} if programs is None else programs

    def program(kind: Hashable) -> Parallel:
        """One program per kind of step, made when it first comes up."""
        if kind not in programs:
            step = run.step(kind)

            def guarded(state, batch, constants, axis_name):
                def body(state, batch):
                    return step(state, batch, constants, axis_name)

                return (skip_nonfinite(body) if config.output.nonfinite == 'skip' else body)(state, batch)

            programs[kind] = parallelise(
                guarded,
                kind=config.parallel,
                devices=run.devices,
                # Placed once: networks of losses are large, and kinds come up while the loop runs.
                constants=next(iter(programs.values())).constants if programs else run.constants,
                model_shards=run.model_shards,
            )
        return programs[kind]

    first = program(run.kind_of(0))
    if run.check is not None:
        run.check(first.num_devices)
    bound = {'run': to_plain(config), **run.bound}
    processes.agree('the configuration', bound)

    def batches(start: int) -> Iterator[tuple[int, Any]]:
        """Numbered batches; asked for once the folder has been accepted."""
        if run.on_start is not None and processes.is_first():
            run.on_start(out)
        stream = run.batches(start)
        try:
            yield from enumerate(stream, start)
        finally:
            getattr(stream, 'close', lambda: None)()

    def advance(state: TrainState, numbered: tuple[int, Any]) -> tuple[TrainState, Any]:
        number, batch = numbered
        chosen = program(run.kind_of(number))
        return chosen.step(state, chosen.put_batch(batch))

    def announce(state: TrainState, numbered: tuple[int, Any]) -> str:
        number, batch = numbered
        chosen = program(run.kind_of(number))
        known = estimate(chosen, state, chosen.put_batch(batch), run.bf16)
        return f'train: {run.batch_size} {run.unit} per step on {chosen.num_devices} device(s); {known.text()}'

    def sample(state: TrainState, done: int) -> Sample:
        return run.sample(jax.tree.map(lambda x: jnp.asarray(jax.device_get(x)), state), done)

    state = fit(
        first.put_state(run.state),
        advance,
        batches,
        folder=out,
        loop=config.loop(),
        config=bound,
        resume=resume,
        may_differ=[f'run.{name}' for name in config.MAY_DIFFER],
        current_names=lambda stored: (
            stored | {'run': current_names(type(config), stored.get('run', {}), complete=True)}
        ),
        label='train',
        headline=run.headline,
        sample_fn=None if run.sample is None else sample,
        place_state=first.put_state,
        images_per_step=run.images_per_step,
        phases=run.phases,
        announce=None if quiet else announce,
        quiet=quiet,
    )
    state = to_host(state) if processes.several() else state
    if processes.is_first():
        about = {'command': 'train', 'seed': config.seed, 'iterations': int(state.step)}
        run.export(jax.device_get(state), out, about | dict(run.provenance))
    return state


def devices_for(parallel: str, size: int, field_name: str) -> list[jax.Device]:
    """The devices that share a batch of ``size`` rows.

    Raises:
        UserError: it does not divide among them; names the configuration's field.
    """
    devices = device_order(jax.devices())[: 1 if parallel == 'single' else None]
    if size % len(devices):
        raise UserError(
            f'{field_name}: {size} is not divisible by {len(devices)} devices; use a multiple of {len(devices)}'
        )
    return devices
