"""Reads the weight files that conversions write, each into what its network needs.

| method of the file | function |
|---|---|
| ``eg3d`` | ``load_generator``; then ``TriPlaneGenerator(config).apply(variables, ...)`` |
| ``eg3d_discriminator`` | ``load_discriminator`` |
| ``otavatar`` | ``methods.otavatar.model.load_model`` |
| ``gpavatar`` | ``methods.gpavatar.model.load_model`` |
| ``otavatar_controller`` | ``load_controller`` |
| ``perception/...`` | ``losses.perception.PerceptionBank.load`` |
| ``deep3d_recon`` | ``load_recon`` |
| ``bfm2009_front``, ``flame``, ``ict_facekit`` | ``load_face_model`` |
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.configure import from_plain
from avatar_jax.convert.kinds import eg3d, faces, perception
from avatar_jax.convert.kinds.otavatar import CONTROLLER_METHOD
from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM
from avatar_jax.faces.flame import FLAME
from avatar_jax.faces.flame import METHOD as FLAME_METHOD
from avatar_jax.faces.ict import ICT
from avatar_jax.faces.recon import ReconConfig
from avatar_jax.io.weights import check_tree, load_weights
from avatar_jax.methods.otavatar.controller import ControllerConfig, abstract_params
from avatar_jax.models.discriminator import DualDiscriminator
from avatar_jax.models.triplane import GeneratorConfig

Path = str | os.PathLike


def _arrays(variables: Any) -> Any:
    return jax.tree.map(jnp.asarray, variables)


def load_generator(path: Path) -> tuple[dict[str, Any], GeneratorConfig]:
    """Variables and configuration of a tri-plane generator.

    Raises:
        UserError: missing, damaged or foreign file, or weights that do not fit their configuration.
    """
    weights = load_weights(path, method=eg3d.METHOD)
    config = from_plain(GeneratorConfig, weights.config)
    # Statistics of the training labels, which the network does not read.
    variables = {k: v for k, v in weights.variables.items() if k != 'dataset'}
    check_tree(path, variables, eg3d.abstract_generator(config))
    return _arrays(variables), config


def load_discriminator(path: Path) -> tuple[dict[str, Any], DualDiscriminator]:
    """Variables and module of a discriminator. Raises like ``load_generator``."""
    weights = load_weights(path, method=eg3d.DISCRIMINATOR_METHOD)
    check_tree(path, weights.variables, eg3d.abstract_discriminator(weights.config))
    return _arrays(weights.variables), eg3d.make_discriminator(weights.config)


def load_controller(path: Path) -> tuple[dict[str, Any], ControllerConfig]:
    """Variables and configuration of a motion controller. Raises like ``load_generator``."""
    weights = load_weights(path, method=CONTROLLER_METHOD)
    config = from_plain(ControllerConfig, weights.config)
    check_tree(path, weights.variables, {'params': abstract_params(config)})
    return _arrays(weights.variables), config


def load_recon(path: Path) -> tuple[dict[str, Any], ReconConfig]:
    """Variables and configuration of the coefficient regressor. Raises like ``load_generator``."""
    weights = load_weights(path, method=perception.RECON_METHOD)
    config = from_plain(ReconConfig, weights.config)
    check_tree(path, weights.variables, perception.abstract_recon(config))
    return _arrays(weights.variables), config


FACE_MODELS = {faces.BFM_METHOD: BFM, FLAME_METHOD: FLAME, faces.ICT_METHOD: ICT}


def load_face_model(path: Path) -> BFM | FLAME | ICT:
    """A face model, whichever it is. Raises ``UserError`` like ``load_generator``."""
    method = load_weights(path).method
    if method not in FACE_MODELS:
        raise UserError(f"{os.fspath(path)}: holds weights of '{method}', not a face model")
    return FACE_MODELS[method].load(os.fspath(path))
