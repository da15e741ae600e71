"""What every morphable head model offers, whatever it was made from.

Procedural heads, BFM-2009, FLAME and ICT-FaceKit differ in vertices, bases and licences. Methods, the rasteriser and
the evaluation only use the members of ``MorphableModel``; all geometry is in decimetres, y up, z towards the viewer,
so that one camera and one alignment serve all models.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.ops.arrays import Array, namespace

# iBUG order of the 68 landmarks, image left to right.
JAW, BROWS, NOSE, EYES, MOUTH = slice(0, 17), slice(17, 27), slice(27, 36), slice(36, 48), slice(48, 68)
EYE_IMAGE_LEFT, EYE_IMAGE_RIGHT, INNER_LIPS = slice(36, 42), slice(42, 48), slice(60, 68)


@runtime_checkable
class MorphableModel(Protocol):
    """A head with linear (or otherwise differentiable) identity, expression and albedo parameters."""

    name: str
    basis: str  # stored in motion files: coefficients are only meaningful with the basis they belong to
    num_id: int
    num_exp: int
    num_tex: int

    @property
    def triangles(self) -> np.ndarray:
        """[F, 3] vertex ids, counter-clockwise seen from outside."""

    @property
    def landmark_ids(self) -> np.ndarray:
        """[68] vertex ids in iBUG order."""

    def vertices(self, identity: Array, expression: Array) -> Array:
        """[..., num_id], [..., num_exp] -> [..., V, 3] decimetres, unposed."""

    def albedo(self, texture: Array) -> Array:
        """[..., num_tex] -> [..., V, 3], nominally 0..1."""

    def landmarks(self, identity: Array, expression: Array) -> Array:
        """[..., 68, 3] decimetres, unposed."""


def check_basis(model: MorphableModel, basis: str, source: str) -> None:
    """Refuses coefficients of another basis.

    Args:
        model: the head model that is about to use the coefficients.
        basis: the basis named by the file.
        source: file or option to name in the message.

    Raises:
        UserError: the bases differ.
    """
    if basis != model.basis:
        raise UserError(
            f"{source}: coefficients belong to the basis '{basis}', but the {model.name} head uses '{model.basis}'; "
            f"give a motion tracked with '{model.basis}' or a model of that basis"
        )


def unit(vectors: Array, eps: float = 1e-12) -> Array:
    """x / max(|x|, eps) along the last axis, with a finite gradient at zero."""
    xp = namespace(vectors)
    square = (vectors**2).sum(-1, keepdims=True)
    zero = square <= eps * eps
    length = xp.sqrt(xp.where(zero, xp.ones_like(square), square))
    return vectors / xp.where(zero, xp.full_like(square, eps), length)


def ring_normals(points: Array, triangles: np.ndarray, rings: np.ndarray) -> Array:
    """Vertex normals as the unweighted mean of adjacent triangle normals (BFM).

    Args:
        points: [..., V, 3].
        triangles: [F, 3] vertex ids.
        rings: [V, K] ids of adjacent triangles, padded with F.

    Returns:
        [..., V, 3] unit vectors.
    """
    xp = namespace(points)
    p1, p2, p3 = (points[..., triangles[:, k], :] for k in range(3))
    faces = unit(xp.cross(p1 - p2, p2 - p3))
    faces = xp.concatenate([faces, xp.zeros_like(faces[..., :1, :])], axis=-2)
    return unit(faces[..., rings, :].sum(-2))


def area_normals(points: Array, triangles: np.ndarray) -> Array:
    """Vertex normals weighted by triangle area: [..., V, 3], [F, 3] -> [..., V, 3] unit vectors (JAX)."""
    points = jnp.asarray(points)
    p0, p1, p2 = (points[..., triangles[:, k], :] for k in range(3))
    cross = jnp.cross(p1 - p0, p2 - p0)
    total = jnp.zeros_like(points)
    for k in range(3):
        total = total.at[..., triangles[:, k], :].add(cross)
    return unit(total)
