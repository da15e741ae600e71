"""EG3D's adversarial losses, as pure functions of parameters, images and explicit random numbers.

Images travel as ``Pair``: the final image and the volume-rendered one. Real images get their raw partner by
reduction. Both are blurred in the beginning of training; the generated raw image never is, the real one with the same
width in *raw* pixels (as in the original).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.losses.density import NUM_SLICES, monotonic
from avatar_jax.methods.eg3d.config import WITHOUT_EFFECT, LossConfig
from avatar_jax.models.discriminator import Discriminator, DualDiscriminator
from avatar_jax.models.fresh_noise import noise_maps, planes_of
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.ops.resample import setup_filter
from avatar_jax.ops.resize import filtered_resizing, resize
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.sampling import RenderDraws
from avatar_jax.types import PyTree

NUM_POINTS = 1000  # of the density regularisers; the monotonic ones look at twice as many
_RESAMPLE = setup_filter((1, 3, 3, 1))


class Pair(NamedTuple):
    """``image`` [N, R, R, 3] and ``raw`` [N, r, r, 3], nominally in [-1, 1]."""

    image: jax.Array
    raw: jax.Array


@flax.struct.dataclass
class PoseDraws:
    """How the mapping network is conditioned.

    Attributes:
        swap: uniforms [N], or one for the whole batch; below the swap probability the other label is taken.
        other: [N, 25] labels of the neighbours in the batch.
    """

    swap: jax.Array
    other: jax.Array


@flax.struct.dataclass
class MixDraws:
    """Style mixing: rows from ``cutoff`` (a number, or [N]) on come from the codes ``z`` [N, z_dim]."""

    z: jax.Array
    cutoff: jax.Array


@flax.struct.dataclass
class SynthesisDraws:
    """Random numbers of one rendering: ``noise`` normals [N, noise_size] (None: none), ``render`` jitter."""

    render: RenderDraws
    noise: jax.Array | None = None


@flax.struct.dataclass
class DensityDraws:
    """Random numbers of the density regularisers: ``points`` uniform in [-1, 1]^3, ``steps`` standard normal.

    For 'l1' both are [N, 1000, 3]. The monotonic kinds have 2000 points, and ``second`` for their smoothness term
    (points and steps [N, 1000, 3]).
    """

    points: jax.Array
    steps: jax.Array | None = None
    second: DensityDraws | None = None


# ------------------------------------------------------------------------------------------------------------- images


def blur_matrix(sigma: jax.Array | float, size: int) -> jax.Array:
    """[size, size] matrix that blurs one axis: taps 2^-(k/sigma)^2 for |k| <= floor(3 sigma), normalised; black
    outside.

    The identity where floor(3 sigma) is 0. As a matrix, because sigma changes while shapes must not.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    distance = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size)).astype(jnp.float32)
    reach = jnp.floor(3 * sigma)

    def tap(k):
        return jnp.where(k <= reach, jnp.exp2(-jnp.square(k / jnp.maximum(sigma, 1e-6))), 0.0)

    # The sum over all taps, including those that fall outside of the image.
    total = 2 * tap(jnp.arange(1, 3 * size + 1, dtype=jnp.float32)).sum() + 1
    return tap(distance) / total


def blur(images: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Blurs [N, H, W, C]; see ``blur_matrix``. Exact for sigma up to the size of the image."""
    high = jax.lax.Precision.HIGHEST
    y = jnp.einsum('oh,nhwc->nowc', blur_matrix(sigma, images.shape[1]), images, precision=high)
    return jnp.einsum('ow,nhwc->nhoc', blur_matrix(sigma, images.shape[2]), y, precision=high)


def real_pair(
    images: jax.Array, resolution: int, sigma: jax.Array | float | None, filter_mode: str | float = 'antialiased'
) -> Pair:
    """Real images [N, R, R, 3] in [-1, 1] with their raw partners of side ``resolution``.

    ``sigma``: of the blur of the raw image (that of the image happens in front of the discriminator); None: no blur.
    """
    raw = filtered_resizing(images, resolution, _RESAMPLE, filter_mode)
    return Pair(images, raw if sigma is None else blur(raw, sigma))


def augmented(pair: Pair, transform: Callable[[jax.Array], jax.Array]) -> Pair:
    """Augments image and enlarged raw image together, as six channels."""
    size, small = pair.image.shape[1], pair.raw.shape[1]
    both = jnp.concatenate([pair.image, resize(pair.raw, size, antialias=True)], -1)
    both = transform(both)
    return Pair(both[..., :3], resize(both[..., 3:], small, antialias=True))


def prepared(pair: Pair, sigma: jax.Array | float | None, transform: Callable | None) -> Pair:
    """What the discriminator sees of a pair: the image blurred, then both augmented."""
    if sigma is not None:
        pair = pair._replace(image=blur(pair.image, sigma))
    return pair if transform is None else augmented(pair, transform)


# ----------------------------------------------------------------------------------------------------------- networks


def style_rows(
    model: TriPlaneGenerator,
    variables: Mapping[str, PyTree],
    z: jax.Array,
    c: jax.Array,
    probability: jax.Array | float | None,
    pose: PoseDraws,
    mix: MixDraws | None = None,
    update: bool = False,
) -> tuple[jax.Array, PyTree]:
    """Codes to style rows under the pose-conditioning rule.

    Args:
        z: [N, z_dim]. c: [N, 25], the cameras of the renderings.
        probability: of conditioning on the neighbour's camera; None conditions on zeros.
        mix: style mixing; the second code is conditioned on the rendering's camera.
        update: move the mean style row.

    Returns:
        ws [N, num_ws, w_dim] and the collection ``ema_stats``.
    """
    if probability is None:
        condition = jnp.zeros_like(c)
    else:
        swap = jnp.broadcast_to(pose.swap.reshape(-1, 1) < probability, (c.shape[0], 1))
        condition = jnp.where(swap, pose.other, c)
    stats = variables['ema_stats']
    if update:
        ws, moved = model.apply(variables, z, condition, update_emas=True, method='mapping', mutable=['ema_stats'])
        stats = moved['ema_stats']
    else:
        ws = model.apply(variables, z, condition, method='mapping')
    if mix is not None:
        second = model.apply(variables, mix.z, c, method='mapping')
        kept = jnp.arange(ws.shape[1]) < jnp.reshape(mix.cutoff, (-1, 1))  # [N or 1, num_ws]
        ws = jnp.where(kept[..., None], ws, second)
    return ws, stats


def synthesise(
    model: TriPlaneGenerator,
    variables: Mapping[str, PyTree],
    ws: jax.Array,
    c: jax.Array,
    resolution: int,
    draws: SynthesisDraws,
) -> Pair:
    """Style rows seen from cameras, as training sees them (jittered, with backbone noise)."""
    planes = planes_of(model, variables, ws, draws.noise)
    out = model.apply(variables, planes, c, resolution, draws=draws.render, method='render')
    mode = model.config.rendering.superresolution_noise_mode
    if draws.noise is None or mode != 'random':
        return Pair(*model.apply(variables, out.rgb, out.features, ws, method='superresolve_with_raw'))

    def one(rgb, features, ws, maps):
        found = model.apply(
            {**variables, 'noise': maps}, rgb[None], features[None], ws[None], 'const', method='superresolve_with_raw'
        )
        return found[0][0], found[1][0]

    return Pair(*jax.vmap(one)(out.rgb, out.features, ws, noise_maps(variables['noise'], draws.noise)))


def judge(net: Discriminator, params: PyTree, pair: Pair, c: jax.Array) -> jax.Array:
    """Logits [N, 1] of a dual or single discriminator."""
    images = pair if isinstance(net, DualDiscriminator) else pair[:1]
    return net.apply({'params': params}, *images, c)


# -------------------------------------------------------------------------------------------------------------- terms


def adversarial(logits: jax.Array, real: bool) -> jax.Array:
    """Non-saturating loss of wanting ``logits`` to look real (True) or generated (False), mean over samples."""
    return jnp.mean(jax.nn.softplus(-logits if real else logits))


def r1_penalty(net: Discriminator, params: PyTree, pair: Pair, c: jax.Array) -> tuple[jax.Array, Pair, jax.Array]:
    """Squared gradient of the logits with respect to image and raw image, as two independent inputs.

    ``pair`` is what the discriminator sees: blurred and augmented (as in the original, which does not differentiate
    through blur and augmentation).

    Returns:
        penalties [N], the gradients, and the logits [N, 1].
    """

    def total(pair):
        logits = judge(net, params, pair, c)
        return jnp.sum(logits), logits

    grads, logits = jax.grad(total, has_aux=True)(pair)
    penalty = jnp.sum(jnp.square(grads.image), (1, 2, 3))
    if isinstance(net, DualDiscriminator):
        penalty = penalty + jnp.sum(jnp.square(grads.raw), (1, 2, 3))
    return penalty, grads, logits


def density_penalty(
    density: Callable[[jax.Array], jax.Array],
    rendering: RenderConfig,
    draws: DensityDraws,
    second_density: Callable[[jax.Array], jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Terms of the density regularisation, with their weights; their sum is the loss.

    Args:
        density: world points [N, M, 3] -> raw densities [N, M, 1].
        rendering: ``RenderConfig`` with ``reg_type``, ``density_reg``, ``density_reg_p_dist``, ``box_warp``. Points
            cover [-1, 1]^3 whatever the box.
        second_density: the field that the smoothness term of the monotonic kinds looks at; None: the same.

    Returns:
        'l1': ``density_reg`` * mean |sigma(x) - sigma(x + step)|. Monotonic kinds also 'monotonic': 10 times the mean
        by which density falls along -z, i.e. away from the face. 'l1-alt' and 'total-variation': nothing.
    """
    kind = rendering.reg_type
    if kind in WITHOUT_EFFECT:
        return {}
    if kind == 'l1':
        return {
            'l1': rendering.density_reg * variation(density, draws.points, draws.steps * rendering.density_reg_p_dist)
        }
    if kind == 'monotonic-detach':
        behind = draws.points + jnp.asarray([0.0, 0.0, -rendering.box_warp / NUM_SLICES])
        front, back = split_density(density, draws.points, behind)
        fall = jnp.mean(jax.nn.relu(jax.lax.stop_gradient(front) - back))
    else:
        fall = monotonic(density, draws.points, rendering.box_warp)
    second = draws.second
    smooth = variation(second_density or density, second.points, second.steps * (rendering.box_warp / NUM_SLICES))
    return {'monotonic': 10 * fall, 'l1': rendering.density_reg * smooth}


def split_density(density: Callable, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Densities at two sets of points [N, M, 3], looked up together."""
    both = density(jnp.concatenate([a, b], 1))
    return both[:, : a.shape[1]], both[:, a.shape[1] :]


def variation(density: Callable, points: jax.Array, steps: jax.Array) -> jax.Array:
    """mean |sigma(x) - sigma(x + step)|."""
    here, there = split_density(density, points, points + steps)
    return jnp.mean(jnp.abs(here - there))


def path_lengths(images_of: Callable[[jax.Array], jax.Array], ws: jax.Array, noise: jax.Array) -> jax.Array:
    """How far an image moves with its style rows: [N] (Karras et al. 2020, section 3.2).

    Args:
        images_of: ws [N, L, D] -> images [N, H, W, 3]; no sample may depend on another's rows.
        noise: standard normal [N, H, W, 3], a random direction of the image.
    """
    size = noise.shape[1] * noise.shape[2]
    grads = jax.grad(lambda w: jnp.sum(images_of(w) * noise) / size**0.5)(ws)
    return jnp.sqrt(jnp.square(grads).sum(2).mean(1))


def path_length_penalty(lengths: jax.Array, mean: jax.Array, config: LossConfig) -> jax.Array:
    """``weight * mean (length - running mean)^2``, against the mean before this batch."""
    return config.path_length_weight * jnp.mean(jnp.square(lengths - mean))
