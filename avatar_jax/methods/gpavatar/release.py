"""The released checkpoint's names and layouts <-> this method's variables, exactly and both ways.

Layouts are those of ``models.styleunet_files``.

Collections: ``params``; ``noise`` (stored noise maps); ``constants`` (the attention's scale, which is not trained);
``perception`` (the loss's AlexNet, which the checkpoint contains); ``unused`` (``toRGB`` layers that no computation
reads, kept so that an export gives all entries back).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from avatar_jax.models.styleunet_files import to_flat, to_tree


def collection_of(key: str) -> str:
    """Collection of an entry of the checkpoint."""
    if '.noises.' in key or key.startswith('noises.'):
        return 'noise'
    if re.search(r'(^|\.)toRGB\.', key):
        return 'unused'
    if key.startswith('percep_loss.'):
        return 'perception'
    return 'constants' if key.endswith('attn_module.scale') else 'params'


def variables_of(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """All variables of a checkpoint's state dict."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in flat.items():
        found.setdefault(collection_of(key), {})[key] = value
    return {name: to_tree(part) for name, part in found.items()}


def state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``variables_of``: all collections under the released names."""
    flat: dict[str, np.ndarray] = {}
    for part in variables.values():
        flat |= to_flat(part)
    return flat
