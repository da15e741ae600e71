"""The networks through which an evaluation looks, each with the name that the report prints.

Some scores need a network: expression and pose distances a coefficient estimator, key-point distance a landmark
detector, identity similarity a recognition network, LPIPS its trunk. Whatever is missing is missing in the report too,
with the reason; nothing is replaced by something else under the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.losses.identity import aligned_gray, face_matrix
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.ops.coefficients import NUM_COEFFICIENTS, SLICES
from avatar_jax.procedural import EXPRESSION_NAMES, ProceduralHead

PRESENT = 0.25  # expression coefficient from which a movement counts as there


class Network(NamedTuple):
    """A callable with the words by which reports name it."""

    name: str
    call: Callable


@dataclass(frozen=True)
class Estimators:
    """What is at hand; None means that the scores which need it are reported as unavailable.

    Images are [T, H, W, 3] in [-1, 1], landmarks [T, 68, 2] pixels of the true picture (y down).

    Attributes:
      coefficients: (images, landmarks) -> [T, 257].
      landmarks: (images) -> [T, 68, 2] pixels.
      identity: (images, landmarks) -> [T, D] embeddings.
      lpips: (images, images) -> [T].
      units: (images, landmarks) -> [T, U] action units, present above 0.5.
      head: the head model that is fitted to landmarks for the average vertex distance (``eval.shape``).
      missing: reason for each absent one.
    """

    coefficients: Network | None = None
    landmarks: Network | None = None
    identity: Network | None = None
    lpips: Network | None = None
    units: Network | None = None
    head: Any = None
    missing: tuple[tuple[str, str], ...] = ()

    def reason(self, name: str) -> str:
        """Why an estimator is absent."""
        return dict(self.missing).get(name, 'no network was given for it')

    def report(self) -> dict[str, str]:
        """Name of each network in use, or why there is none."""
        fields = ('coefficients', 'landmarks', 'identity', 'lpips', 'units', 'head')
        networks = {name: getattr(self, name) for name in fields}
        return {k: n.name if n else f'unavailable: {self.reason(k)}' for k, n in networks.items()}


def from_bank(bank: PerceptionBank, lpips: str = 'alex') -> Estimators:
    """The estimators that a bank of frozen networks offers.

    Identity: ArcFace-18 on aligned faces if its weights are there, else the stand-in trained on procedural heads.
    Coefficients and landmarks: the stand-in (it knows procedural heads only), with them action units (its expression
    numbers but for the gaze) and the procedural head. LPIPS: only with its real weights.
    """
    missing, sources = {}, dict(bank.sources)
    coefficients = landmarks = identity = distance = units = head = None

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
        reason = 'needs the weights of a coefficient estimator (head_coefficients)'
        missing |= {'coefficients': reason, 'landmarks': reason}
        missing |= {'units': 'needs a detector of action units', 'head': 'needs a head model fitted to landmarks'}

    if bank.has('arcface18'):
        embed = jax.jit(lambda b, x, lm: b.apply('arcface18', aligned_gray(x, face_matrix(lm))))
        identity = Network(f'ArcFace-18 ({sources["arcface18"]})', lambda x, lm: embed(bank, x, lm))
    elif bank.has('head_identity'):
        embed_head = jax.jit(lambda b, x: b.apply('head_identity', x))
        name = f'stand-in: head_identity ({sources["head_identity"]})'
        identity = Network(name, lambda x, _landmarks: embed_head(bank, x))
    else:
        missing['identity'] = 'needs the weights of arcface18 or head_identity'

    if bank.has(f'lpips_{lpips}'):
        compare = jax.jit(lambda b, x, y: b.lpips(lpips, x, y))
        distance = Network(f'LPIPS {lpips} v0.1 ({sources[f"lpips_{lpips}"]})', lambda x, y: compare(bank, x, y))
    else:
        missing['lpips'] = f'needs the weights of LPIPS {lpips} and its trunk; there is no stand-in for it'
    return Estimators(coefficients, landmarks, identity, distance, units, head, tuple(missing.items()))
