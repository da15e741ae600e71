"""The networks of the shipped prior for procedural heads, which several runs start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avatar_jax.methods.otavatar.controller import ControllerConfig
    from avatar_jax.models.triplane import GeneratorConfig


def heads_generator() -> GeneratorConfig:
    """Its generator: `heads128` with the latent of procedural heads (200 numbers) and their camera distances."""
    from avatar_jax.models.triplane import GeneratorConfig

    rendering = {
        'depth_resolution': 18,
        'depth_resolution_importance': 18,
        'ray_start': 2.35,
        'ray_end': 3.25,
        'box_warp': 0.72,
        'decoder_lr_mul': 3.0,
    }
    # Planes as fine as the rendered image: the box is little larger than what the camera sees.
    return GeneratorConfig.heads128().replace(
        z_dim=200, plane_resolution=64, channel_base=3072, channel_max=192, rendering=rendering
    )


def heads_controller(generator: GeneratorConfig) -> ControllerConfig:
    """The released controller's shape over the latent code of `generator`."""
    from avatar_jax.methods.otavatar.controller import ControllerConfig

    return ControllerConfig(num_ws=generator.num_ws, w_dim=generator.w_dim)
