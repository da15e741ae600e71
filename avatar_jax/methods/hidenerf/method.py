"""HiDe-NeRF: high-fidelity and freely controllable talking head generation (CVPR 2023).

A pyramid of tri-planes is computed from the source picture; the difference of two rendered images of the head model
moves all sample points; a refine network with the source's identity features makes the picture.
"""

from __future__ import annotations

from pathlib import Path

from avatar_jax.methods.base import Bench, Claim, Forward, Method, Row, Table, Training, later, never

# The paper's Table 5 (VoxCeleb1, driven across people).
TABLE_5 = {
    'full': Row('full', '1', {'csim': 0.876, 'aucon': 0.917, 'prmse': 2.62, 'avd': 0.012}),
    'without multi-scale': Row('no_multi_scale', '1', {'csim': 0.814, 'aucon': 0.852, 'prmse': 2.62, 'avd': 0.017}),
    'without camera-to-world': Row(
        'no_camera_to_world', '1', {'csim': 0.760, 'aucon': 0.864, 'prmse': 3.58, 'avd': 0.024}
    ),
    'without SECC': Row('no_secc', '1', {'csim': 0.802, 'aucon': 0.879, 'prmse': 3.06, 'avd': 0.018}),
}
CLAIMS = (
    Claim('full', 'without multi-scale', ('csim', 'aucon', 'avd')),
    Claim('full', 'without multi-scale', ('prmse',), equal=True),
    Claim('full', 'without camera-to-world', ('csim', 'aucon', 'prmse', 'avd')),
    Claim('full', 'without SECC', ('csim', 'aucon', 'prmse', 'avd')),
    Claim('without multi-scale', 'without camera-to-world', ('prmse',)),  # which the head's angles need most
    Claim('without SECC', 'without camera-to-world', ('prmse',)),
)


def table_run(variant: str, size: str, seed: int, steps: int | None, pictures: str | Path) -> tuple[str, list[str]]:
    """The configuration that a variant of Table 5 is trained with, and its overrides."""
    parts = [name for name in ('small' if size == 'tiny' else '', '' if variant == 'full' else variant) if name]
    overrides = [f'--config.seed={seed}', '--config.output.sample_people=0', f'--config.data.folder={pictures}']
    if steps is not None:
        from avatar_jax.methods.hidenerf.config import SMALL, ModelConfig

        train = ModelConfig.heads(**(SMALL if size == 'tiny' else {})).train.of_length(steps)
        changed = ('iterations', 'gan_from', 'refine_from', 'milestones')
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
    forward=Forward(),
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
            'discriminators',
            'training',
        ),
        config=later('avatar_jax.methods.hidenerf.stages:config_of'),
        build=later('avatar_jax.methods.hidenerf.stages:Stages'),
        note='planes, identity and modulations are computed once per avatar; the paper reports no times',
        compared=(('frame', 'planes+identity+modulations+frame'),),
    ),
    tables={
        'hidenerf5': Table(
            title='HiDe-NeRF, Table 5',
            rows=TABLE_5,
            claims=CLAIMS,
            scores={'psnr': True, 'csim': True, 'aucon': True, 'prmse': False, 'avd': False},
            run=table_run,
            protocol='portraits',
            note='PSNR of the whole picture (not in the paper); identity (CSIM to the true picture), equal action '
            "units (AUCON), head angles (PRMSE, degrees) and the shape's distance from the portrait's (AVD, "
            'decimetres) by stand-in networks that know procedural heads, of which that for action units is weak; the '
            'paper drives across people',
        )
    },
)
