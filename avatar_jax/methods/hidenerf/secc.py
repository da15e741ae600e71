"""Rendered expression codes (paper 3.2 i, eq. 3) of any head model: a mesh whose vertices carry fixed colours.

A person's shape with the driver's expression gives the driving code, the same shape without expression the canonical
one, both seen by a fixed camera and without the head's pose. They are drawn on the device inside a compiled frame
(``codes``), or beforehand on the host by a data pipeline (``codes_on_host``).

``HeadMesh`` is what a model is reduced to: a pytree, to be handed to compiled functions as an argument.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from avatar_jax.driving.bases import FLAME_EXPRESSION, FLAME_EYES, FLAME_JAW
from avatar_jax.errors import UserError
from avatar_jax.faces.flame import DECIMETRES, FLAME
from avatar_jax.faces.pose import CAMERA_DISTANCE, EG3D_OFFSET, EG3D_SCALE
from avatar_jax.procedural.mesh import CLOTH, EYE, HAIR, head_mesh
from avatar_jax.procedural.model import ProceduralHead
from avatar_jax.render import device_rasterizer, rasterizer
from avatar_jax.render.rasterizer import SeccConfig, normalised_coordinate_code

if TYPE_CHECKING:
    from avatar_jax.faces.base import MorphableModel

_MIRROR_WEIGHT = 1.0  # of how far expressions move a vertex, beside its place, when its partner is sought


@struct.dataclass
class HeadMesh:
    """The drawn part of a head model: V vertices, F triangles.

    Attributes:
        code: [V, 3] colours in [0, 1]: the normalised coordinates of the mean shape.
        triangles: [F, 3]. partner: [V] vertex on the other side of the head.
        mean: [V, 3], shapes: [K, V, 3], moves: [E, V, 3] of linear models, decimetres; None for FLAME.
        flame, ids: FLAME itself, and which of its vertices are drawn; None for others.
        basis: of the coefficients. num_shape, num_expression: how many of them are read.
    """

    code: jax.Array
    triangles: jax.Array
    partner: jax.Array
    mean: jax.Array | None = None
    shapes: jax.Array | None = None
    moves: jax.Array | None = None
    flame: FLAME | None = None
    ids: jax.Array | None = None
    basis: str = struct.field(pytree_node=False, default='')
    num_shape: int = struct.field(pytree_node=False, default=80)
    num_expression: int = struct.field(pytree_node=False, default=64)


# ------------------------------------------------------------------------------------------------------------ the mesh


def build_mesh(model: MorphableModel, code: np.ndarray | None = None) -> HeadMesh:
    """The mesh of a head model (``faces.base.MorphableModel``): procedural head, BFM, FLAME, ICT or another linear one.

    Of the procedural head everything but hair and clothes is drawn, which belong to its style and hide the brows. Its
    eyeballs are black like the background: their coordinates are those of the lids but for a few percent, so that a
    blink would change next to nothing.

    Args:
        code: [V, 3] colours of all vertices of the model; None: normalised coordinates of its mean shape.

    Raises:
        UserError: colours of a mesh with another number of vertices, or triangles of another topology.
    """
    triangles = np.asarray(model.triangles)
    if isinstance(model, ProceduralHead):
        triangles = triangles[~np.isin(head_mesh().face_part, (HAIR, CLOTH))]
    zero, still = np.zeros(model.num_id, np.float32), np.zeros(model.num_exp, np.float32)
    rest = np.asarray(model.vertices(zero, still))
    moves = np.asarray(model.vertices(zero, np.eye(model.num_exp, dtype=np.float32))) - rest
    if code is not None and np.shape(code) != (len(rest), 3):
        raise UserError(
            f'NCC colours: {np.shape(code)[0]} vertices, but the {model.name} mesh has {len(rest)}; '
            'use the colours of this mesh, or none to compute them'
        )
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.min() < 0 or triangles.max() >= len(rest):
        raise UserError(
            f'{model.name}: its triangles name vertices that the mesh of {len(rest)} does not have; the mesh and its '
            'topology belong to different models'
        )
    ids, drawn = np.unique(triangles, return_inverse=True)
    rest, moves = rest[ids], moves[:, ids]
    if code is not None:
        colours = np.asarray(code, np.float32)[ids]
    else:
        colours = normalised_coordinate_code(rest)
        if isinstance(model, ProceduralHead):
            eyeballs = model.triangles[head_mesh().face_part == EYE]
            colours[np.isin(ids, eyeballs)] = 0
    common = {
        'code': jnp.asarray(colours),
        'triangles': jnp.asarray(drawn.reshape(triangles.shape), jnp.int32),
        'partner': jnp.asarray(mirror_partners(rest, moves), jnp.int32),
        'basis': model.basis,
        'num_shape': model.num_id,
        'num_expression': model.num_exp,
    }
    if isinstance(model, FLAME):
        return HeadMesh(flame=model, ids=jnp.asarray(ids, jnp.int32), **common)
    shapes = np.asarray(model.vertices(np.eye(model.num_id, dtype=np.float32), still))[:, ids] - rest
    return HeadMesh(
        mean=jnp.asarray(rest, jnp.float32),
        shapes=jnp.asarray(shapes, jnp.float32),
        moves=jnp.asarray(moves, jnp.float32),
        **common,
    )


def fingerprint(mesh: HeadMesh) -> str:
    """SHA-256 of what the codes of a mesh are drawn with: its colours (in 1/256) and its triangles."""
    digest = hashlib.sha256(np.rint(256 * np.asarray(mesh.code)).astype(np.int16).tobytes())
    digest.update(np.asarray(mesh.triangles, np.int32).tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def procedural_mesh() -> HeadMesh:
    """``build_mesh`` of the procedural head."""
    return build_mesh(ProceduralHead())


def load_mesh(basis: str, head: MorphableModel | None = None, source: str = 'weights') -> HeadMesh:
    """The mesh of a basis.

    Args:
        head: the head model; None: the procedural one, or the user's file in the asset folders.
        source: what asks for it, for messages.

    Raises:
        UserError: ``head`` is of another basis, or the file of the basis is not there (says which, and where from).
    """
    if head is None:
        if basis == ProceduralHead.basis:
            return procedural_mesh()
        from avatar_jax.driving.fields import load_head_model

        head = load_head_model(basis)
    if head.basis != basis:
        raise UserError(
            f"{source}: needs a head of the basis '{basis}', but the {head.name} head has '{head.basis}'; give that one"
        )
    return build_mesh(head)


def mirror_partners(rest: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """[V] the vertex that lies where each vertex's mirror image is.

    Lips and lids have vertices at one place; how far expressions move them tells which belongs to which.

    Args:
        rest: [V, 3] mean shape. moves: [E, V, 3] what each expression adds.
    """
    from scipy.spatial import cKDTree

    size = np.ptp(rest, axis=0).max()
    reach = np.sqrt((moves**2).sum(0))
    reach = reach * (_MIRROR_WEIGHT * 0.1 * size / max(reach.max(), 1e-12))
    middle = np.array([rest[:, 0].min() + rest[:, 0].max(), 0, 0], rest.dtype)
    found = cKDTree(np.concatenate([rest, reach], 1)).query(np.concatenate([middle - rest * [1, -1, -1], reach], 1))
    return found[1]


def check_basis(mesh: HeadMesh, basis: str, source: str) -> None:
    """Raises ``UserError`` unless coefficients of ``basis`` (of the file or option ``source``) move this mesh."""
    if basis != mesh.basis:
        raise UserError(
            f"{source}: its coefficients belong to the basis '{basis}', the weights need '{mesh.basis}'; track it "
            f"with '{mesh.basis}', or use weights of that basis"
        )


# ------------------------------------------------------------------------------------------------------------- points


def _moved(mesh: HeadMesh, shape: jax.Array, expression: jax.Array, mirrored: jax.Array | None, linear) -> jax.Array:
    neutral = mesh.mean + linear(shape[..., : mesh.num_shape], mesh.shapes)
    if mirrored is not None:
        neutral = _choose(mirrored, neutral[..., mesh.partner, :] * np.float32([-1, 1, 1]), neutral)
    return neutral + linear(expression[..., : mesh.num_expression], mesh.moves)


def _choose(condition, a, b):
    xp = jnp if isinstance(a, jax.Array) or isinstance(condition, jax.Array) else np
    return xp.where(xp.asarray(condition)[..., None, None], a, b)


def _on_device(coefficients: jax.Array, basis: jax.Array) -> jax.Array:
    # Highest precision: the reduced one of accelerators moves vertices by tenths of a millimetre.
    return jnp.einsum('...k,kvc->...vc', coefficients, basis, precision=jax.lax.Precision.HIGHEST)


def points(mesh: HeadMesh, shape: jax.Array, expression: jax.Array, mirrored: jax.Array | None = None) -> jax.Array:
    """Vertices [..., V, 3] in decimetres, unposed.

    Args:
        shape: [..., num_shape]; a longer vector's first numbers count. expression: [..., 64] as motions have them; for
            FLAME 50 of expression, then axis-angle vectors of jaw and eyes.
        mirrored: [...] bool; where true, the person's shape is its mirror image (the expression is not): what a
            horizontally flipped portrait shows.
    """
    if mesh.flame is None:
        return _moved(mesh, shape, expression, mirrored, _on_device)
    model, lead = mesh.flame, jnp.broadcast_shapes(shape.shape[:-1], expression.shape[:-1])
    shape, expression = (jnp.broadcast_to(x, (*lead, x.shape[-1])) for x in (shape, expression))
    unposed = model.shaped(shape[..., : mesh.num_shape], expression[..., FLAME_EXPRESSION])
    if mirrored is not None:
        still = model.shaped(shape[..., : mesh.num_shape], jnp.zeros_like(expression[..., FLAME_EXPRESSION]))
        partner = jnp.arange(still.shape[-2]).at[mesh.ids].set(mesh.ids[mesh.partner])
        change = still[..., partner, :] * jnp.asarray([-1.0, 1, 1]) - still
        unposed = unposed + jnp.where(mirrored[..., None, None], change, 0.0)
    pose = jnp.concatenate([jnp.zeros((*lead, 3)), expression[..., FLAME_JAW]], -1)
    pose = model.full_pose(pose, expression[..., FLAME_EYES])
    return DECIMETRES * model.posed(unposed, pose).vertices[..., mesh.ids, :]


def posed(vertices: jax.Array, labels: jax.Array) -> jax.Array:
    """Head points [..., V, 3] (decimetres) as the camera of a label [..., 25] has them before it, in the frame of the
    fixed camera: the pose-coupled variant ("w/o SECC" in Table 5)."""
    turn = labels[..., :16].reshape(*labels.shape[:-1], 4, 4)
    world = vertices * EG3D_SCALE + jnp.asarray(EG3D_OFFSET)
    away = world - turn[..., None, :3, 3]
    seen = (away[..., :, :, None] * turn[..., None, :3, :3]).sum(-2) / EG3D_SCALE
    return seen * jnp.asarray([1.0, -1, -1]) + jnp.asarray([0.0, 0, CAMERA_DISTANCE])


# -------------------------------------------------------------------------------------------------------------- codes


def codes(
    mesh: HeadMesh,
    shape: jax.Array,
    expression: jax.Array,
    config: SeccConfig,
    *,
    mirrored: jax.Array | None = None,
    labels: jax.Array | None = None,
) -> jax.Array:
    """Expression codes [..., S, S, 3] drawn on the device; for ``config.signed`` in [-1, 1] with background -1.

    Args:
        shape, expression, mirrored: see ``points``. labels: [..., 25]; draws the pose-coupled variant.
    """
    vertices = points(mesh, shape, expression, mirrored)
    if labels is not None:
        vertices = posed(vertices, labels)
    return device_rasterizer.secc(vertices, mesh.code, mesh.triangles, config)


def canonical(mesh: HeadMesh, shape: jax.Array, config: SeccConfig, mirrored: jax.Array | None = None) -> jax.Array:
    """The canonical code [..., S, S, 3]: the person's shape [..., num_shape] without expression or pose."""
    return codes(mesh, shape, jnp.zeros((*shape.shape[:-1], 64)), config, mirrored=mirrored)


def codes_on_host(
    mesh: HeadMesh, shape: np.ndarray, expression: np.ndarray, config: SeccConfig, mirrored: bool = False
) -> np.ndarray:
    """The code [S, S, 3] float32 of one face, drawn on the host by a data pipeline: ``codes`` without a device.

    Args:
        shape: [num_shape]. expression: [64]; zeros give the canonical code. mirrored: see ``points``.
    """
    host = host_arrays(mesh)
    shape, expression = np.asarray(shape, np.float32), np.asarray(expression, np.float32)
    if mesh.flame is None:
        flags = np.bool_(mirrored)
        vertices = _moved(host, shape, expression, flags, lambda c, b: np.tensordot(c, b, 1))
    else:
        vertices = np.asarray(points(mesh, jnp.asarray(shape), jnp.asarray(expression), jnp.asarray(mirrored)))
    return rasterizer.secc(vertices, host.code, host.triangles, config).image


class CodeStore:
    """``codes_on_host`` for a data pipeline, which asks for the same frames again and again: each is drawn once.

    Args:
        keep: how many codes stay in memory (6 bytes a pixel); the oldest go.
    """

    def __init__(self, mesh: HeadMesh, config: SeccConfig, keep: int = 8192):
        self.mesh, self.config, self.keep = mesh, config, keep
        self._drawn: dict[tuple[bytes, bytes, bool], np.ndarray] = {}
        # A mean shape that is its own mirror image needs no second code.
        partner = np.asarray(mesh.partner)
        mean = None if mesh.mean is None else np.asarray(mesh.mean)
        self._symmetric = mean is not None and np.allclose(mean[partner] * np.float32([-1, 1, 1]), mean, atol=1e-5)

    def __call__(self, shape: np.ndarray, expression: np.ndarray, mirrored: bool = False) -> np.ndarray:
        """The code [S, S, 3] float16 of one face; see ``codes_on_host``."""
        mirrored = mirrored and (np.any(shape) or not self._symmetric)
        key = shape.tobytes(), expression.tobytes(), bool(mirrored)
        if key not in self._drawn:
            if len(self._drawn) >= self.keep:
                del self._drawn[next(iter(self._drawn))]
            code = codes_on_host(self.mesh, shape, expression, self.config, mirrored)
            self._drawn[key] = code.astype(np.float16)
        return self._drawn[key]


_HOST: dict[int, tuple[HeadMesh, HeadMesh]] = {}


def host_arrays(mesh: HeadMesh) -> HeadMesh:
    """The mesh with NumPy arrays; remembered for the last mesh."""
    if id(mesh) not in _HOST:
        _HOST.clear()
        _HOST[id(mesh)] = (
            mesh,
            mesh.replace(
                **{
                    k: np.asarray(getattr(mesh, k))
                    for k in ('code', 'triangles', 'partner', 'mean', 'shapes', 'moves')
                    if getattr(mesh, k) is not None
                }
            ),
        )
    return _HOST[id(mesh)][1]


def flipped(code: jax.Array, signed: bool = True) -> jax.Array:
    """The code [..., S, S, 3] of the mirrored head with the mirrored expression, from that of the head itself.

    The picture is flipped, and the colour of x becomes that of -x where there is a head. Exact for a mean shape that is
    its own mirror image. For codes with ``background`` 0 and ``centre`` 112 (the middle) alone.
    """
    turned = code[..., ::-1, :]
    low, high = (-1.0, 1.0) if signed else (0.0, 1.0)
    # Nothing of a mesh has the lowest value of all three coordinates.
    inside = (turned > low).any(-1)
    red = jnp.where(inside, low + high - turned[..., 0], turned[..., 0])
    return jnp.concatenate([red[..., None], turned[..., 1:]], -1)
