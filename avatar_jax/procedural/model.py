"""The morphable head as arrays and plain functions: vertices, albedo, landmarks. NumPy or JAX arrays alike."""

from __future__ import annotations

import functools

import numpy as np

from avatar_jax.procedural.appearance import mean_albedo, texture_basis
from avatar_jax.procedural.expressions import EXPRESSION_DIM, EXPRESSION_NAMES, expression_basis
from avatar_jax.procedural.identity import SHAPE_DIM, STYLE_DIM, TEXTURE_DIM, shape_basis
from avatar_jax.procedural.mesh import EAR, head_mesh
from avatar_jax.procedural.style import decode_style, ear_tuck, hair_geometry, hair_vertices

WORLD_SCALE, WORLD_OFFSET = 0.27, (0.0, 0.006, 0.161)  # EG3D world = scale * decimetre + offset


def to_world(points):
    """Decimetre head coordinates to EG3D world coordinates."""
    return points * np.float32(WORLD_SCALE) + np.asarray(WORLD_OFFSET, np.float32)


def _linear(mean: np.ndarray, *terms):
    """mean [V, 3] + sum of coefficients [..., K] @ basis [K, V, 3], with whatever arrays the coefficients are."""
    out = mean.reshape(-1)
    for coefficients, basis in terms:
        out = out + coefficients @ basis.reshape(len(basis), -1)
    return out.reshape(*out.shape[:-1], *mean.shape)


@functools.lru_cache(maxsize=64)
def _hair(style: bytes):
    return hair_geometry(decode_style(np.frombuffer(style, np.float32)))


def hair_binding(style: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices, weights), each [Vh, 4]: the skin vertices between which each hair vertex of a style [32] is rooted."""
    return _hair(np.ascontiguousarray(style, np.float32).tobytes())[1:]


def neutral_mean(style: np.ndarray | None = None) -> np.ndarray:
    """[V, 3] mean head with the hair of ``style`` ([32]; zeros by default)."""
    style = np.zeros(STYLE_DIM, np.float32) if style is None else np.ascontiguousarray(style, np.float32)
    return _neutral_mean(style.tobytes()).copy()


@functools.lru_cache(maxsize=64)
def _neutral_mean(style: bytes) -> np.ndarray:
    mesh = head_mesh()
    out = mesh.positions.copy()
    out[hair_vertices()] = _hair(style)[0]
    ears = mesh.of(EAR)
    out[ears] = ear_tuck(decode_style(np.frombuffer(style, np.float32)), out[ears])
    return out


@functools.lru_cache(maxsize=16)
def _styled_basis(style: bytes) -> np.ndarray:
    basis = shape_basis().copy()
    _, index, weight = _hair(style)
    basis[:, hair_vertices()] = np.einsum('nk,cnkd->cnd', weight, basis[:, index])
    return basis


class ProceduralHead:
    """The procedural head behind the interface of the morphable models (80 identity, 64 expression, 80 texture).

    Lengths are decimetres, y up, z to the viewer; all methods are linear in their coefficients and accept NumPy or JAX
    arrays, batched in front (identity [..., 80] gives [..., V, 3]).
    """

    name = 'procedural'
    basis = 'procedural'
    num_id, num_exp, num_tex = SHAPE_DIM, EXPRESSION_DIM, TEXTURE_DIM
    expression_names = EXPRESSION_NAMES

    def __init__(self, style: np.ndarray | None = None):
        """``style`` [32] chooses hair and colours (zeros by default)."""
        self.style = np.zeros(STYLE_DIM, np.float32) if style is None else np.ascontiguousarray(style, np.float32)
        if self.style.shape != (STYLE_DIM,):
            raise ValueError(f'style: expected [{STYLE_DIM}], got {list(self.style.shape)}')

    @property
    def triangles(self) -> np.ndarray:
        """[F, 3] int32, counter-clockwise from outside."""
        return head_mesh().triangles

    @property
    def landmark_ids(self) -> np.ndarray:
        """[68] int32 vertex ids in iBUG order."""
        return head_mesh().landmark_ids

    @property
    def mean(self) -> np.ndarray:
        """[V, 3] neutral mean head."""
        return neutral_mean(self.style)

    def vertices(self, identity, expression):
        """[..., V, 3] from identity [..., 80] and expression [..., 64]."""
        return _linear(self.mean, (identity, _styled_basis(self.style.tobytes())), (expression, expression_basis()))

    def albedo(self, texture):
        """[..., V, 3] RGB, nominally 0..1, not clamped, from texture [..., 80]."""
        return _linear(mean_albedo(self.style), (texture, texture_basis()))

    def landmarks(self, identity, expression):
        """[..., 68, 3] from identity and expression."""
        k = self.landmark_ids
        return _linear(self.mean[k], (identity, shape_basis()[:, k]), (expression, expression_basis()[:, k]))


def head_vertices(shape: np.ndarray, expression: np.ndarray, style: np.ndarray) -> np.ndarray:
    """[V, 3] float32, NumPy only: the same as ``ProceduralHead(style).vertices`` without building a styled basis."""
    style = np.ascontiguousarray(style, np.float32)
    shape, expression = np.asarray(shape, np.float32), np.asarray(expression, np.float32)
    moved = (shape @ shape_basis().reshape(SHAPE_DIM, -1)).reshape(-1, 3)
    _, index, weight = _hair(style.tobytes())
    moved[hair_vertices()] = np.einsum('nk,nkd->nd', weight, moved[index])
    out = _neutral_mean(style.tobytes()) + moved
    active = np.flatnonzero(expression)
    if len(active):
        out += (expression[active] @ expression_basis().reshape(EXPRESSION_DIM, -1)[active]).reshape(-1, 3)
    return out
