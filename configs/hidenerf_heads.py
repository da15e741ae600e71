"""HiDe-NeRF on procedural heads: 128 pixels, fresh networks, on pictures that are drawn once (into data/) and kept.

    avatar-jax train --config configs/hidenerf_heads.py --out runs/hidenerf

Variants (``hidenerf_heads.py:NAME``): ``tiny`` (a few thousand parameters, for trying the commands), ``small`` (32
pixels, for comparing variants), ``fine`` (64 x 64 rays, to go on from weights with 32 x 32, with
``--config.init=FILE --config.init_parts="('appearance', 'deformation', 'points')"``), ``full`` (the published sizes at
256 pixels, for measuring speed and memory), and the rows of the paper's Table 5: no_multi_scale, no_camera_to_world,
no_secc; plane_warp (equation 1 to the letter). Join with commas: ``small,no_secc``.
"""

from __future__ import annotations

from avatar_jax.configure import run_fields, unknown_variant

SIZES = ('tiny', 'small', 'fine', 'full')


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.hidenerf.config import ABLATIONS, FINE, SMALL, ModelConfig
    from avatar_jax.methods.hidenerf.train import RunConfig
    from avatar_jax.train.run import ClipsConfig, PeopleOutput

    names = [v for v in variant.split(',') if v]
    for name in names:
        if name not in (*SIZES, *ABLATIONS):
            raise unknown_variant(name, [*SIZES, *ABLATIONS])
    changes = {k: v for name in names for k, v in ABLATIONS.get(name, {}).items()}
    output = PeopleOutput(log_every=20, sample_every=500, sample_people=4, checkpoint_every=250)
    if 'tiny' in names:
        config = RunConfig(
            model=ModelConfig.tiny(**changes),
            data=ClipsConfig(people=2, frames=4, resolution=16, in_memory=True),
            output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1),
        )
    elif 'small' in names:
        data = ClipsConfig('heads', 'data/hidenerf_heads32', people=1000, frames=4)
        config = RunConfig(model=ModelConfig.heads(**SMALL | changes), data=data, output=output)
    elif 'full' in names:
        model = ModelConfig.paper(basis='procedural', shape='mean', **changes)
        config = RunConfig(model=model, data=ClipsConfig(people=64))
    else:
        data = ClipsConfig('heads', 'data/hidenerf_heads', people=1024, frames=4)
        if 'fine' in names:
            changes = FINE | changes
        config = RunConfig(model=ModelConfig.heads(**changes), data=data, output=output, storage='float16')
    return run_fields('hidenerf', config)
