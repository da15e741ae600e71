"""The moving points: a head model of fixed topology, reduced to what an avatar needs for a frame (and the front of the
mean head, where portraits are brought onto it).

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
from avatar_jax.methods.gpavatar.cameras import WorldConfig
from avatar_jax.methods.gpavatar.config import FLAME_BASIS, FLAME_SHAPE, ModelConfig
from avatar_jax.methods.gpavatar.front import front_surface
from avatar_jax.parallel import as_arrays
from avatar_jax.procedural.expressions import EXPRESSION_DIM
from avatar_jax.procedural.model import ProceduralHead

NUM_SHAPE = {ProceduralHead.basis: ProceduralHead.num_id, FLAME_BASIS: FLAME_SHAPE}
FLAME_SCALE = 5.0  # cube units per metre
STRAIN_NEIGHBOURS, STRAIN_FLOOR = 12, 0.3


def point_ids(vertices: int, points: int) -> np.ndarray:
    """Which vertices serve as points: all, or a fixed random choice of them in ascending order."""
    if points >= vertices:
        return np.arange(vertices)
    return np.sort(np.random.default_rng(0).permutation(vertices)[:points])


def strained_ids(rest: np.ndarray, moves: np.ndarray, points: int) -> np.ndarray:
    """Like ``point_ids``, with more of them where expressions stretch the mesh most: around lids and lips.

    Args:
        rest: [V,3] neutral vertices. moves: [K,V,3] what each expression adds to them.
    """
    from scipy.spatial import cKDTree

    if points >= len(rest):
        return np.arange(len(rest))
    distance, index = cKDTree(rest).query(rest, k=min(STRAIN_NEIGHBOURS + 1, len(rest)))
    change = moves[:, index[:, 1:]] - moves[:, :, None]
    strain = np.sqrt(np.mean(np.sum((change / np.maximum(distance[:, 1:, None], 1e-9)) ** 2, (0, 3)), 1))
    weight = np.sqrt(np.minimum(strain, np.quantile(strain, 0.95)))
    weight = weight + STRAIN_FLOOR * weight.mean() + 1e-9
    order = np.log(weight) + np.random.default_rng(0).gumbel(size=len(rest))  # draws without replacement
    return np.sort(np.argsort(-order, kind='stable')[:points])


@functools.lru_cache(maxsize=4)
def _procedural(points: int, choice: str) -> dict[str, np.ndarray]:
    head = ProceduralHead()
    mean = head.mean
    if points > len(mean):
        raise UserError(
            f'field.points: {points}, but the procedural head has {len(mean)} vertices; use at most that many'
        )
    shapes = head.vertices(np.eye(head.num_id, dtype=np.float32), np.zeros(EXPRESSION_DIM, np.float32)) - mean
    moves = head.vertices(np.zeros(head.num_id, np.float32), np.eye(EXPRESSION_DIM, dtype=np.float32)) - mean
    ids = point_ids(len(mean), points) if choice == 'even' else strained_ids(mean, moves, points)
    return {
        'mean': mean[ids].astype(np.float32),
        'shapes': shapes[:, ids].astype(np.float32),
        'moves': moves[:, ids].astype(np.float32),
    }


def load_mesh(config: ModelConfig, flame: FLAME | str | os.PathLike | None = None) -> dict[str, Any]:
    """The arrays that ``head_points`` reads: a pytree, to be handed to compiled functions as an argument.

    Args:
        flame: the model or its imported file, for the basis 'flame-2020'; None looks among the optional files.

    Raises:
        UserError: no FLAME file (says which, where users obtain it and under which licence), or a mesh with another
            number of vertices than the weights expect.
    """
    field, size = config.settings.field, config.image_size
    with_points, with_front = field.with_points, config.settings.warp and config.settings.warp_surface == 'head'
    if not with_points and not with_front:
        return {}
    if config.basis == ProceduralHead.basis:
        found = dict(_procedural(field.points, field.choice)) if with_points else {}
        if with_front:
            found['front'] = _procedural_front(size, config.world)
        return as_arrays(found)
    points = field.points
    model = flame if isinstance(flame, FLAME) else FLAME.load(_flame_file() if flame is None else flame)
    count = model.template.shape[0]
    if points > count:
        source = 'FLAME' if isinstance(flame, FLAME | None) else os.fspath(flame)
        raise UserError(
            f'{source}: has {count} vertices, the weights expect {points}; give the head model that the weights '
            'were trained with'
        )
    neutral = np.asarray(model.shaped(np.zeros(NUM_SHAPE[FLAME_BASIS]), np.zeros(NUM_EXPRESSION)))
    found = {}
    if with_points:
        even = field.choice == 'even'
        ids = point_ids(count, points) if even else strained_ids(neutral, _flame_moves(model, neutral), points)
        found = {'flame': model, 'ids': jnp.asarray(ids)}
    if with_front:
        found['front'] = jnp.asarray(front_surface(neutral * FLAME_SCALE, np.asarray(model.triangles), size))
    return found


@functools.lru_cache(maxsize=4)
def _procedural_front(size: int, world: WorldConfig) -> np.ndarray:
    head = ProceduralHead()
    return front_surface(world.points(head.mean), head.triangles, size)


def _flame_moves(model: FLAME, neutral: np.ndarray) -> np.ndarray:
    """[53,V,3] what each expression and each turn of the jaw (by 0.3 radians) adds."""
    zero = np.zeros(NUM_SHAPE[FLAME_BASIS], np.float32)
    smiles = np.asarray(model.shaped(zero, np.eye(NUM_EXPRESSION, dtype=np.float32))) - neutral
    still = np.zeros((4, NUM_EXPRESSION), np.float32)
    pose = np.concatenate([np.zeros((4, 3)), 0.3 * np.eye(4, 3)], -1).astype(np.float32)
    turned = np.asarray(model(np.broadcast_to(zero, (4, len(zero))), still, pose).vertices)
    return np.concatenate([smiles, turned[:3] - turned[3]])


def _flame_file() -> os.PathLike:
    from avatar_jax.io.assets import VARIABLE, find

    (present,) = [p for p in find() if p.asset.name == 'flame']
    if present.imported:
        return present.imported[0]
    asset = present.asset
    if present.originals:
        raise UserError(
            f'FLAME: {present.originals[0]} is here but not imported; run avatar-jax convert {present.originals[0]} '
            '--to assets'
        )
    raise UserError(
        f'FLAME: {asset.files[0]} is missing; obtain it from {asset.source} ({asset.licence}), import it with '
        f'avatar-jax convert {asset.files[0]} --to assets, and run from there or set {VARIABLE}'
    )


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
            raise UserError(
                f'portrait: has {len(shape)} shape coefficients, the {config.basis} head has {size}; '
                f"give a portrait fitted with '{config.basis}'"
            )
    return np.mean(known, 0) if known else np.zeros(size, np.float32)
