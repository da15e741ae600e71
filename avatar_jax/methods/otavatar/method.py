"""OTAvatar: one-shot talking faces with controllable tri-plane rendering (CVPR 2023).

The identity code of a portrait is found by inversion, while a controller's answer to the portrait's own expression is
added; the same controller then turns anyone's motion into codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from avatar_jax.io.assets import Asset
from avatar_jax.methods.base import Bench, Forward, Method, Training, later, later_value, option
from avatar_jax.methods.eg3d.method import GENERATOR_BENCH


@dataclass(frozen=True)
class BuildOptions:
    """How a person is inverted; fields are keywords of ``Model.build`` and flags of ``avatar-jax invert``."""

    steps: int | None = option(
        None,
        'optimisation steps in W, and again in W+ (default: as configured in the weights); 0: none, the code of --start'
        ' encoder as it is',
    )
    space: str = option(
        'w+',
        "space in which the code is optimised: 'w' (one style vector for all layers) or, after it, 'w+' (one for each "
        'layer)',
        choices=('w', 'w+'),
    )
    early_stop: bool = option(False, 'stop optimising a person when the loss no longer falls')
    start: str = option(
        'mean',
        'the code that the inversion starts from: the mean code, or what an encoder sees in the picture',
        choices=('mean', 'encoder'),
    )
    encoder: str = option(
        '', 'with --start encoder: weights that hold an encoder for the same generator', metavar='FILE'
    )
    tune: str = option(
        'auto',
        'what is fitted to the person afterwards: a copy of the generator (pivotal tuning; avatar files get bigger), '
        'nothing, or auto: the generator, where the weights know procedural heads only and the code alone shows the '
        'portrait badly, as photographs',
        choices=('auto', 'generator', 'none'),
    )
    fit_steps: int | None = option(None, 'steps of the fit (default: 50)')
    fit_stop: float | None = option(
        None, 'end the fit when the picture is shown this well (default: after its steps)', metavar='DB'
    )
    locality: float | None = option(
        None,
        "with --tune generator or auto: weight of PTI's term that keeps pictures of other codes as they were "
        '(default: 0)',
    )
    hold: float | None = option(
        None,
        'with --tune generator or auto: how strongly the shape is kept as it was before the fit, and the unseen side '
        'near the mirror image of the seen one (default: 0, not at all; with auto 1)',
    )
    portion: int | None = option(
        None,
        'people of a group that each device inverts, or fits, at the same time; the others wait for their turn '
        '(default: as many as half of its memory is enough for)',
    )


METHOD = Method(
    name='otavatar',
    title='OTAvatar',
    weights='heads128',
    config=later('avatar_jax.methods.otavatar.model:ModelConfig.from_dict'),
    load=later('avatar_jax.methods.otavatar.model:load_model'),
    save=later('avatar_jax.methods.otavatar.model:save_model'),
    init=later('avatar_jax.methods.otavatar.model:init'),
    abstract=later('avatar_jax.methods.otavatar.model:abstract'),
    sources=('portrait', 'portraits'),
    most=8,
    one_each=True,
    build=later('avatar_jax.methods.otavatar.build:build'),
    build_many=later('avatar_jax.methods.otavatar.build:build_many'),
    build_options=BuildOptions,
    forward=Forward({'start': 'encoder', 'steps': 0, 'tune': 'none'}, needs=('encoder',)),
    steps=later('avatar_jax.methods.otavatar.build:num_steps'),
    signals=('windows',),
    prepare=later('avatar_jax.methods.otavatar.model:prepare'),
    frame=later('avatar_jax.methods.otavatar.model:frame'),
    interpolate=later('avatar_jax.inversion.invert:interpolate'),
    networks=later('avatar_jax.methods.otavatar.build:networks'),
    looks_through=later('avatar_jax.methods.otavatar.build:looks_through'),
    trainings={
        'decoupling': Training(
            config=later('avatar_jax.methods.otavatar.training:run_config'),
            start=later('avatar_jax.methods.otavatar.training:start'),
            program=later('avatar_jax.methods.otavatar.training:program'),
            example='configs/otavatar_heads.py',
        )
    },
    evaluation_options={'tune': 'none'},
    bench=Bench(
        presets=GENERATOR_BENCH.presets,
        stages=(*GENERATOR_BENCH.stages, 'people'),
        config=GENERATOR_BENCH.config,
        build=later('avatar_jax.methods.otavatar.stages:Stages'),
    ),
    foreign=later_value('avatar_jax.methods.otavatar.foreign:FOREIGN'),
    assets=(
        Asset(
            'otavatar',
            'released avatars from one portrait: controller and fine-tuned generator',
            'see the OTAvatar project; the generator descends from EG3D',
            'the release page of the OTAvatar project',
            ('epoch_*_iteration_*_checkpoint.pt',),
            ('otavatar', 'otavatar_training', 'otavatar_controller'),
            31_531_556,
        ),
    ),
)
