"""ICT-FaceKit (light): a freely licensed full head of 100 identities and 53 named blendshapes, read from an ``.npz``.

The asset keeps the model's own centimetre frame. ``ICT`` moves it to the head frame of this project (decimetres, the
same cameras and alignment as BFM), using the fit of its inner landmarks to the standard landmarks; ``frame='native'``
keeps centimetres.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import read_arrays

METHOD = 'ict_facekit'
HEAD_SCALE = 0.0951  # decimetres per centimetre after the fit to the standard landmarks (residual 0.034 dm rms)
HEAD_OFFSET = (0.0, -0.0481, -0.7110)
OPAQUE_REGIONS = 9  # regions 0..8; lacrimal fluid, blends, occlusions and lashes are translucent helpers
NEUTRAL_ALBEDO = 0.7
_KEYS = (
    'vertices',
    'faces',
    'identity_deltas',
    'expression_deltas',
    'expression_names',
    'extra_deltas',
    'extra_names',
    'landmarks68',
    'region_names',
    'region_vertex_range',
    'region_face_range',
)


@struct.dataclass
class ICT:
    """ICT-FaceKit as a pytree; coefficients: identity ~ N(0, 1), expression 0..1."""

    neutral: jax.Array  # [V, 3]
    identity_deltas: jax.Array  # [100, V, 3]
    expression_deltas: jax.Array  # [53, V, 3]
    extra_deltas: jax.Array  # [4, V, 3]
    triangles: jax.Array  # [F, 3] of the opaque regions
    landmark_ids: jax.Array  # [68]
    expression_names: tuple[str, ...] = struct.field(pytree_node=False)
    extra_names: tuple[str, ...] = struct.field(pytree_node=False)
    face_vertices: tuple[int, int] = struct.field(pytree_node=False)  # half-open range of the face region
    name: str = struct.field(pytree_node=False, default='ICT-FaceKit light')
    basis: str = struct.field(pytree_node=False, default='ict-facekit-53')
    num_id: int = struct.field(pytree_node=False, default=100)
    num_exp: int = struct.field(pytree_node=False, default=53)
    num_tex: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def load(cls, path: str | Path, frame: str = 'head', opaque_only: bool = True) -> ICT:
        """Reads the packaged asset.

        Args:
            path: the ``.npz`` file.
            frame: 'head' (decimetres, this project's head frame) or 'native' (the model's centimetres).
            opaque_only: leave out the translucent helper meshes' triangles (all vertices are kept).

        Raises:
            UserError: missing file or not the asset.
        """
        if frame not in ('head', 'native'):
            raise ValueError(f"frame='{frame}': choose 'head' or 'native'")
        data = read_arrays(path)
        missing = [k for k in _KEYS if k not in data]
        if missing:
            raise UserError(f'{path}: not an ICT-FaceKit asset, missing {", ".join(missing)}')
        scale, offset = (HEAD_SCALE, np.float32(HEAD_OFFSET)) if frame == 'head' else (1.0, np.zeros(3, np.float32))
        triangles = data['faces']
        if opaque_only:
            triangles = np.concatenate([triangles[a:b] for a, b in data['region_face_range'][:OPAQUE_REGIONS]])

        def deltas(key):
            return jnp.asarray(data[key].astype(np.float32) * np.float32(scale))

        return cls(
            neutral=jnp.asarray(data['vertices'].astype(np.float32) * np.float32(scale) + offset),
            identity_deltas=deltas('identity_deltas'),
            expression_deltas=deltas('expression_deltas'),
            extra_deltas=deltas('extra_deltas'),
            triangles=jnp.asarray(triangles, jnp.int32),
            landmark_ids=jnp.asarray(data['landmarks68'], jnp.int32),
            expression_names=tuple(map(str, data['expression_names'])),
            extra_names=tuple(map(str, data['extra_names'])),
            face_vertices=tuple(int(v) for v in data['region_vertex_range'][0]),
            num_id=len(data['identity_deltas']),
            num_exp=len(data['expression_deltas']),
        )

    def vertices(self, identity: jax.Array, expression: jax.Array, extra: jax.Array | None = None) -> jax.Array:
        """[..., num_id], [..., num_exp] and optionally the 4 extra shapes -> [..., V, 3].

        Fewer identity numbers than the model has are taken as the first ones.
        """
        deltas = self.identity_deltas[: identity.shape[-1]]
        points = (
            self.neutral + jnp.tensordot(identity, deltas, 1) + jnp.tensordot(expression, self.expression_deltas, 1)
        )
        return points if extra is None else points + jnp.tensordot(extra, self.extra_deltas, 1)

    def albedo(self, texture: jax.Array) -> jax.Array:
        """A uniform neutral albedo [..., V, 3]: the light model has no texture parameters (``texture`` is [..., 0])."""
        if texture.shape[-1]:
            raise ValueError('ICT-FaceKit light has no albedo parameters; pass an array whose last axis is empty')
        return jnp.full((*texture.shape[:-1], *self.neutral.shape), NEUTRAL_ALBEDO)

    def landmarks(self, identity: jax.Array, expression: jax.Array) -> jax.Array:
        """[..., 68, 3], unposed."""
        ids = self.landmark_ids
        deltas = self.identity_deltas[: identity.shape[-1], ids]
        return (
            self.neutral[ids]
            + jnp.tensordot(identity, deltas, 1)
            + jnp.tensordot(expression, self.expression_deltas[:, ids], 1)
        )

    def coordinate_code(self) -> jax.Array:
        """Normalised coordinates [V, 3] of the neutral mesh, min-max over the face region (clipped to 0..1 outside)."""
        face = self.neutral[self.face_vertices[0] : self.face_vertices[1]]
        low, high = face.min(0), face.max(0)
        return jnp.clip((self.neutral - low) / (high - low), 0.0, 1.0)
