"""HFA-GP: high-fidelity facial avatars from minutes of one person's video (CVPR 2023).

A personal basis in the W+ space of a prior generator, and an encoder that gives each frame its weights, are learned
from a video; then the generator is tuned. What drives an avatar is what it was trained with: pictures, coefficients or
sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avatar_jax.io.assets import Asset
from avatar_jax.methods.base import Bench, Method, Row, Table, Training, later, later_value, option


@dataclass(frozen=True)
class BuildOptions:
    """How a personal avatar is trained; fields are keywords of ``Model.build`` and flags of ``avatar-jax invert``."""

    drivers: tuple[str, ...] = option(
        (),
        'what the avatar can be driven by: picture, coefficients, sound; several are trained together, and the first '
        'one drives videos (default: as configured in the weights; coefficients for weights of a generator alone)',
        metavar='NAME',
    )
    steps: int | None = option(None, 'number of training steps (default: as configured in the weights)')
    frozen_steps: int | None = option(
        None,
        'freeze the generator in the first N steps; from then on it is tuned, too (default: the share of the steps '
        'that is configured in the weights)',
    )
    budget: str = option('', 'train for this long instead, e.g. 90s, 20m or 2h', metavar='TIME')
    basis_size: int | None = option(
        None, 'number of vectors of the personal basis (default: as configured in the weights, 50)'
    )
    sound: str = option(
        '',
        'file with the sound of the video, or with DeepSpeech features of it (.npy: windows or logits), instead of the '
        "video's own",
        metavar='FILE',
    )
    unseen: float = option(
        0.2, 'share of the video, at its end, that the avatar is not trained on but measured with, 0 to 0.9'
    )
    start: str | None = option(
        None,
        "the code that a person's basis is added to at first: the mean code, or what an encoder sees in the frames "
        '(default: as configured in the weights)',
        choices=('mean', 'encoder'),
    )
    encoder: str = option(
        '', 'with --start encoder: weights that hold an encoder for the same generator', metavar='FILE'
    )
    tune: str | None = option(
        None,
        'instead of the second stage, in which basis, encoder and generator move together: fit the generator alone, '
        'around the codes that were found, or nothing (default: the second stage)',
        choices=('generator', 'none'),
    )
    fit_steps: int | None = option(None, 'steps of the fit (default: 350)')
    fit_stop: float | None = option(
        None, 'end the fit when the frames of a step are shown this well (default: after its steps)', metavar='DB'
    )
    locality: float | None = option(
        None, "with --tune generator: weight of PTI's term that keeps pictures of other codes as they were (default: 0)"
    )
    further: bool = option(
        False, 'continue from the basis and the encoder in the weights, which belong to a person, instead of fresh ones'
    )


# The paper's Table 4 (one person, driven by pictures); 'no second stage' is not in it.
TABLE_4 = {
    '50 vectors': Row('k50', 'unseen', {'psnr': 34.70, 'ssim': 0.979}),
    '20 vectors': Row('k20', 'unseen', {'psnr': 33.98, 'ssim': 0.965}),
    '10 vectors': Row('k10', 'unseen', {'psnr': 30.83, 'ssim': 0.946}),
    '5 vectors': Row('k5', 'unseen', {'psnr': 28.64, 'ssim': 0.927}),
    '50 vectors, not orthogonal': Row('not_orthogonal', 'unseen', {'psnr': 33.36, 'ssim': 0.962}),
    '50 vectors, no second stage': Row('no_second_stage', 'unseen'),
}
CLAIMS = (
    ('50 vectors', '20 vectors'),
    ('20 vectors', '10 vectors'),
    ('10 vectors', '5 vectors'),
    ('50 vectors', '50 vectors, not orthogonal'),
    ('50 vectors', '50 vectors, no second stage'),
)


def table_run(variant: str, size: str, seed: int, steps: int | None, pictures: str | Path) -> tuple[str, list[str]]:
    """The configuration that a variant of Table 4 is trained with, and its overrides; each seed is another person."""
    names = ['tiny' if size == 'tiny' else 'heads', 'picture', variant]
    folder = f'{pictures}/hfagp_{size}_{seed:02d}'
    overrides = [f'--config.seed={seed}', f'--config.data.person={seed}', f'--config.data.folder={folder}']
    overrides.append('--config.output.sample_people=0')
    if steps is not None:
        tuned = steps if variant == 'no_second_stage' else steps // 10
        overrides += [
            f'--config.model.settings.train.iterations={steps}',
            f'--config.model.settings.train.tune_iter={tuned}',
        ]
    return f'hfagp_heads:{",".join(names)}', overrides


METHOD = Method(
    name='hfagp',
    title='HFA-GP',
    weights='heads128',
    config=later('avatar_jax.methods.hfagp.config:ModelConfig.from_dict'),
    load=later('avatar_jax.methods.hfagp.model:load_model'),
    load_prior=later('avatar_jax.methods.hfagp.prior:load_prior'),
    save=later('avatar_jax.methods.hfagp.model:save_model'),
    init=later('avatar_jax.methods.hfagp.model:init'),
    abstract=later('avatar_jax.methods.hfagp.model:abstract'),
    sources=('video',),
    build=later('avatar_jax.methods.hfagp.build:build'),
    build_options=BuildOptions,
    steps=later('avatar_jax.methods.hfagp.build:num_steps'),
    signals=later('avatar_jax.methods.hfagp.driving:signals_of'),
    own_signals=later_value('avatar_jax.methods.hfagp.driving:SIGNALS'),
    own_config=True,
    ways=later('avatar_jax.methods.hfagp.driving:ways_of'),
    evaluation_options={'unseen': 0.0},
    prepare=later('avatar_jax.methods.hfagp.model:prepare'),
    frame=later('avatar_jax.methods.hfagp.model:frame'),
    networks=later('avatar_jax.methods.hfagp.losses:networks'),
    looks_through=later('avatar_jax.methods.hfagp.losses:looks_through'),
    trainings={
        'personal': Training(
            config=later('avatar_jax.methods.hfagp.training:run_config'),
            start=later('avatar_jax.methods.hfagp.training:start'),
            program=later('avatar_jax.methods.hfagp.training:program'),
            example='configs/hfagp_heads.py',
        )
    },
    bench=Bench(
        presets=('heads', 'full', 'tiny'),
        stages=('encoder', 'coefficients', 'sound', 'qr', 'frame', 'training'),
        config=later('avatar_jax.methods.hfagp.stages:config_of'),
        build=later('avatar_jax.methods.hfagp.stages:Stages'),
    ),
    foreign=later_value('avatar_jax.methods.hfagp.foreign:FOREIGN'),
    assets=(
        Asset(
            'hfagp',
            'released avatars of single persons, driven by pictures, coefficients or sound',
            'see the HFA-GP project; the generator descends from EG3D',
            'the release page of the HFA-GP project',
            ('[0-9][0-9][0-9][0-9][0-9][0-9].pt',),
            ('hfagp',),
        ),
    ),
    tables={
        'hfagp4': Table(
            title='HFA-GP, Table 4',
            rows=TABLE_4,
            claims=CLAIMS,
            scores={'psnr': True, 'ssim': True},
            run=table_run,
            protocol=later('avatar_jax.methods.hfagp.scores:of_training'),
            note='frames of the video that training did not see, driven by their own pictures; each seed is another '
            'procedural person',
        )
    },
)
