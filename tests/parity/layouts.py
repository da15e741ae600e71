"""From the axis order of the reference files (channels first) to this project's (channels last) and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.convert.layout import from_torch, to_torch
from tests.comparison import close


def nhwc(x: Any) -> jax.Array:
    """[N,C,...] -> [N,...,C]."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def nchw(x: Any) -> np.ndarray:
    """[N,...,C] -> [N,C,...]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def part(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Entries below ``name.`` without that prefix."""
    return {k.removeprefix(f'{name}.'): v for k, v in flat.items() if k.startswith(f'{name}.')}


def loaded(flat: Mapping[str, np.ndarray], module: Any, *inputs: Any) -> dict[str, Any]:
    """Variables of a module from a file's parameters; every stored tensor belongs to it, and none is missing."""
    return from_torch(flat, jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs))


def block_close(actual, expected, what: str) -> None:
    """The bound for blocks of a few layers."""
    close(actual, expected, rtol=1e-4, atol=1e-5, what=what)


def grad_close(actual, expected, what: str) -> None:
    """The bound for gradients of blocks."""
    close(actual, expected, rtol=1e-3, scale=1e-4, what=what)


def same_gradients(gradients: Mapping[str, Any], expected: Mapping[str, np.ndarray], prefix: str = '') -> None:
    """Compares a tree of parameter gradients with a file's flat ones (below ``prefix``), in the file's axis order."""
    flat = to_torch({'params': gradients})
    for key in [k for k in expected if k.startswith(prefix) and k.removeprefix(prefix) in flat]:
        grad_close(flat[key.removeprefix(prefix)], expected[key], f'gradient {key}')
