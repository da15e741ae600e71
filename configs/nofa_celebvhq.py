"""NOFA as in the paper: EG3D's FFHQ generator at 512 pixels, CelebV-HQ clips, BFM coefficients, three stages.

    avatar-jax train --config configs/nofa_celebvhq.py --out runs/nofa1 --config.data.folder=DIR \
        --config.generator=ffhq512.safetensors --config.backbone=model_ir_se50.pth
    avatar-jax train --config configs/nofa_celebvhq.py:teeth --out runs/nofa2 \
        --config.init=runs/nofa1/weights.safetensors --config.teacher=GFPGANv1.4.pth
    avatar-jax train --config configs/nofa_celebvhq.py:compensation --out runs/nofa3 \
        --config.init=runs/nofa2/weights.safetensors

Variants: the stages ``general`` (default), ``teeth`` and ``compensation``, ``tiny`` (a few thousand parameters,
procedural clips), and rows of Tables 3 and 5: without_compensation, without_wnet, without_identity. Join with commas.
"""

from __future__ import annotations

from avatar_jax.configure import run_fields, unknown_variant
from configs._nofa import STAGES, stage_of


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.nofa.config import ABLATIONS, ModelConfig
    from avatar_jax.methods.nofa.train import RunConfig
    from avatar_jax.train.run import ClipsConfig, PeopleOutput

    names = [v for v in variant.split(',') if v]
    for name in names:
        if name not in ('tiny', *STAGES, *ABLATIONS):
            raise unknown_variant(name, ['tiny', *STAGES, *ABLATIONS])
    changes = {k: v for name in names for k, v in ABLATIONS.get(name, {}).items()}
    if 'tiny' in names:
        model = ModelConfig.tiny(**changes)
        data = ClipsConfig(people=2, frames=4, resolution=32, in_memory=True)
        output = PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1)
    else:
        model, output = ModelConfig.paper(**changes), PeopleOutput(sample_every=1000, checkpoint_every=1000)
        data = ClipsConfig('built', 'data/celebvhq')
    return run_fields('nofa', RunConfig(model=model, data=data, output=output, **stage_of(names)))
