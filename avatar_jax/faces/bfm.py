"""The Basel Face Model 2009 in the "front" form of Deep3DFaceRecon: shape, albedo, pose, light and projection.

The model data are academic-use only and are not part of this project: ``BFM.load`` reads the user's own
``BFM_model_front.mat`` (``bfm_transfer`` makes one from the files of the model's authors).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from avatar_jax.errors import UserError
from avatar_jax.faces import pose
from avatar_jax.faces.base import ring_normals
from avatar_jax.faces.lighting import INITIAL_LIGHT, shade
from avatar_jax.ops.coefficients import NUM_EXP, NUM_ID, NUM_TEX, Coefficients, unpack

METHOD = 'bfm2009_front'
KEYS = (
    'meanshape',
    'idBase',
    'exBase',
    'meantex',
    'texBase',
    'tri',
    'point_buf',
    'tri_mask2',
    'frontmask2_idx',
    'skinmask',
    'keypoints',
)


class FaceCamera(NamedTuple):
    """Camera and initial light of the coefficient regressor: a picture of 2 ``center`` pixels."""

    focal: float = pose.FOCAL_224
    center: float = pose.CENTER_224
    distance: float = pose.CAMERA_DISTANCE
    initial_light: tuple[float, ...] = INITIAL_LIGHT


REGRESSOR_CAMERA = FaceCamera()


@struct.dataclass
class Face:
    """Everything the model says about one face; leading axes are those of the coefficients."""

    shape: jax.Array  # [..., V, 3] decimetres, unposed
    texture: jax.Array  # [..., V, 3] RGB, nominally 0..1
    rotation: jax.Array  # [..., 3, 3] row-vector rotation
    transformed: jax.Array  # [..., V, 3] posed, y up, z to the viewer
    vertex: jax.Array  # [..., V, 3] camera coordinates (x, y, depth)
    projected: jax.Array  # [..., V, 2] pixels, v up
    landmark: jax.Array  # [..., 68, 2] pixels, v up
    normal: jax.Array  # [..., V, 3] of the unposed shape
    normal_rotated: jax.Array  # [..., V, 3]
    color: jax.Array  # [..., V, 3] lit


@struct.dataclass
class BFM:
    """BFM-2009 front model as a pytree (pass it to jitted functions as an argument: the bases are large)."""

    mean_shape: jax.Array  # [V, 3] decimetres
    id_base: jax.Array  # [3V, 80]
    exp_base: jax.Array  # [3V, 64]
    mean_tex: jax.Array  # [V, 3] 0..255
    tex_base: jax.Array  # [3V, 80]
    triangles: jax.Array  # [F, 3] int
    rings: jax.Array  # [V, 8] adjacent triangles, padded with F
    landmark_ids: jax.Array  # [68] int
    skin_mask: jax.Array  # [V] 0 or 1
    front_triangles: jax.Array  # [F', 3] int, frontal region used by the photometric mask
    name: str = struct.field(pytree_node=False, default='BFM-2009 front')
    basis: str = struct.field(pytree_node=False, default='bfm2009-deep3d')
    num_id: int = struct.field(pytree_node=False, default=NUM_ID)
    num_exp: int = struct.field(pytree_node=False, default=NUM_EXP)
    num_tex: int = struct.field(pytree_node=False, default=NUM_TEX)

    @classmethod
    def from_arrays(cls, data: dict, recenter: bool = True, front: str = 'corrected', source: str = 'BFM') -> BFM:
        """Builds the model from arrays with the keys of ``BFM_model_front.mat`` (indices 1-based).

        Args:
            data: the arrays; ``front`` also needs ``tri_mask2`` and, when corrected, ``frontmask2_idx``.
            recenter: subtract the per-axis mean of the mean shape (the convention of all coefficients).
            front: 'corrected' maps ``tri_mask2`` through ``frontmask2_idx``; 'release' uses it directly as vertex ids,
                as the released training code does (many of those triangles are not on the mesh).
            source: file name for messages.

        Raises:
            UserError: a key is missing or a shape does not fit.
        """
        missing = [k for k in KEYS if k not in data]
        if missing:
            raise UserError(
                f'{source}: not a BFM front model, missing {", ".join(missing)}; run bfm_transfer to make one'
            )
        if front not in ('corrected', 'release'):
            raise ValueError(f"front='{front}': choose 'corrected' or 'release'")
        flat = np.asarray(data['meanshape'], np.float32).reshape(-1)
        size = flat.size
        expected = {'idBase': (size, NUM_ID), 'exBase': (size, NUM_EXP), 'texBase': (size, NUM_TEX)}
        for key, shape in expected.items():
            if np.shape(data[key]) != shape:
                raise UserError(
                    f'{source}: {key} has shape {np.shape(data[key])}, expected {shape}; the file is damaged'
                )
        mean = flat.reshape(-1, 3)
        if recenter:
            mean = mean - mean.mean(0, keepdims=True)

        def ids(key):
            return np.asarray(data[key]).astype(np.int32) - 1

        front_triangles = ids('tri_mask2')
        if front == 'corrected':
            front_triangles = ids('frontmask2_idx').reshape(-1)[front_triangles]
        return cls(
            mean_shape=jnp.asarray(mean),
            id_base=jnp.asarray(data['idBase'], jnp.float32),
            exp_base=jnp.asarray(data['exBase'], jnp.float32),
            mean_tex=jnp.asarray(data['meantex'], jnp.float32).reshape(-1, 3),
            tex_base=jnp.asarray(data['texBase'], jnp.float32),
            triangles=jnp.asarray(ids('tri')),
            rings=jnp.asarray(ids('point_buf')),
            landmark_ids=jnp.asarray(ids('keypoints').reshape(-1)),
            skin_mask=jnp.asarray(data['skinmask'], jnp.float32).reshape(-1),
            front_triangles=jnp.asarray(front_triangles),
        )

    @classmethod
    def load(cls, path: str | Path, recenter: bool = True, front: str = 'corrected') -> BFM:
        """Reads ``BFM_model_front.mat`` (needs scipy) or an ``.npz`` with the same keys.

        Raises:
            UserError: no such file, not readable, or not a front model.
        """
        return cls.from_arrays(read_arrays(path), recenter, front, source=str(path))

    def vertices(self, identity: jax.Array, expression: jax.Array) -> jax.Array:
        """[..., 80], [..., 64] -> [..., V, 3] decimetres."""
        offset = identity @ self.id_base.T + expression @ self.exp_base.T
        return offset.reshape(*offset.shape[:-1], -1, 3) + self.mean_shape

    def albedo(self, texture: jax.Array) -> jax.Array:
        """[..., 80] -> [..., V, 3], nominally 0..1, not clamped."""
        offset = texture @ self.tex_base.T
        return (offset.reshape(*offset.shape[:-1], -1, 3) + self.mean_tex) / 255.0

    def landmarks(self, identity: jax.Array, expression: jax.Array) -> jax.Array:
        """[..., 80], [..., 64] -> [..., 68, 3] decimetres, unposed."""
        return self.vertices(identity, expression)[..., self.landmark_ids, :]

    def normals(self, shape: jax.Array) -> jax.Array:
        """Unit vertex normals [..., V, 3], each adjacent triangle weighted equally."""
        return ring_normals(shape, self.triangles, self.rings)

    def reconstruct(self, coefficients: jax.Array | Coefficients, camera: FaceCamera = REGRESSOR_CAMERA) -> Face:
        """All geometry and colour of the faces described by [..., 257] coefficients, as ``camera`` sees them."""
        c = coefficients if isinstance(coefficients, Coefficients) else unpack(coefficients)
        shape = self.vertices(c.id, c.exp)
        rotation = pose.rotation_matrix(c.angle)
        transformed = pose.transform(shape, rotation, c.trans)
        vertex = pose.to_camera(transformed, camera.distance)
        projected = pose.project(vertex, camera.focal, camera.center)
        texture = self.albedo(c.tex)
        normal = self.normals(shape)
        rotated = normal @ rotation
        return Face(
            shape=shape,
            texture=texture,
            rotation=rotation,
            transformed=transformed,
            vertex=vertex,
            projected=projected,
            landmark=projected[..., self.landmark_ids, :],
            normal=normal,
            normal_rotated=rotated,
            color=shade(texture, rotated, c.gamma, camera.initial_light),
        )


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a MATLAB v5 ``.mat`` (needs scipy), an ``.npz``, or a face model that was imported.

    Raises:
        UserError: missing or unreadable file, or scipy is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: no such file; give the path of the face model')
    if path.suffix == '.npz':
        try:
            with np.load(path) as data:
                return {k: data[k] for k in data.files}
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f'{path}: not a readable .npz file ({error})') from error
    if path.suffix == '.safetensors':
        from avatar_jax.io.weights import load_weights

        weights = load_weights(path)
        if 'arrays' not in weights.variables:
            raise UserError(f"{path}: holds weights of '{weights.method}', not a face model")
        return weights.variables['arrays'] | {k: np.array(v) for k, v in weights.config.get('names', {}).items()}
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f'{path}: reading .mat files needs scipy; run: pip install scipy') from error
    try:
        return {k: v for k, v in loadmat(path).items() if not k.startswith('__')}
    except Exception as error:  # scipy raises many kinds for damaged files
        raise UserError(f'{path}: not a readable MATLAB v5 file ({error})') from error
