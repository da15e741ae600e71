"""Trains a run's configuration as ``avatar-jax train`` does, whatever its method; resumes as after a kill."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from avatar_jax.io.lock import NAME as LOCK
from avatar_jax.methods.base import training
from avatar_jax.train import runner
from avatar_jax.train.checkpoints import Checkpoints
from data_pipelines import streams


def train(config, out, *, resume=False, quiet=True, programs=None):
    """The final state. The configuration's module says whose training it is."""
    owner = type(config).__module__.split('.')[2]
    start = training(owner).start
    return runner.train(start, config, out, streams, resume=resume, quiet=quiet, programs=programs)


class Both(NamedTuple):
    """A training from beginning to end, and one that was ended in between and resumed: final states and folders.

    And their steps by kind (``parallel.Parallel``), for other tests of the same configuration.
    """

    whole: Any
    resumed: Any
    folder: Path
    resumed_folder: Path
    programs: dict


def train_and_resume(config, out: Path, after: int) -> Both:
    """Trains in ``out/whole``; resumes in ``out/parts`` what a kill after a step would have left of it.

    Both share their compiled programs. That a kill leaves no more than that, and a new process resumes it, is in
    tests/test_train_loop.py.
    """
    programs, whole, parts = {}, out / 'whole', out / 'parts'
    with copied_as_if_killed(whole, parts, after):
        state = train(config, whole, programs=programs)
    return Both(state, train(config, parts, resume=True, programs=programs), whole, parts, programs)


@contextlib.contextmanager
def copied_as_if_killed(folder: Path, copy: Path, after: int) -> Iterator[None]:
    """A run inside of it (with a checkpoint after every step) leaves in ``copy`` what kill -9 would leave after a step.

    The folder is copied in the midst of the run.
    """
    save = Checkpoints.save

    def saved(self, step, *given, **named):
        save(self, step, *given, **named)  # returns when the checkpoint is complete
        if step == after:
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(LOCK))  # its holder lives

    with mock.patch.object(Checkpoints, 'save', saved):
        yield
    assert copy.is_dir(), 'the run did not come to this step'


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Commands inside of it that train one and the same configuration share their compiled programs."""
    train, programs = runner.train, {}
    with mock.patch.object(runner, 'train', lambda *given, **named: train(*given, **named, programs=programs)):
        yield


def flags_of_devices(count: int) -> dict[str, str]:
    """Environment of a process with so many devices on the CPU, whose programs are compiled quickly as here."""
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'
    return {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{flags.strip()} --xla_force_host_platform_device_count={count}',
    }
