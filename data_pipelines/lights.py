"""Random light for the procedural heads, as spherical-harmonic coefficients around the neutral light."""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural.render import default_gamma
from avatar_jax.procedural.streams import Stream


def random_gamma(rng: Stream, strength: float = 1.0) -> np.ndarray:
    """Light coefficients [27] around the default light of the renderer: a soft lamp, a tint, a little of the rest.

    The lamp stands mostly in front and above. Channel-major, as in the 257-number layout; fixed to the head.

    Args:
        rng: source of randomness.
        strength: 1 for the full spread, 0 for the default light itself.
    """
    direction = rng.normal(0, [0.45, 0.3, 0.0], 3) + np.array([0.0, 0.3, 0.6])
    direction /= np.linalg.norm(direction)
    lamp = np.zeros(9)
    lamp[[3, 1, 2]] = np.array([-1, -1, 1]) * direction * rng.uniform(0.05, 0.2)  # bands 1, 2, 3 are -y, z, -x
    lamp[0] = rng.normal(0.05, 0.04)
    lamp[4:] = rng.normal(0, 0.012, 5)
    tint = 1.0 + rng.normal(0, 0.04, (3, 1))
    warmth = rng.normal(0.0, 0.015)
    random = tint * lamp
    random[:, 0] += np.array([1.0, 0.0, -1.0]) * warmth
    return (1 - strength) * default_gamma() + strength * random.reshape(27)
