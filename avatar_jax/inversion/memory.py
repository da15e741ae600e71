"""What a step of an inversion or a fit holds of one person, to choose how many are computed side by side."""

from __future__ import annotations

import numpy as np

from avatar_jax.models.triplane import GeneratorConfig

# For each pixel, and for each point of the rays that are rendered at a time: fits the plans of the compiler for
# OTAvatar's inversion (381 MiB a person at 128 pixels, 1.36 GiB at 512) and NOFA's fits (324 to 388 MiB at 128).
BYTES_PER_PIXEL, BYTES_PER_POINT = 4800, 1600


def bytes_of_view(generator: GeneratorConfig) -> float:
    """About the bytes that a rendered picture and its gradient hold while they are computed."""
    view = generator.rendering
    rays = min(view.ray_chunk or np.inf, generator.neural_rendering_resolution**2)
    points = rays * (view.depth_resolution + view.depth_resolution_importance)
    return BYTES_PER_PIXEL * generator.img_resolution**2 + BYTES_PER_POINT * points
