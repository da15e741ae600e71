"""The two discriminators (paper 3.3, supplement 6.2; reference sections 5.2 and 6), through EG3D's training code.

One judges raw pictures, the other final ones; both are told the driver's camera. They start after a warm-up, in which
reconstruction alone settles the geometry.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from avatar_jax.methods.eg3d.augment import AdaState, KeyDraws, augment
from avatar_jax.methods.eg3d.losses import Pair, adversarial, judge, r1_penalty
from avatar_jax.methods.eg3d.schedules import lazy_optimizer
from avatar_jax.methods.eg3d.train import init_judge
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.models.discriminator import Discriminator
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.types import PyTree

NAMES = ('raw_discriminator', 'discriminator')  # of raw and of final pictures


def network(config: ModelConfig, name: str) -> Discriminator:
    """The module of that name."""
    size = config.raw_size if name == 'raw_discriminator' else config.image_size
    return getattr(config, name).module(size)


def init(config: ModelConfig, key: jax.Array) -> dict[str, PyTree]:
    """Fresh parameters of both."""
    keys = jax.random.split(key, len(NAMES))
    return {name: init_judge(network(config, name), 1, k) for name, k in zip(NAMES, keys, strict=True)}


def optimizer(config: ModelConfig) -> optax.GradientTransformation:
    """Of both, corrected for the lazy gradient penalty."""
    return make_optimizer(lazy_optimizer(config.train.discriminator, config.train.r1_every))


def seen(config: ModelConfig, images: jax.Array, ada: AdaState, keys: jax.Array) -> jax.Array:
    """What a discriminator sees of pictures [N,H,W,3]: augmented, if anything is; ``keys`` [N]."""
    return augment(config.augment.transforms, images, ada.p, KeyDraws(keys)) if config.augment.active else images


def logits(config: ModelConfig, name: str, params: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
    """[N,1] of pictures with the cameras [N,25]; larger for real."""
    return judge(network(config, name), params, Pair(images, None), labels)


def wish(config: ModelConfig, name: str, params: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The generator's term, softplus(-D): its pictures want to pass for real."""
    return adversarial(logits(config, name, params, images, labels), real=True)


def verdict(
    config: ModelConfig, name: str, params: PyTree, fake: jax.Array, real: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The discriminator's loss, softplus(D(fake)) + softplus(-D(real)), and its terms."""
    made, true = (logits(config, name, params, x, labels) for x in (fake, real))
    terms = {'fake': adversarial(made, real=False), 'real': adversarial(true, real=True)}
    signs = {'sign_real': jnp.mean(jnp.sign(true)), 'score_real': true.mean(), 'score_fake': made.mean()}
    return terms['fake'] + terms['real'], terms | signs


def penalty(
    config: ModelConfig, name: str, params: PyTree, real: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """R1: gamma / 2 times the mean squared gradient on real pictures; gamma in proportion to size^2 / batch."""
    gamma = config.loss.r1_gamma * real.shape[1] ** 2 / config.train.batch_size
    squares, _, answers = r1_penalty(network(config, name), params, Pair(real, None), labels)
    mean = squares.mean()
    return gamma / 2 * mean, {'r1': mean, 'sign_real': jnp.mean(jnp.sign(answers))}
