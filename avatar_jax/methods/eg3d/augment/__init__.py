"""Adaptive discriminator augmentation: the transforms, their random numbers, and the controller of their strength."""

from avatar_jax.methods.eg3d.augment.controller import AdaConfig, AdaState
from avatar_jax.methods.eg3d.augment.draws import KeyDraws, PercentileDraws
from avatar_jax.methods.eg3d.augment.pipe import PRESETS, AugmentConfig, augment

__all__ = ['PRESETS', 'AdaConfig', 'AdaState', 'AugmentConfig', 'KeyDraws', 'PercentileDraws', 'augment']
