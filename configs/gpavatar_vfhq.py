"""GPAvatar as the paper trains it: VFHQ at 512 pixels, two portraits, 150,000 steps of 8 sets of frames.

    avatar-jax train --config configs/gpavatar_vfhq.py --out runs/vfhq --config.data.folder=DIR \\
        --config.perception="('alexnet=alexnet.npz',)"

``data.folder`` has ``dataset.pkl`` and the LMDB environment of GPAvatar's preparation (docs/datasets.md): 8,013 clips
of 30 frames. FLAME is found among the optional files (``avatar-jax assets``). The paper trains for about 50 hours on
two A100 GPUs (section 4).

Variants: ``paper`` (default), ``release`` (what the released weights were trained with: 200,000 steps of 4 sets of
frames), ``tracked`` (folders that ``avatar-jax track`` wrote, in the basis of the procedural head and with the mean
head's points; ``data.folder`` holds them), and the rows of the paper's Table 3: no_field, local, few_points,
four_neighbours, mean. Join with commas: ``release,mean``.
"""

from __future__ import annotations

import dataclasses

from avatar_jax.configure import run_fields, unknown_variant


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    from avatar_jax.methods.gpavatar.config import ABLATIONS, ModelConfig
    from avatar_jax.methods.gpavatar.train import RunConfig
    from avatar_jax.train.run import ClipsConfig, PeopleOutput

    known = ['paper', 'release', 'tracked', *ABLATIONS]
    names = [v for v in variant.split(',') if v]
    for name in names:
        if name not in known:
            raise unknown_variant(name, known)
    preset = 'release' if 'release' in names else 'paper'
    changes = {}
    if 'tracked' in names:
        changes = {'basis': 'procedural', 'shape': 'mean'}
    model = ModelConfig.full(preset, **changes).with_method(loss__network='alexnet')
    if 'tracked' in names:
        model = model.with_method(field__points=1000)
    for name in names:
        if name in ABLATIONS:
            model = dataclasses.replace(model, settings=model.settings.ablation(name))
    config = RunConfig(
        model=model,
        data=ClipsConfig(source='built', folder='datasets/vfhq'),
        output=PeopleOutput(log_every=20, sample_every=5000, checkpoint_every=1000, keep_every=25_000),
    )
    return run_fields('gpavatar', config)
