"""What a generator that is tuned to one portrait must not lose: its shape, and a plausible side that was not seen.

A few tuned steps can draw any picture on a wrong surface, and the head tears when it turns. So depth and opacity of
views from the sides are held where the code alone had them (the prior's shape), and what the portrait does not show is
taken from its mirror image: heads are nearly symmetrical, the more of use the further the portrait is turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.faces.camera_labels import mirror_label, yaw_label
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator
from avatar_jax.procedural.expressions import mirror_expression
from avatar_jax.types import Portrait, PyTree


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


def turned(label: jax.Array) -> jax.Array:
    """Degrees between the camera of a label [25] and the one that sees its mirror image."""
    a, b = (x[:16].reshape(4, 4)[:3, 2] for x in (label, mirror_label(label)))
    return jnp.rad2deg(jnp.arccos(jnp.clip(a @ b, -1, 1)))


def hold_terms(
    generator: Mapping[str, Any],
    config: GeneratorConfig,
    ws: jax.Array,
    mirrored_ws: jax.Array,
    label: jax.Array,
    raw: jax.Array,
    weights: HoldConfig,
) -> Callable[[PyTree], dict[str, jax.Array]]:
    """Weighted terms of a tuned generator's variables.

    Args:
        generator: variables before the tuning; what is held is theirs.
        ws: [1,L,D] code of the portrait. mirrored_ws: of its mirror image (expression and angle mirrored).
        label: [25] of the portrait. raw: [1,R,R,3] the portrait at the size of the volume rendering.
    """
    model = TriPlaneGenerator(config)
    sides = jnp.stack([yaw_label(label, jnp.deg2rad(sign * weights.yaw)) for sign in (-1.0, 1.0)])

    def views(variables, code, labels):
        planes = model.apply(variables, code, method='planes')
        planes = jnp.broadcast_to(planes, (len(labels), *planes.shape[1:]))
        return model.apply(variables, planes, labels, draws=None, method='render')

    before = jax.lax.stop_gradient(views(generator, ws, sides))
    share = jnp.clip(turned(label) / (2 * weights.full), 0, 1)
    flipped = raw[:, :, ::-1]

    def terms(variables: PyTree) -> dict[str, jax.Array]:
        out = {}
        if weights.shape:
            now = views(variables, ws, sides)
            depth = jnp.abs(now.depth - before.depth) * before.opacity
            out['hold/shape'] = weights.shape * (depth.mean() + jnp.abs(now.opacity - before.opacity).mean())
        if weights.mirror:
            seen = views(variables, mirrored_ws, mirror_label(label)[None]).rgb
            out['hold/mirror'] = weights.mirror * share * jnp.abs(seen - flipped).mean()
        return out

    return terms
