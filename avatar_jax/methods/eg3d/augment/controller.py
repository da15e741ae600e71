"""How strong the augmentation is: the fixed and the adaptive rule (ADA)."""

from __future__ import annotations

from dataclasses import dataclass, field

import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.checks import Check
from avatar_jax.methods.eg3d.augment.pipe import AugmentConfig

MODES = ('noaug', 'fixed', 'ada')


@dataclass(frozen=True)
class AdaConfig:
    """The rule for the overall probability p.

    Attributes:
        mode: 'noaug' (off), 'fixed' (p never changes) or 'ada' (p follows the discriminator's overfitting).
        p: the fixed probability, and where 'ada' starts ('ada' in the original: 0).
        target: wanted mean sign of the discriminator's answer to real images.
        interval: iterations between two changes of p.
        kimg: thousands of images over which p can move by 1 (500, or 100 when a finished network is trained on).
        transforms: strength of each transform.
    """

    mode: str = 'noaug'
    p: float = 0.0
    target: float = 0.6
    interval: int = 4
    kimg: float = 500.0
    transforms: AugmentConfig = field(default_factory=lambda: AugmentConfig.preset('bgc'))

    def __post_init__(self):
        check = Check(self, 'augment')
        check.one_of('mode', *MODES)
        check.at_least(1, 'interval')
        check.above(0, 'kimg')
        check.at_least(0, 'p')
        check.need(self.mode != 'fixed' or self.p > 0, 'p', "mode 'fixed' needs more than 0 (the original's is 0.2)")

    @property
    def active(self) -> bool:
        """Whether images are augmented at all."""
        return self.mode != 'noaug'


@flax.struct.dataclass
class AdaState:
    """``p``: the probability; ``signs``, ``count``: sum and number of the signs reported since p last changed."""

    p: jax.Array
    signs: jax.Array
    count: jax.Array

    @classmethod
    def create(cls, config: AdaConfig) -> AdaState:
        """The state before the first iteration."""
        return cls(jnp.float32(config.p), jnp.float32(0), jnp.float32(0))

    def report(self, mean_sign: jax.Array, count: int) -> AdaState:
        """Adds the mean sign of ``count`` answers to real images (over all devices)."""
        return self.replace(signs=self.signs + mean_sign * count, count=self.count + count)

    def advance(self, config: AdaConfig, iterations: jax.Array, batch: int) -> AdaState:
        """Moves p when ``iterations`` (finished ones) is a multiple of the interval, and forgets the reports."""
        if config.mode != 'ada':
            return self
        due = iterations % config.interval == 0
        mean = self.signs / jnp.maximum(self.count, 1)
        change = jnp.sign(mean - config.target) * (batch * config.interval / (config.kimg * 1000))
        p = jnp.maximum(self.p + change, 0.0)
        pick = lambda new, old: jnp.where(due, new, old)
        return AdaState(pick(p, self.p), pick(0.0, self.signs), pick(0.0, self.count))
