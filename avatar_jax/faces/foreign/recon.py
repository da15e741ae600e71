"""The coefficient regressor of Deep3DFaceRecon."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import numpy as np

from avatar_jax.configure import to_plain
from avatar_jax.convert.base import ForeignFile, ForeignNetwork, NewWeights, has, match, places
from avatar_jax.convert.comparison import VALUE, Verification, nchw, nhwc
from avatar_jax.convert.layout import to_torch
from avatar_jax.convert.report import Report
from avatar_jax.faces.recon import METHOD, PREFIX, ReconConfig, ReconNet, abstract_recon, load_recon
from avatar_jax.io.weights import Weights

Flat = Mapping[str, np.ndarray]


def recon_config(flat: Flat) -> ReconConfig:
    """Widths of a regressor by the shapes of its weights."""
    planes, blocks = [], []
    for stage in range(1, 10):
        if f'backbone.layer{stage}.0.conv1.weight' not in flat:
            break
        planes.append(int(flat[f'backbone.layer{stage}.0.conv1.weight'].shape[0]))
        blocks.append(sum(bool(re.fullmatch(rf'backbone\.layer{stage}\.\d+\.conv1\.weight', k)) for k in flat))
    heads = [k for k in flat if re.fullmatch(r'final_layers\.\d+\.bias', k)]
    sizes = tuple(int(flat[k].shape[0]) for k in sorted(heads, key=lambda k: int(k.split('.')[1])))
    return ReconConfig(int(flat['backbone.conv1.weight'].shape[0]), tuple(planes), tuple(blocks), sizes)


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    flat, file = source.flat(), f'{METHOD}.safetensors'
    config = recon_config(flat)
    taken = match(flat, abstract_recon(config), report, source.places[''], file)
    return [NewWeights(file, METHOD, to_plain(config), taken)]


def _fits(flat: Flat) -> bool:
    return has(flat, backbone__conv1__weight=(None, 3, 7, 7), backbone__layer1__0__conv3__weight=(None, None, 1, 1))


def _export(weights: Weights) -> dict[str, np.ndarray]:
    return {PREFIX + key: value for key, value in to_torch(weights.variables).items()}


def _compare(run: Verification) -> None:
    golden = run.golden
    variables, config = load_recon(run.path(METHOD))
    run.weights({PREFIX + k: v for k, v in to_torch(variables).items()})
    module, image = ReconNet(config), nhwc(golden.inp['image'])
    for name, value in jax.jit(lambda v, x: module.apply(v, x, method='features'))(variables, image).items():
        run.compare(name, nchw(value), VALUE)
    run.compare('coeffs', jax.jit(module.apply)(variables, image), VALUE)


FOREIGN = (
    ForeignFile(
        METHOD,
        'coefficient regressor of Deep3DFaceRecon (ResNet-50)',
        METHOD,
        lambda tensors: places(tensors, 'final_layers.6.weight', _fits),
        _plan,
        export=_export,
        verify={'recon_net': _compare},
        containers=(PREFIX.rstrip('.'),),
    ),
)
