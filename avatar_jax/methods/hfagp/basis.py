"""The personal basis (paper section 3.2): a few orthonormal directions in W+ whose weights are all that moves a face.

The trained array ``bases`` [k, L*d] is never orthogonal itself: every forward pass takes the reduced QR factorisation
of its transpose and uses Q, with gradients through the factorisation. So the vectors are orthonormal by construction,
and no penalty and no re-projection is needed.

A QR factorisation is unique up to the sign of each column, and an encoder that was trained with one choice makes no
sense with another. Everything here has the signs of LAPACK's Householder routine, whatever the library of the device
gives: ``lapack_signs`` finds them from any Q. ``checked_directions`` compares the device with the host once, when a
model is loaded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError

EPS = 1e-8
"""Added to every entry of ``bases`` before the factorisation, as in the released program."""

TOLERANCE = 1e-4
"""Largest difference between entries of Q on device and host, both float32, that counts as rounding."""


def lapack_signs(q: jax.Array) -> jax.Array:
    """[k] factors, each 1 or -1, that give orthonormal columns q [D, k] the signs of LAPACK's ``geqrf``/``orgqr``.

    A Householder step reflects the leading entry of its column away from zero, so the first k rows of its Q minus the
    identity have an LU factorisation without pivoting whose pivots all lie in [-2, -1]. Eliminating column by column,
    the sign of each is the one that makes its pivot so. (The last column of a square matrix is not reflected.)
    """
    k = q.shape[1]
    rows = jnp.arange(k)

    def eliminate(j, state):
        m, signs = state
        pivot = m[j, j]
        reflected = j < q.shape[0] - 1
        sign = jnp.where((pivot > 0) == reflected, -1.0, 1.0).astype(m.dtype)
        column = m[:, j] * sign
        factors = jnp.where(rows > j, column / (pivot * sign - 1), 0.0)
        return m - factors[:, None] * jnp.where(rows > j, m[j], 0.0), signs.at[j].set(sign)

    return jax.lax.fori_loop(0, k, eliminate, (q[:k], jnp.ones(k, q.dtype)))[1]


def factorise(bases: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reduced QR of ``(bases + 1e-8)^T`` in float32, with LAPACK's signs.

    Args:
        bases: [k, D], k at most D. Column i of Q depends on rows 0 .. i.

    Returns:
        Q [D, k] with orthonormal columns, and R [k, k], upper triangular with a diagonal of mixed signs.
    """
    if bases.shape[0] > bases.shape[1]:
        raise UserError(
            f'basis.size: {bases.shape[0]} vectors cannot be orthogonal in {bases.shape[1]} dimensions; use fewer'
        )
    q, r = jnp.linalg.qr((bases.astype(jnp.float32) + EPS).T, mode='reduced')
    signs = lapack_signs(jax.lax.stop_gradient(q))
    return q * signs, r * signs[:, None]


def directions(bases: jax.Array, orthogonal: bool = True) -> jax.Array:
    """[D, k] what the weights of a frame multiply: Q, or (the paper's ablation) the trained vectors as they are.

    Depends on the parameters alone: compute it once for a whole video.
    """
    return factorise(bases)[0] if orthogonal else bases.astype(jnp.float32).T


def checked_directions(bases: jax.Array, orthogonal: bool = True) -> tuple[jax.Array, str]:
    """``directions`` as loading a model computes them: on the device, compared with LAPACK on the host.

    Returns:
        [D, k], the host's where the device's differ, and then a note that says so (else '').
    """
    found = jax.jit(directions, static_argnums=1)(bases, orthogonal)
    if not orthogonal:
        return found, ''
    expected = np.linalg.qr((np.asarray(bases, np.float32) + np.float32(EPS)).T, mode='reduced')[0]
    # A sign that is wrong by rounding of a leading entry near zero turns a whole column over: far beyond rounding.
    if float(np.abs(np.asarray(found) - expected).max()) <= TOLERANCE:
        return found, ''
    return jnp.asarray(expected), 'basis factorised on the host: this device gives other signs'


def combine(weights: jax.Array, vectors: jax.Array, offset: jax.Array | None, num_ws: int) -> jax.Array:
    """W+ codes ``weights @ vectors^T + offset``.

    Args:
        weights: [N, k] of each frame (alpha).
        vectors: [D, k] of ``directions``.
        offset: [D] (delta), or None.
        num_ws: L, style rows of the generator; D = L * d.

    Returns:
        [N, L, d] float32.
    """
    flat = jnp.matmul(weights.astype(jnp.float32), vectors.T)
    if offset is not None:
        flat = flat + offset
    return flat.reshape(*flat.shape[:-1], num_ws, -1)


def init_basis(key: jax.Array, size: int, num_ws: int, width: int) -> dict[str, jax.Array]:
    """Fresh ``bases`` [k, L*d], standard normal, and ``delta`` [L*d], their mean (an own parameter from then on)."""
    bases = jax.random.normal(key, (size, num_ws * width))
    return {'bases': bases, 'delta': bases.mean(0)}
