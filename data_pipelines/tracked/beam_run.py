"""Clips that are tracked by the workers of Apache Beam: processes of this machine, or the machines of a cluster.

A worker does with a clip what the build without Beam does (``archive.finished_clip``): the clip's archive appears in
the folder of archives, complete or not at all. That folder and the videos lie on storage that all workers see under the
same paths. A pipeline that fails, or is stopped, loses no finished clip, and the next one is given only the others.
Records are then written from the archives by one process, as without Beam.

This module needs ``apache_beam``; the build imports it only when a runner is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState, create_runner

from avatar_jax.errors import UserError
from avatar_jax.io.atomic import write_json
from avatar_jax.progress import Progress
from data_pipelines.tracked.archive import Options, archive_path, finished_clip
from data_pipelines.tracked.layouts import ClipSpec
from data_pipelines.tracked.local_workers import quiet_deaths

if TYPE_CHECKING:
    from avatar_jax.track.measure import Measures

DIRECT = ('direct', 'directrunner')
# Beam's own default is one thread of this process.
DIRECT_OPTIONS = (
    '--direct_running_mode=multi_processing',
    '--direct_num_workers=0',
    '--default_sdk_harness_log_level=WARNING',
)
LOOK_EVERY = 2.0  # seconds between two counts of the finished clips


class Track(beam.DoFn):
    """(clip, path of its archive) -> nothing: the archive, or beside its path the reason why there is none.

    Args:
        tracker: measures clips; None: every worker makes the default one.
        options: of the archives; a worker whose tracker has another name than theirs fails.
    """

    def __init__(self, tracker: Measures | None, options: Options):
        super().__init__()
        self.tracker, self.options, self.ready = tracker, options, None

    def setup(self) -> None:
        """Called once in every worker."""
        from avatar_jax.track.measure import default_tracker

        self.ready = default_tracker() if self.tracker is None else self.tracker
        if self.ready.name != self.options.tracker:
            raise RuntimeError(
                f'the tracker of a worker is {self.ready.name!r}, not {self.options.tracker!r}: install the same '
                'version and optional files (avatar-jax assets) on all machines'
            )

    def process(self, element: tuple[ClipSpec, str]) -> None:
        """One clip."""
        spec, path = element[0], Path(element[1])
        try:
            finished_clip(spec, self.ready, self.options, path)
        except UserError as e:
            write_json(_reason_path(path), {'reason': str(e)})


def track_with_beam(
    runner: str,
    flags: Sequence[str],
    specs: Sequence[ClipSpec],
    tracker: Measures | None,
    options: Options,
    folder: Path,
) -> dict[str, str]:
    """Has the workers of a runner track the clips whose archives are not there yet.

    Args:
        runner: name of a Beam runner, e.g. 'DirectRunner' (several processes of this machine), 'FlinkRunner'.
        flags: its options, each '--name=value'.
        specs: the clips. options: of their archives. folder: of the archives.
        tracker: must be importable by the workers; None: the default one.

    Returns:
        name -> reason, of clips that cannot be used.

    Raises:
        UserError: no such runner or option; the pipeline failed; the workers wrote to another storage.
    """
    folder = Path(os.path.abspath(folder))
    pending: dict[str, tuple[ClipSpec, Path]] = {}
    for spec in specs:
        with contextlib.suppress(UserError):  # of a source that cannot be read; the build itself says so
            path = archive_path(folder, spec, options)
            if not path.is_file():
                pending[spec.name] = (spec, path)
    if not pending:
        return {}
    pipeline = _pipeline(runner, flags)
    folder.mkdir(parents=True, exist_ok=True)
    for _, path in pending.values():
        _reason_path(path).unlink(missing_ok=True)
    (
        pipeline
        | 'clips' >> beam.Create([(spec, str(path)) for spec, path in pending.values()])
        | 'spread' >> beam.Reshuffle()
        | 'track' >> beam.ParDo(Track(tracker, options))
    )
    try:
        with _counting([path for _, path in pending.values()]), quiet_deaths():
            state = pipeline.run().wait_until_finish()
    except Exception as e:  # each runner has its own
        raise UserError(_failed(runner, pending, _last_line(e))) from e
    if state is not None and state != PipelineState.DONE:
        raise UserError(_failed(runner, pending, f'it ended as {state}'))
    return _reasons(runner, pending)


def check(runner: str, flags: Sequence[str], videos: str | os.PathLike) -> None:
    """Raises ``UserError``, before any work, for a runner or options that Beam does not know, or a path that other
    machines cannot know.
    """
    _pipeline(runner, flags)
    if not _is_local(runner) and not Path(videos).is_absolute():
        raise UserError(f'--videos {videos}: with --beam {runner} give the whole path, under which workers find it')


def _is_local(runner: str) -> bool:
    return runner.lower() in DIRECT


def _pipeline(runner: str, flags: Sequence[str]) -> beam.Pipeline:
    local = _is_local(runner)
    if flags and not flags[0].startswith('--'):
        raise UserError(f'--beam-options {flags[0]}: options of a runner begin with --')
    flags = [*(DIRECT_OPTIONS if local else ()), *flags]
    try:
        options = PipelineOptions(flags)
        known = options.get_all_options()
        if local and (unknown := sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known))):
            raise UserError(f'--beam-options --{unknown[0]}: Beam has no such option')
    except SystemExit:  # it has printed what is wrong
        raise UserError(f'--beam-options: Beam cannot read {" ".join(flags)}') from None
    try:
        # Beam's own direct runner first looks for a program that it would download.
        chosen = FnApiRunner() if local else create_runner(runner)
        return beam.Pipeline(runner=chosen, options=options)
    except (ValueError, ImportError, AttributeError) as e:
        raise UserError(f'--beam {runner}: {_last_line(e)}') from e


def _reason_path(path: Path) -> Path:
    return path.with_suffix('.unusable.json')


def _reasons(runner: str, pending: Mapping[str, tuple[ClipSpec, Path]]) -> dict[str, str]:
    """What the workers could not use; every other clip must have its archive."""
    reasons = {}
    for name, (_, path) in pending.items():
        if path.is_file():
            continue
        try:
            reasons[name] = json.loads(_reason_path(path).read_text(encoding='utf-8'))['reason']
        except FileNotFoundError:
            raise UserError(
                f'--beam {runner}: the workers are done, but {path} is not here; give a --data-dir that all workers '
                'see under the same path'
            ) from None
    for _, path in pending.values():
        _reason_path(path).unlink(missing_ok=True)
    return reasons


def _failed(runner: str, pending: Mapping[str, tuple[ClipSpec, Path]], reason: str) -> str:
    done = sum(path.is_file() for _, path in pending.values())
    return (
        f'--beam {runner}: failed ({reason}); {done} of {len(pending)} clips are finished and kept: the same command '
        'goes on with the others'
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]


@contextlib.contextmanager
def _counting(paths: Sequence[Path]) -> Iterator[None]:
    """A bar of the archives that are there, while others write them."""
    ended = threading.Event()

    def look(bar: Progress) -> None:
        shown, left = 0, list(paths)
        while not ended.wait(LOOK_EVERY):
            left = [p for p in left if not p.is_file() and not _reason_path(p).is_file()]
            bar.update(len(paths) - len(left) - shown)
            shown = len(paths) - len(left)

    with Progress(len(paths), 'tracking', unit='clip') as bar:
        looking = threading.Thread(target=look, args=(bar,), daemon=True)
        looking.start()
        try:
            yield
        finally:
            ended.set()
            looking.join()
