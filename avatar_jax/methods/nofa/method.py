"""NOFA: NeRF-based one-shot facial avatar reconstruction (SIGGRAPH 2023).

An encoder finds the picture's code in W+ of a tri-plane generator, a compensation network adds to the planes what the
code lost, a deformation field moves the points by coefficients; a quick fit of the compensation network to the one
picture makes it the person.
"""

from __future__ import annotations

from dataclasses import dataclass

from avatar_jax.methods.base import Bench, Forward, Method, Training, later, later_value, option
from avatar_jax.methods.nofa.tables import TABLES


@dataclass(frozen=True)
class BuildOptions:
    """How a portrait becomes an avatar; fields are keywords of ``Model.build`` and flags of ``avatar-jax invert``."""

    tune: str | None = option(
        None,
        'what is fitted to the person after the forward pass (default: as configured in the weights)',
        choices=('compensation', 'generator', 'none'),
    )
    pivot: str | None = option(
        None,
        "the code that the fit starts from: the encoder's, or that of a search in W (default: as configured in the "
        'weights)',
        choices=('encoder', 'search'),
    )
    start: str | None = option(
        None,
        "with --pivot search: the code that the search starts from: the mean code, or the encoder's (default: as "
        'configured in the weights)',
        choices=('mean', 'encoder'),
    )
    fit_steps: int | None = option(None, 'steps of the fit (default: as configured in the weights)')
    fit_stop: float | None = option(
        None, 'end the fit when the picture is shown this well (default: as configured in the weights)', metavar='DB'
    )
    locality: float | None = option(
        None,
        "with --tune generator: weight of PTI's term that keeps pictures of other codes as they were (default: as "
        'configured in the weights)',
    )
    portion: int | None = option(
        None,
        'people of a group that each device fits at the same time; the others wait for their turn (default: as many as '
        'half of its memory is enough for)',
    )


METHOD = Method(
    name='nofa',
    title='NOFA',
    config=later('avatar_jax.methods.nofa.config:ModelConfig.from_dict'),
    load=later('avatar_jax.methods.nofa.model:load_model'),
    save=later('avatar_jax.methods.nofa.model:save_model'),
    init=later('avatar_jax.methods.nofa.model:init'),
    abstract=later('avatar_jax.methods.nofa.model:abstract'),
    sources=('portrait',),
    build=later('avatar_jax.methods.nofa.build:build'),
    build_many=later('avatar_jax.methods.nofa.build:build_many'),
    build_options=BuildOptions,
    forward=Forward({'tune': 'none', 'pivot': 'encoder'}),
    draws=later('avatar_jax.methods.nofa.build:draws'),
    steps=later('avatar_jax.methods.nofa.build:num_steps'),
    signals=('expression',),
    frame=later('avatar_jax.methods.nofa.model:frame'),
    networks=later('avatar_jax.methods.nofa.build:networks'),
    bench=Bench(
        presets=('heads', 'full', 'tiny'),
        stages=(
            'encoder',
            'backbone',
            'compensation',
            'deformation',
            'rendering',
            'superresolution',
            'frame',
            'tuning_compensation',
            'tuning_generator',
            'training_general',
            'training_teeth',
            'training_compensation',
        ),
        config=later('avatar_jax.methods.nofa.stages:config_of'),
        build=later('avatar_jax.methods.nofa.stages:Stages'),
        note='encoder, backbone and compensation are computed once per avatar; the paper fits the compensation network '
        'in ten minutes on one V100, the generator in twenty on four',
        compared=(('tuning_compensation', 'tuning_generator'),),
    ),
    foreign=later_value('avatar_jax.methods.nofa.foreign:FOREIGN'),
    tables=TABLES,
    trainings={
        'stages': Training(
            config=later('avatar_jax.methods.nofa.training:run_config'),
            start=later('avatar_jax.methods.nofa.training:start'),
            program=later('avatar_jax.methods.nofa.training:program'),
            example='configs/nofa_heads.py',
        )
    },
)
