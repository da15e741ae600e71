"""Trains a run's configuration as ``avatar-jax train`` does, whatever its method."""

from avatar_jax.methods.base import training
from avatar_jax.train import runner
from data_pipelines import streams


def train(config, out, *, resume=False, quiet=True):
    """The final state. The configuration's module says whose training it is."""
    owner = type(config).__module__.split('.')[2]
    return runner.train(training(owner).start, config, out, streams, resume=resume, quiet=quiet)
