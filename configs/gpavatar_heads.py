"""GPAvatar on procedural heads: 128 pixels, fresh networks, on pictures that are drawn once (into data/) and kept.

    avatar-jax train --config configs/gpavatar_heads.py --out runs/gpavatar
    avatar-jax train --config configs/gpavatar_heads.py:eyes --out runs/eyes \
        --config.init=runs/gpavatar/weights.safetensors

The second command continues from the networks of the first, draws most rays at the eyes, and gives the coefficients to
the expression field.

Variants (``gpavatar_heads.py:NAME``): ``tiny`` (a few thousand parameters, to try the commands), ``small`` (32
pixels, to compare variants), ``eyes`` (above), ``full`` (the published sizes at 512 pixels), ``paper`` (the paper's
settings instead of the release's), and the rows of the paper's Table 3: no_field, local, few_points, four_neighbours,
mean. Join with commas: ``tiny,mean``.
"""

from __future__ import annotations

import dataclasses

from avatar_jax.configure import run_fields, unknown_variant

SIZES = ('tiny', 'small', 'full')
OTHERS = ('eyes', 'paper', 'release')


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.gpavatar.config import ABLATIONS, EYES, ModelConfig
    from avatar_jax.methods.gpavatar.train import RunConfig
    from avatar_jax.train.run import ClipsConfig, PeopleOutput

    names = [v for v in variant.split(',') if v]
    for name in names:
        if name not in (*SIZES, *OTHERS, *ABLATIONS):
            raise unknown_variant(name, [*SIZES, *OTHERS, *ABLATIONS])
    preset = 'paper' if 'paper' in names else 'release'
    if 'tiny' in names:
        config = RunConfig(
            model=ModelConfig.tiny(preset),
            data=ClipsConfig(people=2, frames=4, resolution=16, in_memory=True),
            output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1),
        )
    elif 'small' in names:
        config = RunConfig(
            model=ModelConfig.small(preset),
            data=ClipsConfig('heads', 'data/gpavatar_heads32', people=1000, frames=4),
            output=PeopleOutput(log_every=20, sample_every=1000, sample_people=4, checkpoint_every=250),
        )
    elif 'full' in names:
        # Black background and 512 pixels would need photographs; with heads it is for measuring speed and memory.
        config = RunConfig(
            model=ModelConfig.full(preset, basis='procedural').with_method(background=1.0), data=ClipsConfig(people=64)
        )
    else:
        config = RunConfig(
            model=ModelConfig.heads(preset),
            data=ClipsConfig('heads', 'data/gpavatar_heads', people=4000, frames=4),
            storage='float16',
            output=PeopleOutput(log_every=20, sample_every=1000, sample_people=4, checkpoint_every=250),
        )
    model = config.model
    if 'eyes' in names:
        model = model.with_method(**EYES)
    for name in names:
        if name in ABLATIONS:
            model = dataclasses.replace(model, settings=model.settings.ablation(name))
    return run_fields('gpavatar', dataclasses.replace(config, model=model))
