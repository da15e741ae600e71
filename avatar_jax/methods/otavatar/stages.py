"""Stages of OTAvatar for ``avatar-jax bench``: those of its generator, and a step of inverting people side by side.

| stage | what is timed |
|---|---|
| people | one super-resolved step of ``avatar-jax invert --group N`` for N portraits, without ``--perception`` |
| the others | see ``eg3d.stages`` |
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from avatar_jax.losses.networks import default_bank
from avatar_jax.methods.eg3d import stages
from avatar_jax.methods.otavatar import invert
from avatar_jax.methods.otavatar.build import configured
from avatar_jax.methods.otavatar.config import OTAvatarConfig
from avatar_jax.methods.otavatar.method import BuildOptions
from avatar_jax.methods.otavatar.model import ModelConfig, init
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.render import cameras
from avatar_jax.types import Camera, Portrait


class Stages:
    """Functions and example arguments of all stages for one batch size."""

    def __init__(self, config: GeneratorConfig, batch: int):
        self.config, self.batch, self._generator = config, batch, None

    def stage(self, name: str) -> tuple[Callable, tuple, tuple[int, ...]]:
        """Function, arguments and the numbers of those that may be overwritten."""
        if name == 'people':
            return *self._people(), ()
        if self._generator is None:
            self._generator = stages.Stages(self.config, self.batch)
        return self._generator.stage(name)

    def _people(self) -> tuple[Callable, tuple]:
        settings = OTAvatarConfig.paper()
        directions = min(settings.controller.directions, self.config.w_dim)  # a tiny generator has no room for more
        settings = settings.replace(controller__directions=directions)
        config = configured(ModelConfig.of(self.config, settings), BuildOptions())
        view = self.config.rendering
        with jax.ensure_compile_time_eval():  # portraits are of the host, wherever stages are made
            labels = np.asarray(cameras.orbit_labels(self.batch, view.avg_camera_radius, view.avg_camera_pivot))
        rng, size = np.random.default_rng(0), config.img_resolution
        pictures = rng.uniform(-1, 1, (self.batch, size, size, 3)).astype(np.float32)
        portraits = [Portrait(p, Camera.from_label(c)) for p, c in zip(pictures, labels, strict=True)]
        variables = init(config, jax.random.key(0))
        return invert.step_program(variables, config, portraits, default_bank(size))
