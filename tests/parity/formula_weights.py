"""Weights of full-size networks that reference files describe by a formula instead of storing them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.losses.perception import abstract_variables


def _u32(value: int) -> np.uint32:
    return np.uint32(value & 0xFFFFFFFF)


class Made(Mapping):
    """A flat state dict whose arrays are made each time they are asked for: a whole network is never there twice."""

    def __init__(self, rows: Mapping[str, tuple], make: Callable[..., np.ndarray]):
        self._rows, self._make = rows, make

    def __getitem__(self, key: str) -> np.ndarray:
        return self._make(*self._rows[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def from_spec(spec: list) -> Made:
    """Flat state dict of a ``param_spec``: rows [key, shape, k, a, b], element i = a + b * u(i, k)."""
    return Made({key: row for key, *row in spec}, _mix)


def _mix(shape, k, a, b) -> np.ndarray:
    with np.errstate(over='ignore'):
        h = np.arange(int(np.prod(shape)), dtype=np.uint32) * _u32(0x9E3779B1)
        h += _u32(k * 0x85EBCA77 + 0x27D4EB2F)
        h ^= h >> np.uint32(15)
        h *= _u32(0x2C1B3C6D)
        h ^= h >> np.uint32(12)
        h *= _u32(0x297A2D39)
        h ^= h >> np.uint32(15)
    return (a + b * ((h + 0.5) / 2**32)).astype(np.float32).reshape(shape)


def hashed_unit(seed: int, key: str, count: int) -> np.ndarray:
    """The procedural numbers v(i) in [-1, 1) of one tensor, float64."""
    with np.errstate(over='ignore'):
        x = np.arange(count, dtype=np.uint32) * _u32(0x9E3779B1) + _u32(zlib.crc32(f'{seed}:{key}'.encode()))
        x ^= x >> np.uint32(16)
        x *= _u32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= _u32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    return 2 * ((x >> np.uint32(8)) / 2**24) - 1


def hashed(keys: dict[str, tuple[int, ...]], seed: int, gain: float) -> Made:
    """Flat state dict by the rule of the folder's README: the kind of a tensor follows from its key and rank."""
    norms = {k.rpartition('.')[0] for k in keys if k.endswith('.running_var')}

    def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
        owner, _, leaf = key.rpartition('.')
        v = hashed_unit(seed, key, int(np.prod(shape)))
        if leaf == 'running_var':
            v = 1 + 0.5 * v
        elif leaf in ('running_mean', 'bias'):
            v *= 0.1
        elif owner in norms:
            v = 1 + 0.2 * v
        elif len(shape) == 1:  # the slopes of a PReLU
            v = 0.25 + 0.1 * v
        elif re.fullmatch(r'styles\.\d+\.linear\.weight', key):  # the layer itself divides by the root of its inputs
            v *= np.sqrt(3 * gain)
        else:
            v *= np.sqrt(3 * gain / np.prod(shape[1:]))
        return v.astype(np.float32).reshape(shape)

    return Made({key: (key, shape) for key, shape in keys.items()}, value)


def torch_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes, in the original layout, of a network that the perception bank knows."""
    zero = np.zeros((), np.float32)
    variables = jax.tree.map(lambda s: np.broadcast_to(zero, s.shape), abstract_variables(name))
    return {k: v.shape for k, v in to_torch(variables).items()}


def network(name: str, golden: Any) -> dict[str, Any]:
    """Variables of a network by the file's own formula, or from its stored parameters."""
    if 'param_spec' in golden.config:
        flat = from_spec(golden.config['param_spec'])
    else:
        flat = hashed(torch_keys(name), golden.config['hash_seed'], golden.config['gain'])
    return from_torch(flat, abstract_variables(name))
