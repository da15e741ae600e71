"""The networks through which an evaluation looks, each with the name that the report prints.

Some scores need a network: expression and pose distances a coefficient estimator, key-point distance a landmark
detector, identity similarity a recognition network, LPIPS its trunk. Whatever is missing is missing in the report too,
with the reason; nothing is replaced by something else under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.alignment import align
from avatar_jax.faces.recon import METHOD as RECON
from avatar_jax.io.images import to_uint8
from avatar_jax.losses.identity import FACE_NETWORKS
from avatar_jax.losses.networks import refuse_unused
from avatar_jax.losses.perception import LPIPS_TRUNK, PerceptionBank
from avatar_jax.models.perception.inception import fid_features
from avatar_jax.models.perception.lpips import NETS
from avatar_jax.ops.coefficients import NUM_COEFFICIENTS, SLICES
from avatar_jax.procedural import EXPRESSION_NAMES, ProceduralHead

if TYPE_CHECKING:
    from avatar_jax.faces.base import MorphableModel
    from avatar_jax.methods.model import Model

PRESENT = 0.25  # expression coefficient from which a movement counts as there


class Network(NamedTuple):
    """A callable with the words by which reports name it, and whether it needs landmarks of the true picture."""

    name: str
    call: Callable
    needs_landmarks: bool = False


@dataclass(frozen=True)
class Estimators:
    """What is at hand; None means that the scores which need it are reported as unavailable.

    Images are [T, H, W, 3] in [-1, 1], landmarks [T, 68, 2] pixels of the true picture (y down).

    Attributes:
        coefficients: (images, landmarks) -> [T, 257].
        landmarks: (images) -> [T, 68, 2] pixels.
        identity: (images, landmarks) -> [T, D] embeddings.
        lpips: (images, images) -> [T], of the variant 'alex'.
        units: (images, landmarks) -> [T, U] action units, present above 0.5.
        head: the head model that is fitted to landmarks for the average vertex distance (``eval.shape``).
        missing: reason for each absent one.
        inception: (images) -> [T, 2048], for the FID.
        more: further distances of pictures: name of the score -> as ``lpips``.
    """

    coefficients: Network | None = None
    landmarks: Network | None = None
    identity: Network | None = None
    lpips: Network | None = None
    units: Network | None = None
    head: MorphableModel | None = None
    missing: tuple[tuple[str, str], ...] = ()
    more: tuple[tuple[str, Network], ...] = ()
    inception: Network | None = None

    def reason(self, name: str) -> str:
        """Why an estimator is absent."""
        return dict(self.missing).get(name, 'no network was given for it')

    def report(self) -> dict[str, str]:
        """Name of each network in use, or why there is none."""
        fields = ('coefficients', 'landmarks', 'identity', 'lpips', 'units', 'head')
        networks = {name: getattr(self, name) for name in fields}
        found = {k: n.name if n else f'unavailable: {self.reason(k)}' for k, n in networks.items()}
        found |= {k: n.name for k, n in self.more}
        return found | ({'fid': self.inception.name} if self.inception else {})


def from_bank(bank: PerceptionBank, csim: str = 'auto') -> Estimators:
    """The estimators that a bank of frozen networks offers.

    Args:
        csim: the network of the identity similarity, one of ``losses.perception.IDENTITY_CHOICES``.

    Expression and pose: Deep3DFaceRecon's regressor if its weights are there, else the stand-in that was trained on
    procedural heads. The stand-in also gives the landmarks, action units (its expression numbers but for the gaze) and
    the procedural head. Identity: 'auto' is the first of the recognition networks that is there, else the stand-in.
    LPIPS: each variant whose real weights are there, under its own name.

    Raises:
        UserError: the network that ``csim`` names is not there.
    """
    missing, sources = {}, dict(bank.sources)
    coefficients = landmarks = identity = units = head = None

    # The bank is an argument of every compiled function: closed over, its weights would be folded into the program.
    if bank.has('head_coefficients'):
        estimate = jax.jit(lambda b, x: b.apply('head_coefficients', x))

        def coefficient_vector(images, _landmarks):
            out = estimate(bank, images)
            vector = jnp.zeros((images.shape[0], NUM_COEFFICIENTS))
            for part, value in (('exp', out.expression), ('angle', out.angle), ('trans', out.translation)):
                vector = vector.at[:, SLICES[part]].set(value)
            return vector

        name = f'stand-in: head_coefficients ({sources["head_coefficients"]})'
        coefficients = Network(name, coefficient_vector)
        landmarks = Network(name, lambda images: estimate(bank, images).landmarks * images.shape[2])
        acting = np.array([not n.startswith('gaze') for n in EXPRESSION_NAMES])
        units = Network(name, lambda images, _landmarks: estimate(bank, images).expression[:, acting] * (0.5 / PRESENT))
        head = ProceduralHead()
    else:
        missing |= {
            'coefficients': f'needs the weights of a coefficient estimator ({RECON})',
            'landmarks': 'needs the weights of a landmark detector (head_coefficients, for procedural heads)',
            'units': 'needs a detector of action units',
            'head': 'needs a head model fitted to landmarks',
        }
    if bank.has(RECON):
        regress = jax.jit(lambda b, x: b.apply(RECON, x))
        missing.pop('coefficients', None)
        coefficients = Network(
            f'Deep3DFaceRecon ({sources[RECON]})', lambda x, lm: regress(bank, regressor_input(x, lm)), True
        )

    kind = bank.identity_kind(csim, '--csim')
    if kind in FACE_NETWORKS:
        seen = FACE_NETWORKS[kind]
        embed = jax.jit(lambda b, x, lm: b.apply(kind, seen.cut(x, seen.place(lm))))
        title = f'{FACE_NETWORKS[kind].title} ({sources[kind]})'
        identity = Network(title, lambda x, lm: embed(bank, x, lm), True)
    elif kind == 'head_identity':
        embed_head = jax.jit(lambda b, x: b.apply('head_identity', x))
        name = f'stand-in: head_identity ({sources["head_identity"]})'
        identity = Network(name, lambda x, _landmarks: embed_head(bank, x))
    else:
        missing['identity'] = 'needs the weights of a face recognition network (arcface18, iresnet50, ...)'

    distances = {}
    for net in NETS:
        if bank.has(f'lpips_{net}'):
            compare = jax.jit(lambda b, x, y, net=net: b.lpips(net, x, y))
            name = f'LPIPS {net} v0.1 ({sources[f"lpips_{net}"]})'
            distances[net] = Network(name, lambda x, y, compare=compare: compare(bank, x, y))
    inception = None
    if bank.has('inception'):
        features = jax.jit(lambda weights, x: fid_features(weights, x.astype(jnp.float32) / 255))
        name = f'Inception ({sources["inception"]})'
        inception = Network(name, lambda x: features(bank.weights['inception'], to_uint8(np.asarray(x))))
    if 'alex' not in distances:
        missing['lpips'] = 'needs the weights of LPIPS alex and its trunk; there is no stand-in for it'
    return Estimators(
        coefficients,
        landmarks,
        identity,
        distances.pop('alex', None),
        units,
        head,
        tuple(missing.items()),
        more=tuple((f'lpips_{net}', network) for net, network in distances.items()),
        inception=inception,
    )


def chosen_estimators(bank: PerceptionBank, csim: str, given: Sequence[str], model: Model) -> Estimators:
    """``from_bank``, where the user named files of networks.

    Args:
        given: 'NAME=FILE' for each of them.
        model: what is evaluated.

    Raises:
        UserError: as ``from_bank``; or neither the scores nor the losses of the method look through one of them.
    """
    used = model.method.used_networks(model.config, bank)
    if used is not None:
        refuse_unused(given, {*used, *looks_through(bank, csim)}, 'the evaluation')
    return from_bank(bank, csim)


def looks_through(bank: PerceptionBank, csim: str = 'auto') -> tuple[str, ...]:
    """The networks of a bank that the scores use, by their names in it."""
    kind = bank.identity_kind(csim, '--csim')
    found = [] if kind == 'none' else [kind]
    found += [name for name in (RECON, 'head_coefficients', 'inception') if bank.has(name)]
    for net, trunk in LPIPS_TRUNK.items():
        if bank.has(f'lpips_{net}'):
            found += [f'lpips_{net}', trunk]
    return tuple(found)


def regressor_input(images: jax.Array, landmarks: jax.Array) -> np.ndarray:
    """Pictures [T,H,W,3] in [-1,1] with 68 landmarks [T,68,2] as Deep3DFaceRecon reads them: [T,224,224,3] in [0,1]."""
    faces = [align(to_uint8(x), lm).image for x, lm in zip(np.asarray(images), np.asarray(landmarks), strict=True)]
    return np.stack(faces).astype(np.float32) / 255
