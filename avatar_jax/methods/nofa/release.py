"""Foreign files that NOFA uses: what their entries are called here. (The encoder's are in ``models.e4e_files``.)

GFPGAN's file holds ``params_ema`` or ``params``; its keys and layouts are those of GPAvatar's StyleUNets, whose mapping
is used. Collections: ``params``; ``noise`` (stored maps); ``unused`` (``style_mlp``, a mapping network that is never
run: the style rows come from the U-Net).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.models.gfpgan import GFPGANConfig, abstract_gfpgan
from avatar_jax.models.styleunet_files import to_flat, to_tree
from avatar_jax.types import PyTree

CONTAINERS = ('params_ema', 'params')
"""Parts of the file that hold a network, the preferred one first."""


def gfpgan_part(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's entries of a file with containers, or all of a plain state dict."""
    for name in CONTAINERS:
        inside = {k.removeprefix(f'{name}.'): v for k, v in flat.items() if k.startswith(f'{name}.')}
        if inside:
            return inside
    return dict(flat)


def gfpgan_collection(key: str) -> str:
    """Collection of an entry of GFPGAN's file."""
    if key.startswith('stylegan_decoder.noises.'):
        return 'noise'
    return 'unused' if key.startswith('stylegan_decoder.style_mlp.') else 'params'


def gfpgan_config_of(flat: Mapping[str, np.ndarray]) -> GFPGANConfig:
    """The sizes of a GFPGAN from its entries.

    Raises:
        UserError: it is another network.
    """
    levels = sum(k.startswith('condition_scale.') and k.endswith('.0.weight') for k in flat)
    wanted = ('stylegan_decoder.constant_input.weight', 'final_linear.weight', 'conv_body_first.weight')
    if not levels or any(k not in flat for k in wanted):
        raise UserError('restoration file: it is no GFPGAN of the "clean" kind; give GFPGANv1.4.pth')
    size = 2 ** (levels + 2)
    narrow = flat['stylegan_decoder.constant_input.weight'].shape[1] / 512
    style_dim = flat['final_linear.weight'].shape[0] // (2 * levels + 2)
    multiplier = 2
    if size >= 64:
        multiplier = round(flat['stylegan_decoder.style_convs.6.bias'].shape[1] / (256 * narrow)) if levels > 3 else 2
    return GFPGANConfig(size, style_dim, multiplier, narrow)


def gfpgan_variables(flat: Mapping[str, np.ndarray], source: str = 'restoration file') -> tuple[dict, GFPGANConfig]:
    """Variables and sizes of a GFPGAN from its state dict, or from a file that holds one or two (``gfpgan_part``).

    Raises:
        UserError: it is another network, or entries are missing or of other shapes.
    """
    flat = gfpgan_part(flat)
    config = gfpgan_config_of(flat)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, value in flat.items():
        parts.setdefault(gfpgan_collection(key), {})[key] = value
    variables = {name: to_tree(part) for name, part in parts.items()}
    wanted = _shapes(abstract_gfpgan(config))
    have = _shapes(variables['params'])
    wrong = sorted(k for k in wanted.keys() | have.keys() if wanted.get(k) != have.get(k))
    if wrong:
        first = wrong[0]
        raise UserError(
            f'{source}: {len(wrong)} entries do not fit a GFPGAN of {config.size} pixels, first {first} '
            f'({have.get(first, "missing")} instead of {wanted.get(first, "nothing")}); get the file again'
        )
    if len(variables.get('noise', {}).get('stylegan_decoder', {}).get('noises', {})) != 2 * config.levels + 1:
        raise UserError(f'{source}: its stored noise maps are not complete; get the file again')
    return variables, config


def gfpgan_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``gfpgan_variables``."""
    flat: dict[str, np.ndarray] = {}
    for part in variables.values():
        flat |= to_flat(part)
    return flat


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {'/'.join(k.key for k in path): tuple(leaf.shape) for path, leaf in paths}


def count(tree: PyTree) -> int:
    """How many numbers a tree of arrays or shapes holds."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
