"""FLAME: a head of linear shape and expression, pose-corrective shapes and five joints (neck, jaw and eyes).

The model data may not be redistributed; ``avatar-jax convert generic_model.pkl`` imports the user's own file, and
``FLAME.load`` reads the result. Vertices and landmarks are in the model's own frame: metres, y up, z towards the
viewer. ``vertices`` and ``landmarks``, which serve all head models alike, are in decimetres.

Joints: global, neck, jaw, left eye, right eye. Poses are axis-angle vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import read_arrays

METHOD = 'flame'
NUM_JOINTS = 5
NUM_SHAPE, NUM_EXPRESSION = 100, 50  # how many components trackers and methods use
EXPRESSION_OFFSET = 300  # the first expression component of the basis
CONTOUR_ROWS, CONTOUR_POINTS = 79, 17
DECIMETRES = 10.0

MODEL_KEYS = ('v_template', 'shapedirs', 'posedirs', 'J_regressor', 'weights', 'kintree_table', 'f')
STATIC, DYNAMIC, FULL = 'static_lmk', 'dynamic_lmk', 'full_lmk'


class Landmarks(NamedTuple):
    """Points on triangles: ``faces`` [..., L] triangle ids, ``weights`` [..., L, 3] barycentric coordinates."""

    faces: jax.Array
    weights: jax.Array


@struct.dataclass
class FlameOutput:
    """A posed head.

    Attributes:
        vertices: [..., V, 3].
        joints_rest, joints: [..., 5, 3] before and after posing.
    """

    vertices: jax.Array
    joints_rest: jax.Array
    joints: jax.Array


def rodrigues(vector: jax.Array) -> jax.Array:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3] in radians, differentiable at zero."""
    angle = jnp.sqrt(jnp.sum((vector + 1e-8) ** 2, -1, keepdims=True))
    x, y, z = jnp.moveaxis(vector / angle, -1, 0)
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    sin, cos = jnp.sin(angle)[..., None], jnp.cos(angle)[..., None]
    return jnp.eye(3, dtype=vector.dtype) + sin * cross + (1 - cos) * (cross @ cross)


def contour_row(rotation: jax.Array) -> jax.Array:
    """Row of the contour table [...] for a head turned by ``rotation`` [..., 3, 3]: 0..39 and, to the other side,
    40..78.
    """
    yaw = jnp.arctan2(-rotation[..., 2, 0], jnp.sqrt(rotation[..., 0, 0] ** 2 + rotation[..., 1, 0] ** 2))
    degrees = jnp.round(jnp.minimum(jnp.rad2deg(yaw), 39)).astype(jnp.int32)
    return jnp.where(degrees >= 0, degrees, jnp.where(degrees < -39, CONTOUR_ROWS - 1, 39 - degrees))


@struct.dataclass
class FLAME:
    """The model as a pytree (pass it to jitted functions as an argument: the bases are large).

    Landmark embeddings are None where their file was not given.
    """

    template: jax.Array  # [V, 3]
    shape_basis: jax.Array  # [V, 3, 400]: 300 of identity, 100 of expression
    pose_basis: jax.Array  # [V, 3, 36]
    joint_regressor: jax.Array  # [5, V]
    skinning: jax.Array  # [V, 5]
    triangles: jax.Array  # [F, 3] int
    static: Landmarks | None = None  # 51 inner landmarks
    contour: Landmarks | None = None  # [79, 17] by yaw
    full: Landmarks | None = None  # 68
    mediapipe: Landmarks | None = None  # 105
    mediapipe_ids: jax.Array | None = None  # [105] of the 478 MediaPipe points
    parents: tuple[int, ...] = struct.field(pytree_node=False, default=(-1, 0, 1, 1, 1))
    expression_offset: int = struct.field(pytree_node=False, default=EXPRESSION_OFFSET)
    name: str = struct.field(pytree_node=False, default='FLAME')
    basis: str = struct.field(pytree_node=False, default='flame-2020')
    num_id: int = struct.field(pytree_node=False, default=NUM_SHAPE)
    num_exp: int = struct.field(pytree_node=False, default=NUM_EXPRESSION)
    num_tex: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def from_arrays(cls, data: Mapping[str, Any], source: str = 'FLAME') -> FLAME:
        """Builds the model from arrays under the names of ``generic_model.pkl`` and of the landmark embeddings.

        Raises:
            UserError: an array is missing, or shapes do not fit each other.
        """
        missing = [k for k in MODEL_KEYS if k not in data]
        if missing:
            raise UserError(f'{source}: not a FLAME model, missing {", ".join(missing)}; give generic_model.pkl')
        v, j = len(data['v_template']), NUM_JOINTS
        shapes = {
            'v_template': (v, 3),
            'posedirs': (v, 3, 9 * (j - 1)),
            'J_regressor': (j, v),
            'weights': (v, j),
            'kintree_table': (2, j),
        }
        for key, shape in shapes.items():
            if np.shape(data[key]) != shape:
                raise UserError(f'{source}: {key} has shape {np.shape(data[key])}, expected {shape}; not a FLAME head')
        basis = np.shape(data['shapedirs'])
        if len(basis) != 3 or basis[:2] != (v, 3) or basis[2] <= EXPRESSION_OFFSET:
            raise UserError(f'{source}: shapedirs has shape {basis}, expected ({v}, 3, 400); not a FLAME head')
        parents = np.asarray(data['kintree_table'])[0].astype(np.int64)
        parents = tuple(int(p) if 0 <= p < j else -1 for p in parents)
        if parents[0] != -1 or any(not 0 <= p < i for i, p in enumerate(parents) if i):
            raise UserError(f'{source}: kintree_table {parents} is no tree of joints; the file is damaged')
        triangles = np.asarray(data['f']).astype(np.int64)
        if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.min() < 0 or triangles.max() >= v:
            raise UserError(f'{source}: f refers to vertices that do not exist; the file is damaged')

        def numbers(key):
            return jnp.asarray(np.asarray(data[key], np.float32))

        def embedding(faces, weights):
            if faces not in data:
                return None
            ids, bary = np.asarray(data[faces]).astype(np.int64), np.asarray(data[weights], np.float32)
            if ids.shape[:1] == (1,) and ids.ndim == 2:
                ids, bary = ids[0], bary[0]
            if bary.shape != (*ids.shape, 3) or (ids.size and (ids.min() < 0 or ids.max() >= len(triangles))):
                raise UserError(f'{source}: {faces} and {weights} do not fit each other or the triangles')
            return Landmarks(jnp.asarray(ids, jnp.int32), jnp.asarray(bary))

        pairs = {k: (f'{k}_faces_idx', f'{k}_bary_coords') for k in (STATIC, DYNAMIC, FULL)}
        contour = embedding(*pairs[DYNAMIC])
        if contour is not None and contour.faces.shape[:1] != (CONTOUR_ROWS,):
            raise UserError(f'{source}: the contour table has {contour.faces.shape[0]} rows, expected {CONTOUR_ROWS}')
        ids = data.get('landmark_indices')
        return cls(
            template=numbers('v_template'),
            shape_basis=numbers('shapedirs'),
            pose_basis=numbers('posedirs'),
            joint_regressor=numbers('J_regressor'),
            skinning=numbers('weights'),
            triangles=jnp.asarray(triangles, jnp.int32),
            static=embedding(*pairs[STATIC]),
            contour=contour,
            full=embedding(*pairs[FULL]),
            mediapipe=embedding('lmk_face_idx', 'lmk_b_coords'),
            mediapipe_ids=None if ids is None else jnp.asarray(np.asarray(ids), jnp.int32),
            parents=parents,
        )

    @classmethod
    def load(cls, path: str | Path) -> FLAME:
        """Reads an imported model (``flame.safetensors``), or an ``.npz`` with the same names.

        Raises:
            UserError: no such file, or not a FLAME model.
        """
        return cls.from_arrays(read_arrays(path), str(path))

    @property
    def landmark_ids(self) -> jax.Array:
        """[68] the vertex nearest to each landmark of the full embedding. Raises ``UserError`` without embedding."""
        lmk = self._need(self.full, 'landmark_embedding.npy')
        corners = self.triangles[lmk.faces]
        return jnp.take_along_axis(corners, jnp.argmax(lmk.weights, -1)[:, None], 1)[:, 0]

    def shaped(self, shape: jax.Array, expression: jax.Array) -> jax.Array:
        """Unposed vertices [..., V, 3]; the first components of each kind, as many as there are coefficients."""
        if shape.shape[-1] > self.expression_offset:
            raise ValueError(f'shape has {shape.shape[-1]} coefficients, the basis {self.expression_offset}')
        start = self.expression_offset
        identity = self.shape_basis[..., : shape.shape[-1]]
        moving = self.shape_basis[..., start : start + expression.shape[-1]]
        if moving.shape[-1] != expression.shape[-1]:
            raise ValueError(f'expression has {expression.shape[-1]} coefficients, the basis {moving.shape[-1]}')
        # Highest precision: the reduced one of accelerators moves vertices by tenths of a millimetre.
        high = jax.lax.Precision.HIGHEST
        return (
            self.template
            + jnp.einsum('...k,vck->...vc', shape, identity, precision=high)
            + jnp.einsum('...k,vck->...vc', expression, moving, precision=high)
        )

    def posed(self, points: jax.Array, full_pose: jax.Array) -> FlameOutput:
        """Poses unposed vertices [..., V, 3] by axis-angle vectors [..., 15] of the five joints."""
        high = jax.lax.Precision.HIGHEST
        rest = jnp.einsum('jv,...vc->...jc', self.joint_regressor, points, precision=high)
        rotation = rodrigues(full_pose.reshape(*full_pose.shape[:-1], NUM_JOINTS, 3))
        bend = (rotation[..., 1:, :, :] - jnp.eye(3, dtype=points.dtype)).reshape(*full_pose.shape[:-1], -1)
        points = points + jnp.einsum('...k,vck->...vc', bend, self.pose_basis, precision=high)
        turns, places = [rotation[..., 0, :, :]], [rest[..., 0, :]]
        for joint in range(1, NUM_JOINTS):
            parent = self.parents[joint]
            offset = rest[..., joint, :] - rest[..., parent, :]
            turns.append(jnp.matmul(turns[parent], rotation[..., joint, :, :], precision=high))
            places.append(jnp.einsum('...ab,...b->...a', turns[parent], offset, precision=high) + places[parent])
        turn, place = jnp.stack(turns, -3), jnp.stack(places, -2)
        shift = place - jnp.einsum('...jab,...jb->...ja', turn, rest, precision=high)
        blended = jnp.einsum('vj,...jab->...vab', self.skinning, turn, precision=high)
        moved = jnp.einsum('vj,...ja->...va', self.skinning, shift, precision=high)
        vertices = jnp.einsum('...vab,...vb->...va', blended, points, precision=high) + moved
        return FlameOutput(vertices, rest, place)

    def __call__(
        self, shape: jax.Array, expression: jax.Array, pose: jax.Array, eye_pose: jax.Array | None = None
    ) -> FlameOutput:
        """A posed head.

        Args:
            shape: [..., S <= 300], usually 100.
            expression: [..., E <= 100], usually 50.
            pose: [..., 6] global rotation and jaw. The neck stays straight.
            eye_pose: [..., 6] left and right eye; None looks straight ahead.
        """
        return self.posed(self.shaped(shape, expression), self.full_pose(pose, eye_pose))

    def full_pose(self, pose: jax.Array, eye_pose: jax.Array | None = None) -> jax.Array:
        """[..., 6] global and jaw (and [..., 6] eyes) -> [..., 15] of all joints."""
        neck = jnp.zeros_like(pose[..., :3])
        eyes = jnp.zeros_like(pose) if eye_pose is None else eye_pose
        return jnp.concatenate([pose[..., :3], neck, pose[..., 3:], eyes], -1)

    def points(self, vertices: jax.Array, landmarks: Landmarks) -> jax.Array:
        """Landmarks [..., L, 3] on posed vertices [..., V, 3]; ``landmarks`` may have leading axes as well."""
        corners = self.triangles[landmarks.faces]  # [..., L, 3]
        if corners.ndim == 2:
            found = vertices[..., corners, :]
        else:
            flat = corners.reshape(*corners.shape[:-2], -1)
            found = jnp.take_along_axis(vertices, flat[..., None], -2).reshape(*corners.shape, 3)
        return jnp.sum(found * landmarks.weights[..., None], -2)

    def contour_rows(self, pose: jax.Array) -> jax.Array:
        """Row of the contour table for poses [..., 6]; it is not differentiated."""
        return contour_row(rodrigues(jax.lax.stop_gradient(pose[..., :3])))

    def landmarks2d(self, vertices: jax.Array, pose: jax.Array) -> jax.Array:
        """68 landmarks [..., 68, 3] as they look in a picture: the contour moves with the head's yaw.

        Raises:
            UserError: the model was imported without its landmark embedding.
        """
        contour = self._need(self.contour, 'landmark_embedding.npy')
        row = self.contour_rows(pose)
        moving = self.points(vertices, Landmarks(contour.faces[row], contour.weights[row]))
        fixed = self.points(vertices, self._need(self.static, 'landmark_embedding.npy'))
        return jnp.concatenate([moving, fixed], -2)

    def landmarks3d(self, vertices: jax.Array) -> jax.Array:
        """68 landmarks [..., 68, 3] that stay where they are on the head. Raises like ``landmarks2d``."""
        return self.points(vertices, self._need(self.full, 'landmark_embedding.npy'))

    def landmarks_mediapipe(self, vertices: jax.Array) -> jax.Array:
        """[..., 105, 3] of the MediaPipe points ``mediapipe_ids``. Raises like ``landmarks2d``."""
        return self.points(vertices, self._need(self.mediapipe, 'mediapipe_landmark_embedding.npz'))

    def _need(self, embedding: Landmarks | None, file: str) -> Landmarks:
        if embedding is None:
            raise UserError(f'FLAME: has no landmarks; put {file} beside generic_model.pkl and import it again')
        return embedding

    def vertices(self, identity: jax.Array, expression: jax.Array) -> jax.Array:
        """[..., S], [..., E] -> [..., V, 3] decimetres, unposed."""
        return DECIMETRES * self.shaped(identity, expression)

    def albedo(self, texture: jax.Array) -> jax.Array:
        """A uniform grey [..., V, 3]: the geometry file has no albedo (``texture`` is [..., 0])."""
        if texture.shape[-1]:
            raise ValueError('FLAME is imported without albedo; pass an array whose last axis is empty')
        return jnp.full((*texture.shape[:-1], *self.template.shape), 0.7)

    def landmarks(self, identity: jax.Array, expression: jax.Array) -> jax.Array:
        """[..., 68, 3] decimetres, unposed."""
        return self.landmarks3d(self.vertices(identity, expression))
