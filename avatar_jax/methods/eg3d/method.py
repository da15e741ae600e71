"""EG3D: efficient geometry-aware 3D generative adversarial networks (CVPR 2022).

The tri-plane generator that other methods invert and drive. Alone it has no avatars: a method with a training only.
"""

from __future__ import annotations

from avatar_jax.io.assets import Asset
from avatar_jax.methods.base import Bench, Method, Training, later, later_value

GENERATOR_BENCH = Bench(
    presets=('heads128', 'ffhq512', 'ffhq512-128', 'afhq512', 'shapenet128', 'tiny'),
    stages=('backbone', 'rendering', 'superresolution', 'frame', 'inversion', 'training'),
    config=later('avatar_jax.methods.eg3d.stages:config_of'),
    build=later('avatar_jax.methods.eg3d.stages:Stages'),
)

METHOD = Method(
    name='eg3d',
    title='EG3D',
    trainings={
        'adversarial': Training(
            config=later('avatar_jax.methods.eg3d.training:run_config'),
            start=later('avatar_jax.methods.eg3d.training:start'),
            program=later('avatar_jax.methods.eg3d.training:program'),
            example='configs/eg3d_heads.py',
        )
    },
    generator=later('avatar_jax.methods.eg3d.files:load_generator'),
    bench=GENERATOR_BENCH,
    foreign=later_value('avatar_jax.methods.eg3d.foreign:FOREIGN'),
    assets=(
        Asset(
            'eg3d',
            'pre-trained tri-plane generator: faces (FFHQ), cats (AFHQ), cars (ShapeNet)',
            'NVIDIA source code licence, research and evaluation only',
            'the model catalogue of the EG3D project',
            (
                'ffhq512-*.pkl',
                'ffhqrebalanced512-*.pkl',
                'ffhqrebalanced512-*.pth',
                'afhqcats512-*.pkl',
                'shapenetcars128-*.pkl',
            ),
            ('eg3d', 'eg3d_discriminator'),
            30_662_136,
        ),
    ),
)
