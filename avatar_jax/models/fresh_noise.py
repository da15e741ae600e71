"""A generator's planes with other noise maps for every sample, from one draw that belongs to the sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.types import PyTree


def noise_size(noise: PyTree) -> int:
    """How many numbers the noise maps of a generator hold together (collection ``noise``)."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(noise))


def noise_maps(noise: PyTree, numbers: jax.Array) -> PyTree:
    """Noise maps like the collection ``noise``, one set per sample, from standard normals [N, noise_size]."""
    leaves, structure = jax.tree.flatten(noise)
    ends = np.cumsum([math.prod(x.shape) for x in leaves])
    parts = jnp.split(numbers, ends[:-1], axis=1)
    return jax.tree.unflatten(structure, [p.reshape(-1, *x.shape) for p, x in zip(parts, leaves, strict=True)])


def planes_of(
    model: TriPlaneGenerator, variables: Mapping[str, PyTree], ws: jax.Array, noise: jax.Array | None
) -> jax.Array:
    """Feature planes [N, 3, H, W, C]. ``noise``: standard normals [N, noise_size], or None for no noise.

    Fresh noise is the noise mode 'const' with other maps for every sample, so that all its numbers can come from one
    draw that belongs to the sample.
    """
    if noise is None:
        return model.apply(variables, ws, 'none', method='planes')

    def one(ws, maps):
        return model.apply({**variables, 'noise': maps}, ws[None], 'const', method='planes')[0]

    return jax.vmap(one)(ws, noise_maps(variables['noise'], noise))
