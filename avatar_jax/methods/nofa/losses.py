"""The terms of NOFA's four objectives (paper, equations 3 to 12).

The paper writes norms without saying how they are reduced; here squared errors are means over pixels and channels, the
code's norm is that of all its entries, and the volume's term is a mean of squares. The pictures' boxes and face frames
are always those of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.losses.codes import code_norm
from avatar_jax.losses.distance import Distance, describe, distance_kind, distance_of
from avatar_jax.losses.identity import cosine_distance, face_matrix
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.nofa.config import LossConfig, Weights
from avatar_jax.methods.nofa.model import Views, Volume
from avatar_jax.ops.resize import match_size
from avatar_jax.ops.roi_align import apply_roi, roi_matrices
from avatar_jax.ops.warp import warp_affine

MOUTH = slice(48, 68)
FACE_SIZE = 112


# ---------------------------------------------------------------------------------------------- what terms look through


def perceptual_kind(config: LossConfig, bank: PerceptionBank) -> str:
    """The perceptual distance in use: 'lpips_...', 'pyramid' or 'none'. ``UserError`` if asked for and not here."""
    if config.perceptual == 0:
        return 'none'
    return distance_kind(bank, config.perceptual_network, 'loss.perceptual_network')


def identity_kind(config: LossConfig, bank: PerceptionBank) -> str:
    """The network of the identity term: 'irse50', 'head_identity' or 'none'."""
    choice = config.identity_network
    if choice == 'auto':
        return next((k for k in ('irse50', 'head_identity') if bank.has(k)), 'none')
    if choice != 'none' and not bank.has(choice):
        raise UserError(f'loss.identity_network: {choice!r} needs its weights; give its file')
    return choice


def networks(config: LossConfig, bank: PerceptionBank) -> dict[str, str]:
    """What the losses look through, in words."""
    sources = dict(bank.sources)
    who = identity_kind(config, bank)
    people = {
        'irse50': f'ArcFace IR-SE-50 ({sources.get("irse50", "")})',
        'head_identity': f'stand-in: head_identity ({sources.get("head_identity", "")})',
        'none': 'off: no network given',
    }
    return {'perceptual': describe(bank, perceptual_kind(config, bank)), 'identity': people[who]}


def embedding(who: str, bank: PerceptionBank, image: jax.Array, matrix: jax.Array | None) -> jax.Array:
    """Identity vectors of pictures; ``matrix``: into the recognition template, for 'irse50'."""
    if who == 'head_identity':
        return bank.apply(who, image)
    return bank.apply(who, warp_affine(image, matrix, FACE_SIZE))


# ---------------------------------------------------------------------------------------------------------- the mouth


def mouth_boxes(landmarks: jax.Array, size: int, enlarge: float = 1.4) -> jax.Array:
    """Square around the mouth's landmarks, enlarged, then cut to the picture: [B,68,2] pixels -> [B,4] (x1,y1,x2,y2).

    Coordinates of the box are those of pixel edges: the picture covers 0 to ``size``.
    """
    points = landmarks[:, MOUTH] + 0.5
    low, high = points.min(1), points.max(1)
    middle, half = (low + high) / 2, enlarge * (high - low).max(-1, keepdims=True) / 2
    return jnp.clip(jnp.concatenate([middle - half, middle + half], -1), 0, size)


def check_mouths(landmarks: np.ndarray | None, size: int, names: list[str] | None = None) -> None:
    """Raises ``UserError`` for pictures without landmarks, or with a mouth outside the picture (on the host).

    Args:
        landmarks: [B,68,2] pixels, or None. size: of the pictures. names: for messages.
    """
    if landmarks is None:
        whose = f'{names[0]}: ' if names and len(names) == 1 else ''  # of a batch of training nobody has any
        raise UserError(
            f'{whose}landmarks: missing, but the mouth terms need them; track the pictures, '
            'or set the weights of mouth and teeth to 0'
        )
    if landmarks.shape[-2:] != (68, 2):
        raise UserError(f'landmarks: shape {landmarks.shape}; the mouth terms need 68 points, [B,68,2]')
    boxes = np.asarray(mouth_boxes(np.asarray(landmarks, np.float32).reshape(-1, 68, 2), size))
    sides = boxes[:, 2:] - boxes[:, :2]
    for i in np.flatnonzero(~(sides.min(-1) >= 1)):
        name = names[i] if names else f'picture {i}'
        raise UserError(f'{name}: its mouth is outside the picture; leave it out, or crop it anew')


# ----------------------------------------------------------------------------------------------------------- the terms


@flax.struct.dataclass
class Targets:
    """What B views are compared with.

    Attributes:
        image: [B,S,S,3]. raw: [B,R,R,3], the same averaged, or None.
        rows, columns: matrices that cut out the mouths, and crops [B,m,m,3]; None where no term needs them.
        identity: vectors [B,D], and the matrices [B,2,3] of the faces; None likewise.
    """

    image: jax.Array
    raw: jax.Array | None = None
    rows: jax.Array | None = None
    columns: jax.Array | None = None
    crops: jax.Array | None = None
    identity: jax.Array | None = None
    matrix: jax.Array | None = None


def prepare_targets(
    bank: PerceptionBank,
    config: LossConfig,
    weights: Weights,
    images: jax.Array,
    landmarks: jax.Array | None,
    raw_size: int,
) -> Targets:
    """Targets of pictures [B,S,S,3] in [-1,1] with landmarks [B,68,2] in pixels.

    Raises:
        UserError: a term needs landmarks, and there are none.
    """
    size, found = images.shape[1], {'image': images}
    if config.raw:
        found['raw'] = match_size(images, raw_size)
    if weights.mouth or weights.teeth:
        if landmarks is None:
            check_mouths(None, size)
        boxes = mouth_boxes(landmarks, size, config.mouth_enlarge)
        found['rows'], found['columns'] = roi_matrices(
            boxes, config.mouth_size, (size, size), sampling_ratio=2, aligned=True
        )
        # A mouth outside the picture has no crop, and no part in the loss.
        seen = ((boxes[:, 2:] - boxes[:, :2]).min(-1) >= 1)[:, None, None]
        found['rows'] = jnp.where(seen, found['rows'], 0)
        found['crops'] = apply_roi(images, found['rows'], found['columns'])
    who = identity_kind(config, bank)
    if weights.identity and who != 'none':
        if who == 'irse50':
            if landmarks is None:
                raise UserError('landmarks: missing, but the identity term needs them; track the pictures')
            found['matrix'] = face_matrix(landmarks)
        found['identity'] = embedding(who, bank, images, found.get('matrix'))
    return jax.lax.stop_gradient(Targets(**found))


def compared(config: LossConfig, distance: Distance | None, got: jax.Array, wanted: jax.Array) -> jax.Array:
    """Equation 3: mean squared error plus perceptual distance."""
    value = jnp.mean((got - wanted) ** 2)
    return value if distance is None else value + config.perceptual * distance(got, wanted)


def latent_term(config: LossConfig, offsets: jax.Array) -> jax.Array:
    """Equation 6 of the encoder's offsets from the mean code [B,L,D]."""
    return code_norm(offsets) if config.latent == 'norm' else jnp.mean(offsets**2)


def depth_term(canonical: jax.Array, added: jax.Array, mu: float = 0.1) -> jax.Array:
    """Equation 10: mean of ``(mu V_c - V_m)^2``; no gradient reaches V_c."""
    return jnp.mean((mu * jax.lax.stop_gradient(canonical) - added) ** 2)


def teeth_term(
    config: LossConfig, distance: Distance | None, image: jax.Array, restored: jax.Array, targets: Targets
) -> jax.Array:
    """Equation 8: the mouth against that of the restored picture, through which no gradient goes."""
    crops = [apply_roi(x, targets.rows, targets.columns) for x in (image, jax.lax.stop_gradient(restored))]
    return compared(config, distance, *crops)


def objective_terms(
    bank: PerceptionBank,
    config: LossConfig,
    weights: Weights,
    views: Views,
    targets: Targets,
    *,
    offsets: jax.Array | None = None,
    volume: Volume | None = None,
    restored: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The weighted terms of an objective; their sum is the loss.

    Args:
        views: with pictures [B,S,S,3]. targets: of ``prepare_targets`` with the same weights.
        offsets: of the encoder [B,L,D], where ``weights.latent`` is set.
        volume: where ``weights.depth`` is set and there is compensation.
        restored: the teacher's picture of ``views.image``, where ``weights.teeth`` is set; None: a teacher that changes
            nothing, whose term and gradient are zero.
    """
    distance = distance_of(bank, perceptual_kind(config, bank), config.pyramid_scales)
    image, terms = views.image, {}
    if weights.reconstruction:
        terms['reconstruction'] = weights.reconstruction * compared(config, distance, image, targets.image)
        if config.raw:
            weight = weights.reconstruction * config.raw
            terms['raw'] = weight * compared(config, distance, views.raw, targets.raw)
    if weights.mouth:
        crops = apply_roi(image, targets.rows, targets.columns)
        terms['mouth'] = weights.mouth * compared(config, distance, crops, targets.crops)
    if weights.teeth:
        # Equal pictures have no error, but absolute differences have a slope of one at zero.
        nothing = restored is None
        value = jnp.zeros(()) if nothing else teeth_term(config, distance, image, restored, targets)
        terms['teeth'] = weights.teeth * value
    if targets.identity is not None:
        got = embedding(identity_kind(config, bank), bank, image, targets.matrix)
        terms['identity'] = weights.identity * cosine_distance(got, targets.identity)
    return terms | code_and_volume_terms(config, weights, offsets, volume)


def code_and_volume_terms(
    config: LossConfig, weights: Weights, offsets: jax.Array | None, volume: Volume | None
) -> dict[str, jax.Array]:
    """The weighted terms that look at no picture: norm of the code and size of the added volume."""
    terms = {}
    if weights.latent:
        terms['latent'] = weights.latent * latent_term(config, offsets)
    if weights.depth and volume is not None and volume.added is not None:
        terms['depth'] = weights.depth * depth_term(volume.canonical, volume.added, config.mu)
    return terms


def total(terms: Mapping[str, Any]) -> jax.Array:
    """Sum of weighted terms."""
    return sum(terms.values(), jnp.zeros(()))
