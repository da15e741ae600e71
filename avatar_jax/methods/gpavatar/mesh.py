"""The moving points: a head model of fixed topology, reduced to what an avatar needs for a frame.

Any morphable model of the common interface will do. The procedural head is built in; FLAME is the user's own file.
Coefficients come as 64 numbers per frame, as motion files have them. For FLAME they are 50 of expression, the jaw's
axis-angle vector (3), and nothing else; the head's own rotation is in the camera.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.flame import FLAME, NUM_EXPRESSION
from avatar_jax.faces.procedural.expressions import EXPRESSION_DIM
from avatar_jax.faces.procedural.model import ProceduralHead
from avatar_jax.methods.gpavatar.config import FLAME_BASIS, ModelConfig

NUM_SHAPE = {ProceduralHead.basis: ProceduralHead.num_id, FLAME_BASIS: 100}
FLAME_SCALE = 5.0  # cube units per metre


def point_ids(vertices: int, points: int) -> np.ndarray:
    """Which vertices serve as points: all, or a fixed random choice of them in ascending order."""
    if points >= vertices:
        return np.arange(vertices)
    return np.sort(np.random.default_rng(0).permutation(vertices)[:points])


@functools.lru_cache(maxsize=4)
def _procedural(points: int) -> dict[str, np.ndarray]:
    head = ProceduralHead()
    mean = head.mean
    if points > len(mean):
        raise UserError(f'field.points: {points}, but the procedural head has {len(mean)} vertices; use at most that many')
    ids = point_ids(len(mean), points)
    shapes = head.vertices(np.eye(head.num_id, dtype=np.float32), np.zeros(EXPRESSION_DIM, np.float32)) - mean
    moves = head.vertices(np.zeros(head.num_id, np.float32), np.eye(EXPRESSION_DIM, dtype=np.float32)) - mean
    return {'mean': mean[ids].astype(np.float32), 'shapes': shapes[:, ids].astype(np.float32),
            'moves': moves[:, ids].astype(np.float32)}  # fmt: skip


def load_mesh(config: ModelConfig, flame: FLAME | str | os.PathLike | None = None) -> dict[str, Any]:
    """The arrays that ``head_points`` reads: a pytree, to be handed to compiled functions as an argument.

    Args:
        flame: the model or its imported file, for the basis 'flame-2020'; None looks among the optional files.

    Raises:
        UserError: no FLAME file (says which, where users obtain it and under which licence), or a mesh with another
            number of vertices than the weights expect.
    """
    if config.method.field.kind == 'expression':
        return {}
    points = config.method.field.points
    if config.basis == ProceduralHead.basis:
        return jax.tree.map(jnp.asarray, _procedural(points))
    model = flame if isinstance(flame, FLAME) else FLAME.load(_flame_file() if flame is None else flame)
    count = model.template.shape[0]
    if points > count:
        source = 'FLAME' if isinstance(flame, FLAME | None) else os.fspath(flame)
        raise UserError(f'{source}: has {count} vertices, the weights expect {points}; give the head model that the weights '
                        'were trained with')  # fmt: skip
    return {'flame': model, 'ids': jnp.asarray(point_ids(count, points))}


def _flame_file() -> os.PathLike:
    from avatar_jax.asset_list import VARIABLE, find

    (present,) = [p for p in find() if p.asset.name == 'flame']
    if present.imported:
        return present.imported[0]
    asset = present.asset
    if present.originals:
        raise UserError(f'FLAME: {present.originals[0]} is here but not imported; run avatar-jax convert {present.originals[0]} '
                        '--to assets')  # fmt: skip
    raise UserError(f'FLAME: {asset.files[0]} is missing; obtain it from {asset.source} ({asset.licence}), import it with '
                    f'avatar-jax convert {asset.files[0]} --to assets, and run from there or set {VARIABLE}')  # fmt: skip


def head_points(config: ModelConfig, mesh: Mapping[str, Any], shape: jax.Array, expression: jax.Array) -> jax.Array:
    """Points [...,P,3] in cube units of a person's shape [...,S] with expressions [...,64].

    Leading axes broadcast. Shapes longer or shorter than the model's are refused by ``check_shape`` on the way in.
    """
    high = jax.lax.Precision.HIGHEST
    if 'flame' in mesh:
        model: FLAME = mesh['flame']
        lead = jnp.broadcast_shapes(shape.shape[:-1], expression.shape[:-1])
        shape = jnp.broadcast_to(shape, (*lead, shape.shape[-1]))
        expression = jnp.broadcast_to(expression, (*lead, expression.shape[-1]))
        jaw = expression[..., NUM_EXPRESSION : NUM_EXPRESSION + 3]
        pose = jnp.concatenate([jnp.zeros_like(jaw), jaw], -1)
        return model(shape, expression[..., :NUM_EXPRESSION], pose).vertices[..., mesh['ids'], :] * FLAME_SCALE
    neutral = mesh['mean'] + jnp.einsum('...k,kpc->...pc', shape, mesh['shapes'], precision=high)
    decimetres = neutral + jnp.einsum('...k,kpc->...pc', expression, mesh['moves'], precision=high)
    return config.world.points(decimetres)


def shape_of(config: ModelConfig, shapes: list[Any]) -> np.ndarray:
    """[S] mean of the shape coefficients measured on portraits; zeros (the mean head) where there are none.

    Raises:
        UserError: coefficients of another length than the head model's.
    """
    size = NUM_SHAPE[config.basis]
    known = [np.asarray(s, np.float32).reshape(-1) for s in shapes if s is not None]
    for shape in known:
        if len(shape) != size:
            raise UserError(f'portrait: has {len(shape)} shape coefficients, the {config.basis} head has {size}; '
                            f"give a portrait fitted with '{config.basis}'")  # fmt: skip
    return np.mean(known, 0) if known else np.zeros(size, np.float32)


