"""HiDe-NeRF: high-fidelity and freely controllable talking head generation (CVPR 2023).

A pyramid of tri-planes is computed from the source picture; the difference of two rendered images of the head model
moves all sample points; a refine network with the source's identity features makes the picture.
"""

from __future__ import annotations

from pathlib import Path

from avatar_jax.methods.base import Bench, Method, Row, Table, Training, later, never

# The paper's Table 5: PRMSE suffers most without the camera-to-world transform, and is the same without multi-scale.
TABLE_5 = {
    'full': Row('full', '1', {'csim': 0.876, 'prmse': 2.62}),
    'without multi-scale': Row('no_multi_scale', '1', {'csim': 0.814, 'prmse': 2.62}),
    'without camera-to-world': Row('no_camera_to_world', '1', {'csim': 0.760, 'prmse': 3.58}),
    'without SECC': Row('no_secc', '1', {'csim': 0.802, 'prmse': 3.06}),
}


def table_run(variant: str, size: str, seed: int, steps: int | None, pictures: str | Path) -> tuple[str, list[str]]:
    """The configuration that a variant of Table 5 is trained with, and its overrides."""
    parts = [name for name in ('small' if size == 'tiny' else '', '' if variant == 'full' else variant) if name]
    overrides = [f'--config.seed={seed}', '--config.output.sample_people=0', f'--config.data.folder={pictures}']
    if steps is not None:
        from avatar_jax.methods.hidenerf.config import SMALL, ModelConfig

        train = ModelConfig.heads(**(SMALL if size == 'tiny' else {})).train.of_length(steps)
        changed = ('iterations', 'refine_from', 'milestones')
        overrides += [f'--config.model.train.{name}={getattr(train, name)}' for name in changed]
    return 'hidenerf_heads' + (f':{",".join(parts)}' if parts else ''), overrides


METHOD = Method(
    name='hidenerf',
    title='HiDe-NeRF',
    weights='hidenerf128',
    config=later('avatar_jax.methods.hidenerf.config:ModelConfig.from_dict'),
    load=later('avatar_jax.methods.hidenerf.model:load_model'),
    save=later('avatar_jax.methods.hidenerf.model:save_model'),
    init=later('avatar_jax.methods.hidenerf.model:init'),
    abstract=later('avatar_jax.methods.hidenerf.model:abstract'),
    sources=('portrait',),
    build=later('avatar_jax.methods.hidenerf.build:build_avatar'),
    draws=never,
    signals=('expression',),
    prepare=later('avatar_jax.methods.hidenerf.model:prepare'),
    frame=later('avatar_jax.methods.hidenerf.model:frame'),
    trainings={
        'pairs': Training(
            config=later('avatar_jax.methods.hidenerf.training:run_config'),
            start=later('avatar_jax.methods.hidenerf.training:start'),
            program=later('avatar_jax.methods.hidenerf.training:program'),
            example='configs/hidenerf_heads.py',
        )
    },
    bench=Bench(
        presets=('heads', 'full', 'tiny'),
        stages=(
            'planes',
            'identity',
            'modulations',
            'codes',
            'deformation',
            'rendering',
            'refine',
            'frame',
            'training',
        ),
        config=later('avatar_jax.methods.hidenerf.stages:config_of'),
        build=later('avatar_jax.methods.hidenerf.stages:Stages'),
        note='planes, identity and modulations are computed once per avatar; the paper reports no times',
    ),
    tables={
        'hidenerf5': Table(
            title='HiDe-NeRF, Table 5',
            rows=TABLE_5,
            claims=tuple(('full', row) for row in TABLE_5 if row != 'full'),
            scores={'psnr': True, 'prmse': False, 'csim': True, 'aed': False},
            run=table_run,
            protocol='portraits',
            note='PSNR of the whole picture; head angles (PRMSE, degrees), identity (CSIM to the true picture) and '
            'expression distance (AED) by stand-in networks that know procedural heads; the paper drives across people',
        )
    },
)
