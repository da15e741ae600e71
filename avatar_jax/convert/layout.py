"""Flat state dictionaries in the usual channel-first layout <-> Flax variable trees, mechanically and exactly.

Module and parameter names of this package are the dotted keys split at the dots, so conversion only moves axes:

| leaf | flat | tree |
|---|---|---|
| ``weight``, 4-D convolution | [O, I, kh, kw] | [kh, kw, I, O] |
| ``weight``, 3-D convolution | [O, I, k] | [k, I, O] |
| ``weight``, 2-D linear | [out, in] | [in, out] |
| ``const`` | [C, H, W] | [H, W, C] |
| anything else | as is | as is |

Buffers go to their own collections; buffers that follow from the configuration are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

COLLECTIONS = {
    'noise_const': 'noise',
    'w_avg': 'ema_stats',
    'raw_fade': 'ema_stats',
    'running_mean': 'batch_stats',
    'running_var': 'batch_stats',
    'dataset_label_std': 'dataset',
}
"""Buffer name -> collection; everything else is a parameter."""

DERIVED = ('resample_filter', 'num_batches_tracked')
"""Buffers that are not kept."""

KEEP = ('direction.weight',)
"""Endings of keys whose arrays are kept as they are although their name and rank look like a layer's."""

_AXES = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}


def _to_tree(key: str, value: np.ndarray, keep: Iterable[str]) -> np.ndarray:
    leaf = key.rpartition('.')[2]
    if not any(key == k or key.endswith('.' + k) for k in keep):
        if leaf == 'weight' and value.ndim in _AXES:
            return value.transpose(_AXES[value.ndim])
        if leaf == 'const' and value.ndim == 3:
            return value.transpose(1, 2, 0)
    return value


def _to_flat(key: str, value: np.ndarray, keep: Iterable[str]) -> np.ndarray:
    leaf = key.rpartition('.')[2]
    if not any(key == k or key.endswith('.' + k) for k in keep):
        if leaf == 'weight' and value.ndim in _AXES:
            return value.transpose(np.argsort(_AXES[value.ndim]))
        if leaf == 'const' and value.ndim == 3:
            return value.transpose(2, 0, 1)
    return value


def from_torch(
    flat: Mapping[str, np.ndarray],
    template: Mapping[str, Any] | None = None,
    *,
    keep: Iterable[str] = KEEP,
    optional: Iterable[str] = ('dataset',),
) -> dict[str, Any]:
    """Variable tree from a flat dictionary.

    Args:
        flat: dotted key -> array.
        template: variables of the module, or their ``jax.eval_shape``. If given, names and shapes must agree with it.
        keep: endings of keys whose arrays are not transposed.
        optional: collections that may be missing on either side; what the template does not know of them is dropped.

    Returns:
        {'params': ..., 'noise': ..., ...} with contiguous numpy arrays of the given dtypes.

    Raises:
        UserError: if the dictionary lacks entries of the template, has unknown ones, or shapes differ.
    """
    keep, optional = tuple(keep), tuple(optional)
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split('.')
        if leaf in DERIVED:
            continue
        node = tree.setdefault(COLLECTIONS.get(leaf, 'params'), {})
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = np.asarray(_to_tree(key, np.asarray(value), keep), order='C')
    if template is None:
        return tree
    for name in optional:
        if name not in template:
            tree.pop(name, None)
    _check(tree, template, optional)
    return tree


def to_torch(variables: Mapping[str, Any], *, keep: Iterable[str] = KEEP) -> dict[str, np.ndarray]:
    """The inverse of ``from_torch``: dotted key -> contiguous array. Derived buffers are not recreated."""
    keep = tuple(keep)
    flat = {}
    for collection in variables.values():
        for key, value in _leaves(collection):
            flat[key] = np.asarray(_to_flat(key, np.asarray(value), keep), order='C')
    return flat


def torch_shapes(variables: Mapping[str, Any], *, keep: Iterable[str] = KEEP) -> dict[str, tuple[int, ...]]:
    """Dotted key -> shape in the flat layout, of variables or of their ``jax.eval_shape``; nothing is allocated."""
    keep, zero = tuple(keep), np.zeros((), np.bool_)
    return {
        key: _to_flat(key, np.broadcast_to(zero, np.shape(value)), keep).shape
        for collection in variables.values()
        for key, value in _leaves(collection)
    }


def _leaves(tree: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
    out = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out += _leaves(value, f'{prefix}{name}.')
        else:
            out.append((prefix + name, value))
    return out


def _check(tree: Mapping[str, Any], template: Mapping[str, Any], optional: tuple[str, ...]) -> None:
    """``UserError`` with the first differences between two variable trees."""
    have = {(c, k): np.shape(v) for c, t in tree.items() for k, v in _leaves(t)}
    want = {(c, k): np.shape(v) for c, t in template.items() for k, v in _leaves(t)}
    missing = [k for k in want if k not in have and k[0] not in optional]
    unknown = [k for k in have if k not in want]
    wrong = [k for k in want if k in have and have[k] != want[k]]
    problems = []
    for what, keys in (('missing', missing), ('unknown', unknown)):
        if keys:
            problems.append(
                f'{len(keys)} {what} ({", ".join(k for _, k in keys[:4])}{", ..." if len(keys) > 4 else ""})'
            )
    if wrong:
        listed = ', '.join(f'{k[1]} {have[k]} instead of {want[k]}' for k in wrong[:4])
        problems.append(f'{len(wrong)} of wrong shape ({listed})')
    if problems:
        raise UserError(
            'weights: entries do not match the network: ' + '; '.join(problems) + '; check the configuration'
        )
