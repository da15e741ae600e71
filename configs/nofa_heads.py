"""NOFA on procedural heads at 128 pixels, from the shipped generator, on pictures that are drawn once and kept.

    avatar-jax train --config configs/nofa_heads.py --out runs/nofa1
    avatar-jax train --config configs/nofa_heads.py:compensation --out runs/nofa2 \
        --config.init=runs/nofa1/weights.safetensors

The first command trains the stage 'general' (encoder, deformation, generator), the second the compensation network.

Variants (``nofa_heads.py:NAME``): ``tiny`` (a few thousand parameters, for trying the commands), ``small`` (32 pixels
from nothing, to compare variants in minutes), the stages ``teeth``
and ``compensation`` (both need ``init``), and rows of the paper's Tables 3 and 5: without_compensation, without_wnet,
without_identity. Join with commas.
"""

from __future__ import annotations

from avatar_jax.configure import run_fields, unknown_variant
from configs._nofa import STAGES, stage_of

SIZES = ('tiny', 'small')


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.nofa.config import ABLATIONS, ModelConfig
    from avatar_jax.methods.nofa.train import RunConfig
    from avatar_jax.train.run import ClipsConfig, PeopleOutput
    from configs._heads import heads_generator

    names = [v for v in variant.split(',') if v]
    for name in names:
        if name not in (*SIZES, *STAGES, *ABLATIONS):
            raise unknown_variant(name, [*SIZES, *STAGES, *ABLATIONS])
    changes = {k: v for name in names for k, v in ABLATIONS.get(name, {}).items()}
    start = stage_of(names)
    if 'tiny' in names:
        config = RunConfig(
            model=ModelConfig.tiny(**changes),
            data=ClipsConfig(people=2, frames=4, resolution=32, in_memory=True),
            output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1),
            **start,
        )
    elif 'small' in names:
        config = RunConfig(
            model=ModelConfig.small(**changes),
            data=ClipsConfig('heads', 'data/nofa_heads32', people=1000, frames=4),
            output=PeopleOutput(log_every=20, sample_every=500, sample_people=4, checkpoint_every=250),
            **start,
        )
    else:
        from dataclasses import replace

        model = ModelConfig.heads(**changes)
        generator = heads_generator().replace(rendering={'ray_chunk': 4096})
        encoder = replace(model.settings.encoder, num_ws=generator.num_ws, w_dim=generator.w_dim)
        model = ModelConfig(generator, replace(model.settings, encoder=encoder))
        config = RunConfig(
            model=model,
            data=ClipsConfig('heads', 'data/nofa_heads', people=4000, frames=4),
            output=PeopleOutput(log_every=20, sample_every=500, sample_people=4, checkpoint_every=250),
            generator='' if start.get('init') else 'heads128',
            storage='float16',
            **start,
        )
    return run_fields('nofa', config)
