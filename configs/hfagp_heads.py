"""A personal avatar of a procedural head by HFA-GP: 128 pixels, from the shipped prior, on a talking video.

    avatar-jax train --config configs/hfagp_heads.py --out runs/person
    avatar-jax train --config configs/hfagp_heads.py:sound --out runs/sound
    avatar-jax train --config configs/hfagp_heads.py:tracked --out runs/mine --config.data.folder=FOLDER

The video (two minutes, with sound) is drawn once into data/ and kept; ``--config.data.person=N`` with another
``--config.data.folder`` chooses another person.

Variants (``hfagp_heads.py:NAME``): what drives: ``picture``, ``coefficients`` (default), ``sound``, or several, which
are trained together. ``tiny`` (fresh networks of a few thousand parameters, to try the commands), ``heads`` (default),
``full`` (the published sizes and lengths; give --config.init and --config.data.folder); ``paper`` (default) or
``release`` settings; ``tracked`` or ``released``: a video of your own (--config.data.folder). The rows of the paper's
Table 4: k5, k10, k20, k50, not_orthogonal, and no_second_stage. Join with commas: ``tiny,sound,k5``.
"""

from __future__ import annotations

import dataclasses

from avatar_jax.configure import run_fields, unknown_variant
from configs._heads import heads_generator

SIZES = ('tiny', 'heads', 'full')
SOURCES = ('tracked', 'released')


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.hfagp.config import ABLATIONS, DRIVERS, PRESETS, ModelConfig
    from avatar_jax.methods.hfagp.training import RunConfig
    from avatar_jax.train.run import PeopleOutput, PersonConfig

    names = [v for v in variant.split(',') if v]
    known = (*SIZES, *DRIVERS, *PRESETS, *SOURCES, *ABLATIONS)
    for name in names:
        if name not in known:
            raise unknown_variant(name, known)
    preset = 'release' if 'release' in names else 'paper'
    drivers = tuple(n for n in names if n in DRIVERS) or ('coefficients',)
    source = next((n for n in names if n in SOURCES), 'talking')
    if 'tiny' in names:
        model = ModelConfig.tiny(preset, *drivers)
        encoder = dataclasses.replace(model.settings.encoder, coefficients=64)
        model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, encoder=encoder))
        config = RunConfig(
            model=model,
            data=PersonConfig(source, 'data/hfagp_tiny', frames=30, fps=5.0, size=32, supersample=1),
            output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1),
        )
    elif 'full' in names:
        config = RunConfig(
            model=ModelConfig.full(preset, *drivers),
            data=PersonConfig(source, 'data/hfagp_full', size=512),
            output=PeopleOutput(log_every=100, sample_every=5000, sample_people=4, checkpoint_every=5000),
        )
    else:
        model = ModelConfig.heads(preset, *drivers, generator=heads_generator())
        config = RunConfig(
            model=model,
            data=PersonConfig(source, 'data/hfagp_heads'),
            output=PeopleOutput(log_every=20, sample_every=500, sample_people=4, checkpoint_every=250),
            init='heads128',
        )
    settings = config.model.settings
    for name in names:
        if name in ABLATIONS:
            settings = settings.ablation(name)
    return run_fields('hfagp', dataclasses.replace(config, model=dataclasses.replace(config.model, settings=settings)))
