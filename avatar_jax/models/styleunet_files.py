"""Names and layouts of StyleUNet's state dicts <-> variables, exactly and both ways.

| state dict | here |
|---|---|
| ``a.0.b`` (numbers are positions in lists) | ``a_0 / b`` |
| convolution [O,I,k,k]; modulated one [1,O,I,k,k] | [k,k,I,O] |
| linear [O,I] | [I,O] |
| constant input [1,C,4,4] | [4,4,C] |
| bias of modulated layers [1,C,1,1] | [C] |
| query planes [1,1,3,C,H,W] | [3,H,W,C] |
| point features | as they are |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

QUERY = 'query_style_tplane'
_CONV, _CONV_BACK = (2, 3, 1, 0), (3, 2, 0, 1)


def _parts(key: str) -> list[str]:
    parts: list[str] = []
    for part in key.split('.'):
        if part.isdigit() and parts:
            parts[-1] += f'_{part}'
        else:
            parts.append(part)
    return parts


def _name(path: tuple[str, ...]) -> str:
    names = []
    for part in path:
        stem, numbers = re.fullmatch(r'(.*?)((?:_\d+)*)', part).groups()
        names.append(stem + numbers.replace('_', '.'))
    return '.'.join(names)


def _inward(parts: list[str], value: np.ndarray) -> np.ndarray:
    leaf = parts[-1]
    if leaf == QUERY:
        return value[0, 0].transpose(0, 2, 3, 1)
    if re.fullmatch(r'noise\d+', leaf):
        return value.transpose(0, 2, 3, 1)
    if leaf == 'weight':
        if value.ndim == 5:
            return value[0].transpose(_CONV)
        if value.ndim == 4:
            return value[0].transpose(1, 2, 0) if parts[-2:-1] == ['constant_input'] else value.transpose(_CONV)
        if value.ndim == 2 and parts[-2:-1] != ['points_feature']:
            return value.T
    return value.reshape(-1) if leaf == 'bias' and value.ndim == 4 else value


def _outward(path: tuple[str, ...], value: np.ndarray, siblings: Mapping[str, Any]) -> np.ndarray:
    leaf = path[-1]
    if leaf == QUERY:
        return value.transpose(0, 3, 1, 2)[None, None]
    if re.fullmatch(r'noise\d+', leaf):
        return value.transpose(0, 3, 1, 2)
    if leaf == 'weight':
        if path[-2:-1] == ('constant_input',):
            return value.transpose(2, 0, 1)[None]
        if value.ndim == 4:
            return value.transpose(_CONV_BACK)[None] if 'modulation' in siblings else value.transpose(_CONV_BACK)
        if value.ndim == 2 and path[-2:-1] != ('points_feature',):
            return value.T
    return value.reshape(1, -1, 1, 1) if leaf == 'bias' and 'modulated_conv' in siblings else value


def to_tree(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Nested arrays of a state dict (or of a part of one, with the names it has inside that part)."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        parts = _parts(key)
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = np.ascontiguousarray(_inward(parts, np.asarray(value)))
    return tree


def to_flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The inverse of ``to_tree``."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        here = (*path, name)
        if isinstance(value, Mapping):
            flat |= to_flat(value, here)
        else:
            flat[_name(here)] = np.ascontiguousarray(_outward(here, np.asarray(value), tree))
    return flat
