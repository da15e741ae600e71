"""The four phases of one iteration (EG3D, training loss), each a scalar to be differentiated and the terms to be
logged.

Generator: ``generator_main`` (adversarial), ``generator_reg`` (density, and StyleGAN2's path length if wanted).
Discriminator: ``discriminator_main`` (adversarial, generated and real), ``discriminator_reg`` (R1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.methods.eg3d import losses as L
from avatar_jax.methods.eg3d.config import LossConfig
from avatar_jax.methods.eg3d.schedules import Number
from avatar_jax.models.fresh_noise import planes_of
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.types import PyTree

Terms = dict[str, jax.Array]
Transform = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Setting:
    """What does not change within a compiled program: networks, loss options, side of the raw image."""

    generator: TriPlaneGenerator
    discriminator: nn.Module
    loss: LossConfig
    resolution: int
    remat: bool = False

    def synthesise(self, variables, ws, c, draws) -> L.Pair:
        """`losses.synthesise`, recomputed in the backward pass if ``remat``."""

        def run(variables, ws, c, draws):
            return L.synthesise(self.generator, variables, ws, c, self.resolution, draws)

        return (jax.checkpoint(run) if self.remat else run)(variables, ws, c, draws)

    def judge(self, params, pair, c) -> jax.Array:
        """`losses.judge`, recomputed in the backward pass if ``remat``."""

        def run(params, pair, c):
            return L.judge(self.discriminator, params, pair, c)

        return (jax.checkpoint(run) if self.remat else run)(params, pair, c)


@flax.struct.dataclass
class GeneratedDraws:
    """Everything random about a batch of generated images.

    Attributes:
        z: codes [N, z_dim]. c: cameras [N, 25]. pose: conditioning. synthesis: jitter and noise.
        mix: style mixing or None. judged_c: what the discriminator is told instead of ``c``, or None.
    """

    z: jax.Array
    c: jax.Array
    pose: L.PoseDraws
    synthesis: L.SynthesisDraws
    mix: L.MixDraws | None = None
    judged_c: jax.Array | None = None

    @property
    def told(self) -> jax.Array:
        """Labels for the discriminator."""
        return self.c if self.judged_c is None else self.judged_c


@flax.struct.dataclass
class RegularDraws:
    """Everything random about a regularisation step of the generator.

    Attributes:
        z, c, mix: as in ``GeneratedDraws``.
        pose, second_pose: conditioning, with one swap for the batch; the second is for the smoothness term of the
            monotonic kinds, which the original evaluates on freshly conditioned styles.
        density: points, or None when density is not regularised. noise: normals of the noise maps, or None.
        path: draws of the images whose path length is measured, and their directions; or None.
    """

    z: jax.Array
    c: jax.Array
    pose: L.PoseDraws
    second_pose: L.PoseDraws
    density: L.DensityDraws | None = None
    noise: jax.Array | None = None
    mix: L.MixDraws | None = None
    path: tuple[GeneratedDraws, jax.Array] | None = None


def generator_main(
    setting: Setting,
    params: PyTree,
    d_params: PyTree,
    buffers: Mapping[str, PyTree],
    draws: GeneratedDraws,
    probability: Number | None,
    sigma: Number | None = None,
    transform: Transform | None = None,
) -> tuple[jax.Array, Terms]:
    """The generator wants its images to pass for real ones.

    Args:
        params: of the generator; the result is differentiated with respect to them. d_params: of the discriminator.
        buffers: other collections of the generator.
        probability: of swapped conditioning (`schedules.swap_probability`). sigma: of the blur, None for none.
        transform: augmentation of six-channel images, or None.
    """
    variables = {'params': params, **buffers}
    ws, _ = L.style_rows(setting.generator, variables, draws.z, draws.c, probability, draws.pose, draws.mix)
    made = setting.synthesise(variables, ws, draws.c, draws.synthesis)
    logits = setting.judge(d_params, L.prepared(made, sigma, transform), draws.told)
    loss = L.adversarial(logits, real=True)
    return loss, {'loss': loss, 'score': jnp.mean(logits), 'sign': jnp.mean(jnp.sign(logits)), 'logits': logits}


def generator_reg(
    setting: Setting,
    params: PyTree,
    buffers: Mapping[str, PyTree],
    draws: RegularDraws,
    probability: Number | None,
    path_mean: jax.Array,
) -> tuple[jax.Array, Terms]:
    """Regularisation of the generator; ``path_mean``: running mean of the path length."""
    variables, model, terms = {'params': params, **buffers}, setting.generator, {}
    extra = {}
    if draws.density is not None:

        def density_of(pose):
            ws, _ = L.style_rows(model, variables, draws.z, draws.c, probability, pose, draws.mix)
            planes = planes_of(model, variables, ws, draws.noise)
            return lambda points: model.apply(variables, planes, points, method='sample_density')[1]

        first = density_of(draws.pose)
        second = first if draws.density.second is None else density_of(draws.second_pose)
        terms |= L.density_penalty(first, model.config.rendering, draws.density, second)
    if draws.path is not None:
        path, directions = draws.path
        ws, _ = L.style_rows(model, variables, path.z, path.c, probability, path.pose, path.mix)
        lengths = L.path_lengths(
            lambda w: setting.synthesise(variables, w, path.c, path.synthesis).image, ws, directions
        )
        terms['path'] = L.path_length_penalty(lengths, path_mean, setting.loss)
        extra['path_length'] = jnp.mean(lengths)
    loss = sum(terms.values(), jnp.zeros(()))
    return loss, {'loss': loss, **terms, **extra}


def discriminator_main(
    setting: Setting,
    params: PyTree,
    g_variables: Mapping[str, PyTree],
    real: L.Pair,
    real_c: jax.Array,
    draws: GeneratedDraws,
    probability: Number | None,
    sigma: Number | None = None,
    transforms: tuple[Transform | None, Transform | None] = (None, None),
) -> tuple[jax.Array, Terms]:
    """The discriminator tells generated from real images.

    Args:
        g_variables: all variables of the generator, which is not differentiated; its mean style row moves.
        real, real_c: real images with their cameras. transforms: augmentation of generated and of real images.

    Returns:
        the loss and its terms; ``ema_stats`` among them is the generator's moved collection.
    """
    g_variables = jax.lax.stop_gradient(g_variables)
    ws, stats = L.style_rows(setting.generator, g_variables, draws.z, draws.c, probability, draws.pose, draws.mix, True)
    made = jax.lax.stop_gradient(setting.synthesise(g_variables, ws, draws.c, draws.synthesis))
    fake = setting.judge(params, L.prepared(made, sigma, transforms[0]), draws.told)
    true = setting.judge(params, L.prepared(real, sigma, transforms[1]), real_c)
    terms = {'fake': L.adversarial(fake, real=False), 'real': L.adversarial(true, real=True)}
    loss = terms['fake'] + terms['real']
    return loss, {
        'loss': loss,
        **terms,
        'score_fake': jnp.mean(fake),
        'score_real': jnp.mean(true),
        'sign_real': jnp.mean(jnp.sign(true)),
        'ema_stats': stats,
        'logits_fake': fake,
        'logits_real': true,
    }


def discriminator_reg(
    setting: Setting,
    params: PyTree,
    real: L.Pair,
    real_c: jax.Array,
    sigma: Number | None = None,
    transform: Transform | None = None,
) -> tuple[jax.Array, Terms]:
    """R1: ``gamma / 2`` times the mean squared gradient on real images, as the discriminator sees them."""
    seen = jax.lax.stop_gradient(L.prepared(real, sigma, transform))
    penalty, grads, logits = L.r1_penalty(setting.discriminator, params, seen, real_c)
    loss = jnp.mean(penalty) * (setting.loss.r1_gamma / 2)
    return loss, {
        'loss': loss,
        'r1': jnp.mean(penalty),
        'sign_real': jnp.mean(jnp.sign(logits)),
        'penalty': penalty,
        'grads': grads,
        'logits': logits,
    }
