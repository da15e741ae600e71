"""GPAvatar: generalizable and precise head avatars from images (ICLR 2024).

One forward pass makes tri-planes of each portrait and attention fuses them; a field of points that move with the head
model adds the expression.
"""

from __future__ import annotations

from pathlib import Path

from avatar_jax.io.assets import Asset
from avatar_jax.methods.base import Bench, Forward, Method, Row, Table, Training, later, later_value

# The paper's Table 3: PSNR and AED.
TABLE_3 = {
    'without field': Row('no_field', '1', {'psnr': 22.01, 'aed': 0.576}),
    'local sampling': Row('local', '1', {'psnr': 21.58, 'aed': 0.518}),
    'fewer points': Row('few_points', '1', {'psnr': 21.95, 'aed': 0.497}),
    'four neighbours': Row('four_neighbours', '1', {'psnr': 22.04, 'aed': 0.514}),
    'one portrait': Row('full', '1', {'psnr': 22.08, 'aed': 0.434}),
    'mean of two': Row('mean', '2', {'psnr': 22.75, 'aed': 0.452}),
    'mean of three': Row('mean', '3', {'psnr': 23.03, 'aed': 0.455}),
    'mean of four': Row('mean', '4', {'psnr': 23.16, 'aed': 0.449}),
    'two portraits': Row('full', '2', {'psnr': 22.86, 'aed': 0.411}),
    'three portraits': Row('full', '3', {'psnr': 23.27, 'aed': 0.403}),
    'four portraits': Row('full', '4', {'psnr': 23.49, 'aed': 0.400}),
}
CLAIMS = (
    ('one portrait', 'without field'),
    ('one portrait', 'local sampling'),
    ('one portrait', 'fewer points'),
    ('one portrait', 'four neighbours'),
    ('two portraits', 'one portrait'),
    ('four portraits', 'two portraits'),
    ('two portraits', 'mean of two'),
    ('three portraits', 'mean of three'),
    ('four portraits', 'mean of four'),
)


def table_run(variant: str, size: str, seed: int, steps: int | None, pictures: str | Path) -> tuple[str, list[str]]:
    """The configuration that a variant of Table 3 is trained with, and its overrides."""
    parts = [name for name in ('small' if size == 'tiny' else '', '' if variant == 'full' else variant) if name]
    overrides = [f'--config.seed={seed}', '--config.output.sample_people=0', f'--config.data.folder={pictures}']
    if steps is not None:
        from avatar_jax.methods.gpavatar.config import ModelConfig

        train = (ModelConfig.small if size == 'tiny' else ModelConfig.heads)('release').settings.train.of_length(steps)
        changed = ('iterations', 'ray_iterations', 'milestones')
        overrides += [f'--config.model.settings.train.{name}={getattr(train, name)}' for name in changed]
    return 'gpavatar_heads' + (f':{",".join(parts)}' if parts else ''), overrides


METHOD = Method(
    name='gpavatar',
    title='GPAvatar',
    weights='gpavatar128',
    config=later('avatar_jax.methods.gpavatar.config:ModelConfig.from_dict'),
    load=later('avatar_jax.methods.gpavatar.model:load_model'),
    save=later('avatar_jax.methods.gpavatar.model:save_model'),
    init=later('avatar_jax.methods.gpavatar.model:init'),
    abstract=later('avatar_jax.methods.gpavatar.model:abstract'),
    sources=('portrait', 'portraits'),
    build=later('avatar_jax.methods.gpavatar.build:build'),
    forward=Forward(),
    draws=later('avatar_jax.methods.gpavatar.build:draws'),
    signals=('expression',),
    frame=later('avatar_jax.methods.gpavatar.model:frame'),
    interpolate=later('avatar_jax.inversion.invert:interpolate'),
    looks_through=later('avatar_jax.methods.gpavatar.build:looks_through'),
    trainings={
        'sets': Training(
            config=later('avatar_jax.methods.gpavatar.training:run_config'),
            start=later('avatar_jax.methods.gpavatar.training:start'),
            program=later('avatar_jax.methods.gpavatar.training:program'),
            example='configs/gpavatar_heads.py',
        )
    },
    bench=Bench(
        presets=('heads', 'full', 'tiny'),
        stages=(
            'encoder',
            'fusion',
            'points',
            'neighbours',
            'field',
            'rendering',
            'superresolution',
            'frame',
            'training',
        ),
        config=later('avatar_jax.methods.gpavatar.stages:config_of'),
        build=later('avatar_jax.methods.gpavatar.stages:Stages'),
        note='the paper reports 15 frames per second (66 ms per frame) on an A100 for the full size, batch 1',
    ),
    foreign=later_value('avatar_jax.methods.gpavatar.foreign:FOREIGN'),
    assets=(
        Asset(
            'gpavatar',
            'released avatars in one forward pass of one or several portraits (needs FLAME)',
            'see the GPAvatar project',
            'the release page of the GPAvatar project',
            ('one_model.ckpt',),
            ('gpavatar',),
            107_300_000,
        ),
    ),
    tables={
        'gpavatar3': Table(
            title='GPAvatar, Table 3',
            rows=TABLE_3,
            claims=CLAIMS,
            scores={'psnr': True, 'aed': False},
            run=table_run,
            protocol='portraits',
            note='expression distance (AED) by a stand-in network that knows procedural heads',
        )
    },
)
