"""The frozen networks at hand, and which of them each loss term uses.

A `PerceptionBank` is a pytree: hand it to jitted functions as an argument, so that megabytes of weights are inputs of
the program and not constants that the compiler tries to fold.

Real networks come from files that the user has. Where one is missing, the perceptual term falls back to `pyramid`,
a comparison of pixels and edges that needs no network, and the identity term to `head_identity`, a small network that
this project trained on procedural heads, if its weights are there, else to nothing. Neither is ever called by the real
network's name: `PerceptionBank.report` says what every term looks through.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from avatar_jax.configure import from_plain
from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.errors import UserError
from avatar_jax.faces.recon import METHOD as RECON_METHOD
from avatar_jax.faces.recon import ReconConfig, ReconNet, abstract_recon
from avatar_jax.losses.identity import FACE_NETWORKS
from avatar_jax.models.perception.arcface import IRBackbone, IResNet, ResNetArcFace
from avatar_jax.models.perception.dlib_face import DlibFace
from avatar_jax.models.perception.head_nets import HeadCoefficients, HeadIdentity, HeadNetsConfig
from avatar_jax.models.perception.inception import FIDInception
from avatar_jax.models.perception.lpips import CHECKSUM_LIN0, NETS, lin_weights, lpips_features, lpips_layers, trunk
from avatar_jax.models.perception.vgg import VGG
from avatar_jax.parallel import as_arrays

PERCEPTUAL_CHOICES = ('auto', 'vgg19', 'head_features', 'pyramid', 'none')
IDENTITY_CHOICES = ('auto', *FACE_NETWORKS, 'head_identity', 'none')


@dataclass(frozen=True)
class NetworkKind:
    """One network that a bank can hold.

    Attributes:
        build: makes the module.
        input_shape: of one image, to build the abstract parameters with.
        arguments: further positional arguments of its call.
        stand_in: trained by this project on procedural heads, instead of a public network.
        unused: key prefixes of the public file that are ignored.
        purpose: what it is for.
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    purpose: str
    arguments: tuple = ()
    stand_in: bool = False
    unused: tuple[str, ...] = ()


NETWORKS: dict[str, NetworkKind] = {
    'vgg19': NetworkKind(
        lambda: VGG('vgg19'), (32, 32, 3), 'perceptual and style loss', ((),), unused=('classifier.',)
    ),
    'arcface18': NetworkKind(ResNetArcFace, (128, 128, 1), 'identity loss and CSIM'),
    'arcface18_se': NetworkKind(lambda: ResNetArcFace(use_se=True), (128, 128, 1), 'identity loss of other projects'),
    'alexnet': NetworkKind(lambda: trunk('alex'), (64, 64, 3), 'LPIPS (alex)', unused=('classifier.',)),
    'vgg16': NetworkKind(lambda: VGG('vgg16'), (32, 32, 3), 'LPIPS (vgg)', ((),), unused=('classifier.',)),
    'squeezenet': NetworkKind(lambda: trunk('squeeze'), (64, 64, 3), 'LPIPS (squeeze)', unused=('classifier.',)),
    'iresnet18': NetworkKind(lambda: IResNet(18), (112, 112, 3), 'face recognition'),
    'iresnet34': NetworkKind(lambda: IResNet(34), (112, 112, 3), 'face recognition'),
    'iresnet50': NetworkKind(lambda: IResNet(50), (112, 112, 3), 'face recognition'),
    'iresnet100': NetworkKind(lambda: IResNet(100), (112, 112, 3), 'face recognition'),
    'ir50': NetworkKind(lambda: IRBackbone(False), (112, 112, 3), 'face recognition (pSp family)'),
    'irse50': NetworkKind(lambda: IRBackbone(True), (112, 112, 3), 'face recognition (pSp family)'),
    'dlib_face': NetworkKind(DlibFace, (150, 150, 3), 'identity loss and CSIM of real faces'),
    'inception': NetworkKind(FIDInception, (299, 299, 3), 'FID'),
    RECON_METHOD: NetworkKind(ReconNet, (224, 224, 3), 'expression and pose (Deep3DFaceRecon): AED, APD'),
    'head_identity': NetworkKind(HeadIdentity, (128, 128, 3), 'identity of procedural heads', stand_in=True),
    'head_coefficients': NetworkKind(
        HeadCoefficients, (128, 128, 3), 'expression, pose and landmarks of procedural heads', stand_in=True
    ),
}
LPIPS_TRUNK = {'alex': 'alexnet', 'vgg': 'vgg16', 'squeeze': 'squeezenet'}


@functools.lru_cache(maxsize=32)  # tracing a network takes up to seconds
def abstract_variables(name: str) -> dict[str, Any]:
    """Names and shapes of a network's variables, without computing anything; do not change what it returns."""
    kind = NETWORKS[_known(name)]
    image = jax.ShapeDtypeStruct((1, *kind.input_shape), jnp.float32)
    return jax.eval_shape(lambda x: kind.build().init(jax.random.key(0), x, *kind.arguments), image)


def _known(name: str) -> str:
    if name not in NETWORKS:
        raise UserError(f'perception network {name!r} is not known; there are {", ".join(NETWORKS)}')
    return name


@struct.dataclass
class PerceptionBank:
    """Weights of frozen networks.

    Attributes:
        weights: network name (a key of `NETWORKS`) -> variables.
        lin: LPIPS variant ('alex', 'vgg', 'squeeze') -> channel weights per layer.
        head_nets: sizes of the stand-in networks. recon: those of the coefficient regressor.
        sources: (name, where the weights come from) of everything held, for reports.
    """

    weights: dict[str, Any] = struct.field(default_factory=dict)
    lin: dict[str, list[jax.Array]] = struct.field(default_factory=dict)
    head_nets: HeadNetsConfig = struct.field(pytree_node=False, default_factory=HeadNetsConfig)
    recon: ReconConfig = struct.field(pytree_node=False, default_factory=ReconConfig)
    sources: tuple[tuple[str, str], ...] = struct.field(pytree_node=False, default=())

    # ------------------------------------------------------------------------------------------------- filling it

    def with_network(self, name: str, variables: Mapping[str, Any], source: str) -> PerceptionBank:
        """A bank that also holds this network. ``variables`` have the layout of the Flax module."""
        weights = {**self.weights, _known(name): as_arrays(dict(variables))}
        return self.replace(weights=weights, sources=_add(self.sources, name, source))

    def with_state_dict(self, name: str, flat: Mapping[str, np.ndarray], source: str) -> PerceptionBank:
        """A bank that also holds this network, from a flat dictionary with the public file's keys and layouts.

        Raises:
            UserError: the entries do not fit the network.
        """
        unused = NETWORKS[_known(name)].unused
        flat = {k.removeprefix('module.'): v for k, v in flat.items()}
        flat = {k: v for k, v in flat.items() if not k.startswith(unused)}
        try:
            variables = from_torch(flat, abstract_variables(name))
        except UserError as error:
            raise UserError(f'{source} as {name}: {error}') from error
        return self.with_network(name, variables, source)

    def with_lpips_lin(self, net: str, flat: Mapping[str, np.ndarray], source: str) -> PerceptionBank:
        """A bank that also holds the channel weights of an LPIPS variant (keys ``lin{k}.model.1.weight``)."""
        if net not in NETS:
            raise UserError(f'LPIPS variant {net!r}: use one of {", ".join(NETS)}')
        layers = 7 if net == 'squeeze' else 5
        keys = [f'lin{k}.model.1.weight' for k in range(layers)]
        if sorted(flat) != sorted(keys):
            raise UserError(f'{source}: not the LPIPS weights of {net!r}, which have the keys {keys[0]} .. {keys[-1]}')
        lin = lin_weights(flat)
        total = float(lin[0].sum())
        if abs(total - CHECKSUM_LIN0[net]) > 1e-3:
            raise UserError(
                f'{source}: sum of the first LPIPS layer is {total:.5f}, version 0.1 of {net!r} has '
                f'{CHECKSUM_LIN0[net]:.5f}; give the file of version 0.1'
            )
        return self.replace(lin={**self.lin, net: lin}, sources=_add(self.sources, f'lpips_{net}', source))

    @classmethod
    def load(cls, files: Mapping[str, str | os.PathLike], base: PerceptionBank | None = None) -> PerceptionBank:
        """A bank from files: a name of `NETWORKS`, 'lpips_alex|vgg|squeeze', or 'head_nets' (both stand-ins) -> path.

        Files are ``.safetensors`` of this project, or ``.npz`` with the keys and layouts of the public state dict.

        Raises:
            UserError: unknown name; missing, damaged or unfitting file.
        """
        bank = cls() if base is None else base
        for name, path in files.items():
            bank = _load_one(bank, name, Path(path))
        return bank

    # ------------------------------------------------------------------------------------------------ asking about it

    def has(self, name: str) -> bool:
        """Whether a network (or 'lpips_alex', ..., complete with its trunk) is here."""
        if name.startswith('lpips_'):
            net = name.removeprefix('lpips_')
            return net in self.lin and LPIPS_TRUNK[net] in self.weights
        return name in self.weights

    def perceptual_kind(self, choice: str = 'auto') -> str:
        """What a perceptual term with this choice looks through: 'vgg19', 'head_features', 'pyramid' or 'none'.

        Raises:
            UserError: a network is asked for by name and is not here.
        """
        return self._resolve('loss.perceptual_network', choice, PERCEPTUAL_CHOICES, ('vgg19', 'pyramid'))

    def identity_kind(self, choice: str = 'auto', option: str = 'loss.identity_network') -> str:
        """What an identity term with this choice looks through: one of ``FACE_NETWORKS``, 'head_identity' or 'none'.

        'auto' takes the first of them that is here. Raises ``UserError`` as ``perceptual_kind``.
        """
        preferred = (*FACE_NETWORKS, 'head_identity', 'none')
        return self._resolve(option, choice, IDENTITY_CHOICES, preferred)

    def _resolve(self, option: str, choice: str, choices: tuple[str, ...], preferred: tuple[str, ...]) -> str:
        if choice not in choices:
            raise UserError(f'{option}: {choice!r}; use one of {", ".join(choices)}')
        needs = {'head_features': 'head_coefficients'}
        free = ('pyramid', 'none')
        if choice == 'auto':
            return next(k for k in preferred if k in free or self.has(needs.get(k, k)))
        if choice not in free and not self.has(needs.get(choice, choice)):
            raise UserError(f'{option}: {choice!r} needs the weights of {needs.get(choice, choice)}; give its file')
        return choice

    def report(self, perceptual: str = 'auto', identity: str = 'auto') -> dict[str, str]:
        """Which network stands behind which term or metric, in words, for logs and reports."""
        sources = dict(self.sources)
        kind = self.perceptual_kind(perceptual)
        texts = {
            'vgg19': f'VGG-19 ({sources.get("vgg19", "")})',
            'head_features': f'stand-in: features of head_coefficients ({sources.get("head_coefficients", "")})',
            'pyramid': 'no network: multi-scale pixel and edge distance (pyramid)',
            'none': 'off',
        }
        out = {'perceptual': texts[kind]}
        kind = self.identity_kind(identity)
        texts = {
            **{name: f'{network.title} ({sources.get(name, "")})' for name, network in FACE_NETWORKS.items()},
            'head_identity': f'stand-in: head_identity ({sources.get("head_identity", "")})',
            'none': 'off: no network given',
        }
        out['identity'] = texts[kind]
        for net in NETS:
            if self.has(f'lpips_{net}'):
                out[f'lpips_{net}'] = f'LPIPS {net} v0.1 ({sources[f"lpips_{net}"]})'
        if self.has('head_coefficients'):
            out['coefficients'] = f'stand-in: head_coefficients ({sources["head_coefficients"]})'
        return out

    # --------------------------------------------------------------------------------------------------- applying it

    def apply(self, name: str, *args, **kwargs):
        """Runs a network that is held; arguments as its module takes them."""
        if name not in self.weights:
            raise UserError(f'perception network {name!r}: its weights are not loaded')
        kind = NETWORKS[name]
        module = kind.build()
        if kind.stand_in or name == RECON_METHOD:
            module = type(module)(self.head_nets if kind.stand_in else self.recon)
        return module.apply(self.weights[name], *args, **kwargs)

    def embed(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """Embedding function of an identity network."""
        return lambda image: self.apply(name, image)

    def lpips(self, net: str, a: jax.Array, b: jax.Array) -> jax.Array:
        """LPIPS [N] of image pairs [N,H,W,3] in [-1, 1]; only with real weights, there is no stand-in."""
        if not self.has(f'lpips_{net}'):
            raise UserError(
                f'LPIPS ({net}): needs the weights of {LPIPS_TRUNK[net]} and of lpips_{net}; give their files'
            )
        variables = self.weights[LPIPS_TRUNK[net]]
        features = [lpips_features(net, variables, x) for x in (a, b)]
        return lpips_layers(*features, self.lin[net]).sum(-1)


def _add(sources: tuple[tuple[str, str], ...], name: str, source: str) -> tuple[tuple[str, str], ...]:
    return (*(s for s in sources if s[0] != name), (name, source))


def _load_one(bank: PerceptionBank, name: str, path: Path) -> PerceptionBank:
    from avatar_jax.io.inputs import file_sha256, input_file
    from avatar_jax.io.weights import SUFFIX, load_weights

    if name not in NETWORKS and name != 'head_nets' and name not in {f'lpips_{n}' for n in NETS}:
        names = [*NETWORKS, 'head_nets', *(f'lpips_{n}' for n in NETS)]
        raise UserError(f'perception network {name!r} is not known; there are {", ".join(names)}')
    path = input_file(path)
    if path.suffix == SUFFIX:
        return _load_own(bank, name, load_weights(path))
    if path.suffix != '.npz':
        raise UserError(f'{path}: give {name} as .npz with the keys of its state dict, or as {SUFFIX} of this project')
    try:
        with np.load(path, allow_pickle=False) as data:
            flat = {k: data[k] for k in data.files}
    except Exception as error:  # np.load has no common class for the many ways in which a file can be broken
        raise UserError(f'{path}: cannot be read as .npz ({type(error).__name__}); get it again') from error
    source = f'{path.name}, sha256 {file_sha256(path)[:12]}'
    if name.startswith('lpips_'):
        return bank.with_lpips_lin(name.removeprefix('lpips_'), flat, source)
    if name == 'head_nets':
        raise UserError(f'{path}: head_nets is a {SUFFIX} file of this project')
    return bank.with_state_dict(name, flat, source)


HEAD_NETS_METHOD = 'head_nets'


@functools.lru_cache(maxsize=4)
def _abstract_head_net(name: str, config: HeadNetsConfig) -> dict[str, Any]:
    module, image = type(NETWORKS[name].build())(config), jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)


def _load_own(bank: PerceptionBank, name: str, weights) -> PerceptionBank:
    """A weight file of this project: the stand-ins (both in one file), or one converted network."""
    from avatar_jax.io.weights import check_tree

    source = f'{weights.path.name}, sha256 {weights.sha256[:12]}'
    if name == 'head_nets' or (name in NETWORKS and NETWORKS[name].stand_in):
        if weights.method != HEAD_NETS_METHOD:
            raise UserError(f"{weights.path}: holds weights of '{weights.method}', not of the head networks")
        config = HeadNetsConfig(**weights.config)
        bank = bank.replace(head_nets=config)
        for part in ('head_identity', 'head_coefficients') if name == 'head_nets' else (name,):
            variables = {c: tree[part] for c, tree in weights.variables.items() if part in tree}
            check_tree(weights.path, variables, _abstract_head_net(part, config))
            bank = bank.with_network(part, variables, f'{source}, trained on procedural heads')
        return bank
    if name == RECON_METHOD and weights.method == RECON_METHOD:
        config = from_plain(ReconConfig, weights.config)
        check_tree(weights.path, weights.variables, abstract_recon(config))
        return bank.replace(recon=config).with_network(name, weights.variables, source)
    if weights.method != f'perception/{name}':
        raise UserError(f"{weights.path}: holds weights of '{weights.method}', not of {name}")
    if name.startswith('lpips_'):
        return bank.with_lpips_lin(name.removeprefix('lpips_'), to_torch(weights.variables), source)
    check_tree(weights.path, weights.variables, abstract_variables(name))
    return bank.with_network(name, weights.variables, source)
