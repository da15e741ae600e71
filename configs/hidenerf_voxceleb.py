"""HiDe-NeRF as in the paper: VoxCeleb clips at 256 pixels, BFM coefficients, both discriminators.

    avatar-jax train --config configs/hidenerf_voxceleb.py --out runs/hidenerf --config.data.folder=DIR \
        --config.perception="('vgg16=vgg16.npz','lpips_vgg=vgg.npz')"

``data.folder`` is a data set that ``python -m data_pipelines.tracked voxceleb1`` (or ``voxceleb2``) built, with masks
(docs/datasets.md).

Variants: ``tiny`` (a few thousand parameters, procedural clips; both discriminators begin at the second step), and the
rows of the paper's Table 5: no_multi_scale, no_camera_to_world, no_secc; plane_warp (equation 1 to the letter). Join
with commas.
"""

from __future__ import annotations

from avatar_jax.configure import run_fields, unknown_variant


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.hidenerf.config import ABLATIONS, ModelConfig
    from avatar_jax.methods.hidenerf.train import RunConfig
    from avatar_jax.train.run import ClipsConfig, PeopleOutput

    names = [v for v in variant.split(',') if v]
    for name in names:
        if name not in ('tiny', *ABLATIONS):
            raise unknown_variant(name, ['tiny', *ABLATIONS])
    changes = {k: v for name in names for k, v in ABLATIONS.get(name, {}).items()}
    if 'tiny' in names:
        model = ModelConfig.tiny(loss__adversarial=0.05, **changes)
        data = ClipsConfig(people=2, frames=4, resolution=16, in_memory=True)
        output = PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1)
    else:
        model, output = ModelConfig.paper(**changes), PeopleOutput(sample_every=1000, checkpoint_every=1000)
        data = ClipsConfig('built', 'data/voxceleb')
    return run_fields('hidenerf', RunConfig(model=model, data=data, output=output))
