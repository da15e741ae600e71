"""What the EG3D configs share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from avatar_jax.configure import unknown_variant
from configs._heads import heads_generator

if TYPE_CHECKING:
    from avatar_jax.methods.eg3d.config import RunConfig


def ffhq(variant: str, final: int | None = None) -> RunConfig:
    """The published FFHQ runs; ``final``: raw resolution to grow to, or None for the first run."""
    from avatar_jax.methods.eg3d.config import DataConfig, LossConfig, OutputConfig, RunConfig, TrainConfig
    from avatar_jax.models.triplane import GeneratorConfig

    names = _names(variant, ('rebalanced', 'bf16', 'mixed', 'ada', 'tiny'))
    onwards = final is not None or 'rebalanced' in names  # trains on a finished network
    loss = LossConfig(resolution_final=final, resolution_multiple=8 if final else 1)
    train = TrainConfig(kimg=2000.0 if final else 25000.0)
    if onwards:
        loss, train = replace(loss, blur_init_sigma=0.0, gpc_reg_fade_kimg=0.0), replace(train, ema_rampup=None)
    generator = GeneratorConfig.ffhq512()
    if 'rebalanced' in names:
        generator = generator.replace(rendering={'gpc_reg_prob': 0.8})
    config = RunConfig(
        generator=generator,
        loss=loss,
        train=train,
        data=DataConfig(source='eg3d', folder='FFHQ_512.zip'),
        output=OutputConfig(log_every=25, sample_every=1250, sample_columns=8, checkpoint_every=1250, keep_every=6250),
    )
    return _variants(config, names, onwards)


def heads(variant: str) -> RunConfig:
    """Procedural heads, from the shipped prior."""
    from avatar_jax.methods.eg3d.config import (
        DataConfig,
        DiscriminatorConfig,
        LossConfig,
        OutputConfig,
        RunConfig,
        TrainConfig,
    )

    names = _names(variant, ('scratch', 'bf16', 'mixed', 'ada', 'tiny'))
    scratch = 'scratch' in names
    generator = heads_generator().replace(rendering={'density_reg': 0.25, 'reg_type': 'l1'})
    config = RunConfig(
        generator=generator,
        discriminator=DiscriminatorConfig(channel_base=4096, channel_max=192, mapping_layers=4),
        loss=LossConfig(r1_gamma=0.5, blur_init_sigma=4.0 if scratch else 0.0, blur_fade_kimg=40.0),
        train=TrainConfig(
            kimg=200.0, batch=16, g_lr=0.0025 if scratch else 0.0006, d_lr=0.002, ema_rampup=0.05 if scratch else None
        ),
        data=DataConfig(count=20000),
        output=OutputConfig(log_every=10, sample_every=100, sample_columns=8, sample_rows=2, checkpoint_every=100),
        init='' if scratch else 'heads128',
    )
    return _variants(config, names, onwards=not scratch)


def _names(variant: str, known: tuple[str, ...]) -> list[str]:
    names = [v for v in variant.split(',') if v]
    for name in names:
        if name not in known:
            raise unknown_variant(name, known)
    return names


def _variants(config: Any, names: list[str], onwards: bool) -> Any:
    from avatar_jax.methods.eg3d.augment import AdaConfig

    if 'bf16' in names:
        config = replace(
            config,
            generator=config.generator.replace(dtype='bfloat16'),
            discriminator=replace(config.discriminator, dtype='bfloat16'),
        )
    if 'mixed' in names:  # the precision of the original: half in super-resolution and discriminator alone
        config = replace(
            config,
            generator=config.generator.replace(sr_dtype='bfloat16'),
            discriminator=replace(config.discriminator, dtype='bfloat16'),
        )
    if 'ada' in names:
        config = replace(config, augment=AdaConfig(mode='ada', kimg=100.0 if onwards else 500.0))
    return tiny(config) if 'tiny' in names else config


def tiny(config: RunConfig) -> RunConfig:
    """The same run with networks of a few thousand parameters, on heads of 32 pixels that are drawn in moments."""
    from avatar_jax.methods.eg3d.config import DataConfig, DiscriminatorConfig, OutputConfig
    from avatar_jax.models.triplane import GeneratorConfig

    old = config.generator.rendering
    small = GeneratorConfig.tiny()
    generator = small.replace(
        dtype=config.generator.dtype,
        sr_dtype=config.generator.sr_dtype,
        neural_rendering_resolution=8,
        rendering={
            'gpc_reg_prob': old.gpc_reg_prob,
            'c_gen_conditioning_zero': old.c_gen_conditioning_zero,
            'ray_start': 2.3,
            'ray_end': 3.3,
            'box_warp': 0.8,
        },
    )
    loss = replace(
        config.loss,
        resolution_final=16 if config.loss.resolution_final else None,
        resolution_fade_kimg=0.016,
        resolution_multiple=8 if config.loss.resolution_final else 1,
        blur_init_sigma=min(config.loss.blur_init_sigma, 1.0),
        blur_fade_kimg=0.128,
    )
    train = replace(config.train, kimg=0.032, batch=4)
    return replace(
        config,
        generator=generator,
        loss=loss,
        train=train,
        discriminator=DiscriminatorConfig(
            channel_base=256, channel_max=16, mapping_layers=2, mbstd_group_size=2, dtype=config.discriminator.dtype
        ),
        data=DataConfig(count=16, in_memory=True),
        init='',
        init_discriminator='',
        output=OutputConfig(log_every=1, sample_every=4, sample_columns=4, sample_rows=1, checkpoint_every=4),
    )
