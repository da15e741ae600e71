"""What a generator that is tuned to one portrait must not lose: its shape, and a plausible side that was not seen.

A few tuned steps can draw any picture on a wrong surface, and the head tears when it turns. So depth and opacity of
views from the sides are held where the code alone had them (the prior's shape), and what the portrait does not show is
taken from its mirror image: heads are nearly symmetrical, the more of use the further the portrait is turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.faces.camera_labels import mirror_label, yaw_label
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator
from avatar_jax.procedural.expressions import mirror_expression
from avatar_jax.types import Portrait


@dataclass(frozen=True)
class HoldConfig:
    """Weights of the terms.

    Attributes:
        shape: of the depth's change in world units, and of the opacity's, in the views from the sides.
        mirror: of the mean difference to the mirrored portrait, at a portrait turned by ``full`` degrees or more.
        yaw: degrees by which the views from the sides are turned away from the portrait's.
        full: degrees from which on the mirror image counts fully.
    """

    shape: float = 5.0
    mirror: float = 1.0
    yaw: float = 25.0
    full: float = 20.0

    def __post_init__(self):
        check = Check(self, 'hold')
        check.at_least(0, 'shape', 'mirror')
        check.within(1, 90, 'yaw')
        check.above(0, 'full')

    def times(self, factor: float) -> HoldConfig:
        """All weights by a factor."""
        return dataclasses.replace(self, shape=factor * self.shape, mirror=factor * self.mirror)


def mirrored_motion(portrait: Portrait) -> Portrait:
    """The portrait with the expression, angle and translation of its mirror image; expressions of other bases than the
    procedural one are kept.
    """
    expression = portrait.expression
    if expression is not None and portrait.basis == 'procedural':
        expression = mirror_expression(np.asarray(expression))
    signs = {'angle': (1.0, -1.0, -1.0), 'translation': (-1.0, 1.0, 1.0)}
    moved = {
        k: v if v is None else np.asarray(v) * np.float32(s) for k, s in signs.items() for v in [getattr(portrait, k)]
    }
    return portrait.replace(expression=expression, **moved)


def turned(label: jax.Array, other: jax.Array | None = None) -> jax.Array:
    """Degrees between the camera of a label [25], or of another one, and the one that sees its mirror image."""
    a, b = (x[:16].reshape(4, 4)[:3, 2] for x in (label if other is None else other, mirror_label(label)))
    return jnp.rad2deg(jnp.arccos(jnp.clip(a @ b, -1, 1)))


class Held(NamedTuple):
    """What is held of one portrait.

    Attributes:
        ws: [1,L,D] code of the portrait. mirrored_ws: of its mirror image.
        label: [25] of the portrait. sides: [2,25] from the sides of it. mirrored: [1,R,R,3] its mirror image.
        share: how much the mirror image counts, 0 to 1.
        depth, opacity: [2,R,R,1] from the sides, before the tuning.
    """

    ws: jax.Array
    mirrored_ws: jax.Array
    label: jax.Array
    sides: jax.Array
    mirrored: jax.Array
    share: jax.Array
    depth: jax.Array
    opacity: jax.Array


def held_of(
    generator: Mapping[str, Any],
    config: GeneratorConfig,
    ws: jax.Array,
    mirrored_ws: jax.Array,
    label: jax.Array,
    raw: jax.Array,
    weights: HoldConfig,
    labels: jax.Array | None = None,
) -> Held:
    """What is to be held of a portrait.

    Args:
        generator: variables before the tuning; what is held is theirs.
        ws: [1,L,D] code of the portrait. mirrored_ws: of its mirror image (expression and angle mirrored).
        label: [25] of the portrait. raw: [1,R,R,3] the portrait at the size of the volume rendering.
        labels: [P,25] of all portraits of the person, where there are several: what another one shows is not taken
            from the mirror image.
    """
    sides = jnp.stack([yaw_label(label, jnp.deg2rad(sign * weights.yaw)) for sign in (-1.0, 1.0)])
    before = jax.lax.stop_gradient(_views(generator, config, ws, sides))
    unseen = turned(label) if labels is None else jax.vmap(lambda other: turned(label, other))(labels).min()
    share = jnp.clip(unseen / (2 * weights.full), 0, 1)
    return Held(ws, mirrored_ws, label, sides, raw[:, :, ::-1], share, before.depth, before.opacity)


def hold_terms(
    variables: Mapping[str, Any], config: GeneratorConfig, held: Held, weights: HoldConfig
) -> dict[str, jax.Array]:
    """Weighted terms of a tuned generator's variables."""
    out = {}
    if weights.shape:
        now = _views(variables, config, held.ws, held.sides)
        depth = jnp.abs(now.depth - held.depth) * held.opacity
        out['hold/shape'] = weights.shape * (depth.mean() + jnp.abs(now.opacity - held.opacity).mean())
    if weights.mirror:
        seen = _views(variables, config, held.mirrored_ws, mirror_label(held.label)[None]).rgb
        out['hold/mirror'] = weights.mirror * held.share * jnp.abs(seen - held.mirrored).mean()
    return out


def _views(variables: Mapping[str, Any], config: GeneratorConfig, code: jax.Array, labels: jax.Array) -> Any:
    model = TriPlaneGenerator(config)
    planes = model.apply(variables, code, method='planes')
    planes = jnp.broadcast_to(planes, (len(labels), *planes.shape[1:]))
    return model.apply(variables, planes, labels, draws=None, method='render')
