"""The methods by name, loaded models, and avatar files.

Every method module has ``build(variables, config, portrait, ...) -> Avatar`` and ``animate(variables, config, avatar,
windows, labels, ...) -> Frames``. A weight file says which method it belongs to, so ``load_model(path)`` is enough to
use one:

    model = load_model('heads128')                      # a shipped file, or a path
    avatar = model.build(portrait)
    frames = model.animate(avatar, motion.windows(), labels)
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.types import Avatar, Camera, Frames, Portrait

METHODS = {'otavatar': 'avatar_jax.methods.otavatar.model', 'gpavatar': 'avatar_jax.methods.gpavatar.model'}
DEFAULT_WEIGHTS = {'otavatar': 'heads128', 'gpavatar': 'gpavatar128'}  # weight files inside the package, by method
AVATAR_FILE = 'avatar.safetensors'


def method(name: str) -> ModuleType:
    """The module of a method: ``build``, ``animate``, ``ModelConfig``, ``load_model``, ``abstract``.

    Raises:
        UserError: there is no such method; suggests the nearest name.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean '{close[0]}'?" if close else f'there are: {", ".join(METHODS)}'
        raise UserError(f"method '{name}': not known; {hint}")
    return importlib.import_module(METHODS[name])


@partial(jax.jit, static_argnames=('name', 'config', 'chunk', 'sr'))
def _animate(variables, identity, windows, labels, basis, key, *, name, config, chunk, sr):
    return method(name).animate(
        variables, config, Avatar(identity), windows, labels, basis=basis, chunk=chunk, key=key, sr=sr
    )


@dataclass(frozen=True)
class Model:
    """Weights with all that is needed to use them.

    Attributes:
        method: name. config: the method's ``ModelConfig``. variables: nested dict of arrays.
        sha256: identifies the weights. provenance: how they were made. source: the file.
    """

    method: str
    config: Any
    variables: dict[str, Any]
    sha256: str = ''
    provenance: Mapping[str, Any] | None = None
    source: str = ''

    def build(
        self, portrait: Portrait | Sequence[Portrait], *, bank: Any = None, key: jax.Array | None = None
    ) -> Avatar:
        """The avatar of one portrait, or of several where the method can (slow the first time: compiles).

        ``bank``: networks of the losses.
        """
        return method(self.method).build(self.variables, self.config, portrait, bank=bank, key=key, weights=self.sha256)

    def animate(
        self,
        avatar: Avatar,
        windows: Any,
        labels: Any,
        *,
        chunk: int = 1,
        key: jax.Array | None = None,
        sr: bool = True,
    ) -> Frames:
        """Frames of an avatar for motion windows [T,27,70] and camera labels [T,25]; compiled once per T."""
        check_weights(avatar, self)
        return _animate(
            self.variables,
            avatar.identity,
            jnp.asarray(windows),
            jnp.asarray(labels),
            None,
            key,
            name=self.method,
            config=self.config,
            chunk=chunk,
            sr=sr,
        )


def model_path(name: str | os.PathLike) -> Path:
    """The weight file behind a path or the name of a shipped one."""
    from avatar_jax.io.weights import shipped, shipped_names

    if Path(name).exists() or os.sep in os.fspath(name) or os.fspath(name).endswith('.safetensors'):
        return Path(name)
    if os.fspath(name) not in shipped_names():
        return shipped(os.fspath(name))  # raises with a suggestion
    return shipped(os.fspath(name))


def load_model(name: str | os.PathLike) -> Model:
    """Reads a weight file: a path, or the name of one inside the package.

    Raises:
        UserError: missing, damaged or foreign file; a method that is not known here.
    """
    from avatar_jax.io.weights import load_weights

    path = model_path(name)
    owner = load_weights(path).method
    variables, config, sha256, provenance = method(owner).load_model(path)
    return Model(owner, config, variables, sha256, provenance, str(path))


def choose_model(method_name: str | None, weights: str | os.PathLike | None) -> Model:
    """The model behind the options ``--method`` and ``--weights``, of which either may be missing.

    Raises:
        UserError: no such method; weights of another method; a method without weights in the package.
    """
    if method_name is not None:
        method(method_name)
    if weights is None:
        name = method_name or 'otavatar'
        if name not in DEFAULT_WEIGHTS:
            raise UserError(
                f'--method {name}: no weights for it are in the package; train some (avatar-jax train --config '
                f'configs/{name}_heads.py) or import published ones (avatar-jax convert), and give --weights FILE'
            )
        weights = DEFAULT_WEIGHTS[name]
    model = load_model(weights)
    if method_name is not None and model.method != method_name:
        raise UserError(
            f"{weights}: holds weights of '{model.method}', but --method is {method_name}; give other weights or "
            'leave --method out'
        )
    return model


def check_weights(avatar: Avatar, model: Model) -> None:
    """Raises ``UserError`` when an avatar belongs to another method or to other weights."""
    if avatar.method and avatar.method != model.method:
        raise UserError(f"avatar: belongs to the method '{avatar.method}', these weights to '{model.method}'")
    if avatar.weights and model.sha256 and avatar.weights != model.sha256:
        raise UserError(
            f'avatar: was made with other weights ({avatar.weights[:12]}, these are {model.sha256[:12]}); '
            'give those weights or make the avatar again'
        )


def save_avatar(folder: str | os.PathLike, avatar: Avatar, provenance: Mapping[str, Any]) -> Path:
    """Writes ``avatar.safetensors`` into a folder (made if missing); returns its path.

    The file holds the identity's arrays and the camera; its metadata the method, basis, source and the SHA-256 of the
    weights it belongs to.
    """
    from avatar_jax.configure import to_plain
    from avatar_jax.io.weights import save_weights

    path = Path(folder) / AVATAR_FILE
    variables = {'identity': jax.tree.map(np.asarray, avatar.identity)}
    if avatar.camera is not None:
        variables['camera'] = {'label': np.asarray(avatar.camera.label)}
    config = {
        'method': avatar.method,
        'basis': avatar.basis,
        'weights': avatar.weights,
        'source': avatar.source,
        'config': to_plain(avatar.config),
    }
    save_weights(path, variables, method='avatar', config=config, provenance=provenance)
    return path


def load_avatar(path: str | os.PathLike) -> Avatar:
    """Reads an avatar: the folder that ``save_avatar`` wrote to, or the file in it.

    Raises:
        UserError: nothing there, damaged, or not an avatar.
    """
    from avatar_jax.io.weights import load_weights

    path = Path(path)
    if path.is_dir():
        if not (path / AVATAR_FILE).is_file():
            inside = sorted(p.parent.name for p in path.glob(f'*/{AVATAR_FILE}'))
            hint = f'choose one of {", ".join(inside[:5])} in it' if inside else 'make one with avatar-jax invert'
            raise UserError(f'{path}: holds no avatar ({AVATAR_FILE}); {hint}')
        path = path / AVATAR_FILE
    weights = load_weights(path, method='avatar')
    owner = method(weights.config['method'])
    config = None if weights.config['config'] is None else owner.ModelConfig.from_dict(weights.config['config'])
    camera = None
    if 'camera' in weights.variables:
        camera = Camera.from_label(np.asarray(weights.variables['camera']['label']))
    return Avatar(
        jax.tree.map(jnp.asarray, weights.variables['identity']),
        camera=camera,
        method=weights.config['method'],
        config=config,
        basis=weights.config['basis'],
        weights=weights.config['weights'],
        source=weights.config['source'],
    )
