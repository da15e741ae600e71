"""OTAvatar on procedural heads: 128 pixels, from the shipped prior, on clips that are drawn during the training.

    avatar-jax train --config configs/otavatar_heads.py --out runs/heads

Variants (``otavatar_heads.py:NAME``): ``tiny`` (fresh networks of a few thousand parameters, seconds per iteration,
to try the commands), ``release`` (the released program's settings instead of the paper's), and the paper's
ablations by name: n_mo_1, n_mo_5, n_mo_20, joint, no_local, no_identity, no_finetune, motion_in_w, linear_basis,
identity_in_w. Join with commas: ``release,joint``. ``motion_in_w`` and ``linear_basis`` have controllers of another
form than the shipped one: they begin with fresh ones on the shipped generator.
"""

from __future__ import annotations

import dataclasses

from avatar_jax.configure import run_fields
from configs._heads import heads_controller, heads_generator
from configs._otavatar import names_of, tiny_run


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.otavatar.config import ABLATIONS, OTAvatarConfig
    from avatar_jax.methods.otavatar.model import ModelConfig
    from avatar_jax.methods.otavatar.train import DataConfig, RunConfig
    from avatar_jax.train.optimizers import OptimizerConfig
    from avatar_jax.train.run import PeopleOutput

    names, preset = names_of(variant)
    if 'tiny' in names:
        config = tiny_run(preset)
        settings = config.model.settings
    else:
        generator = heads_generator()
        base = OTAvatarConfig.release() if preset == 'release' else OTAvatarConfig.paper()
        # Fewer steps than at 512 pixels: the prior was made for these heads. Its codes have about unit variance and the
        # average code is their origin, so steps are larger. More steps in W+ fit the picture and not the other sides.
        settings = base.replace(
            controller=heads_controller(generator),
            train__batch_size=8,
            train__iterations=500,
            decoupling__sr_steps=10,
            inversion__sr_steps=10,
            loss__perceptual_scales_sr=3,
            optimizers__codes=OptimizerConfig('adam', 0.05),
            inversion__w_steps=100,
            inversion__wplus_steps=50,
        )
        config = RunConfig(
            model=ModelConfig(generator, settings),
            data=DataConfig(people=256, in_memory=False),
            output=PeopleOutput(log_every=1, sample_every=50, checkpoint_every=25),
            init='heads128',
        )
    for name in names:
        if name in ABLATIONS:
            settings = settings.ablation(name)
    if config.init and settings.controller != config.model.settings.controller:
        config = dataclasses.replace(config, init=f'generator={config.init}')  # the shipped controller is another one
    return run_fields(
        'otavatar', dataclasses.replace(config, model=dataclasses.replace(config.model, settings=settings))
    )
