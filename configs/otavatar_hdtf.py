"""OTAvatar as the paper trains it: 512 pixels, FFHQ generator, 24 people per iteration, 2000 iterations.

    avatar-jax train --config configs/otavatar_hdtf.py --out runs/hdtf --config.data.folder=DIR \
        --config.init=ffhq512.safetensors --config.perception="('vgg19=vgg19.npz','arcface18=arcface.npz')"

The paper trains for less than two days on four A100 GPUs, six people each (section 4); the text gives no number for
the memory. ``data.folder`` is a data set built from talking-head clips (docs/data.md); ``init`` the converted FFHQ
generator, which gets a fresh controller (algorithm 1, line 1), or a converted OTAvatar with both.

Variants: ``paper`` (default), ``release`` (what the released weights were trained with), ``tiny`` (a few thousand
parameters, procedural clips), and the ablations of the paper by name, as in otavatar_heads.py. Join with commas.
"""

from __future__ import annotations

import dataclasses

from avatar_jax.configure import run_fields
from configs._otavatar import names_of, tiny_run


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.otavatar.config import ABLATIONS, OTAvatarConfig
    from avatar_jax.methods.otavatar.model import ModelConfig
    from avatar_jax.methods.otavatar.train import DataConfig, RunConfig
    from avatar_jax.models.triplane import GeneratorConfig
    from avatar_jax.train.run import PeopleOutput

    names, preset = names_of(variant)
    if 'tiny' in names:
        config = tiny_run(preset)
        settings = config.model.settings
    else:
        settings = OTAvatarConfig.release() if preset == 'release' else OTAvatarConfig.paper()
        config = RunConfig(
            model=ModelConfig(GeneratorConfig.ffhq512(), settings, basis='bfm2009-deep3d', label_mode='orig'),
            data=DataConfig(source='built', folder='hdtf'),
            output=PeopleOutput(log_every=10, sample_every=100, checkpoint_every=100, keep_every=500),
        )
        settings = config.model.settings
    for name in names:
        if name in ABLATIONS:
            settings = settings.ablation(name)
    return run_fields(
        'otavatar', dataclasses.replace(config, model=dataclasses.replace(config.model, settings=settings))
    )
