"""Geometric augmentations: one affine map per sample, applied with band-limited resampling.

The map is built as its inverse, output pixel -> input pixel, in pixels around the image's centre. The image is
continued by reflection, doubled in size with a wavelet low-pass filter, looked up bilinearly on a grid of twice the
output's density, and filtered down again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from avatar_jax.methods.eg3d.augment.draws import Draws
from avatar_jax.ops.resample import downsample2d, setup_filter, upsample2d
from avatar_jax.ops.warp import bilinear_at

# Low-pass taps of the wavelet sym6 (12 numbers, sum sqrt(2)).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
FILTER = setup_filter(SYM6)
_REACH = len(SYM6) // 4  # pixels of the output grid that the down-sampling filter sees beyond the image


def translation(tx: jax.Array, ty: jax.Array) -> jax.Array:
    """Matrices [N, 3, 3] that add (tx, ty), each [N]."""
    one, zero = jnp.ones_like(tx), jnp.zeros_like(tx)
    return _rows([one, zero, tx], [zero, one, ty], [zero, zero, one])


def scaling(sx: jax.Array, sy: jax.Array) -> jax.Array:
    """Matrices [N, 3, 3] that multiply by (sx, sy), each [N]."""
    one, zero = jnp.ones_like(sx), jnp.zeros_like(sx)
    return _rows([sx, zero, zero], [zero, sy, zero], [zero, zero, one])


def rotation(angle: jax.Array) -> jax.Array:
    """Matrices [N, 3, 3] that turn by ``angle`` [N] radians: [[cos, -sin], [sin, cos]]."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    one, zero = jnp.ones_like(c), jnp.zeros_like(c)
    return _rows([c, -s, zero], [s, c, zero], [zero, zero, one])


def _rows(*rows: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def inverse_map(config, p: jax.Array, draws: Draws, count: int, size: tuple[int, int]) -> jax.Array | None:
    """Draws the maps of ``count`` samples: [N, 3, 3] output pixel -> input pixel; None when nothing is switched on.

    Args:
        config: ``AugmentConfig``.
        p: overall probability, multiplied with each transform's strength.
        size: (height, width) in pixels.
    """
    height, width = size
    inverse = jnp.broadcast_to(jnp.eye(3), (count, 3, 3))
    used = False

    def keep(name, strength, value, neutral):
        chosen = draws.chosen(name, strength * p)
        return jnp.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, neutral)

    if config.xflip > 0:
        i = keep('xflip', config.xflip, jnp.floor(2 * draws.uniform('xflip')), 0.0)
        inverse, used = _multiply(inverse, scaling(1 / (1 - 2 * i), jnp.ones_like(i))), True
    if config.rotate90 > 0:
        i = keep('rotate90', config.rotate90, jnp.floor(4 * draws.uniform('rotate90')), 0.0)
        inverse, used = _multiply(inverse, rotation(jnp.pi / 2 * i)), True
    if config.xint > 0:
        t = keep('xint', config.xint, (2 * draws.uniform('xint', 2) - 1) * config.xint_max, 0.0)
        shift = translation(-jnp.round(t[:, 0] * width), -jnp.round(t[:, 1] * height))
        inverse, used = _multiply(inverse, shift), True
    if config.scale > 0:
        s = keep('scale', config.scale, jnp.exp2(draws.normal('scale') * config.scale_std), 1.0)
        inverse, used = _multiply(inverse, scaling(1 / s, 1 / s)), True
    # Rotations before and after the stretch, together with probability strength * p.
    rotate = 1 - jnp.sqrt(jnp.clip(1 - config.rotate * p, 0, 1))

    def turn(name):
        angle = (2 * draws.uniform(name) - 1) * (jnp.pi * config.rotate_max)
        chosen = draws.chosen(name, rotate)
        return jnp.where(chosen, angle, 0.0)

    if config.rotate > 0:
        inverse, used = _multiply(inverse, rotation(turn('rotate'))), True
    if config.aniso > 0:
        s = keep('aniso', config.aniso, jnp.exp2(draws.normal('aniso') * config.aniso_std), 1.0)
        inverse, used = _multiply(inverse, scaling(1 / s, s)), True
    if config.rotate > 0:
        angle = turn('rotate_after')
        inverse = _multiply(inverse, rotation(jnp.zeros_like(angle) if draws.fixed else angle))
    if config.xfrac > 0:
        t = keep('xfrac', config.xfrac, draws.normal('xfrac', 2) * config.xfrac_std, 0.0)
        inverse, used = _multiply(inverse, translation(-t[:, 0] * width, -t[:, 1] * height)), True
    return inverse if used else None


def margins(inverse: jax.Array, size: tuple[int, int], shared: bool) -> jax.Array:
    """How far beyond the image the map looks: whole pixels [N, 4] (left, top, right, bottom), at most size - 1.

    ``shared``: all samples get the largest margins of the batch, as in the original; else each its own, so that a
    sample's result does not depend on its neighbours.
    """
    height, width = size
    cx, cy = (width - 1) / 2, (height - 1) / 2
    corners = jnp.asarray([[-cx, -cy, 1], [cx, -cy, 1], [cx, cy, 1], [-cx, cy, 1]])
    seen = jnp.einsum('nij,kj->nki', inverse[:, :2], corners, precision=jax.lax.Precision.HIGHEST)  # [N, 4, 2]
    reach = jnp.concatenate([(-seen).max(1), seen.max(1)], -1)  # [N, 4]
    if shared:
        reach = jnp.broadcast_to(reach.max(0), reach.shape)
    reach = reach + jnp.asarray([2 * _REACH - cx, 2 * _REACH - cy] * 2)
    limit = jnp.asarray([width - 1, height - 1] * 2)
    return jnp.ceil(jnp.clip(reach, 0, limit))


def warp(images: jax.Array, inverse: jax.Array, shared_margins: bool = False) -> jax.Array:
    """Applies the maps to images [N, H, W, C].

    The reflected continuation ends at the margins (see ``margins``); beyond them is black. Sizes are static: the image
    is always continued by size - 1, and what lies beyond the margins is blacked out.
    """
    count, height, width, _ = images.shape
    edge = jax.lax.stop_gradient(margins(inverse, (height, width), shared_margins))
    pad = (height - 1, width - 1)
    x = jnp.pad(images, ((0, 0), (pad[0], pad[0]), (pad[1], pad[1]), (0, 0)), mode='reflect')

    def blacked(x, factor):
        """Zeroes what lies outside of the margins; ``factor``: pixels of x per pixel of the image."""
        rows, columns = jnp.arange(x.shape[1]), jnp.arange(x.shape[2])
        left, top, right, bottom = (factor * edge[:, i, None] for i in range(4))
        inside_y = (rows >= factor * pad[0] - top) & (rows < factor * (pad[0] + height) + bottom)
        inside_x = (columns >= factor * pad[1] - left) & (columns < factor * (pad[1] + width) + right)
        return jnp.where((inside_y[:, :, None] & inside_x[:, None, :])[..., None], x, 0)

    x = blacked(upsample2d(blacked(x, 1), FILTER, 2), 2)
    # The map between the two grids of double density, whose pixel centres lie half a pixel apart from the image's.
    two, half, move = jnp.full((count,), 2.0), jnp.full((count,), 0.5), jnp.full((count,), 0.5)
    fine = _multiply(scaling(two, two), _multiply(inverse, scaling(half, half)))
    fine = _multiply(translation(-move, -move), _multiply(fine, translation(move, move)))
    out_h, out_w = 2 * (height + 2 * _REACH), 2 * (width + 2 * _REACH)
    v, u = jnp.meshgrid(jnp.arange(out_h) + 0.5 - out_h / 2, jnp.arange(out_w) + 0.5 - out_w / 2, indexing='ij')
    grid = jnp.stack([u, v, jnp.ones_like(u)], -1)
    points = jnp.einsum('nij,hwj->nhwi', fine[:, :2], grid, precision=jax.lax.Precision.HIGHEST)
    points = points + jnp.asarray([(x.shape[2] - 1) / 2, (x.shape[1] - 1) / 2])
    y = bilinear_at(x, points)
    return downsample2d(y, FILTER, 2, padding=-2 * _REACH, flip_filter=True)
