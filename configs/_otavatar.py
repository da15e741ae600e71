"""What OTAvatar's experiments have in common: their variants by name, and the smallest run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from avatar_jax.configure import unknown_variant

if TYPE_CHECKING:
    from avatar_jax.methods.otavatar.train import RunConfig


def names_of(variant: str) -> tuple[list[str], str]:
    """The names in 'release,joint', and the preset that they choose.

    Raises:
        UserError: a name that there is not.
    """
    from avatar_jax.methods.otavatar.config import ABLATIONS

    names, known = [v for v in variant.split(',') if v], ['tiny', 'release', 'paper', *ABLATIONS]
    for name in names:
        if name not in known:
            raise unknown_variant(name, known)
    return names, 'release' if 'release' in names else 'paper'


def tiny_run(preset: str) -> RunConfig:
    """Fresh networks of a few thousand parameters on three people."""
    from avatar_jax.methods.otavatar.model import ModelConfig
    from avatar_jax.methods.otavatar.train import DataConfig, RunConfig
    from avatar_jax.train.run import PeopleOutput

    model = ModelConfig.tiny(preset)
    return RunConfig(
        model=dataclasses.replace(model, settings=model.settings.replace(train__iterations=4)),
        data=DataConfig(people=3, frames=30, resolution=32, in_memory=True),
        output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1),
    )
